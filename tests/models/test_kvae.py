"""The KVAE's three estimators, its masks, and what it refuses."""

from __future__ import annotations

from typing import Any

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import Predictive
from pyro.infer.inspect import get_model_relations
from torch import Tensor
from torch.distributions import kl_divergence

from pyro_seq.distributions import LinearGaussianSSM
from pyro_seq.guides import KalmanGuide
from pyro_seq.models import KVAE
from pyro_seq.models.kvae import ESTIMATORS
from pyro_seq.nn import StaticWeights

FRAME = (1, 5, 6)


def pair(**options: object) -> tuple[KVAE, KalmanGuide]:
    options = {"decoder": "mlp", "controls": 1, "dynamics_options": {"initial_var": 2.0}} | options
    model = KVAE(FRAME, **options).double()  # type: ignore[arg-type]
    return model, KalmanGuide(model, "mlp").double()


def data(batch: int = 3, time: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    x = (torch.rand(batch, time, *FRAME) < 0.4).double()
    mask = torch.rand(batch, time) > 0.3
    return x, mask, torch.randn(batch, time, 1).double()


def sequence_elbo(model: KVAE, guide: KalmanGuide, *batch: Tensor | None, seed: int) -> Tensor:
    """One draw of the bound per sequence, (batch,)."""
    pyro.set_rng_seed(seed)
    drawn = poutine.trace(guide).get_trace(*batch)
    scored = poutine.trace(poutine.replay(model, trace=drawn)).get_trace(*batch)
    drawn.compute_log_prob()
    scored.compute_log_prob()
    latent = sum(
        site["log_prob"]
        for site in scored.nodes.values()
        if site["type"] == "sample" and "log_prob" in site
    )
    used = sum(
        site["log_prob"]
        for site in drawn.nodes.values()
        if site["type"] == "sample" and "log_prob" in site
    )
    return (latent - used).detach()


@pytest.mark.parametrize("masked", [False, True])
def test_joint_equals_closed_form_for_every_draw(masked: bool) -> None:
    model, guide = pair()
    x, mask, controls = data()
    seen = mask if masked else None
    for seed in range(5):
        model.estimator = "closed_form"
        exact = sequence_elbo(model, guide, x, seen, controls, seed=seed)
        model.estimator = "joint"
        drawn = sequence_elbo(model, guide, x, seen, controls, seed=seed)
        torch.testing.assert_close(drawn, exact, rtol=0, atol=1e-8)


@pytest.mark.parametrize("masked", [False, True])
def test_marginal_falls_short_by_the_kl_of_the_product_from_the_joint(masked: bool) -> None:
    model, guide = pair()
    x, mask, controls = data(batch=2)
    seen = mask if masked else None
    with torch.no_grad():
        model.estimator = "closed_form"
        exact = sequence_elbo(model, guide, x, seen, controls, seed=1)
        pyro.set_rng_seed(1)
        a = guide.codes(x, seen).rsample()
        given = model.dynamics.condition(a, seen, controls)
        posterior = LinearGaussianSSM.from_model(given.model, time=5, mask=seen).posterior(a)
        gap = kl_divergence(posterior.marginals(), posterior)
        marginals = posterior.marginals()
        state = model.prior(2, 5, seen, controls).state(a)
        draws = 400
        z = marginals.sample((draws,))
        short = marginals.log_prob(z) - torch.stack([state.log_prob(one) for one in z])
        assert ((short.mean(0) - gap).abs() < 5 * short.std(0) / draws**0.5).all()
        model.estimator = "marginal"
        looser = torch.stack(
            [sequence_elbo(model, guide, x, seen, controls, seed=s) for s in range(20)]
        ).mean(0)
    assert (gap > 0).all()
    assert (looser < exact).all()


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_missing_frames_reach_neither_bound_nor_gradient(estimator: str, likelihood: str) -> None:
    model, guide = pair(estimator=estimator, likelihood=likelihood)
    x, mask, controls = data()
    mask[0] = False

    def run(fill: float) -> tuple[Tensor, list[Tensor | None]]:
        frames = torch.where(mask.view(3, 5, 1, 1, 1), x, fill)
        pyro.set_rng_seed(0)
        drawn = poutine.trace(guide).get_trace(frames, mask, controls)
        scored = poutine.trace(poutine.replay(model, trace=drawn)).get_trace(
            frames, mask, controls
        )
        bound = scored.log_prob_sum() - drawn.log_prob_sum()
        parameters = [*model.parameters(), *guide.parameters()]
        return bound, list(torch.autograd.grad(bound, parameters, allow_unused=True))

    bound, gradients = run(1.0)
    other, again = run(float("nan"))
    assert torch.equal(bound, other)
    for one, two in zip(gradients, again, strict=True):
        assert (one is None) == (two is None)
        assert one is None or torch.equal(one, two)


def test_a_full_mask_is_no_mask() -> None:
    model, guide = pair()
    x, mask, controls = data()
    full = sequence_elbo(model, guide, x, torch.ones_like(mask), controls, seed=3)
    torch.testing.assert_close(full, sequence_elbo(model, guide, x, None, controls, seed=3))


def test_padding_changes_nothing() -> None:
    """A sequence with two more missing frames at its end has the bound that it had."""
    model, guide = pair(controls=0)
    x, mask, _ = data()
    padded, padded_mask = (
        torch.cat([x, x[:, :2]], 1),
        torch.cat([mask, torch.zeros(3, 2, dtype=torch.bool)], 1),
    )
    a = guide.codes(x, mask).sample()
    longer = torch.cat([a, torch.randn(3, 2, 2).double()], 1)
    one = model.prior(3, 5, mask).log_prob(a) + model.frames(a, mask).log_prob(x)
    two = model.prior(3, 7, padded_mask).log_prob(longer) + model.frames(
        longer, padded_mask
    ).log_prob(padded)
    torch.testing.assert_close(one, two)


def test_generates_frames_and_codes() -> None:
    model, guide = pair()
    controls = torch.randn(4, 7, 1).double()
    generated = model.generate(4, 7, controls)
    assert generated.a.shape == (4, 7, 2)
    assert generated.frames.shape == (4, 7, *FRAME)
    assert ((generated.frames >= 0) & (generated.frames <= 1)).all()


def test_predictive_draws_new_frames() -> None:
    model, guide = pair()
    x, mask, controls = data()
    predictive = Predictive(
        poutine.uncondition(model), guide=guide, num_samples=6, return_sites=("a", "x")
    )
    drawn = predictive(x, None, controls)
    assert drawn["x"].shape == (6, 3, 5, *FRAME)
    assert drawn["a"].shape == (6, 3, 5, 2)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("masked", [False, True])
def test_particles_in_one_pass(estimator: str, masked: bool) -> None:
    """Vectorised particles have the bounds of the same draws taken one by one."""
    model, guide = pair(estimator=estimator)
    x, mask, controls = data()
    batch = (x, mask if masked else None, controls)

    def parallel(particles: int) -> tuple[poutine.Trace, poutine.Trace]:
        plate = pyro.plate("particles", particles, dim=-2)
        drawn = poutine.trace(plate(guide)).get_trace(*batch)
        return drawn, poutine.trace(plate(poutine.replay(model, trace=drawn))).get_trace(*batch)

    drawn, scored = parallel(4)
    drawn.compute_log_prob()
    scored.compute_log_prob()
    sites = ["a", "x"] if estimator == "closed_form" else ["a", "x", "z"]
    for k in range(4):
        values = {site: drawn.nodes[site]["value"][k] for site in sites if site != "x"}
        one = poutine.trace(poutine.condition(model, values)).get_trace(*batch)
        one.compute_log_prob()
        for site in sites:
            part = scored.nodes[site]["log_prob"][k]
            torch.testing.assert_close(part, one.nodes[site]["log_prob"])
    elbo = pyro.infer.Trace_ELBO(num_particles=3, vectorize_particles=True)
    assert torch.isfinite(torch.as_tensor(elbo.loss(model, guide, *batch)))


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("masked", [False, True])
def test_pyro_reads_the_structure(estimator: str, masked: bool) -> None:
    """What `pyro.render_model` draws: x depends on a, and so does z."""
    model, _ = pair(estimator=estimator)
    x, mask, controls = data()
    found = get_model_relations(model, (x, mask if masked else None, controls))
    depends = {"a": [], "x": ["a"]} | ({} if estimator == "closed_form" else {"z": ["a"]})
    assert found["sample_sample"] == depends
    assert found["observed"] == ["x"]


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_stock_bounds_agree(estimator: str) -> None:
    model, guide = pair(estimator=estimator)
    losses = []
    for bound in (pyro.infer.Trace_ELBO(), pyro.infer.TraceMeanField_ELBO()):
        pyro.set_rng_seed(0)
        losses.append(float(bound.loss(model, guide, *data())))
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)


