"""The model with memory: its equations, one reading per step, and what it refuses."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor, nn
from torch.distributions import kl_divergence

from pyro_seq.evaluation import forecast
from pyro_seq.evaluation.memories import replay_memory
from pyro_seq.guides import AVF, NeuralFilter, OnlineFilter, VariationalEM
from pyro_seq.inference import FilteringELBO
from pyro_seq.inference.filtering import filter_sequences
from pyro_seq.memory import DNC, Memory
from pyro_seq.models import GTMM
from pyro_seq.nn.mlp import FlatFrames
from pyro_seq.plugins import available, get
from tests.models.test_step_model import agree, evaluated

FRAME, LATENT, BATCH, TIME, CONTROLS = 4, 3, 3, 5, 2
SIZES = {"prior": [5], "decoder": [5]}
MEMORIES = [m for m in available("memories") if get("memories", m).__module__.startswith("pyro_")]


def made(memory: str, controls: int = 0, **options: Any) -> GTMM:  # noqa: ANN401
    torch.manual_seed(0)
    own: dict[str, Any] = {"hidden": 6}
    if memory == "lstm":
        own["frame_features"] = FRAME
        options.setdefault("encoder", FlatFrames())
    else:
        own |= {"slots": TIME, "heads": 2}
    model = GTMM(
        FRAME,
        latent=LATENT,
        memory=memory,
        memory_options=own,
        controls=controls,
        **{**SIZES, **options},
    )
    return model.double()


def data(controls: int = 0, gaps: bool = False) -> tuple[Tensor, Tensor | None, Tensor | None]:
    generator = torch.Generator().manual_seed(5)
    x = (torch.rand(BATCH, TIME, FRAME, generator=generator) > 0.5).double()
    u = torch.randn(BATCH, TIME, CONTROLS, generator=generator).double() if controls else None
    if not gaps:
        return x, None, u
    mask = torch.ones(BATCH, TIME, dtype=torch.bool)
    mask[0, 1] = mask[1, 3:] = False
    return x.masked_fill(~mask.unsqueeze(-1), torch.nan), mask, u


@pytest.mark.parametrize("gaps", [False, True])
@pytest.mark.parametrize("memory", MEMORIES)
def test_one_pass_equals_stock_pyro(memory: str, gaps: bool) -> None:
    """Value and gradient, with closed-form and with sampled divergences."""
    model = made(memory, CONTROLS)
    guide = NeuralFilter(model, hidden=4).double()
    args = data(CONTROLS, gaps)
    for analytic, stock in ((True, TraceMeanField_ELBO()), (False, Trace_ELBO())):
        own = FilteringELBO(analytic=analytic)
        agree(evaluated(own, model, guide, *args), evaluated(stock, model, guide, *args))


@pytest.mark.parametrize("memory", MEMORIES)
def test_the_bound_by_its_equations(memory: str) -> None:
    """Replaying the memory along the guide's draws, and adding the terms up."""
    model = made(memory)
    guide = NeuralFilter(model, hidden=4).double()
    x, _, _ = data()
    pyro.set_rng_seed(2)
    loss = FilteringELBO().loss(model, guide, x)
    pyro.set_rng_seed(2)
    trace = pyro.poutine.trace(guide).get_trace(x)
    sites = [trace.nodes[f"z_{t + 1}"] for t in range(TIME)]
    z = torch.stack([site["value"] for site in sites], 1)
    zeros = torch.zeros_like(z[:, :1])
    frames = torch.cat([x.new_zeros(BATCH, 1, FRAME), x[:, :-1]], 1)
    features = frames if memory == "lstm" else None
    context, _ = model.memory(torch.cat([zeros, z[:, :-1]], 1), features=features)
    total = torch.zeros(())
    for t, site in enumerate(sites):
        hidden = nn.functional.elu(model.prior[0](context.features[:, t]))
        loc, log_scale = model.prior_head.parameters_of(hidden).chunk(2, -1)
        if model.copy is not None:
            loc = loc + context.reads[:, t] @ model.copy.weight.mT
        p = dist.Normal(loc, log_scale.clamp(-6, 3).exp()).to_event(1)
        total = total + kl_divergence(site["fn"], p).sum()
        logits = model.emit.logits(nn.functional.elu(model.decoder[0](z[:, t])))
        total = total - dist.Bernoulli(logits=logits).log_prob(x[:, t]).sum()
    assert loss == pytest.approx(total.item(), rel=1e-10)


