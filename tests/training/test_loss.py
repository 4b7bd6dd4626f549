from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import RenyiELBO, Trace_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from pyro.nn import PyroModule, PyroParam
from torch import Tensor
from torch.distributions import Normal
from torch.utils._python_dispatch import TorchDispatchMode

from pyro_seq.data import Batch, Vectors, recall
from pyro_seq.guides import KalmanGuide
from pyro_seq.inference import DeviceTraceELBO, site_scale
from pyro_seq.models import KVAE
from pyro_seq.training import SequenceLoss
from tests.training.toys import ToyGuide, ToyModel, toy_batch, toy_pair


@pytest.fixture(params=[False, True], ids=["global_store", "local_parameters"], autouse=True)
def module_local_params(request: pytest.FixtureRequest) -> Iterator[None]:
    with pyro.settings.context(module_local_params=request.param):
        yield


def free_energy_by_hand(
    model: ToyModel, guide: ToyGuide, batch: Batch, weights: dict[str, float] | None = None
) -> Tensor:
    """Sum over observed steps of log q(z) - log p(z) - log p(x | z), written without Pyro."""
    weights = {"x": 1.0, "z": 1.0} | (weights or {})
    total = torch.zeros(())
    for sequence, mask, noise in zip(*batch, strict=True):
        for x, observed, epsilon in zip(sequence, mask, noise, strict=True):
            if observed:
                q = Normal(guide.encoder(x), guide.scale)
                z = q.loc + q.scale * epsilon
                prior = Normal(0.0, 1.0).log_prob(z).sum()
                likelihood = Normal(model.emission(z), model.scale).log_prob(x).sum()
                total = total + weights["z"] * (q.log_prob(z).sum() - prior)
                total = total - weights["x"] * likelihood
    return total


def gradients(loss: Tensor, *modules: torch.nn.Module) -> list[Tensor]:
    parameters = [p for module in modules for p in module.parameters()]
    return list(torch.autograd.grad(loss, parameters))


@pytest.mark.parametrize("weights", [None, {"x": 0.3}, {"z": 0.25}, {"x": 2.0, "z": 0.5}])
@pytest.mark.parametrize("per", ["step", "sequence"])
def test_value_and_gradient_equal_the_formula(per: str, weights: dict[str, float] | None) -> None:
    torch.set_default_dtype(torch.float64)
    model, guide = toy_pair()
    batch = toy_batch(noise=True)
    units = batch.mask.sum() if per == "step" else len(batch.x)
    expected = free_energy_by_hand(model, guide, batch, weights) / units
    actual = SequenceLoss(model, guide, site_weights=weights, per=per)(batch)
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(gradients(actual, model, guide), gradients(expected, model, guide))


@pytest.mark.parametrize("particles", [1, 3])
@pytest.mark.parametrize("vectorize", [False, True])
def test_default_bound_is_trace_elbo(particles: int, vectorize: bool) -> None:
    torch.set_default_dtype(torch.float64)
    model, guide = toy_pair()
    batch = toy_batch()._replace(mask=None)
    results = []
    for kind in (Trace_ELBO, DeviceTraceELBO):
        elbo = kind(num_particles=particles, vectorize_particles=vectorize, max_plate_nesting=1)
        pyro.set_rng_seed(3)
        value = SequenceLoss(model, guide, elbo)(batch)
        results.append([value, *gradients(value, model, guide)])
    torch.testing.assert_close(results[0], results[1])


def test_guide_without_reparametrisation_is_left_to_pyro() -> None:
    torch.set_default_dtype(torch.float64)

    def model(x: Tensor, mask: None, controls: None) -> None:
        with pyro.plate("sequences", len(x), dim=-1):
            z = pyro.sample("z", dist.Bernoulli(0.3))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    class Guide(PyroModule):
        def __init__(self) -> None:
            super().__init__("bernoulli_guide")
            self.probs = PyroParam(torch.full((1,), 0.4))

        def forward(self, x: Tensor, mask: None, controls: None) -> None:
            with pyro.plate("sequences", len(x), dim=-1):
                pyro.sample("z", dist.Bernoulli(self.probs.expand(len(x))))

    guide, x = Guide(), torch.arange(4.0)
    results = []
    for elbo in (Trace_ELBO(), DeviceTraceELBO()):
        pyro.set_rng_seed(1)
        value = elbo.differentiable_loss(model, guide, x, None, None)
        results.append([value, *gradients(value, guide)])
    torch.testing.assert_close(results[0], results[1])
    assert results[0][1].abs() > 0


def test_mean_field_bound_is_accepted() -> None:
    model, guide = toy_pair()
    assert SequenceLoss(model, guide, TraceMeanField_ELBO())(toy_batch()).isfinite()


@pytest.mark.parametrize("elbo", [TraceGraph_ELBO(), RenyiELBO(num_particles=2)])
def test_bound_without_differentiable_loss_is_refused(elbo: object) -> None:
    with pytest.raises(TypeError, match=f"{type(elbo).__name__} has none"):
        SequenceLoss(*toy_pair(), elbo)


