"""A memory that finds rows by place learns a map from walks on it, which it does not otherwise."""

from __future__ import annotations

from functools import partial

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from pyro_seq.data import FreshLoader, Vectors, grid_map
from pyro_seq.evaluation import free_energy
from pyro_seq.evaluation.memories import recall_ratio
from pyro_seq.guides import NeuralFilter
from pyro_seq.inference import FilteringELBO
from pyro_seq.models import GTMM
from pyro_seq.training import SequenceLoss, fit

SIZE, TIME = 8, 12


class AroundLatent(nn.Module):
    def forward(self, z: Tensor) -> dist.Distribution:
        return dist.Normal(z, 0.1, validate_args=False).to_event(1)


@pytest.mark.slow
@pytest.mark.parametrize(("phases", "least", "most"), [(16, 0.0, 0.5), (0, 0.8, 1.1)])
def test_a_map_is_learnt_by_place(phases: int, least: float, most: float) -> None:
    torch.manual_seed(0)
    model = GTMM(
        SIZE,
        latent=SIZE,
        memory="icm",
        memory_options={"slots": TIME, "heads": 2, "hidden": 64, "phases": phases},
        prior=[64],
        decoder=(),
        emission=AroundLatent(),
        controls=4,
    )
    guide = NeuralFilter(model, hidden=64)
    loss = SequenceLoss(model, guide, FilteringELBO())
    walks = partial(grid_map, Vectors(SIZE), time=TIME, side=3)
    optimizer = torch.optim.Adam(loss.parameters(), 3e-3)
    loader = FreshLoader(partial(walks, 32), batches=400, seed=0)
    fit(loss, loader, epochs=1, optimizer=optimizer, clip_norm=10.0)
    test = walks(128, seed=1)
    energy = free_energy(model, guide, test.batch, seed=0)
    ratio = recall_ratio(energy, recalled=test.recalled, before=test.before)
    assert least < ratio.rho < most