@pytest.mark.parametrize("memory", MEMORIES)
def test_the_memory_is_read_once_per_step(memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also by guides that evaluate a step several times."""
    model = made(memory, CONTROLS)
    calls = []
    step = type(model.memory).step

    def counted(self: Memory, *args: Any) -> Any:  # noqa: ANN401
        calls.append(1)
        return step(self, *args)

    guides = [AVF(model, 2, hidden=[4]), VariationalEM(model, 3), NeuralFilter(model, hidden=4)]
    monkeypatch.setattr(type(model.memory), "step", counted)
    for guide in guides:
        calls.clear()
        filter_sequences(guide.double(), *data(CONTROLS))
        assert len(calls) == TIME


@pytest.mark.parametrize("memory", MEMORIES)
def test_generates_forecasts_and_filters_online(memory: str) -> None:
    model = made(memory, CONTROLS)
    guide = NeuralFilter(model, hidden=4).double()
    x, mask, u = data(CONTROLS, gaps=True)
    assert u is not None and mask is not None
    assert model.generate(BATCH, TIME, u).shape == x.shape
    ends = forecast(guide, x[:, :2], TIME - 2, mask[:, :2], u, samples=2, seed=0).frames
    assert ends.shape == (2, BATCH, TIME - 2, FRAME) and ends.isfinite().all()
    pyro.set_rng_seed(3)
    whole = filter_sequences(guide, x, mask, u)
    pyro.set_rng_seed(3)
    online = OnlineFilter(model, guide, batch=BATCH, predict=False)
    for t in range(TIME):
        found = online.update(x[:, t], mask[:, t], u[:, t])
        torch.testing.assert_close(found.free_energy, whole.free_energy[t])


@pytest.mark.parametrize("memory", MEMORIES)
def test_the_control_of_a_step_is_known_to_its_prior(memory: str) -> None:
    """And to no prior before it."""
    model = made(memory, CONTROLS)
    x, _, u = data(CONTROLS)
    assert u is not None
    other = u.clone()
    other[:, 2] += 1.0

    def locations(controls: Tensor) -> list[Tensor]:
        pyro.set_rng_seed(0)
        trace = pyro.poutine.trace(model).get_trace(x, None, controls)
        return [trace.nodes[f"z_{t + 1}"]["fn"].mean for t in range(TIME)]

    pairs = [*zip(locations(u), locations(other), strict=True)]
    assert all(torch.equal(a, b) for a, b in pairs[:2])
    assert not torch.allclose(*pairs[2])


def test_frames_enter_through_latents_alone() -> None:
    """But in the LSTM: another past frame, the same draws, and only there another prior."""
    x, _, _ = data()
    other = x.clone()
    other[:, 0] = 1 - other[:, 0]
    for memory in MEMORIES:
        model = made(memory)
        draws = {f"z_{t + 1}": torch.randn(BATCH, LATENT).double() for t in range(TIME)}
        means = []
        for frames in (x, other):
            with pyro.condition(data=draws):
                trace = pyro.poutine.trace(model).get_trace(frames)
            means.append(trace.nodes["z_2"]["fn"].mean)
        assert torch.equal(*means) == (memory != "lstm")


def test_replay_gives_what_the_pass_read() -> None:
    model = made("dnc")
    guide = NeuralFilter(model, hidden=4).double()
    seen: list[Tensor] = []
    prepare = model.prepare

    def watched(state: Any, u_t: Tensor | None) -> Any:  # noqa: ANN401
        state = prepare(state, u_t)
        seen.append(state.context.weights.detach())
        return state

    object.__setattr__(model, "prepare", watched)
    x, _, _ = data()
    pyro.set_rng_seed(7)
    guide(x)
    read = seen[-TIME:]
    context = replay_memory(guide, x, seed=7)
    assert context.weights.shape == (BATCH, TIME, 2, TIME)
    torch.testing.assert_close(context.weights, torch.stack(read, 1))


def test_decoder_context_and_copy_are_options() -> None:
    x, _, _ = data()
    for options in ({"decoder_context": True}, {"copy": False}):
        model = made("ntm", **options)
        guide = NeuralFilter(model, hidden=4).double()
        agree(
            evaluated(FilteringELBO(), model, guide, x),
            evaluated(TraceMeanField_ELBO(), model, guide, x),
        )
    assert made("ntm", copy=False).copy is None


def test_a_decoder_of_the_caller() -> None:
    class Maps(nn.Module):
        def forward(self, logits: Tensor) -> Any:  # noqa: ANN401
            return dist.Bernoulli(logits=logits, validate_args=False).to_event(3)

    decoder = nn.Sequential(nn.Linear(LATENT, 16), nn.Unflatten(1, (1, 4, 4)), nn.Conv2d(1, 1, 1))
    model = GTMM(
        (1, 4, 4),
        latent=LATENT,
        memory="icm",
        memory_options={"slots": 4, "heads": 1, "hidden": 5},
        decoder=decoder,
        emission=Maps(),
    )
    assert model.generate(2, 3).shape == (2, 3, 1, 4, 4)
    guide = NeuralFilter(model, hidden=4)
    assert filter_sequences(guide, torch.ones(2, 3, 1, 4, 4)).free_energy.isfinite().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"memory": DNC(7, 4)}, "memory must have latent=3, as the model has; got 7"),
        ({"memory": DNC(3, 4, controls=1)}, "memory must have controls=0, .* got 1"),
        (
            {"memory": "dnc", "memory_options": {"slots": 4, "latent": 5}},
            "memory must have latent=3, as the model has; got 5",
        ),
        ({"memory": DNC(3, 4), "encoder": nn.Flatten(2)}, "encoder must be None .* got Flatten"),
        (
            {"memory": DNC(3, 4), "emission": nn.Identity(), "emission_options": {"width": 1.0}},
            "emission must be a name, or a module without emission_options",
        ),
        ({"memory": DNC(3, 4), "emission": None}, "emission must be a name, .* got NoneType"),
        ({"memory": DNC(3, 4), "log_scales": (3, -6)}, r"log_scales must be \(lower, upper\)"),
        ({"memory": DNC(3, 4), "prior": (0,)}, "units must be at least 1; got 0"),
        (
            {"memory": DNC(3, 4), "memory_options": {"slots": 4}},
            "memory_options are for a memory by name; got .'slots': 4.",
        ),
        (
            {"memory": "lstm", "memory_options": {"frame_features": 4}},
            "encoder must make features of the frames, of size 4",
        ),
        ({"memory": "dnc"}, "memory_options must hold slots for the memory 'dnc'; got {}"),
        ({"memory": "lstm"}, "memory_options must hold frame_features for the memory 'lstm'"),
        ({"memory": "dnc", "memory_options": {"slots": 0}}, "slots must be at least 1; got 0"),
        (
            {"memory": DNC(3, 4), "decoder": nn.Identity()},
            "emission must be a module beside a decoder; got 'bernoulli'",
        ),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GTMM(FRAME, latent=LATENT, **{**SIZES, **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"memory": DNC}, "memory must be a name or a Memory; got <class .*DNC"),
        ({"memory": None}, "memory must be a name or a Memory; got None"),
        ({"memory": DNC(3, 4), "prior": 64}, r"must be a sequence, such as \[64\]; got 64"),
    ],
)
def test_options_of_other_types_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        GTMM(FRAME, latent=LATENT, **{**SIZES, **options})


def test_features_of_frames_that_do_not_fit_are_named() -> None:
    model = made("lstm", encoder=nn.Flatten(1))
    with pytest.raises(ValueError, match=r"encoder must make features .* got shape"):
        filter_sequences(NeuralFilter(model, hidden=4).double(), data()[0])


def test_too_many_steps_for_a_memory_that_does_not_wrap_are_named() -> None:
    options = {"slots": TIME - 1, "hidden": 6, "ring": False}
    model = GTMM(FRAME, latent=LATENT, memory="icm", memory_options=options, **SIZES).double()
    guide = NeuralFilter(model, hidden=4).double()
    for run in (
        lambda: filter_sequences(guide, data()[0]),
        lambda: model.generate(batch=2, time=TIME),
        lambda: model(batch=2, time=TIME),
    ):
        with pytest.raises(ValueError, match="slots must be at least the number of steps, 5"):
            run()


def test_missing_controls_are_named() -> None:
    model = made("dnc", CONTROLS)
    with pytest.raises(ValueError, match="controls must have the size .* 2; got none"):
        NeuralFilter(model, hidden=4).double()(data()[0])
