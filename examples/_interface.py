"""What every example shares: its command line, and the files that it writes."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_origin, get_type_hints

import torch

__all__ = ["overridden", "parser", "pick_device", "save_figure", "write_json"]

PRESETS = ("smoke", "default", "paper")
KINDS = {float: {int, float}, tuple: {list}} | {k: {k} for k in (int, bool, str, list, dict)}


def parser(description: str, out: str) -> argparse.ArgumentParser:
    """The options that every example has."""
    options = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    options.add_argument("--preset", choices=PRESETS, default="default", help="which sizes")
    options.add_argument("--data-dir", type=Path, default=None, help="where data sets lie")
    options.add_argument("--out", type=Path, default=Path(out), help="folder for all results")
    options.add_argument("--seed", type=int, default=0, help="seed of data and training")
    options.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to train"
    )
    options.add_argument("--resume", action="store_true", help="go on from OUT/checkpoint")
    options.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="FIELD=JSON",
        help="override fields of the preset: batch=64 crop=50, texts as in 'name=\"text\"'",
    )
    return options


def overridden(options: argparse.ArgumentParser, preset: Any, texts: Sequence[str]) -> Any:  # noqa: ANN401
    """A preset, a named tuple, with the fields that `FIELD=JSON` texts give."""
    for text in texts:
        field, _, value = text.partition("=")
        if field not in preset._fields:
            options.error(f"--set: expected one of {', '.join(preset._fields)}; got {field!r}")
        hint = get_type_hints(type(preset))[field]
        try:
            new = json.loads(value)
        except json.JSONDecodeError:
            quotes = f", a text in quotes as in '{field}=\"text\"'" if hint is str else ""
            options.error(f"--set {field}: expected JSON{quotes}; got {value!r}")
        if new is not None and type(new) not in KINDS.get(get_origin(hint) or hint, {type(new)}):
            expected = hint if get_origin(hint) else hint.__name__
            options.error(f"--set {field}: expected {expected}; got {value}")
        preset = preset._replace(**{field: new})
    return preset


def pick_device(name: str) -> torch.device:
    """`auto` takes a GPU where there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device cuda: this machine has no CUDA device; use --device cpu")
    return torch.device(name)


def write_json(path: Path, metrics: Mapping[str, float], config: Mapping[str, Any]) -> None:
    """Write numbers, and the configuration under `"config"`, whole or not at all."""
    command = f"python examples/{Path(sys.argv[0]).name} {shlex.join(sys.argv[1:])}"
    machine = {
        "processor": platform.processor() or platform.machine(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    config = {"command": command, "machine": machine, **config}
    text = json.dumps({**metrics, "config": config}, indent=1, default=_plain)
    partial = path.with_suffix(".partial")
    partial.write_text(text + "\n")
    os.replace(partial, path)


def save_figure(axes: Any, path: Path) -> None:  # noqa: ANN401
    """Write the figure of some axes and close it."""
    import matplotlib.pyplot as plt
    import numpy as np

    figure = np.ravel(axes)[0].figure
    figure.savefig(path, dpi=90, bbox_inches="tight")
    plt.close(figure)


def _plain(value: object) -> object:
    if isinstance(value, Path):
        return value.name
    return str(value)
