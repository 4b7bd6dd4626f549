"""What is done for all steps at once means the same as in a loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Size, Tensor, nn

from pyro_seq.guides import AVF, NeuralFilter, VariationalEM
from pyro_seq.guides.avf import ENCODES
from pyro_seq.guides.context import StepContext
from pyro_seq.guides.filtering import FilteringGuide, Inference
from pyro_seq.inference.filtering import Filtered, filter_sequences
from pyro_seq.models import DMM, SRNN, StepModel
from pyro_seq.models.step_model import SplitStepModel
from pyro_seq.nn.repeated import RepeatedLinear
from pyro_seq.ops.trees import leaves
from tests.operators import Launches

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
        guide.parallel, guide.reads_priors = parallel, not parallel
        terms = filter_sequences(guide, x, None, controls)
        total = terms.free_energy.square().sum()
        return terms, list(torch.autograd.grad(total, parameters, materialize_grads=True))

    assert guide.parallel and not guide.reads_priors
    (ours, ours_grads), together = run(True), len(calls)
    (loop, loop_grads), one_by_one = run(False), len(calls)
    assert together < one_by_one == TIME
    torch.testing.assert_close(ours.log_likelihood, loop.log_likelihood)
    torch.testing.assert_close(ours.divergence, loop.divergence)
    torch.testing.assert_close(list(leaves(ours.state)), list(leaves(loop.state)))
    torch.testing.assert_close(ours_grads, loop_grads)


class Two(SplitStepModel):
    """A positive latent, and one below it; controls."""

    memoryless = True
    controls = CONTROL

    class State(NamedTuple):
        rate: Tensor
        z: Tensor

    class Latents(NamedTuple):
        rate: Tensor
        z: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = RepeatedLinear(LATENT + CONTROL, 2), RepeatedLinear(2, LATENT)
        self.read = RepeatedLinear(LATENT + 2, FRAME)

    def begin(self, batch_shape: Size) -> State:
        like = self.first.weight
        return self.State(like.new_ones(*batch_shape, 2), like.new_zeros(*batch_shape, LATENT))

    def latents(self, state: State, u_t: Tensor) -> Latents:
        shape = nn.functional.softplus(self.first(torch.cat([state.z, u_t], -1))) + 1
        with pyro.poutine.scale(scale=0.5):
            rate = pyro.sample("rate", dist.Gamma(shape, state.rate + 1).to_event(1))
        loc = self.second(rate)
        z = pyro.sample("z", dist.Normal(loc, rate.mean(-1, keepdim=True)).to_event(1))
        return self.Latents(rate, z)

    def emission(self, latents: Latents) -> dist.Distribution:
        return dist.Normal(self.read(torch.cat(latents, -1)), 1.0).to_event(1)

    def transition(self, state: State, latents: Latents, embedding: Tensor, u_t: Tensor) -> State:
        return self.State(*latents)


MODELS = {
    "srnn": lambda: SRNN(
        FRAME, latent=LATENT, hidden=6, prior=[7], decoder=[7, 7], controls=CONTROL
    ),
    "dmm": lambda: DMM(FRAME, latent=LATENT, controls=CONTROL),
    "two": Two,
}
FILTERS: dict[str, Callable[[StepModel], FilteringGuide]] = {
    "filter": lambda model: NeuralFilter(model, hidden=8),
    "recurrent": lambda model: NeuralFilter(model, hidden=8, recurrent=4),
    "avf": lambda model: AVF(model, 2, hidden=[8], encodes=ENCODES),
    "avf_through_time": lambda model: AVF(model, 2, hidden=[8], stop_gradients=False),
    "vfem": lambda model: VariationalEM(model, 2),
}


NETWORKS = ("filter", "recurrent")  # which read no prior with several latents either


@pytest.mark.parametrize("particles", [None, 2])
@pytest.mark.parametrize(
    ("name", "filtering"),
    [(m, f) for m in MODELS for f in FILTERS if m != "two" or f in NETWORKS],
)
def test_priors_after_the_loop(name: str, filtering: str, particles: int | None) -> None:
    torch.manual_seed(0)
    model = MODELS[name]().double()
    guide = FILTERS[filtering](model).double()
    x = (torch.rand(BATCH, TIME, FRAME) > 0.5).double()
    controls = torch.randn(BATCH, TIME, CONTROL).double()
    parameters = [*model.parameters(), *guide.parameters()]

    def run(reads_priors: bool) -> tuple[Filtered, list[Tensor], int]:
        guide.reads_priors = reads_priors
        torch.manual_seed(1)
        with Launches() as launches:
            terms = filter_sequences(guide, x, None, controls, particles=particles, kl_weight=0.5)
        total = terms.free_energy.square().sum()
        if terms.objective is not None:
            total = total + terms.objective.sum()
        options = {"materialize_grads": True, "allow_unused": True}
        return terms, list(torch.autograd.grad(total, parameters, **options)), launches.count

    # q of a second latent of AVF and variational EM is moved from its prior
    assert guide.reads_priors == (name == "two" and filtering.startswith(("avf", "vfem")))
    if guide.reads_priors:
        return
    (ours, ours_grads, less), (loop, loop_grads, more) = run(False), run(True)
    assert less < more
    torch.testing.assert_close(ours.log_likelihood, loop.log_likelihood)
    torch.testing.assert_close(ours.divergence, loop.divergence)
    torch.testing.assert_close(list(leaves(ours.state)), list(leaves(loop.state)))
    torch.testing.assert_close(ours_grads, loop_grads)


def test_latents_of_another_kind_take_the_loop() -> None:
    """A site that is not handed on as it is, and one that stands in a mask of its own."""

    class Squashed(Two):
        def latents(self, state: Two.State, u_t: Tensor) -> Two.Latents:
            rate, z = super().latents(state, u_t)
            return self.Latents(rate, z.tanh())

    class Masked(Two):
        def latents(self, state: Two.State, u_t: Tensor) -> Two.Latents:
            rate, _ = super().latents(state, u_t)
            prior = dist.Normal(self.second(rate), 1.0).to_event(1).mask(state.z[..., 0] > 0)
            return self.Latents(rate, pyro.sample("w", prior))

    torch.manual_seed(0)
    x, controls = torch.rand(BATCH, TIME, FRAME), torch.randn(BATCH, TIME, CONTROL)
    for model in (Squashed(), Masked()):
        guide = NeuralFilter(model, hidden=8)
        results = []
        for reads_priors in (False, True):
            guide.reads_priors = reads_priors
            torch.manual_seed(1)
            results.append(filter_sequences(guide, x, None, controls).free_energy)
        torch.testing.assert_close(*results)


def test_a_family_that_was_not_announced_is_named() -> None:
    class Promising(FilteringGuide):
        reads_priors = False

        def infer(self, context: StepContext, state: Any) -> Inference:  # noqa: ANN401
            return Inference(lambda site: dist.Uniform(0 * site.prior.mean, 1.0).to_event(1))

    guide = Promising(DMM(FRAME, latent=LATENT))
    with pytest.raises(TypeError, match="q of 'z' must be of the family of its prior"):
        filter_sequences(guide, torch.ones(BATCH, TIME, FRAME))


def test_a_filter_of_latents_needs_the_loop() -> None:
    model = SRNN(FRAME, latent=LATENT, hidden=6, prior=[7], decoder=[7])
    assert NeuralFilter(model, hidden=8, reads=["h"]).parallel
    assert not NeuralFilter(model, hidden=8).parallel
    assert not NeuralFilter(model, hidden=8, reads=["h", "z"]).parallel
    assert not NeuralFilter(model, hidden=8, reads=["h"], residual=True).parallel
    assert not NeuralFilter(model, hidden=8, reads=["h"], recurrent=4).parallel


def test_a_mask_that_hides_nothing_is_none() -> None:
    model, guide = srnn(controls=0)
    x = (torch.rand(BATCH, TIME, FRAME) > 0.5).float()
    results = []
    for mask in (None, torch.ones(BATCH, TIME, dtype=torch.bool)):
        torch.manual_seed(0)
        with torch.profiler.profile() as profile:
            terms = filter_sequences(guide, x, mask)
        calls = sum(e.count for e in profile.key_averages() if e.key == "aten::addmm")
        results.append((terms.free_energy, torch.tensor(calls)))
    torch.testing.assert_close(*results)


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
        guide.parallel, guide.reads_priors = False, True
        loop = filter_sequences(guide, x, particles=4000).free_energy
    assert together.shape == loop.shape == (3, 4000, 2)
    spread = (together.var(1) / 4000 + loop.var(1) / 4000).sqrt()
    assert ((together.mean(1) - loop.mean(1)).abs() < 4.5 * spread + 1e-5).all()
