from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import pytest

from pyro_seq.training import CSVLogger, JSONLinesLogger, MemoryLogger, TensorBoardLogger

ROWS = [(2, {"loss": 0.1 + 0.2}), (4, {"loss": 1e-20, "error": 0.5}), (6, {"error": 3.0})]


def write(logger: CSVLogger | JSONLinesLogger | MemoryLogger) -> None:
    logger.start(0)
    for step, values in ROWS:
        logger.log(step, values)
    logger.close()


def rows(path: Path) -> list[dict[str, float]]:
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    with path.open(newline="") as file:
        table = list(csv.DictReader(file))
    return [{k: float(v) for k, v in row.items() if v != ""} for row in table]


EXPECTED = [{"step": step, **values} for step, values in ROWS]


@pytest.mark.parametrize(("kind", "name"), [(CSVLogger, "l.csv"), (JSONLinesLogger, "l.jsonl")])
def test_files(tmp_path: Path, kind: type, name: str) -> None:
    path = tmp_path / "new" / name
    write(kind(path))
    assert rows(path) == EXPECTED

    with path.open("a") as file:
        file.write('{"step": 7, "lo' if kind is JSONLinesLogger else "7,0.")
    logger = kind(path)
    logger.start(4)
    assert rows(path) == EXPECTED[:2]
    logger.log(5, {"loss": 2.0, "new": 4.0})
    assert rows(path) == [*EXPECTED[:2], {"step": 5, "loss": 2.0, "new": 4.0}]
    kind(path).start(0)
    assert rows(path) == []
    assert [p.name for p in path.parent.iterdir()] == [name]


def test_json_has_no_nan(tmp_path: Path) -> None:
    logger = JSONLinesLogger(tmp_path / "l.jsonl")
    logger.start(0)
    logger.log(1, {"loss": float("nan"), "error": float("inf")})
    assert rows(tmp_path / "l.jsonl") == [{"step": 1, "loss": None, "error": None}]


def test_memory() -> None:
    logger = MemoryLogger()
    write(logger)
    assert logger.rows == EXPECTED
    logger.start(4)
    assert logger.rows == EXPECTED[:2]
    logger.start(0)
    assert logger.rows == []


def test_tensorboard_is_optional(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ImportError, match=r"pip install 'pyro-seq\[tensorboard\]'"):
        TensorBoardLogger(tmp_path)


def test_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    write(TensorBoardLogger(tmp_path))
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(e.step, e.value) for e in events.Scalars("error")] == [(4, 0.5), (6, 3.0)]
