"""What the examples of polyphonic music share: songs, and crops of them to train on."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

from _training import first

from pyro_seq.data import Batch, SequenceDataset, batches, fixed_crops, random_crops
from pyro_seq.data.polyphonic import Transpose, load_polyphonic

__all__ = ["KEYS", "Songs", "load_songs", "training_crops", "validation_crops"]

KEYS = 88


class Songs(NamedTuple):
    """The three splits; the validation loss is of fixed crops."""

    train: SequenceDataset
    validation: SequenceDataset
    test: SequenceDataset


def load_songs(args: argparse.Namespace, count: int | None, frames: int | None = None) -> Songs:
    """The splits of the data set, the first songs of each and their first frames; None for all."""
    splits = (
        load_polyphonic(args.dataset, split, args.data_dir)
        for split in ("train", "validation", "test")
    )
    return Songs(*(first(split, count, frames) for split in splits))


def training_crops(
    data: Songs,
    preset: Any,  # noqa: ANN401
    seed: int,
    short: Literal["drop", "pad"] = "drop",
) -> Any:  # noqa: ANN401
    """Batches of crops at random places, moved by semitones where the preset says so.

    Args:
        data: The songs.
        preset: With `crop`, its length, `batch`, `crops_per_song` and `transpose`.
        seed: Of places and semitones.
        short: Whether songs shorter than a crop are left out or padded.
    """
    return random_crops(
        data.train,
        preset.crop,
        preset.batch,
        crops_per_sequence=preset.crops_per_song,
        short=short,
        augment=None if preset.transpose is None else Transpose(*preset.transpose),
        seed=seed,
    )


def validation_crops(
    data: Songs, length: int, short: Literal["drop", "pad"] = "drop"
) -> Iterable[Batch]:
    """Batches of the same crops of the validation songs in every epoch and run."""
    crops = fixed_crops(data.validation, length, seed=0, crops_per_sequence=2, short=short)
    return batches(crops, 256, shuffle=False)
