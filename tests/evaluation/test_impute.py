from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from pyro_seq.data import Batch, gap_mask, random_mask, simulate
from pyro_seq.evaluation import (
    blank_frame,
    copy_last,
    format_table,
    hamming,
    imputation_table,
    impute,
    mean_square,
    wrong_pixels,
)
from pyro_seq.guides import KalmanGuide, Trajectory
from tests.evaluation.pairs import FactorGuide, FactorModel, kvae_batch, kvae_pair

KEYS = {
    f"{method}_{pattern}"
    for method in ("smooth", "filter", "copy_last")
    for pattern in ("gap_1", "gap_3", "p_0.1", "p_1")
} | {"blank"}


def test_hamming_by_hand() -> None:
    x = torch.zeros(2, 3, 1, 2, 2)
    x[0, 1, 0, 0, 0] = 1.0
    guess = torch.full_like(x, 0.4)
    guess[0, 0] = 0.9  # observed: not compared
    guess[1, 2, 0, 1] = 0.6
    mask = torch.tensor([[True, False, True], [True, True, False]])
    counts = wrong_pixels(x, guess, mask)
    assert counts.wrong.tolist() == [1, 2] and counts.compared.tolist() == [4, 4]
    assert hamming(x, guess, mask) == 3 / 8
    known = torch.tensor([[True, True, True], [True, True, False]])
    assert hamming(x, guess, mask, known) == 1 / 4
    assert math.isnan(hamming(x, guess, torch.ones(2, 3, dtype=torch.bool)))
    with pytest.raises(ValueError, match=r"got shapes .* and \(3,\)"):
        hamming(x, guess, mask[0])
    x[1, 2] = float("nan")
    with pytest.raises(ValueError, match="^x must be known in the frames that are compared; got"):
        hamming(x, guess, mask)
    assert hamming(x, guess, mask, known) == 1 / 4
    with pytest.raises(ValueError, match="^x_hat must be known"):
        hamming(guess, x, mask)


def test_copy_last_by_hand() -> None:
    x = torch.arange(1.0, 6.0).expand(4, 5).clone().unsqueeze(-1)
    mask = torch.tensor(
        [[1, 0, 0, 1, 0], [0, 0, 1, 0, 1], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]], dtype=torch.bool
    )
    x[~mask] = float("nan")
    assert copy_last(x, mask).squeeze(-1).tolist() == [
        [1, 1, 1, 4, 4],
        [3, 3, 3, 3, 5],
        [1, 2, 3, 4, 5],
        [0, 0, 0, 0, 0],
    ]


def test_blank_frame_is_the_median() -> None:
    x = torch.tensor([[[0.0, 1.0, 1.0], [0.0, 1.0, 0.0]], [[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]]])
    assert blank_frame(x).tolist() == [0, 1, 0]
    mask = torch.tensor([[True, False], [True, False]])
    assert blank_frame(torch.where(mask[..., None], x, torch.nan), mask).tolist() == [0, 1, 1]
    grey = torch.rand(3, 3, 4)
    assert torch.equal(blank_frame(grey), grey.flatten(0, 1).median(0).values)


def test_blank_frame_of_the_bouncing_ball_is_its_walls() -> None:
    frames = torch.as_tensor(simulate("box", 30, seed=0).frames)
    blank = blank_frame(frames)
    assert blank.dtype == torch.uint8 and int(blank.sum()) == 112


@pytest.mark.parametrize("weights", ["lstm", "mlp", "static"])
def test_mean_frames_are_decoded_means_of_the_codes(weights: str) -> None:
    model, guide = kvae_pair(weights)
    x, mask, _ = kvae_batch()
    for how, path in (("smooth", guide.smooth(x, mask)), ("filter", guide.filter(x, mask))):
        with torch.no_grad():
            torch.testing.assert_close(impute(guide, x, mask, how=how), model.decode(path.a))
    assert not torch.allclose(impute(guide, x, mask), impute(guide, x, mask, how="filter"))


