from __future__ import annotations

import subprocess
import sys
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch

from pyro_seq.data import Batch
from pyro_seq.engines import LSTMRow, RLadder
from pyro_seq.evaluation import compare, elbo, iwae, plot_compare, posterior_draws, to_arviz
from pyro_seq.evaluation.bound import Bound
from pyro_seq.guides import NoLatents
from pyro_seq.models import EngineTasks
from tests.evaluation.pairs import FactorGuide, FactorModel, factor_batch, kvae_batch, kvae_pair


def bound(values: list[float] | torch.Tensor, name: str = "elbo", samples: int = 1) -> Bound:
    value = torch.as_tensor(values, dtype=torch.float64)
    steps = torch.full_like(value, 20.0)
    return Bound(name, samples, value, steps, value, value)


def spread(mean: float, seed: int, count: int = 200) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return mean + 30 * torch.randn(count, generator=generator, dtype=torch.float64)


def test_export_has_the_coordinates_and_the_numbers() -> None:
    model, guide = kvae_pair("lstm")
    batch = kvae_batch()
    data = to_arviz(model, guide, batch, samples=6, iwae_samples=4, seed=2)
    posterior = data["posterior"]
    assert posterior["a"].dims == ("chain", "draw", "sequence", "time", "a_dim_0")
    assert posterior["z"].shape == (1, 6, 5, 8, 4)
    assert posterior["a"].coords["sequence"].values.tolist() == list(range(5))
    assert posterior["a"].coords["time"].values.tolist() == list(range(8))
    draws = posterior_draws(model, guide, batch, samples=6, seed=2)
    np.testing.assert_array_equal(posterior["z"].values[0], draws.sites["z"].numpy())
    predicted = data["posterior_predictive"]["x"]
    assert predicted.dims[:4] == ("chain", "draw", "sequence", "time")
    np.testing.assert_array_equal(predicted.values[0], draws.frames["x"].numpy())
    seen = data["observed_data"]["x"].values
    np.testing.assert_array_equal(np.isnan(seen).all((2, 3, 4)), ~batch.mask.numpy())
    np.testing.assert_array_equal(seen[batch.mask], batch.x[batch.mask].numpy())
    np.testing.assert_array_equal(data["constant_data"]["mask"].values, batch.mask.numpy())
    terms = data["log_likelihood"]["x"]
    assert terms.dims == ("chain", "draw", "sequence") and terms.shape == (1, 1, 5)
    expected = iwae(model, guide, batch, samples=4, seed=2).per_sequence
    np.testing.assert_array_equal(terms.values[0, 0], expected.numpy())
    for attributes in (data.attrs, data["log_likelihood"].attrs):
        assert attributes["bound"] == "iwae" and attributes["bound_samples"] == 4
        assert "per sequence" in attributes["log_likelihood_terms"]


def test_export_without_frames_and_with_controls() -> None:
    model, guide = kvae_pair("mlp", controls=2)
    batch = kvae_batch()._replace(mask=None, controls=torch.ones(5, 8, 2))
    data = to_arviz(model, guide, batch, samples=2, iwae_samples=1, frames=False)
    groups = data.groups() if callable(data.groups) else [g.strip("/") for g in data.groups]
    assert "posterior_predictive" not in groups and "observed_data" not in groups
    assert data["constant_data"]["controls"].dims == ("sequence", "time", "controls_dim_0")
    assert data["constant_data"]["mask"].values.all()


def test_draws_of_a_kalman_pair_are_its_exact_posterior() -> None:
    """Static dynamics with nearly certain codes: moments of z and of hidden a are known."""
    model, guide = kvae_pair("static")
    guide.encoder.max_var = 1e-10
    batch = kvae_batch(2)
    draws = posterior_draws(model, guide, batch, samples=3000, seed=0, chunk=6000)
    smoothed = guide.smooth(*batch)
    z = draws.sites["z"].double()
    scale = smoothed.cov.diagonal(dim1=-2, dim2=-1).double().sqrt()
    assert float(((z.mean(0) - smoothed.loc) / scale).abs().max()) < 5 / 3000**0.5
    assert float((z.std(0) / scale - 1).abs().max()) < 0.08
    hidden = ~batch.mask
    a = draws.sites["a"].double()
    assert float(a[:, batch.mask].std(0).max()) < 1e-4 and float(a[:, hidden].std(0).min()) > 0.1
    with torch.no_grad():
        torch.testing.assert_close(model.decode(draws.sites["a"][7]), draws.frames["x"][7])


