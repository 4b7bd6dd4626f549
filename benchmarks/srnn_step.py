"""A training step of a filtering SRNN: the library, plain torch by hand, and Pyro's DMM."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.handwritten_srnn import HIDDEN, ITERATIVE, LATENT, NOTES, HandwrittenSRNN
from benchmarks.harness import Cost, Step, compare
from benchmarks.pyro_dmm import dmm_step
from pyro_seq.guides import AVF, FilteringGuide, NeuralFilter
from pyro_seq.inference import FilteringELBO
from pyro_seq.models import SRNN
from pyro_seq.training import SequenceLoss

OURS = "pyro_seq"
BATCH, TIME = 16, 25
Row = dict[str, Any]


class Comparison(NamedTuple):
    """A benchmark: which filter, against what, the ratio it has to reach, and how often.

    Attributes:
        title: In words.
        guide: Makes the filter of an SRNN.
        by_hand: The same loss of the SRNN in plain torch; None for a DMM in Pyro.
        target: Ratio of medians, or None where none was set.
        fraction: Share of the repetitions that it takes, the slow ones a small one.
    """

    title: str
    guide: Callable[[SRNN], FilteringGuide]
    by_hand: Callable[[HandwrittenSRNN, Tensor], Tensor] | None
    target: float | None
    fraction: int = 1

    @property
    def peer(self) -> str:
        """What it is compared with."""
        return "by hand" if self.by_hand else "DMM in Pyro"


def baseline(model: SRNN) -> NeuralFilter:
    """The paper's baseline, q(z_t | x_t, h_t)."""
    return NeuralFilter(model, hidden=HIDDEN, reads=["h"])


COMPARISONS = {
    "srnn_filter": Comparison(
        "filter of frame and h", baseline, HandwrittenSRNN.filter_loss, 1.25
    ),
    "srnn_filter_latent": Comparison(
        "filter of frame, h and last z",
        lambda model: NeuralFilter(model, hidden=HIDDEN),
        HandwrittenSRNN.latent_filter_loss,
        1.25,
    ),
    "avf": Comparison(
        "AVF, K = 1",
        lambda model: AVF(model, hidden=[ITERATIVE] * 2, normalise="layer", units="own"),
        HandwrittenSRNN.avf_loss,
        1.25,
        3,
    ),
    "avf_k5": Comparison(
        "AVF, K = 5",
        lambda model: AVF(model, 5, hidden=[ITERATIVE] * 2, normalise="layer", units="own"),
        lambda hand, x: hand.avf_loss(x, 5),
        None,
        10,
    ),
    "srnn_dmm": Comparison("filter of frame and h", baseline, None, 1.0),
}


def notes(batch: int = BATCH, time: int = TIME) -> Tensor:
    """Piano rolls as sparse as real ones, `(batch, time, notes)`."""
    return (torch.rand(batch, time, NOTES) < 0.05).float()


def training_step(loss: Callable[[Tensor], Tensor], module: nn.Module, x: Tensor) -> Step:
    """Forward, backward and Adam, over those parameters that the loss depends on."""
    loss(x).backward()
    used = [p for p in module.parameters() if p.grad is not None]
    optimizer = torch.optim.Adam(used, lr=1e-4)

    def step() -> None:
        optimizer.zero_grad()
        loss(x).backward()
        optimizer.step()

    return step


def make_steps(comparison: Comparison, batch: int = BATCH, time: int = TIME) -> dict[str, Step]:
    """The steps to compare, on the same frames."""
    torch.manual_seed(0)
    x, model = notes(batch, time), SRNN(NOTES)
    ours = SequenceLoss(model, comparison.guide(model), FilteringELBO())
    steps = {OURS: training_step(ours, ours, x)}
    by_hand = comparison.by_hand
    if by_hand is None:
        steps[comparison.peer] = dmm_step(x)
    else:
        hand = HandwrittenSRNN()
        steps[comparison.peer] = training_step(lambda x: by_hand(hand, x), hand, x)
    return steps


def run_comparison(
    comparison: Comparison, repetitions: int, batch: int = BATCH, time: int = TIME
) -> Row:
    """Cost of both and their ratio, ours over the other."""
    repetitions = max(3, repetitions // comparison.fraction)
    costs = compare(make_steps(comparison, batch, time), repetitions)
    ours, peer = costs[OURS], costs[comparison.peer]
    return {
        "batch": batch,
        "time": time,
        "repetitions": repetitions,
        OURS: ours._asdict(),
        comparison.peer: peer._asdict(),
        "ratio_wall": ours.wall_ms / peer.wall_ms,
        "ratio_fastest": ours.fastest_wall_ms / peer.fastest_wall_ms,
        "ratio_cpu": ours.cpu_ms / peer.cpu_ms,
        "ratio_operations": ours.operations / peer.operations,
        "ratio_memory": ours.peak_mib / peer.peak_mib,
    } | ({} if comparison.target is None else {"target": comparison.target})


def describe(comparison: Comparison, row: Row) -> str:
    """One line for a reader."""
    ours, peer = (Cost(**row[name]) for name in (OURS, comparison.peer))
    target = row.get("target")
    reached = "" if target is None else "met" if row["ratio_wall"] <= target else "MISSED"
    return (
        f"{comparison.title:<30} against {comparison.peer:<11}"
        f"  ratio {row['ratio_wall']:.2f} (fastest {row['ratio_fastest']:.2f},"
        f" CPU {row['ratio_cpu']:.2f})"
        + ("" if target is None else f"  target {target} {reached}")
        + f"  {ours.wall_ms:.1f} against {peer.wall_ms:.1f} ms"
        f"  {ours.operations} against {peer.operations} operations"
        f"  {ours.peak_mib:.1f} against {peer.peak_mib:.1f} MiB"
    )


@torch.no_grad()
def copy_weights(loss: SequenceLoss, hand: HandwrittenSRNN) -> None:
    """Gives the hand-written model the weights of the library's, so that both are one model."""
    model, guide = loss.model, loss.guide
    hand.first_state[0].copy_(model.h_0)
    hand.recurrent.load_state_dict(model.lstm.state_dict())
    pairs = [
        (hand.prior_history, model.prior.shares[0]),
        (hand.prior_latent, model.prior.shares[1]),
        (hand.prior_out, model.prior_head.parameters_of),
        (hand.decoder_history, model.decoder.shares[0]),
        (hand.decoder_latent, model.decoder.shares[1]),
        (hand.decoder_middle, model.decoder.rest[0]),
        (hand.decoder_out, model.emit.logits),
    ]
    if isinstance(guide, AVF):
        network = guide.network
        pairs += [(hand.update.second, network.layers[0]), (hand.update.out, network.head)]
        halves = network.first.weight.split(2 * LATENT, dim=1)
        hand.update.first.weight.copy_(torch.cat([halves[1], halves[0]], dim=1))
        hand.update.first.bias.copy_(network.first.bias)
        assert network.head.weight.shape[1] == ITERATIVE
    else:
        frame, state = guide.networks["z"].shares
        pairs.append((hand.filter[2], guide.heads["z"]))
        recurrent = model.h_0.numel()
        hand.filter[0].weight.copy_(torch.cat([frame.weight, state.weight[:, :recurrent]], dim=1))
        hand.filter[0].bias.copy_(frame.bias)
        if state.weight.shape[1] > recurrent:
            hand.filter_latent.weight.copy_(state.weight[:, recurrent:])
    for own, other in pairs:
        own.load_state_dict(other.state_dict())
