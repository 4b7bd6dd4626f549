"""Step models: parts against one step written by hand, masks, generation, and bad input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Predictive, Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.inspect import get_model_relations
from torch import Size, Tensor, nn

from pyro_seq.guides import AVF, BackwardSmoother, Bootstrap, NeuralFilter, VariationalEM
from pyro_seq.inference import FilteringELBO
from pyro_seq.inference.filtering import filter_sequences
from pyro_seq.models import DMM, SRNN, SplitStepModel, StepModel
from pyro_seq.ops.trees import leaves
from pyro_seq.training import SequenceLoss
from tests.models.step_models import BATCH, FRAME, MAKERS, TIME, TWINS, data, make

GUIDES: dict[str, Callable[[StepModel], Any]] = {
    "filter": lambda m: NeuralFilter(m, hidden=4, residual=True),
    "recurrent": lambda m: NeuralFilter(m, hidden=[], recurrent=3),
    "smoother": lambda m: BackwardSmoother(m, units=3, hidden=4),
    "avf": lambda m: AVF(m, 2, hidden=[4], stop_gradients=False),
    "vfem": lambda m: VariationalEM(m, 2),
    "bootstrap": Bootstrap,
}


def objectives(analytic: bool) -> list[Any]:
    stock = TraceMeanField_ELBO if analytic else Trace_ELBO
    return [FilteringELBO(analytic=analytic), stock()]


def evaluated(elbo: Any, model: Any, guide: Any, *args: Any) -> tuple[Tensor, dict[str, Tensor]]:  # noqa: ANN401
    """A seeded loss, and its gradient in the parameters of the model and of the guide by name."""
    pyro.set_rng_seed(1)
    named = {name.removeprefix("parts."): p for name, p in model.named_parameters()}
    named |= {f"guide.{name}": p for name, p in guide.named_parameters()}
    loss = elbo.differentiable_loss(model, guide, *args)
    grads = torch.autograd.grad(loss, [*named.values()], allow_unused=True, materialize_grads=True)
    return loss, dict(zip(named, grads, strict=True))


def agree(found: tuple[Any, Any], expected: tuple[Any, Any]) -> None:
    torch.testing.assert_close(found[0], expected[0], rtol=1e-11, atol=1e-11)
    for name, grad in expected[1].items():
        torch.testing.assert_close(
            found[1][name], grad, rtol=1e-9, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize(
    ("masked", "analytic"), [("none", True), ("padding", False), ("gaps", False), ("gaps", True)]
)
@pytest.mark.parametrize("name", TWINS)
def test_parts_are_the_step_written_by_hand(name: str, masked: str, analytic: bool) -> None:
    """Value and gradient, with stock objectives and in one pass, with controls."""
    model = make(name, controls=2)
    args = data(masked, controls=2)
    results = []
    for each in (TWINS[name](model), model):
        torch.manual_seed(5)
        guide = NeuralFilter(each, hidden=4, residual=True).double()
        results += [evaluated(elbo, each, guide, *args) for elbo in objectives(analytic)]
    for found in results[1:]:
        agree(found, results[0])


@pytest.mark.parametrize("guide", [g for g in GUIDES if g != "filter"])
def test_parts_are_the_step_with_every_guide(guide: str) -> None:
    model = make("srnn")
    for masked in ("none", "gaps"):
        results = []
        for each in (TWINS["srnn"](model), model):
            torch.manual_seed(5)
            pair = each, GUIDES[guide](each).double()
            results.append(evaluated(FilteringELBO(), *pair, *data(masked)))
        agree(results[1], results[0])


@pytest.mark.parametrize("masked", ["none", "gaps"])
@pytest.mark.parametrize("name", MAKERS)
def test_vectorised_particles(name: str, masked: str) -> None:
    """Particles as a dimension of their own, under Pyro's plate and in one pass."""
    model = make(name)
    guide = NeuralFilter(model, hidden=4).double()
    args = data(masked)
    stock = Trace_ELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=1)
    own = FilteringELBO(num_particles=3, analytic=False)
    agree(evaluated(own, model, guide, *args), evaluated(stock, model, guide, *args))


