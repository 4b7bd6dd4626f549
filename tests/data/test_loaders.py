from __future__ import annotations

import gzip
import hashlib
import os
from pathlib import Path

import numpy as np
import pytest

from pyro_seq.data import RemoteFile, load_mnist, loaders, locate

CONTENT = b"content of the file"
HASH = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("PYRO_SEQ_DATA", raising=False)
    return tmp_path / "cache" / "pyro_seq"


def put(directory: Path, content: bytes = CONTENT) -> Path:
    path = directory / "folder" / "name"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def remote(source: Path) -> RemoteFile:
    return RemoteFile("folder", "name", source.as_uri(), HASH)


def test_places_are_searched_in_order(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = remote(tmp_path / "nothing")
    cached = put(cache)
    assert locate(file) == cached
    variable = put(tmp_path / "variable")
    monkeypatch.setenv("PYRO_SEQ_DATA", str(tmp_path / "variable"))
    assert locate(file, tmp_path / "empty") == variable
    argument = put(tmp_path / "argument")
    assert locate(file, tmp_path / "argument") == argument


def test_missing_file_is_downloaded_once(tmp_path: Path, cache: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(CONTENT)
    path = locate(remote(source), tmp_path)
    assert path == cache / "folder" / "name" and path.read_bytes() == CONTENT
    source.unlink()
    assert locate(remote(source)) == path
    assert os.listdir(path.parent) == ["name"]


def test_download_with_another_hash_leaves_nothing(tmp_path: Path, cache: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"other")
    with pytest.raises(
        ValueError, match=f"folder/name: expected sha256 {HASH}, got .* from file:"
    ):
        locate(remote(source))
    assert os.listdir(cache / "folder") == []


def test_damaged_file_is_not_used(tmp_path: Path, cache: Path) -> None:
    path = put(tmp_path, b"damaged")
    with pytest.raises(ValueError, match=f"expected sha256 {HASH}, got .* from {path}"):
        locate(remote(tmp_path / "nothing"), tmp_path)


def test_missing_file_without_network_is_named(tmp_path: Path, cache: Path) -> None:
    file = remote(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError) as error:
        locate(file, tmp_path)
    for part in ("folder/name", file.url, HASH, str(tmp_path / "folder"), "PYRO_SEQ_DATA"):
        assert part in str(error.value)


def test_idx_files_are_read_as_written(tmp_path: Path) -> None:
    header = bytes([0, 0, 8, 2]) + (2).to_bytes(4, "big") + (3).to_bytes(4, "big")
    path = tmp_path / "array.gz"
    path.write_bytes(gzip.compress(header + bytes(range(6))))
    np.testing.assert_array_equal(loaders._read_idx(path), [[0, 1, 2], [3, 4, 5]])
    path.write_bytes(gzip.compress(b"\0\0\x0d\1" + bytes(8)))
    with pytest.raises(ValueError, match="expected an IDX file of bytes"):
        loaders._read_idx(path)


def test_unknown_split_is_named() -> None:
    with pytest.raises(ValueError, match="split: expected 'train' or 'test', got 'valid'"):
        load_mnist("valid")


@pytest.mark.data
@pytest.mark.parametrize(("split", "count"), [("train", 60_000), ("test", 10_000)])
def test_mnist_has_its_digits(split: str, count: int) -> None:
    root = Path(os.environ.get("PYRO_SEQ_DATA", ""))
    if not (root / "mnist" / "t10k-images-idx3-ubyte.gz").is_file():
        pytest.skip("data: no MNIST in $PYRO_SEQ_DATA/mnist")
    images, labels = load_mnist(split, root)
    assert images.shape == (count, 28, 28) and images.dtype == np.uint8
    assert labels.shape == (count,) and set(labels) == set(range(10))
    assert images[labels == 1].mean() < images[labels == 0].mean() / 2
