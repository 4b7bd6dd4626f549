r"""Speech as waveforms, cut into windows: one frame is 200 samples.

References:
    J. Chung, K. Kastner, L. Dinh, K. Goel, A. Courville, Y. Bengio (2015). A Recurrent Latent
    Variable Model for Sequential Data. https://arxiv.org/abs/1506.02216
"""

from __future__ import annotations

import wave
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyro_seq.data.dataset import SequenceDataset
from pyro_seq.data.loaders import RemoteFile, locate

__all__ = ["Speech", "load_speech", "load_timit"]

Waveform = NDArray[np.int16]
Split = Literal["train", "validation", "test"]

_RESEMBLYZER = (
    "https://github.com/resemble-ai/Resemblyzer/tree/"
    "15d828edebe06bc72b9cabc8ef8ca5ab2cb457ce/audio_data"
)
_FSDD = (
    "https://github.com/Jakobovski/free-spoken-digit-dataset/tree/"
    "26eb9aaf76e81b692f806f9140c2d2777410d7a1/recordings"
)
_FILES = {
    "librispeech_train": RemoteFile(
        "speech",
        "librispeech_train.npz",
        _RESEMBLYZER,
        "3fc040ee3079759048eedf7351473c7840abb72a82dd62b2942af47230b60bbb",
        derived=True,
    ),
    "librispeech_test": RemoteFile(
        "speech",
        "librispeech_test.npz",
        _RESEMBLYZER,
        "d58467c9a6da0733934801624a6bcd1303486b0f1305b714cc08d6546315132d",
        derived=True,
    ),
    "fsdd": RemoteFile(
        "speech",
        "fsdd_takes00-24.npz",
        _FSDD,
        "9bab0a9f20c2bef570c6e73e90cd681ec6bcb4ef37e9094708d3a78c80bfb7ec",
        derived=True,
    ),
}
_TEST_TAKES = 5


class Speech(NamedTuple):
    r"""Standardised waveforms, :math:`x = (s - m) / \sigma` of the samples :math:`s`.

    Attributes:
        dataset: The utterances, (utterances, time, window), each with its length in windows.
        mean: m, the mean of all training samples, in steps of 16 bit.
        std: :math:`\sigma`, their standard deviation, in steps of 16 bit.
        width: :math:`1 / \sigma`, the size of one step of 16 bit in the units of the frames: the
            `width` of a `DiscretizedNormal`.
        sample_rate: The number of samples per second.
    """

    dataset: SequenceDataset
    mean: float
    std: float
    width: float
    sample_rate: int


def load_speech(
    corpus: Literal["librispeech", "fsdd"],
    split: Split,
    data_dir: Path | str | None = None,
    *,
    window: int = 200,
    validation: float = 0.1,
    seed: int = 0,
) -> Speech:
    """Load open speech, cut into windows and standardised by the training utterances.

    "librispeech" is read English at 16 kHz, 41 utterances of 41 speakers for training and
    validation and 45 of 10 other speakers for the test (LibriSpeech, CC BY 4.0). "fsdd" is spoken
    digits at 8 kHz of 6 speakers, 1,200 recordings for training and validation and 300, the takes
    0 to 4, for the test (Free Spoken Digit Dataset, CC BY-SA 4.0). Neither replaces TIMIT for a
    comparison with published numbers.

    Args:
        corpus: "librispeech" or "fsdd".
        split: "train", "validation" or "test".
        data_dir: The directory whose folder ``speech`` to look in first; see `locate`.
        window: The number of samples of a frame. What is left over at the end of an utterance
            is dropped.
        validation: The share of the training utterances that are kept for validation.
        seed: The seed by which they are chosen.

    Returns:
        The frames, and what they were standardised by, which is the same for every split.

    Raises:
        ValueError: If the corpus or the split is unknown, a number is out of its range, or a file
            has the wrong hash.
        FileNotFoundError: If a file is nowhere.
    """
    if corpus not in ("librispeech", "fsdd"):
        raise ValueError(f"corpus: expected 'librispeech' or 'fsdd', got {corpus!r}.")
    if corpus == "fsdd":
        recordings, rate, take = _read_npz(locate(_FILES["fsdd"], data_dir))
        training = [recordings[i] for i in np.flatnonzero(take >= _TEST_TAKES)]
        test = [recordings[i] for i in np.flatnonzero(take < _TEST_TAKES)]
    else:
        training, rate, _ = _read_npz(locate(_FILES["librispeech_train"], data_dir))
        test = []
        if split == "test":
            test, _, _ = _read_npz(locate(_FILES["librispeech_test"], data_dir))
    return _speech(training, test, split, rate, window, validation, seed)