@pytest.mark.parametrize("name", MAKERS)
def test_gradient_is_the_slope(name: str) -> None:
    """Against central differences along a random direction, at fixed noise."""
    model = make(name, controls=1)
    guide = NeuralFilter(model, hidden=4).double()
    args = data("gaps", controls=1)
    parameters = [*model.parameters(), *guide.parameters()]
    direction = [torch.randn_like(p) for p in parameters]
    loss, grads = evaluated(FilteringELBO(), model, guide, *args)
    slope = sum((g * d).sum() for g, d in zip(grads.values(), direction, strict=True))

    def moved(by: float) -> Tensor:
        with torch.no_grad():
            for p, d in zip(parameters, direction, strict=True):
                p.add_(by * d)
        return evaluated(FilteringELBO(), model, guide, *args)[0].detach()

    step = 1e-5
    above = moved(step)
    below = moved(-2 * step)
    assert slope.item() == pytest.approx(((above - below) / (2 * step)).item(), rel=1e-5)


@pytest.mark.parametrize("name", MAKERS)
def test_what_lies_under_the_mask_changes_nothing(name: str) -> None:
    model = make(name)
    guide = NeuralFilter(model, hidden=4).double()
    x, mask, _ = data("gaps")
    results = [
        evaluated(FilteringELBO(), model, guide, x.nan_to_num(fill), mask)
        for fill in (0.0, 1e3, float("nan"))
    ]
    assert torch.isfinite(results[0][0])
    for other in results[1:]:
        agree(other, results[0])


@pytest.mark.parametrize("name", MAKERS)
def test_padding_changes_nothing(name: str) -> None:
    """A sequence cut to its length has the density that it has when padded, at the same z."""
    model = make(name)
    x, mask, _ = data("padding")
    assert mask is not None
    trace = poutine.trace(model).get_trace(x, mask)
    trace.compute_log_prob()
    for row in range(BATCH):
        length = int(mask[row].sum())
        z = {f"z_{t}": trace.nodes[f"z_{t}"]["value"][row : row + 1] for t in range(1, TIME + 1)}
        single = poutine.trace(poutine.condition(model, z))
        alone = single.get_trace(x[row : row + 1, :length]).log_prob_sum()
        names = [f"{site}_{t}" for site in "zx" for t in range(1, length + 1)]
        expected = sum(trace.nodes[n]["log_prob"][row] for n in names)
        torch.testing.assert_close(alone, expected)
        for t in range(length, TIME):
            assert trace.nodes[f"x_{t + 1}"]["log_prob"][row] == 0


def test_sites_are_named_by_step_within_one_plate() -> None:
    model = make("vrnn")
    guide = NeuralFilter(model, hidden=4).double()
    x, mask, _ = data("gaps")
    steps = range(1, TIME + 1)
    trace = poutine.trace(model).get_trace(x, mask)
    sampled = [n for n, s in trace.nodes.items() if s["type"] == "sample" and "_" in n]
    assert sampled == [f"{site}_{t}" for t in steps for site in "zx"]
    guided = poutine.trace(guide).get_trace(x, mask)
    assert [*guided.nodes["_RETURN"]["value"]] == [f"z_{t}" for t in steps]
    for each in (trace, guided):
        names = [n for n in each.nodes if n[0] in "zx" and "_" in n]
        assert names
        for name in names:
            frames = each.nodes[name]["cond_indep_stack"]
            assert [(f.name, f.dim, f.size) for f in frames] == [("sequences", -1, BATCH)]
    relations = get_model_relations(model, (x,))
    assert relations["observed"] == [f"x_{t}" for t in steps]


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("name", MAKERS)
def test_predictive(name: str, parallel: bool) -> None:
    """Draws of latents and frames, given frames or none, from the prior or the guide."""
    model = make(name)
    guide = NeuralFilter(model, hidden=4).double()
    draws = Predictive(model, num_samples=3, parallel=parallel)(batch=2, time=3)
    assert draws["z_3"].squeeze().shape == (3, 2, 2)
    assert draws["x_2"].squeeze().shape == (3, 2, 4, 5)
    x, mask, _ = data("gaps")
    if not parallel:
        draws = Predictive(model, guide=guide, num_samples=3)(x, mask)
        assert draws["z_1"].shape == (3, BATCH, 2)


