r"""Two normal messages about one number, combined.

.. math::
    N(z; l, \pi^{-1})\, N(z; m, \rho^{-1}) \propto N(z; m + s (l - m), (\pi + \rho)^{-1}), \qquad
    s = \frac{\pi}{\pi + \rho} = \mathrm{sigm} \log \frac{\pi}{\rho}
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

__all__ = ["Combined", "combine"]


class Combined(NamedTuple):
    """A product of two normal densities.

    Attributes:
        loc: Its mean.
        precision: Its inverse variance.
        gate: s, the share of the first message, in [0, 1].
    """

    loc: Tensor
    precision: Tensor
    gate: Tensor


def combine(message: Tensor, precision: Tensor, loc: Tensor, other: Tensor) -> Combined:
    r"""The product of a message :math:`N(l, 1/\pi)` and a prior :math:`N(m, 1/\rho)`.

    All arguments broadcast. A precision of 0 is a message that says nothing.

    Args:
        message: l.
        precision: :math:`\pi \ge 0`.
        loc: m.
        other: :math:`\rho > 0`.

    Example:
        >>> import torch
        >>> one = torch.ones(1)
        >>> combine(2 * one, 3 * one, 0 * one, one)
        Combined(loc=tensor([1.5000]), precision=tensor([4.]), gate=tensor([0.7500]))
    """
    total = precision + other
    gate = precision / total
    return Combined(loc + gate * (message - loc), total, gate)
