from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pyro_seq.data import Batch, FreshLoader, SequenceDataset, Vectors, batches, grid_map, recall
from pyro_seq.training import FitResult, SequenceLoss, fit
from tests.data.test_crops import Interrupt
from tests.training.toys import toy_pair

MAKE = partial(recall, "cued", Vectors(3), 4, length=6, recalled=2)


def epoch(loader: FreshLoader) -> list[Tensor]:
    return [batch.x for batch in loader]


def test_every_batch_is_another() -> None:
    loader = FreshLoader(MAKE, 5)
    frames = [x for _ in range(3) for x in epoch(loader)]
    assert len(loader) == 5 and len(frames) == 15 and frames[0].shape == (4, 8, 3)
    assert len(torch.stack(frames)[:, 0, 0, 0].unique()) == 15


def test_a_pass_resumed_in_its_middle_goes_on_to_the_bit() -> None:
    unbroken, resumed = FreshLoader(MAKE, 4, seed=1), FreshLoader(MAKE, 4, seed=1)
    wanted = [x for _ in range(3) for x in epoch(unbroken)]
    resumed.set_epoch(1, start=3)
    came = [x for _ in range(2) for x in epoch(resumed)]
    assert torch.equal(torch.stack(came), torch.stack(wanted[7:]))


def test_a_pass_left_early_begins_again() -> None:
    loader = FreshLoader(MAKE, 4)
    first = next(iter(loader)).x
    assert torch.equal(epoch(loader)[0], first) and not torch.equal(epoch(loader)[0], first)


def test_seeds_and_processes_draw_different_batches() -> None:
    loaders = [FreshLoader(MAKE, 2, seed=seed, rank=rank) for seed in (0, 1) for rank in (0, 1)]
    assert len({epoch(loader)[0][0, 0, 0].item() for loader in loaders}) == 4
    assert torch.equal(epoch(FreshLoader(MAKE, 2))[1], epoch(FreshLoader(MAKE, 2, rank=0))[1])


def test_a_process_knows_its_own_number(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = epoch(FreshLoader(MAKE, 1, rank=3))[0]
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 3)
    assert torch.equal(epoch(FreshLoader(MAKE, 1))[0], wanted)


def test_controls_and_plain_batches_pass_through() -> None:
    batch = next(iter(FreshLoader(partial(grid_map, Vectors(3), 2, time=5), 1)))
    assert isinstance(batch, Batch) and batch.controls.shape == (2, 5, 4)

    def make(*, seed: torch.Generator) -> Batch:
        return Batch(torch.randn(1, 2, 3, generator=seed))

    assert next(iter(FreshLoader(make, 1))).x.shape == (1, 2, 3)


def test_an_epoch_needs_a_batch() -> None:
    with pytest.raises(ValueError, match="batches: expected at least 1, got 0"):
        FreshLoader(MAKE, 0)
    with pytest.raises(TypeError, match=r"batches: expected an int, got 1\.5"):
        FreshLoader(MAKE, 1.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="seed: expected at least 0, got -1"):
        FreshLoader(MAKE, 1, seed=-1)


def test_what_is_drawn_has_a_batch() -> None:
    loader = FreshLoader(lambda seed: torch.zeros(3), 1)
    with pytest.raises(TypeError, match="make: expected a function .* got one of Tensor"):
        next(iter(loader))


def train(
    folder: Path | None,
    killed_at: int | None = None,
    **options: Any,  # noqa: ANN401
) -> tuple[SequenceLoss, FitResult]:
    loss = SequenceLoss(*toy_pair(name="fresh"))
    test = SequenceDataset(*recall("cued", Vectors(3), 8, length=6, recalled=2, seed=9).batch)
    validation = batches(test, 8, shuffle=False)
    optimizer = torch.optim.Adam(loss.parameters(), 1e-2)
    callbacks = [] if folder is None else [Interrupt(killed_at)]
    options |= {"optimizer": optimizer, "checkpoint_dir": folder, "callbacks": callbacks}
    return loss, fit(loss, FreshLoader(MAKE, 3), validation, epochs=2, **options)


def test_training_that_was_killed_in_an_epoch_is_resumed_to_the_bit(tmp_path: Path) -> None:
    wanted, unbroken = train(None)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, killed_at=4, checkpoint_every=1)
    came, resumed = train(tmp_path, checkpoint_every=1, resume=True)
    for key in ("loss", "validation_loss"):
        assert [r[key] for r in resumed.history] == [r[key] for r in unbroken.history]
    for one, other in zip(wanted.parameters(), came.parameters(), strict=True):
        assert torch.equal(one, other)
