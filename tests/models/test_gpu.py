"""The KVAE on a CUDA device gives the numbers of the CPU, and its step does not wait."""

from __future__ import annotations

import copy

import pyro
import pytest
import torch
from torch import Tensor

from pyro_seq.guides import KalmanGuide
from pyro_seq.models import KVAE
from pyro_seq.training import SequenceLoss

pytestmark = pytest.mark.gpu

FRAME = (1, 6, 6)


def pair(device: str, weights: str = "lstm") -> tuple[KVAE, KalmanGuide]:
    pyro.set_rng_seed(0)
    model = KVAE(FRAME, decoder="mlp", weights=weights).double()
    guide = KalmanGuide(model, "mlp").double()
    return model.to(device), guide.to(device)


def data(device: str) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = (torch.rand(3, 6, *FRAME, generator=generator) < 0.4).double()
    return x.to(device), (torch.rand(3, 6, generator=generator) > 0.3).to(device)


@pytest.mark.parametrize("weights", ["lstm", "mlp", "static"])
@pytest.mark.parametrize("masked", [False, True])
def test_evidence_and_gradients_equal_those_of_the_cpu(weights: str, masked: bool) -> None:
    results = []
    for device in ("cpu", "cuda"):
        model, guide = pair(device, weights)
        x, mask = data(device)
        seen = mask if masked else None
        a = guide.encode(x, seen)
        evidence = model.prior(3, 6, seen).log_prob(a) + model.frames(a, seen).log_prob(x)
        parameters = [*model.parameters(), *guide.parameters()]
        gradients = torch.autograd.grad(evidence.sum(), parameters, allow_unused=True)
        results.append([evidence, *(g for g in gradients if g is not None)])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(other.cpu(), one, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("masked", [False, True])
def test_a_step_does_not_wait_for_the_device(masked: bool) -> None:
    model, guide = pair("cuda")
    loss = SequenceLoss(model, guide)
    x, mask = data("cuda")
    seen = mask if masked else None
    with pyro.validation_enabled(False):
        loss(x, seen).backward()
        torch.cuda.set_sync_debug_mode("error")
        try:
            loss(x, seen).backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_online_filtering_equals_the_cpu() -> None:
    results = []
    for device in ("cpu", "cuda"):
        _, guide = pair(device)
        x, mask = data(device)
        online = guide.online(3)
        results.append([online.update(x[:, t], mask[:, t]).loc.cpu() for t in range(6)])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-6, atol=1e-8)


def test_a_covariance_that_is_not_positive_definite_gives_nan_at_once() -> None:
    model, _ = pair("cuda")
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken.dynamics.emission_log_var.fill_(torch.nan)
    a = torch.zeros(3, 6, 2, dtype=torch.float64, device="cuda")
    with pyro.validation_enabled(False):
        assert broken.prior(3, 6).log_prob(a).isnan().all()
