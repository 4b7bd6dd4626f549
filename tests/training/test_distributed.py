"""Two processes with gloo: ranks identical, and equal to one process on the joined batches."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest
import torch

from pyro_seq.training import SequenceLoss, initialise
from tests.training.distributed_worker import CASES, gradients, joined, train, work
from tests.training.test_resume import without_time
from tests.training.toys import toy_pair

Results = tuple[Path, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    folder = tmp_path_factory.mktemp("distributed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(work, (folder, port), nprocs=2)
    files = [folder / f"results_{number}.pt" for number in range(2)]
    return folder, [torch.load(file, weights_only=True) for file in files]


@pytest.mark.distributed
@pytest.mark.parametrize(("per", "masks"), CASES)
def test_gradients_equal_those_of_one_process(results: Results, per: str, masks: str) -> None:
    torch.set_default_dtype(torch.float64)
    value, expected = gradients(SequenceLoss(*toy_pair(0), per=per), joined(masks))
    found = [result[f"{per} {masks}"] for result in results[1]]
    assert sum(loss for loss, _ in found) / 2 == pytest.approx(value, rel=1e-12)
    torch.testing.assert_close(found[0][1], expected, rtol=1e-10, atol=1e-12)
    assert all(map(torch.equal, found[0][1], found[1][1]))
    assert all(gradient.abs().sum() > 0 for gradient in expected)


@pytest.mark.distributed
def test_fit_equals_one_process(results: Results, tmp_path: Path) -> None:
    torch.set_default_dtype(torch.float64)
    alone = train(tmp_path, 6)
    first, second = (result["fit"] for result in results[1])
    assert without_time(first["history"]) == without_time(second["history"])
    assert all(map(torch.equal, first["weights"].values(), second["weights"].values()))
    for record, expected in zip(first["history"], alone["history"], strict=True):
        for name in ("loss", "validation_loss", "step", "learning_rate"):
            assert record[name] == pytest.approx(expected[name], rel=1e-10)
    torch.testing.assert_close(list(first["weights"].values()), list(alone["weights"].values()))


@pytest.mark.distributed
def test_rank_0_writes(results: Results) -> None:
    folder, (first, _) = results
    assert not (folder / "log_1.jsonl").exists()
    rows = [json.loads(line) for line in (folder / "log_0.jsonl").read_text().splitlines()]
    assert rows == first["fit"]["history"]


@pytest.mark.distributed
def test_resumed_in_the_middle_of_an_epoch(results: Results) -> None:
    for result in results[1]:
        outcome = result["interrupted"]
        assert without_time(outcome["broken"]) == without_time(outcome["whole"])
    histories = [without_time(result["interrupted"]["whole"]) for result in results[1]]
    assert histories[0] == histories[1]


@pytest.mark.distributed
def test_small_parts(results: Results) -> None:
    for number, result in enumerate(results[1]):
        assert result["process"] == (str(number), "2", "cpu")
        assert result["gather"] == ["rank 0", "rank 1"] and result["sum"] == [2.0, 1.0]
        assert "train was made for one process, this run has 2" in result["refused"]


def test_alone_nothing_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert initialise("cpu") == (0, 1, torch.device("cpu"))
    assert not torch.distributed.is_initialized()
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(RuntimeError, match=r"only \['RANK'\] is set; start the script with"):
        initialise("cpu")
