"""Nonlinearities that torch does not have."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["ClippedLeakyReLU"]


class ClippedLeakyReLU(nn.Module):
    r""":math:`\max(x, x/3)`, clipped to :math:`[-3, 3]`.

    The nonlinearity of the stochastic recurrent networks of Marino, Cvitkovic, Yue (2018).

    Args:
        slope: Of the negative half.
        bound: Largest magnitude of the output.

    Example:
        >>> import torch
        >>> ClippedLeakyReLU()(torch.tensor([-12.0, -3.0, 2.0, 5.0]))
        tensor([-3., -1.,  2.,  3.])
    """

    def __init__(self, slope: float = 1 / 3, bound: float = 3.0) -> None:
        super().__init__()
        self.slope, self.bound = slope, bound

    def forward(self, x: Tensor) -> Tensor:
        """Of every element."""
        return nn.functional.leaky_relu(x, self.slope).clamp(-self.bound, self.bound)
