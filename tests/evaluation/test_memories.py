"""Ratios of divergences, the replay of a memory, and their plots."""

from __future__ import annotations

import matplotlib
import pytest
import torch

from pyro_seq.data import Vectors, recall
from pyro_seq.evaluation import FreeEnergy
from pyro_seq.evaluation.memories import (
    continuation,
    nearer_share,
    plot_divergence,
    plot_read_weights,
    recall_ratio,
    replay_memory,
)
from pyro_seq.guides import NeuralFilter
from pyro_seq.models import DMM, GTMM
from pyro_seq.nn.mlp import FlatFrames

matplotlib.use("Agg")


def energy(divergence: torch.Tensor) -> FreeEnergy:
    mask = torch.ones(divergence.shape, dtype=torch.bool)
    return FreeEnergy(torch.zeros_like(divergence), divergence, mask, 1)


def test_ratio_by_hand() -> None:
    divergence = torch.tensor([[9.0, 4.0, 1.0, 2.0], [9.0, 6.0, 3.0, 4.0]]).double()
    recalled = torch.tensor([[False, False, True, True], [False, False, False, True]])
    before = torch.tensor([[False, True, False, False]]).expand(2, 4)
    found = recall_ratio(energy(divergence), recalled=recalled, before=before)
    assert found.kl_recall == pytest.approx((1 + 2 + 4) / 3)
    assert found.kl_before == pytest.approx(5.0)
    assert found.rho == pytest.approx(7 / 15)
    assert found.last_frame_kl == pytest.approx(3.0)


def test_standard_error_is_the_scatter_of_fresh_samples() -> None:
    torch.manual_seed(0)
    ratios, errors = [], []
    recalled = torch.tensor([False, False, True]).expand(40, 3)
    for _ in range(400):
        divergence = torch.rand(40, 1).double() * torch.tensor([4.0, 4.0, 1.0])
        divergence = divergence + torch.rand(40, 3)
        found = recall_ratio(energy(divergence), recalled=recalled, before=~recalled)
        ratios.append(found.rho)
        errors.append(found.rho_se)
    scatter = torch.tensor(ratios).std().item()
    assert torch.tensor(errors).mean().item() == pytest.approx(scatter, rel=0.12)


