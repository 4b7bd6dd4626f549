from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import Tensor, nn

from pyro_seq.data import Batch
from pyro_seq.evaluation import elbo, free_energy
from pyro_seq.guides import AVF, NeuralFilter, VariationalEM
from pyro_seq.guides.filtering import FilteringGuide
from pyro_seq.inference import FilteringELBO
from pyro_seq.inference.filtering import filter_sequences
from pyro_seq.models import DMM
from pyro_seq.training import (
    SVI,
    AnnealKL,
    Callback,
    Context,
    FitResult,
    SequenceLoss,
    fit,
    linear,
    quadratic,
)


def pair(guide: str = "filter") -> tuple[DMM, FilteringGuide]:
    torch.manual_seed(0)
    model = DMM(3, latent=2, hidden=3, width=3)
    kinds = {
        "filter": lambda: NeuralFilter(model, hidden=4),
        "avf": lambda: AVF(model, 2, hidden=[4]),
        "vfem": lambda: VariationalEM(model, 3),
    }
    return model, kinds[guide]()


def batch(seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    x = (torch.rand(4, 5, 3, generator=generator) > 0.5).float()
    mask = torch.ones(4, 5, dtype=torch.bool)
    mask[1, 3:] = False
    return Batch(x, mask)


class Spy(Callback):
    """Notes the weight that each step was trained with; interrupts a run."""

    def __init__(self, loss: SequenceLoss, stop_at: int = -1) -> None:
        self.loss, self.stop_at = loss, stop_at
        self.weights: list[float] = []

    def on_gradients(self, context: Context) -> None:
        if context.step == self.stop_at:
            raise KeyboardInterrupt
        self.weights.append(float(self.loss.elbo.kl_weight))


def run(
    per: str, folder: Path | None = None, stop_at: int = -1, resume: bool = False
) -> tuple[FitResult, Spy, SequenceLoss]:
    loss = SequenceLoss(*pair(), FilteringELBO())
    spy = Spy(loss, stop_at)
    anneal = AnnealKL(loss, quadratic(4) if per == "epoch" else linear(10, 0.2), per=per)
    result = fit(
        loss,
        [batch(i) for i in range(3)],
        [batch(9)],
        epochs=5,
        optimizer=torch.optim.Adam(loss.parameters(), lr=1e-2),
        callbacks=[anneal, spy],
        checkpoint_dir=folder,
        checkpoint_every=2 if folder else None,
        resume=resume,
        progress=False,
    )
    return result, spy, loss


def test_schedules_by_hand() -> None:
    assert [quadratic(50)(n) for n in (0, 1, 25, 50, 80)] == [0, (1 / 50) ** 2, 0.25, 1, 1]
    assert [linear(20, 0.2)(n) for n in (0, 5, 20, 21)] == pytest.approx([0.2, 0.4, 1, 1])
    assert quadratic(2, 0.5)(1) == pytest.approx(0.5 + 0.5 / 4)
    assert linear(0)(0) == quadratic(0)(0) == 1  # the authors' N = 0: none
    for make in (linear, quadratic):
        with pytest.raises(ValueError, match="count must be 0 or more"):
            make(-1)
        with pytest.raises(ValueError, match="start from 0 to 1"):
            make(3, 1.5)


@pytest.mark.parametrize("per", ["epoch", "step"])
def test_each_step_has_its_weight(per: str) -> None:
    result, spy, loss = run(per)
    epochs = [n // 3 for n in range(15)]
    expected = (
        [min(e / 4, 1) ** 2 for e in epochs]
        if per == "epoch"
        else [min(0.2 + 0.08 * n, 1) for n in range(15)]
    )
    assert spy.weights == pytest.approx(expected)
    assert [r["kl_weight"] for r in result.history] == pytest.approx(expected[2::3])
    assert loss.elbo.kl_weight == 1.0


@pytest.mark.parametrize("per", ["epoch", "step"])
@pytest.mark.parametrize("stop_at", [7, 9])
def test_a_resumed_run_equals_one_that_was_not_stopped(
    tmp_path: Path, per: str, stop_at: int
) -> None:
    whole, known, first = run(per)
    with pytest.raises(KeyboardInterrupt):
        run(per, tmp_path, stop_at)
    again, spy, second = run(per, tmp_path, resume=True)
    rows = [
        [{k: v for k, v in r.items() if k != "seconds"} for r in x.history] for x in (whole, again)
    ]
    assert rows[0] == rows[1]
    assert 0 < len(spy.weights) < 15 and spy.weights == known.weights[-len(spy.weights) :]
    assert all(map(torch.equal, first.state_dict().values(), second.state_dict().values()))


@pytest.mark.parametrize("particles", [1, 3])
@pytest.mark.parametrize("weight", [0.0, 0.3, torch.tensor(0.3)])
def test_the_objective_is_the_weighted_sum(particles: int, weight: float | Tensor) -> None:
    model, guide = pair()
    objective = FilteringELBO(particles, kl_weight=weight)
    torch.manual_seed(1)
    loss = objective.differentiable_loss(model, guide, *batch())
    torch.manual_seed(1)
    terms = filter_sequences(guide, *batch(), particles=particles)
    expected = (weight * terms.divergence - terms.log_likelihood).sum() / particles
    torch.testing.assert_close(loss, expected)
    known = [*model.parameters(), *guide.parameters()]
    options = {"allow_unused": True, "materialize_grads": True}
    found = torch.autograd.grad(loss, known, **options)
    torch.testing.assert_close(found, torch.autograd.grad(expected, known, **options))


@pytest.mark.parametrize("guide", ["filter", "avf", "vfem"])
def test_no_reported_bound_has_the_weight(guide: str) -> None:
    model, made = pair(guide)
    values = []
    for weight in (1.0, 0.1, 0.0):
        loss = SequenceLoss(model, made, FilteringELBO(kl_weight=weight))
        svi = SVI(loss, torch.optim.Adam(model.parameters()))
        torch.manual_seed(0)
        known = [svi.evaluate_loss(batch())]
        torch.manual_seed(0)
        known.append(loss.elbo.loss(model, made, *batch()))
        known.append(elbo(model, made, batch(), seed=0).mean)
        known.append(free_energy(model, made, batch(), seed=0).per_step().mean)
        values.append(known)
    assert values[0] == values[1] == values[2]


def test_validation_has_no_weight() -> None:
    """A weight that changes nothing but the weight: no learning."""
    losses = []
    for start in (0.0, 1.0):
        loss = SequenceLoss(*pair(), FilteringELBO())
        result = fit(
            loss,
            [batch()],
            [batch(9)],
            epochs=1,
            optimizer=torch.optim.SGD(loss.parameters(), lr=0.0),
            callbacks=[AnnealKL(loss, linear(100, start))],
            progress=False,
        )
        losses.append(result.history[0])
    assert losses[0]["validation_loss"] == losses[1]["validation_loss"]
    assert losses[0]["loss"] < losses[1]["loss"]


def test_a_tensor_is_filled_in_place() -> None:
    weight = torch.zeros(())
    bound = FilteringELBO(kl_weight=weight)
    anneal = AnnealKL(bound, linear(4), per="step")
    anneal.load_state_dict({"done": 3})
    assert bound.kl_weight is weight and float(weight) == 0.75


def test_targets() -> None:
    loss = SequenceLoss(*pair(), FilteringELBO())

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = loss

    assert AnnealKL(Wrapped(), linear(4, 0.5)).elbo is loss.elbo
    assert loss.elbo.kl_weight == 0.5
    with pytest.raises(TypeError, match="must have a KL weight, as FilteringELBO; got Trace_ELBO"):
        AnnealKL(SequenceLoss(*pair(), Trace_ELBO()), linear(3))
    with pytest.raises(ValueError, match="per must be 'epoch' or 'step'; got 'batch'"):
        AnnealKL(loss, linear(3), per="batch")
