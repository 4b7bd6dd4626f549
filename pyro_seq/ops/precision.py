r"""Two normal messages about one number, combined.

.. math::
    N(z; l, \pi^{-1})\, N(z; m, \rho^{-1}) \propto N(z; m + s (l - m), (\pi + \rho)^{-1}), \qquad
    s = \frac{\pi}{\pi + \rho} = \mathrm{sigm} \log \frac{\pi}{\rho}
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Combined", "combine"]


class Combined(NamedTuple):
    """A product of two normal densities.

    Attributes:
        loc: Its mean.
        log_precision: The logarithm of its inverse variance.
        gate: s, the share of the first message, in [0, 1].
    """

    loc: Tensor
    log_precision: Tensor
    gate: Tensor

    @property
    def scale(self) -> Tensor:
        """Its standard deviation."""
        return (-0.5 * self.log_precision).exp()


def combine(message: Tensor, precision: Tensor, loc: Tensor, other: Tensor) -> Combined:
    r"""The product of a message :math:`N(l, 1/\pi)` and a prior :math:`N(m, 1/\rho)`.

    All arguments broadcast.

    Args:
        message: l.
        precision: :math:`\log \pi`; minus infinity is a message that says nothing.
        loc: m.
        other: :math:`\log \rho`.

    Example:
        >>> one = torch.ones(1)
        >>> combine(2 * one, (3 * one).log(), 0 * one, one.log())
        Combined(loc=tensor([1.5000]), log_precision=tensor([1.3863]), gate=tensor([0.7500]))
    """
    gate = (precision - other).sigmoid()
    return Combined(loc + gate * (message - loc), torch.logaddexp(precision, other), gate)
