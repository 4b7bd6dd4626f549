r"""Models that are written as one step in time.

.. math:: p(x_{1:T}, z_{1:T} \mid u) = \prod_t p(z_t \mid s_{t-1}, u_t)\, p(x_t \mid z_t, s_{t-1}),
    \qquad s_t = f(s_{t-1}, z_t, x_t, u_t)
"""

from __future__ import annotations

from typing import Any, NamedTuple

import pyro
import torch
from pyro.distributions.util import is_validation_enabled
from pyro.nn import PyroModule, pyro_method
from torch import Size, Tensor

from pyro_seq.models.step_handlers import (
    FRAME,
    active_batch_shape,
    at_step,
    explaining,
    frame_at,
    observe,
    touch,
)
from pyro_seq.nn.arguments import check_positive
from pyro_seq.nn.naming import unique_name
from pyro_seq.ops.trees import flatten_batch, leaves, map_tensors, unflatten_batch

__all__ = ["SplitState", "SplitStepModel", "StepModel"]


class StepModel(PyroModule):
    r"""A generative model written as one step, with ordinary ``pyro.sample`` statements.

    A subclass says how the state begins and what one step does. The base class unrolls the step
    over time in one plate and names the sites by step, ``z_1, x_1, z_2, ...``; every filtering
    guide, objective and evaluation of this library then works on it.

    - The frame is the site ``"x"``, with ``obs=x_t``; every other site without an observation is
      a latent. There may be any number of them, and one may depend on another.
    - What the next state needs of the frame is read from the value that ``pyro.sample("x", ...)``
      returns. Where the frame is missing that value is the model's own prediction, the mean of
      the site's distribution, and when generating it is the generated frame.
    - The state is a named tuple of tensors whose first dimensions are those of the batch. A step
      returns a new one and changes nothing else.

    Args:
        name: Name of this model in Pyro's parameter store; when empty, the name of the class,
            with a number.

    Attributes:
        controls: Size of the controls u, or 0; a subclass with controls sets it.
        observed: Fields of the visible state that depend on the frames alone.

    Raises:
        ValueError: In `forward`, when a shape does not fit.

    Example:
        >>> import pyro.distributions as dist
        >>> class Walk(StepModel):
        ...     class State(NamedTuple):
        ...         z: Tensor
        ...     def initial_state(self, batch_shape):
        ...         return self.State(torch.zeros(*batch_shape, 2))
        ...     def step(self, state, x_t, u_t=None):
        ...         z = pyro.sample("z", dist.Normal(state.z, 0.1).to_event(1))
        ...         pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x_t)
        ...         return self.State(z)
        >>> Walk().generate(batch=3, time=5).shape
        torch.Size([3, 5, 2])
    """

    controls: int = 0
    observed: tuple[str, ...] = ()

    def __init__(self, name: str = "") -> None:
        super().__init__(name or unique_name(type(self).__name__.lower()))

    def initial_state(self, batch_shape: Size) -> Any:  # noqa: ANN401
        """The state before the first frame.

        Args:
            batch_shape: First dimensions of every tensor of the state.

        Returns:
            A named tuple of tensors `(*batch_shape, ...)`.
        """
        raise NotImplementedError

    def step(self, state: Any, x_t: Tensor | None, u_t: Tensor | None = None) -> Any:  # noqa: ANN401
        """Samples the latents and the frame of one step.

        Args:
            state: The state before the step.
            x_t: The frame `(*batch, *frame)`, or None to generate it.
            u_t: The control `(*batch, controls)`, or None without controls.

        Returns:
            The state after the step.
        """
        raise NotImplementedError

    def visible(self, state: Any) -> Any:  # noqa: ANN401
        """What a guide may read of a state: all of it."""
        return state

    def forward(
        self,
        x: Tensor | None = None,
        mask: Tensor | None = None,
        controls: Tensor | None = None,
        *,
        batch: int | None = None,
        time: int | None = None,
    ) -> Tensor:
        r"""The model unrolled over time, observed at x or generating.

        Args:
            x: Frames `(batch, time, *frame)`; missing ones may be NaN. None generates them.
            mask: bool `(batch, time)`, True where observed.
            controls: u, `(batch, time, controls)`.
            batch: Number of sequences to generate, when x is None.
            time: Number of steps to generate, when x is None.

        Returns:
            The frames `(batch, time, *frame)`: those observed, with the model's predictions where
            they are missing, or those generated.
        """
        self.check(x, mask, controls)
        if x is not None:
            batch, time = x.shape[:2]
        elif batch is None or time is None:
            raise ValueError("x must be given, or else batch= and time= of what to generate")
        else:
            check_positive(batch=batch, time=time)
            self.check_steps(time)
            self.check_controls(controls, batch, time)
        with pyro.plate("sequences", batch, dim=-1):
            shape = active_batch_shape()
            state, frames = self.initial_state(shape), []
            for number in range(time):
                x_t, seen = frame_at(x, mask, number, shape)
                u_t = None if controls is None else controls[:, number].expand(*shape, -1)
                with at_step(number + 1), observe(seen) as observed, explaining(x_t, u_t):
                    state = self.step(state, x_t, u_t)
                frames.append(observed.frame)
        return torch.stack(frames, len(shape))

    @torch.no_grad()
    def generate(
        self,
        batch: int = 1,
        time: int = 1,
        controls: Tensor | None = None,
        state: Any = None,  # noqa: ANN401
    ) -> Tensor:
        """Draws frames from the model, from the beginning or from a state.

        Args:
            batch: Number of sequences.
            time: Number of frames.
            controls: u, `(batch, time, controls)`.
            state: The state to go on from, as an online filter's or a step's; `batch` is its own.

        Returns:
            Frames `(batch, time, *frame)`.

        Raises:
            TypeError: When a number is none, or the state is that of something else.
            ValueError: When a number is not positive or too large, or the controls do not fit.
        """
        check_positive(batch=batch, time=time)
        first = self.initial_state(Size((batch,)))
        if state is None:
            self.check_steps(time)
            state = first
        if type(state) is not type(first):
            raise TypeError(
                f"state must be the {type(first).__name__} of a step of this model; got "
                f"{type(state).__name__}"
            )
        batch, frames = next(leaves(state)).shape[0], []
        self.check_controls(controls, batch, time)
        with pyro.poutine.block(), pyro.plate("sequences", batch, dim=-1):
            for number in range(time):
                u_t = None if controls is None else controls[:, number]
                with at_step(number + 1), observe(None) as observed, explaining(None, u_t):
                    state = self.step(state, None, u_t)
                frames.append(observed.frame)
        return torch.stack(frames, 1)

    @pyro_method
    def announce(self) -> None:
        """Shows all parameters to Pyro, for handlers that collect them."""
        touch(self)

    def check_controls(self, controls: Tensor | None, batch: int, time: int) -> None:
        """Raises a ValueError unless controls are those of so many sequences and steps."""
        expected = (batch, time, self.controls) if self.controls else None
        if controls is not None and not isinstance(controls, Tensor):
            raise TypeError(f"controls must be a tensor; got {type(controls).__name__}")
        got = None if controls is None else tuple(controls.shape)
        if got != expected:
            raise ValueError(
                f"controls must be (batch, time, controls) = {expected}; got {got}"
                if expected
                else f"controls must be None for a model without controls; got shape {got}"
            )

    def check_steps(self, steps: int) -> None:
        """Raises a ValueError unless there can be so many steps from the initial state on."""

    def check(self, x: Tensor | None, mask: Tensor | None, controls: Tensor | None) -> None:
        """Raises a ValueError that names the argument whose shape or values do not fit."""
        check_sequences(x, mask, controls, self.controls)
        if x is None:
            return
        self.check_steps(x.shape[1])
        if is_validation_enabled():
            kind = next((p.dtype for p in self.parameters() if p.is_floating_point()), None)
            check_types(x, controls, kind)
            bounds = (getattr(part, "frame_bounds", None) for part in self.modules())
            check_values(x, mask, controls, next((b for b in bounds if b is not None), None))


