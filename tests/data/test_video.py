from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pyro_seq.data import KTH_PERSONS, VIDEOS, SequenceDataset, kth, load_kth, load_video
from pyro_seq.data.video import cut_clips

Image = pytest.importorskip("PIL.Image")

ROOT = Path(os.environ.get("PYRO_SEQ_DATA", ""))
SPLITS = ("train", "validation", "test")
LIST = """
==================================
Recognition of human actions
==================================
Sequences are labelled with person, action and scenario; frames 1-2 are examples.

person01_boxing_d1\t\tframes\t1-4, 5-8
person02_walking_d3\t\tframes\t2-7
person11_boxing_d1\t\tframes\t1-3, 4-6, 9-12
person11_boxing_d2\t\t*missing*
person22_running_d4\t\tframes\t1-5
"""
NAMES = ("person01_boxing_d1", "person02_walking_d3", "person11_boxing_d1", "person22_running_d4")


def film(name: str, time: int = 12) -> NDArray[np.uint8]:
    """Grey frames of 160 by 120 pixels whose brightness names the recording and the step."""
    first = 10 + 20 * NAMES.index(name)
    return np.broadcast_to(np.arange(first, first + time)[:, None, None], (time, 120, 160)).astype(
        np.uint8
    )


def write_pictures(folder: Path, frames: NDArray[np.uint8], form: str) -> None:
    folder.mkdir(parents=True)
    for number, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / form.format(number + 1))


def brightness(dataset: SequenceDataset) -> list[list[int]]:
    """The bytes that the frames of each sequence have, once each frame is known to have one."""
    assert dataset[:].x.shape[2:] == (1, 64, 64)
    found = []
    for row in range(len(dataset)):
        x = dataset[row].x * 255
        assert torch.equal(x, x[:, :, :1, :1].round().expand_as(x))
        found.append(x[:, 0, 0, 0].int().tolist())
    return found


def steps(name: str, *ranges: tuple[int, int]) -> list[list[int]]:
    first = int(film(name)[0, 0, 0])
    return [[first + k - 1 for k in range(start, end + 1)] for start, end in ranges]


WANTED = {
    "train": steps("person11_boxing_d1", (1, 3), (4, 6), (9, 12)),
    "validation": steps("person01_boxing_d1", (1, 4), (5, 8)),
    "test": steps("person02_walking_d3", (2, 7)) + steps("person22_running_d4", (1, 5)),
}


