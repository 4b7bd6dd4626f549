r"""Filtering one frame at a time.

.. math:: (q(z_t), s_t) = \mathrm{filter}(s_{t-1}, x_t), \qquad
    p(x_{t+1} \mid s_t) = E_{p(z_{t+1} \mid s_t)}[p(x_{t+1} \mid z_{t+1}, s_t)]
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pyro_seq.guides.filtering import FilteringGuide
from pyro_seq.guides.streams import OnlineGuide, Streams
from pyro_seq.ops.trees import map_tensors

__all__ = ["OnlineFilter"]


class OnlineFilter:
    r"""A trained pair as a filter of streams, one frame at a time, in memory that does not grow.

    Posterior and free energy of a step are those that the whole sequence would give. The pair runs
    in evaluation mode and without gradients, and is left in the mode it was in.

    Args:
        model: A step model, or a model whose guide filters by itself, such as
            :class:`~pyro_seq.models.KVAE`.
        guide: Its guide.
        batch: Number of streams.
        particles: Number of weighted draws of each stream, resampled where few of them count; None
            for a single draw. For step models.
        predict: Whether the next frame is predicted, which costs a run of the model and draws
            random numbers. For step models.

    Raises:
        TypeError: When the guide cannot filter.
        ValueError: When the guide is of another model or needs later frames, or a number is not
            positive.

    Example:
        >>> from pyro_seq.guides import NeuralFilter
        >>> from pyro_seq.models import DMM
        >>> model = DMM(frame=3, latent=2)
        >>> online = OnlineFilter(model, NeuralFilter(model, hidden=8), batch=4)
        >>> update = online.update(torch.ones(4, 3))
        >>> update.posteriors["z"].mean.shape, update.next_frame.shape
        (torch.Size([4, 2]), torch.Size([4, 3]))
    """

    def __init__(
        self,
        model: nn.Module,
        guide: nn.Module,
        batch: int = 1,
        *,
        particles: int | None = None,
        predict: bool = True,
    ) -> None:
        for name, number in (("batch", batch), ("particles", particles)):
            if number is not None and number < 1:
                raise ValueError(f"{name} must be at least 1; got {number}")
        if getattr(guide, "model", model) is not model:
            raise ValueError("guide must be the guide of this model; it was made for another one")
        self.model, self.guide, self.batch = model, guide, batch
        self._parts = {*model.modules(), *guide.modules()}
        self._guide = _online_guide(guide, particles, predict)
        with _at_rest(self._parts):
            self._state = _own(self._guide.start_online(batch))

    @property
    def state(self) -> Any:  # noqa: ANN401
        """All that is remembered; it may be kept and set again."""
        return self._state

    @state.setter
    def state(self, state: Any) -> None:  # noqa: ANN401
        self.load_state_dict(_named(state))

    def state_dict(self) -> dict[str, Any]:
        """The state as tensors and numbers by name, for ``torch.save``."""
        return _named(self._state)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Sets the state to what :meth:`state_dict` returned, on the device of this filter.

        Raises:
            ValueError: When it is the state of another model or number of streams.
        """
        own = _named(self._state)
        if own.keys() != state.keys():
            raise ValueError(
                f"state must hold {[*own]}, as the state of this pair; got {[*state]}"
            )
        for name, value in own.items():
            if _form(value) != _form(state[name]):
                raise ValueError(
                    f"state must have {_form(value)} for '{name}', as that of {self.batch} "
                    f"streams; got {_form(state[name])}"
                )
        values = {
            name: state[name].to(value.device) if isinstance(value, Tensor) else state[name]
            for name, value in own.items()
        }
        self._state = _own(_replaced(self._state, values))

    def update(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        control: Tensor | None = None,
        next_control: Tensor | None = None,
    ) -> Any:  # noqa: ANN401
        r"""Takes in the next frame of every stream.

        Args:
            x: :math:`x_t`, `(batch, *frame)`; missing ones may be NaN.
            mask: Which streams have a frame now, bool `(batch,)`.
            control: :math:`u_t`, `(batch, controls)`.
            next_control: :math:`u_{t+1}` for the prediction; zero when not given.

        Returns:
            A :class:`FilterUpdate`, or what the guide has instead, such as
            :class:`KalmanUpdate`: what is known now, and the prediction of the next frame.

        Raises:
            ValueError: If a shape does not fit the model and the number of streams, or an
                observed frame is not finite.
        """
        with _at_rest(self._parts):
            update, state = self._guide.update_online(self._state, x, mask, control, next_control)
            self._state = _own(state)
        return update

    def forecast(self, steps: int, controls: Tensor | None = None) -> Tensor:
        r"""Frames to come, each predicted from those predicted before; the state stays.

        Args:
            steps: Number of frames.
            controls: u of these steps, `(batch, steps, controls)`, for a model that reads them.

        Returns:
            Mean frames `(batch, steps, *frame)`: of a Kalman filter the mean path; of a step model
            the means given drawn latents, averaged over the particles. Frames drawn from the model
            are those of `model.generate(time=steps, state=online.state.model)`.

        Raises:
            ValueError: If there is no step, or the controls do not fit or are missing.
        """
        if steps < 1:
            raise ValueError(f"steps must be at least 1; got {steps}")
        if controls is not None and controls.shape[:-1] != (self.batch, steps):
            raise ValueError(
                f"controls must be (batch, steps, controls) = ({self.batch}, {steps}, controls); "
                f"got shape {tuple(controls.shape)}"
            )
        with _at_rest(self._parts):
            return self._guide.forecast_online(self._state, steps, controls)


