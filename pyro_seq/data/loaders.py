"""Files of data sets: where they are looked for, how they are fetched, and MNIST.

A file ``name`` of a data set ``folder`` is looked for as ``folder/name`` in the directory that is
asked for, else in the directory that the environment variable ``PYRO_SEQ_DATA`` names, else in a
cache of the user, ``~/.cache/pyro_seq``, to which it is downloaded if need be. Wherever it
is found, its hash is checked.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import tempfile
import urllib.request
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["MNIST", "RemoteFile", "load_mnist", "locate"]

VARIABLE = "PYRO_SEQ_DATA"
TIMEOUT = 30.0


class RemoteFile(NamedTuple):
    """A file of a data set.

    Attributes:
        folder: The folder of the data set.
        name: The name of the file.
        url: The address to download it from.
        sha256: The hash of its bytes, in hexadecimal digits.
        derived: Whether it was made from what lies at the address, and cannot be downloaded.
    """

    folder: str
    name: str
    url: str
    sha256: str
    derived: bool = False


def locate(file: RemoteFile, data_dir: Path | str | None = None) -> Path:
    """Find a file, or download it to the user's cache.

    Args:
        file: The file.
        data_dir: The directory to look in first.

    Returns:
        The path of the file, whose hash is right.

    Raises:
        FileNotFoundError: If the file is nowhere and cannot be downloaded; the message names it,
            its address and its hash.
        ValueError: If a file of that name has another hash.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pyro_seq"
    named = [directory for directory in (data_dir, os.environ.get(VARIABLE)) if directory]
    places = [Path(root).expanduser() / file.folder / file.name for root in (*named, cache)]
    found = next((place for place in places if place.is_file()), None)
    if found is not None:
        _check_hash(file, found, str(found))
        return found
    if file.derived:
        raise FileNotFoundError(
            _nowhere(file, places, "it was made from other files and has no address of its own")
            + f"Those files are at {file.url}; if you have it (sha256 {file.sha256}), {_put(file)}"
        )
    try:
        _download(file, places[-1])
    except OSError as error:
        raise FileNotFoundError(
            _nowhere(file, places, f"the download failed: {error}")
            + f"Get it from {file.url} (sha256 {file.sha256}), {_put(file)}"
        ) from error
    return places[-1]


def _nowhere(file: RemoteFile, places: list[Path], reason: str) -> str:
    tried = ", ".join(str(place) for place in places)
    return f"{file.folder}/{file.name}: found none of {tried}, and {reason}. "


def _put(file: RemoteFile) -> str:
    return (
        f"put it into a folder named {file.folder!r}, and name the directory of that folder by "
        f"data_dir, --data-dir or {VARIABLE}."
    )


def _download(file: RemoteFile, path: Path) -> None:
    """Download a file under another name, check it, and only then give it its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".download-") as directory:
        partial = Path(directory) / file.name
        with urllib.request.urlopen(file.url, timeout=TIMEOUT) as source:
            with partial.open("wb") as target:
                shutil.copyfileobj(source, target)
        _check_hash(file, partial, file.url)
        partial.replace(path)


def _check_hash(file: RemoteFile, path: Path, origin: str) -> None:
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if digest != file.sha256:
        raise ValueError(
            f"{file.folder}/{file.name}: expected sha256 {file.sha256}, got {digest} from "
            f"{origin}. The file is damaged or another one: remove it, or get it from {file.url}."
        )


class MNIST(NamedTuple):
    """Handwritten digits.

    Attributes:
        images: Grey values from 0, the background, to 255, uint8 (images, 28, 28).
        labels: The digits, uint8 (images,).
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.uint8]


_MNIST_URL = (
    "https://raw.githubusercontent.com/fgnt/mnist/ae608a02b796c9ee908c082585a5f006fe05258e/"
)
_MNIST_HASHES = {
    "train-images-idx3": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    "train-labels-idx1": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    "t10k-images-idx3": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    "t10k-labels-idx1": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
}


def load_mnist(split: str, data_dir: Path | str | None = None) -> MNIST:
    """Load MNIST from its four original files.

    Args:
        split: "train", 60,000 images, or "test", 10,000.
        data_dir: The directory whose folder ``mnist`` to look in first; see `locate`.

    Returns:
        The images and the labels.

    Raises:
        ValueError: If the split is unknown, or a file has the wrong hash.
        FileNotFoundError: If a file is nowhere and cannot be downloaded.

    References:
        Y. LeCun, L. Bottou, Y. Bengio, P. Haffner (1998). Gradient-Based Learning Applied to
        Document Recognition.
    """
    prefixes = {"train": "train", "test": "t10k"}
    if split not in prefixes:
        raise ValueError(f"split: expected 'train' or 'test', got {split!r}.")
    stems = (f"{prefixes[split]}-images-idx3", f"{prefixes[split]}-labels-idx1")
    return MNIST(*(_read_idx(locate(_mnist_file(stem), data_dir)) for stem in stems))


def _mnist_file(stem: str) -> RemoteFile:
    name = f"{stem}-ubyte.gz"
    return RemoteFile("mnist", name, _MNIST_URL + name, _MNIST_HASHES[stem])


def _read_idx(path: Path) -> NDArray[np.uint8]:
    """Read a gzipped array of bytes: 0, 0, type 8, rank, the lengths (big-endian), the values."""
    content = gzip.decompress(path.read_bytes())
    rank = content[3]
    if content[:3] != b"\0\0\x08":
        raise ValueError(f"{path}: expected an IDX file of bytes, got the start {content[:4]!r}.")
    shape = np.frombuffer(content, ">u4", count=rank, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(shape).copy()
