"""Where the numbers of a training run go: memory, CSV, JSON lines, TensorBoard."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

__all__ = ["CSVLogger", "JSONLinesLogger", "Logger", "MemoryLogger", "TensorBoardLogger"]


class Logger(Protocol):
    """Receives the measures of a run; only the process of rank 0 calls it."""

    def start(self, step: int) -> None:
        """A run begins after ``step`` steps: 0 anew, else drop what a killed run logged later."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Measures after ``step`` optimizer steps."""

    def close(self) -> None:
        """The run has ended."""


class MemoryLogger:
    """Keeps the rows in the list ``rows``, each a dictionary with "step" first."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def start(self, step: int) -> None:
        """Keeps the rows up to ``step``; none of a run that begins anew."""
        self.rows = _rows_up_to(self.rows, step)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Appends a row."""
        self.rows.append({"step": step, **values})

    def close(self) -> None:
        """Nothing to do."""


class JSONLinesLogger:
    """Appends one JSON object per row to a file; what is not finite as null.

    Args:
        path: file, made with its folder where missing.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def start(self, step: int) -> None:
        """Rewrites the file with the rows up to ``step``."""
        rows = []
        if step and self.path.exists():
            lines = self.path.read_text().splitlines()
            rows = _rows_up_to([row for row in map(_parse, lines) if row], step)
        _replace(self.path, "".join(map(_json_line, rows)))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Appends a line."""
        with self.path.open("a") as file:
            file.write(_json_line({"step": step, **values}))

    def close(self) -> None:
        """Nothing to do: every row is on file."""


class CSVLogger:
    """Writes rows to a CSV file whose header grows with new measures; absent ones are empty.

    Args:
        path: file, made with its folder where missing.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._columns: list[str] = ["step"]

    def start(self, step: int) -> None:
        """Rewrites the file with the rows up to ``step``."""
        rows: list[dict[str, Any]] = []
        self._columns = ["step"]
        if step and self.path.exists():
            self._columns, rows = self._read()
        self._rewrite([row for row in rows if int(row["step"]) <= step])

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Appends a row; rewrites the file where a measure is new."""
        row = {"step": step, **values}
        new = [name for name in row if name not in self._columns]
        if new:
            _, rows = self._read()
            self._columns += new
            self._rewrite([*rows, row])
        else:
            with self.path.open("a", newline="") as file:
                csv.DictWriter(file, self._columns).writerow(row)

    def close(self) -> None:
        """Nothing to do: every row is on file."""

    def _read(self) -> tuple[list[str], list[dict[str, Any]]]:
        """Columns and whole rows; a row that a kill cut short has no line end and is left out."""
        text = self.path.read_text()
        reader = csv.DictReader(text[: text.rfind("\n") + 1].splitlines())
        rows = list(reader)
        return list(reader.fieldnames or ["step"]), rows

    def _rewrite(self, rows: list[dict[str, Any]]) -> None:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self._columns)
        writer.writeheader()
        writer.writerows(rows)
        _replace(self.path, text.getvalue())


class TensorBoardLogger:
    """Writes scalars for TensorBoard.

    Args:
        directory: folder of the event files.

    Raises:
        ImportError: the package tensorboard is not installed.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ImportError(
                "TensorBoardLogger needs the package tensorboard: "
                "pip install 'pyro-seq[tensorboard]'"
            ) from error
        self._make = SummaryWriter
        self.directory = str(directory)
        self._writer: Any = None

    def start(self, step: int) -> None:
        """Opens the event file; events of a killed run after ``step`` are hidden."""
        self._writer = self._make(self.directory, purge_step=step + 1 if step else None)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Adds one scalar per measure."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Closes the event file."""
        self._writer.close()


def _rows_up_to(rows: list[dict[str, Any]], step: int) -> list[dict[str, Any]]:
    return [row for row in rows if row["step"] <= step] if step else []


def _parse(line: str) -> dict[str, Any] | None:
    """A row, or None for the last line of a killed run where it was cut short."""
    try:
        return json.loads(line)
    except ValueError:
        return None


def _json_line(row: Mapping[str, Any]) -> str:
    plain = {name: value if math.isfinite(value) else None for name, value in row.items()}
    return json.dumps(plain) + "\n"


def _replace(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".partial")
    temporary.write_text(text, newline="")
    os.replace(temporary, path)
