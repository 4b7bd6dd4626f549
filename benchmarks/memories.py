"""Forward and backward of memories: against an LSTM cell, the package `dnc`, and one another."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from importlib import import_module, metadata
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.harness import Cost, Step, compare, count_launches, graph_memory
from pyro_seq.memory import DNC, ICM, LRU, NTM, Introspection, LSTMMemory, Memory

BARE, OURS, PEER = "LSTMCell", "pyro_seq", "dnc"
TARGET = 0.7
TOP_K = 8
NAMES = ("memories", "memories_dnc", "memories_top_k")
Row = dict[str, Any]


class Size(NamedTuple):
    """Sizes of a problem; a word is as large as a latent."""

    batch: int = 10
    time: int = 25
    slots: int = 25
    word: int = 32
    heads: int = 5
    hidden: int = 256


PAPER = Size()
LARGE = Size(time=5, slots=10_000)


def memories(size: Size) -> dict[str, Memory]:
    """Every memory; what a controller writes is the papers', a row that is all its own."""
    _, _, slots, word, heads, hidden = size
    own: dict[str, Any] = {"heads": heads, "hidden": hidden}
    written = {**own, "word": word, "write": "linear"}
    return {
        "introspection": Introspection(word, slots, **own),
        "ntm": NTM(word, slots, **written),
        "lru": LRU(word, slots, **written),
        "lru_5": LRU(word, 5 * slots, **written),
        "dnc": DNC(word, slots, **written),
        "icm": ICM(word, slots, **own),
        "icm_top_k": ICM(word, slots, **own, top_k=min(TOP_K, slots)),
        "lstm": LSTMMemory(word, 0, hidden=hidden),
    }


class Bare(nn.Module):
    """A loop over an LSTM cell that reads z alone."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(size.word, size.hidden)

    def forward(self, z: Tensor) -> Tensor:
        """All outputs, `(batch, time, hidden)`."""
        h = c = z.new_zeros(z.shape[0], self.cell.hidden_size)
        outputs = []
        for z_t in z.unbind(1):
            h, c = self.cell(z_t, (h, c))
            outputs.append(h)
        return torch.stack(outputs, 1)


class Readout(nn.Module):
    """A DNC, and what the package's has after it: a dense layer to the size of the input."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.memory = memories(size)["dnc"]
        self.output = nn.Linear(self.memory.context, size.word)

    def forward(self, z: Tensor) -> Tensor:
        """Outputs, `(batch, time, word)`."""
        return self.output(self.memory(z)[0].features)


def peer_dnc(size: Size) -> Callable[[Tensor], Tensor]:
    """The DNC of the package, of one LSTM layer; what it reads never reaches its controller."""
    peer = import_module(PEER).DNC(
        size.word,
        size.hidden,
        num_hidden_layers=1,
        nr_cells=size.slots,
        read_heads=size.heads,
        cell_size=size.word,
    )
    return lambda z: peer(z, (None, None, None))[0]


def forward_backward(outputs: Callable[[Tensor], Tensor], size: Size) -> Step:
    """Forward and backward to all parameters and the latents, which have a gradient in a model."""
    z = torch.randn(size.batch, size.time, size.word, requires_grad=True)
    return lambda: outputs(z).square().mean().backward()


def features(memory: Memory) -> Callable[[Tensor], Tensor]:
    """The features of a memory over time."""
    return lambda z: memory(z)[0].features


def run_memories(repetitions: int, size: Size = PAPER) -> Row:
    """Cost of each memory, and its ratio to the bare cell.

    Launches are per step: what one further step adds to forward and backward.
    """
    torch.manual_seed(0)
    every = {BARE: Bare(size)} | {n: features(m) for n, m in memories(size).items()}
    costs = compare({n: forward_backward(f, size) for n, f in every.items()}, repetitions)
    row: Row = {**size._asdict(), "repetitions": repetitions}
    longer = size._replace(time=size.time + 1)
    for name, outputs in every.items():
        counts = [count_launches(forward_backward(outputs, s)) for s in (size, longer)]
        row[name] = costs[name]._asdict() | {
            "ratio_wall": costs[name].wall_ms / costs[BARE].wall_ms,
            "ratio_fastest": costs[name].fastest_wall_ms / costs[BARE].fastest_wall_ms,
            "ratio_cpu": costs[name].cpu_ms / costs[BARE].cpu_ms,
            "launches_per_step": counts[1] - counts[0],
        }
    return row


