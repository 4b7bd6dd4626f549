from __future__ import annotations

import os
import wave
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pyro_seq.data import Speech, load_speech, load_timit, speech

ROOT = Path(os.environ.get("PYRO_SEQ_DATA", ""))
SPEAKERS = ("DR1/FCJF0", "DR1/MDAB0", "DR2/FAEM0")
SENTENCES = ("SA1", "SX37", "SI648")


def samples(number: int) -> NDArray[np.int16]:
    """A waveform of its own length for each number."""
    stream = np.random.default_rng(number)
    return stream.normal(20.0, 300.0, 900 + 37 * number).astype(np.int16)


def sphere(waveform: NDArray[np.int16], *, order: str = "01", coding: str = "") -> bytes:
    """A file as on TIMIT's disk."""
    header = (
        "NIST_1A\n   1024\ndatabase_id -s5 TIMIT\ndatabase_version -s3 1.0\n"
        f"utterance_id -s8 cjf0_sa1\nchannel_count -i 1\nsample_count -i {len(waveform)}\n"
        "sample_rate -i 16000\nsample_min -i -2191\nsample_max -i 2790\nsample_n_bytes -i 2\n"
        f"sample_byte_format -s2 {order}\nsample_sig_bits -i 16\n{coding}end_head\n"
    )
    return (
        header.encode().ljust(1024) + waveform.astype("<i2" if order == "01" else ">i2").tobytes()
    )


def write_riff(path: Path, waveform: NDArray[np.int16], *, channels: int = 1) -> None:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes(waveform.astype("<i2").tobytes())


@pytest.fixture
def timit(tmp_path: Path) -> Path:
    """A folder in the original layout: waveforms 0 to 8 for training, 9 to 17 for the test."""
    number = 0
    for part in ("TRAIN", "TEST"):
        for speaker in SPEAKERS:
            folder = tmp_path / "TIMIT" / part / speaker
            folder.mkdir(parents=True)
            for sentence in sorted(SENTENCES):
                (folder / f"{sentence}.WAV").write_bytes(sphere(samples(number)))
                (folder / f"{sentence}.TXT").write_text("0 46797 She had your dark suit")
                number += 1
    return tmp_path


def frames(speech: Speech, number: int) -> NDArray[np.float64]:
    """Windows of one utterance in steps of 16 bit."""
    one = speech.dataset[number]
    length = int(speech.dataset.lengths[number])
    assert one.mask.sum() == length == len(one.x)
    return one.x.double().numpy() * speech.std + speech.mean


