"""A training step captured as a CUDA graph against the same step run eagerly; needs a GPU."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.harness import Step
from benchmarks.srnn_step import COMPARISONS, Row, notes
from pyro_seq.inference import FilteringELBO
from pyro_seq.models import SRNN
from pyro_seq.training import SequenceLoss

EAGER, GRAPH = "eager", "CUDA graph"
NAMES = {f"{name}_graph": COMPARISONS[name] for name in ("srnn_filter", "avf", "avf_k5")}


def make_steps(name: str, batch: int = 16, time: int = 25) -> dict[str, Step]:
    """The same step eagerly and as a graph, each with a model of its own."""
    x = notes(batch, time).cuda()
    return {EAGER: _eager(name, x), GRAPH: _graph(_eager(name, x))}


def _eager(name: str, x: Tensor) -> Step:
    torch.manual_seed(0)
    model = SRNN(x.shape[-1])
    loss = SequenceLoss(model, NAMES[name].guide(model), FilteringELBO()).cuda()
    optimizer = torch.optim.Adam(loss.parameters(), lr=1e-4, capturable=True)

    def step() -> Tensor:
        optimizer.zero_grad()
        value = loss(x)
        value.backward()
        optimizer.step()
        return value.detach()

    return step


def _graph(step: Step) -> Step:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        value = step()

    def replay() -> object:
        graph.replay()
        return value

    return replay


def run_graph(name: str, repetitions: int) -> Row:
    """Medians and fastest times by events of the device, alternating, and the ratio."""
    steps = make_steps(name)
    times: dict[str, list[float]] = {key: [] for key in steps}
    for repetition in range(-3, repetitions):
        for key, step in steps.items():
            begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            begun.record()
            step()
            ended.record()
            torch.cuda.synchronize()
            if repetition >= 0:
                times[key].append(begun.elapsed_time(ended))
    row: Row = {"device": torch.cuda.get_device_name(), "repetitions": repetitions}
    for key, values in times.items():
        middle = sorted(values)[len(values) // 2]
        row[key] = {"wall_ms": middle, "fastest_wall_ms": min(values)}
    row["ratio_wall"] = row[GRAPH]["wall_ms"] / row[EAGER]["wall_ms"]
    return row


def describe_graph(name: str, row: Row) -> str:
    """One line for a reader."""
    eager, graph = (row[key]["wall_ms"] for key in (EAGER, GRAPH))
    return (
        f"{NAMES[name].title:<30} as a CUDA graph: ratio {row['ratio_wall']:.3f}"
        f"  {graph:.1f} against {eager:.1f} ms on {row['device']}"
    )
