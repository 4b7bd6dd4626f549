"""Fair timing: one thread, interleaved repetitions, medians; memory and operations beside it."""

from __future__ import annotations

import gc
import os
import platform
import statistics
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import NamedTuple

import pyro
import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

Step = Callable[[], object]
MEBIBYTE = 2**20
_NO_LAUNCH = {torch.ops.aten._unsafe_view.default, torch.ops.aten.empty_like.default}


class Cost(NamedTuple):
    """What one step costs: medians over the repetitions, and counts."""

    wall_ms: float
    cpu_ms: float
    fastest_wall_ms: float
    peak_mib: float
    operations: int


def compare(steps: dict[str, Step], repetitions: int, warm_up: int = 2) -> dict[str, Cost]:
    """Cost of each step; every repetition runs all of them, beginning with another one."""
    names = list(steps)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for repetition in range(-warm_up, repetitions):
        shift = repetition % len(names)
        for name in names[shift:] + names[:shift]:
            measured = _time(steps[name])
            if repetition >= 0:
                times[name].append(measured)
    costs = {}
    for name, step in steps.items():
        wall, cpu = ([1e3 * t for t in column] for column in zip(*times[name], strict=True))
        medians = statistics.median(wall), statistics.median(cpu)
        costs[name] = Cost(*medians, min(wall), peak_memory(step), count_operations(step))
    return costs


def _time(step: Step) -> tuple[float, float]:
    """Wall and CPU seconds of one call, the garbage collector held back."""
    gc.collect()
    gc.disable()
    try:
        wall, cpu = time.perf_counter(), time.process_time()
        step()
        return time.perf_counter() - wall, time.process_time() - cpu
    finally:
        gc.enable()


def peak_memory(step: Step) -> float:
    """Most tensor memory that one call holds at a time beyond what it found, in MiB (CPU)."""
    gc.collect()
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        step()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak / MEBIBYTE


def graph_memory(forward: Callable[[], object]) -> float:
    """What backward will read of one forward pass, in MiB: saved tensors save for parameters.

    Tensors that share memory count once.
    """
    saved: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        kept = forward()
    size = sum(tensor.untyped_storage().nbytes() for tensor in saved.values())
    del kept
    return size / MEBIBYTE


class _Counter(TorchDispatchMode):
    """Counts what is dispatched below autograd, and of that what computes anything."""

    def __init__(self) -> None:
        super().__init__()
        self.count = self.launches = 0

    def __torch_dispatch__(
        self, func: OpOverload, types: tuple, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        self.count += 1
        self.launches += not (func.is_view or func in _NO_LAUNCH)
        return func(*args, **(kwargs or {}))


def count_operations(step: Step) -> int:
    """Tensor operations of one call, views included, forward and backward."""
    with _Counter() as counter:
        step()
    return counter.count


def count_launches(step: Step) -> int:
    """Operators of one call that compute or copy anything, forward and backward: no views."""
    with _Counter() as counter:
        step()
    return counter.launches


def machine() -> dict[str, str | int | float]:
    """Where and with what a benchmark ran, and what else ran there."""
    return {
        "date": date.today().isoformat(),
        "cpu": _cpu_name(),
        "cores": os.cpu_count() or 1,
        "load_average": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else 0.0,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "pyro": pyro.__version__,
    }


def _cpu_name() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