@pytest.fixture
def original(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in the original layout, whose films are decoded by their names."""
    for name in NAMES:
        path = tmp_path / name.split("_")[1] / f"{name}_uncomp.avi"
        path.parent.mkdir(exist_ok=True)
        path.touch()
    (tmp_path / "00sequences.txt").write_text(LIST)
    monkeypatch.setattr(kth, "_decode_film", lambda path: film(path.stem.removesuffix("_uncomp")))
    return tmp_path


@pytest.mark.parametrize("split", SPLITS)
def test_films_are_cut_by_the_list(original: Path, split: str) -> None:
    assert brightness(load_kth(original, split)) == WANTED[split]


@pytest.mark.parametrize("split", SPLITS)
def test_folders_of_frames_are_cut_by_the_list_too(tmp_path: Path, split: str) -> None:
    for name in NAMES:
        folder = tmp_path / name.split("_")[1] / f"{name}_uncomp"
        write_pictures(folder, film(name), "image-{:d}_160x120.png")
    (tmp_path / "00sequences.txt").write_text(LIST)
    assert brightness(load_kth(tmp_path, split)) == WANTED[split]


def test_folders_of_clips_are_clips(tmp_path: Path) -> None:
    for number in (10, 2, 0):
        frames = film("person11_boxing_d1")[:, :64, :64] + number
        write_pictures(tmp_path / "train" / f"person11_boxing_d1_{number}", frames, "{}.png")
    (tmp_path / "00sequences.txt").write_text(LIST)
    ((whole,),) = (steps("person11_boxing_d1", (1, 12)),)
    came = brightness(load_kth(tmp_path, "train"))
    assert came == [[value + number for value in whole] for number in (0, 2, 10)]


def test_persons_are_in_one_split_each() -> None:
    persons = [person for split in SPLITS for person in KTH_PERSONS[split]]
    assert sorted(persons) == list(range(1, 26))
    assert [len(KTH_PERSONS[split]) for split in SPLITS] == [8, 8, 9]


def test_frames_are_reduced_as_pillow_does() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (3, 120, 160), dtype=np.uint8)
    came = kth._reduce(frames).astype(int)
    for frame, reduced in zip(frames, came, strict=True):
        wanted = Image.fromarray(frame).resize((64, 64), Image.Resampling.BILINEAR)
        assert np.abs(reduced[0] - np.asarray(wanted)).max() <= 1


def test_clips_can_be_cut_further(original: Path) -> None:
    came = load_kth(original, "test", clip=3)
    wanted = steps("person02_walking_d3", (2, 4), (5, 7)) + steps("person22_running_d4", (1, 3))
    assert brightness(came) == wanted and came.lengths is None


def test_films_cut_short_lose_their_last_clips(
    original: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kth, "_decode_film", lambda path: film(path.stem[:-7], 5))
    with pytest.warns(UserWarning, match="5 frames, and 1 of its 3 clips begin later"):
        came = brightness(load_kth(original, "train"))
    assert came == steps("person11_boxing_d1", (1, 3), (4, 5))


def test_films_are_decoded(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    path = tmp_path / "walking" / "person02_walking_d3_uncomp.avi"
    path.parent.mkdir()
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 160, 120, "yuv420p"
        for frame in film("person02_walking_d3"):
            picture = av.VideoFrame.from_ndarray(np.repeat(frame[..., None], 3, 2), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    (tmp_path / "00sequences.txt").write_text(LIST)
    x = load_kth(tmp_path, "test")[:].x * 255
    (wanted,) = steps("person02_walking_d3", (2, 7))
    assert x.shape == (1, 6, 1, 64, 64)
    assert (x[0].mean((1, 2, 3)) - torch.tensor(wanted)).abs().max() < 3


def test_missing_decoder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    path = tmp_path / "boxing" / "person11_boxing_d1_uncomp.avi"
    path.parent.mkdir()
    path.touch()
    (tmp_path / "00sequences.txt").write_text(LIST)
    with pytest.raises(ImportError, match="person11_boxing_d1_uncomp.avi takes PyAV: pip install"):
        load_kth(tmp_path, "train")


def test_missing_files_are_named(original: Path) -> None:
    (original / "00sequences.txt").unlink()
    with pytest.raises(FileNotFoundError, match="list of clips 00sequences.txt"):
        load_kth(original, "train")
    with pytest.raises(FileNotFoundError, match="person01_boxing_d1_uncomp.avi or folders"):
        load_kth(original / "boxing" / "nothing", "train")


def test_videos_become_numbers_from_0_to_1() -> None:
    videos = [np.full((time, 3, 4, 4), 51 * time, dtype=np.uint8) for time in (2, 5)]
    whole = cut_clips(videos)
    assert whole.lengths.tolist() == [2, 5] and whole[:].x.dtype == torch.float32
    assert whole[1].x.unique().tolist() == [1.0]
    torch.testing.assert_close(whole[0].x, torch.full((2, 3, 4, 4), 0.4))
    assert cut_clips(videos, 2)[:].x.shape == (3, 2, 3, 4, 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "valid"}, "split: expected 'train', 'validation' or 'test', got 'valid'"),
        ({"videos": ["parrot"]}, "videos: expected names of cockatoo_left, .*'parrot'"),
    ],
)
def test_errors_of_videos_name_the_argument(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_video(**{"split": "train"} | arguments)


@pytest.mark.parametrize(
    ("split", "clip", "message"),
    [
        ("all", None, "split: expected"),
        ("train", 0, "clip: expected a positive"),
        ("train", 9, "clip: expected no more frames than the longest video has, 4, got 9"),
    ],
)
def test_errors_of_kth_name_the_argument(
    original: Path, split: str, clip: int | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        load_kth(original, split, clip=clip)


def load(split: str, **options: object) -> SequenceDataset:
    if not (ROOT / "video64" / "video64.npz").is_file():
        pytest.skip("data: no video64.npz in $PYRO_SEQ_DATA/video64")
    return load_video(split, ROOT, **options)


@pytest.mark.data
def test_shared_video_is_split_by_time() -> None:
    whole = np.load(ROOT / "video64" / "video64.npz") if load("train") else {}
    for number, name in enumerate(VIDEOS):
        parts = [load(split, grey=False)[number] for split in SPLITS]
        came = torch.cat([part.x[part.mask] for part in parts]) * 255
        np.testing.assert_array_equal(came.round().permute(0, 2, 3, 1), whole[name])


@pytest.mark.data
def test_shared_video_is_grey_on_demand() -> None:
    colours, grey = (load("test", grey=grey, clip=20)[:].x for grey in (False, True))
    assert colours.shape == (7, 20, 3, 64, 64) and grey.shape == (7, 20, 1, 64, 64)
    weights = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
    torch.testing.assert_close(
        (colours * weights).sum(2, keepdim=True), grey, rtol=0.0, atol=0.6 / 255
    )
    torch.testing.assert_close(grey * 255, (grey * 255).round(), rtol=0.0, atol=1e-4)
