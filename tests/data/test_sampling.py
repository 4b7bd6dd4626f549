from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch.utils.data import DataLoader

from pyro_seq.data import Batch, BucketSampler, SequenceDataset, batches, pad_sequences


def numbered(sequences: int, time: int = 6) -> SequenceDataset:
    """A data set whose every value is the number of its sequence."""
    x = torch.arange(sequences, dtype=torch.float64)[:, None, None].expand(-1, time, 2)
    return SequenceDataset(x, controls=x + 100)


def numbers(batch: Batch) -> list[int]:
    assert (batch.x == batch.x[:, :1, :1]).all()
    return batch.x[:, 0, 0].int().tolist()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool])
def test_bytes_and_bools_become_floats_of_the_same_values(dtype: torch.dtype) -> None:
    x = torch.randint(2, (5, 4, 3)).to(dtype)
    mask = torch.rand(5, 4) < 0.5
    dataset = SequenceDataset(x.numpy(), mask.numpy())
    batch = dataset[[3, 1]]
    assert dataset.data.x.dtype == dtype and batch.x.dtype == torch.get_default_dtype()
    assert batch.x.equal(x[[3, 1]].float()) and batch.mask.equal(mask[[3, 1]])
    assert batch.controls is None
    assert dataset[2].x.equal(x[2].float()) and dataset[2].mask.equal(mask[2])


def test_batches_of_padded_sequences_are_cut_to_their_longest() -> None:
    padded = pad_sequences([torch.ones(length, 2) for length in (3, 9, 5)])
    dataset = SequenceDataset(*padded, lengths=padded.lengths)
    batch = dataset[[0, 2]]
    assert batch.x.shape == (2, 5, 2) and batch.lengths.tolist() == [3, 5]
    assert dataset[[1, 0]].mask.shape == (2, 9)
    x = torch.where(padded.mask[..., None], padded.x, torch.nan)
    unmarked = SequenceDataset(x, lengths=[3, 9, 5])
    assert unmarked.data.mask.equal(padded.mask)


def test_data_set_checks_what_it_is_given() -> None:
    with pytest.raises(ValueError, match="x: expected finite numbers"):
        SequenceDataset(torch.full((2, 3, 1), torch.nan))
    with pytest.raises(ValueError, match="lengths: expected 2 numbers from 1 to 3"):
        SequenceDataset(torch.zeros(2, 3, 1), lengths=[3, 4])