def test_draws_of_any_pair_are_its_sites() -> None:
    model, batch = FactorModel(), factor_batch()
    draws = posterior_draws(model, FactorGuide(model), batch, samples=4000, seed=0, chunk=5000)
    exact = model.posterior(*batch[:2])
    error = (draws.sites["z"].mean(0) - exact.mean.detach()).abs() / exact.stddev.detach()
    assert draws.sites["z"].shape == (4000, 7, 2) and float(error.max()) < 5 / 4000**0.5
    mean = torch.einsum("toz,sbz->sbto", model.weight.detach(), draws.sites["z"])
    torch.testing.assert_close(draws.frames["x"], mean)
    data = to_arviz(model, FactorGuide(model), batch, samples=3, iwae_samples=2)
    assert data["posterior"]["z"].dims == ("chain", "draw", "sequence", "z_dim_0")
    exact_terms = model.log_evidence(*batch[:2])
    np.testing.assert_allclose(data["log_likelihood"]["x"].values[0, 0], exact_terms, atol=1e-12)


def test_steps_that_a_guide_leaves_out_are_nan() -> None:
    from tests.training.toys import ToyGuide, ToyModel, toy_batch

    batch = toy_batch()
    draws = posterior_draws(ToyModel(), ToyGuide(), batch, samples=2)
    for value in (draws.sites["z"], draws.frames["x"]):
        assert torch.equal(value.isnan().all(-1), ~batch.mask.expand(2, -1, -1))
        assert torch.equal(value.isnan().any(-1), ~batch.mask.expand(2, -1, -1))


def test_comparison_by_hand() -> None:
    best, worse = spread(-2000.0, 0), spread(-2003.0, 1)
    table = compare({"worse": bound(worse), "best": bound(best)})
    assert list(table.index) == ["best", "worse"] and table["rank"].tolist() == [0, 1]
    n = 200
    difference = best - worse
    expected = {
        "elbo": [float(best.sum()), float(worse.sum())],
        "se": [float(n**0.5 * best.std()), float(n**0.5 * worse.std())],
        "elbo_diff": [0.0, float(difference.sum())],
        "dse": [0.0, float(n**0.5 * difference.std(correction=0))],
        "elbo_per_sequence": [float(best.mean()), float(worse.mean())],
        "elbo_per_frame": [float(best.mean()) / 20, float(worse.mean()) / 20],
    }
    for column, values in expected.items():
        assert table[column].tolist() == pytest.approx(values, rel=1e-9, abs=1e-9), column
    assert table["weight"].sum() == pytest.approx(1.0)
    assert table.attrs == {
        "bound": "elbo",
        "samples": 1,
        "sequences": 200,
        "scale": "log",
        "unit": "nats",
    }


def test_stacking_weights_survive_thousands_of_nats() -> None:
    """The weights maximise the mean log density of the mixture, far below what exp can show."""
    one = spread(-5000.0, 0)
    other = one + torch.where(torch.arange(200) < 150, 20.0, -20.0)
    table = compare({"one": bound(one), "other": bound(other)})
    assert table.loc["other", "weight"] == pytest.approx(0.75, abs=1e-3)


@pytest.mark.parametrize("method", ["stacking", "BB-pseudo-BMA", "pseudo-BMA"])
def test_every_method_weights_the_better_pair(method: str) -> None:
    better = spread(-2000.0, 0)
    table = compare({"a": bound(better - 5.0), "b": bound(better)}, method=method)
    assert table.index[0] == "b" and table.loc["b", "weight"] > 0.99
    assert table["se"].tolist() == pytest.approx([float(200**0.5 * better.std())] * 2)