class SplitState(NamedTuple):
    """State of a model in parts.

    Attributes:
        state: The model's own state, which its parts read.
        memory: What the embedding of the frames remembers, or None.
    """

    state: Any
    memory: Any


class SplitStepModel(StepModel):
    r"""A step model in parts: what is recurrent apart from what is not.

    .. math:: e_t = \mathrm{embed}(x_{1:t}), \quad r_t = \mathrm{prepare}(s_{t-1}, u_t), \quad
        l_t \sim \mathrm{latents}(r_t, u_t), \quad x_t \sim \mathrm{emission}(l_t), \quad
        s_t = \mathrm{transition}(r_t, l_t, e_t, u_t)

    Means the same as the step that the parts make together, and runs faster: a filtering objective
    calls :meth:`embed` and :meth:`emission` once over batch and time, and keeps the latents and
    the transition inside the loop.

    Attributes:
        reads_frames: Whether the transition depends on the frames. Where it does not,
            :meth:`embed` is never called.
        memoryless: Whether the transition reads, of the state that it is given, nothing but its
            form, and of the latents only what was sampled, and :meth:`prepare` does nothing. All
            steps then run at once if the guide allows it.
    """

    reads_frames: bool = True
    memoryless: bool = False

    def begin(self, batch_shape: Size) -> Any:  # noqa: ANN401
        """The model's state before the first frame: a named tuple of `(*batch_shape, ...)`."""
        raise NotImplementedError

    def prepare(self, state: Any, u_t: Tensor | None) -> Any:  # noqa: ANN401
        """What a step makes of the past and the control before anything is drawn.

        It runs once per step, before the guide, which sees the result: the place for work that
        prior and posterior share, such as reading a memory. By default there is none.

        Args:
            state: The model's state after the step before.
            u_t: The control `(*batch, controls)` or None.

        Returns:
            A state of the same form, without a draw.
        """
        return state

    def latents(self, state: Any, u_t: Tensor | None) -> Any:  # noqa: ANN401
        """Samples the latents of one step, with ``pyro.sample``.

        Args:
            state: The model's state, prepared.
            u_t: The control `(*batch, controls)` or None.

        Returns:
            All that the emission reads: a tensor or a named tuple of tensors `(*batch, ...)`.
        """
        raise NotImplementedError

    def emission(self, latents: Any) -> Any:  # noqa: ANN401
        """The distribution of the frame.

        Args:
            latents: As returned by :meth:`latents`, with any leading dimensions.

        Returns:
            A distribution with the event shape of a frame.
        """
        raise NotImplementedError

    def transition(self, state: Any, latents: Any, embedding: Any, u_t: Tensor | None) -> Any:  # noqa: ANN401
        """The model's state after a step.

        Args:
            state: Before it, prepared.
            latents: As returned by :meth:`latents`.
            embedding: Of the frame, `(*batch, features)`.
            u_t: The control `(*batch, controls)` or None.
        """
        raise NotImplementedError

    def embed(self, x: Tensor, memory: Any) -> tuple[Any, Any]:  # noqa: ANN401
        """What the transition reads of the frames; all steps of a stretch at once.

        Args:
            x: Frames `(batch, time, *frame)`.
            memory: What was remembered of the frames before, see :meth:`initial_memory`.

        Returns:
            Embeddings `(batch, time, ...)`, a tensor or a named tuple of tensors, that of a step
            made from the frames up to it, and the memory after the last. By default the frame
            itself, flattened.
        """
        return x.reshape(*x.shape[:2], -1), memory

    def initial_memory(self, batch: int) -> Any:  # noqa: ANN401
        """What :meth:`embed` remembers before the first frame: tensors `(batch, ...)`, or None."""
        return None

    def initial_state(self, batch_shape: Size) -> SplitState:
        """The model's own state and the memory of the embedding."""
        memory = self.initial_memory(batch_shape.numel())
        return SplitState(self.begin(batch_shape), unflatten_batch(memory, batch_shape))

    def visible(self, state: SplitState) -> Any:  # noqa: ANN401
        """The model's own state."""
        return state.state

    def step(self, state: SplitState, x_t: Tensor | None, u_t: Tensor | None = None) -> SplitState:
        """One step, all parts together."""
        return self.proceed(self.prepared(state, u_t), x_t, u_t)

    def prepared(self, state: SplitState, u_t: Tensor | None) -> SplitState:
        """The state with the model's own part prepared."""
        return state._replace(state=self.prepare(state.state, u_t))

    def proceed(self, state: SplitState, x_t: Tensor | None, u_t: Tensor | None) -> SplitState:
        """The rest of a step, from a state that is prepared."""
        latents = self.latents(state.state, u_t)
        emission = self.emission(latents)
        x = pyro.sample(FRAME, emission, obs=x_t)
        batch = Size(x.shape[: x.dim() - len(emission.event_shape)])
        embedding, memory = self.embed_frame(x, state.memory, batch)
        return SplitState(self.transition(state.state, latents, embedding, u_t), memory)

    def embed_frame(self, x_t: Tensor, memory: Any, batch: Size) -> tuple[Any, Any]:  # noqa: ANN401
        """Embedding and memory of one frame `(*batch, *frame)`; None if no frame is read."""
        if not self.reads_frames:
            return None, memory
        flat = x_t.reshape(-1, 1, *x_t.shape[len(batch) :])
        embedding, memory = self.embed(flat, flatten_batch(memory, batch))
        embedding = map_tensors(lambda e: e.squeeze(1), embedding)
        return unflatten_batch((embedding, memory), batch)


