"""Draws, forecasts, export and particle bounds of step models, by linear-Gaussian ones."""

from __future__ import annotations

import numpy as np
import pyro
import pytest
import torch
from torch import Tensor

from pyro_seq.data import Batch
from pyro_seq.evaluation import (
    compare,
    elbo,
    fivo,
    forecast,
    free_energy,
    impute,
    iwae,
    posterior_draws,
    to_arviz,
)
from pyro_seq.guides import AVF, BackwardSmoother, Bootstrap, NeuralFilter
from pyro_seq.inference import FilteringELBO
from pyro_seq.models import SRNN
from tests.evaluation.pairs import FactorGuide, FactorModel, factor_batch
from tests.guides.unseen_model import Traffic, traffic
from tests.inference.pairs import (
    ExactFilter,
    LinearStep,
    SplitLinearStep,
    linear_batch,
)


def pair(controls: int = 0, split: bool = False) -> tuple[LinearStep, ExactFilter]:
    model = (SplitLinearStep if split else LinearStep)(controls)
    return model, ExactFilter(model)


def evidence(model: LinearStep, batch: Batch) -> Tensor:
    return model.parts.evidence(batch).log_prob(torch.nan_to_num(batch.x)).detach()


@pytest.mark.parametrize("split", [False, True])
def test_particle_bound_of_each_sequence_is_near_its_evidence(split: bool) -> None:
    model, _ = pair(2, split)
    batch = linear_batch(model, masked=True, time=15)
    bound = fivo(model, Bootstrap(model), batch, particles=800, seed=0, chunk=3 * 800)
    torch.testing.assert_close(bound.per_sequence, evidence(model, batch), rtol=0, atol=0.7)
    assert torch.equal(bound.steps, batch.mask.sum(1).double())
    assert bound.name == "fivo" and bound.samples == 800
    loose = iwae(model, Bootstrap(model), batch, samples=800, seed=0)
    assert loose.mean < bound.mean - 1
    same = fivo(
        model, Bootstrap(model), batch, particles=50, resample_below=0, seed=0, chunk=50 * 6
    )
    other = iwae(model, Bootstrap(model), batch, samples=50, seed=0, chunk=50 * 6)
    torch.testing.assert_close(same.per_sequence, other.per_sequence)
    torch.testing.assert_close(same.divergence, other.divergence)


def test_particles_are_for_step_models() -> None:
    model = FactorModel()
    with pytest.raises(TypeError, match="fivo needs a StepModel and a FilteringGuide; got Factor"):
        fivo(model, FactorGuide(model), factor_batch(), particles=2)
    with pytest.raises(ValueError, match=r"samples \(particles\) must be at least 1"):
        fivo(*pair(), torch.zeros(1, 2, 3).double(), particles=0)


def test_compare_by_the_particle_bound() -> None:
    model, guide = pair()
    batch = linear_batch(model)
    pairs = {"exact": (model, guide), "bootstrap": (model, Bootstrap(model))}
    table = compare(pairs, batch, bound="fivo", samples=8)
    expected = fivo(model, guide, batch, particles=8, seed=0).per_sequence.sum()
    assert table.loc["exact", "fivo"] == pytest.approx(float(expected))
    with pytest.raises(ValueError, match="must be of one kind"):
        compare({"a": fivo(*pair(), batch, particles=2), "b": fivo(*pair(), batch, particles=3)})


def test_draws_are_filtered_states_over_time() -> None:
    model, guide = pair(1)
    batch = linear_batch(model, masked=True)
    draws = posterior_draws(model, guide, batch, samples=4000, seed=0, chunk=6 * 1000)
    assert draws.sites["z"].shape == (4000, 6, 5, 2) and set(draws.sites) == {"z"}
    torch.testing.assert_close(
        draws.frames["x"], (draws.sites["z"] @ model.parts.C.mT).detach(), rtol=1e-6, atol=1e-6
    )
    p = model.parts
    prior = p.ahead(p.start, batch.controls[:, 0])
    exact = p.exact(prior, torch.nan_to_num(batch.x[:, 0]))
    seen = batch.mask[:, 0, None]
    loc = torch.where(seen, exact.mean, prior).detach()
    scale = torch.where(seen, exact.stddev, p.q).detach()
    first = draws.sites["z"][:, :, 0]
    assert float(((first.mean(0) - loc) / scale).abs().max()) < 5 / 4000**0.5
    torch.testing.assert_close(first.std(0), scale, rtol=0.06, atol=0)
    band = draws.band("z", 0.8)
    torch.testing.assert_close(band.mean, draws.sites["z"].mean(0))
    outside = (draws.sites["z"] < band.lower) | (draws.sites["z"] > band.upper)
    torch.testing.assert_close(
        outside.double().mean(0), torch.full((6, 5, 2), 0.2).double(), rtol=0, atol=2e-3
    )
    assert draws.band("x").upper.shape == (6, 5, 3)
    with pytest.raises(ValueError, match="name must be one of z, x; got 'a'"):
        draws.band("a")
    with pytest.raises(ValueError, match="probability must be between 0 and 1"):
        draws.band("z", 1.0)


