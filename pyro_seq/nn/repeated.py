r"""Dense layers that a loop calls again and again, and whose weights get one gradient for it.

.. math:: y_t = W x_t + b, \qquad \bar W = \sum_t \bar y_t x_t^\top = \bar Y^\top X

Backward through a loop, every call adds a matrix of the size of the weights to their gradient, and
for small batches that is most of the work. The layers here hand over what a call has to say about
the weights, its input and the gradient of its output, and one product at the end does the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional

__all__ = ["RepeatedLinear", "linear", "repeated"]


class RepeatedLinear(nn.Linear):
    """``torch.nn.Linear``, for a layer that is called at every step of a loop.

    It differs inside :func:`repeated` alone, and there only in the order of the sums that make
    the gradient of its weights.

    Example:
        >>> layer = RepeatedLinear(3, 2)
        >>> with repeated(times=5):
        ...     total = sum(layer(torch.full((4, 3), float(t))).sum() for t in range(5))
        >>> total.backward()
        >>> layer.weight.grad
        tensor([[40., 40., 40.],
                [40., 40., 40.]])
    """

    def forward(self, x: Tensor) -> Tensor:
        """The output `(*batch, out)` for an input `(*batch, in)`."""
        return linear(x, self.weight, self.bias)


@contextmanager
def repeated(times: int | None) -> Iterator[None]:
    """Says that what follows is a loop, whose layers get the gradient of their weights at its end.

    Args:
        times: How often the loop calls a layer, about; None for no loop, within another one.
    """
    before = _calls.set(None if times is None else _Calls(times))
    try:
        yield
    finally:
        _calls.reset(before)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``torch.nn.functional.linear``, with one gradient of the weights for all calls of a loop."""
    calls = _calls.get()
    plain = calls is None or not (torch.is_grad_enabled() and weight.requires_grad)
    if calls is None or plain or torch.is_autocast_enabled(x.device.type):
        return functional.linear(x, weight, bias)
    return _Call.apply(x, *calls.prepare(x.shape[:-1].numel(), weight, bias))


class _Layer(NamedTuple):
    """A layer of a loop: what identifies it, its weights as constants, and the places left."""

    weight: Tensor
    constants: tuple[Tensor, Tensor | None]
    slots: Iterator[Tensor]


class _Calls:
    """The layers that a loop has called, each with places for what calls say about its weights."""

    def __init__(self, times: int) -> None:
        self.times = times
        self.layers: dict[tuple[int, int], _Layer] = {}

    def prepare(
        self, rows: int, weight: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """Weight and bias as constants, and the next place, `(rows, in + out)`."""
        layer = self.layers.get((id(weight), rows))
        slot = None if layer is None else next(layer.slots, None)
        if layer is None or slot is None:
            slots = iter(_Gather.apply(weight, bias, self.times, rows).unbind(0))
            constants = weight.detach(), None if bias is None else bias.detach()
            layer = self.layers[id(weight), rows] = _Layer(weight, constants, slots)
            slot = next(slots)
        return *layer.constants, slot


class _Call(Function):
    """A layer's output; the gradient of `slot` is the input beside the gradient of the output."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, slot: Tensor) -> Tensor:  # noqa: ANN401
        ctx.save_for_backward(x, weight)
        return functional.linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None, None, Tensor]:  # noqa: ANN401
        x, weight = ctx.saved_tensors
        pair = [x.reshape(-1, x.shape[-1]), gradient.reshape(-1, gradient.shape[-1])]
        own = gradient @ weight if ctx.needs_input_grad[0] else None
        return own, None, None, torch.cat(pair, -1)


class _Gather(Function):
    """Places for all calls of a layer, `(times, rows, in + out)`; backward, the one product."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, bias: Tensor | None, times: int, rows: int) -> Tensor:  # noqa: ANN401
        ctx.sizes, ctx.biased = (weight.shape[1], weight.shape[0]), bias is not None
        return weight.new_zeros(()).expand(times, rows, sum(ctx.sizes))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, pairs: Tensor) -> tuple[Tensor, Tensor | None, None, None]:  # noqa: ANN401
        x, gradient = pairs.flatten(0, 1).split(ctx.sizes, -1)
        return gradient.mT @ x, gradient.sum(0) if ctx.biased else None, None, None


_calls: ContextVar[_Calls | None] = ContextVar("calls", default=None)