def check_sequences(
    x: Tensor | None, mask: Tensor | None, controls: Tensor | None, size: int
) -> None:
    """Raises a ValueError that names the argument whose shape does not fit the others."""
    given = next((t for t in (x, mask, controls) if t is not None), None)
    if given is None:
        return
    for name, value, words, least in (
        ("x", x, "(batch, time, *frame)", 2),
        ("mask", mask, "bool (batch, time)", 2),
        ("controls", controls, "(batch, time, controls)", 3),
    ):
        if value is None:
            continue
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} must be a tensor {words}; got {type(value).__name__}")
        exact = name != "x" and value.dim() != least
        if value.dim() < least or exact or value.shape[:2] != given.shape[:2]:
            raise ValueError(
                f"{name} must be {words} with (batch, time) = {tuple(given.shape[:2])}; "
                f"got shape {tuple(value.shape)}"
            )
    if mask is not None and mask.dtype != torch.bool:
        raise ValueError(f"mask must be bool (batch, time); got {mask.dtype}. Use mask.bool()")
    got = 0 if controls is None else controls.shape[-1]
    if x is not None and got != size:
        raise ValueError(
            f"controls must have the size of the model's attribute controls, {size}; got "
            + ("none" if controls is None else f"shape {tuple(controls.shape)}")
        )


