"""Banks of pictures and vectors, from which tasks draw the frames of their sequences."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyro_seq.data.arguments import check_numbers
from pyro_seq.data.loaders import load_mnist

__all__ = [
    "Pictures",
    "Vectors",
    "check_bank",
    "grey",
    "load_digits",
    "load_small_digits",
    "seeded",
]

BINARY_SEED = 0
SMALL_SEED = 0
SMALL_TEST = 400


class Pictures(NamedTuple):
    """A bank of pictures with labels.

    Attributes:
        frames: The pictures, (pictures, *frame): bytes, of which 255 stands for 1, or bools or
            floats. They may lie in the memory of a GPU, where frames are then gathered.
        labels: The class of each, long (pictures,), on the CPU; None if there are none.

    Example:
        >>> import torch
        >>> bank = Pictures(torch.tensor([[0, 51], [255, 0]], dtype=torch.uint8))
        >>> bank.take(torch.tensor([[1, 0, 1]]))[0, :2]
        tensor([[1.0000, 0.0000],
                [0.0000, 0.2000]])
    """

    frames: Tensor
    labels: Tensor | None = None

    def to(self, device: torch.device | str) -> Pictures:
        """Return the bank with its frames on another device; the labels stay on the CPU."""
        return self._replace(frames=self.frames.to(device))

    def select(self, rows: Tensor | slice) -> Pictures:
        """Return the bank of some of the pictures, such as a validation set or those with labels.

        Args:
            rows: Their numbers, long, or a slice.
        """
        if isinstance(rows, Tensor):
            rows = rows.cpu()
            frames = self.frames[rows.to(self.frames.device)]
        else:
            frames = self.frames[rows]
        return Pictures(frames, None if self.labels is None else self.labels[rows])

    def take(self, rows: Tensor) -> Tensor:
        """Gather frames.

        Args:
            rows: The numbers of the pictures, long, of any shape and on any device.

        Returns:
            The frames in floats, (*rows, *frame), bytes scaled to the range from 0 to 1.
        """
        return grey(self.frames[rows.to(self.frames.device, non_blocking=True)])

    def sample(
        self, shape: tuple[int, ...], generator: torch.Generator
    ) -> tuple[Pictures, Tensor]:
        """Draw pictures, each of the bank with the same probability.

        Args:
            shape: How many.
            generator: The source of random numbers, on the CPU.

        Returns:
            The bank itself and the numbers drawn, long (*shape).
        """
        return self, torch.randint(len(self.frames), shape, generator=generator)


class Vectors(NamedTuple):
    r"""A bank without end of vectors :math:`x \sim \mathcal{N}(0, I)`, none of which comes twice.

    For tests that take seconds. With classes, the one-hot code of a class drawn at random lies
    before the noise: x = [one-hot (classes), noise (size)].

    Attributes:
        size: The number of coordinates of the noise.
        classes: The number of classes, 0 for none.

    Example:
        >>> import torch
        >>> bank, rows = Vectors(8, classes=3).sample((2, 5), torch.Generator())
        >>> bank.take(rows).shape
        torch.Size([2, 5, 11])
    """

    size: int
    classes: int = 0

    def sample(
        self, shape: tuple[int, ...], generator: torch.Generator
    ) -> tuple[Pictures, Tensor]:
        """Draw vectors.

        Args:
            shape: How many.
            generator: The source of random numbers, on the CPU.

        Returns:
            A bank of as many vectors, and their numbers in it, long (*shape).
        """
        rows = torch.arange(torch.Size(shape).numel())
        noise = torch.randn(len(rows), self.size, generator=generator)
        if self.classes == 0:
            return Pictures(noise), rows.view(shape)
        labels = torch.randint(self.classes, rows.shape, generator=generator)
        code = torch.nn.functional.one_hot(labels, self.classes).to(noise)
        return Pictures(torch.cat([code, noise], 1), labels), rows.view(shape)


def grey(frames: Tensor) -> Tensor:
    """Return pictures in floats, bytes scaled to the range from 0 to 1."""
    if frames.is_floating_point():
        return frames
    scale = 255 if frames.dtype == torch.uint8 else 1
    return frames.to(torch.get_default_dtype()).div_(scale)


def seeded(seed: int | torch.Generator) -> torch.Generator:
    """Return the generator that a seed stands for, or that was given as one."""
    if isinstance(seed, torch.Generator):
        return seed
    if isinstance(seed, bool) or not isinstance(seed, Integral):
        raise TypeError(f"seed: expected an int or a torch.Generator, got {seed!r}.")
    return torch.Generator().manual_seed(int(seed))


def check_bank(bank: Pictures | Vectors) -> None:
    """Raise an error unless frames, and labels if there are any, can be drawn from a bank."""
    if isinstance(bank, Vectors):
        check_numbers(size=bank.size)
        check_numbers(0, classes=bank.classes)
        return
    if not isinstance(bank, Pictures):
        raise TypeError(f"bank: expected Pictures or Vectors, got {type(bank).__name__}.")
    frames, labels = bank
    if not isinstance(frames, Tensor) or frames.dim() < 1 or not len(frames):
        raise ValueError("bank: expected frames in a tensor (pictures, *frame), one or more.")
    fits = labels is None or isinstance(labels, Tensor)
    if not fits or (labels is not None and labels.shape != frames.shape[:1]):
        raise ValueError(
            f"bank: expected labels in a tensor (pictures,) = {tuple(frames.shape[:1])}, got "
            f"{type(labels).__name__} {tuple(getattr(labels, 'shape', ()))}."
        )
    if labels is not None and labels.dtype != torch.int64:
        raise ValueError(f"bank: expected long labels, got {labels.dtype}. Use labels.long().")


def load_digits(
    split: Literal["train", "test"],
    data_dir: Path | str | None = None,
    *,
    size: Literal[28, 14] = 28,
    binary: bool = False,
) -> Pictures:
    """Load the handwritten digits of MNIST as a bank.

    Args:
        split: "train", 60,000 pictures, or "test", 10,000.
        data_dir: The directory whose folder ``mnist`` to look in first; see `locate`.
        size: The height and width: 28, or 14 by the mean of 2 by 2 pixels.
        binary: Whether each pixel becomes 1 with the probability of its grey value, else 0, drawn
            once with a fixed seed: the same picture is the same wherever it is shown.

    Returns:
        The pictures, (pictures, 1, size, size), from 0 (background) to 1, and their digits.

    Raises:
        ValueError: If the split or the size is unknown, or a file has the wrong hash.
        FileNotFoundError: If a file is nowhere and cannot be downloaded.
    """
    images, labels = load_mnist(split, data_dir)
    frames = finish(torch.from_numpy(images)[:, None], size, binary)
    return Pictures(frames, torch.from_numpy(labels).long())


def load_small_digits(split: Literal["train", "test"]) -> Pictures:
    """Load the handwritten digits of 8 by 8 pixels that come with scikit-learn as a bank.

    They need no download. Of the 1,797 pictures 400, drawn once with a fixed seed, are for the
    test; scikit-learn itself has no split, and published numbers do not apply.

    Args:
        split: "train", 1,397 pictures, or "test", 400.

    Returns:
        The pictures, (pictures, 1, 8, 8), from 0 (background) to 1 in steps of 1/16, and their
        digits.

    Raises:
        ValueError: If the split is unknown.
        ImportError: If scikit-learn is not installed.

    References:
        E. Alpaydin, C. Kaynak (1998). Optical Recognition of Handwritten Digits. UCI Machine
        Learning Repository.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split: expected 'train' or 'test', got {split!r}.")
    try:
        from sklearn.datasets import load_digits as load
    except ImportError as error:
        raise ImportError(
            "The digits of 8 by 8 pixels come with scikit-learn: pip install 'pyro-seq[digits]'. "
            "Those of MNIST, load_digits, need no package."
        ) from error
    digits = load()
    order = np.random.default_rng(SMALL_SEED).permutation(len(digits.images))
    rows = order[:-SMALL_TEST] if split == "train" else order[-SMALL_TEST:]
    frames = torch.from_numpy(digits.images[rows, None] / 16).to(torch.get_default_dtype())
    return Pictures(frames, torch.from_numpy(digits.target[rows]).long())


