"""Auxiliary costs train, and count in no bound that is reported."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from torch import Size, Tensor, nn

from pyro_seq.engines import ConvLSTMRow, LSTMRow, PoolRow, RLadder
from pyro_seq.evaluation import elbo, fivo, free_energy, iwae
from pyro_seq.guides import AVF, LadderGuide, NeuralFilter
from pyro_seq.inference import FIVO, IWAE, DeviceTraceELBO, FilteringELBO, without_auxiliary
from pyro_seq.models import HierarchicalTemporalModel, StepModel, auxiliary
from pyro_seq.training import SequenceLoss

STOCK = (Trace_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO, DeviceTraceELBO)
NO_OBJECTIVE = TraceGraph_ELBO  # it has no differentiable loss


class Walk(StepModel):
    """A walk, with a cost of its own at every step."""

    class State(NamedTuple):
        z: Tensor

    def __init__(self, weight: float = 0.0) -> None:
        super().__init__()
        self.weight = weight
        self.move = nn.Linear(2, 2)
        self.task = nn.Linear(2, 1)

    def initial_state(self, batch_shape: Size) -> State:
        return self.State(self.move.weight.new_zeros(*batch_shape, 2))

    def step(self, state: State, x_t: Tensor | None, u_t: Tensor | None = None) -> State:
        z = pyro.sample("z", dist.Normal(self.move(state.z), 0.5).to_event(1))
        if self.weight:
            auxiliary("task", self.task(z).squeeze(-1).square() + 7.0, self.weight)
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x_t)
        return self.State(z)


def pair(weight: float, guide_weight: float = 0.0) -> tuple[Walk, Any]:
    torch.manual_seed(0)
    model = Walk(weight).double()

    class Filter(NeuralFilter):
        def forward(self, x: Tensor, *args: Any) -> dict[str, Tensor]:  # noqa: ANN401
            if guide_weight:
                auxiliary("size", x.square().sum(), guide_weight, guide=True)
            return super().forward(x, *args)

    torch.manual_seed(1)
    return model, Filter(model, hidden=4).double()


def data() -> Tensor:
    return torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(0)).double()


def loss(kind: Any, weights: tuple[float, float], **without: bool) -> Tensor:  # noqa: ANN401
    model, guide = pair(*weights)
    torch.manual_seed(2)
    x = data()
    with without_auxiliary() if without.get("blocked") else nullcontext():
        if kind is NO_OBJECTIVE:
            method = "loss_and_grads" if torch.is_grad_enabled() else "loss"
            number = getattr(kind(), method)(model, guide, x)
            return torch.tensor(number, dtype=torch.float64)
        return kind().differentiable_loss(model, guide, x)


@pytest.mark.parametrize("kind", STOCK)
@pytest.mark.parametrize("weights", [(0.5, 0.0), (0.0, 0.3), (0.5, 0.3)])
def test_costs_add_to_the_loss_and_to_no_bound(kind: Any, weights: tuple[float, float]) -> None:  # noqa: ANN401
    plain = loss(kind, (0.0, 0.0))
    with torch.no_grad():
        assert loss(kind, weights).item() == pytest.approx(plain.item(), rel=1e-12)
    blocked = loss(kind, weights, blocked=True)
    assert blocked.item() == pytest.approx(plain.item(), rel=1e-12)
    extra = (loss(kind, weights) - plain).item()
    least = weights[0] * 7.0 * 12 + weights[1] * data().square().sum().item()
    assert extra >= least - 1e-9
    if weights[0] == 0:
        assert extra == pytest.approx(least, rel=1e-9)


def test_a_blocked_cost_has_no_gradient() -> None:
    model, guide = pair(0.5)
    Trace_ELBO().differentiable_loss(model, guide, data()).backward()
    assert model.task.weight.grad.abs().min() > 0
    model.task.zero_grad()
    with without_auxiliary():
        Trace_ELBO().differentiable_loss(model, guide, data()).backward()
    assert model.task.weight.grad is None or model.task.weight.grad.abs().max() == 0


@pytest.mark.parametrize("kind", [FilteringELBO, IWAE, FIVO])
def test_the_bounds_of_step_models_train_with_costs_and_report_without(kind: Any) -> None:  # noqa: ANN401
    mask = torch.ones(3, 4, dtype=torch.bool)
    mask[0, 2:] = False
    found = {}
    for weight in (0.0, 0.5):
        for grad in (True, False):
            model, guide = pair(weight)
            torch.manual_seed(2)
            with torch.set_grad_enabled(grad):
                found[weight, grad] = kind().differentiable_loss(model, guide, data(), mask).item()
    assert found[0.5, False] == found[0.0, False] == pytest.approx(found[0.0, True])
    assert found[0.5, True] - found[0.0, True] >= 0.5 * 7.0 * 10 - 1e-9  # ten observed steps


def test_no_evaluation_counts_a_cost() -> None:
    reports = {}
    for weight in (0.0, 0.5):
        model, guide = pair(weight)
        reports[weight] = [
            elbo(model, guide, data(), particles=3, seed=0).per_sequence,
            iwae(model, guide, data(), samples=3, seed=0).per_sequence,
            fivo(model, guide, data(), particles=3, seed=0).per_sequence,
            free_energy(model, guide, data(), seed=0).log_likelihood,
        ]
        with pyro.settings.context(module_local_params=False):
            svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.0}), Trace_ELBO())
            torch.manual_seed(0)
            reports[weight].append(torch.tensor(svi.evaluate_loss(data())))
            pyro.clear_param_store()
    for one, other in zip(*reports.values(), strict=True):
        torch.testing.assert_close(one, other)


def test_inference_that_runs_inside_a_step_goes_on() -> None:
    torch.manual_seed(0)
    model = Walk(0.5)
    guide = AVF(model, iterations=2, hidden=[4])
    assert SequenceLoss(model, guide, FilteringELBO())(data().float()).isfinite()


def ladder(prediction: float) -> tuple[HierarchicalTemporalModel, LadderGuide]:
    torch.manual_seed(0)
    model = HierarchicalTemporalModel((1, 4, 4), latents=[2, 2], hidden=4, decoder=(4,))
    engine = RLadder((1, 4, 4), [ConvLSTMRow(2), PoolRow(2), LSTMRow(3)])
    guide = LadderGuide(model, engine, hidden=4, prediction=prediction)
    model.double()
    return model, guide.double()


def predicted_error(guide: LadderGuide, x: Tensor, mask: Tensor | None) -> Tensor:
    """The squared errors of the engine's predictions, written as a loop over what was seen."""
    engine, total = guide.forward_reader.engine, 0.0
    for number in range(len(x)):
        state, before = engine.initial_state(Size((1,))), None
        for t in range(x.shape[1]):
            if mask is not None and not mask[number, t]:
                continue
            frame = x[number : number + 1, t]
            if before is not None:
                total = total + (before - frame).square().sum()
            output, state = engine.step(state, frame)
            before = output.prediction
    return torch.as_tensor(total)