@pytest.mark.parametrize("how", ["smooth", "filter"])
def test_chunks_and_what_is_hidden_change_nothing(how: str) -> None:
    _, guide = kvae_pair("lstm")
    x, mask, _ = kvae_batch()
    expected = impute(guide, x, mask, how=how)
    torch.testing.assert_close(impute(guide, x, mask, how=how, chunk=2), expected)
    hidden = torch.where(mask[..., None, None, None], x, torch.nan)
    assert torch.equal(impute(guide, hidden, mask, how=how), expected)


def test_filtering_sees_no_later_frame_and_smoothing_does() -> None:
    _, guide = kvae_pair()
    x, mask, _ = kvae_batch()
    mask[:, 4:6], mask[:, 6:] = False, True
    other = x.clone()
    other[:, 6:] = 1 - other[:, 6:]
    now, then = (impute(guide, frames, mask, how="filter")[:, :6] for frames in (x, other))
    assert torch.equal(now, then)
    now, then = (impute(guide, frames, mask)[:, 4:6] for frames in (x, other))
    assert float((now - then).abs().max()) > 1e-3


def test_table_is_that_of_the_parts() -> None:
    model, guide = kvae_pair()
    x = kvae_batch().x
    table = imputation_table(
        model, guide, x, gaps=(1, 3), drop_probabilities=(0.1, 1.0), seed=4, observed_start=2
    )
    assert set(table) == KEYS
    mask = gap_mask(5, 8, 3, observed_start=2)
    assert table["smooth_gap_3"] == pytest.approx(hamming(x, impute(guide, x, mask), mask))
    assert table["filter_gap_3"] == pytest.approx(
        hamming(x, impute(guide, x, mask, how="filter"), mask)
    )
    assert table["copy_last_gap_3"] == pytest.approx(hamming(x, copy_last(x, mask), mask))
    mask = random_mask(5, 8, 0.1, observed_start=2, seed=4)
    assert table["smooth_p_0.1"] == pytest.approx(hamming(x, impute(guide, x, mask), mask))
    mask = random_mask(5, 8, 1.0, observed_start=2, seed=4)
    assert table["blank"] == pytest.approx(hamming(x, blank_frame(x).expand_as(x), mask))


def test_mean_square_by_hand() -> None:
    x = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]])
    guess = torch.tensor([[[9.0, 9.0], [3.5, 4.0], [5.0, 8.0]]])
    mask = torch.tensor([[True, False, False]])
    assert mean_square(x, guess, mask) == pytest.approx((0.25 + 4.0) / 4)
    known = torch.tensor([[True, True, False]])
    assert mean_square(x, guess, mask, known) == pytest.approx(0.25 / 2)
    with pytest.raises(ValueError, match="x must be known"):
        mean_square(torch.full_like(x, torch.nan), guess, mask)


def test_table_of_squared_errors() -> None:
    model, guide = kvae_pair()
    x = kvae_batch().x
    options = {"gaps": (3,), "drop_probabilities": (), "seed": 4, "observed_start": 2}
    table = imputation_table(model, guide, x, error="square", **options)
    mask = gap_mask(5, 8, 3, observed_start=2)
    assert table["smooth_gap_3"] == pytest.approx(mean_square(x, impute(guide, x, mask), mask))
    assert table["copy_last_gap_3"] == pytest.approx(mean_square(x, copy_last(x, mask), mask))
    with pytest.raises(ValueError, match="error must be one of wrong_pixels, square; got 'mse'"):
        imputation_table(model, guide, x, error="mse", **options)


def test_table_without_later_frames_filters_as_it_smooths() -> None:
    model, guide = kvae_pair("lstm")
    table = imputation_table(
        model, guide, kvae_batch(20).x, gaps=(), drop_probabilities=(1.0,), seed=0
    )
    assert table["smooth_p_1"] == table["filter_p_1"]


