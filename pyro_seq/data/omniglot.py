"""Omniglot: 1,623 characters of 50 alphabets, each drawn by 20 people."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from pyro_seq.data.loaders import RemoteFile, locate
from pyro_seq.data.pictures import Pictures, finish

__all__ = ["ALPHABETS", "load_omniglot"]

HELD_OUT = 3
HELD_OUT_SEED = 0
ORIGINAL, REDUCED = 105, 28

_URL = (
    "https://raw.githubusercontent.com/bitsandscraps/omniglot/"
    "b0481240b7eb42393285a93ce7d2f266ff10c62b/"
)
_FILES = (
    RemoteFile(
        "omniglot",
        "images_background.npz",
        _URL + "images_background.npz",
        "8bf84167413cd00beacdce3fe582f780ab538d8dbef043a6d688f2527bbce199",
    ),
    RemoteFile(
        "omniglot",
        "images_evaluation.npz",
        _URL + "images_evaluation.npz",
        "0b84c7ffd94c4841c0040e529c86a82eaaccb986d8eadad5673f7991b7475276",
    ),
)
ALPHABETS: Mapping[str, int] = MappingProxyType(
    {
        "Arcadian": 26,
        "Armenian": 41,
        "Asomtavruli (Georgian)": 40,
        "Balinese": 24,
        "Bengali": 46,
        "Blackfoot (Canadian Aboriginal Syllabics)": 14,
        "Braille": 26,
        "Cyrillic": 33,
        "Early Aramaic": 22,
        "Syriac (Estrangelo)": 23,
        "Anglo-Saxon Futhorc": 29,
        "Futurama": 26,
        "Grantha": 43,
        "Greek": 24,
        "Gujarati": 48,
        "Hebrew": 22,
        "Japanese (Hiragana)": 52,
        "Inuktitut (Canadian Aboriginal Syllabics)": 16,
        "Malay (Jawi-Arabic)": 40,
        "Japanese (Katakana)": 47,
        "Korean": 40,
        "Latin": 26,
        "Alphabet of the Magi": 20,
        "Mkhedruli (Georgian)": 41,
        "Burmese (Myanmar)": 34,
        "N Ko": 33,
        "Ojibwe (Canadian Aboriginal Syllabics)": 14,
        "Sanskrit": 42,
        "Tagalog": 17,
        "Tifinagh": 55,
        "Angelic": 20,
        "Atemayar Qelisayer": 26,
        "Atlantean": 26,
        "Aurek-Besh": 26,
        "Avesta": 26,
        "Ge ez": 26,
        "Glagolitic": 45,
        "Gurmukhi": 45,
        "Kannada": 41,
        "Keble": 26,
        "Malayalam": 47,
        "Manipuri": 40,
        "Mongolian": 30,
        "Old Church Slavonic (Cyrillic)": 45,
        "Oriya": 46,
        "Syriac (Serto)": 23,
        "Sylheti": 28,
        "Tengwar": 25,
        "Tibetan": 42,
        "ULOG": 26,
    }
)
"""The number of characters of each alphabet, in the order of the labels."""


def load_omniglot(
    split: Literal["train", "test"],
    data_dir: Path | str | None = None,
    *,
    size: Literal[28, 14] = 28,
    binary: bool = False,
) -> Pictures:
    """Load Omniglot as a bank, with characters held out for the test.

    Of each alphabet three characters, drawn once with a fixed seed, are for the test: 150
    characters in 3,000 pictures; the other 1,473 in 29,460 pictures are for training. Every
    alphabet is in both, no character is. The drawings, 105 by 105 of ink or paper, are reduced to
    28 by 28 by the mean of the area under each pixel. This is neither the official split by
    alphabets nor the file of 24,345 and 8,070 pictures that much work on bounds reports on.

    Args:
        split: "train" or "test".
        data_dir: The directory whose folder ``omniglot`` to look in first; see `locate`.
        size: The height and width: 28, or 14 by the mean of 2 by 2 pixels.
        binary: Whether each pixel becomes 1 with the probability of its grey value, else 0, drawn
            once with a fixed seed.

    Returns:
        The pictures, (pictures, 1, size, size), from 0 (paper) to 1 (ink), 20 of each character
        one after the other. The labels are the numbers of the characters, from 0 to 1,622 in the
        order of `ALPHABETS`.

    Raises:
        ValueError: If the split or the size is unknown, or a file has the wrong hash.
        FileNotFoundError: If a file is nowhere and cannot be downloaded.

    References:
        B. M. Lake, R. Salakhutdinov, J. B. Tenenbaum (2015). Human-level concept learning through
        probabilistic program induction. Science 350.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split: expected 'train' or 'test', got {split!r}.")
    wanted = held_out() if split == "test" else ~held_out()
    parts, first = [], 0
    for file in _FILES:
        with np.load(locate(file, data_dir)) as archive:
            paper = archive["images"]
        chosen = wanted[first : first + len(paper)].nonzero()[0]
        parts += [_reduce(~paper[number]) for number in chosen]
        first += len(paper)
    characters = torch.from_numpy(wanted.nonzero()[0])
    frames = torch.from_numpy(np.concatenate(parts))[:, None]
    labels = characters.repeat_interleave(len(frames) // len(characters))
    return Pictures(finish(frames, size, binary), labels)


def held_out() -> NDArray[np.bool_]:
    """Return which characters are for the test, (characters,)."""
    stream = np.random.RandomState(HELD_OUT_SEED)
    parts = []
    for characters in ALPHABETS.values():
        chosen = np.zeros(characters, dtype=bool)
        chosen[stream.permutation(characters)[:HELD_OUT]] = True
        parts.append(chosen)
    return np.concatenate(parts)


def _reduce(ink: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Reduce drawings (drawings, 105, 105) to bytes (drawings, 28, 28) by area."""
    edges = np.arange(REDUCED + 1) * (ORIGINAL / REDUCED)
    low, high = np.arange(ORIGINAL), np.arange(ORIGINAL) + 1.0
    overlap = np.minimum(edges[1:, None], high) - np.maximum(edges[:-1, None], low)
    weights = (np.clip(overlap, 0.0, None) * (REDUCED / ORIGINAL)).astype(np.float32)
    return np.rint(255 * (weights @ ink.astype(np.float32) @ weights.T)).astype(np.uint8)