def finish(frames: Tensor, size: int, binary: bool) -> Tensor:
    """Pool and binarise pictures.

    Args:
        frames: Grey values, uint8 (pictures, 1, 28, 28).
        size: 28, or 14 to pool.
        binary: Whether to binarise.

    Returns:
        The pictures, (pictures, 1, size, size): bytes, or floats if pooled, or bools if binary.

    Raises:
        ValueError: If the size is neither.
    """
    if size not in (28, 14):
        raise ValueError(f"size: expected 28 or 14 pixels, got {size}.")
    if size == 14:
        frames = _by_chunks(lambda part: _pool(part.float() / 255), frames)
    if not binary:
        return frames
    stream = torch.Generator().manual_seed(BINARY_SEED)
    scale = 255 if frames.dtype == torch.uint8 else 1

    def draw(part: Tensor) -> Tensor:
        return torch.rand(part.shape, generator=stream, dtype=torch.float32) * scale < part

    return _by_chunks(draw, frames)


def _pool(frames: Tensor) -> Tensor:
    return torch.nn.functional.avg_pool2d(frames, 2)


def _by_chunks(change: Callable[[Tensor], Tensor], frames: Tensor) -> Tensor:
    """Change frames part by part, so that no float copy of all of them is ever held."""
    return torch.cat([change(part) for part in frames.split(4096)])
