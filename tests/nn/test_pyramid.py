"""Networks of pictures, and of single frames over time."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from pyro_seq.nn import ClippedLeakyReLU, OverTime, PyramidDecoder, PyramidEncoder, lstm_step
from pyro_seq.nn.pyramid import VGG


@pytest.mark.parametrize("frame_shape", [(1, 16, 16), (3, 7, 10), (2, 1, 5)])
@pytest.mark.parametrize("skips", [False, True])
def test_any_size_there_and_back(frame_shape: tuple[int, ...], skips: bool) -> None:
    stages = {"channels": (4, 6, 20), "convolutions": (1, 2, 1)}
    encoder = PyramidEncoder(frame_shape, 5, **stages)
    decoder = PyramidDecoder(5, frame_shape, 2, **stages, skips=skips)
    features, maps = encoder.pyramid(torch.rand(3, *frame_shape))
    assert features.shape == (3, 5) and (features.abs() <= 1).all()
    assert [m.shape[1:] for m in maps] == encoder.map_shapes
    out = decoder(features, maps) if skips else decoder(features)
    assert out.shape == (3, 2, *frame_shape[1:])
    grads = torch.autograd.grad(out.square().sum(), [*encoder.parameters(), *decoder.parameters()])
    assert all(grad.isfinite().all() and grad.abs().sum() > 0 for grad in grads)


def test_a_picture_is_encoded_by_itself_also_in_training() -> None:
    encoder = PyramidEncoder((1, 9, 9), 4).train()
    x = torch.rand(3, 1, 9, 9)
    torch.testing.assert_close(encoder(x)[:1], encoder(x[:1]))
    names = {type(module).__name__ for module in encoder.modules()}
    assert not any("BatchNorm" in name for name in names)


def test_vgg_is_that_of_the_paper() -> None:
    """Ten convolutions of 3 x 3 on 64 x 64 pixels, in stages of 64 to 512 channels."""
    with torch.device("meta"):
        encoder = PyramidEncoder((1, 64, 64), 128, **VGG)
    assert encoder.map_shapes == [(64, 64, 64), (128, 32, 32), (256, 16, 16), (512, 8, 8)]
    shapes = [m.weight.shape for m in encoder.modules() if isinstance(m, nn.Conv2d)]
    widths = [1, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512]
    assert shapes == [(b, a, 3, 3) for a, b in zip(widths, widths[1:], strict=False)]
    assert encoder.head.weight.shape == (128, 512 * 4 * 4)


def test_stages_are_checked() -> None:
    for channels, convolutions in (((4, 4), (1,)), ((), ())):
        with pytest.raises(ValueError, match="one number for each stage"):
            PyramidEncoder((1, 8, 8), 4, channels, convolutions)
    with pytest.raises(ValueError, match=r"frame_shape \(channels, height, width\)"):
        PyramidDecoder(4, (8, 8), 1)


def test_over_time_is_frame_by_frame() -> None:
    network = nn.Conv2d(2, 3, 3)
    x = torch.rand(4, 5, 2, 6, 6)
    made = OverTime(network)(x)
    for t in range(5):
        torch.testing.assert_close(made[:, t], network(x[:, t]))


@pytest.mark.parametrize("batch", [(3,), (2, 3), ()])
def test_a_step_of_an_lstm_with_any_batch(batch: tuple[int, ...]) -> None:
    cell = nn.LSTMCell(4, 5)
    x, h, c = (torch.randn(*batch, size) for size in (4, 5, 5))
    found = lstm_step(cell, x, h, c)
    rows = cell(x.reshape(-1, 4), (h.reshape(-1, 5), c.reshape(-1, 5)))
    for value, expected in zip(found, rows, strict=True):
        assert value.shape == (*batch, 5)
        torch.testing.assert_close(value.reshape(-1, 5), expected)


def test_clipped_leaky_relu() -> None:
    x = torch.tensor([-30.0, -6.0, -1.5, 0.0, 2.0, 7.0])
    expected = torch.tensor([-3.0, -2.0, -0.5, 0.0, 2.0, 3.0])
    torch.testing.assert_close(copy.deepcopy(ClippedLeakyReLU())(x), expected)
