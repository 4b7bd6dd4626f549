from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor

from pyro_seq.data import Batch
from pyro_seq.evaluation import compare, elbo, free_energy, iwae
from pyro_seq.evaluation.free_energy import FreeEnergy
from pyro_seq.guides import AVF, Bootstrap, NeuralFilter, VariationalEM
from pyro_seq.models import DMM, SRNN
from pyro_seq.models.step_model import StepModel

FRAME = 4


def pair(guide: str = "filter", dropout: float = 0.0) -> tuple[SRNN, NeuralFilter | AVF]:
    torch.manual_seed(0)
    model = SRNN(FRAME, latent=2, hidden=3, prior=[4], decoder=[4], dropout=dropout).double()
    made = NeuralFilter(model, hidden=5) if guide == "filter" else AVF(model, 2, hidden=[5])
    return model, made.double()


def ragged(sequences: int = 5, time: int = 6) -> Batch:
    generator = torch.Generator().manual_seed(1)
    x = (torch.rand(sequences, time, FRAME, generator=generator) > 0.5).double()
    mask = torch.ones(sequences, time, dtype=torch.bool)
    mask[0, 3:], mask[1, 5:], mask[2, 2:4] = False, False, False
    return Batch(torch.where(mask[..., None], x, torch.nan), mask)


@pytest.mark.parametrize("guide", ["filter", "avf"])
def test_the_sum_is_the_bound_of_pyro(guide: str) -> None:
    model, made = pair(guide)
    batch = ragged()
    energy = free_energy(model, made, batch, seed=4)
    torch.manual_seed(4)
    loss = TraceMeanField_ELBO().loss(model, made, *batch)
    assert float(energy.nats.sum()) == pytest.approx(loss, rel=1e-12)
    sampled = free_energy(model, made, batch, seed=4, analytic=False)
    torch.manual_seed(4)
    assert float(sampled.nats.sum()) == pytest.approx(Trace_ELBO().loss(model, made, *batch))
    torch.testing.assert_close(sampled.log_likelihood, energy.log_likelihood)


def test_each_step_is_that_of_the_traces() -> None:
    model, guide = pair()
    batch = ragged()
    energy = free_energy(model, guide, batch, seed=2, analytic=False)
    torch.manual_seed(2)
    drawn = poutine.trace(guide).get_trace(*batch)
    scored = poutine.trace(poutine.replay(model, trace=drawn)).get_trace(*batch)
    scored.compute_log_prob()
    drawn.compute_log_prob()
    for step in range(6):
        number = step + 1
        seen = scored.nodes[f"x_{number}"]["log_prob"]
        torch.testing.assert_close(energy.log_likelihood[:, step], seen.detach())
        gap = drawn.nodes[f"z_{number}"]["log_prob"] - scored.nodes[f"z_{number}"]["log_prob"]
        torch.testing.assert_close(energy.divergence[:, step], gap.detach())


def test_padding_and_gaps_count_nothing() -> None:
    model, guide = pair()
    batch = ragged()
    energy = free_energy(model, guide, batch, seed=0)
    assert (energy.nats[~batch.mask] == 0).all() and (energy.nats[batch.mask] != 0).all()
    longer = Batch(
        torch.cat([batch.x, torch.full((5, 3, FRAME), torch.nan)], 1),
        torch.cat([batch.mask, torch.zeros(5, 3, dtype=torch.bool)], 1),
    )
    other = free_energy(model, guide, longer, seed=0)
    assert other.nats.shape == (5, 9)
    assert torch.equal(other.nats[:, :6], energy.nats)


def hand() -> FreeEnergy:
    likelihood = -torch.tensor([[4.0, 1.0, 3.0], [6.0, 2.0, 0.0], [5.0, 0.0, 0.0]]).double()
    divergence = torch.tensor([[1.0, 1.0, 1.0], [1.0, 3.0, 0.0], [1.0, 0.0, 0.0]]).double()
    mask = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0]]).bool()
    return FreeEnergy(likelihood, divergence, mask, 1)