@pytest.mark.parametrize("name", MAKERS)
def test_missing_frames_are_predicted(name: str) -> None:
    """The model returns the frames, with the mean of the emission where they are missing."""
    model = make(name)
    x, mask, _ = data("gaps")
    assert mask is not None
    trace = poutine.trace(model).get_trace(x, mask)
    frames = trace.nodes["_RETURN"]["value"]
    assert torch.equal(frames[mask], x[mask])
    for t in range(TIME):
        mean = trace.nodes[f"x_{t + 1}"]["fn"].mean
        missing = ~mask[:, t]
        torch.testing.assert_close(frames[missing, t], mean[missing])


class Clock(StepModel):
    """Counts its steps, and shows the count; u is added to it."""

    class State(NamedTuple):
        count: Tensor

    def __init__(self, controls: int = 0) -> None:
        super().__init__()
        self.controls = controls

    def initial_state(self, batch_shape: Size) -> State:
        return self.State(torch.zeros(*batch_shape, 1))

    def step(self, state: State, x_t: Tensor | None, u_t: Tensor | None = None) -> State:
        count = state.count + (1.0 if u_t is None else u_t)
        z = pyro.sample("z", dist.Normal(count, 1e-4).to_event(1))
        pyro.sample("x", dist.Normal(z, 1e-4).to_event(1), obs=x_t)
        return self.State(count)


def test_generation_goes_on_from_any_step() -> None:
    model = Clock()
    x = model.generate(batch=3, time=6)
    torch.testing.assert_close(x[..., 0].round(), torch.arange(1.0, 7.0).expand(3, 6))
    for steps in (1, 4):
        state = filter_sequences(Bootstrap(model), x[:, :steps]).state
        onward = model.generate(time=2, state=state.model)
        expected = torch.arange(steps + 1.0, steps + 3.0).expand(3, 2)
        torch.testing.assert_close(onward[..., 0].round(), expected)
    driven = Clock(controls=1)
    u = torch.tensor([1.0, 3.0, -2.0]).expand(2, 3).unsqueeze(-1)
    torch.testing.assert_close(
        driven.generate(batch=2, time=3, controls=u).round()[..., 0],
        torch.tensor([1.0, 4.0, 2.0]).expand(2, 3),
    )


@pytest.mark.parametrize("name", MAKERS)
def test_generation(name: str) -> None:
    """Shapes, and forecasts from a filtered state that are those of the model's own step."""
    model = make(name, controls=2)
    x, _, controls = data(controls=2)
    assert controls is not None
    assert model(batch=BATCH, time=TIME, controls=controls).shape == x.shape
    assert model.generate(batch=2, time=3, controls=controls[:2, :3]).shape == (2, 3, *FRAME)
    guide = NeuralFilter(model, hidden=4).double()
    state = filter_sequences(guide, x[:, :2], controls=controls[:, :2]).state.model
    pyro.set_rng_seed(2)
    frames = model.generate(time=2, controls=controls[:, 2:], state=state)
    pyro.set_rng_seed(2)
    for t in range(2):
        with poutine.trace() as recorder, torch.no_grad():
            state = model.step(state, None, controls[:, 2 + t])
        assert torch.equal(frames[:, t], recorder.trace.nodes["x"]["value"])


@pytest.mark.parametrize("name", MAKERS)
def test_stretches_join(name: str) -> None:
    """Two stretches with the state carried over are one sequence."""
    model = make(name)
    guide = NeuralFilter(model, hidden=4, recurrent=3).double()
    x, _, _ = data()
    for mask in (None, data("gaps")[1]):
        parts = [slice(0, 2), slice(2, TIME)]
        pyro.set_rng_seed(4)
        whole = filter_sequences(guide, x, mask)
        pyro.set_rng_seed(4)
        state, energies = None, []
        for part in parts:
            filtered = filter_sequences(
                guide, x[:, part], None if mask is None else mask[:, part], state=state
            )
            state = filtered.state
            energies.append(filtered.free_energy)
        torch.testing.assert_close(torch.cat(energies), whole.free_energy)
        for found, expected in zip(leaves(state), leaves(whole.state), strict=True):
            torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("local", [False, True])
def test_two_models_train_independently(local: bool) -> None:
    """With Pyro's global parameter store and without."""
    x, mask, _ = data("gaps")
    with pyro.settings.context(module_local_params=local):
        losses = []
        for _ in range(2):
            model = make("srnn")
            guide = NeuralFilter(model, hidden=4).double()
            losses.append(SequenceLoss(model, guide, FilteringELBO()))
        for own, other in (losses, losses[::-1]):
            before = [[p.detach().clone() for p in loss.parameters()] for loss in (own, other)]
            optimizer = torch.optim.SGD(own.parameters(), 0.1)
            own(x, mask).backward()
            optimizer.step()
            after = [list(loss.parameters()) for loss in (own, other)]
            moved = [
                [not torch.equal(b, a) for b, a in zip(*each, strict=True)]
                for each in zip(before, after, strict=True)
            ]
            assert all(moved[0]) and not any(moved[1])


