r"""What every engine is: a deterministic recurrence over frames that a guide can carry.

.. math:: o_t, s_t = \mathrm{step}(s_{t-1}, x_t)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Size, Tensor, nn

from pyro_seq.nn.arguments import check_choice
from pyro_seq.nn.repeated import repeated
from pyro_seq.ops.trees import leaves, stack, where

__all__ = ["Engine"]

GAPS = ("wait", "imagine")


class Engine(nn.Module, ABC):
    """A neural inference engine: what a guide knows of the frames so far.

    The state is a named tuple whose tensors all begin with the dimensions of the batch, of which
    there may be any number; it can be saved, replayed and expanded. A step returns a new one and
    changes nothing else, save for running statistics of batch norms in training mode.

    Args:
        frame_shape: Shape of a frame, `(channels, *space)`.

    Raises:
        ValueError: When the frame has no dimension, or an empty one.

    Example:
        >>> import pyro_seq
        >>> from pyro_seq.engines import ConvLSTMRow, SoftMaxRow
        >>> ladder = pyro_seq.get("engines", "rladder")((1, 8, 8), [ConvLSTMRow(4), SoftMaxRow(3)])
        >>> outputs, state = ladder(torch.zeros(2, 5, 1, 8, 8))  # a sequence
        >>> outputs.prediction.shape, outputs.logits.shape
        (torch.Size([2, 5, 1, 8, 8]), torch.Size([2, 5, 3]))
        >>> outputs, _ = ladder.iterate(torch.zeros(2, 1, 8, 8), 3)  # one frame, again and again
        >>> outputs.logits.shape
        torch.Size([2, 3, 3])
    """

    def __init__(self, frame_shape: Sequence[int]) -> None:
        super().__init__()
        if isinstance(frame_shape, int) or not frame_shape or min(frame_shape) < 1:
            shown = frame_shape if isinstance(frame_shape, int) else tuple(frame_shape)
            raise ValueError(f"frame_shape must be (channels, *space), all positive; got {shown}")
        self.frame_shape = Size(frame_shape)

    @abstractmethod
    def initial_state(self, batch_shape: Size) -> Any:  # noqa: ANN401
        """The state before the first step.

        Args:
            batch_shape: First dimensions of every tensor of the state.

        Returns:
            A named tuple of tensors `(*batch_shape, ...)`.
        """

    @abstractmethod
    def step(self, state: Any, x_t: Tensor) -> tuple[Any, Any]:  # noqa: ANN401
        """One step, or one iteration.

        Args:
            state: The state before the step.
            x_t: A frame, `(*batch, *frame)`.

        Returns:
            The output, a named tuple of tensors `(*batch, ...)`, and the state after the step.

        Raises:
            ValueError: When the frame has another shape.
        """

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        state: Any = None,  # noqa: ANN401
        *,
        gaps: str = "wait",
    ) -> tuple[Any, Any]:
        """One step for each frame of a sequence.

        Args:
            x: `(*batch, time, *frame)`.
            mask: bool, `(*batch, time)`, True where a frame is observed.
            state: The state to go on from; None for the beginning.
            gaps: What happens where it is not. ``wait``: the frame counts as zeros and leaves the
                state as it was, as in padding; the output there is that of a frame of zeros.
                ``imagine``: time goes on, and the step reads what the one before it foretold.
                Until the first frame of this call that is observed it waits, also when it goes
                on from a state, which does not hold what was foretold: cut a sequence in two
                where a frame is observed.

        Returns:
            The outputs, each tensor with the time after the batch dimensions, and the state after
            the last step.

        Raises:
            TypeError: When x or mask is no tensor, or the state no named tuple, or an engine that
                is to imagine frames predicts none.
            ValueError: When a shape does not fit, or `gaps` is unknown.
        """
        batch = self.check_frames(x, time=True)
        check_choice("gaps", gaps, GAPS)
        if mask is not None:
            self._check_mask(mask, batch)
            x = where(mask, x, 0)
        seen = [None] * batch[-1] if mask is None else mask.unbind(-1)
        frames = x.unbind(len(batch) - 1)
        return self._run(frames, seen, batch[:-1], state, gaps == "imagine")

    def iterate(
        self,
        x: Tensor,
        n: int,
        state: Any = None,  # noqa: ANN401
    ) -> tuple[Any, Any]:
        """Several steps on one frame, for inference in what does not move.

        Args:
            x: `(*batch, *frame)`.
            n: Number of iterations, 1 or more.
            state: The state to go on from; None for the beginning.

        Returns:
            The outputs, each tensor with the iterations after the batch dimensions, and the state
            after the last.

        Raises:
            TypeError: When x is no tensor, or the state no named tuple.
            ValueError: When a shape does not fit, or n is not positive.
        """
        batch = self.check_frames(x)
        if n < 1:
            raise ValueError(f"n must be at least 1 iteration; got {n}")
        return self._run([x] * n, [None] * n, batch, state)

    def _run(
        self,
        frames: Sequence[Tensor],
        seen: Iterable[Tensor | None],
        batch: Size,
        state: Any,  # noqa: ANN401
        imagine: bool = False,
    ) -> tuple[Any, Any]:
        if state is None:
            state = self.initial_state(batch)
        else:
            _check_state(state, batch)
        outputs: list[Any] = []
        begun: Tensor | None = None
        with repeated(len(frames)):
            for x_t, seen_t in zip(frames, seen, strict=True):
                goes_on = seen_t
                if imagine and seen_t is not None:
                    x_t = where(seen_t, x_t, _foretold(outputs[-1])) if outputs else x_t
                    goes_on = begun = seen_t if begun is None else begun | seen_t
                output, after = self.step(state, x_t)
                state = after if goes_on is None else where(goes_on, after, state)
                outputs.append(output)
        return stack(outputs, len(batch)), state

    def check_frames(self, x: Tensor, time: bool = False) -> Size:
        """The batch dimensions of frames, once they are seen to fit.

        Args:
            x: `(*batch, *frame)`.
            time: Whether the last of the dimensions before a frame is the time.

        Raises:
            TypeError: When x is no tensor.
            ValueError: When the frames have another shape or dtype, or there is no step.
        """
        if not isinstance(x, Tensor):
            raise TypeError(f"x must be a tensor of frames; got {type(x).__name__}")
        before = x.dim() - len(self.frame_shape)
        short = time and (before < 1 or not x.shape[before - 1])
        if before < 0 or x.shape[before:] != self.frame_shape or short:
            frame = ", ".join(map(str, self.frame_shape))
            words = ("(*batch, time, ", ") of one step or more") if time else ("(*batch, ", ")")
            raise ValueError(f"x must be {frame.join(words)}; got shape {tuple(x.shape)}")
        own = next(self.parameters(), x).dtype
        if x.dtype != own and not torch.is_autocast_enabled(x.device.type):
            raise ValueError(f"x must be {own}, as the engine's parameters; got {x.dtype}")
        return x.shape[:before]

    def _check_mask(self, mask: Tensor, wanted: Size) -> None:
        if not isinstance(mask, Tensor):
            raise TypeError(f"mask must be a bool tensor, or None; got {type(mask).__name__}")
        if mask.shape != wanted or mask.dtype != torch.bool:
            raise ValueError(
                f"mask must be bool (*batch, time) = {tuple(wanted)}; "
                f"got {mask.dtype} of shape {tuple(mask.shape)}"
            )


def _foretold(output: Any) -> Tensor:  # noqa: ANN401
    """The next frame, of the output of a step."""
    prediction = getattr(output, "prediction", None)
    if prediction is None:
        raise TypeError("gaps='imagine' needs an engine that predicts frames; this one does not")
    return prediction


def _check_state(state: Any, batch: Size) -> None:  # noqa: ANN401
    """Raises an error unless the state is of that batch: one of another size would broadcast."""
    if not hasattr(state, "_fields"):
        raise TypeError(
            "state must be the named tuple that an earlier pass ended with, without its outputs; "
            f"got {type(state).__name__}"
        )
    for part in leaves(state):
        if part.shape[: len(batch)] != batch:
            raise ValueError(
                f"state must begin with the batch of x, {tuple(batch)}; got a tensor of shape "
                f"{tuple(part.shape)}"
            )
