r"""From the latent before and what is known beside it to a normal distribution of the next one."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from pyro_seq.nn.mlp import mlp
from pyro_seq.nn.repeated import RepeatedLinear

__all__ = ["TRANSITIONS", "GatedTransition", "LinearTransition"]

FLOOR = 1e-4


class LinearTransition(nn.Module):
    r"""A linear map with noise of its own.

    .. math:: N(F z + G c + b,\ \mathrm{diag}\, \sigma^2)

    F is 0.9 times the identity to begin with.

    Args:
        latent: Size of z and of the result.
        others: Size of c, or 0.
        hidden: Of no use.

    Example:
        >>> loc, scale = LinearTransition(2, 3)(torch.zeros(4, 2), torch.zeros(4, 3))
        >>> loc.shape, scale.shape
        (torch.Size([4, 2]), torch.Size([4, 2]))
    """

    def __init__(self, latent: int, others: int, hidden: int = 0) -> None:
        super().__init__()
        self.past = RepeatedLinear(latent, latent)
        nn.init.eye_(self.past.weight)
        with torch.no_grad():
            self.past.weight.mul_(0.9)
        nn.init.zeros_(self.past.bias)
        self.others = RepeatedLinear(others, latent, bias=False) if others else None
        self.log_scale = nn.Parameter(torch.zeros(latent))

    def forward(self, z: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation, `(*batch, latent)` each."""
        loc = self.past(z)
        if self.others is not None:
            loc = loc + self.others(c)
        return loc, self.log_scale.exp().expand_as(loc)


class GatedTransition(nn.Module):
    r"""The gated transition of the deep Markov model, with a context.

    .. math::
        g = \mathrm{sigm}(G(z, c)), \quad h = H(z, c), \quad
        \mu = (1 - g) \odot W z + g \odot h, \quad \sigma = \mathrm{softplus}(W_\sigma\,
        \mathrm{relu}(h))

    with W the identity to begin with.

    Args:
        latent: Size of z and of the result.
        others: Size of c, or 0.
        hidden: Units of the hidden layer of G and H.

    References:
        Krishnan, Shalit, Sontag (2017), Structured inference networks for nonlinear state space
        models.
    """

    def __init__(self, latent: int, others: int, hidden: int = 64) -> None:
        super().__init__()
        sizes = latent + others
        self.gate, self.proposal = (
            nn.Sequential(*mlp(sizes, [hidden], nn.ReLU), RepeatedLinear(hidden, latent))
            for _ in range(2)
        )
        self.linear = RepeatedLinear(latent, latent)
        nn.init.eye_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        self.scale = RepeatedLinear(latent, latent)

    def forward(self, z: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation, `(*batch, latent)` each."""
        inputs = z if c is None else torch.cat([z, c], -1)
        proposal = self.proposal(inputs)
        loc = torch.lerp(self.linear(z), proposal, self.gate(inputs).sigmoid())
        return loc, functional.softplus(self.scale(proposal.relu())) + FLOOR


TRANSITIONS = {"gated": GatedTransition, "linear": LinearTransition}