def test_predictive_in_parallel() -> None:
    model, guide = pair()
    x, mask, controls = data()
    free = poutine.uncondition(model)
    drawn = Predictive(free, num_samples=4, parallel=True, return_sites=("a", "x"))(
        x, mask, controls
    )
    assert drawn["x"].shape == (4, 3, 5, *FRAME)
    assert drawn["a"].std(0).min() > 0


def test_prior_samples_have_its_density() -> None:
    """E[exp(log p - log r)] = 1 with r a wide Gaussian: importance sampling from r."""
    model, _ = pair(controls=0)
    with torch.no_grad():
        prior = model.prior(20_000, 2)
        a = prior.sample()
        wide = torch.distributions.Normal(a.mean(0), 1.5 * a.std(0))
        proposal = wide.sample((20_000,))
        weights = (prior.log_prob(proposal) - wide.log_prob(proposal).sum((-1, -2))).exp()
        second = (weights[:, None, None] * proposal.square()).mean(0)
    assert abs(float(weights.mean()) - 1) < 5 * float(weights.std()) / 20_000**0.5
    error = (weights[:, None, None] * proposal.square()).std(0) + a.square().std(0)
    assert ((second - a.square().mean(0)).abs() < 5 * error / 20_000**0.5).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"x": torch.zeros(3, 5, 6)},
            r"x must be \(batch, time, \*frame\) with frame = \(1, 5, 6\); got shape \(3, 5, 6\)",
        ),
        (
            {"mask": torch.ones(3, 4, dtype=torch.bool)},
            r"mask must be bool \(batch, time\) = \(3, 5\); got torch.bool of shape \(3, 4\)",
        ),
        ({"mask": torch.ones(3, 5)}, "mask must be bool .* got torch.float32"),
        (
            {"controls": torch.zeros(3, 4, 1)},
            r"controls must be .* = \(3, 5, 1\); got \(3, 4, 1\)",
        ),
        ({"controls": None}, "controls must be .* got None"),
        ({"controls": torch.full((3, 5, 1), float("nan"))}, "controls must be finite"),
        (
            {"x": torch.full((3, 5, *FRAME), torch.nan).double()},
            "x must be finite where it is observed",
        ),
        (
            {"x": torch.full((3, 5, *FRAME), 0.5).double()},
            "x must hold zeros and ones .* between 0.5 and 0.5",
        ),
    ],
)
def test_bad_input_is_named(change: dict[str, Tensor | None], message: str) -> None:
    model, guide = pair()
    x, _, controls = data()
    arguments: dict[str, Tensor | None] = {"x": x, "mask": None, "controls": controls} | change
    for module in (model, guide):
        with pytest.raises(ValueError, match=message):
            module(**arguments)


