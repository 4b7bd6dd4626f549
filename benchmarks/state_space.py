"""Exact linear-Gaussian inference against Pyro's GaussianHMM: time, and memory over T."""

from __future__ import annotations

from typing import NamedTuple

from benchmarks.harness import Cost, compare, peak_memory
from benchmarks.problem import (
    OURS,
    PEER,
    check_agreement,
    likelihood_steps,
    make_problem,
    posterior_steps,
)

Row = dict[str, float | dict[str, float]]


class Comparison(NamedTuple):
    """A benchmark: its steps, its size, and the ratio it has to reach."""

    title: str
    sampled: bool
    batch: int
    time: int
    target: float


COMPARISONS = {
    "posterior_short": Comparison("log_prob, joint sample, gradients", True, 32, 20, 0.5),
    "posterior_long": Comparison("log_prob, joint sample, gradients", True, 8, 1000, 1.0),
    "likelihood_short": Comparison("log_prob, gradients", False, 32, 20, 0.5),
    "likelihood_long": Comparison("log_prob, gradients", False, 8, 1000, 1.0),
}
MEMORY_TIMES = (500, 1000, 2000, 4000)


def run_comparison(comparison: Comparison, repetitions: int) -> Row:
    """Cost of both libraries and their ratio, ours over theirs."""
    problem = make_problem(comparison.batch, comparison.time)
    check_agreement(problem)
    steps = (posterior_steps if comparison.sampled else likelihood_steps)(problem)
    costs = compare(steps, repetitions)
    ours, peer = costs[OURS], costs[PEER]
    return {
        "batch": comparison.batch,
        "time": comparison.time,
        OURS: ours._asdict(),
        PEER: peer._asdict(),
        "ratio_wall": ours.wall_ms / peer.wall_ms,
        "ratio_cpu": ours.cpu_ms / peer.cpu_ms,
        "ratio_memory": ours.peak_mib / peer.peak_mib,
        "target": comparison.target,
    }


def describe(comparison: Comparison, row: Row) -> str:
    """One line for a reader."""
    ours, peer = (Cost(**row[name]) for name in (OURS, PEER))
    verdict = "met" if row["ratio_wall"] <= comparison.target else "MISSED"
    return (
        f"{comparison.title:<34} ({comparison.batch:>2}, {comparison.time:>4})"
        f"  ratio {row['ratio_wall']:.2f} (CPU {row['ratio_cpu']:.2f})"
        f"  target {comparison.target} {verdict}"
        f"  {ours.wall_ms:.1f} against {peer.wall_ms:.1f} ms"
        f"  {ours.operations} against {peer.operations} operations"
        f"  {ours.peak_mib:.1f} against {peer.peak_mib:.1f} MiB"
    )


def run_memory(times: tuple[int, ...] = MEMORY_TIMES, batch: int = 8) -> Row:
    """Peak memory of the posterior step over T, and how far its growth is from linear.

    `growth` is the memory at the longest T over that at the shortest, over the same ratio of T: 1
    where memory is linear, and that ratio itself where it is quadratic.
    """
    peaks: dict[str, dict[str, float]] = {OURS: {}, PEER: {}}
    for time in times:
        for name, step in posterior_steps(make_problem(batch, time)).items():
            step()
            peaks[name][str(time)] = peak_memory(step)
    growth = {
        f"growth_{name}": (found[str(times[-1])] / found[str(times[0])]) * times[0] / times[-1]
        for name, found in peaks.items()
    }
    return {"batch": batch, **peaks, **growth}


def describe_memory(row: Row) -> list[str]:
    """A line per library."""
    lines = []
    for name in (OURS, PEER):
        peaks = ", ".join(f"T={time}: {peak:.1f}" for time, peak in row[name].items())
        lines.append(
            f"peak MiB of {name:<12} {peaks}; growth {row[f'growth_{name}']:.2f} (1 = linear)"
        )
    return lines