def test_what_is_missing_changes_nothing() -> None:
    loss = SequenceLoss(*toy_pair())
    batch = toy_batch(noise=True)
    hidden = torch.where(batch.mask.unsqueeze(-1), batch.x, torch.tensor(float("nan")))
    assert hidden.isnan().any()
    first, second = loss(batch), loss(batch._replace(x=hidden))
    assert torch.equal(first, second)
    assert all(map(torch.equal, gradients(first, loss), gradients(second, loss)))


def test_units_count_what_is_observed() -> None:
    x = torch.zeros(3, 4, 3)
    mask = torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0], [0, 1, 0, 1]]).bool()
    for per, with_mask, without in (("step", 4, 12), ("sequence", 2, 3)):
        loss = SequenceLoss(*toy_pair(), per=per)
        assert loss.totals(x, mask).units == with_mask
        assert loss.totals(x).units == without
    assert loss(x, torch.zeros(3, 4).bool()) == 0


def test_batch_or_tensors() -> None:
    loss = SequenceLoss(*toy_pair())
    batch = toy_batch(noise=True)
    assert torch.equal(loss(batch), loss(*batch))
    assert torch.equal(loss(batch), loss(batch.x, mask=batch.mask, controls=batch.controls))


def test_sequences_of_a_task_in_place_of_their_batch_are_named() -> None:
    sequences = recall("perfect", Vectors(3), 4, length=3, recalled=1, seed=0)
    with pytest.raises(TypeError, match="a batch must be a Batch.* got a Recall. Use its .batch"):
        SequenceLoss(*toy_pair())(sequences)


def test_parameter_store_is_left_as_it_was() -> None:
    pyro.param("mine", torch.ones(2))
    loss = SequenceLoss(*toy_pair())
    loss(toy_batch()).backward()
    assert list(pyro.get_param_store().keys()) == ["mine"]
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in loss.parameters())


@pytest.mark.parametrize("name", ["", "same"])
def test_two_pairs_of_one_class_and_name_train_independently(name: str) -> None:
    """Under the global store the second pair's networks would silently not train."""
    batch = toy_batch()

    def train(seeds: list[int]) -> list[list[Tensor]]:
        losses = [SequenceLoss(ToyModel(name=name), ToyGuide(name=name)) for _ in seeds]
        for seed, loss in zip(seeds, losses, strict=True):
            torch.manual_seed(seed)
            for p in loss.parameters():
                torch.nn.init.normal_(p)
        optimizers = [torch.optim.SGD(loss.parameters(), 1e-3) for loss in losses]
        for step in range(3):
            for loss, optimizer in zip(losses, optimizers, strict=True):
                pyro.set_rng_seed(step)
                optimizer.zero_grad()
                loss(batch).backward()
                optimizer.step()
        return [[p.detach() for p in loss.parameters()] for loss in losses]

    together = train([1, 2])
    apart = [train([1])[0], train([2])[0]]
    assert all(map(torch.equal, together[0] + together[1], apart[0] + apart[1]))
    assert not any(map(torch.equal, together[0], together[1]))


def test_parameters_without_gradient_stay_so() -> None:
    """Pyro's global store would set requires_grad on each parameter it meets."""
    model, guide = toy_pair()
    loss = SequenceLoss(model, guide)
    for p in model.parameters():
        p.requires_grad_(False)
    loss(toy_batch()).backward()
    assert not any(p.requires_grad or p.grad is not None for p in model.parameters())


class NoHostSync(TorchDispatchMode):
    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: tuple[type, ...],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> object:
        assert func is not torch.ops.aten._local_scalar_dense.default, "a tensor was read"
        return func(*args, **(kwargs or {}))


def test_no_value_is_read_in_a_training_step() -> None:
    loss = SequenceLoss(*toy_pair(), site_weights={"x": 0.3})
    batch = toy_batch()
    with pyro.validation_enabled(False):
        with NoHostSync():
            loss(batch).backward()
        with pytest.raises(AssertionError, match="a tensor was read"), NoHostSync():
            SequenceLoss(*toy_pair(), Trace_ELBO())(batch)


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan")])
def test_weight_must_be_positive(weight: float) -> None:
    with pytest.raises(ValueError, match="weight of site 'x' must be positive"):
        site_scale({"x": weight})


def test_weight_of_an_unknown_site_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"no sample site named \['y'\]"):
        SequenceLoss(*toy_pair(), site_weights={"y": 0.3, "x": 0.3})(toy_batch())


def test_weight_can_be_a_tensor() -> None:
    batch = toy_batch(noise=True)
    pair = toy_pair()
    weight = torch.tensor(0.3)
    a = SequenceLoss(*pair, site_weights={"x": weight})(batch)
    b = SequenceLoss(*pair, site_weights={"x": 0.3})(batch)
    torch.testing.assert_close(a, b)


def test_a_pair_in_the_wrong_order_is_refused() -> None:
    model = KVAE((1, 4, 4), decoder="mlp")
    guide = KalmanGuide(model, "mlp")
    with pytest.raises(ValueError, match=r"use SequenceLoss\(model, guide\)"):
        SequenceLoss(guide, model)


def test_unknown_unit() -> None:
    with pytest.raises(ValueError, match="per must be 'step' or 'sequence', got 'frame'"):
        SequenceLoss(*toy_pair(), per="frame")
