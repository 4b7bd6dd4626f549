"""The benchmarks compare like with like, and memory is linear in time."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import kvae_step, state_space
from benchmarks.__main__ import main
from benchmarks.harness import compare, count_operations, peak_memory
from benchmarks.problem import check_agreement, make_problem


def test_both_libraries_compute_the_same() -> None:
    check_agreement(make_problem(2, 7))


def test_memory_and_operations_are_counted() -> None:
    def step() -> None:
        first = torch.ones(2**18)  # one MiB
        _ = first + 1

    assert peak_memory(step) == pytest.approx(2, abs=0.01)
    assert count_operations(step) == 2
    cost = compare({"a": step, "b": step}, repetitions=3)["a"]
    assert 0 < cost.fastest_wall_ms <= cost.wall_ms


def test_peak_memory_is_linear_in_time() -> None:
    row = state_space.run_memory((64, 256), batch=2)
    assert row["growth_pyro_seq"] == pytest.approx(1, abs=0.1)


def test_parts_of_a_step() -> None:
    row = kvae_step.run_step("mlp", 1, batch=2, time=4, size=8)
    assert len(kvae_step.describe_step("mlp", row)) == 8
    assert row[kvae_step.WHOLE]["operations"] > row["encoder"]["operations"] > 0


def test_command_writes_its_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = state_space.Comparison("small", True, 2, 4, 0.5)
    monkeypatch.setitem(state_space.COMPARISONS, "posterior_short", small)
    out = tmp_path / "results" / "bench.json"
    arguments = ["--only", "posterior_short", "--repetitions", "3", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["benchmarks", *arguments])
    threads = torch.get_num_threads()
    try:
        main()
    finally:
        torch.set_num_threads(threads)
    report = json.loads(out.read_text())
    assert report["results"]["posterior_short"]["ratio_wall"] > 0
    assert report["machine"]["command"].startswith("python -m benchmarks --only posterior_short")
