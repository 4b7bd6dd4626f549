"""Filtering streams one frame at a time."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Size, Tensor, nn

from pyro_seq.guides import (
    AVF,
    BackwardSmoother,
    Bootstrap,
    FilteringGuide,
    NeuralFilter,
    OnlineFilter,
    VariationalEM,
)
from pyro_seq.inference.filtering import filter_sequences
from pyro_seq.inference.particles import filter_particles
from pyro_seq.models import DMM, SRNN, StepModel
from pyro_seq.ops.trees import leaves
from tests.guides.unseen_model import Traffic, traffic
from tests.inference.pairs import LinearStep, SplitLinearStep, linear_batch

PAIRS = {
    "srnn, filter": (
        lambda: SRNN(5, latent=3, hidden=6, prior=[7], decoder=[7], controls=2),
        lambda model: NeuralFilter(model, hidden=8),
    ),
    "srnn, avf": (
        lambda: SRNN(5, latent=3, hidden=6, prior=[7], decoder=[7], controls=2),
        lambda model: AVF(model, 2, hidden=[8], encodes=("gradients", "observation", "state")),
    ),
    "dmm, vfem": (
        lambda: DMM(5, latent=3, hidden=4, width=4, controls=2),
        lambda model: VariationalEM(model, 2),
    ),
    "free, avf": (Traffic, lambda model: AVF(model, 1, hidden=[8])),
    "free, bootstrap": (Traffic, Bootstrap),
}


def pair(name: str = "srnn, filter") -> tuple[StepModel, FilteringGuide]:
    make_model, make_guide = PAIRS[name]
    model = make_model().double()
    return model, make_guide(model).double()


def data(name: str = "srnn, filter", masked: bool = True) -> tuple[Tensor, Tensor | None, Tensor]:
    x, mask, controls = traffic()
    if not name.startswith("free"):
        x = (torch.rand(4, 5, 5) > 0.5).float()
    if not masked:
        return x.double(), None, controls.double()
    return torch.where(mask[..., None], x, torch.nan).double(), mask, controls.double()


def run(online: OnlineFilter, x: Tensor, mask: Tensor | None, controls: Any) -> list[Any]:  # noqa: ANN401
    columns = [[None] * x.shape[1] if p is None else p.unbind(1) for p in (x, mask, controls)]
    return [online.update(*here) for here in zip(*columns, strict=True)]


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("name", PAIRS)
def test_online_equals_offline(name: str, masked: bool) -> None:
    model, guide = pair(name)
    sequences = data(name, masked)
    torch.manual_seed(0)
    with torch.no_grad():
        offline = filter_sequences(guide, *sequences)
    values = guide_values(guide, *sequences)
    torch.manual_seed(0)
    updates = run(OnlineFilter(model, guide, 4, predict=False), *sequences)
    for number, update in enumerate(updates):
        expected = offline.free_energy[number]
        torch.testing.assert_close(update.free_energy, expected, rtol=1e-10, atol=1e-10)
        for site, value in update.values.items():
            torch.testing.assert_close(value, values[f"{site}_{number + 1}"])
            posterior = update.posteriors[site]
            assert posterior.batch_shape + posterior.event_shape == value.shape


def guide_values(guide: FilteringGuide, *sequences: Any) -> dict[str, Tensor]:  # noqa: ANN401
    torch.manual_seed(0)
    with torch.no_grad():
        return guide(*sequences)


@pytest.mark.parametrize("name", ["srnn, filter", "free, avf"])
@pytest.mark.parametrize("masked", [True, False])
def test_particles_equal_the_particle_filter(name: str, masked: bool) -> None:
    model, guide = pair(name)
    sequences = data(name, masked)
    torch.manual_seed(0)
    with torch.no_grad():
        offline = filter_particles(guide, *sequences, particles=7)
    torch.manual_seed(0)
    online = OnlineFilter(model, guide, 4, particles=7, predict=False)
    updates = run(online, *sequences)
    evidence = sum(update.log_evidence for update in updates)
    torch.testing.assert_close(evidence, offline.log_evidence, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(online.state.log_weights, offline.log_weights)
    assert any((update.log_weights.exp().amax(0) > 0.3).any() for update in updates)
    torch.testing.assert_close(updates[0].log_weights.exp().sum(0), torch.ones(4).double())


def test_one_draw_has_its_weight_as_evidence() -> None:
    model, guide = pair()
    x, mask, controls = data()
    for update in run(OnlineFilter(model, guide, 4), x, mask, controls):
        q = sum(update.posteriors[site].log_prob(value) for site, value in update.values.items())
        assert update.log_evidence.shape == (4,) and torch.isfinite(q).all()
    missing = run(OnlineFilter(model, guide, 4), x, torch.zeros_like(mask), controls)
    for update in missing:
        assert (update.log_evidence == 0).all() and (update.free_energy == 0).all()
        assert update.next_frame.isfinite().all()


@pytest.mark.parametrize("make", [LinearStep, SplitLinearStep])
def test_predictions_are_those_of_the_kalman_filter(make: Any) -> None:  # noqa: ANN401
    """Bootstrap particles against the exact evidence and the exact predicted means."""
    model = make(controls=1)
    x, mask, controls = linear_batch(model, sequences=3, time=5, masked=True)
    online = OnlineFilter(model, Bootstrap(model), 3, particles=30_000)
    evidence = 0.0
    for t in range(4):
        u = controls[:, t + 1]
        update = online.update(x[:, t], mask[:, t], controls[:, t], next_control=u)
        evidence = evidence + update.log_evidence
        hidden = mask[:, : t + 2].clone()
        hidden[:, -1] = False
        seen = torch.nan_to_num(x[:, : t + 2])
        exact = model.parts.evidence((seen, hidden, controls[:, : t + 2]))
        ahead = exact.posterior(seen).smoothed.loc[:, -1] @ model.parts.C.mT
        torch.testing.assert_close(update.next_frame, ahead.detach(), rtol=0, atol=0.05)
        assert update.prediction.batch_shape == (30_000, 3)
        torch.testing.assert_close(
            evidence, exact.log_prob(seen).detach(), rtol=0, atol=0.1, check_dtype=False
        )


def test_forecasts_are_those_of_the_kalman_filter() -> None:
    model = LinearStep(controls=1)
    x, mask, controls = linear_batch(model, sequences=3, time=5, masked=True)
    online = OnlineFilter(model, Bootstrap(model), 3, particles=30_000)
    run(online, x[:, :2], mask[:, :2], controls[:, :2])
    mask[:, 2:] = False
    exact = model.parts.evidence((x, mask, controls)).posterior(torch.nan_to_num(x)).smoothed.loc
    found = online.forecast(3, controls[:, 2:])
    expected = (exact[:, 2:] @ model.parts.C.mT).detach()
    torch.testing.assert_close(found, expected, rtol=0, atol=0.05)
    assert (expected[:, 0] - expected[:, 2]).abs().max() > 0.5


def test_forecasts_leave_the_filter_where_it_is() -> None:
    model, guide = pair("free, avf")
    x, mask, controls = data("free, avf")
    online = OnlineFilter(model, guide, 4, particles=20)
    run(online, x[:, :3], mask[:, :3], controls[:, :3])
    before = online.state_dict()
    torch.manual_seed(0)
    frames = online.forecast(6, torch.zeros(4, 6, 2).double())
    assert frames.shape == (4, 6, 3) and frames.isfinite().all() and (frames > 0).all()
    assert all(torch.equal(value, before[name]) for name, value in online.state_dict().items())
    torch.manual_seed(0)
    other = online.forecast(6, torch.ones(4, 6, 2).double())
    assert not torch.allclose(other, frames)


def test_drawn_futures_go_on_from_the_state() -> None:
    model, guide = pair()
    x, mask, controls = data()
    online = OnlineFilter(model, guide, 4)
    run(online, x, mask, controls)
    future = model.generate(time=3, controls=controls[:, :3], state=online.state.model)
    assert future.shape == (4, 3, 5) and set(future.unique().tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize("particles", [None, 3])
@pytest.mark.parametrize("name", PAIRS)
def test_a_saved_state_goes_on_as_if_nothing_had_happened(
    name: str, particles: int | None, tmp_path: Path
) -> None:
    model, guide = pair(name)
    x, mask, controls = data(name)
    online = OnlineFilter(model, guide, 4, particles=particles)
    run(online, x[:, :3], mask[:, :3], controls[:, :3])
    torch.save(online.state_dict(), tmp_path / "state.pt")
    kept = online.state
    torch.manual_seed(1)
    expected = run(online, x[:, 3:], mask[:, 3:], controls[:, 3:])
    for load in (True, False):
        resumed = OnlineFilter(model, guide, 4, particles=particles)
        if load:
            resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
        else:
            resumed.state = kept
        torch.manual_seed(1)
        found = run(resumed, x[:, 3:], mask[:, 3:], controls[:, 3:])
        for one, two in zip(found, expected, strict=True):
            assert torch.equal(one.next_frame, two.next_frame)
            assert torch.equal(one.free_energy, two.free_energy)


def alive() -> int:
    gc.collect()
    return sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())


@pytest.mark.parametrize("name", PAIRS)
def test_memory_does_not_grow(name: str) -> None:
    model, guide = pair(name)
    x, _, controls = data(name, masked=False)
    online = OnlineFilter(model, guide, 4)
    counts, sizes = [], []
    for _ in range(3):
        for t in range(8):
            online.update(x[:, t % 5], None, controls[:, t % 5])
        counts.append(alive())
        sizes.append(sum(part.untyped_storage().nbytes() for part in leaves(online.state)))
        assert not any(part.requires_grad for part in leaves(online.state))
    assert counts[1] == counts[2] and sizes[0] == sizes[1] == sizes[2]


@pytest.mark.slow
def test_ten_thousand_steps_take_no_more_memory_or_time() -> None:
    import resource
    import time

    model, guide = pair("srnn, avf")
    x, _, controls = data(masked=False)
    online = OnlineFilter(model, guide, 4)
    memory, times = [], []
    for _ in range(10):
        start = time.process_time()
        for t in range(1000):
            online.update(x[:, t % 5], None, controls[:, t % 5])
        times.append(time.process_time() - start)
        memory.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    assert memory[-1] - memory[1] < 2000  # kB
    assert min(times[5:]) < 1.5 * min(times[:5])


def test_a_reused_buffer_of_frames_changes_nothing() -> None:
    class Echo(StepModel):
        class State(NamedTuple):
            last: Tensor

        def initial_state(self, batch_shape: Size) -> State:
            return self.State(torch.zeros(*batch_shape, 2))

        def step(self, state: State, x_t: Tensor | None, u_t: Tensor | None = None) -> State:
            z = pyro.sample("z", dist.Normal(state.last, 1.0).to_event(1))
            return self.State(pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x_t))

    model = Echo()
    online = OnlineFilter(model, Bootstrap(model), 3)
    buffer = torch.ones(3, 2)
    online.update(buffer)
    buffer.fill_(7.0)
    assert (online.state.model.last == 1).all()


def test_the_pair_is_at_rest_and_left_as_it_was() -> None:
    model = SRNN(5, latent=3, hidden=6, prior=[7], decoder=[7], dropout=0.5, frame_dropout=0.5)
    guide = NeuralFilter(model, hidden=8, dropout=0.5)
    x = (torch.rand(2, 5) > 0.5).float()
    results = []
    for training in (True, False):
        model.train(training), guide.train(training)
        torch.manual_seed(0)
        online = OnlineFilter(model, guide, 2)
        results.append([online.update(x).free_energy for _ in range(3)])
        assert model.training == guide.training == training
    assert all(torch.equal(*both) for both in zip(*results, strict=True))


def test_gradients_that_a_guide_needs_do_not_reach_the_parameters() -> None:
    model, guide = pair("srnn, avf")
    assert isinstance(guide, AVF)
    guide.step_online(torch.optim.SGD(guide.parameters(), lr=1.0))
    before = {name: value.clone() for name, value in guide.named_parameters()}
    x, mask, controls = data()
    run(OnlineFilter(model.train(), guide.train(), 4), x, mask, controls)
    assert all(torch.equal(value, before[name]) for name, value in guide.named_parameters())
    assert all(p.grad is None for p in (*model.parameters(), *guide.parameters()))


def test_a_model_without_parameters_keeps_the_type_of_its_frames() -> None:
    class Noise(StepModel):
        class State(NamedTuple):
            pass

        def initial_state(self, batch_shape: Size) -> State:
            return self.State()

        def step(self, state: State, x_t: Tensor | None, u_t: Tensor | None = None) -> State:
            z = pyro.sample("z", dist.Normal(torch.zeros(1).double(), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x_t)
            return state

    model = Noise()
    online = OnlineFilter(model, Bootstrap(model), 3, particles=4)
    update = online.update(torch.ones(3, 1).double())
    assert update.next_frame.shape == (3, 1)
    assert update.log_evidence.dtype == update.next_frame.dtype == torch.float64
    other = OnlineFilter(model, Bootstrap(model), 3, particles=4)
    other.load_state_dict(online.state_dict())
    assert torch.equal(other.state.log_weights, online.state.log_weights)


class LastFrame(nn.Module):
    """A guide that filters by itself: it believes in the frame before."""

    def start_online(self, batch: int) -> dict[str, Any]:
        return {"frame": torch.zeros(batch, 1), "count": 0}

    def update_online(
        self,
        state: dict[str, Any],
        x: Tensor,
        mask: Tensor | None,
        control: Tensor | None,
        next_control: Tensor | None,
    ) -> tuple[Tensor, dict[str, Any]]:
        return state["frame"], {"frame": x, "count": state["count"] + 1}

    def forecast_online(
        self, state: dict[str, Any], steps: int, controls: Tensor | None
    ) -> Tensor:
        return state["frame"].unsqueeze(1).expand(-1, steps, -1)


def test_a_guide_may_filter_by_itself() -> None:
    model = nn.Identity()
    online = OnlineFilter(model, LastFrame(), 2)
    online.update(torch.ones(2, 1))
    assert (online.update(2 * torch.ones(2, 1)) == 1).all()
    assert online.state_dict()["count"] == 2
    other = OnlineFilter(model, LastFrame(), 2)
    other.load_state_dict(online.state_dict())
    assert other.state["count"] == 2 and torch.equal(other.forecast(3), online.forecast(3))
    with pytest.raises(ValueError, match="a value of type int for 'count', .*; got a value of ty"):
        other.load_state_dict(online.state_dict() | {"count": 2.0})


def test_bad_pairs_are_named() -> None:
    model, guide = pair()
    with pytest.raises(ValueError, match="guide of this model; it was made for another one"):
        OnlineFilter(pair()[0], guide)
    smoother = BackwardSmoother(model, units=3, hidden=3)
    with pytest.raises(ValueError, match="BackwardSmoother reads the whole sequence"):
        OnlineFilter(model, smoother)
    with pytest.raises(TypeError, match="must be a FilteringGuide, or have start_online.*Linear"):
        OnlineFilter(model, nn.Linear(2, 2))
    for name in ("batch", "particles"):
        with pytest.raises(ValueError, match=f"{name} must be at least 1; got 0"):
            OnlineFilter(model, guide, **{name: 0})
    with pytest.raises(ValueError, match="particles and predict are for step models"):
        OnlineFilter(nn.Identity(), LastFrame(), predict=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(3, 5)}, r"x must be \(batch, \*frame\) = \(4, 5\), one step of each"),
        ({"mask": torch.ones(4, 1).bool()}, r"mask must be \(batch\) = \(4,\), .* \(4, 1\)"),
        ({"mask": torch.ones(4)}, r"mask must be bool"),
        ({"control": None}, r"controls must have the size .* controls, 2; got none"),
        ({"control": torch.zeros(4, 3)}, r"control must be \(batch, controls\) = \(4, 2\)"),
        ({"next_control": torch.zeros(1, 2)}, r"next_control must be .* the 4 streams; got sh"),
        ({"x": torch.full((4, 5), torch.nan).double()}, "x must be finite where it is observed"),
    ],
)
def test_bad_frames_are_named(change: dict[str, Any], message: str) -> None:
    model, guide = pair()
    online = OnlineFilter(model, guide, 4)
    step = {"x": torch.zeros(4, 5).double(), "control": torch.zeros(4, 2).double()} | change
    with pytest.raises(ValueError, match=message):
        online.update(**step)


def test_bad_states_and_forecasts_are_named() -> None:
    model, guide = pair("dmm, vfem")
    online = OnlineFilter(model, guide, 4)
    with pytest.raises(ValueError, match=r"shape \(4, 3\) for 'model.state.z', as that of 4 str"):
        online.state = OnlineFilter(model, guide, 3).state
    other, its_guide = pair("srnn, filter")
    with pytest.raises(ValueError, match=r"state must hold \['model.state.z', .*; got \['model"):
        online.load_state_dict(OnlineFilter(other, its_guide, 4).state_dict())
    with pytest.raises(ValueError, match="steps must be at least 1; got 0"):
        online.forecast(0)
    with pytest.raises(ValueError, match=r"controls must be .* = \(4, 2, .*; got shape \(4, 3, 2"):
        online.forecast(2, torch.zeros(4, 3, 2).double())
    model, guide = pair("free, avf")
    online = OnlineFilter(model, guide, 4)
    for bad, got in ((None, "None"), (torch.zeros(4, 2, 3).double(), r"\(4, 2, 3\)")):
        with pytest.raises(ValueError, match=rf"controls must be .* = \(4, 2, 2\); got {got}"):
            online.forecast(2, bad)


def test_sites_that_come_and_go_are_refused() -> None:
    class Changing(StepModel):
        class State(NamedTuple):
            count: Tensor

        def initial_state(self, batch_shape: Size) -> State:
            return self.State(torch.zeros(batch_shape))

        def step(self, state: State, x_t: Tensor | None, u_t: Tensor | None = None) -> State:
            name = "z" if state.count[0] < 2 else "other"
            z = pyro.sample(name, dist.Normal(torch.zeros_like(state.count), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x_t)
            return self.State(state.count + 1)

    model = Changing()
    online = OnlineFilter(model, Bootstrap(model), 3)
    assert online.update(torch.zeros(3)).next_frame.shape == (3,)
    online.update(torch.zeros(3))
    with pytest.raises(ValueError, match=r"the same at every step, \['z'\]; got \['other'\]"):
        online.update(torch.zeros(3))
