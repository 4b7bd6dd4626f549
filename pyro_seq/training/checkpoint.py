"""Checkpoints that are either whole or absent: written beside the last one, then renamed."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

__all__ = ["Checkpoint", "CheckpointError", "load_checkpoint", "load_weights", "save_checkpoint"]

_FORMAT = 1
_STATE, _CONFIG = "state.pt", "config.json"
_LATEST, _PREVIOUS, _PARTIAL = "latest", "previous", "partial"


class CheckpointError(RuntimeError):
    """A checkpoint could not be written, or what is there cannot be trusted."""


class Checkpoint(NamedTuple):
    """What ``load_checkpoint`` read.

    Attributes:
        state: tensors, numbers, strings, lists and dictionaries, as they were saved.
        config: the caller's description of the run.
        path: folder it was read from.
    """

    state: dict[str, Any]
    config: dict[str, Any]
    path: Path


def save_checkpoint(
    directory: str | os.PathLike[str],
    state: Mapping[str, Any],
    config: Mapping[str, Any] | None = None,
) -> Path:
    """Writes ``latest/`` with state.pt and config.json, and keeps the one before as ``previous/``.

    The new files are complete and on disk before a folder is renamed, so that a crash or a full
    disk at any moment leaves a whole checkpoint.

    Args:
        directory: folder of the run's checkpoints, made where it is missing.
        state: what ``torch.load(weights_only=True)`` can read: tensors, numbers, strings, lists,
            tuples and dictionaries.
        config: JSON description of the run, kept in ``config.json``.

    Returns:
        The folder ``latest``.

    Raises:
        CheckpointError: the state or the config has other things in it, or the disk refused; the
            last checkpoint is still there.
    """
    root = Path(directory)
    content, description = _encode(root, state, config or {})
    latest, previous, partial = root / _LATEST, root / _PREVIOUS, root / _PARTIAL
    try:
        root.mkdir(parents=True, exist_ok=True)
        _finish_interrupted(root)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        _write(partial / _STATE, content)
        _write(partial / _CONFIG, description)
        _sync_folder(partial)
        if latest.exists():
            shutil.rmtree(previous, ignore_errors=True)
            os.replace(latest, previous)
        os.replace(partial, latest)
        _sync_folder(root)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        kept = f"the last one is kept at {latest}" if latest.exists() else "there was none before"
        raise CheckpointError(
            f"could not write a checkpoint in {root}: {error.strerror or error}; {kept}. "
            "Free some space or choose another folder, then resume"
        ) from error
    return latest


def load_checkpoint(directory: str | os.PathLike[str]) -> Checkpoint | None:
    """Reads a checkpoint and checks it against its sha256.

    Args:
        directory: folder given to ``save_checkpoint``, or one checkpoint (``.../previous``).

    Returns:
        The checkpoint, or None where the folder holds none.

    Raises:
        CheckpointError: a file is missing, damaged, or of another format version.
    """
    root = Path(directory)
    if (root / _STATE).exists() or (root / _CONFIG).exists():
        folder = root
    else:
        _finish_interrupted(root)
        folder = root / _LATEST
        if not folder.exists():
            if (root / _PREVIOUS).exists():
                raise _damaged(folder, "it is missing")
            return None
    description = _read_description(folder)
    return Checkpoint(_read_state(folder, description), description["config"], folder)


def load_weights(module: nn.Module, directory: str | os.PathLike[str]) -> nn.Module:
    """Loads the parameters of a checkpoint that ``fit`` wrote into a loss of the same make.

    Args:
        module: the ``SequenceLoss`` that was trained, freshly built.
        directory: as for ``load_checkpoint``.

    Returns:
        The module.

    Raises:
        CheckpointError: there is no checkpoint, it is damaged, or it is of another module.
    """
    checkpoint = load_checkpoint(directory)
    if checkpoint is None:
        raise CheckpointError(f"no checkpoint in {directory}")
    try:
        module.load_state_dict(checkpoint.state["module"])
    except (KeyError, RuntimeError) as error:
        raise CheckpointError(
            f"{checkpoint.path} does not fit this {type(module).__name__}: {error}; build the "
            f"module with the settings in {checkpoint.path / _CONFIG}"
        ) from error
    return module


def _encode(
    root: Path, state: Mapping[str, Any], config: Mapping[str, Any]
) -> tuple[bytes, bytes]:
    """Bytes of state.pt, read back once as a test, and of config.json with their checksum."""
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    content = buffer.getvalue()
    try:
        torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(
            f"the state for {root} cannot be read back with weights_only=True: {error}; keep to "
            "tensors, numbers, strings, lists and dictionaries in state_dict() of callbacks"
        ) from error
    description = {
        "format": _FORMAT,
        "sha256": hashlib.sha256(content).hexdigest(),
        "versions": _versions(),
        "config": dict(config),
    }
    try:
        return content, json.dumps(description, indent=2, sort_keys=True).encode()
    except TypeError as error:
        raise CheckpointError(f"config for {root} must be JSON: {error}") from error


def _versions() -> dict[str, str]:
    found = {"torch": str(torch.__version__)}
    for name in ("pyro-ppl", "pyro-seq"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    if os.name != "posix":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _finish_interrupted(root: Path) -> None:
    """A run killed between the two renames left a whole ``partial`` and no ``latest``."""
    latest, partial = root / _LATEST, root / _PARTIAL
    if latest.exists() or not partial.exists() or not (root / _PREVIOUS).exists():
        return
    _read_state(partial, _read_description(partial))
    os.replace(partial, latest)


def _read_description(folder: Path) -> dict[str, Any]:
    path = folder / _CONFIG
    try:
        description = json.loads(path.read_text())
        version = description["format"]
        _ = description["sha256"], description["config"]
    except FileNotFoundError as error:
        raise _damaged(path, "it is missing") from error
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(path, f"it cannot be read ({error})") from error
    if version != _FORMAT:
        raise CheckpointError(
            f"{path} has format {version}, this version reads {_FORMAT}; "
            f"use the version named in it: {description.get('versions')}"
        )
    return description


def _read_state(folder: Path, description: dict[str, Any]) -> dict[str, Any]:
    path = folder / _STATE
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise _damaged(path, "it is missing") from error
    if hashlib.sha256(content).hexdigest() != description["sha256"]:
        raise _damaged(path, f"{len(content)} bytes whose sha256 is not that in {_CONFIG}")
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def _damaged(path: Path, why: str) -> CheckpointError:
    folder = path.parent if path.suffix else path
    previous = folder.parent / _PREVIOUS
    remedy = "restore it from a copy or start again without resume"
    if previous.exists() and folder != previous:
        remedy = f"to go back to the one before, pass resume='{previous}'"
    return CheckpointError(f"checkpoint file {path} is damaged: {why}; {remedy}")
