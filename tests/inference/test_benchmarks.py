"""The benchmarks of step models compare like with like."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pyro
import pytest
import torch
from torch import Tensor

from benchmarks import graphed, harness, memories, online, srnn_step
from benchmarks.__main__ import NAMES, main
from benchmarks.handwritten_srnn import NOTES, HandwrittenSRNN
from benchmarks.harness import count_launches, count_operations, graph_memory
from benchmarks.pyro_dmm import DeepMarkovModel, dmm_step
from pyro_seq.inference import FilteringELBO
from pyro_seq.models import SRNN
from pyro_seq.training import SequenceLoss


@pytest.mark.parametrize("name", [k for k, c in srnn_step.COMPARISONS.items() if c.by_hand])
def test_by_hand_is_the_same_mathematics(name: str) -> None:
    """Value, and every gradient, with the same weights and the same noise."""
    comparison = srnn_step.COMPARISONS[name]
    torch.manual_seed(0)
    model, hand = SRNN(NOTES).double(), HandwrittenSRNN().double()
    loss = SequenceLoss(model, comparison.guide(model), FilteringELBO()).double()
    srnn_step.copy_weights(loss, hand)
    x = srnn_step.notes(batch=2, time=3).double()
    torch.manual_seed(1)
    ours = loss(x)
    torch.manual_seed(1)
    theirs = comparison.by_hand(hand, x)
    torch.testing.assert_close(ours, theirs)
    ours.backward()
    theirs.backward()

    # by hand the first cell is learnt, here the latent before the first
    assert hand.first_state.grad is not None and model.z_0.grad is not None
    hand.first_state.grad[1], model.z_0.grad[:] = 0, 0
    torch.testing.assert_close(gradient_norm(loss), gradient_norm(hand))
    torch.testing.assert_close(model.emit.logits.weight.grad, hand.decoder_out.weight.grad)
    torch.testing.assert_close(model.lstm.weight_hh_l0.grad, hand.recurrent.weight_hh_l0.grad)
    shares = zip(model.prior.shares, (hand.prior_history, hand.prior_latent), strict=True)
    for own, other in shares:
        torch.testing.assert_close(own.weight.grad, other.weight.grad)


def gradient_norm(module: torch.nn.Module) -> Tensor:
    gradients = [p.grad.flatten() for p in module.parameters() if p.grad is not None]
    return torch.cat(gradients).norm()


def test_the_dmm_learns() -> None:
    pyro.set_rng_seed(0)
    x = srnn_step.notes(batch=4, time=5)
    step = dmm_step(x)
    losses = [step() for _ in range(60)]
    assert sum(losses[-5:]) < 0.97 * sum(losses[:5])
    dmm = DeepMarkovModel(NOTES)
    trace = pyro.poutine.trace(dmm.guide).get_trace(x)
    assert [k for k in trace.stochastic_nodes if k.startswith("z")] == [f"z_{t}" for t in range(5)]


def test_online_updates_are_measured() -> None:
    row = online.run_online(steps=40, window=10, batch=2)
    assert len(online.describe_online(row)) == 2
    for name in ("filter", "avf"):
        found = row[name]
        assert found["first_tensors"] == found["last_tensors"] > 0
        assert found["first_tensor_mib"] == found["last_tensor_mib"]
        assert 0.1 < found["ratio_time"] < 10


TINY = memories.Size(batch=2, time=3, slots=4, word=3, heads=2, hidden=5)


@pytest.fixture
def unprofiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """No memory is measured and no garbage collected, which takes seconds."""
    monkeypatch.setattr(harness, "peak_memory", lambda _: 1.0)
    monkeypatch.setattr(harness.gc, "collect", lambda: 0)


@pytest.mark.usefixtures("unprofiled")
def test_memories_are_measured() -> None:
    row = memories.run_memories(3, TINY)
    assert len(memories.describe("memories", row)) == 1 + len(memories.memories(TINY))
    assert row["LSTMCell"]["ratio_wall"] == 1
    assert row["lstm"]["launches_per_step"] < row["dnc"]["launches_per_step"]
    assert row["lru"]["launches_per_step"] == row["lru_5"]["launches_per_step"] > 20


@pytest.mark.usefixtures("unprofiled")
def test_top_k_holds_less() -> None:
    row = memories.run_top_k(3, TINY._replace(slots=500))
    assert row["ratio_graph"] < 0.5 and len(memories.describe("memories_top_k", row)) == 1


def test_a_peer_that_is_absent_is_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memories, "PEER", "a_package_that_is_nowhere")
    lines = memories.describe("memories_dnc", memories.run_dnc(3, TINY))
    assert lines == ["DNC against the package a_package_that_is_nowhere: peer not installed"]


@pytest.mark.usefixtures("unprofiled")
def test_the_package_is_measured_where_it_is_installed() -> None:
    pytest.importorskip(memories.PEER)
    row = memories.run_dnc(3, TINY)
    assert memories.peer_dnc(TINY)(torch.zeros(2, 3, 3)).shape == (2, 3, 3)
    assert row["dnc"]["operations"] > 100 and len(memories.describe("memories_dnc", row)) == 1


def test_launches_and_what_a_graph_holds() -> None:
    a, b = torch.rand(8, 128), torch.rand(128, 8, requires_grad=True)

    def multiply() -> Tensor:
        return (a.unsqueeze(0).squeeze(0) @ b.view(128, 8)).exp()

    with torch.no_grad():
        assert (count_operations(multiply), count_launches(multiply)) == (5, 2)
    held = 4 * (a.numel() + 64)  # the factor of what has a gradient, and the result of exp
    assert graph_memory(multiply) * 2**20 == held


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(srnn_step, "notes", lambda *_: (torch.rand(2, 3, NOTES) < 0.05).float())
    out = tmp_path / "bench.json"
    arguments = ["--only", "srnn_filter", "srnn_dmm", "--repetitions", "3", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["benchmarks", *arguments])
    threads = torch.get_num_threads()
    try:
        with pyro.validation_enabled(False):
            main()
    finally:
        torch.set_num_threads(threads)
    results = json.loads(out.read_text())["results"]
    assert results["srnn_filter"]["by hand"]["operations"] > 100
    assert results["srnn_dmm"]["ratio_wall"] > 0
    assert torch.cuda.is_available() or not set(graphed.NAMES) & set(NAMES)


@pytest.mark.gpu
def test_a_captured_step_trains() -> None:
    step = graphed.make_steps("avf_graph", batch=4, time=5)[graphed.GRAPH]
    losses = torch.stack([step().clone() for _ in range(300)])
    assert losses[-20:].mean() < losses[:20].mean()
    assert graphed.run_graph("avf_graph", 5)["ratio_wall"] < 1
