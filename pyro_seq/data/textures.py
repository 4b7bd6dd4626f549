r"""Grey textures that differ in their pattern and not in their grey values.

Each picture can be *equalised*: the value of the pixel of rank :math:`r` among n becomes

.. math:: F^{-1}\Big(\frac{r + 1/2}{n}\Big), \qquad
    F' (x) = \frac{8}{\pi} \sqrt{x (1 - x)} \text{ on } [0, 1]

so that all textures have one histogram, of mean 1/2 and standard deviation 1/4, and no single
pixel tells one from another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from pyro_seq.data.loaders import RemoteFile, locate
from pyro_seq.data.pictures import Pictures

__all__ = ["equalise", "load_textures", "procedural_textures", "read_textures"]

Floats = NDArray[np.float64]

_FILES = {
    "ambientcg": RemoteFile(
        "textures",
        "ambientcg_grey128.npz",
        "https://github.com/fabien-michel/sweethome3d-textures-ambientcg",
        "6faa7459bc0bfbcce041a87da678169a80be113d42e347bdcabf755dab78ac0a",
        derived=True,
    ),
    "skimage": RemoteFile(
        "textures",
        "skimage_grey512.npz",
        "https://github.com/scikit-image/scikit-image",
        "df521d4221dcb7d52d60b5ba7ccedae1f00ae914669bd210e41b453fc0a13357",
        derived=True,
    ),
}
_SUFFIXES = (".bmp", ".gif", ".jpg", ".jpeg", ".pgm", ".png", ".tif", ".tiff")


def load_textures(
    name: Literal["ambientcg", "skimage"],
    data_dir: Path | str | None = None,
    *,
    equal: bool = True,
) -> Pictures:
    """Load photographs of materials as a bank, both sets free of rights (CC0).

    Args:
        name: "ambientcg", 297 pictures of 128 by 128 pixels of 37 materials (ambientCG.com), or
            "skimage", brick, grass and gravel of 512 by 512 (scikit-image).
        data_dir: The directory whose folder ``textures`` to look in first; see `locate`.
        equal: Whether to equalise them.

    Returns:
        The pictures, bytes (pictures, 1, size, size); the labels are the materials.

    Raises:
        ValueError: If the name is unknown, or the file has the wrong hash.
        FileNotFoundError: If the file is nowhere.
    """
    if name not in _FILES:
        raise ValueError(f"name: expected one of {', '.join(_FILES)}, got {name!r}.")
    with np.load(locate(_FILES[name], data_dir)) as archive:
        images = archive["images"]
        kinds = archive["category"] if "category" in archive else np.arange(len(images))
    return _bank(list(images), kinds, equal)


def read_textures(folder: Path | str, *, equal: bool = True) -> Pictures:
    """Read a folder of pictures as a bank of textures, such as your copy of Brodatz' album.

    Pictures are turned to grey and cut to the height and width of the smallest, from the middle.
    Reading them takes Pillow.

    Args:
        folder: Where the pictures are, in the order of their names (bmp, gif, jpg, pgm, png, tif).
        equal: Whether to equalise them.

    Returns:
        The pictures, bytes (pictures, 1, height, width); the label of each is its number.

    Raises:
        FileNotFoundError: If there is no picture.
        ImportError: If Pillow is not installed.
    """
    root = Path(folder).expanduser()
    files = [path for path in root.glob("*") if path.suffix.lower() in _SUFFIXES]
    if not files:
        raise FileNotFoundError(
            f"folder: expected pictures ({', '.join(_SUFFIXES)}) in {root}, found none."
        )
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError("Reading pictures takes Pillow: pip install pillow.") from error
    images = [np.asarray(Image.open(path).convert("L")) for path in sorted(files)]
    height, width = (min(image.shape[axis] for image in images) for axis in (0, 1))
    return _bank([_middle(image, height, width) for image in images], None, equal)


def procedural_textures(seed: int = 0, *, size: int = 512, equal: bool = True) -> Pictures:
    """Make twenty textures from formulas; they need no file.

    Four of noise without direction, with wavelengths of 3, 5, 8 and 12 pixels; five of noise with
    one; two gratings, two plaids; two of cells; two weaves; bricks, dots and a chessboard. All but
    the cells continue over their edges where the periods divide the size. The cells take SciPy,
    which comes with ArviZ.

    Args:
        seed: The seed of the random numbers: of noise, of cells and of a little jitter.
        size: The height and width.
        equal: Whether to equalise them.

    Returns:
        The pictures, bytes (20, 1, size, size); the label of each is its number.

    Raises:
        ValueError: If the size is less than 32.

    Example:
        >>> bank = procedural_textures(size=64)
        >>> bank.frames.shape, bank.frames.dtype
        (torch.Size([20, 1, 64, 64]), torch.uint8)
    """
    if size < 32:
        raise ValueError(f"size: expected at least 32 pixels, got {size}.")
    return _bank(list(_patterns(np.random.default_rng(seed), size)), None, equal)


def equalise(image: NDArray) -> Floats:
    """Give a picture the histogram of all textures: its ranks decide, equal ones by their place.

    Args:
        image: Any numbers, (height, width).

    Returns:
        Values from 0 to 1 of mean 1/2 and standard deviation 1/4.
    """
    values = np.empty(image.size)
    values[np.argsort(image, axis=None, kind="stable")] = _quantiles(image.size)
    return values.reshape(image.shape)


@lru_cache(maxsize=4)
def _quantiles(count: int) -> Floats:
    """The values of all ranks, (count,)."""
    grid = np.linspace(-1, 1, 4097)
    share = 0.5 + (grid * np.sqrt(1 - grid**2) + np.arcsin(grid)) / np.pi
    return np.interp((np.arange(count) + 0.5) / count, share, 0.5 + 0.5 * grid)


def _bank(images: list[NDArray], kinds: NDArray | None, equal: bool) -> Pictures:
    """Pictures of bytes, equalised or stretched to the range of bytes."""
    if equal:
        images = [equalise(image) for image in images]
    else:
        images = [image / 255 if image.dtype == np.uint8 else _stretch(image) for image in images]
    frames = torch.from_numpy(np.rint(255 * np.stack(images)).astype(np.uint8))[:, None]
    labels = np.arange(len(images)) if kinds is None else kinds
    return Pictures(frames, torch.from_numpy(labels).long())


def _stretch(image: Floats) -> Floats:
    return (image - image.min()) / (image.max() - image.min())


def _middle(image: NDArray, height: int, width: int) -> NDArray:
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    return image[top : top + height, left : left + width]


def _patterns(stream: np.random.Generator, size: int) -> Iterator[Floats]:
    """The twenty patterns, (size, size) each."""
    y, x = np.mgrid[:size, :size].astype(float)
    jitter = 0.05 * _noise(stream, size, lambda r, c: np.hypot(r, c) < 0.25)

    def wave(length: float, angle: float) -> Floats:
        turn = np.deg2rad(angle)
        return np.sin(2 * np.pi * (x * np.cos(turn) + y * np.sin(turn)) / length)

    for length in (3, 5, 8, 12):
        yield _noise(stream, size, partial(_round, length))
    for number, length in enumerate((4, 6, 8, 11, 16)):
        angle = np.deg2rad(36 * number)
        yield _noise(stream, size, _directed(length, angle))
    yield wave(6, 20) + jitter
    yield wave(14, 70) + jitter
    yield wave(8, 0) + wave(8, 90) + jitter
    yield np.maximum(wave(16, 30), wave(5, 120)) + jitter
    for cells, edges in ((size**2 // 80, False), (size**2 // 240, True)):
        near, second = _cells(stream, size, cells)
        yield (second - near if edges else near) + jitter
    yield np.where((x // 8 + y // 8) % 2 == 0, wave(4, 0), wave(4, 90)) + jitter
    yield np.where((x // 12) % 2 == 0, wave(6, 45), wave(6, 135)) + jitter
    row = y // 10
    mortar = (y % 10 < 2) | ((x + 11 * (row % 2)) % 22 < 2)
    yield np.where(mortar, -1.0, 0.3 * wave(9, 15)) + jitter
    dot = np.hypot((x + 6 * (y // 12 % 2)) % 12 - 5.5, y % 12 - 5.5)
    yield np.where(dot < 3.5, 1.0, 0.2 * wave(4, 60)) - 0.1 * dot + jitter
    yield np.where((x // 7 + y // 7) % 2 == 0, 1.0, -1.0) + jitter


def _round(length: float, r: Floats, c: Floats) -> Floats:
    """A band of frequencies about one wavelength, in all directions."""
    return np.exp(-0.5 * ((np.hypot(r, c) * length - 1) / 0.2) ** 2)


def _directed(length: float, angle: float) -> Callable[[Floats, Floats], Floats]:
    """A band about one frequency and its negative."""
    row, column = np.sin(angle) / length, np.cos(angle) / length

    def band(r: Floats, c: Floats) -> Floats:
        apart = np.minimum(np.hypot(r - row, c - column), np.hypot(r + row, c + column))
        return np.exp(-0.5 * (apart * length / 0.2) ** 2)

    return band


def _noise(
    stream: np.random.Generator, size: int, band: Callable[[Floats, Floats], NDArray]
) -> Floats:
    """White noise, filtered, with a standard deviation of 1.

    Args:
        stream: The source of random numbers.
        size: The height and width.
        band: From frequencies along rows and columns, cycles per pixel, to factors.
    """
    rows, columns = np.meshgrid(*[np.fft.fftfreq(size).astype(float)] * 2, indexing="ij")
    spectrum = np.fft.fft2(stream.normal(size=(size, size))) * band(rows, columns)
    spectrum[0, 0] = 0
    image = np.fft.ifft2(spectrum).real
    return image / image.std()


def _cells(stream: np.random.Generator, size: int, cells: int) -> tuple[Floats, Floats]:
    """Distances of each pixel to the nearest of random points and to the second nearest."""
    from scipy.spatial import KDTree  # type: ignore[import-untyped]

    points = stream.uniform(0, size, (cells, 2))
    pixels = np.moveaxis(np.mgrid[:size, :size], 0, -1)
    near, second = np.moveaxis(KDTree(points).query(pixels, 2)[0], -1, 0)
    return near, second