def numbers(speech: Speech) -> list[int]:
    """Which waveform each utterance is, by its length and its samples."""
    found = []
    for row in range(len(speech.dataset)):
        came = frames(speech, row).ravel()
        which = [n for n in range(18) if len(samples(n)) // 200 * 200 == len(came)]
        same = [n for n in which if np.allclose(samples(n)[: len(came)], came, atol=1e-2)]
        found += same
    return found


@pytest.mark.parametrize("level", ["", "TIMIT"])
def test_timit_is_split_by_files(timit: Path, level: str) -> None:
    splits = {s: load_timit(timit / level, s, validation=0.25) for s in ("train", "validation")}
    train, held_out = (numbers(part) for part in splits.values())
    assert len(train) == 7 and len(held_out) == 2 and sorted(train + held_out) == list(range(9))
    assert numbers(load_timit(timit / level, "test", validation=0.25)) == list(range(9, 18))
    assert splits["train"].sample_rate == 16000


def test_all_splits_are_standardised_by_the_training_files(timit: Path) -> None:
    splits = [load_timit(timit, s, validation=0.25) for s in ("train", "validation", "test")]
    train = np.concatenate([samples(number) for number in numbers(splits[0])]).astype(float)
    for part in splits:
        assert part.mean == pytest.approx(train.mean()) and part.std == pytest.approx(train.std())
        assert part.width * part.std == pytest.approx(1.0)


def test_frames_are_windows_of_one_utterance(timit: Path) -> None:
    part = load_timit(timit, "test", window=100)
    assert part.dataset[:].x.dtype == torch.float32 and part.dataset[:].x.shape[2] == 100
    for row, number in enumerate(range(9, 18)):
        waveform = samples(number)
        whole = waveform[: len(waveform) // 100 * 100].reshape(-1, 100)
        np.testing.assert_allclose(frames(part, row), whole, atol=1e-2)


def test_validation_files_are_chosen_by_the_seed(timit: Path) -> None:
    chosen = [
        tuple(numbers(load_timit(timit, "validation", validation=0.25, seed=seed)))
        for seed in (0, 0, 1, 2, 3)
    ]
    assert chosen[0] == chosen[1] and len(set(chosen)) > 2


def test_converted_and_lower_case_copies_give_the_same(timit: Path, tmp_path: Path) -> None:
    wanted = load_timit(timit, "test")
    copy = tmp_path / "copy"
    for path in (timit / "TIMIT").rglob("*.WAV"):
        target = copy / str(path.relative_to(timit / "TIMIT")).lower()
        target.parent.mkdir(parents=True, exist_ok=True)
        write_riff(target, np.frombuffer(path.read_bytes()[1024:], "<i2"))
        write_riff(target.with_name(target.name + ".wav"), np.zeros(7, dtype=np.int16))
    came = load_timit(copy, "test")
    assert torch.equal(came.dataset[:].x, wanted.dataset[:].x) and came[1:] == wanted[1:]


def test_bytes_of_sphere_files_may_be_swapped(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    for order in ("01", "10"):
        path.write_bytes(sphere(samples(0), order=order, coding="sample_coding -s3 pcm\n"))
        waveform, rate = speech._read_waveform(path)
        np.testing.assert_array_equal(waveform, samples(0))
        assert waveform.dtype == np.int16 and rate == 16000


def test_files_that_are_not_plain_speech_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(sphere(samples(0), coding="sample_coding -s26 pcm,embedded-shorten-v2.00\n"))
    with pytest.raises(ValueError, match=r"a\.wav: expected one channel .* sph2pipe"):
        speech._read_waveform(path)
    write_riff(path, samples(0)[:900], channels=2)
    with pytest.raises(ValueError, match=r"a\.wav: expected one channel of 16 bit, got 2 of 16"):
        speech._read_waveform(path)
    path.write_bytes(b"fLaC and so on")
    with pytest.raises(ValueError, match=r"a\.wav: expected NIST SPHERE or RIFF, got the start"):
        speech._read_waveform(path)


def test_folder_without_timit_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="TRAIN/DR1/FCJF0/SA1.WAV.*LDC93S1"):
        load_timit(tmp_path, "train")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "valid"}, "split: expected 'train', 'validation' or 'test', got 'valid'"),
        ({"validation": 1.0}, "validation: expected a share .* less than 1, got 1.0"),
        ({"validation": 0.01, "split": "validation"}, "validation: expected a share of at least"),
        ({"window": 2000}, "window: expected from 1 to .* samples"),
    ],
)
def test_errors_name_the_argument(timit: Path, arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_timit(timit, **{"split": "train"} | arguments)


def test_unknown_corpus_is_named() -> None:
    with pytest.raises(ValueError, match="corpus: expected 'librispeech' or 'fsdd', got 'timit'"):
        load_speech("timit", "train")


def test_missing_files_say_what_they_were_made_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("PYRO_SEQ_DATA", raising=False)
    with pytest.raises(FileNotFoundError) as error:
        load_speech("fsdd", "train", tmp_path)
    for part in ("speech/fsdd_takes00-24.npz", "free-spoken-digit-dataset", "9bab0a9f", "made"):
        assert part in str(error.value)


def load(corpus: str, split: str) -> Speech:
    if not (ROOT / "speech" / f"{corpus}.npz").is_file():
        pytest.skip(f"data: no {corpus}.npz in $PYRO_SEQ_DATA/speech")
    return load_speech(corpus.split("_")[0], split, ROOT)


@pytest.mark.data
@pytest.mark.parametrize(
    ("corpus", "counts", "rate"),
    [("librispeech_test", (37, 4, 45), 16000), ("fsdd_takes00-24", (1080, 120, 300), 8000)],
)
def test_shared_speech(corpus: str, counts: tuple[int, ...], rate: int) -> None:
    parts = [load(corpus, split) for split in ("train", "validation", "test")]
    assert tuple(len(part.dataset) for part in parts) == counts
    assert {part.sample_rate for part in parts} == {rate}
    assert len({part[1:] for part in parts}) == 1
    batch = parts[0].dataset[:]
    values = batch.x[batch.mask].double()
    assert abs(values.mean()) < 1e-2 and abs(values.std() - 1) < 2e-2
    steps = values / parts[0].width + parts[0].mean
    torch.testing.assert_close(steps, steps.round(), rtol=0.0, atol=1e-2)