def test_slices_are_batches() -> None:
    dataset = SequenceDataset(torch.arange(24.0).view(4, 3, 2), lengths=[1, 2, 3, 1])
    for part, rows in ((dataset[:2], [0, 1]), (dataset[1::2], [1, 3]), (dataset[:], range(4))):
        assert torch.equal(part.x, dataset[rows].x) and torch.equal(part.mask, dataset[rows].mask)
    assert dataset[:2].x.shape == (2, 2, 2)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (Batch(torch.ones(2, 3, 1)), r"got a Batch. Use SequenceDataset\(\*batch\)"),
        ([torch.ones(3, 2), torch.ones(4, 2)], r"x: expected a tensor .* got list .*pad_sequen"),
        ("path", "got str"),
    ],
)
def test_what_is_no_array_is_named(x: object, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        SequenceDataset(x)  # type: ignore[arg-type]


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("sequences", [24, 25, 27, 31, 47])
def test_processes_share_every_sequence_once_in_equally_many_batches(
    sequences: int, world_size: int, shuffle: bool
) -> None:
    samplers = [
        BucketSampler(sequences, 4, shuffle=shuffle, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    shares = [list(sampler) for sampler in samplers]
    assert len({len(share) for share in shares}) == 1
    assert all(len(share) == len(sampler) for share, sampler in zip(shares, samplers, strict=True))
    assert all(group for share in shares for group in share)
    assert sorted(sum((sum(share, []) for share in shares), [])) == list(range(sequences))


@pytest.mark.parametrize("world_size", [1, 3])
def test_dropping_the_last_batch_leaves_full_ones(world_size: int) -> None:
    left_out = Counter()
    for epoch in range(5):
        seen = []
        for rank in range(world_size):
            sampler = BucketSampler(
                29, 4, seed=1, drop_last=True, rank=rank, world_size=world_size
            )
            sampler.set_epoch(epoch)
            groups = list(sampler)
            assert len(groups) == 29 // (4 * world_size) == len(sampler)
            assert all(len(group) == 4 for group in groups)
            seen += sum(groups, [])
        assert len(set(seen)) == len(seen)
        left_out.update(set(range(29)) - set(seen))
    assert len(left_out) > 29 % (4 * world_size)


def test_buckets_waste_little_padding() -> None:
    lengths = torch.randint(5, 100, (2000,), generator=torch.Generator().manual_seed(0))

    def padding(groups: list[list[int]]) -> float:
        padded = sum(int(lengths[group].max()) * len(group) for group in groups)
        return 1 - float(lengths.sum()) / padded

    sampler = BucketSampler(lengths, 16, seed=0)
    one = list(sampler)
    assert padding(one) < 0.05 < 0.3 < padding(list(BucketSampler(2000, 16, seed=0)))
    sampler.set_epoch(1)
    assert list(sampler) != one
    means = torch.stack([lengths[group].double().mean() for group in one])
    assert abs(torch.corrcoef(torch.stack([means, torch.arange(125.0).double()]))[0, 1]) < 0.3


def test_epoch_and_seed_decide_the_order() -> None:
    def order(seed: int, epoch: int) -> list[list[int]]:
        loader = batches(numbered(40), 8, seed=seed)
        loader.set_epoch(epoch)
        return [numbers(batch) for batch in loader]

    assert order(1, 2) == order(1, 2)
    assert order(1, 2) != order(1, 3) and order(1, 2) != order(2, 2)


def test_complete_passes_move_on_and_early_ends_do_not() -> None:
    loader = batches(numbered(40), 8)
    next(iter(loader))
    passes = [[numbers(batch) for batch in loader] for _ in range(3)]
    for epoch, came in enumerate(passes):
        loader.set_epoch(epoch)
        assert [numbers(batch) for batch in loader] == came
    assert passes[0] != passes[1] != passes[2]


def test_resumed_pass_equals_the_rest_of_the_whole_one() -> None:
    def loader() -> object:
        return batches(numbered(42), 8, seed=3, drop_probability=0.5, observed_start=1)

    whole = loader()
    whole.set_epoch(4)
    expected = [*whole, *whole]
    resumed = loader()
    resumed.set_epoch(4, start=2)
    came = [*resumed, *resumed]
    assert len(came) == len(expected) - 2 == 2 * len(whole) - 2
    for batch, wanted in zip(came, expected[2:], strict=True):
        assert all(part.equal(other) for part, other in zip(batch, wanted, strict=True))


def test_hidden_frames_differ_between_batches_epochs_and_processes() -> None:
    masks = []
    for rank in range(2):
        loader = batches(
            numbered(32, 20), 8, drop_probability=0.5, rank=rank, world_size=2, seed=1
        )
        masks += [batch.mask for _ in range(2) for batch in loader]
    assert len(masks) == 8 and all(mask[:, :3].all() for mask in masks)
    assert not any(one.equal(two) for one in masks for two in masks if one is not two)


def test_unshuffled_batches_keep_the_order() -> None:
    loader = batches(numbered(10), 4, shuffle=False)
    assert [numbers(batch) for batch in loader] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    for batch in loader:
        assert batch.controls.equal(batch.x + 100) and batch.mask is None


def test_parts_work_with_the_loader_of_torch() -> None:
    dataset, sampler = numbered(10), BucketSampler(10, 4)
    loader = DataLoader(dataset, sampler=sampler, batch_size=None, collate_fn=None)
    assert [numbers(dataset[group]) for group in sampler] == [numbers(batch) for batch in loader]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lengths": 3, "batch_size": 4, "world_size": 4}, "batch of 4 in each of 4 .* got 3"),
        ({"lengths": 3, "batch_size": 4, "drop_last": True}, "batch of 4 in each of 1 .* got 3"),
        ({"lengths": 3, "batch_size": 0}, "expected a positive batch size"),
        ({"lengths": 9, "batch_size": 2, "rank": 2, "world_size": 2}, "got 2, 2, 2"),
    ],
)
def test_sampler_errors_name_the_argument(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BucketSampler(**arguments)
