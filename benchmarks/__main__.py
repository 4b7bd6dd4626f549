"""Run the benchmarks, print ratios, write them as JSON.

python -m benchmarks [--only NAME ...] [--repetitions N] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from pathlib import Path

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler talks otherwise

import pyro
import torch

from benchmarks import graphed, kvae_step, ladders, memories, online, srnn_step, state_space
from benchmarks.harness import machine

OUT = Path(__file__).resolve().parents[1] / "docs" / "results" / "bench.json"
KVAE_STEPS = {f"kvae_step_{networks}": networks for networks in kvae_step.NETWORKS}
NAMES = (
    *state_space.COMPARISONS,
    "memory",
    *KVAE_STEPS,
    *srnn_step.COMPARISONS,
    "online",
    *memories.NAMES,
    *ladders.NAMES,
    *(graphed.NAMES if torch.cuda.is_available() else ()),
)


def run(name: str, repetitions: int) -> tuple[dict, list[str]]:
    """Result and printed lines of one benchmark; long ones take a fraction of the repetitions."""
    if name == "memory":
        row = state_space.run_memory()
        return row, state_space.describe_memory(row)
    if name in KVAE_STEPS:
        networks = KVAE_STEPS[name]
        row = kvae_step.run_step(
            networks, max(3, repetitions // (10 if networks == "conv" else 3))
        )
        return row, kvae_step.describe_step(networks, row)
    if name in srnn_step.COMPARISONS:
        step = srnn_step.COMPARISONS[name]
        row = srnn_step.run_comparison(step, repetitions)
        return row, [srnn_step.describe(step, row)]
    if name == "online":
        row = online.run_online()
        return row, online.describe_online(row)
    if name in memories.NAMES:
        row = memories.run(name, repetitions)
        return row, memories.describe(name, row)
    if name in ladders.NAMES:
        row = ladders.run(name, repetitions)
        return row, ladders.describe(name, row)
    if name in graphed.NAMES:
        row = graphed.run_graph(name, repetitions)
        return row, [graphed.describe_graph(name, row)]
    comparison = state_space.COMPARISONS[name]
    fraction = 1 if comparison.time < 100 else 3
    row = state_space.run_comparison(comparison, max(3, repetitions // fraction))
    return row, [state_space.describe(comparison, row)]


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES, metavar="NAME")
    parser.add_argument("--repetitions", type=int, default=51)
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    pyro.enable_validation(False)
    command = shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]])
    report: dict = {"machine": {**machine(), "command": command}, "results": {}}
    for name in arguments.only:
        report["results"][name], lines = run(name, arguments.repetitions)
        print("\n".join(lines), flush=True)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=2) + "\n")
    print(f"written to {arguments.out}")


if __name__ == "__main__":
    main()
