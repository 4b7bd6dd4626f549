from __future__ import annotations

import pytest
import torch

from pyro_seq.data import Batch, gap_mask, random_mask, training_mask


@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_random_mask_drops_its_share_after_the_start(probability: float) -> None:
    mask = random_mask(2000, 20, probability, seed=0)
    assert mask.shape == (2000, 20) and mask.dtype == torch.bool
    assert mask[:, :4].all()
    dropped = 1 - mask[:, 4:].double().mean(0)
    # Five standard deviations of the mean of 2,000 draws, for each frame on its own.
    bound = 5 * (probability * (1 - probability) / 2000) ** 0.5
    assert (dropped - probability).abs().max() <= bound


def test_random_mask_follows_its_seed_alone() -> None:
    one, two = (random_mask(32, 20, 0.5, seed=1) for _ in range(2))
    assert one.equal(two) and not one.equal(random_mask(32, 20, 0.5, seed=2))


def test_gap_mask_hides_one_gap() -> None:
    mask = gap_mask(3, 10, 5, observed_start=2)
    expected = [True, True, False, False, False, False, False, True, True, True]
    assert mask.tolist() == [expected] * 3
    assert gap_mask(1, 10, 0).all() and not gap_mask(1, 10, 6)[:, 4:].any()


def test_training_mask_hides_more_and_shows_nothing() -> None:
    old = torch.rand(64, 20) < 0.7
    batch = Batch(torch.zeros(64, 20, 2), old, torch.ones(64, 20, 1))
    new = training_mask(batch, 0.5, generator=torch.Generator().manual_seed(0))
    assert new.x is batch.x and new.controls is batch.controls
    assert not (new.mask & ~old).any()
    assert new.mask[:, :3].equal(old[:, :3])
    assert 0.4 < new.mask[:, 3:].sum() / old[:, 3:].sum() < 0.6
    again = training_mask(batch, 0.5, generator=torch.Generator().manual_seed(0))
    assert new.mask.equal(again.mask)
    assert training_mask(Batch(batch.x), 1.0, observed_start=5).mask.sum() == 64 * 5


def test_errors_name_the_argument() -> None:
    with pytest.raises(ValueError, match="drop_probability: expected a number from 0 to 1, got 2"):
        random_mask(1, 5, 2.0, seed=0)
    with pytest.raises(ValueError, match="observed_start: .* from 0 to time = 3, got 4"):
        random_mask(1, 3, 0.5, seed=0)
    with pytest.raises(ValueError, match="gap: .* observed_start = 4 of 20 frames, got 17"):
        gap_mask(1, 20, 17)
