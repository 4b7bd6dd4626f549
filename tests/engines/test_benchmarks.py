"""The benchmarks of ladders compare like with like."""

from __future__ import annotations

import torch

from benchmarks import ladders
from pyro_seq.engines.presets import occluded_digits
from pyro_seq.nn import ConvLSTM

TINY = ladders.Size(batch=2, time=3, channels=2, side=6)


def test_the_plain_cell_is_the_layer_without_norms() -> None:
    layer, plain = ConvLSTM((2, 6, 6), 2, norm="none"), ladders.PlainConvLSTM(2)
    ladders.copy_weights(layer, plain)
    x = torch.randn(2, 3, 2, 6, 6)
    torch.testing.assert_close(layer(x)[0], plain(x))


def test_layers_are_measured() -> None:
    row = ladders.run_conv_lstm(3, TINY)
    assert len(ladders.describe("conv_lstm", row)) == 2
    assert row["plain"]["ratio_wall"] == 1 and row["pyro_seq"]["operations"] > 0


def test_steps_are_measured() -> None:
    row = ladders.run_rladder(occluded_digits(), batch=2)
    assert 0 < row["share_of_convolutions"] < 1 and len(ladders.describe("rladder_step", row)) == 1


def test_groups_are_measured() -> None:
    row = ladders.run_groups(3, groups=2, batch=2)
    assert "2 groups at once" in ladders.describe("rtagger_groups", row)[0]
