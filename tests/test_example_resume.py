"""An example that is killed and resumed ends with the numbers of one that was not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "kvae_bouncing_ball.py"


def command(out: Path, *more: str) -> list[str]:
    options = ["--preset", "smoke", "--pairs", "static", "--set", "epochs=30", "--device", "cpu"]
    return [sys.executable, str(EXAMPLE), *options, "--out", str(out), *more]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def metrics(out: Path) -> dict[str, float]:
    read = json.loads((out / "metrics.json").read_text())
    return {k: v for k, v in read.items() if k != "config" and "seconds" not in k}


@pytest.mark.slow
def test_killed_and_resumed_equals_unbroken(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    subprocess.run(command(whole), env=environment(), check=True, capture_output=True)
    process = subprocess.Popen(
        command(broken), env=environment(), stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    while not (broken / "checkpoint" / "static" / "latest" / "state.pt").exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (broken / "metrics.json").exists()
    subprocess.run(
        command(broken, "--resume"),
        env=environment(),
        check=True,
        capture_output=True,
    )
    assert metrics(broken) == metrics(whole)
