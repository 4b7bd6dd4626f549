"""A Gaussian latent per step, without dynamics: the smallest pair that meets the contracts."""

from __future__ import annotations

import itertools

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn

_number = itertools.count()


class TinyModel(PyroModule):
    """z_t ~ N(0, 1); x_t ~ N(W z_t + c, 1)."""

    def __init__(self, frame: int = 2) -> None:
        super().__init__(f"tiny_model_{next(_number)}")
        self.emission = nn.Linear(1, frame)

    def forward(
        self, x: Tensor, mask: Tensor | None = None, controls: Tensor | None = None
    ) -> Tensor:
        batch, time, frame = x.shape
        observed = torch.ones(batch, time, dtype=torch.bool) if mask is None else mask
        with pyro.plate("sequences", batch, dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(batch, time, 1), 1.0).to_event(2))
            seen = observed.unsqueeze(-1).expand(x.shape)
            likelihood = dist.Normal(self.emission(z), 1.0).mask(seen).to_event(2)
            return pyro.sample("x", likelihood, obs=torch.where(seen, x, 0.0))


class TinyGuide(PyroModule):
    """z_t ~ N(V x_t + d, s), with x_t = 0 where it is missing."""

    def __init__(self, model: TinyModel) -> None:
        super().__init__(f"tiny_guide_{next(_number)}")
        self.encoder = nn.Linear(model.emission.out_features, 2)

    def forward(
        self, x: Tensor, mask: Tensor | None = None, controls: Tensor | None = None
    ) -> dict[str, Tensor]:
        if mask is not None:
            x = torch.where(mask.unsqueeze(-1), x, 0.0)
        loc, log_scale = self.encoder(x).chunk(2, -1)
        with pyro.plate("sequences", x.shape[0], dim=-1):
            return {"z": pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(2))}


class ConstantDynamics(nn.Module):
    """The same mixture weights at every step."""
