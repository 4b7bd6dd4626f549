from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from pyro_seq.training import CheckpointError, load_checkpoint, save_checkpoint


def step_of(folder: Path) -> int:
    checkpoint = load_checkpoint(folder)
    assert checkpoint is not None
    return checkpoint.state["step"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two checkpoints, of steps 1 (previous) and 2 (latest)."""
    for step in (1, 2):
        save_checkpoint(tmp_path, {"step": step, "weight": torch.ones(3) * step}, {"name": "a"})
    return tmp_path


def test_round_trip(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path / "nothing") is None
    state = {"a": torch.randn(3), "b": [1, 2.5, None, True, "c", (1, 2)], "d": {"e": float("nan")}}
    path = save_checkpoint(tmp_path / "new" / "folder", state, {"model": "kvae", "modes": 3})
    checkpoint = load_checkpoint(tmp_path / "new" / "folder")
    assert checkpoint is not None and checkpoint.path == path
    assert torch.equal(checkpoint.state["a"], state["a"]) and checkpoint.state["b"] == state["b"]
    assert checkpoint.config == {"model": "kvae", "modes": 3}
    assert json.loads((path / "config.json").read_text())["versions"]["torch"] == torch.__version__
    assert sorted(torch.load(path / "state.pt", weights_only=True)) == ["a", "b", "d"]


def test_the_one_before_is_kept(folder: Path) -> None:
    assert step_of(folder) == 2 and step_of(folder / "previous") == 1
    save_checkpoint(folder, {"step": 3})
    assert step_of(folder / "latest") == 3 and step_of(folder / "previous") == 2
    assert sorted(path.name for path in folder.iterdir()) == ["latest", "previous"]


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "swap"])
def test_damaged_state_is_named(folder: Path, damage: str) -> None:
    path = folder / "latest" / "state.pt"
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
    elif damage == "swap":
        content = bytearray((folder / "previous" / "state.pt").read_bytes())
    else:
        content = content[: len(content) // 2 if damage == "cut" else 0]
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(folder)
    assert f"{path} is damaged" in str(error.value) and "sha256" in str(error.value)
    assert f"pass resume='{folder / 'previous'}'" in str(error.value)
    assert step_of(folder / "previous") == 1


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": 1}'])
def test_damaged_config_is_named(folder: Path, content: str) -> None:
    (folder / "latest" / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match="config.json is damaged: it cannot be read"):
        load_checkpoint(folder)


@pytest.mark.parametrize("name", ["state.pt", "config.json"])
def test_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / "latest" / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name} is damaged: it is missing"):
        load_checkpoint(folder)


def test_missing_latest_is_not_passed_over(folder: Path) -> None:
    shutil.rmtree(folder / "latest")
    with pytest.raises(CheckpointError, match="latest is damaged: it is missing; .*previous"):
        load_checkpoint(folder)


def test_without_a_previous_one_the_message_says_so(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, {"step": 1})
    (tmp_path / "latest" / "state.pt").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="restore it from a copy or start again"):
        load_checkpoint(tmp_path)


def test_other_format_is_named(folder: Path) -> None:
    path = folder / "latest" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 99}))
    with pytest.raises(CheckpointError, match="has format 99, this version reads 1"):
        load_checkpoint(folder)


@pytest.mark.parametrize("call", range(11))
def test_kill_at_any_moment_leaves_a_whole_checkpoint(
    folder: Path, call: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process dies at the n-th call that changes the disk; then training resumes and saves."""

    class Killed(BaseException):
        pass

    count = 0
    for module, name in (
        (os, "replace"),
        (os, "fsync"),
        (shutil, "rmtree"),
        (Path, "mkdir"),
    ):

        def counted(*args: object, real: object = getattr(module, name), **kwargs: object) -> None:
            nonlocal count
            if count == call:
                raise Killed
            count += 1
            real(*args, **kwargs)

        monkeypatch.setattr(module, name, counted)
    died = False
    try:
        save_checkpoint(folder, {"step": 3})
    except Killed:
        died = True
    monkeypatch.undo()
    assert died == (call < 10), "there are ten calls to die in"
    assert step_of(folder) in ((2, 3) if died else (3,))
    save_checkpoint(folder, {"step": 4})
    assert step_of(folder) == 4 and step_of(folder / "previous") in (2, 3)


def test_disk_that_takes_no_more(folder: Path) -> None:
    resource = pytest.importorskip("resource", reason="needs POSIX resource limits")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, before[1]))
    try:
        with pytest.raises(CheckpointError) as error:
            save_checkpoint(folder, {"step": 3, "weight": torch.ones(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert f"could not write a checkpoint in {folder}: File too large" in str(error.value)
    assert f"the last one is kept at {folder / 'latest'}" in str(error.value)
    assert step_of(folder) == 2
    assert sorted(path.name for path in folder.iterdir()) == ["latest", "previous"]


def test_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="File exists; there was none before"):
        save_checkpoint(tmp_path / "file", {"step": 1})


def test_state_that_could_not_be_read_back_is_refused(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be read back with weights_only=True"):
        save_checkpoint(folder, {"step": np.float64(3.0), "object": Path("x")})
    with pytest.raises(CheckpointError, match="must be JSON"):
        save_checkpoint(folder, {"step": 3}, {"model": object()})
    assert step_of(folder) == 2
