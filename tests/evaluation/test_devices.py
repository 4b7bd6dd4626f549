from __future__ import annotations

import pytest
import torch

from pyro_seq.evaluation import elbo, forecast, imputation_table, impute, posterior_draws
from pyro_seq.evaluation.plots import plot_imputed_frames, plot_trajectories, plot_weights
from tests.evaluation.pairs import kvae_batch, kvae_pair

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("where", ["cpu", "cuda"])
def test_a_pair_on_the_gpu_gives_the_numbers_of_the_cpu(where: str) -> None:
    """The batch may lie with the pair or on the host; results come back to where it lies."""
    model, guide = kvae_pair("lstm")
    guide.encoder.max_var = 1e-10  # codes that hardly depend on the random numbers
    batch = kvae_batch()
    table = {"gaps": (1, 3), "drop_probabilities": (0.5,), "seed": 0, "observed_start": 2}
    expected = [
        elbo(model, guide, batch).reconstruction.float(),
        impute(guide, *batch[:2]),
        forecast(guide, batch.x, 3, batch.mask).frames,
        torch.tensor(list(imputation_table(model, guide, batch, **table).values())),
    ]
    model, guide, batch = model.cuda(), guide.cuda(), batch.to(where)
    found = [
        elbo(model, guide, batch).reconstruction.float(),
        impute(guide, *batch[:2]),
        forecast(guide, batch.x, 3, batch.mask).frames,
        torch.tensor(list(imputation_table(model, guide, batch, **table).values())),
    ]
    assert found[1].device.type == found[2].device.type == where
    for one, two in zip(found, expected, strict=True):
        torch.testing.assert_close(one.cpu(), two, rtol=1e-3, atol=1e-3)
    assert forecast(guide, batch.x, 3, samples=2, seed=0).a.device.type == where
    assert posterior_draws(model, guide, batch).sites["z"].device.type == "cpu"


@pytest.mark.parametrize("weights", ["lstm", "mlp"])
def test_plots_of_a_pair_on_the_gpu(weights: str) -> None:
    plt = pytest.importorskip("matplotlib.pyplot")
    _, guide = (part.cuda() for part in kvae_pair(weights))
    x, mask, _ = kvae_batch()
    plot_imputed_frames(guide, x, mask)
    plot_trajectories(guide, x, mask)
    plot_weights(guide, x, mask, points=5)
    plt.close("all")


def test_a_seed_leaves_the_random_state_of_the_gpu_alone() -> None:
    model, guide = (part.cuda() for part in kvae_pair())
    before = torch.cuda.get_rng_state()
    first = elbo(model, guide, kvae_batch(), seed=3)
    assert torch.equal(torch.cuda.get_rng_state(), before)
    assert torch.equal(elbo(model, guide, kvae_batch(), seed=3).per_sequence, first.per_sequence)