def test_conventions_by_hand() -> None:
    energy = hand()
    first = torch.tensor([(5.0 + 2 + 4) / 3, (7.0 + 5) / 2, 6.0])
    assert energy.per_step().mean == pytest.approx(float(first.mean()))
    assert energy.per_step().standard_error == pytest.approx(float(first.std()) / math.sqrt(3))
    assert energy.per_step(over="steps").mean == pytest.approx((11 + 12 + 6) / 6)
    # skip=1: the third sequence has no step left
    assert energy.per_step(skip=1).mean == pytest.approx((6 / 2 + 5 / 1) / 2)
    assert energy.per_step(skip=1, over="steps").mean == pytest.approx(11 / 3)
    bound = energy.bound()
    assert bound.per_sequence.tolist() == [-11.0, -12.0, -6.0]
    assert bound.per_step == pytest.approx(-energy.per_step(over="steps").mean)
    assert bound.per_step_standard_error == pytest.approx(
        energy.per_step(over="steps").standard_error
    )
    assert energy.bound(skip=1).per_sequence.tolist() == [-6.0, -5.0, 0.0]


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="over must be one of sequences, steps; got 'songs'"):
        hand().per_step(over="songs")
    with pytest.raises(ValueError, match="skip must be a number of steps"):
        hand().per_step(skip=-1)
    with pytest.raises(ValueError, match="no observed step is left after skip=3"):
        hand().per_step(skip=3)
    model, guide = pair()
    with pytest.raises(ValueError, match="samples must be at least 1"):
        free_energy(model, guide, ragged(), samples=0)
    with pytest.raises(ValueError, match="it was made for another one"):
        free_energy(pair()[0], guide, ragged())
    with pytest.raises(TypeError, match="guide must be a FilteringGuide; got SRNN"):
        free_energy(model, model, ragged())  # type: ignore[arg-type]


def test_chunks_change_the_noise_alone() -> None:
    """A guide that is the prior, and a likelihood without z, leave no noise."""

    class Deaf(DMM):
        def emission(self, latents: Tensor) -> dist.Distribution:
            return self.emit(torch.zeros_like(latents))

    model = Deaf(FRAME, latent=2, hidden=3, width=3).double()
    guide, batch = Bootstrap(model), ragged()
    whole = free_energy(model, guide, batch, samples=3)
    for chunk in (1, 2, 7):
        parts = free_energy(model, guide, batch, samples=3, chunk=chunk)
        torch.testing.assert_close(parts.nats, whole.nats)


def test_evaluation_leaves_everything_as_it_was() -> None:
    model, guide = pair(dropout=0.5)
    batch = ragged()
    random = torch.get_rng_state()
    one = free_energy(model, guide, batch, seed=0)
    assert torch.equal(torch.get_rng_state(), random)
    assert model.training and guide.training and not one.nats.requires_grad
    assert torch.equal(one.nats, free_energy(*pair(), batch, seed=0).nats)  # without dropout
    assert set(pyro.get_param_store().keys()) == set()


def test_bounds_of_the_pair_are_one_pass() -> None:
    model, guide = pair()
    batch = ragged()
    energy = free_energy(model, guide, batch, samples=2, seed=3)
    bound = elbo(model, guide, batch, particles=2, seed=3)
    torch.testing.assert_close(bound.per_sequence, -energy.nats.sum(1))
    assert torch.equal(bound.steps, batch.mask.sum(1).double())
    sampled = free_energy(model, guide, batch, seed=3, analytic=False)
    one = iwae(model, guide, batch, samples=1, seed=3)
    torch.testing.assert_close(one.per_sequence, -sampled.nats.sum(1))
    many = [iwae(model, guide, batch, samples=k, seed=3, chunk=1000).mean for k in (1, 16, 256)]
    assert many == sorted(many)


def test_a_scaled_site_is_no_bound() -> None:
    class Weighted(StepModel):
        def __init__(self, where: str) -> None:
            super().__init__()
            self.where = where

        def initial_state(self, batch_shape: torch.Size) -> tuple[Tensor]:
            return (torch.zeros(*batch_shape, FRAME),)

        def step(
            self, state: tuple[Tensor], x_t: Tensor | None, u_t: Tensor | None = None
        ) -> tuple[Tensor]:
            with poutine.scale(scale=0.5 if self.where == "z" else 1.0):
                z = pyro.sample("z", dist.Normal(state[0], 1.0).to_event(1))
            with poutine.scale(scale=0.5 if self.where == "x" else 1.0):
                pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x_t)
            return (z,)

    batch = Batch(torch.zeros(2, 3, FRAME))
    for where in ("z", "x"):
        model = Weighted(where)
        for bound in (elbo, free_energy):
            with pytest.raises(ValueError, match=f"site '{where}' is scaled: a weighted"):
                bound(model, Bootstrap(model), batch)
    model = Weighted("")
    assert elbo(model, Bootstrap(model), batch).mean < 0


def test_pairs_are_compared() -> None:
    model, guide = pair()
    batch = ragged()
    pairs = {
        "filter": (model, guide),
        "bootstrap": (model, Bootstrap(model)),
        "vfem": free_energy(model, VariationalEM(model, 3), batch, seed=0).bound(),
    }
    table = compare(pairs, batch)
    assert set(table.index) == {"filter", "bootstrap", "vfem"}
    assert table.loc["filter", "elbo"] == pytest.approx(
        float(elbo(model, guide, batch, seed=0).per_sequence.sum())
    )