# Bad input.


def small(**options: Any) -> tuple[DMM, NeuralFilter, Tensor]:  # noqa: ANN401
    model = DMM(3, latent=2, hidden=4, width=4, **options)
    return model, NeuralFilter(model, hidden=4), torch.ones(2, 4, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mask": torch.ones(2, 5, dtype=torch.bool)}, r"mask must be bool \(batch, time\)"),
        ({"mask": torch.ones(2, 4, 3, dtype=torch.bool)}, r"mask must be bool \(batch, time\)"),
        ({"mask": torch.ones(2, 4)}, r"mask must be bool.*Use mask.bool\(\)"),
        ({"controls": torch.ones(2, 4, 2)}, "controls must have the size.* 0; got shape"),
        ({"x": torch.ones(4)}, r"x must be \(batch, time, \*frame\)"),
        ({"x": torch.full((2, 4, 3), torch.nan)}, "x must be finite where it is observed"),
    ],
)
def test_shapes_that_do_not_fit(arguments: dict[str, Tensor], message: str) -> None:
    model, guide, x = small()
    given = {"x": x, **arguments}
    for call in (model, guide, lambda **kw: FilteringELBO()(model, guide)(**kw)):
        with pytest.raises(ValueError, match=message):
            call(**given)


def test_controls_are_needed_where_the_model_has_them() -> None:
    model, guide, x = small(controls=2)
    for controls in (None, torch.ones(2, 4, 1)):
        for call in (model, guide):
            with pytest.raises(ValueError, match="attribute controls, 2; got"):
                call(x, controls=controls)
    with pytest.raises(ValueError, match="controls must be .* with"):
        model(x, controls=torch.ones(2, 3, 2))
    for call in (model.generate, model):
        for controls in (None, torch.ones(2, 3, 2)):
            with pytest.raises(ValueError, match=r"controls must be .* = \(2, 4, 2\); got"):
                call(batch=2, time=4, controls=controls)
    with pytest.raises(ValueError, match="controls must be None for a model without controls"):
        small()[0].generate(2, 4, torch.ones(2, 4, 2))


def test_generating_needs_sizes() -> None:
    with pytest.raises(ValueError, match="x must be given, or else batch= and time="):
        small()[0]()


@pytest.mark.parametrize(("name", "value"), [("batch", 0), ("time", 0), ("batch", 2.5)])
def test_numbers_of_what_is_generated(name: str, value: Any) -> None:  # noqa: ANN401
    model, _, _ = small()
    for call in (model.generate, model):
        with pytest.raises((TypeError, ValueError), match=f"^{name} must be .*; got {value}"):
            call(**{"batch": 2, "time": 3, name: value})


def test_generating_goes_on_from_a_state_of_the_model_alone() -> None:
    with pytest.raises(TypeError, match="state must be the SplitState .* got State"):
        small()[0].generate(2, 3, state=Clock().initial_state(Size((2,))))


def test_types_that_the_model_cannot_read_are_named() -> None:
    model, guide, x = small(controls=1)
    u = torch.zeros(2, 4, 1)
    for call in (model, guide):
        with pytest.raises(ValueError, match=r"x must have the type .* Use x.to\(tor"):
            call(x.double(), None, u)
        with pytest.raises(ValueError, match="controls must have the type .* got torch.fl"):
            call(x, None, u.double())
        with pytest.raises(ValueError, match=r"x must be of real numbers .* Use x.float\(\)"):
            call(x.long(), None, u)
    with pytest.raises(TypeError, match="controls must be a tensor; got ndarray"):
        model.generate(2, 4, u.numpy())


def test_x_must_be_a_tensor() -> None:
    with pytest.raises(TypeError, match=r"x must be a tensor \(batch, time, \*frame\); got list"):
        small()[0]([[1.0]])