@pytest.mark.parametrize(
    ("recalled", "message"),
    [
        (torch.zeros(2, 3, dtype=torch.bool), "recalled must be bool .* got torch.bool .2, 3."),
        (torch.zeros(2, 4), "recalled must be bool .* got torch.float32"),
        (torch.zeros(2, 4, dtype=torch.bool), "recalled must hold one step or more"),
    ],
)
def test_bad_steps_are_named(recalled: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        before = torch.ones(2, 4, dtype=torch.bool)
        recall_ratio(energy(torch.ones(2, 4)), recalled=recalled, before=before)


def test_steps_without_a_frame_are_no_recall() -> None:
    """Their divergence is zero."""
    mask = torch.tensor([[True, True, True], [False, True, True], [True, True, False]])
    kl = torch.tensor([[1.0, 4.0, 1.0], [0.0, 4.0, 3.0], [1.0, 4.0, 0.0]]).double()
    found = energy(kl)._replace(mask=mask)
    last = torch.tensor([[False, False, True]] * 3)
    middle = last.roll(-1, 1)
    with pytest.raises(ValueError, match="recalled must be steps with a frame; of 1 it is miss"):
        recall_ratio(found, recalled=last, before=middle)
    ratio = recall_ratio(found, recalled=last & mask, before=middle)
    assert (ratio.rho, ratio.last_frame_kl) == (0.5, 2.0)


def pair(memory: str) -> NeuralFilter:
    own = {"frame_features": 3} if memory == "lstm" else {"slots": 4, "heads": 2}
    encoder = FlatFrames() if memory == "lstm" else None
    model = GTMM(3, latent=2, memory=memory, memory_options=own, encoder=encoder)
    return NeuralFilter(model, hidden=4)


def test_replay_is_seeded_and_leaves_the_random_numbers_alone() -> None:
    guide, x = pair("introspection"), torch.ones(5, 4, 3)
    torch.manual_seed(1)
    first = replay_memory(guide, x, seed=3)
    after = torch.rand(())
    torch.manual_seed(1)
    assert torch.equal(after, torch.rand(()))
    assert torch.equal(first.features, replay_memory(guide, x, seed=3).features)
    assert not torch.equal(first.reads, replay_memory(guide, x, seed=4).reads)
    torch.testing.assert_close(first.weights.sum(-1), torch.ones(5, 4, 2))


def test_replay_names_what_it_cannot_do() -> None:
    x, mask = torch.ones(5, 4, 3), torch.ones(5, 4, dtype=torch.bool)
    with pytest.raises(TypeError, match="guide must be of a GTMM; its model is a DMM"):
        replay_memory(NeuralFilter(DMM(3, latent=2), hidden=4), x)
    guide = pair("lstm")
    for call in (lambda: replay_memory(guide.model, x), lambda: continuation(guide.model, x, 2)):
        with pytest.raises(TypeError, match="guide must be a filtering guide; got GTMM"):
            call()
    assert replay_memory(guide, (x, mask, None)).features.isfinite().all()
    mask[0, 2] = False
    with pytest.raises(ValueError, match="mask must be True everywhere for a memory that reads"):
        replay_memory(guide, (x, mask, None))
    sequences = recall("perfect", Vectors(3), 4, length=3, recalled=1, seed=0)
    with pytest.raises(TypeError, match="got a Recall. Use its .batch"):
        replay_memory(pair("dnc"), sequences)
    assert replay_memory(pair("lstm"), x).weights.shape == (5, 4, 0, 0)


@pytest.mark.parametrize("memory", ["icm", "lstm"])
def test_a_continuation_reads_no_frame_after_those_shown(memory: str) -> None:
    guide, x = pair(memory), torch.rand(4, 4, 3)
    made = continuation(guide, x, 2, seed=3)
    other = torch.cat([x[:, :2], torch.full_like(x[:, 2:], torch.nan)], 1)
    assert torch.equal(made, continuation(guide, other, 2, seed=3))
    assert torch.equal(made[:, :2], x[:, :2]) and made.shape == x.shape
    assert not torch.equal(made, continuation(guide, x, 2, seed=4))
    assert torch.equal(continuation(guide, x, 4), x)


def test_a_continuation_goes_on_from_the_latents_that_it_shows() -> None:
    """A memory that copies its last latent, from a prior that is the copy: all frames alike."""
    guide = pair("introspection")
    model, memory = guide.model, guide.model.memory
    with torch.no_grad():
        model.prior_head.parameters_of.weight.zero_()
        model.prior_head.parameters_of.bias[:2], model.prior_head.parameters_of.bias[2:] = 0, -9
        memory.interface.rows_of("gates", memory.interface.layer.weight).zero_()
        memory.interface.rows_of("gates", memory.interface.layer.bias).fill_(30)
        memory.places.weight.zero_()
        memory.places.bias.copy_(torch.tensor([-30.0, 1, -30, -30]).repeat(2))  # that of step 1
        model.copy.weight.copy_(torch.eye(2).repeat(1, 2) / 2)
        model.emit.logits.weight.mul_(3)
    made = continuation(guide, torch.rand(5, 4, 3), 1)
    shown = continuation(guide, torch.rand(5, 4, 3), 0)
    torch.testing.assert_close(made[:, 1], made[:, 3], atol=0.02, rtol=0)
    torch.testing.assert_close(shown[:, 0], shown[:, 2], atol=0.05, rtol=0)
    assert made[:, 1].std(0).max() > 0.05  # and sequences differ


def test_a_continuation_names_a_step_that_is_not_there() -> None:
    with pytest.raises(ValueError, match="shown must be a number of steps from 0 to 4; got 5"):
        continuation(pair("icm"), torch.ones(1, 4, 3), 5)
    with pytest.raises(TypeError, match=r"shown must be an int; got 1\.5"):
        continuation(pair("icm"), torch.ones(1, 4, 3), 1.5)  # type: ignore[arg-type]


def test_nearer_share_is_that_of_a_loop() -> None:
    torch.manual_seed(0)
    frames, own = torch.randn(5, 3, 2, 2), torch.randn(5, 3, 2, 2)
    wins = [
        (frames[i, t] - own[i, t]).norm() < (frames[i, t] - own[j, t]).norm()
        for t in range(3) for i in range(5) for j in range(5) if i != j
    ]  # fmt: skip
    assert nearer_share(frames, own) == pytest.approx(sum(map(bool, wins)) / len(wins))
    assert nearer_share(own, own) == 1.0
    with pytest.raises(ValueError, match="frames and own must be .* got .5, 3, 2, 2. and .5, 2"):
        nearer_share(frames, own[:, :2])
    with pytest.raises(ValueError, match="frames and own must be finite"):
        nearer_share(frames, own.log())


def test_plots() -> None:
    recalled = torch.tensor([False, False, True])
    axes = plot_divergence({"dnc": torch.arange(3.0), "lstm": torch.ones(3)}, recalled)
    assert len(axes.lines) == 2 and len(axes.patches) == 1
    assert axes.get_ylabel() == "KL(q || p) (nats)"
    weights = replay_memory(pair("ntm"), torch.ones(1, 4, 3)).weights[0]
    axes = plot_read_weights(weights)
    assert len(axes.figure.axes) == 2 and axes.get_ylabel() == "slot"
    with pytest.raises(ValueError, match=r"weights must be \(time, heads, slots\).*got \(4, 0, 0"):
        plot_read_weights(torch.zeros(4, 0, 0))
    with pytest.raises(ValueError, match=r"axes are for weights of one head, .* got 2 heads"):
        plot_read_weights(weights, axes)


@pytest.mark.parametrize(
    ("divergence", "recalled"),
    [(torch.ones(5, 3), None), (torch.ones(3), torch.ones(5, 3)), (torch.ones(3), torch.ones(4))],
)
def test_plotted_steps_fit(divergence: torch.Tensor, recalled: torch.Tensor | None) -> None:
    with pytest.raises(ValueError, match=r"divergences must be \(time,\) each, .*'dnc' is"):
        plot_divergence({"dnc": divergence}, recalled)
