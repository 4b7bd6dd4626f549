"""The examples in docstrings run, and so do the programs under examples/."""

from __future__ import annotations

import doctest
import importlib
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pyro_seq.training import save_checkpoint

ROOT = Path(__file__).parents[1]
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
FILES = [p for p in sorted((ROOT / "pyro_seq").rglob("*.py")) if ">>>" in p.read_text()]


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@pytest.mark.parametrize("name", [module_name(path) for path in FILES])
def test_docstrings(name: str) -> None:
    failed, _ = doctest.testmod(importlib.import_module(name), optionflags=FLAGS)
    assert not failed


def test_bouncing_ball(tmp_path: Path) -> None:
    """The smoke preset ends, prints the tables and writes what its help promises."""
    program = [sys.executable, "examples/kvae_bouncing_ball.py", "--preset", "smoke"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*program, "--out", str(tmp_path), "--device", "cpu"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "hidden" in done.stdout and "elbo_diff" in done.stdout
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    wanted = {"blank", "elbo_per_frame", "elbo_per_sequence", "seconds", "config"}
    wanted |= {f"{m}_gap_{n}" for m in ("smooth", "filter", "copy_last") for n in (1, 3, 7)}
    wanted |= {f"{m}_p_{p}" for m in ("smooth", "filter", "copy_last") for p in (0.1, 0.5, 1)}
    assert wanted <= metrics.keys()
    rows = (tmp_path / "comparison.csv").read_text().splitlines()
    assert len(rows) == 4
    assert {"checkpoint", "comparison.png"} <= {path.name for path in tmp_path.iterdir()}


def real(program: str, folder: str, *wanted: set[str]) -> Any:  # noqa: ANN401
    """An example of real data, skipped without them."""
    there = (Path(os.environ.get("PYRO_SEQ_DATA", "absent")) / folder).is_dir()
    absent = pytest.mark.skipif(not there, reason=f"no folder {folder!r} in PYRO_SEQ_DATA")
    return pytest.param(program, *wanted, marks=[pytest.mark.data, absent])


@pytest.mark.parametrize(
    ("program", "wanted"),
    [
        real(
            "avf_music",
            "polyphonic",
            {"baseline_free_energy_per_step", "avf_k1_free_energy_per_step_all"},
        ),
        real(
            "avf_speech",
            "speech",
            {"baseline_free_energy_per_step", "white_noise_free_energy_per_step"},
        ),
        real(
            "avf_video",
            "video64",
            {"avf_k1_log_density_per_step", "copy_last_free_energy_per_step"},
        ),
        pytest.param("my_own_model", {"seconds"}),
        real("gtmm_recall --task cued --memory icm", "mnist", {"rho", "recall_accuracy"}),
        pytest.param(
            "gtmm_recall --frames vectors",
            {"lstm_rho", "introspection_last_frame_kl", "lstm_active_latents"},
        ),
        real(
            "gtmm_map --memory icm",
            "mnist",
            {"rho", "last_frame_kl", "recall_accuracy", "generated_recall", "generated_agreement"},
        ),
        pytest.param(
            "rtagger_grouping --engine rtagger generative",
            {"rtagger_ami_1", "generative_ari_final", "generative_elbo_per_scene"}
            | {"generative_responsibilities_ami_final", "baseline_k_means_2_ami_se"},
        ),
        pytest.param(
            "rtagger_grouping --dataset hidden_squares --norm layer",
            {"ami_hidden", "ami_after_se", "cost_hidden", "ami_6"},
        ),
        pytest.param("gtmm_rotation", {"icm_rho", "lstm_turn_nearer_share", "copy_error"}),
        pytest.param(
            "ladder_guide --guides ladder smoother",
            {"ladder_free_energy_per_step_all", "smoother_guide_parameters"},
        ),
    ],
)
def test_filters(program: str, wanted: set[str], tmp_path: Path) -> None:
    """The smoke preset ends, and writes metrics, comparison, a figure and a checkpoint."""
    metrics, written = smoke(program, tmp_path)
    assert wanted | {"config"} <= metrics.keys()
    assert {"checkpoint", "comparison.csv"} <= written
    assert any(name.endswith(".png") for name in written)


@pytest.mark.parametrize(
    ("program", "wanted", "figures"),
    [
        pytest.param(
            "rladder_occluded_mnist --labels 40 --mean-teacher",
            {
                "test_error_percent",
                "prediction_error_e5",
                "copy_last_e5_se",
                "student_test_error_percent",
            },
            {"frames_0.png", "training.png", "steps.png"},
        ),
        real(
            "rladder_music",
            "polyphonic",
            {"nll_per_step", "nll_per_step_of_songs_se"},
            {"piano_rolls.png"},
        ),
    ],
)
def test_ladders(program: str, wanted: set[str], figures: set[str], tmp_path: Path) -> None:
    """The smoke preset ends, and writes metrics, its figures and a checkpoint."""
    metrics, written = smoke(program, tmp_path)
    assert wanted | {"config"} <= metrics.keys()
    assert figures | {"checkpoint"} <= written


def smoke(program: str, tmp_path: Path) -> tuple[dict[str, Any], set[str]]:
    """The metrics and the names of all files that the smoke preset of an example leaves."""
    name, *options = program.split()
    path = ROOT / "examples" / f"{name}.py"
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(path.parent)
        command = [str(path), *options, "--preset", "smoke", "--out", str(tmp_path)]
        patch.setattr(sys, "argv", command)
        runpy.run_path(str(path), run_name="__main__")
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    return metrics, {path.name for path in tmp_path.iterdir()}


def test_unknown_dynamics_are_refused_before_anything_is_trained() -> None:
    done = subprocess.run(
        [sys.executable, "examples/kvae_bouncing_ball.py", "--pairs", "mlp", "gru"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "--pairs: expected some of lstm, mlp, static; got 'gru'" in done.stderr


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("gtmm_recall", "batch=2.5", "--set batch: expected int; got 2.5"),
        (
            "gtmm_recall",
            'learning_rate="fast"',
            '--set learning_rate: expected float; got "fast"',
        ),
        ("gtmm_recall", "encoder=5", "--set encoder: expected tuple[int, ...]; got 5"),
        ("gtmm_recall", "units=5", "--set: expected one of length, recalled"),
        ("gtmm_recall", "batch=x", "--set batch: expected JSON; got 'x'"),
        ("rtagger_grouping", "pixels=gaussian", "JSON, a text in quotes as in 'pixels=\"text\"';"),
        ("rtagger_grouping", "hidden=1", "those hidden; got hidden=1 of time=1"),
    ],
)
def test_a_field_of_another_type_is_refused(
    name: str,
    text: str,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    program = ROOT / "examples" / f"{name}.py"
    monkeypatch.syspath_prepend(program.parent)
    monkeypatch.setattr(sys, "argv", [str(program), "--set", "clip_norm=1", text])
    with pytest.raises(SystemExit):
        runpy.run_path(str(program), run_name="__main__")
    assert message in capsys.readouterr().err


def test_a_run_is_resumed_with_its_own_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More epochs are a longer run; anything else is another one."""
    monkeypatch.syspath_prepend(ROOT / "examples")
    same = importlib.import_module("_training")._check_same
    save_checkpoint(tmp_path, {}, {"task": "perfect", "epochs": 2, "decoder": (5, 3)})
    same(tmp_path / "none", {"task": "cued"})
    same(tmp_path, {"task": "perfect", "epochs": 9, "decoder": [5, 3], "seed": 1})
    with pytest.raises(SystemExit, match="was trained with task = perfect; got cued. Choose"):
        same(tmp_path, {"task": "cued", "epochs": 2})
