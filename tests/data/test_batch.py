from __future__ import annotations

import numpy as np
import pytest
import torch

from pyro_seq.data import Batch, check_batch, pad_sequences

X = torch.zeros(2, 3, 4)
MASK = torch.tensor([[True, False, True], [True, True, False]])


def test_lengths_end_at_the_last_observed_step() -> None:
    mask = torch.tensor([[0, 1, 0, 1, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]]).bool()
    batch = Batch(torch.zeros(3, 5, 2), mask)
    assert batch.lengths.tolist() == [4, 5, 0]
    assert batch.observed.tolist() == [2, 5, 0]
    assert Batch(batch.x).lengths.tolist() == Batch(batch.x).observed.tolist() == [5, 5, 5]


def test_to_moves_every_part() -> None:
    moved = Batch(X, MASK, X).to("meta")
    assert isinstance(moved, Batch)
    assert all(part.device.type == "meta" for part in moved)
    assert Batch(X).to("meta").mask is None


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((X[0],), ValueError, r"x: expected .*\(batch, time, \*frame\), got shape \(3, 4\)"),
        ((X[:0],), ValueError, r"x: expected at least one sequence"),
        ((X, MASK.float()), TypeError, r"mask: expected bools.* got torch.float32"),
        ((X, MASK[:, :2]), ValueError, r"mask: .*\(batch, time\) = \(2, 3\), got shape \(2, 2\)"),
        ((X, MASK[..., None]), ValueError, r"mask: .* got shape \(2, 3, 1\)"),
        ((X, None, X[:, :2]), ValueError, r"controls: .*\(2, 3, control\), got shape \(2, 2, 4\)"),
        ((X, None, X[..., 0]), ValueError, r"controls: .* got shape \(2, 3\)"),
        ((X, None, X / 0), ValueError, r"controls: expected a finite number at every step"),
    ],
)
def test_check_batch_names_what_is_wrong(
    arguments: tuple[torch.Tensor, ...], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        check_batch(*arguments)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_must_be_finite_where_observed_only(value: float) -> None:
    x = X.clone()
    x[0, 1, 2] = x[1, 2] = value
    check_batch(x, MASK)
    check_batch(torch.zeros(2, 3, 4, dtype=torch.uint8), MASK, X)
    x[1, 1, 0] = value
    with pytest.raises(ValueError, match="1 of them, first in sequence 1 at step 1"):
        check_batch(x, MASK)
    with pytest.raises(ValueError, match="3 of them, first in sequence 0 at step 1"):
        check_batch(x)


def test_padding_keeps_values_and_marks_itself_missing() -> None:
    sequences = [np.full((2, 3), 7, np.uint8), np.full((4, 3), 8, np.uint8)]
    masks = [torch.tensor([False, True]), torch.ones(4, dtype=torch.bool)]
    controls = [torch.ones(2, 1), 2 * torch.ones(4, 1)]
    batch = pad_sequences(sequences, masks, controls)
    assert batch.x.dtype == torch.uint8
    assert batch.x[:, :, 0].tolist() == [[7, 7, 0, 0], [8, 8, 8, 8]]
    assert batch.mask.tolist() == [[False, True, False, False], [True] * 4]
    assert batch.controls[:, :, 0].tolist() == [[1, 1, 0, 0], [2, 2, 2, 2]]
    assert pad_sequences(sequences).lengths.tolist() == [2, 4]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([],), "sequences: expected at least one sequence"),
        (([X[0], X[0, :, :2]],), r"sequences\[1\]: .* frame shape \(4,\) .* got shape \(3, 2\)"),
        (([X[0, :, 0]],), r"sequences\[0\]: .* got shape \(3,\)"),
        (([X[0]], [MASK[0], MASK[0]]), "masks: expected 1, one a sequence, got 2"),
        (([X[0]], [MASK[0, :2]]), r"masks\[0\]: expected as many steps as sequences\[0\], 3, got"),
        (([X[0]], None, [X[0, :2]]), r"controls\[0\]: .* 3, got shape \(2, 4\)"),
    ],
)
def test_padding_names_what_does_not_fit(arguments: tuple[list, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pad_sequences(*arguments)
