"""Tables of groupings of pixels."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress
from typing import Any

from layout import source, table

BASELINES = ("halves", "quadrants", "connected", "k_means_2", "k_means_3")


def groupings(runs: Sequence[dict[str, Any]]) -> str:
    """How each engine groups each data set, a line for every seed."""
    rows = sorted(line(run, name) for run in runs for name in run["config"]["engine"])
    columns = [
        "data", "engine", "norm", "seed", "first AMI", "last AMI", "later half", "hidden frames",
        "given the frame", "last ARI", "nats per scene", "error %", "parameters", "seconds",
    ]  # fmt: skip
    used = [any(row[i] for row in rows) for i in range(len(columns))]
    return table([*compress(columns, used)], [[*compress(row, used)] for row in rows]) + source(
        runs
    )


def line(run: dict[str, Any], name: str) -> list[str]:
    """One line of :func:`groupings`."""
    config, moving = run["config"], run["config"]["moving"]
    nats = "elbo" if name == "generative" else "conditional_log_likelihood"
    keys = (
        f"ami_{2 if moving else 1}", "ami_final", "ami_late", "ami_hidden",
        "responsibilities_ami_final",
        "ari_final", f"{nats}_per_scene", "test_error_percent",
    )  # fmt: skip
    norm = "layer" if name == "generative" else config["norm"]
    cells = [estimate(run, f"{name}_{key}", 1 if "per" in key else 3) for key in keys]
    ends = f"{run[f'{name}_parameters']}", f"{run[f'{name}_training_seconds']:.0f}"
    label = ", ".join([config["dataset"], *(f"`{part}`" for part in config["set"])])
    return [label, f"`{name}`", norm, f"{config['seed']}", *cells, *ends]


def without_learning(runs: Sequence[dict[str, Any]]) -> str:
    """AMI of groupings that take no learning, of each data set."""
    first = {run["config"]["dataset"]: run for run in reversed(runs)}
    rows = [
        [name, *(estimate(run, f"baseline_{each}_ami", 3) for each in BASELINES)]
        for name, run in sorted(first.items())
    ]
    return table(["data", *(each.replace("_", " ") for each in BASELINES)], rows)


def estimate(run: dict[str, Any], key: str, digits: int) -> str:
    """A mean and its standard error over test scenes, and nothing where there is none."""
    if key not in run:
        return ""
    return f"{run[key]:.{digits}f} ± {run[f'{key}_se']:.{digits}f}"
