"""How tables of results are laid out."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable, Sequence
from typing import Any


def over_seeds(values: Sequence[float], digits: int = 3) -> str:
    """Mean, and the standard error over seeds where there are several."""
    text = f"{statistics.fmean(values):.{digits}f}"
    if len(values) > 1:
        text += f" ± {statistics.stdev(values) / len(values) ** 0.5:.{digits}f}"
    return text


def each(runs: Sequence[dict[str, Any]], key: str, digits: int) -> str:
    """Mean over runs, and nothing where no run has it."""
    own = [run[key] for run in runs if key in run]
    return f"{statistics.fmean(own):.{digits}f}" if own else ""


def mean(runs: Iterable[dict[str, Any]], key: str) -> float:
    """Mean over runs."""
    return statistics.fmean(run[key] for run in runs)


def error(value: float) -> str:
    """A share of wrong pixels, as the paper prints it."""
    return f"{value:.4f}".removeprefix("0")


def source(runs: Sequence[dict[str, Any]]) -> str:
    """The commands behind a table, N for the seed."""
    commands = (run["config"]["command"].replace(" --resume", "") for run in runs)
    each = (re.sub(r"(seed ?)\d+", r"\1N", command) for command in commands)
    listed = "\n".join(f"    {command}" for command in dict.fromkeys(each))
    machines = {
        "{threads} thread(s) of {processor}, torch {torch}".format(**run["config"]["machine"])
        for run in runs
    }
    return f"\nMade by\n\n{listed}\n\non {'; '.join(sorted(machines))}.\n" if runs else ""


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join("| " + " | ".join(str(cell) for cell in line) + " |\n" for line in lines)
