"""Ladders: their convolutional LSTM against the usual cell, their step, their groups."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.harness import Step, compare
from pyro_seq.engines import RLadder
from pyro_seq.engines.presets import grouped_shapes, occluded_mnist
from pyro_seq.nn import ConvLSTM

NAMES = ("conv_lstm", "rladder_step", "rtagger_groups")
OURS, PLAIN, BARE = "pyro_seq", "plain", "pyro_seq, no norms"
RATIO, SHARE = 1.25, 0.8
Row = dict[str, Any]


class Size(NamedTuple):
    """Sizes of a problem."""

    batch: int = 8
    time: int = 5
    channels: int = 16
    side: int = 32


class PlainConvLSTM(nn.Module):
    """The cell of most public ports: one convolution of input and output together, no norms."""

    def __init__(self, channels: int, kernel: int = 3) -> None:
        super().__init__()
        self.gates = nn.Conv2d(2 * channels, 4 * channels, kernel, padding=kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        """All outputs, `(batch, time, channels, height, width)`."""
        h = c = torch.zeros_like(x[:, 0])
        outputs = []
        for x_t in x.unbind(1):
            i, f, o, u = self.gates(torch.cat([x_t, h], 1)).chunk(4, 1)
            c = f.sigmoid() * c + i.sigmoid() * u.tanh()
            h = o.sigmoid() * c.tanh()
            outputs.append(h)
        return torch.stack(outputs, 1)


def copy_weights(layer: ConvLSTM, plain: PlainConvLSTM) -> None:
    """Give the plain cell the weights of a layer without norms."""
    with torch.no_grad():
        plain.gates.weight.copy_(torch.cat([layer.input.weight, layer.recurrent.weight], 1))
        plain.gates.bias.copy_(layer.bias)


def layers(size: Size) -> dict[str, Callable[[Tensor], Tensor]]:
    """What is compared, each from frames to all outputs."""
    shape = (size.channels, size.side, size.side)
    normed, bare = (ConvLSTM(shape, size.channels, norm=norm) for norm in ("layer", "none"))
    return {
        OURS: lambda x: normed(x)[0],
        BARE: lambda x: bare(x)[0],
        PLAIN: PlainConvLSTM(size.channels),
    }


def run_conv_lstm(repetitions: int, size: Size | None = None) -> Row:
    """Forward and backward of a layer with two norms, and without, against the plain cell."""
    size = size or Size()
    torch.manual_seed(0)
    x = torch.randn(size.batch, size.time, size.channels, size.side, size.side)
    x.requires_grad_()

    def step(layer: Callable[[Tensor], Tensor]) -> Step:
        return lambda: layer(x).square().mean().backward()

    every = {name: step(layer) for name, layer in layers(size).items()}
    costs = compare(every, repetitions)
    row: Row = {**size._asdict(), "repetitions": repetitions, "target": RATIO}
    for name, cost in costs.items():
        row[name] = cost._asdict() | {
            "ratio_wall": cost.wall_ms / costs[PLAIN].wall_ms,
            "ratio_fastest": cost.fastest_wall_ms / costs[PLAIN].fastest_wall_ms,
            "ratio_cpu": cost.cpu_ms / costs[PLAIN].cpu_ms,
        }
    return row


def run_rladder(ladder: RLadder | None = None, batch: int = 8, time: int = 2) -> Row:
    """Share of the CPU time of forward and backward that is spent in convolutions."""
    torch.manual_seed(0)
    ladder = ladder or occluded_mnist()
    x = torch.rand(batch, time, *ladder.frame_shape)

    def step() -> None:
        outputs, _ = ladder(x)
        (outputs.logits.square().mean() + outputs.prediction.square().mean()).backward()

    step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        step()
    events = profile.key_averages()
    total = sum(event.self_cpu_time_total for event in events)
    convolutions = sum(e.self_cpu_time_total for e in events if "conv" in e.key)
    return {
        "batch": batch,
        "time": time,
        "ms": total / 1e3,
        "share_of_convolutions": convolutions / total,
        "target": SHARE,
    }


def run_groups(repetitions: int, groups: int = 4, batch: int = 32) -> Row:
    """One tagger of K groups against K passes of one group."""
    torch.manual_seed(0)
    x = (torch.rand(batch, 1, 12, 12) < 0.2).float()
    many, one = (grouped_shapes(groups=k, norm="layer") for k in (groups, 1))

    def alone() -> None:
        for _ in range(groups):
            one.denoise(x).cost.mean().backward()

    costs = compare(
        {"together": lambda: many.denoise(x).cost.mean().backward(), "alone": alone}, repetitions
    )
    together, apart = costs["together"], costs["alone"]
    return {
        "batch": batch,
        "groups": groups,
        "repetitions": repetitions,
        "together": together._asdict(),
        "alone": apart._asdict(),
        "target": 1.0,
        "ratio_wall": together.wall_ms / apart.wall_ms,
        "ratio_fastest": together.fastest_wall_ms / apart.fastest_wall_ms,
        "ratio_cpu": together.cpu_ms / apart.cpu_ms,
    }


def run(name: str, repetitions: int) -> Row:
    """One of the benchmarks."""
    if name == "conv_lstm":
        return run_conv_lstm(max(3, repetitions // 3))
    return run_rladder() if name == "rladder_step" else run_groups(max(3, repetitions // 3))


def describe(name: str, row: Row) -> list[str]:
    """Lines for a reader."""
    if name == "rladder_step":
        share = row["share_of_convolutions"]
        verdict = "met" if share >= row["target"] else "MISSED"
        return [
            f"RLadder of table 5  {100 * share:.0f} % of CPU time in convolutions"
            f"  target {100 * row['target']:.0f} % {verdict}  {row['ms']:.0f} ms"
        ]
    if name == "rtagger_groups":
        verdict = "met" if row["ratio_wall"] <= row["target"] else "MISSED"
        return [f"{row['groups']} groups at once against one at a time  {_ratios(row)}  {verdict}"]
    verdict = "met" if row[OURS]["ratio_wall"] <= row["target"] else "MISSED"
    return [
        f"ConvLSTM, {layer}, against the plain cell  {_ratios(row[layer])}"
        f"  {row[layer]['wall_ms']:.1f} against {row[PLAIN]['wall_ms']:.1f} ms"
        + (f"  target {row['target']} {verdict}" if layer == OURS else "")
        for layer in (OURS, BARE)
    ]


def _ratios(row: Row) -> str:
    return (
        f"ratio {row['ratio_wall']:.2f} (fastest {row['ratio_fastest']:.2f},"
        f" CPU {row['ratio_cpu']:.2f})"
    )
