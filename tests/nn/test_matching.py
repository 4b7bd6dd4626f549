"""Widths for a number of parameters."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import pyro_seq
from pyro_seq.nn import match_parameters


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def lstm(width: int) -> nn.Module:
    return nn.LSTMCell(3, width)


@pytest.mark.parametrize("target", [31, 100, 1234, 50_000])
def test_no_width_is_nearer(target: int) -> None:
    width = match_parameters(lstm, target, tolerance=1.0)
    distances = {w: abs(count(lstm(w)) - target) for w in range(1, 130)}
    assert distances[width] == min(distances.values())


@pytest.mark.parametrize("name", ["dnc", "icm", "introspection", "lru", "ntm"])
def test_memories_agree(name: str) -> None:
    def build(width: int) -> nn.Module:
        return pyro_seq.get("memories", name)(8, 11, heads=2, hidden=width)

    assert abs(count(build(match_parameters(build, 60_000))) - 60_000) <= 3000


def test_out_of_reach() -> None:
    with pytest.raises(ValueError, match="nearest to 5 parameters is 24, at width 1, further"):
        match_parameters(lstm, 5)
    with pytest.raises(ValueError, match="nearest to 1e.09 parameters is 1344, at width 16"):
        match_parameters(lstm, 1e9, most=16)
    for target in (0, math.inf, math.nan):
        with pytest.raises(ValueError, match="target must be a positive number"):
            match_parameters(lstm, target)


def test_random_numbers_go_on_as_if_nothing_was_built() -> None:
    before = torch.get_rng_state()
    match_parameters(lstm, 936)
    assert torch.equal(torch.get_rng_state(), before)