def test_frames_of_another_type_are_named() -> None:
    model, guide = pair()
    x, _, controls = data()
    for module in (model, guide):
        for wrong, got in ((x.float(), "torch.float32"), (x.byte(), "torch.uint8")):
            with pytest.raises(TypeError, match=rf"x must have the type .*float64; got {got}"):
                module(wrong, None, controls)
        with pytest.raises(TypeError, match=r"x must be a tensor; got ndarray. Use torch.as_tens"):
            module(x.numpy(), None, controls)


def test_nothing_is_generated_without_the_controls() -> None:
    model, _ = pair()
    with pytest.raises(ValueError, match=r"controls must be .* = \(2, 4, 1\); got None"):
        model.generate(batch=2, time=4)
    with pytest.raises(ValueError, match=r"= \(2, 4, 1\); got \(2, 5, 1\)"):
        model.generate(batch=2, time=4, controls=torch.zeros(2, 5, 1).double())
    with pytest.raises(ValueError, match="batch and time must be at least 1; got 2 and 0"):
        model.generate(batch=2, time=0)
    free, _ = pair(controls=0)
    with pytest.raises(ValueError, match="controls must be None, since the model was built witho"):
        free.generate(batch=2, time=4, controls=torch.zeros(2, 4, 1).double())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"modes": 0, "weights": "static"}, "modes must be positive; got 0"),
        ({"state": -1}, "state must be positive; got -1"),
        ({"pixel_var": 0.0}, "pixel_var must be positive; got 0.0"),
        ({"dynamics_options": {"emission_var": -1.0}}, "emission_var must be positive; got -1.0"),
        ({"weights": "mlp", "weights_options": {"window": 0}}, "window must be at least 1; got 0"),
        (
            {"weights": StaticWeights(2, 3), "weights_options": {"hidden": 5}},
            "weights_options must be None when weights is a module",
        ),
        (
            {"decoder": torch.nn.Linear(2, 30), "decoder_options": {"hidden": 5}},
            "decoder_options must be None when decoder is a module",
        ),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        KVAE(FRAME, **{"decoder": "mlp", **options})


@pytest.mark.parametrize("network", [torch.nn.Linear(2, 3), StaticWeights])
def test_only_weight_networks_mix_the_modes(network: Any) -> None:  # noqa: ANN401
    with pytest.raises(TypeError, match="network must be a WeightNetwork.* got (Linear|StaticW)"):
        KVAE(FRAME, decoder="mlp", weights=network)


def test_weights_of_other_modes_are_named() -> None:
    model = KVAE(FRAME, decoder="mlp", weights=StaticWeights(2, 5))
    with pytest.raises(ValueError, match=r"weights \(\*, modes\) = \(\*, 3\); got shape .*5\)"):
        model.generate(batch=2, time=3)


def test_a_decoder_of_another_shape_is_named() -> None:
    model = KVAE(FRAME, decoder=torch.nn.Linear(2, 30))
    with pytest.raises(
        ValueError, match=r"decoder must map .* to \(4, 1, 5, 6\); got .* \(4, 30\)"
    ):
        model.decode(torch.zeros(4, 2))


def test_bad_names_are_named() -> None:
    with pytest.raises(
        ValueError, match="estimator must be one of closed_form, joint, marginal; got 'exact'"
    ):
        KVAE(FRAME, decoder="mlp", estimator="exact")
    with pytest.raises(
        ValueError, match="likelihood must be one of bernoulli, gaussian; got 'poisson'"
    ):
        KVAE(FRAME, likelihood="poisson")
    with pytest.raises(ValueError, match="decoder must be one of conv, mlp; got 'resnet'"):
        KVAE(FRAME, decoder="resnet")
    with pytest.raises(LookupError, match="gru"):
        KVAE(FRAME, weights="gru")