def test_table_chunks_and_missing_frames() -> None:
    model, guide = kvae_pair("lstm")
    batch = kvae_batch()
    options = {"gaps": (1, 3, 99), "drop_probabilities": (0.5,), "seed": 0, "observed_start": 2}
    expected = imputation_table(model, guide, batch, **options)
    assert not any(key.endswith("gap_99") for key in expected)
    assert imputation_table(model, guide, batch, chunk=2, **options) == expected
    hidden = torch.where(batch.mask[..., None, None, None], batch.x, torch.nan)
    assert imputation_table(model, guide, batch._replace(x=hidden), **options) == expected
    seen = batch.mask & gap_mask(5, 8, 3, observed_start=2)
    guess = impute(guide, batch.x, seen)
    assert expected["smooth_gap_3"] == pytest.approx(
        hamming(batch.x, guess, seen, known=batch.mask)
    )


class WithoutEncode(nn.Module):
    """A guide that offers nothing but its paths."""

    def __init__(self, guide: KalmanGuide) -> None:
        super().__init__()
        self.guide, self.model = guide, guide.model

    def smooth(self, x: Tensor, mask: Tensor, controls: Tensor | None) -> Trajectory:
        return self.guide.smooth(x, mask, controls)

    def filter(self, x: Tensor, mask: Tensor, controls: Tensor | None) -> Trajectory:
        return self.guide.filter(x, mask, controls)


def test_table_encodes_every_frame_once() -> None:
    model, guide = kvae_pair("lstm")
    batch = kvae_batch()
    options = {"gaps": (1, 3), "drop_probabilities": (0.5,), "seed": 0, "observed_start": 2}
    frames = 0

    def count(module: nn.Module, args: tuple[Tensor]) -> None:
        nonlocal frames
        frames += args[0].shape[0] * args[0].shape[1]

    with guide.encoder.register_forward_pre_hook(count):
        expected = imputation_table(model, guide, batch, chunk=2, **options)
        assert frames == 5 * 8
        again = imputation_table(model, WithoutEncode(guide), batch, chunk=2, **options)
    assert frames == 5 * 8 * (1 + 3 * 2)  # three masks, smoothed and filtered
    assert again == expected


def test_default_keys_and_their_text() -> None:
    model, guide = kvae_pair("static")
    table = imputation_table(model, guide, kvae_batch(2, 20), seed=0)
    patterns = [f"gap_{n}" for n in (1, 3, 5, 7, 9, 11, 13, 15)]
    patterns += [f"p_{p}" for p in ("0.1", "0.3", "0.5", "0.7", "0.9", "1")]
    methods = ("smooth", "filter", "copy_last")
    assert set(table) == {f"{m}_{p}" for m in methods for p in patterns} | {"blank"}
    lines = format_table(table | {"seconds": 3.0}).splitlines()
    assert len(lines) == 15 and len({len(line) for line in lines}) == 1
    assert lines[4].split() == ["gap", "7", *(f"{table[f'{m}_gap_7']:.4f}" for m in methods)] + [
        f"{table['blank']:.4f}"
    ]


def test_perfect_pair_makes_no_error() -> None:
    class Oracle(nn.Module):
        """Codes are the frames."""

        def __init__(self, truth: Tensor) -> None:
            super().__init__()
            self.truth, self.model = truth, self
            self.smooth = self.filter = self.look

        def look(self, x: Tensor, mask: Tensor, controls: Tensor | None) -> Batch:
            class Path:
                a = self.truth.flatten(2)

            return Path  # type: ignore[return-value]

        def decode(self, a: Tensor) -> Tensor:
            return a.view(*a.shape[:-1], 1, 4, 4)

    x = kvae_batch(3).x
    oracle = Oracle(x)
    table = imputation_table(oracle, oracle, x, gaps=(3,), drop_probabilities=(0.5,), seed=0)
    assert table["smooth_gap_3"] == table["filter_p_0.5"] == 0 < table["copy_last_gap_3"]


def test_errors_say_what_is_wrong() -> None:
    model, guide = kvae_pair()
    x, mask, _ = kvae_batch()
    with pytest.raises(ValueError, match="how must be one of smooth, filter; got 'guess'"):
        impute(guide, x, mask, how="guess")
    factor = FactorModel()
    with pytest.raises(TypeError, match="FactorGuide has not"):
        impute(FactorGuide(factor), x, mask)
