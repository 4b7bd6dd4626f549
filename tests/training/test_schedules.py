from __future__ import annotations

import math

import pytest
import torch
from torch.optim.lr_scheduler import LRScheduler

from pyro_seq.training import warmup_cosine, warmup_exponential


def optimizer() -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)


def rates(schedule: LRScheduler, steps: int) -> list[float]:
    found = []
    for _ in range(steps):
        found.append(schedule.get_last_lr()[0])
        schedule.optimizer.step()
        schedule.step()
    return found


def test_cosine_equals_torchs() -> None:
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer(), 10, eta_min=0.2)
    ours = rates(warmup_cosine(optimizer(), 10, final=0.1), 11)
    assert ours == pytest.approx(rates(reference, 11))
    assert ours[0] == 2.0 and ours[-1] == pytest.approx(0.2)


def test_warm_up() -> None:
    found = rates(warmup_cosine(optimizer(), 14, warmup=4), 20)
    assert found[:5] == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.0])
    assert found[9] == pytest.approx(1.0) and found[4:] == sorted(found[4:], reverse=True)
    assert found[14:] == pytest.approx([0.0] * 6)
    stairs = rates(warmup_exponential(optimizer(), 5, factor=0.5, warmup=2), 12)
    assert stairs == pytest.approx([1.0] + [2.0] * 4 + [1.0] * 5 + [0.5] * 2)


def test_a_rate_that_is_held_falls_later() -> None:
    found = rates(warmup_cosine(optimizer(), 20, warmup=4, hold=6), 20)
    assert found[3:10] == pytest.approx([2.0] * 7)
    assert found[10:] == pytest.approx(rates(warmup_cosine(optimizer(), 10), 10))


def test_stairs_equal_torchs() -> None:
    reference = torch.optim.lr_scheduler.StepLR(optimizer(), 3, 0.85)
    assert rates(warmup_exponential(optimizer(), 3), 20) == pytest.approx(rates(reference, 20))


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="warmup must be at least 0 and less than steps = 5"):
        warmup_cosine(optimizer(), 5, warmup=5)
    with pytest.raises(ValueError, match="hold must be at least 0 and less than the 3 steps left"):
        warmup_cosine(optimizer(), 5, warmup=2, hold=3)
    for every, factor in ((0, 0.5), (3, 0.0), (3, 1.5), (3, math.nan)):
        with pytest.raises(ValueError, match="every must be >= 1 and factor in"):
            warmup_exponential(optimizer(), every, factor=factor)
