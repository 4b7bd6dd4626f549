"""A linear-Gaussian latent sequence pair, small enough to check by hand."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule, PyroParam
from torch import Tensor, nn
from torch.distributions import constraints

from pyro_seq.data import Batch

_numbers = itertools.count()


def hide(x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Zeros for what is missing, and a mask."""
    seen = x.new_ones(x.shape[:2], dtype=torch.bool) if mask is None else mask
    return torch.where(seen.unsqueeze(-1), x, torch.zeros_like(x)), seen


class ToyModel(PyroModule):
    r"""z_t ~ N(0, I); x_t ~ N(W z_t + b, s^2); a step under a False mask has neither."""

    def __init__(self, obs: int = 3, latent: int = 2, name: str | None = None) -> None:
        super().__init__(f"toy_model_{next(_numbers)}" if name is None else name)
        self.latent = latent
        self.emission = nn.Linear(latent, obs)
        self.scale = PyroParam(torch.full((1,), 0.5), constraint=constraints.positive)

    def forward(
        self, x: Tensor, mask: Tensor | None = None, controls: Tensor | None = None
    ) -> None:
        x, seen = hide(x, mask)
        with pyro.plate("sequences", x.shape[0], dim=-1):
            prior = dist.Normal(x.new_zeros(*x.shape[:2], self.latent), 1.0).to_event(1)
            z = pyro.sample("z", prior.mask(seen).to_event(1))
            likelihood = dist.Normal(self.emission(z), self.scale).to_event(1)
            pyro.sample("x", likelihood.mask(seen).to_event(1), obs=x)


class ToyGuide(PyroModule):
    """q(z_t | x_t) = N(V x_t + c, s^2); controls, where given, are its standard normal noise."""

    def __init__(self, obs: int = 3, latent: int = 2, name: str | None = None) -> None:
        super().__init__(f"toy_guide_{next(_numbers)}" if name is None else name)
        self.encoder = nn.Linear(obs, latent)
        self.scale = PyroParam(torch.full((1,), 0.7), constraint=constraints.positive)

    def forward(
        self, x: Tensor, mask: Tensor | None = None, controls: Tensor | None = None
    ) -> dict[str, Tensor]:
        x, seen = hide(x, mask)
        posterior = dist.Normal(self.encoder(x), self.scale).to_event(1)
        site = posterior.mask(seen).to_event(1)
        if controls is not None:
            z = posterior.base_dist.loc + posterior.base_dist.scale * controls
            site = dist.Delta(z, log_density=site.log_prob(z), event_dim=2)
        with pyro.plate("sequences", x.shape[0], dim=-1):
            return {"z": pyro.sample("z", site)}


def toy_pair(seed: int = 0, name: str | None = None) -> tuple[ToyModel, ToyGuide]:
    torch.manual_seed(seed)
    suffixes = (None, None) if name is None else (f"{name}_model", f"{name}_guide")
    return ToyModel(name=suffixes[0]), ToyGuide(name=suffixes[1])


def toy_batch(seed: int = 0, batch: int = 6, time: int = 5, *, noise: bool = False) -> Batch:
    """Ragged sequences; with noise, the controls make the guide deterministic."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, time, 3, generator=generator) * 2.0 + 1.0
    lengths = torch.randint(1, time + 1, (batch,), generator=generator)
    controls = torch.randn(batch, time, 2, generator=generator)
    return Batch(x, torch.arange(time) < lengths.unsqueeze(-1), controls if noise else None)


class ToyBatches:
    """Batches whose content depends on epoch and index alone; knows no first batch."""

    def __init__(self, count: int = 4, batch: int = 6, seed: int = 0) -> None:
        self.count, self.batch, self.seed, self.epoch = count, batch, seed, 0

    def __len__(self) -> int:
        return self.count

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[Batch]:
        for index in range(self.count):
            yield toy_batch(self.seed + 1000 * self.epoch + index, self.batch)