class Faulty(StepModel):
    """A random walk with one fault."""

    class State(NamedTuple):
        z: Tensor

    class Other(NamedTuple):
        z: Tensor

    def __init__(self, fault: str) -> None:
        super().__init__()
        self.fault = fault
        self.scale = nn.Parameter(torch.ones(2))

    def initial_state(self, batch_shape: Size) -> Any:  # noqa: ANN401
        return self.State(torch.zeros(*batch_shape, 2))

    def step(self, state: Any, x_t: Tensor | None, u_t: Tensor | None = None) -> Any:  # noqa: ANN401
        if self.fault == "mutates":
            state.z.add_(1.0)
        prior: Any = dist.Normal(state.z, self.scale.exp())
        if self.fault == "no latent":
            z = state.z
        else:
            z = pyro.sample("z", prior if self.fault == "no event" else prior.to_event(1))
        if self.fault == "discrete":
            z = z + pyro.sample("k", dist.Bernoulli(torch.full_like(z, 0.5)).to_event(1))
        if self.fault != "no frame":
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x_t)
        return self.Other(z) if self.fault == "other state" else self.State(z)


@pytest.mark.parametrize(
    ("fault", "error", "message"),
    [
        ("mutates", RuntimeError, "step must not change the state.*modified in place"),
        ("no event", ValueError, "'z'.*to_event"),
        ("no latent", ValueError, "the latent sites .* got none at step 1"),
        ("other state", TypeError, "a state like the one it was given, State; got Other"),
        ("no frame", ValueError, r"step must sample the frame: pyro.sample\('x'"),
        ("discrete", ValueError, "'k' must be reparametrised.*Bernoulli.*Trace_ELBO"),
    ],
)
def test_faults_of_a_step_are_named(fault: str, error: type[Exception], message: str) -> None:
    model = Faulty(fault)
    with pytest.raises(error, match=message):
        FilteringELBO()(model, Bootstrap(model))(torch.zeros(3, 4, 2))


def test_a_step_without_a_frame_is_no_model() -> None:
    model = Faulty("no frame")
    for call in (lambda: model(torch.zeros(3, 4, 2)), lambda: model.generate(2, 2)):
        with pytest.raises(ValueError, match=r"step must sample the frame: pyro.sample\('x'"):
            call()
    with pytest.raises(ValueError, match="step must sample the frame"):
        NeuralFilter(model)
    with pytest.raises(ValueError, match="at least one latent; got none"):
        NeuralFilter(Faulty("no latent"))


def test_discrete_latents_are_for_the_bootstrap() -> None:
    model = Faulty("discrete")
    for make_guide in (NeuralFilter, AVF, BackwardSmoother):
        with pytest.raises(ValueError, match="'k' cannot be inferred.*guide 'bootstrap'"):
            make_guide(model)
    with torch.no_grad():
        assert FilteringELBO()(model, Bootstrap(model))(torch.zeros(3, 4, 2)).isfinite()


def test_guides_are_of_their_model() -> None:
    model, guide, x = small()
    other = small()[0]
    with pytest.raises(ValueError, match="guide must be the guide of this model"):
        FilteringELBO()(other, guide)(x)
    with pytest.raises(TypeError, match="model must be a StepModel; got Linear"):
        NeuralFilter(nn.Linear(2, 2))  # type: ignore[arg-type]


def test_a_split_model_says_what_is_missing() -> None:
    class Unfinished(SplitStepModel):
        def begin(self, batch_shape: Size) -> Any:  # noqa: ANN401
            return Faulty.State(torch.zeros(*batch_shape, 2))

    with pytest.raises(NotImplementedError):
        Unfinished()(torch.zeros(2, 3, 2))


def test_values_that_cannot_be_scored_are_named() -> None:
    model = SRNN(3, latent=2, hidden=4, prior=[4], decoder=[4])
    x, mask = torch.rand(2, 4, 3), torch.ones(2, 4, dtype=torch.bool)
    x[0, 1], mask[0, 1] = 7.0, False  # missing: never looked at
    model(x, mask)
    with pytest.raises(ValueError, match=r"between 0 and 1 for Bernoulli frames; got .* 7\. Sc"):
        model(x)
    DMM(3, latent=2, emission="normal")(x)
    controlled = DMM(3, latent=2, controls=1)
    u = torch.zeros(2, 4, 1)
    u[0, 1] = torch.nan
    with pytest.raises(ValueError, match="controls must be finite at every step, also where"):
        controlled(x, mask, u)
