from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pyro_seq.data import (
    Batch,
    CropLoader,
    SequenceDataset,
    Transpose,
    batches,
    fixed_crops,
    random_crops,
    training_mask,
)
from pyro_seq.training import Callback, Context, FitResult, SequenceLoss, fit
from tests.training.toys import toy_pair

LENGTHS = [9, 4, 12, 30, 8, 7, 20]


def dataset(dtype: torch.dtype = torch.float32) -> SequenceDataset:
    """Frames (sequence, step) that name where they lie."""
    time = max(LENGTHS)
    sequence = torch.arange(len(LENGTHS))[:, None].expand(-1, time)
    step = torch.arange(time).expand(len(LENGTHS), -1)
    x = torch.stack([sequence, step], -1).to(dtype)
    return SequenceDataset(x, controls=-x.float(), lengths=LENGTHS)


def rows(batch: Batch) -> Tensor:
    """Sequence and first step of each crop, (crops, 2), once the crops are known to be whole."""
    assert (batch.x[..., 0] == batch.x[:, :1, 0]).all()
    steps = torch.arange(batch.x.shape[1])
    assert torch.equal(batch.x[..., 1], batch.x[:, :1, 1] + steps)
    return batch.x[:, 0]


def epoch(loader: CropLoader) -> Tensor:
    return torch.cat([rows(batch) for batch in loader])


def test_an_epoch_has_one_whole_crop_of_each_long_sequence() -> None:
    loader = random_crops(dataset(), 8, 2)
    for _ in range(20):
        found = epoch(loader)
        assert sorted(found[:, 0].int().tolist()) == [0, 2, 3, 4, 6]
        for sequence, first in found.int().tolist():
            assert 0 <= first <= LENGTHS[sequence] - 8


def test_first_steps_are_uniform() -> None:
    loader = random_crops(dataset(), 8, 100, crops_per_sequence=400)
    found = epoch(loader)
    for sequence in (0, 2, 6):
        first = found[found[:, 0] == sequence, 1].long()
        places = LENGTHS[sequence] - 7
        counts = torch.bincount(first, minlength=places)
        expected = 400 / places
        assert len(counts) == places and counts.sum() == 400
        assert ((counts - expected) ** 2 / expected).sum() < places + 6 * (2 * places) ** 0.5


def test_batches_without_missing_frames_have_no_mask_and_carry_controls() -> None:
    batch = next(iter(random_crops(dataset(torch.uint8), 8, 3)))
    assert batch.mask is None and batch.x.dtype == torch.float32
    assert torch.equal(batch.controls, -batch.x)


def test_short_sequences_are_padded_on_demand() -> None:
    loader = random_crops(dataset(), 10, 7, short="pad")
    (batch,) = loader
    assert len(loader) == 1 and batch.x.shape == (7, 10, 2)
    for x, mask in zip(batch.x, batch.mask, strict=True):
        sequence = int(x[0, 0])
        assert mask.sum() == min(LENGTHS[sequence], 10)
        assert x[mask].isfinite().all() and (x[mask][:, 0] == sequence).all()
        assert not mask[1:][~mask[:-1]].any()


def test_crops_longer_than_the_data_are_padded_too() -> None:
    short = SequenceDataset(torch.ones(2, 3, 1))
    (batch,) = random_crops(short, 5, 2, short="pad")
    assert batch.x.shape == (2, 5, 1)
    assert batch.mask.tolist() == [[True, True, True, False, False]] * 2


def test_missing_frames_stay_missing() -> None:
    x = torch.arange(20.0)[None, :, None].repeat(3, 1, 1)
    mask = torch.arange(20).expand(3, -1) % 3 != 0
    x[~mask] = torch.nan
    loader = random_crops(SequenceDataset(x, mask), 6, 3)
    for batch in (*loader, *loader):
        assert torch.equal(batch.mask, batch.x.isfinite()[..., 0])
        assert (~batch.mask).sum() == 6


def test_epochs_differ_and_the_seed_decides_them() -> None:
    one, again, other = (random_crops(dataset(), 8, 2, seed=seed) for seed in (0, 0, 1))
    first, second = epoch(one), epoch(one)
    assert torch.equal(epoch(again), first) and torch.equal(epoch(again), second)
    assert not torch.equal(first, second) and not torch.equal(epoch(other), first)
    again.set_epoch(0)
    assert torch.equal(epoch(again), first)


def test_global_random_numbers_are_left_alone() -> None:
    state = torch.get_rng_state()
    list(random_crops(dataset(), 8, 2, augment=add_noise))
    fixed_crops(dataset(), 8, seed=0)
    assert torch.equal(torch.get_rng_state(), state)


def add_noise(batch: Batch, generator: torch.Generator) -> Batch:
    return batch._replace(x=batch.x + torch.randn(batch.x.shape, generator=generator))


def test_a_pass_resumed_in_its_middle_goes_on_to_the_bit() -> None:
    unbroken = random_crops(dataset(), 8, 2, augment=add_noise)
    wanted = [batch.x for _ in range(3) for batch in unbroken]
    resumed = random_crops(dataset(), 8, 2, augment=add_noise)
    resumed.set_epoch(1, start=2)
    came = [batch.x for _ in range(2) for batch in resumed]
    assert len(unbroken) == 3 and len(came) == 4
    assert all(torch.equal(a, b) for a, b in zip(wanted[5:], came, strict=True))


