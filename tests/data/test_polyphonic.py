from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pyro_seq.data import (
    POLYPHONIC,
    Batch,
    RemoteFile,
    SequenceDataset,
    Transpose,
    load_polyphonic,
    polyphonic,
    random_crops,
)

ROOT = Path(os.environ.get("PYRO_SEQ_DATA", ""))
SIZES = {
    "jsb": ((229, 13807), (76, 4602), (77, 4725)),
    "nottingham": ((694, 176561), (173, 45513), (170, 44463)),
    "muse": ((524, 245202), (135, 82755), (124, 64339)),
    "piano": ((87, 75911), (12, 8540), (25, 19036)),
    "jsb_eighth": ((16, 27200), (16, 8000), (77, 9396)),
}
SPLITS = ("train", "validation", "test")


def load(name: str, split: str) -> SequenceDataset:
    if not (ROOT / "polyphonic" / POLYPHONIC[name].name).is_file():
        pytest.skip(f"data: no {POLYPHONIC[name].name} in $PYRO_SEQ_DATA/polyphonic")
    return load_polyphonic(name, split, ROOT)


def songs() -> list[NDArray[np.uint8]]:
    stream = np.random.default_rng(0)
    return [stream.integers(0, 2, (time, 88), dtype=np.uint8) for time in (3, 7, 5)]


def test_mat_files_are_read_as_written(tmp_path: Path) -> None:
    io = pytest.importorskip("scipy.io")
    cells = np.empty((1, 3), dtype=object)
    cells[0] = songs()
    io.savemat(tmp_path / "a.mat", {"traindata": cells, "validdata": cells[:, :1]})
    read = polyphonic._read_mat(tmp_path / "a.mat", "train")
    assert read.lengths.tolist() == [3, 7, 5]
    for number, song in enumerate(songs()):
        np.testing.assert_array_equal(read[number].x, song)
        assert read[number].x.dtype == torch.float32 and read[number].mask.all()
    assert not read[:].mask[0, 3:].any()
    assert len(polyphonic._read_mat(tmp_path / "a.mat", "valid")) == 1


def test_streams_are_put_together_from_their_windows(tmp_path: Path) -> None:
    streams = np.random.default_rng(0).integers(0, 2, (16, 12, 88)).astype(np.float32)
    windows = np.concatenate([streams[:, start : start + 4] for start in (0, 4, 8)])
    test = np.zeros((2, 5, 88), dtype=np.float32)
    mask = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], dtype=np.float32)
    np.savez(tmp_path / "a.npz", x_train=windows, x_test=test, mask_test=mask)
    np.testing.assert_array_equal(polyphonic._read_npz(tmp_path / "a.npz", "train")[:].x, streams)
    read = polyphonic._read_npz(tmp_path / "a.npz", "test")
    np.testing.assert_array_equal(read[:].mask, mask.astype(bool))


def test_file_is_found_by_its_name_and_hash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYRO_SEQ_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name, file in POLYPHONIC.items():
        assert isinstance(file, RemoteFile) and len(file.sha256) == 64
        path = tmp_path / "polyphonic" / file.name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"another file")
        with pytest.raises(ValueError, match=file.sha256):
            load_polyphonic(name, "train", tmp_path)


@pytest.mark.parametrize(
    ("name", "split", "message"),
    [
        ("bach", "train", "name: expected one of jsb, nottingham, muse, piano, jsb_eighth, got"),
        ("jsb", "valid", "split: expected 'train', 'validation' or 'test', got 'valid'"),
    ],
)
def test_errors_name_the_argument(name: str, split: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_polyphonic(name, split)


def roll(*songs: list[list[int]]) -> Batch:
    """Piano-rolls of 12 keys, from the keys that sound at each step."""
    x = torch.zeros(len(songs), len(songs[0]), 12)
    for number, song in enumerate(songs):
        for step, keys in enumerate(song):
            x[number, step, keys] = 1
    return Batch(x)


def test_transposition_moves_every_note_of_a_song_alike() -> None:
    batch = roll([[4, 6], [5], []], [[5], [5, 7], [4]])
    shifts = set()
    for seed in range(40):
        moved = Transpose(-2, 3)(batch, torch.Generator().manual_seed(seed))
        for before, after in zip(batch.x, moved.x, strict=True):
            shift = int(after.nonzero()[0, 1] - before.nonzero()[0, 1])
            assert torch.equal(after, before.roll(shift, 1))
            shifts.add(shift)
    assert shifts == {-2, -1, 0, 1, 2, 3}


def test_no_note_falls_off_the_keyboard() -> None:
    batch = roll([[0, 6], [5]], [[3], [10]], [[0], [11]], [[], []])
    up = Transpose(4, 4)(batch, torch.Generator())
    assert torch.equal(up.x, roll([[4, 10], [9]], [[4], [11]], [[0], [11]], [[], []]).x)
    down = Transpose(-4, -4)(batch, torch.Generator())
    assert torch.equal(down.x, roll([[0, 6], [5]], [[0], [7]], [[0], [11]], [[], []]).x)


def test_missing_frames_do_not_hold_a_song_back() -> None:
    batch = roll([[3], [11], [4]])
    batch.x[0, 1] = torch.nan
    batch = batch._replace(mask=torch.tensor([[True, False, True]]))
    moved = Transpose(5, 5)(batch, torch.Generator())
    assert moved.x[0, [0, 2]].nonzero()[:, 1].tolist() == [8, 9]
    assert torch.equal(moved.mask, batch.mask)


def test_transposed_crops_are_a_function_of_the_seed() -> None:
    data = SequenceDataset(roll([[k] for k in range(3, 9)], [[5]] * 6).x)
    one, two = (random_crops(data, 4, 1, augment=Transpose(-3, 3), seed=1) for _ in range(2))
    assert all(torch.equal(a.x, b.x) for a, b in zip([*one, *one], [*two, *two], strict=True))


def test_interval_of_transpositions_is_checked() -> None:
    with pytest.raises(ValueError, match="low: expected no more than high = -1, got 2"):
        Transpose(2, -1)


@pytest.mark.data
@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", SIZES)
def test_counts_are_the_published_ones(name: str, split: str) -> None:
    data = load(name, split)
    assert (len(data), int(data.lengths.sum())) == SIZES[name][SPLITS.index(split)]
    assert data.data.x.dtype == torch.uint8 and int(data.data.x.max()) == 1


@pytest.mark.data
def test_chorales_have_the_notes_of_four_voices() -> None:
    data = load("jsb", "train")
    batch = data[:]
    per_step = batch.x.sum(-1)[batch.mask]
    assert abs(float(per_step.mean()) - 3.898) < 1e-3 and float(per_step.max()) <= 4
    assert not batch.x[~batch.mask].any()


@pytest.mark.data
def test_eighth_notes_hold_every_quarter_note_twice() -> None:
    quarter, eighth = load("jsb", "test"), load("jsb_eighth", "test")
    known = {song.x.numpy().tobytes() for song in quarter}
    same = sum(song.x[song.mask][::2].numpy().tobytes() in known for song in eighth)
    assert same > 60