def load_timit(
    folder: Path | str,
    split: Split,
    *,
    window: int = 200,
    validation: float = 0.05,
    seed: int = 0,
) -> Speech:
    """Load TIMIT from your copy, cut into windows and standardised by the training utterances.

    TIMIT (LDC93S1) is licensed and cannot be downloaded. The folder has the original layout,
    ``TRAIN/DR1/FCJF0/SA1.WAV`` and so on, in upper or lower case, at its top or some levels below.
    Files are NIST SPHERE, as on the original disk, or RIFF, as in converted copies. The 1,680 test
    files are the test set, 5 % of the 4,620 training files are kept for validation, all SA
    sentences included, as in the AVF paper. In memory the training set takes 2 GB.

    Args:
        folder: The folder that holds ``TRAIN`` and ``TEST``.
        split: "train", "validation" or "test".
        window: The number of samples of a frame. What is left over at the end of an utterance
            is dropped.
        validation: The share of the training files that are kept for validation.
        seed: The seed by which they are chosen.

    Returns:
        The frames, and what they were standardised by, which is the same for every split.

    Raises:
        ValueError: If the split is unknown, a number is out of its range, or a file is not 16 bit
            speech of one channel.
        FileNotFoundError: If the folder holds no such files.
    """
    training = [_read_waveform(path) for path in _timit_files(Path(folder), "train")]
    test = []
    if split == "test":
        test = [_read_waveform(path)[0] for path in _timit_files(Path(folder), "test")]
    waveforms, rate = [waveform for waveform, _ in training], training[0][1]
    return _speech(waveforms, test, split, rate, window, validation, seed)


def _speech(
    training: list[Waveform],
    test: list[Waveform],
    split: str,
    sample_rate: int,
    window: int,
    validation: float,
    seed: int,
) -> Speech:
    """Choose a split, and standardise it by what is left of the training utterances."""
    if split not in ("train", "validation", "test"):
        raise ValueError(f"split: expected 'train', 'validation' or 'test', got {split!r}.")
    if not 0 <= validation < 1:
        raise ValueError(
            f"validation: expected a share of the training utterances from 0 to less than 1, got "
            f"{validation}."
        )
    count = int(validation * len(training))
    order = np.random.default_rng(seed).permutation(len(training))
    train, held_out = (
        [training[i] for i in np.sort(part)] for part in (order[count:], order[:count])
    )
    chosen = {"train": train, "validation": held_out, "test": test}[split]
    mean, std = _moments(train)
    dataset = _frames(chosen, window, mean, std)
    return Speech(dataset, mean, std, 1.0 / std, sample_rate)


def _moments(waveforms: Sequence[Waveform]) -> tuple[float, float]:
    """Return the mean and the standard deviation of all samples."""
    count = sum(len(waveform) for waveform in waveforms)
    mean = sum(float(waveform.sum(dtype=np.int64)) for waveform in waveforms) / count
    square = sum(float(((waveform - mean) ** 2).sum()) for waveform in waveforms) / count
    return mean, square**0.5


