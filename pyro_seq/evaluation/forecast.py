"""Frames that follow: the mean forecast, and trajectories drawn from the model."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pyro_seq.data import Batch
from pyro_seq.evaluation.context import blocks, check, decode, evaluating, place
from pyro_seq.guides.filtering import FilteringGuide
from pyro_seq.inference.filtering import filter_sequences
from pyro_seq.ops.trees import map_tensors

__all__ = ["Forecast", "forecast"]


class Forecast(NamedTuple):
    """The steps after a context.

    Attributes:
        a: Codes, `(*samples, batch, steps, obs)`; None for a step model.
        frames: Mean frames of the codes, `(*samples, batch, steps, *frame)`; those of a step
            model are drawn.
    """

    a: Tensor | None
    frames: Tensor


def forecast(
    guide: nn.Module,
    x: Tensor,
    steps: int,
    mask: Tensor | None = None,
    controls: Tensor | None = None,
    *,
    samples: int | None = None,
    seed: int | None = None,
    chunk: int = 256,
) -> Forecast:
    r"""Continue sequences beyond their last frame.

    Without `samples` the mean path: :math:`E[z_t]` is carried on by the transitions, and the
    weight network reads predicted codes. With `samples`, draws from
    :math:`q(a_{1:T} \mid x)\, p(z_T \mid a)\, p(z_{T+1:T+H}, a_{T+1:T+H} \mid z_T, a_{1:T})`:
    each is one possible future, with the noise of state and code in it. A context of the first few
    frames gives generation as in the paper.

    A step model has no mean path. Each future goes on from a draw of its filtering guide over the
    context, and its frames are drawn from the model, since the next step may read them.

    Args:
        guide: Guide of a trained pair with mixture dynamics, for example
            :class:`~pyro_seq.guides.KalmanGuide`, or a filtering guide of a step model.
        x: The context, `(batch, time, *frame)`. Frames missing at its end are time that passed:
            the forecast begins after the last column.
        steps: H, number of frames to forecast.
        mask: bool `(batch, time)`, True where observed.
        controls: u, `(batch, time + steps, control)`, of the future steps too.
        samples: Number of futures of each sequence, or None for the mean path.
        seed: Seed of the draws; None goes on with torch's present state.
        chunk: Sequences times samples that are in memory at once.

    Returns:
        Codes and frames, with a first dimension of size `samples` if they were drawn.

    Raises:
        ValueError: If a number is not positive, or the controls do not cover all steps.
        TypeError: If the guide cannot forecast.
    """
    model = _check(guide, x, steps, controls, samples)
    copies = samples or 1
    with evaluating(model, guide, seed=seed):
        parts = blocks(Batch(x, mask, controls), max(1, chunk // copies))
        if isinstance(guide, FilteringGuide):
            futures = [_generated(guide, place(model, part), steps, copies) for part in parts]
            return Forecast(None, torch.cat(futures, 1).to(x.device))
        if samples is None:
            codes = [_mean(guide, place(guide, part), steps) for part in parts]
        else:
            codes = [_draw(guide, place(guide, part), steps, samples) for part in parts]
        a = torch.cat(codes, -3)
        frames = decode(model, a.flatten(0, -2)).view(*a.shape[:-1], *x.shape[2:])
    return Forecast(a.to(x.device), frames.to(x.device))


def _check(
    guide: Any,  # noqa: ANN401
    x: Tensor,
    steps: int,
    controls: Tensor | None,
    samples: int | None,
) -> Any:  # noqa: ANN401
    model: Any = getattr(guide, "model", None)
    if isinstance(guide, FilteringGuide):
        size = model.controls
        if samples is None:
            raise ValueError(
                "samples must be the number of futures to draw: a step model has no mean path; "
                "got None"
            )
    elif not all(hasattr(guide, name) for name in ("filter", "codes")) or not all(
        hasattr(model, name) for name in ("decode", "dynamics")
    ):
        raise TypeError(
            "guide must have filter(x, mask, controls), codes(x, mask) and a model with decode(a) "
            f"and dynamics; {type(guide).__name__} has not. Use for example KalmanGuide"
        )
    else:
        size = getattr(model.dynamics, "controls", 0)
    if steps < 1 or (samples is not None and samples < 1):
        raise ValueError(f"steps and samples must be at least 1; got {steps} and {samples}")
    needed = (x.shape[0], x.shape[1] + steps)
    if size and controls is None:
        got = "None"
    elif controls is not None and controls.shape[:2] != needed:
        got = f"shape {tuple(controls.shape)}"
    else:
        return model
    raise ValueError(
        "controls must cover the context and the forecast, (batch, time + steps, control) = "
        f"({needed[0]}, {needed[1]}, control); got {got}"
    )


def _check_context(model: Any, part: Batch) -> None:  # noqa: ANN401
    """Look at the context alone, so that a message speaks of the shapes that were given."""
    controls = None if part.controls is None else part.controls[:, : part.x.shape[1]]
    check(model, part._replace(controls=controls))


def _generated(guide: FilteringGuide, part: Batch, steps: int, samples: int) -> Tensor:
    """Drawn frames `(samples, batch, steps, *frame)` of a step model."""
    x, mask, controls = part
    past, future = (None, None) if controls is None else controls.tensor_split([x.shape[1]], 1)
    state = filter_sequences(guide, x, mask, past, particles=samples, analytic=False).state.model
    state = map_tensors(lambda leaf: leaf.flatten(0, 1), state)
    if future is not None:
        future = future.repeat(samples, 1, 1)
    frames = guide.model.generate(time=steps, controls=future, state=state)
    return frames.view(samples, x.shape[0], *frames.shape[1:])


def _mean(guide: Any, part: Batch, steps: int) -> Tensor:  # noqa: ANN401
    """Filter on with missing frames: mean codes `(batch, steps, obs)`."""
    _check_context(guide.model, part)
    x, mask, controls = part
    seen = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if mask is None else mask
    x = torch.cat([x, x.new_zeros(x.shape[0], steps, *x.shape[2:])], 1)
    seen = torch.cat([seen, seen.new_zeros(x.shape[0], steps)], 1)
    return guide.filter(x, seen, controls).a[:, -steps:]


def _draw(guide: Any, part: Batch, steps: int, samples: int) -> Tensor:  # noqa: ANN401
    """Drawn codes `(samples, batch, steps, obs)`."""
    _check_context(guide.model, part)
    dynamics = guide.model.dynamics
    count, time = part.x.shape[:2]
    a = guide.codes(part.x, part.mask).sample((samples,)).flatten(0, 1)
    mask = None if part.mask is None else part.mask.repeat(samples, 1)
    controls = None if part.controls is None else part.controls.repeat(samples, 1, 1)
    state = dynamics.initial_state(samples * count)
    for t in range(time):
        ahead = dynamics.predict(state, None if controls is None else controls[:, t])
        state, _ = dynamics.update(state, ahead, a[:, t], None if mask is None else mask[:, t])
    codes = []
    for t in range(time, time + steps):
        state, code = dynamics.draw(state, None if controls is None else controls[:, t])
        codes.append(code)
    return torch.stack(codes, 1).view(samples, count, steps, -1)