def test_comparison_of_pairs_is_that_of_their_bounds() -> None:
    pairs = {name: kvae_pair(name) for name in ("lstm", "mlp", "static")}
    batch = kvae_batch()
    table = compare(pairs, batch, bound="iwae", samples=3, seed=5)
    again = compare({k: iwae(*v, batch, samples=3, seed=5) for k, v in pairs.items()})
    pd.testing.assert_frame_equal(table, again)
    assert "iwae" in table and table.attrs["samples"] == 3
    elbos = compare(pairs, batch, seed=5)
    for name, pair in pairs.items():
        value = elbo(*pair, batch, seed=5)
        assert elbos.loc[name, "elbo"] == pytest.approx(float(value.per_sequence.sum()))
        assert elbos.loc[name, "se"] == pytest.approx(5 * value.standard_error)


def test_one_pair_alone() -> None:
    table = compare({"only": kvae_pair()}, kvae_batch())
    assert table["weight"].tolist() == [1.0] and table["elbo_diff"].tolist() == [0.0]


@pytest.mark.parametrize(
    ("pairs", "options", "message"),
    [
        ({}, {}, "at least one pair"),
        ({"a": kvae_pair}, {}, "batch is needed"),
        ({"a": bound([0.0])}, {"bound": "loo"}, "bound must be one of elbo, iwae, fivo"),
        (
            {"a": bound([0.0, 1.0]), "b": bound([0.0])},
            {},
            "same sequences; got .* of 2 and .* of 1",
        ),
        (
            {"a": (None, None)},
            {"batch": torch.zeros(2, 3, 1), "bound": "fivo"},
            "samples must be g",
        ),
        ({"a": bound([0.0]), "b": bound([0.0], "iwae")}, {}, "of one kind"),
        ({"a": bound([0.0], "iwae", 2), "b": bound([0.0], "iwae", 3)}, {}, "of one kind"),
    ],
)
def test_what_cannot_be_compared(
    pairs: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        compare(pairs, **options)


def test_plot_shows_the_bounds() -> None:
    matplotlib.use("Agg")
    table = compare({"one": bound(spread(-2000.0, 0)), "two": bound(spread(-2010.0, 1))})
    before = table.copy()
    axes = plot_compare(table)
    assert axes.get_xlabel().startswith("ELBO") and "200 sequences (nats)" in axes.get_xlabel()
    assert {"one", "two"} <= {label.get_text() for label in axes.get_yticklabels()}
    pd.testing.assert_frame_equal(table, before)
    matplotlib.pyplot.close("all")


def test_importing_and_evaluating_loads_no_arviz() -> None:
    code = "import sys, pyro_seq.evaluation; print({'arviz', 'matplotlib'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_what_does_not_fit_is_named() -> None:
    tasks = EngineTasks(RLadder((1, 4, 4), [LSTMRow(2)]))
    with pytest.raises(ValueError, match="guide must draw latent sites.*; NoLatents has none"):
        to_arviz(tasks, NoLatents(), torch.rand(2, 3, 1, 4, 4))
    model, guide = kvae_pair("mlp", controls=2)
    batch = kvae_batch()
    with pytest.raises(ValueError, match="samples must be at least 1; got 0"):
        posterior_draws(model, guide, batch, samples=0)
    for controls, got in ((None, "None"), (torch.ones(5, 8, 1), r"\(5, 8, 1\)")):
        with pytest.raises(ValueError, match=rf"controls must be .*\(5, 8, 2\); got {got}"):
            to_arviz(model, guide, batch._replace(controls=controls), samples=1, iwae_samples=1)


def test_batch_forms_agree() -> None:
    pair, batch = kvae_pair(), kvae_batch()
    with_all = batch._replace(mask=torch.ones_like(batch.mask))
    alone, whole = (
        posterior_draws(*pair, form, samples=1, seed=0) for form in (batch.x, Batch(*with_all))
    )
    torch.testing.assert_close(alone.frames["x"], whole.frames["x"])