@pytest.mark.parametrize("guide", [NeuralFilter, AVF])
def test_export_has_time(guide: type) -> None:
    torch.manual_seed(0)
    model = SRNN(3, latent=2, hidden=3, prior=[4], decoder=[4], emission="normal").double()
    made = guide(model, hidden=4 if guide is NeuralFilter else [4]).double()
    batch = linear_batch(LinearStep(), masked=True)
    data = to_arviz(model, made, batch, samples=3, iwae_samples=4, seed=1)
    assert data["posterior"]["z"].dims == ("chain", "draw", "sequence", "time", "z_dim_0")
    draws = posterior_draws(model, made, batch, samples=3, seed=1)
    np.testing.assert_array_equal(data["posterior"]["z"].values[0], draws.sites["z"].numpy())
    assert data["posterior_predictive"]["x"].shape == (1, 3, 6, 5, 3)
    expected = iwae(model, made, batch, samples=4, seed=1).per_sequence
    np.testing.assert_array_equal(data["log_likelihood"]["x"].values[0, 0], expected.numpy())
    assert set(data["posterior"].data_vars) == {"z"}


@pytest.mark.parametrize("split", [False, True])
def test_futures_have_the_moments_of_the_exact_forecast(split: bool) -> None:
    """After one frame, whose local posterior is the posterior."""
    model, guide = pair(2, split)
    whole = linear_batch(model, sequences=2, time=4)
    first, rest = whole.x[:, :1], Batch(whole.x[:, 1:], None, whole.controls[:, 1:])
    draws = forecast(guide, first, 3, controls=whole.controls, samples=6000, seed=0)
    assert draws.a is None and draws.frames.shape == (6000, 2, 3, 3)
    begin = Batch(first, None, whole.controls[:, :1])
    joint = model.parts.evidence(begin).forecast(first, model.parts.evidence(rest))
    loc, variance = joint.mean.detach(), joint.variance.detach()
    error = (draws.frames.mean(0) - loc) / variance.sqrt()
    assert float(error.abs().max()) < 5 / 6000**0.5
    torch.testing.assert_close(draws.frames.var(0), variance, rtol=0.12, atol=0)
    step = slice(None), slice(None), slice(0, 2), 0
    found = torch.stack([pairs.mT.corrcoef() for pairs in draws.frames[step].unbind(1)])
    assert float(found[:, 0, 1].abs().min()) > 0.02  # one future is one path


@pytest.mark.parametrize("chunk", [1, 256])
def test_without_noise_the_future_follows_from_the_context(chunk: int) -> None:
    model, guide = pair(1)
    with torch.no_grad():
        model.parts.q.fill_(1e-6)
        model.parts.r.fill_(1e-6)
    whole = linear_batch(model, time=9)
    mask = torch.ones(6, 6, dtype=torch.bool)
    mask[1, 4:], mask[2, 0] = False, False
    context = torch.where(mask[..., None], whole.x[:, :6], torch.nan)
    futures = forecast(
        guide, context, 3, mask, whole.controls, samples=2, seed=0, chunk=chunk
    ).frames
    torch.testing.assert_close(
        futures, whole.x[None, :, 6:].expand(2, -1, -1, -1), rtol=0, atol=1e-3
    )