class Interrupt(Callback):
    """Ends a run at a step as a kill would."""

    def __init__(self, step: int | None) -> None:
        self.step = step

    def on_step(self, context: Context) -> None:
        if context.step == self.step:
            raise KeyboardInterrupt


def train(
    folder: Path | None,
    killed_at: int | None = None,
    **options: Any,  # noqa: ANN401
) -> tuple[SequenceLoss, FitResult]:
    x = torch.randn(9, 20, 3, generator=torch.Generator().manual_seed(0))
    crops = random_crops(SequenceDataset(x), 6, 4, augment=add_noise)
    loss = SequenceLoss(*toy_pair(name="crops"))
    optimizer = torch.optim.Adam(loss.parameters(), 1e-2)
    callbacks = [] if folder is None else [Interrupt(killed_at)]
    options |= {"optimizer": optimizer, "checkpoint_dir": folder, "callbacks": callbacks}
    return loss, fit(loss, crops, epochs=3, **options)


def test_training_that_was_killed_in_an_epoch_is_resumed_to_the_bit(tmp_path: Path) -> None:
    wanted, unbroken = train(None)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, killed_at=5, checkpoint_every=1)
    came, resumed = train(tmp_path, checkpoint_every=1, resume=True)
    assert [r["loss"] for r in resumed.history] == [r["loss"] for r in unbroken.history]
    for one, other in zip(wanted.parameters(), came.parameters(), strict=True):
        assert torch.equal(one, other)


def test_augmentation_differs_between_batches_epochs_and_processes() -> None:
    def sample(batch: Batch, generator: torch.Generator) -> Batch:
        return Batch(torch.rand(1, 1, 1, generator=generator, dtype=torch.float64))

    loaders = [
        random_crops(dataset(), 8, 1, augment=sample, rank=rank, world_size=2) for rank in (0, 1)
    ]
    draws = [batch.x.item() for loader in loaders for _ in range(3) for batch in loader]
    assert len(draws) == 2 * 3 * 2 and len(set(draws)) == len(draws)


def test_frames_can_be_hidden_by_augmentation() -> None:
    loader = random_crops(
        dataset(), 8, 4, augment=lambda batch, g: training_mask(batch, 0.5, generator=g)
    )
    hidden = torch.cat([~batch.mask for batch in loader])
    assert not hidden[:, :3].any() and hidden[:, 3:].any()


def test_processes_share_the_crops_of_an_epoch() -> None:
    whole = epoch(random_crops(dataset(), 7, 2, crops_per_sequence=3))
    parts = [
        epoch(random_crops(dataset(), 7, 1, crops_per_sequence=3, rank=rank, world_size=2))
        for rank in (0, 1)
    ]
    assert sorted(torch.cat(parts).tolist()) == sorted(whole.tolist())


def test_fixed_crops_are_fixed_by_their_seed() -> None:
    one, again, other = (fixed_crops(dataset(), 8, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(one[:].x, again[:].x) and not torch.equal(one[:].x, other[:].x)
    found = rows(one[:])
    assert found[:, 0].tolist() == [0, 2, 3, 4, 6]
    assert sum(len(batch.x) for batch in batches(one, 2, shuffle=False)) == 5


def test_fixed_crops_of_short_sequences_keep_their_lengths() -> None:
    crops = fixed_crops(dataset(), 10, seed=0, crops_per_sequence=2, short="pad")
    assert crops.lengths.tolist() == [min(n, 10) for n in LENGTHS for _ in range(2)]
    assert torch.equal(crops[:].mask.sum(1), crops.lengths)


@pytest.mark.gpu
@pytest.mark.parametrize("masked", [False, True])
def test_crops_are_cut_on_the_device_of_the_data(masked: bool) -> None:
    x = torch.randn(3, 9, 88).gt(1).float()
    data = SequenceDataset(x, lengths=[9, 5, 9] if masked else None)
    options = {"short": "pad", "augment": Transpose(-3, 3)}
    pairs = [random_crops(part, 12, 2, **options) for part in (data, data.to("cuda"))]
    for one, other in zip(*pairs, strict=True):
        assert other.x.is_cuda and other.mask.is_cuda
        assert torch.equal(one.x, other.x.cpu()) and torch.equal(one.mask, other.mask.cpu())
    crops = fixed_crops(data.to("cuda"), 4, seed=0)
    assert torch.equal(crops[:].x.cpu(), fixed_crops(data, 4, seed=0)[:].x)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"length": 31}, "length: expected no more steps than the longest sequence has, 30"),
        ({"length": 0}, "length: expected a positive number of steps, got 0"),
        ({"short": "cut"}, "short: expected 'drop' or 'pad', got 'cut'"),
        ({"crops_per_sequence": 0}, "crops_per_sequence: expected a positive number, got 0"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_errors_name_the_argument(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        random_crops(dataset(), **{"length": 8, "batch_size": 2} | arguments)
