"""All steps at once mean the same as one after another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Size, Tensor

from pyro_seq.guides import NeuralFilter
from pyro_seq.inference.filtering import Filtered, filter_sequences
from pyro_seq.models import DMM, SRNN, StepModel
from pyro_seq.ops.trees import leaves

BATCH, TIME, FRAME, LATENT, CONTROL = 4, 6, 5, 3, 2


def srnn(controls: int = CONTROL) -> tuple[StepModel, NeuralFilter]:
    sizes: dict[str, Any] = {"latent": LATENT, "hidden": 6, "prior": [7], "decoder": [7, 7]}
    model = SRNN(FRAME, controls=controls, **sizes)
    return model, NeuralFilter(model, hidden=8, reads=["h"])


def dmm(controls: int = CONTROL) -> tuple[StepModel, NeuralFilter]:
    model = DMM(FRAME, latent=LATENT, controls=controls)
    return model, NeuralFilter(model, hidden=8, reads=[])


def fixed_noise(monkeypatch: pytest.MonkeyPatch, noise: Tensor) -> list[int]:
    """Normal draws use these numbers: all at once, or a step's at each call."""
    calls: list[int] = []

    def rsample(self: Any, sample_shape: Size = Size()) -> Tensor:  # noqa: ANN401, B008
        shape = self._extended_shape(sample_shape)
        calls.append(len(shape))
        epsilon = noise if shape == noise.shape else noise[len(calls) - 1]
        return self.loc + self.scale * epsilon

    monkeypatch.setattr(torch.distributions.Normal, "rsample", rsample)
    return calls


@pytest.mark.parametrize("make", [srnn, dmm])
def test_the_terms_and_gradients_are_those_of_the_loop(
    make: Callable[[], tuple[StepModel, NeuralFilter]], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model, guide = (part.double() for part in make())
    x = (torch.rand(BATCH, TIME, FRAME) > 0.5).double()
    controls = torch.randn(BATCH, TIME, CONTROL).double()
    calls = fixed_noise(monkeypatch, torch.randn(TIME, BATCH, LATENT).double())
    parameters = [*model.parameters(), *guide.parameters()]

    def run(parallel: bool) -> tuple[Filtered, list[Tensor]]:
        calls.clear()
        guide.parallel = parallel
        terms = filter_sequences(guide, x, None, controls)
        total = terms.free_energy.square().sum()
        return terms, list(torch.autograd.grad(total, parameters, materialize_grads=True))

    assert guide.parallel
    (ours, ours_grads), together = run(True), len(calls)
    (loop, loop_grads), one_by_one = run(False), len(calls)
    assert together < one_by_one == TIME
    torch.testing.assert_close(ours.log_likelihood, loop.log_likelihood)
    torch.testing.assert_close(ours.divergence, loop.divergence)
    torch.testing.assert_close(list(leaves(ours.state)), list(leaves(loop.state)))
    torch.testing.assert_close(ours_grads, loop_grads)


def test_a_filter_of_latents_needs_the_loop() -> None:
    model = SRNN(FRAME, latent=LATENT, hidden=6, prior=[7], decoder=[7])
    assert NeuralFilter(model, hidden=8, reads=["h"]).parallel
    assert not NeuralFilter(model, hidden=8).parallel
    assert not NeuralFilter(model, hidden=8, reads=["h", "z"]).parallel
    assert not NeuralFilter(model, hidden=8, reads=["h"], residual=True).parallel
    assert not NeuralFilter(model, hidden=8, reads=["h"], recurrent=4).parallel


def test_missing_frames_take_the_loop_and_leave_the_rest_alone() -> None:
    torch.manual_seed(0)
    model, guide = srnn(controls=0)
    x = (torch.rand(BATCH, TIME, FRAME) > 0.5).float()
    mask = torch.ones(BATCH, TIME, dtype=torch.bool)
    mask[0, 3:] = False
    terms = filter_sequences(guide, x, mask)
    assert (terms.free_energy[3:, 0] == 0).all() and (terms.free_energy[:3, 0] != 0).all()


def test_several_particles() -> None:
    """The mean over many draws is that of the loop."""
    torch.manual_seed(0)
    model, guide = srnn(controls=0)
    x = (torch.rand(2, 3, FRAME) > 0.5).float()
    with torch.no_grad():
        together = filter_sequences(guide, x, particles=4000).free_energy
        guide.parallel = False
        loop = filter_sequences(guide, x, particles=4000).free_energy
    assert together.shape == loop.shape == (3, 4000, 2)
    spread = (together.var(1) / 4000 + loop.var(1) / 4000).sqrt()
    assert ((together.mean(1) - loop.mean(1)).abs() < 4.5 * spread + 1e-5).all()