def test_what_cannot_be_forecast_is_named() -> None:
    model, guide = pair(1)
    batch = linear_batch(model)
    with pytest.raises(ValueError, match="samples must be the number of futures"):
        forecast(guide, batch.x, 2, controls=batch.controls)
    with pytest.raises(ValueError, match="controls must cover the context and the forecast"):
        forecast(guide, batch.x, 2, controls=batch.controls, samples=2)
    with pytest.raises(ValueError, match="controls must cover .* got None"):
        forecast(guide, batch.x, 2, samples=2)


@pytest.mark.parametrize("local", [False, True])
def test_an_unseen_model_trained_by_svi(local: bool) -> None:
    """Three latents, one of them a number, and a constrained parameter, in both stores."""
    batch = Batch(*traffic())
    with pyro.settings.context(module_local_params=local):
        model = Traffic()
        guide = NeuralFilter(model, hidden=4)
        svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), FilteringELBO())
        before = free_energy(model, guide, batch, seed=0)
        svi.step(*batch)
        other = Traffic()
        other.load_state_dict(model.state_dict())
        other.rate = torch.full((2,), 9.0)
        found = [elbo(model, guide, batch, seed=0).mean]
        apart = NeuralFilter(other, hidden=4)
        apart.load_state_dict(guide.state_dict())
        found.append(elbo(other, apart, batch, seed=0).mean)
        found.append(elbo(model, guide, batch, seed=0).mean)
        assert found[0] == found[2] != found[1]
        assert found[0] != pytest.approx(before.bound().mean)
        assert fivo(model, guide, batch, particles=50, seed=0).mean > found[0]
        shapes = {k: v.shape[1:] for k, v in posterior_draws(model, guide, batch).sites.items()}
        assert shapes == {"spread": (4, 5, 2), "flow": (4, 5, 2), "gain": (4, 5)}
        u = torch.randn(4, 7, 2)
        futures = forecast(guide, batch.x, 2, batch.mask, u, samples=3)
        assert futures.frames.shape == (3, 4, 2, 3) and (futures.frames >= 0).all()


def test_one_step_of_the_exact_filter_leaves_no_gap() -> None:
    model, guide = pair()
    batch = linear_batch(model, sequences=4, time=1)
    bound = iwae(model, guide, batch, samples=1, seed=0)
    torch.testing.assert_close(bound.per_sequence, evidence(model, batch))
    closed = elbo(model, guide, batch, particles=4000, seed=0)
    assert closed.mean == pytest.approx(float(evidence(model, batch).mean()), abs=0.05)


def test_imputed_frames_are_the_exact_predictions() -> None:
    """Only the first frame is seen, and its q is exact: no later weight is missing."""
    model, guide = pair(2)
    x, _, controls = linear_batch(model)
    mask = torch.zeros(x.shape[:2], dtype=torch.bool)
    mask[:, 0] = True
    hidden = torch.where(mask.unsqueeze(-1), x, torch.nan)
    found = impute(
        guide, hidden, mask, controls, how="filter", samples=20_000, seed=0, chunk=10**6
    )
    states = model.parts.evidence((x, mask, controls)).posterior(x).smoothed.loc
    torch.testing.assert_close(found, (states @ model.parts.C.mT).detach(), rtol=0, atol=0.06)
    again = impute(guide, x, mask, controls, how="filter", samples=20, seed=1)
    other = impute(guide, hidden, mask, controls, how="filter", samples=20, seed=1)
    assert torch.equal(again, other)


def test_guides_impute_in_their_direction() -> None:
    model = SRNN(3, latent=2, hidden=4, prior=[4], decoder=[4])
    x, mask = torch.rand(2, 5, 3), torch.rand(2, 5) > 0.4
    smoother = BackwardSmoother(model, units=4, hidden=4)
    frames = impute(smoother, x, mask, how="smooth", samples=3, seed=0)
    assert frames.shape == x.shape and ((frames > 0) & (frames < 1)).all()
    with pytest.raises(TypeError, match="how must be 'smooth' for BackwardSmoother, which reads"):
        impute(smoother, x, mask, how="filter")
    with pytest.raises(TypeError, match="how must be 'filter' for AVF, .*; got 'smooth'"):
        impute(AVF(model, hidden=4), x, mask, how="smooth")
    guide = AVF(model, hidden=4)
    for one, how in ((smoother, "smooth"), (guide, "filter")):  # by default as the guide can
        named = impute(one, x, mask, how=how, samples=2, seed=0)
        assert torch.equal(impute(one, x, mask, samples=2, seed=0), named)
