"""Pyro's own SVI trains the same pairs, and its shape is offered over a loss module."""

from __future__ import annotations

import pyro
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO

from pyro_seq.data import Batch
from pyro_seq.training import SVI, SequenceLoss, fit
from tests.training.toys import ToyBatches, toy_batch, toy_pair


def weights(*modules: torch.nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for module in modules for p in module.parameters()]


def whole_batch(seed: int) -> Batch:
    return toy_batch(seed)._replace(mask=None)


@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceMeanField_ELBO])
def test_equals_genuine_svi(elbo: type[Trace_ELBO]) -> None:
    """Same seeds, same losses: a mean over n steps with rate r is a sum with rate r / n."""
    torch.set_default_dtype(torch.float64)
    units, rate = 30, 1e-2
    pair, genuine_pair = toy_pair(), toy_pair()
    loss = SequenceLoss(*pair, elbo())
    svi = SVI(loss, torch.optim.SGD(loss.parameters(), rate, momentum=0.9))
    genuine = pyro.infer.SVI(
        *genuine_pair, pyro.optim.SGD({"lr": rate / units, "momentum": 0.9}), elbo()
    )
    start = weights(*pair)
    for step in range(8):
        batch = whole_batch(step)
        values = []
        for call in (svi.step, lambda b: genuine.step(*b) / units):
            pyro.set_rng_seed(step)
            values.append(call(batch))
        assert values[0] == pytest.approx(values[1], rel=1e-12)
    torch.testing.assert_close(weights(*pair), weights(*genuine_pair))
    assert not any(map(torch.equal, start, weights(*pair)))
    pyro.set_rng_seed(0)
    value = svi.evaluate_loss(batch)
    pyro.set_rng_seed(0)
    assert value == pytest.approx(genuine.evaluate_loss(*batch) / units, rel=1e-12)


def test_genuine_svi_with_adam_and_clipping_trains_ragged_batches() -> None:
    model, guide = toy_pair()
    svi = pyro.infer.SVI(model, guide, pyro.optim.ClippedAdam({"lr": 0.02}), Trace_ELBO())
    losses = [svi.step(*toy_batch(step)) for step in range(60)]
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])


def test_two_pairs_of_one_class_under_the_global_store() -> None:
    """Their root names differ, so that each trains as it would alone."""

    def train(seeds: list[int]) -> list[list[torch.Tensor]]:
        pyro.clear_param_store()
        pairs = [toy_pair(seed) for seed in seeds]
        inferences = [
            pyro.infer.SVI(*pair, pyro.optim.SGD({"lr": 1e-3}), Trace_ELBO()) for pair in pairs
        ]
        for step in range(3):
            for svi in inferences:
                pyro.set_rng_seed(step)
                svi.step(*toy_batch(step))
        return [weights(*pair) for pair in pairs]

    together = train([1, 2])
    apart = [train([1])[0], train([2])[0]]
    for a, b in zip(together, apart, strict=True):
        assert all(map(torch.equal, a, b))
    assert not any(map(torch.equal, *together))


def test_fit_goes_on_where_genuine_svi_stopped_and_back() -> None:
    """The parameters in the store are those of the modules, whoever trains them."""
    model, guide = toy_pair()
    svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
    svi.step(*toy_batch())
    loss = SequenceLoss(model, guide)
    before = weights(loss)
    optimizer = torch.optim.SGD(loss.parameters(), 1e-3)
    fit(loss, ToyBatches(), epochs=1, optimizer=optimizer)
    assert not any(map(torch.equal, before, weights(loss)))
    store = dict(pyro.get_param_store().named_parameters())
    for name, parameter in model.emission.named_parameters():
        assert torch.equal(store[f"{model._pyro_name}.emission$$${name}"], parameter)
    before = weights(loss)
    svi.step(*toy_batch())
    assert not any(map(torch.equal, before, weights(loss)))


def test_a_batch_or_its_parts() -> None:
    """The arguments of Pyro's own class, and a batch, give the same losses."""
    x, mask, controls = toy_batch()
    values = []
    for arguments in ((toy_batch(),), ((x, mask, controls),), (x, mask, controls), (x, mask)):
        loss = SequenceLoss(*toy_pair())
        svi = SVI(loss, torch.optim.SGD(loss.parameters(), 0.1))
        pyro.set_rng_seed(0)
        values.append((svi.evaluate_loss(*arguments), svi.step(*arguments)))
    assert len(set(values)) == 1


def test_evaluation_changes_nothing() -> None:
    loss = SequenceLoss(*toy_pair())
    svi = SVI(loss, torch.optim.SGD(loss.parameters(), 0.1), clip_norm=1.0)
    loss.train()
    before = weights(loss)
    assert isinstance(svi.evaluate_loss(toy_batch()), float) and loss.training
    with pytest.raises(RuntimeError):  # one dimension too few
        svi.evaluate_loss(toy_batch().x[0])
    assert loss.training
    assert all(map(torch.equal, before, weights(loss)))
    svi.step(toy_batch())
    size = sum(((a - b) ** 2).sum() for a, b in zip(before, weights(loss), strict=True)).sqrt()
    assert size == pytest.approx(0.1, rel=1e-4), "the gradient was clipped to norm 1"