def _online_guide(guide: Any, particles: int | None, predict: bool) -> OnlineGuide:  # noqa: ANN401
    """The guide itself if it can, or a filtering guide run step by step."""
    if isinstance(guide, FilteringGuide):
        return Streams(guide, particles, predict)
    if not isinstance(guide, OnlineGuide):
        raise TypeError(
            "guide must be a FilteringGuide, or have start_online, update_online and "
            f"forecast_online; {type(guide).__name__} is neither"
        )
    if particles is not None or not predict:
        raise ValueError(
            f"particles and predict are for step models; {type(guide).__name__} filters by itself"
        )
    return guide


@contextmanager
def _at_rest(parts: Iterable[nn.Module]) -> Iterator[None]:
    """No gradients, and the modules in evaluation mode; afterwards in the mode they were in."""
    training = [part for part in parts if part.training]
    for part in training:
        part.training = False
    try:
        with torch.no_grad():
            yield
    finally:
        for part in training:
            part.training = True


def _own(state: Any) -> Any:  # noqa: ANN401
    """The state in memory of its own, so that a reused buffer of frames does not change it."""
    return map_tensors(lambda part: part.detach().clone(), state)


def _named(tree: Any, name: str = "") -> dict[str, Any]:  # noqa: ANN401
    """What a tree holds by its place, such as `"model.z"` or `"guide.0"`."""
    if tree is None:
        return {}
    items = _items(tree)
    if items is None:
        return {name: tree}
    start = f"{name}." if name else ""
    return {k: v for key, part in items for k, v in _named(part, f"{start}{key}").items()}


def _replaced(tree: Any, values: Mapping[str, Any], name: str = "") -> Any:  # noqa: ANN401
    """The tree with other values at the places that :func:`_named` gives."""
    if tree is None:
        return None
    items = _items(tree)
    if items is None:
        return values[name]
    start = f"{name}." if name else ""
    parts = {key: _replaced(part, values, f"{start}{key}") for key, part in items}
    if isinstance(tree, dict):
        return parts
    return type(tree)(*parts.values()) if hasattr(tree, "_fields") else type(tree)(parts.values())


def _items(tree: Any) -> list[tuple[Any, Any]] | None:  # noqa: ANN401
    """The parts of a tree by key, or None if it is a leaf."""
    if isinstance(tree, dict):
        return [*tree.items()]
    if isinstance(tree, tuple | list):
        return [*zip(getattr(tree, "_fields", range(len(tree))), tree, strict=True)]
    return None


def _form(value: Any) -> str:  # noqa: ANN401
    """A tensor's shape, or the type of what is none."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    return f"a value of type {type(value).__name__}"
