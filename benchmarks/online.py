"""Ten thousand frames, one at a time: time and memory of an update, early and late."""

from __future__ import annotations

import gc
import statistics
import time
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.harness import MEBIBYTE
from pyro_seq.guides import AVF, FilteringGuide, NeuralFilter, OnlineFilter
from pyro_seq.models import SRNN

STEPS, WINDOW, NOTES = 10_000, 500, 88
Row = dict[str, float | dict[str, float]]


def guides(model: SRNN) -> dict[str, FilteringGuide]:
    """The filters that are timed."""
    return {
        "filter": NeuralFilter(model, hidden=100, residual=True),
        "avf": AVF(model, hidden=[100, 100]),
    }


def run_online(steps: int = STEPS, window: int = WINDOW, batch: int = 16) -> Row:
    """For each filter the CPU time of an update in the first and the last window, and memory.

    Memory is that of the process and the number and size of all tensors, after the first window
    and at the end.
    """
    torch.manual_seed(0)
    model = SRNN(NOTES, latent=32, hidden=64, prior=[100], decoder=[100])
    frames = (torch.rand(window, batch, NOTES) < 0.05).float()
    row: Row = {"steps": steps, "window": window, "batch": batch}
    for name, guide in guides(model).items():
        row[name] = _run(OnlineFilter(model, guide, batch), frames, steps)
    return row


def _run(online: OnlineFilter, frames: Tensor, steps: int) -> dict[str, float]:
    window, times = len(frames), []
    for frame in frames[: window // 5]:  # the first calls of everything are slow
        online.update(frame)
    early: dict[str, float] = {}
    for number in range(steps):
        begun = time.process_time()
        online.update(frames[number % window])
        times.append(1e3 * (time.process_time() - begun))
        if number + 1 == window:
            early = _memory()
    first, last = statistics.median(times[:window]), statistics.median(times[-window:])
    late = _memory()
    return {
        "first_ms": first,
        "last_ms": last,
        "ratio_time": last / first,
        **{f"first_{key}": value for key, value in early.items()},
        **{f"last_{key}": value for key, value in late.items()},
    }


def _memory() -> dict[str, float]:
    """Resident memory of the process, and number and size of the tensors that are alive."""
    gc.collect()
    alive = [part for part in gc.get_objects() if issubclass(type(part), Tensor)]
    size = sum(part.numel() * part.element_size() for part in alive) / MEBIBYTE
    return {"rss_mib": _resident(), "tensors": len(alive), "tensor_mib": size}


def _resident() -> float:
    """MiB, or 0 where the system does not say."""
    status = Path("/proc/self/status")
    for line in status.read_text().splitlines() if status.exists() else []:
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    return 0.0


def describe_online(row: Row) -> list[str]:
    """A line per filter."""
    lines = []
    for name, found in row.items():
        if isinstance(found, dict):
            lines.append(
                f"online {name:<7} {row['steps']} updates of {row['batch']} streams:"
                f" {found['first_ms']:.2f} ms at first, {found['last_ms']:.2f} ms at last"
                f" (CPU, medians of {row['window']}, ratio {found['ratio_time']:.2f});"
                f" {found['first_rss_mib']:.1f} and {found['last_rss_mib']:.1f} MiB,"
                f" {found['first_tensors']} and {found['last_tensors']} tensors"
            )
    return lines