def check_types(x: Tensor, controls: Tensor | None, kind: torch.dtype | None) -> None:
    """Raises a ValueError when real numbers are not of the type of the model's parameters."""
    if kind is None or torch.is_autocast_enabled(x.device.type):
        return
    for name, part in (("x", x), ("controls", controls)):
        if part is not None and part.is_floating_point() and part.dtype != kind:
            raise ValueError(
                f"{name} must have the type of the model's parameters, {kind}; got "
                f"{part.dtype}. Use {name}.to({kind})"
            )


def check_values(
    x: Tensor, mask: Tensor | None, controls: Tensor | None, bounds: tuple[float, float] | None
) -> None:
    """Raises a ValueError when an observed frame or a control cannot be scored or read."""
    seen = x.detach() if mask is None else x.detach()[mask]
    if not torch.isfinite(seen).all():
        raise ValueError(
            "x must be finite where it is observed; got NaN or infinity. "
            "Set mask False for missing frames"
        )
    if bounds is not None and not x.is_floating_point():
        raise ValueError(
            f"x must be of real numbers for Bernoulli frames; got {x.dtype}. Use x.float()"
        )
    if bounds is not None and seen.numel():
        low, high = float(seen.min()), float(seen.max())
        if low < bounds[0] or high > bounds[1]:
            raise ValueError(
                f"x must lie between {bounds[0]:g} and {bounds[1]:g} for Bernoulli frames; got "
                f"values between {low:.3g} and {high:.3g}. Scale the frames, or make the "
                "model of real-valued ones: emission='normal', for groups pixels='gaussian'"
            )
    if controls is not None and not torch.isfinite(controls).all():
        raise ValueError(
            "controls must be finite at every step, also where the frame is missing; got NaN or "
            "infinity. Give zeros at padding"
        )
