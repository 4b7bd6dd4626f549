r"""KTH Actions, video of people who walk, jog, run, box, wave and clap.

References:
    C. Schuldt, I. Laptev, B. Caputo (2004). Recognizing Human Actions: A Local SVM Approach.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Literal, NamedTuple

import numpy as np
import torch

from pyro_seq.data.dataset import SequenceDataset
from pyro_seq.data.video import Bytes, cut_clips

__all__ = ["KTH_PERSONS", "load_kth"]

SIZE = 64
KTH_PERSONS: Mapping[str, tuple[int, ...]] = MappingProxyType(
    {
        "train": (11, 12, 13, 14, 15, 16, 17, 18),
        "validation": (19, 20, 21, 23, 24, 25, 1, 4),
        "test": (22, 2, 3, 5, 6, 7, 8, 9, 10),
    }
)
_NAME = re.compile(r"(person(\d\d)_[a-z]+_d\d)(?:_uncomp)?(?:_(\d+))?")
_ENTRY = re.compile(r"(person\d\d_[a-z]+_d\d)\s+frames\s+([\d\s,-]+)")
_SEQUENCES = "00sequences.txt"
_Clips = dict[str, list[tuple[int, int]]]


class _Recording(NamedTuple):
    """A film, or a folder of its frames, or of the frames of one clip of it."""

    name: str
    path: Path
    is_clip: bool


def load_kth(
    folder: Path | str, split: Literal["train", "validation", "test"], *, clip: int | None = None
) -> SequenceDataset:
    """Load KTH Actions from your copy: grey video of six actions, 25 persons, 4 scenes.

    The folder holds, at any depth, one of:

    * the original recordings, ``boxing/person01_boxing_d1_uncomp.avi`` and so on, of 160 by 120
      pixels, together with their list of clips, ``00sequences.txt``, at the top of the folder.
      Reading them takes PyAV (``pip install av``);
    * folders of the same names with frames as PNG, in the order of the numbers in their names,
      such as ``boxing/person01_boxing_d1_uncomp/image-001_64x64.png``. They are cut by
      ``00sequences.txt`` where there is one, else each folder is a clip;
    * folders of single clips, ``person01_boxing_d1_0/0.png``. Reading PNG takes Pillow.

    Frames are reduced to 64 by 64 pixels by Pillow's bilinear filter, so that people become
    narrow, and rounded to bytes. The split is by person, that of the original publication: 8, 8
    and 9 persons with 760, 768 and 863 clips. Clips have up to some hundred frames, and the
    training set takes several GB; `clip` makes it smaller.

    Args:
        folder: Your copy.
        split: "train", "validation" or "test".
        clip: When given, clips are cut further to this number of frames, one after the other, and
            what is left over is dropped. Random ones for training come from `random_crops`.

    Returns:
        The clips, (clips, time, 1, 64, 64), pixels from 0 to 1 in steps of 1/255, by the names of
        their recordings.

    Raises:
        ValueError: If the split is unknown or no clip is as long as `clip`.
        FileNotFoundError: If the folder holds no recording of the split, or no list of clips.
        ImportError: If what reads the files is not installed.
    """
    if split not in KTH_PERSONS:
        raise ValueError(f"split: expected 'train', 'validation' or 'test', got {split!r}.")
    root = Path(folder).expanduser()
    listed = _read_sequences(root / _SEQUENCES)
    videos: list[Bytes] = []
    for recording in _find_recordings(root, KTH_PERSONS[split]):
        videos += _read_clips(recording, listed)
    return cut_clips(videos, clip)


def _find_recordings(root: Path, persons: Sequence[int]) -> list[_Recording]:
    """Return films and folders of frames of some persons, by name."""
    found = {}
    for path in sorted(root.rglob("person*")):
        film = path.suffix == ".avi"
        match = _NAME.fullmatch(path.stem if film else path.name)
        if match and int(match[2]) in persons and (film or any(path.glob("*.png"))):
            number = match[3]
            found[match[1], int(number or 0)] = _Recording(match[1], path, number is not None)
    if not found:
        raise FileNotFoundError(
            f"folder: expected KTH Actions in {root}, films such as "
            "boxing/person01_boxing_d1_uncomp.avi or folders of that name with PNG frames, found "
            f"none of the persons {list(persons)}. Get it from https://www.csc.kth.se/cvap/actions"
        )
    return [found[key] for key in sorted(found)]


def _read_sequences(path: Path) -> _Clips | None:
    """Read the list of clips: the first and the last frame of each, counted from 1."""
    if not path.is_file():
        return None
    ranges = re.compile(r"(\d+)\s*-\s*(\d+)")
    return {
        entry[1]: [(int(first), int(last)) for first, last in ranges.findall(entry[2])]
        for entry in _ENTRY.finditer(path.read_text(encoding="latin-1"))
    }


def _read_clips(recording: _Recording, listed: _Clips | None) -> list[Bytes]:
    """Read the clips of a recording, (time, 1, 64, 64) each."""
    name, path, is_clip = recording
    film = path.suffix == ".avi"
    if film and (listed is None or name not in listed):
        raise FileNotFoundError(
            f"folder: expected the list of clips {_SEQUENCES} at its top, and in it {name}, found "
            "none. Get it from https://www.csc.kth.se/cvap/actions/00sequences.txt"
        )
    frames = _reduce(_decode_film(path) if film else _read_pictures(path))
    if is_clip or listed is None or name not in listed:
        return [frames]
    clips = [frames[first - 1 : last] for first, last in listed[name]]
    kept = [clip for clip in clips if len(clip)]
    if len(kept) < len(clips):
        warnings.warn(
            f"{path} is cut short: it has {len(frames)} frames, and {len(clips) - len(kept)} of "
            f"its {len(clips)} clips begin later and are left out",
            stacklevel=3,
        )
    return kept


def _decode_film(path: Path) -> Bytes:
    """Return the grey frames of a film, (time, height, width)."""
    try:
        import av  # type: ignore[import-not-found,unused-ignore]
    except ImportError as error:
        raise ImportError(
            f"Reading {path.name} takes PyAV: pip install av. Or write the frames of each film to "
            "a folder of its name, as PNG."
        ) from error
    with av.open(str(path)) as film:
        return np.stack([frame.to_ndarray(format="gray") for frame in film.decode(video=0)])


def _read_pictures(folder: Path) -> Bytes:
    """Return the grey frames of a folder of pictures, (time, height, width)."""
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError("Reading PNG frames takes Pillow: pip install pillow.") from error
    paths = sorted(folder.glob("*.png"), key=lambda path: _numbers(path.name))
    return np.stack([np.asarray(Image.open(path).convert("L")) for path in paths])


def _numbers(name: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", name)]


def _reduce(frames: Bytes) -> Bytes:
    """Reduce frames (time, height, width) to (time, 1, 64, 64)."""
    x = torch.as_tensor(frames)[:, None]
    if x.shape[2:] == (SIZE, SIZE):
        return x.numpy()
    reduced = torch.nn.functional.interpolate(
        x.float(), (SIZE, SIZE), mode="bilinear", antialias=True
    )
    return reduced.round().clamp(0, 255).byte().numpy()
