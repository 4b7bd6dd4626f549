r"""The ladder's cell for Gaussian messages: the gate is a ratio of precisions.

.. math::
    s = \frac{\pi}{\pi + \rho}, \qquad m = s\, l + (1 - s)\, m', \qquad v^{-1} = \pi + \rho

References:
    Prémont-Schwarz, Ilin, Hao, Rasmus, Boney, Valpola (2017), Recurrent ladder networks, eq. 18.
    Sonderby, Raiko, Maaloe, Sonderby, Winther (2016), Ladder variational autoencoders.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pyro_seq.nn.repeated import RepeatedLinear
from pyro_seq.ops.precision import Combined, combine

__all__ = ["GaussianLadderCell"]

LIMIT = 15.0


class GaussianLadderCell(nn.Module):
    r"""A message from features, combined with a prior.

    The message, its mean l and the logarithm of its precision :math:`\pi`, is linear in the
    features. What comes from above is the prior :math:`N(m', 1 / \rho)`, as it is: where features
    say nothing, :math:`\pi \to 0`, the result is the prior.

    Args:
        features: Size of the features.
        size: Size of the latent.

    Example:
        >>> cell = GaussianLadderCell(8, 3)
        >>> zeros = torch.zeros(4, 3)
        >>> combined = cell(torch.randn(4, 8), zeros, zeros)
        >>> combined.loc.shape, bool((combined.scale < 1).all())
        (torch.Size([4, 3]), True)
    """

    def __init__(self, features: int, size: int) -> None:
        super().__init__()
        self.message = RepeatedLinear(features, 2 * size)

    def forward(self, features: Tensor, loc: Tensor, log_precision: Tensor) -> Combined:
        r"""The product of message and prior.

        Args:
            features: `(*batch, features)`.
            loc: :math:`m'`, `(*batch, size)`.
            log_precision: :math:`\log \rho`, `(*batch, size)`.
        """
        message, precision = self.message(features).chunk(2, -1)
        return combine(message, torch.clamp(precision, -LIMIT, LIMIT), loc, log_precision)