def _frames(
    waveforms: Sequence[Waveform], window: int, mean: float, std: float
) -> SequenceDataset:
    """Cut waveforms into windows and standardise them, (utterances, time, window)."""
    if not waveforms:
        raise ValueError("validation: expected a share of at least one utterance, got none.")
    shortest = min(len(waveform) for waveform in waveforms)
    if not 1 <= window <= shortest:
        raise ValueError(
            f"window: expected from 1 to {shortest} samples, which the shortest utterance has, "
            f"got {window}."
        )
    lengths = [len(waveform) // window for waveform in waveforms]
    x = np.zeros((len(waveforms), max(lengths), window), dtype=np.float32)
    for row, waveform, length in zip(x, waveforms, lengths, strict=True):
        row[:length] = ((waveform[: length * window] - mean) / std).reshape(length, window)
    return SequenceDataset(x, lengths=lengths)


def _read_npz(path: Path) -> tuple[list[Waveform], int, NDArray[np.uint8]]:
    """Read utterances that lie end to end: waveforms, sample rate, and takes where there are."""
    with np.load(path) as archive:
        waveforms = np.split(archive["audio"], archive["offsets"][1:-1])
        take = archive["take"] if "take" in archive else np.zeros(len(waveforms), dtype=np.uint8)
        return waveforms, int(archive["sample_rate"]), take


def _timit_files(folder: Path, part: str) -> list[Path]:
    """Find the waveforms of one part, ordered by dialect, speaker and sentence."""
    found: dict[tuple[str, ...], Path] = {}
    for path in sorted(folder.expanduser().rglob("*")):
        names = [name.lower() for name in path.parts[-4:]]
        if path.suffix.lower() == ".wav" and len(names) == 4 and names[0] == part:
            found.setdefault((*names[1:3], names[3].split(".")[0]), path)
    if not found:
        raise FileNotFoundError(
            f"folder: expected TIMIT in its original layout, {part.upper()}/DR1/FCJF0/SA1.WAV and "
            f"so on, in {folder}, found no such file. TIMIT is licensed: "
            "https://catalog.ldc.upenn.edu/LDC93S1"
        )
    return [found[key] for key in sorted(found)]


def _read_waveform(path: Path) -> tuple[Waveform, int]:
    """Read a NIST SPHERE or a RIFF file of 16 bit samples of one channel; and its sample rate."""
    content = path.read_bytes()
    if content.startswith(b"NIST_1A"):
        return _read_sphere(path, content)
    if not content.startswith(b"RIFF"):
        raise ValueError(f"{path}: expected NIST SPHERE or RIFF, got the start {content[:8]!r}.")
    with wave.open(str(path)) as file:
        if (file.getnchannels(), file.getsampwidth()) != (1, 2):
            raise ValueError(
                f"{path}: expected one channel of 16 bit, got {file.getnchannels()} of "
                f"{8 * file.getsampwidth()} bit."
            )
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2")
        return samples.astype(np.int16), file.getframerate()


def _read_sphere(path: Path, content: bytes) -> tuple[Waveform, int]:
    """Read NIST SPHERE: a header of lines "name -type value", then the samples."""
    size = int(content[8:16])
    header = content[:size].decode("ascii", "replace").partition("end_head")[0]
    lines = [line.split(maxsplit=2) for line in header.splitlines()]
    fields = {line[0]: line[2].strip() for line in lines if len(line) == 3}
    coding = fields.get("sample_coding", "pcm")
    layout = (fields.get("channel_count", "1"), fields.get("sample_n_bytes", "2"), coding)
    if layout != ("1", "2", "pcm"):
        raise ValueError(
            f"{path}: expected one channel of 2 bytes per sample, coded as pcm, got {layout}. "
            "Compressed files become plain ones by the tool sph2pipe."
        )
    order = ">" if fields.get("sample_byte_format", "01") == "10" else "<"
    samples = np.frombuffer(content, f"{order}i2", int(fields["sample_count"]), offset=size)
    return samples.astype(np.int16), int(fields["sample_rate"])
