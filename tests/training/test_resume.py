"""A run that was stopped and resumed equals one that was not, to the bit."""

from __future__ import annotations

import contextlib
import csv
import functools
import json
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

from pyro_seq.training import (
    CheckpointError,
    SequenceLoss,
    fit,
    load_checkpoint,
    load_weights,
    warmup_cosine,
)
from tests.training.resume_script import Interrupt, Trained, train
from tests.training.toys import ToyBatches, toy_pair

NEVER = Interrupt(-1)


def without_time(history: Iterable[dict[str, float]]) -> list[dict[str, float]]:
    return [{k: v for k, v in record.items() if k != "seconds"} for record in history]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Trained]]:
    """Folder and outcome of an unbroken run over batches of a kind."""

    @functools.cache
    def run(kind: str) -> tuple[Path, Trained]:
        folder = tmp_path_factory.mktemp(kind)
        return folder, train(folder, NEVER, kind=kind)

    return run


@pytest.mark.parametrize(
    ("kind", "step"),
    [("toy", 8), ("batches", 2), ("batches", 5), ("batches", 8), ("batches", 19)]
    + [("dataloader", 6), ("dataloader", 8)],
)
def test_interrupted_anywhere(
    tmp_path: Path, whole: Callable[[str], tuple[Path, Trained]], kind: str, step: int
) -> None:
    """Epochs have five batches; checkpoints come every three steps and after each epoch."""
    history, weights, memory = whole(kind)[1]
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, Interrupt(step), kind=kind)
    torch.manual_seed(99)
    warning = pytest.warns(UserWarning, match="no checkpoint in .*: starting anew")
    with warning if step == 2 else contextlib.nullcontext():
        again = train(tmp_path, NEVER, kind=kind, resume=True)
    assert without_time(again.history) == without_time(history)
    assert all(map(torch.equal, weights.values(), again.weights.values()))
    rows = without_time(again.memory.rows)
    assert rows == without_time(memory.rows)[-len(rows) :]
    assert len(rows) <= len(memory.rows) - (0 if step == 2 else 3)


def test_sigkill_in_the_middle_of_an_epoch(
    tmp_path: Path, whole: Callable[[str], tuple[Path, Trained]]
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.training.resume_script", str(tmp_path), "8"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    folder, (history, _, _) = whole("batches")
    resumed = train(tmp_path, NEVER, resume=True)
    assert without_time(resumed.history) == without_time(history)
    assert resumed.memory.rows[0]["step"] == 7, "of eight steps six were saved"
    lines = [(path / "log.jsonl").read_text().splitlines() for path in (folder, tmp_path)]
    assert without_time(map(json.loads, lines[0])) == without_time(map(json.loads, lines[1]))
    tables = [list(csv.DictReader((path / "log.csv").open())) for path in (folder, tmp_path)]
    assert without_time(tables[0]) == without_time(tables[1]) and len(tables[0]) == 24


def test_checkpoints_leave_training_as_it_was(
    tmp_path: Path, whole: Callable[[str], tuple[Path, Trained]]
) -> None:
    history = train(tmp_path, NEVER, checkpoints=False).history
    assert without_time(history) == without_time(whole("batches")[1].history)


def test_finished_run(tmp_path: Path) -> None:
    """Resumed it does nothing; its weights load; a damaged or foreign checkpoint is an error."""
    history, weights, _ = train(tmp_path, NEVER)
    again = train(tmp_path, NEVER, resume=True)
    assert again.history == history and again.memory.rows == []
    loss = load_weights(SequenceLoss(*toy_pair(5)), tmp_path / "checkpoint")
    for state in (again.weights, loss.state_dict()):
        assert all(map(torch.equal, weights.values(), state.values()))
    checkpoint = load_checkpoint(tmp_path / "checkpoint")
    assert checkpoint is not None and set(checkpoint.state["best_weights"]) == set(weights)
    foreign_run_is_refused(tmp_path / "checkpoint")

    state = tmp_path / "checkpoint" / "latest" / "state.pt"
    state.write_bytes(state.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="pass resume='.*previous'"):
        train(tmp_path, NEVER, resume=True)
    again = train(tmp_path, NEVER, resume=tmp_path / "checkpoint" / "previous")
    assert without_time(again.history) == without_time(history)


def foreign_run_is_refused(folder: Path) -> None:
    loss = SequenceLoss(*toy_pair())
    arguments = {"epochs": 9, "checkpoint_dir": folder, "resume": True}
    with pytest.raises(CheckpointError, match="one of them has a schedule"):
        fit(loss, ToyBatches(), optimizer=torch.optim.AdamW(loss.parameters()), **arguments)
    arguments["schedule"] = warmup_cosine(torch.optim.AdamW(loss.parameters()), 20)
    with pytest.raises(CheckpointError, match="it has 3 callbacks, this run 0"):
        fit(loss, ToyBatches(), optimizer=arguments["schedule"].optimizer, **arguments)
    with pytest.raises(CheckpointError, match="does not fit this Linear"):
        load_weights(torch.nn.Linear(2, 2), folder)
    with pytest.raises(CheckpointError, match="no checkpoint in"):
        load_weights(loss, folder / "nowhere")


def resumable(folder: Path, rate: float = 1e-2, **arguments: Any) -> torch.optim.Optimizer:  # noqa: ANN401
    loss = SequenceLoss(*toy_pair())
    optimizer = torch.optim.Adam(loss.parameters(), rate)
    fit(loss, ToyBatches(), optimizer=optimizer, checkpoint_dir=folder, **arguments)
    return optimizer


def test_another_config_is_warned_about(tmp_path: Path) -> None:
    config = {"rate": 1e-2, "sizes": (3, 4), "name": "toy"}
    resumable(tmp_path, epochs=1, config=config)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        resumable(tmp_path, epochs=2, config=config, resume=True)
        resumable(tmp_path / "new", epochs=1)
    message = r"latest: more: None there, 1 here; rate: 0.01 there, 0.5 here. Weights"
    with pytest.warns(UserWarning, match=message):
        changed = {**config, "rate": 0.5, "more": 1}
        optimizer = resumable(tmp_path, 0.5, epochs=3, config=changed, resume=True)
    assert optimizer.param_groups[0]["lr"] == 1e-2


def test_an_earlier_run_is_not_replaced_in_silence(tmp_path: Path) -> None:
    resumable(tmp_path, epochs=1)
    with pytest.warns(UserWarning, match="checkpoints of an earlier run.*resume=True to go on"):
        resumable(tmp_path, epochs=1)


def test_another_optimizer_is_refused(tmp_path: Path) -> None:
    resumable(tmp_path, epochs=1)
    loss = SequenceLoss(*toy_pair())
    with pytest.raises(CheckpointError, match="its optimizer is Adam, that of this run SGD"):
        fit(
            loss,
            ToyBatches(),
            epochs=2,
            optimizer=torch.optim.SGD(loss.parameters(), 0.1),
            checkpoint_dir=tmp_path,
            resume=True,
        )
