r"""Guides that infer the latents of a step model step by step.

.. math:: q(z_{1:T} \mid x_{1:T}) = \prod_t q(z_t \mid z_{<t}, x_{\le t})

References:
    Marino, Cvitkovic, Yue (2018), A general method for amortizing variational filtering.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pyro
from pyro.nn import PyroModule, pyro_method
from torch import Size, Tensor

from pyro_seq.guides.context import Frame, StepContext, is_substitutable, substitute
from pyro_seq.guides.sites import InferSites, LatentSite, Likelihood
from pyro_seq.models.step_handlers import active_batch_shape, at_step, hide, touch
from pyro_seq.models.step_model import SplitState, SplitStepModel, StepModel
from pyro_seq.nn.naming import unique_name
from pyro_seq.ops.trees import leaves, map_tensors, unbind

__all__ = ["FilterState", "FilteringGuide", "Inference", "Step"]

Choose = Callable[[LatentSite], Any]


class Inference(NamedTuple):
    """What a guide says about one step.

    Attributes:
        choose: Called with each latent site of the step in order; returns its q.
        state: The guide's own state after the step.
        objective: `(*batch)`, something whose gradient trains the guide beside the bound, or None;
            its value counts nowhere.
    """

    choose: Choose
    state: Any = None
    objective: Tensor | None = None


class FilterState(NamedTuple):
    """All that filtering remembers between steps: the state of the model and of the guide."""

    model: Any
    guide: Any


class Step(NamedTuple):
    """One filtered step.

    Attributes:
        sites: Latent sites in order, with prior, posterior and value.
        likelihood: Observed sites with their log densities; empty where the emission is deferred.
        latents: What the emission of a split model reads, where it is deferred.
        objective: See :class:`Inference`.
        state: After the step.
    """

    sites: list[LatentSite]
    likelihood: list[Likelihood]
    latents: Any
    objective: Tensor | None
    state: FilterState


class FilteringGuide(PyroModule):
    r"""A guide that goes through a sequence with the model, one step at a time.

    A subclass says how the latents of one step are inferred from the model's state and the frame:
    :meth:`infer`. It is called once per step and returns a function from each latent site, with
    its prior, to its q. The base class makes of this a guide for stock Pyro, ``forward``, and what
    the filtering objectives and the online filter run. Where a frame is missing q is the prior.

    Args:
        model: Any :class:`~pyro_seq.models.StepModel`.

    Attributes:
        stops_gradients: Whether samples are constants for the steps after (as in EM); this holds
            in the filtering objectives, while stock Pyro always differentiates through time.
        online: Whether :meth:`infer` needs no later frame.
        parallel: Whether q of a step reads no latent of an earlier step, so that all steps may be
            inferred at once.
        reads_priors: Whether the functions from sites to q read anything of a prior beside its
            shapes and its family, which q then has too. If not, priors need not be known yet when
            latents are drawn.
        frame_shape: Shape of the model's frames, where the guide has found out; frames of another
            shape are then refused.

    Raises:
        TypeError: When the model is no step model.
    """

    stops_gradients: bool = False
    online: bool = True
    parallel: bool = False
    reads_priors: bool = True
    frame_shape: Size | None = None

    def __init__(self, model: StepModel) -> None:
        super().__init__(unique_name(type(self).__name__.lower()))
        if not isinstance(model, StepModel):
            raise TypeError(f"model must be a StepModel; got {type(model).__name__}")
        self._model = (model,)

    @property
    def model(self) -> StepModel:
        """The model; not a submodule, so that its parameters have one owner."""
        return self._model[0]

    def initial_state(self, batch_shape: Size) -> Any:  # noqa: ANN401
        """The guide's own state before the first frame: tensors `(*batch_shape, ...)`, or None."""
        return None

    def encode(self, x: Tensor, mask: Tensor | None, controls: Tensor | None) -> Tensor | None:
        """What :meth:`infer` reads of the frames, all steps at once.

        Args:
            x: Frames `(batch, time, *frame)`, zero where missing.
            mask: bool `(batch, time)`, True where observed.
            controls: u, `(batch, time, controls)`.

        Returns:
            `(batch, time, ...)`, or None if nothing of the kind is needed.
        """
        return None

    def informed(self, mask: Tensor) -> Tensor:
        """Where q may differ from the prior, bool `(batch, time)`: where a frame was observed."""
        return mask

    def infer(self, context: StepContext, state: Any) -> Inference:  # noqa: ANN401
        """Inference of one step.

        Args:
            context: The model's state, the frame, and the step's free energy as a function.
            state: The guide's own state.

        Returns:
            How to choose the posterior of each site, and the guide's state after the step.
        """
        raise NotImplementedError

    def forward(
        self, x: Tensor, mask: Tensor | None = None, controls: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Draws the latent sites of every step.

        Args:
            x: Frames `(batch, time, *frame)`; missing ones may be NaN.
            mask: bool `(batch, time)`, True where observed.
            controls: u, `(batch, time, controls)`.

        Returns:
            Values of the sites by name, `z_1` to `z_T`.
        """
        self.model.check(x, mask, controls)
        values: dict[str, Tensor] = {}
        with pyro.plate("sequences", x.shape[0], dim=-1):
            shape = active_batch_shape()
            state = self.initial(shape)
            frames, _ = self.frames(x, mask, controls, state, shape, defer=mask is None)
            for number, frame in enumerate(frames, 1):
                with at_step(number):
                    step = self.advance(state, frame, shape, hidden=False)
                state = step.state
                values |= {f"{site.name}_{number}": site.value for site in step.sites}
        return values

    def initial(self, batch_shape: Size) -> FilterState:
        """The state of model and guide before the first frame."""
        return FilterState(self.model.initial_state(batch_shape), self.initial_state(batch_shape))

    def frames(
        self,
        x: Tensor,
        mask: Tensor | None,
        controls: Tensor | None,
        state: FilterState,
        batch_shape: Size,
        *,
        defer: bool = True,
    ) -> tuple[list[Frame], Any]:
        """What each step reads.

        What needs no latent is computed here, for all steps at once. Where a frame that the
        transition reads is missing in between, the model's parts stay together in the loop, since
        the prediction that stands for it depends on the latents.

        Args:
            x: Frames `(batch, time, *frame)`; missing ones may be NaN.
            mask: bool `(batch, time)`, True where observed.
            controls: u, `(batch, time, controls)`.
            state: State before the first of these frames.
            batch_shape: Batch shape of the steps: `(batch,)`, or with dimensions on its left over
                which the frames are repeated.
            defer: Whether the emission of a split model may be left for after the loop.

        Returns:
            The frames, and the memory of a split model's embedding after them.
        """
        if self.frame_shape is not None and x.shape[2:] != self.frame_shape:
            raise ValueError(
                f"x must be (batch, time, *frame) with frame = {tuple(self.frame_shape)}, as the "
                f"model makes them; got shape {tuple(x.shape)}"
            )
        clean = hide(x, mask)
        informed = None if mask is None else self.informed(mask)
        encoding = self.encode(clean, mask, controls)
        embedding, memory, deferred = None, None, False
        if defer:
            embedding, memory, deferred = self._embed(clean, mask, state, batch_shape)
        parts = Frame(clean, mask, informed, controls, encoding, embedding)
        parts = map_tensors(lambda part: part.expand(*batch_shape[:-1], *part.shape), parts)
        frames = unbind(parts._replace(deferred=deferred), len(batch_shape))
        return frames, memory

    def advance(
        self,
        state: FilterState,
        frame: Frame,
        batch_shape: Size,
        *,
        hidden: bool = True,
        kl_weight: float | Tensor = 1.0,
    ) -> Step:
        """Runs one step of model and guide together.

        Args:
            state: Before the step.
            frame: One of :meth:`frames`.
            batch_shape: Batch shape of the step.
            hidden: Whether the latents are hidden from Pyro's handlers.
            kl_weight: Weight of the KL terms in the objective that is minimised.

        Returns:
            The sites with their values, and the state after the step.
        """
        model = self.model
        context = StepContext(model, state.model, frame, batch_shape, kl_weight, not hidden)
        inference = self.infer(context, state.guide)
        stop = self.stops_gradients and hidden
        sites = InferSites(
            inference.choose,
            batch_shape,
            frame.seen,
            frame.informed,
            hidden=hidden,
            stop_gradients=stop and not frame.deferred,
        )
        versions = [leaf._version for leaf in leaves(state.model)]
        held = _held(model)
        latents = None
        if frame.deferred and isinstance(model, SplitStepModel):
            with sites:
                latents = model.latents(context.state.state, frame.control)
            past = (
                _without_gradient(model, context.state, latents, sites, frame) if stop else latents
            )
            inner = model.transition(context.state.state, past, frame.embedding, frame.control)
            after: Any = SplitState(inner, state.model.memory)
        elif isinstance(model, SplitStepModel):
            with sites:
                after = model.proceed(context.state, frame.x, frame.control)
        else:
            with sites:
                after = model.step(state.model, frame.x, frame.control)
        _check_step(state.model, after, versions)
        _check_held(model, held)
        return Step(
            sites.latents,
            sites.likelihoods,
            latents,
            inference.objective,
            FilterState(after, inference.state),
        )

    @pyro_method
    def announce(self) -> None:
        """Shows all parameters to Pyro, for handlers that collect them."""
        touch(self)

    def _embed(
        self, x: Tensor, mask: Tensor | None, state: FilterState, batch_shape: Size
    ) -> tuple[Tensor | None, Any, bool]:
        """A split model's embedding of all frames, if none has to be predicted first."""
        model = self.model
        if not isinstance(model, SplitStepModel):
            return None, None, False
        memory = state.model.memory
        if not model.reads_frames:
            return None, memory, True
        if mask is not None and _has_gaps(mask):
            return None, None, False
        copies = len(batch_shape) - 1
        memory = map_tensors(lambda m: m[(0,) * copies], memory)
        embedding, memory = model.embed(x, memory)
        return embedding, map_tensors(lambda m: _expand(m, batch_shape), memory), True


def _expand(part: Tensor, batch_shape: Size) -> Tensor:
    """A part `(batch, ...)` repeated over the dimensions on the left of the batch."""
    return part if len(batch_shape) == 1 else part.expand(*batch_shape, *part.shape[1:])


def _has_gaps(mask: Tensor) -> bool:
    """Whether a frame is missing before one that was observed; assumed on another device."""
    if mask.device.type != "cpu":
        return True
    return bool((mask[:, 1:] & ~mask[:, :-1]).any())


def _without_gradient(
    model: SplitStepModel,
    state: SplitState,
    latents: Any,  # noqa: ANN401
    sites: InferSites,
    frame: Frame,
) -> Any:  # noqa: ANN401
    """The latents as constants, the gradient through the model's state kept."""
    values = {site.name: site.value.detach() for site in sites.latents}
    if is_substitutable(latents, sites.latents, state.state):
        return substitute(latents, {id(s.value): values[s.name] for s in sites.latents})
    with pyro.poutine.block(), pyro.condition(data=values):
        return model.latents(state.state, frame.control)


def _held(model: StepModel) -> dict[str, Any]:
    """What a model holds under its own names; not what its submodules hold."""
    return vars(model) | model._buffers


def _check_held(model: StepModel, before: dict[str, Any]) -> None:
    """Raises when a step has set an attribute of the model."""
    after = _held(model)
    changed = [name for name, value in after.items() if before.get(name, after) is not value]
    if changed:
        raise RuntimeError(
            f"step must keep nothing on the model, since guides may run a step several times: it "
            f"set {changed}. Return what is to be remembered in the state"
        )


def _check_step(before: Any, after: Any, versions: list[int]) -> None:  # noqa: ANN401
    """Raises when a step changed the state that it was given, or returned another kind."""
    if [leaf._version for leaf in leaves(before)] != versions:
        raise RuntimeError(
            "step must not change the state it is given: a tensor of it was modified in place. "
            "Return a new state, with z = z + 1 in place of z += 1"
        )
    if type(after) is not type(before):
        raise TypeError(
            f"step must return a state like the one it was given, {type(before).__name__}; "
            f"got {type(after).__name__}"
        )