@pytest.mark.parametrize("masked", [False, True])
def test_a_ladder_learns_to_predict_beside_the_bound(masked: bool) -> None:
    x = torch.rand(3, 4, 1, 4, 4).round().double()
    mask = None
    if masked:
        mask = torch.tensor([[True] * 4, [True, False, True, True], [False, True, False, False]])
    values, slopes = {}, {}
    for weight in (0.0, 0.25):
        model, guide = ladder(weight)
        for kind in (FilteringELBO, Trace_ELBO):
            for grad in (True, False):
                torch.manual_seed(3)
                with torch.set_grad_enabled(grad):
                    loss = kind().differentiable_loss(model, guide, x, mask)
                values[weight, kind, grad] = loss.item()
                if grad:
                    bottom = guide.forward_reader.engine.decoder[0]
                    parameters = list(bottom.parameters())
                    found = torch.autograd.grad(
                        loss, parameters, allow_unused=True, materialize_grads=True
                    )
                    slopes[weight, kind] = torch.cat([g.flatten() for g in found])
    cost = 0.25 * predicted_error(ladder(0.25)[1], x, mask)
    for kind in (FilteringELBO, Trace_ELBO):
        assert values[0.25, kind, False] == pytest.approx(values[0.0, kind, False], rel=1e-12)
    extra = values[0.25, Trace_ELBO, True] - values[0.0, Trace_ELBO, True]
    assert extra == pytest.approx(cost.item(), rel=1e-9)
    assert values[0.25, FilteringELBO, True] == pytest.approx(values[0.0, FilteringELBO, True])
    assert slopes[0.25, FilteringELBO].abs().max() > 0
    torch.testing.assert_close(slopes[0.25, FilteringELBO], slopes[0.25, Trace_ELBO])
    assert slopes[0.0, FilteringELBO].abs().max() == 0


def test_bad_weights() -> None:
    with pytest.raises(ValueError, match="weight must not be negative; got -1.0"):
        auxiliary("task", torch.zeros(2), -1.0)
    model = HierarchicalTemporalModel(3, latents=[2])
    with pytest.raises(ValueError, match="prediction must be 0 for an engine that predicts no"):
        LadderGuide(model, prediction=1.0)
