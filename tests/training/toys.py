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


class ToyModel(PyroModule):
    r"""z ~ N(0, I) per sequence and step; x_t ~ N(W z_t, s^2), masked steps drop out of both."""

    def __init__(self, obs: int = 3, latent: int = 2) -> None:
        super().__init__(f"toy_model_{next(_numbers)}")
        self.latent = latent
        self.emission = nn.Linear(latent, obs)
        self.scale = PyroParam(torch.full((1,), 0.5), constraint=constraints.positive)

    def forward(
        self, x: Tensor, mask: Tensor | None = None, controls: Tensor | None = None
    ) -> None:
        seen = torch.ones(x.shape[:2], dtype=torch.bool) if mask is None else mask
        x = torch.where(seen.unsqueeze(-1), x, torch.zeros_like(x))
        with pyro.plate("sequences", x.shape[0], dim=-1):
            prior = dist.Normal(x.new_zeros(*x.shape[:2], self.latent), 1.0).to_event(1)
            z = pyro.sample("z", prior.mask(seen).to_event(1))
            likelihood = dist.Normal(self.emission(z), self.scale).to_event(1)
            pyro.sample("x", likelihood.mask(seen).to_event(1), obs=x)


class ToyGuide(PyroModule):
    """q(z_t | x_t) = N(V x_t, s^2)."""

    def __init__(self, obs: int = 3, latent: int = 2) -> None:
        super().__init__(f"toy_guide_{next(_numbers)}")
        self.encoder = nn.Linear(obs, latent)
        self.scale = PyroParam(torch.full((1,), 0.7), constraint=constraints.positive)

    def forward(
        self, x: Tensor, mask: Tensor | None = None, controls: Tensor | None = None
    ) -> dict[str, Tensor]:
        seen = torch.ones(x.shape[:2], dtype=torch.bool) if mask is None else mask
        x = torch.where(seen.unsqueeze(-1), x, torch.zeros_like(x))
        with pyro.plate("sequences", x.shape[0], dim=-1):
            posterior = dist.Normal(self.encoder(x), self.scale).to_event(1)
            return {"z": pyro.sample("z", posterior.mask(seen).to_event(1))}


def toy_pair(seed: int = 0) -> tuple[ToyModel, ToyGuide]:
    torch.manual_seed(seed)
    return ToyModel(), ToyGuide()


def toy_batch(seed: int = 0, batch: int = 6, time: int = 5, ragged: bool = True) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, time, 3, generator=generator) * 2.0 + 1.0
    if not ragged:
        return Batch(x)
    lengths = torch.randint(1, time + 1, (batch,), generator=generator)
    return Batch(x, torch.arange(time) < lengths.unsqueeze(-1))


class ToyBatches:
    """Batches whose content depends on epoch and index alone."""

    def __init__(self, count: int = 4, batch: int = 6, seed: int = 0) -> None:
        self.count, self.batch, self.seed, self.epoch = count, batch, seed, 0

    def __len__(self) -> int:
        return self.count

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[Batch]:
        for index in range(self.count):
            yield toy_batch(self.seed + 1000 * self.epoch + index, self.batch)