def run_dnc(repetitions: int, size: Size = PAPER) -> Row:
    """The DNC against that of the package, where it is installed."""
    if importlib.util.find_spec(PEER) is None:
        return {"peer": "not installed"}
    torch.manual_seed(0)
    modules = {OURS: Readout(size), PEER: peer_dnc(size)}
    costs = compare({n: forward_backward(m, size) for n, m in modules.items()}, repetitions)
    return {
        **size._asdict(),
        "repetitions": repetitions,
        "peer": f"{PEER} {metadata.version(PEER)}",
        "target": TARGET,
        **_ratio(costs, PEER),
    }


def run_top_k(repetitions: int, size: Size = LARGE) -> Row:
    """The ICM that reads few rows against all, in time and in what the graph holds.

    Without positions, whose weights are dense in both.
    """
    row: Row = {**size._asdict(), "repetitions": repetitions, "top_k": TOP_K}
    every = {}
    for name, top_k in ((OURS, TOP_K), ("dense", None)):
        torch.manual_seed(0)
        memory = ICM(
            size.word, size.slots, heads=size.heads, hidden=size.hidden, top_k=top_k,
            positions=False,
        )  # fmt: skip
        every[name] = features(memory)
    costs = compare({n: forward_backward(f, size) for n, f in every.items()}, repetitions, 1)
    z = torch.randn(size.batch, size.time, size.word)
    held = {name: graph_memory(lambda f=f: f(z)) for name, f in every.items()}
    row |= _ratio(costs, "dense")
    for name, mebibytes in held.items():
        row[name]["graph_mib"] = mebibytes
    return row | {"ratio_graph": held[OURS] / held["dense"]}


def _ratio(costs: dict[str, Cost], peer: str) -> Row:
    ours, other = costs[OURS], costs[peer]
    return {
        OURS: ours._asdict(),
        peer: other._asdict(),
        "ratio_wall": ours.wall_ms / other.wall_ms,
        "ratio_fastest": ours.fastest_wall_ms / other.fastest_wall_ms,
        "ratio_cpu": ours.cpu_ms / other.cpu_ms,
        "ratio_operations": ours.operations / other.operations,
        "ratio_memory": ours.peak_mib / other.peak_mib,
    }


def run(name: str, repetitions: int) -> Row:
    """One of the benchmarks; the slow ones take a fraction of the repetitions."""
    if name == "memories":
        return run_memories(max(3, repetitions // 3))
    if name == "memories_dnc":
        return run_dnc(max(3, repetitions // 2))
    return run_top_k(max(3, repetitions // 10))


def describe(name: str, row: Row) -> list[str]:
    """Lines for a reader."""
    if name == "memories":
        return [
            f"{memory:<14} against a bare {BARE}  ratio {cost['ratio_wall']:.2f}"
            f" (fastest {cost['ratio_fastest']:.2f}, CPU {cost['ratio_cpu']:.2f})"
            f"  {cost['wall_ms']:.1f} ms  {cost['launches_per_step']} launches per step"
            f"  {cost['peak_mib']:.1f} MiB"
            for memory, cost in row.items()
            if isinstance(cost, dict)
        ]
    if row.get("peer") == "not installed":
        return [f"DNC against the package {PEER}: peer not installed"]
    ratios = (
        f"ratio {row['ratio_wall']:.2f} (fastest {row['ratio_fastest']:.2f},"
        f" CPU {row['ratio_cpu']:.2f})"
    )
    if name == "memories_dnc":
        ours, other = row[OURS], row[PEER]
        verdict = "met" if row["ratio_wall"] <= row["target"] else "MISSED"
        return [
            f"DNC against {row['peer']}  {ratios}  target {row['target']} {verdict}"
            f"  {ours['wall_ms']:.1f} against {other['wall_ms']:.1f} ms"
            f"  {ours['operations']} against {other['operations']} operations"
        ]
    ours, other = row[OURS], row["dense"]
    return [
        f"ICM of {row['slots']} slots, {row['top_k']} read, against dense  {ratios}"
        f"  {ours['wall_ms']:.1f} against {other['wall_ms']:.1f} ms"
        f"  graph {ours['graph_mib']:.1f} against {other['graph_mib']:.1f} MiB"
        f"  peak {ours['peak_mib']:.1f} against {other['peak_mib']:.1f} MiB"
    ]
