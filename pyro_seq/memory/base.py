r"""What every memory is: a deterministic recurrence over latents that priors read.

.. math:: \Psi_{t-1}, s_t = \mathrm{step}(s_{t-1}, z_{t-1}, u_t), \qquad
    p(z_t \mid z_{<t}, u_{\leq t}) = p(z_t \mid \Psi_{t-1})
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Size, Tensor, nn

from pyro_seq.nn.arguments import check_positive
from pyro_seq.nn.repeated import repeated
from pyro_seq.ops.trees import leaves, stack, where

__all__ = ["Context", "Memory"]


class Context(NamedTuple):
    r"""What prior and posterior of one step share.

    Attributes:
        features: :math:`\Psi`, `(*batch, context)`.
        reads: What was read of the memory, `(*batch, reads)`; a part of the features. Of size 0
            where there is nothing to read.
        weights: Where it was read, `(*batch, heads, slots)`; for figures.
    """

    features: Tensor
    reads: Tensor
    weights: Tensor


class Memory(nn.Module, ABC):
    r"""A memory: what a model knows of its past latents.

    The state is a named tuple whose tensors all begin with the dimensions of the batch, of which
    there may be any number; it can be saved, replayed, and expanded. A step returns a new one and
    changes nothing else.

    Args:
        latent: Size of z.
        slots: Number of rows of the memory; 0 where there are none.
        heads: Number of read heads; 0 where there are none.
        controls: Size of u, or 0.
        frame_features: Size of the features of the frame before that a step reads, or 0 for a
            memory that reads no frame. All memories but the LSTM know frames by their latents
            alone.
        wraps: Whether there may be more steps than slots.

    Attributes:
        context: Size of the features :math:`\Psi`; a subclass sets it.
        reads: Size of what is read; a subclass sets it.

    Raises:
        ValueError: When a size is negative, or the latent has none.

    Example:
        >>> import pyro_seq
        >>> memory = pyro_seq.get("memories", "dnc")(latent=3, slots=6, heads=2, hidden=8)
        >>> context, state = memory(torch.randn(4, 6, 3))
        >>> context.features.shape == (4, 6, memory.context), context.weights.shape
        (True, torch.Size([4, 6, 2, 6]))
    """

    context: int
    reads: int

    def __init__(
        self,
        latent: int,
        *,
        slots: int = 0,
        heads: int = 0,
        controls: int = 0,
        frame_features: int = 0,
        wraps: bool = True,
    ) -> None:
        super().__init__()
        check_positive(latent=latent)
        check_positive(
            0, slots=slots, heads=heads, controls=controls, frame_features=frame_features
        )
        self.latent, self.slots, self.heads = latent, slots, heads
        self.controls, self.frame_features, self.wraps = controls, frame_features, wraps

    @abstractmethod
    def initial_state(self, batch_shape: Size) -> Any:  # noqa: ANN401
        """The state before the first step.

        Args:
            batch_shape: First dimensions of every tensor of the state.

        Returns:
            A named tuple of tensors `(*batch_shape, ...)`.
        """

    @abstractmethod
    def step(
        self,
        state: Any,  # noqa: ANN401
        z: Tensor,
        u_t: Tensor | None = None,
        features: Tensor | None = None,
    ) -> tuple[Context, Any]:
        r"""One step: the latent before it is taken in, and the context of the next is read.

        Args:
            state: The state before the step.
            z: :math:`z_{t-1}`, `(*batch, latent)`; zeros at the first step.
            u_t: The control of the step, `(*batch, controls)`, or None without controls.
            features: Of the frame before, `(*batch, frame_features)`; None unless the memory
                reads frames.

        Returns:
            The context and the state after the step.

        Raises:
            ValueError: When an input is missing, not expected, or of another size. How many
                steps came before is not known here without waiting for the device; a loop calls
                :meth:`check_steps` once.
        """

    def forward(
        self,
        z: Tensor,
        controls: Tensor | None = None,
        mask: Tensor | None = None,
        features: Tensor | None = None,
        state: Any = None,  # noqa: ANN401
    ) -> tuple[Context, Any]:
        r"""Many steps: the replay of latents that are known.

        Args:
            z: The latents before each step, :math:`z_0 \dots z_{T-1}`, `(*batch, time, latent)`.
            controls: u, `(*batch, time, controls)`.
            mask: bool, `(*batch, time)`; a step where it is False leaves the state as it was, and
                its inputs, which may be NaN, count as zeros.
            features: Of the frames before each step, `(*batch, time, frame_features)`.
            state: The state to go on from; None for the beginning.

        Returns:
            The contexts, each tensor with the time after the batch dimensions, and the state
            after the last step.

        Raises:
            TypeError: When an argument is no tensor, or the state is that of another memory.
            ValueError: When a shape does not fit, or there are more steps than slots in a memory
                that does not wrap.
        """
        _check_over_time(z, controls, mask, features)
        *batch, time, _ = z.shape
        self.check_steps(time)
        first = self.initial_state(Size(batch))
        if state is None:
            state = first
        _check_state(state, first)
        parts: tuple[Any, ...] = (z, controls, features)
        if mask is not None:
            parts = tuple(None if p is None else where(mask, p, 0) for p in parts)
        contexts = []
        with repeated(time):
            for number in range(time):
                inputs: list[Any] = [None if p is None else p[..., number, :] for p in parts]
                context, after = self.step(state, *inputs)
                if mask is not None:
                    after = where(mask[..., number], after, state)
                contexts.append(context)
                state = after
        return stack(contexts, len(batch)), state

    def check_steps(self, steps: int) -> None:
        """Raises a ValueError if a memory that does not wrap has fewer slots than that.

        Args:
            steps: How many steps there will be from the initial state on.
        """
        if not self.wraps and steps > self.slots:
            raise ValueError(
                f"slots must be at least the number of steps, {steps}, in a memory that does not "
                f"wrap; got slots={self.slots}. Raise slots, or let the memory wrap (ring=True)"
            )

    def inputs(self, z: Tensor, u_t: Tensor | None, features: Tensor | None) -> list[Tensor]:
        """What a controller reads of one step, features, z and u, once it is seen to fit.

        Args:
            z: `(*batch, latent)`.
            u_t: `(*batch, controls)` or None.
            features: `(*batch, frame_features)` or None.

        Raises:
            ValueError: When one is missing, not expected, or of another size or batch.
        """
        found = []
        for name, part, size in (
            ("features", features, self.frame_features),
            ("z", z, self.latent),
            ("controls", u_t, self.controls),
        ):
            expected = (*z.shape[:-1], size) if size else None
            if (None if part is None else part.shape) != expected:
                got = "none" if part is None else f"shape {tuple(part.shape)}"
                raise ValueError(
                    f"{name} must be (*batch, {size}) = {expected} at each step; got {got}"
                    if size
                    else f"{name} must be None for a memory that was made without; got {got}"
                )
            if part is not None:
                found.append(part)
        return found


def _check_over_time(
    z: Tensor, controls: Tensor | None, mask: Tensor | None, features: Tensor | None
) -> None:
    """Raises an error that names the sequence that is none, or does not fit z."""
    for name, part, words, tail in (
        ("z", z, "(*batch, time, latent)", 1),
        ("controls", controls, "(*batch, time, controls)", 1),
        ("features", features, "(*batch, time, frame_features)", 1),
        ("mask", mask, "bool (*batch, time)", 0),
    ):
        if part is None and name != "z":
            continue
        if not isinstance(part, Tensor):
            raise TypeError(f"{name} must be a tensor {words}; got {type(part).__name__}")
        if name == "z" and (z.dim() < 2 or not z.shape[-2]):
            raise ValueError(f"z must be {words} of one step or more; got shape {tuple(z.shape)}")
        if part.shape[: part.dim() - tail] != z.shape[:-1]:
            raise ValueError(
                f"{name} must be {words} with (*batch, time) = {tuple(z.shape[:-1])}; "
                f"got shape {tuple(part.shape)}"
            )
    if mask is not None and mask.dtype != torch.bool:
        raise ValueError(f"mask must be bool (*batch, time); got {mask.dtype}. Use mask.bool()")


def _check_state(state: Any, first: Any) -> None:  # noqa: ANN401
    """Raises an error unless the state has the form of that before the first step."""
    if type(state) is not type(first):
        raise TypeError(
            f"state must be the {type(first).__name__} of this memory; got {type(state).__name__}"
        )
    shapes, expected = ([tuple(part.shape) for part in leaves(tree)] for tree in (state, first))
    if shapes != expected:
        raise ValueError(
            f"state must be that of this memory and batch, with tensors of shapes {expected}; "
            f"got {shapes}"
        )
