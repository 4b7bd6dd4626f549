r"""The probability of an interval under the normal distribution."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

__all__ = ["log_normal_interval"]

_HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)
_SMALL = 0.25
# Gauss-Legendre rule of six nodes on [-1, 1]: the positive nodes, weights that add up to 1.
_NODES = (
    (0.2386191860831969, 0.46791393457269104),
    (0.6612093864662645, 0.3607615730481387),
    (0.9324695142031519, 0.17132449237917027),
)


def log_normal_interval(centre: Tensor, width: Tensor) -> Tensor:
    r"""Log probability of an interval under the standard normal distribution.

    .. math::
        \log \left[ \Phi\!\left(c + \tfrac{w}{2}\right) - \Phi\!\left(c - \tfrac{w}{2}\right)
        \right] = \log \int_{c - w/2}^{c + w/2} \varphi(t)\, dt

    Value and gradient keep their precision, in float32 an error of a few 1e-6: for
    intervals far out in a tail, where both :math:`\Phi` round to the same number, and for
    intervals so narrow that their ends do, where the result is
    :math:`\log \varphi(c) + \log w`. This is why the interval is given by its centre and width
    and not by its ends. Higher derivatives exist; far out they are less exact.

    Args:
        centre: c, of any shape, in standard deviations.
        width: w, positive, in standard deviations; broadcasts with `centre`.

    Returns:
        The log probability, of the common shape.

    Example:
        >>> log_normal_interval(torch.tensor([0.0, 40.0]), torch.tensor(1e-3))
        tensor([  -7.8267, -807.8267])
    """
    value, _ = _LogNormalInterval.apply(*torch.broadcast_tensors(centre, width))
    return value


class _LogNormalInterval(Function):
    r"""The interval with its gradient, where :math:`0 \leq c` and a, b are the ends.

    .. math::
        r = \log P - \log \varphi(a), \qquad
        \frac{\partial \log P}{\partial c} = \frac{\varphi(b) - \varphi(a)}{P}
        = -(1 - e^{-cw})\, e^{-r}, \qquad
        \frac{\partial \log P}{\partial w} = \frac{\varphi(b) + \varphi(a)}{2 P}
        = \tfrac{1}{2} (1 + e^{-cw})\, e^{-r}
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(centre: Tensor, width: Tensor) -> tuple[Tensor, Tensor]:
        """Return the log probability and the ratio."""
        c, half = centre.abs(), 0.5 * width
        lower, upper, product = c - half, c + half, c * half
        near, near_ratio = _narrow(c, half, product)
        mills, other = _mills(lower.abs()), _mills(upper)
        far, far_ratio = _tail(lower, mills, other, product)
        wide, wide_ratio = _around_zero(lower, upper, mills, other)
        narrow, outside = (half < _SMALL) & (product < _SMALL), lower > 0
        value = torch.where(narrow, near, torch.where(outside, far, wide))
        ratio = torch.where(narrow, near_ratio, torch.where(outside, far_ratio, wide_ratio))
        return value, ratio

    @staticmethod
    def setup_context(
        ctx: Any,  # noqa: ANN401
        inputs: tuple[Tensor, Tensor],
        output: tuple[Tensor, Tensor],
    ) -> None:
        """Keep what the gradient needs."""
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(*inputs, output[1])

    @staticmethod
    def backward(
        ctx: Any,  # noqa: ANN401
        *gradients: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Return the gradients for centre and width."""
        centre, width, ratio = ctx.saved_tensors
        if torch.is_grad_enabled():
            lower = centre.abs() - 0.5 * width
            ratio = log_normal_interval(centre, width) + 0.5 * lower**2 + _HALF_LOG_TWO_PI
        decay = torch.expm1(-centre.abs() * width)
        scaled = gradients[0] * torch.exp(-ratio)
        return scaled * centre.sign() * decay, scaled * (1 + 0.5 * decay)


def _narrow(c: Tensor, half: Tensor, product: Tensor) -> tuple[Tensor, Tensor]:
    r"""Quadrature: :math:`P = \varphi(c)\, w\, E[\cosh(h c t)\, e^{-h^2 t^2 / 2}]`, t uniform."""
    square = -0.5 * half**2
    mean = sum(w * torch.cosh(t * product) * torch.exp(t**2 * square) for t, w in _NODES)
    relative = torch.log(2 * half * mean)
    return relative - 0.5 * c**2 - _HALF_LOG_TWO_PI, relative - product - square


def _tail(lower: Tensor, mills: Tensor, other: Tensor, product: Tensor) -> tuple[Tensor, Tensor]:
    r"""Of both ends above zero: :math:`P = \varphi(a)\, (R(a) - e^{-cw} R(b))`."""
    ratio = torch.log(mills - torch.exp(-2 * product) * other)
    return ratio - 0.5 * lower**2 - _HALF_LOG_TWO_PI, ratio


def _around_zero(
    lower: Tensor, upper: Tensor, mills: Tensor, other: Tensor
) -> tuple[Tensor, Tensor]:
    r"""Of one end below zero: :math:`P = 1 - \varphi(a) R(-a) - \varphi(b) R(b)`."""
    outside = torch.exp(-0.5 * lower**2) * mills + torch.exp(-0.5 * upper**2) * other
    value = torch.log1p(-outside / math.sqrt(2 * math.pi))
    return value, value + 0.5 * lower**2 + _HALF_LOG_TWO_PI


def _mills(x: Tensor) -> Tensor:
    r"""Mills ratio :math:`R(x) = (1 - \Phi(x)) / \varphi(x)`, for x above zero."""
    return math.sqrt(0.5 * math.pi) * torch.special.erfcx(math.sqrt(0.5) * x)
