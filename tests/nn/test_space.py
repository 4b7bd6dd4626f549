"""Maps between levels: shapes, and mirrors that are the transposes of what they mirror."""

from __future__ import annotations

import pytest
import torch

from pyro_seq.nn.space import bottom_up, conv_shape, side_kernel, top_down

MIRRORS = [
    ((3, 12, 12), 8, 2), ((3, 12, 12), 6, 2), ((3, 12, 9), 4, 2), ((3, 11, 8), 3, 2),
    ((3, 9, 9), 9, 1), ((3, 88), 3, 2), ((3, 11), 3, 2), ((3, 12), 9, 3), ((3, 7), 1, 1),
]  # fmt: skip


@pytest.mark.parametrize(("shape", "kernel", "stride"), MIRRORS)
def test_a_mirror_is_the_transpose(shape: tuple[int, ...], kernel: int, stride: int) -> None:
    """<conv(x), y> = <x, mirror(y)> for equal weights."""
    up = bottom_up(shape, 5, kernel, stride).double()
    top = conv_shape(shape, 5, kernel, stride)
    down = top_down(top, shape, kernel, stride).double()
    x, y = torch.randn(2, *shape).double(), torch.randn(2, *top).double()
    with torch.no_grad():
        weight = up.weight
        if stride == 1:  # a convolution with the kernel turned round
            weight = weight.transpose(0, 1).flip(*range(2, weight.dim()))
        down.weight.copy_(weight)
    assert up(x).shape[1:] == top and down(y).shape == x.shape
    torch.testing.assert_close((up(x) * y).sum(), (x * down(y)).sum())


def test_music_axis_of_the_paper() -> None:
    shape, sizes = (1, 88), []
    for _ in range(4):
        shape = conv_shape(shape, 1, 3, 2)
        sizes.append(shape[1])
    assert sizes == [44, 22, 11, 6]


def test_units_have_no_axis() -> None:
    assert conv_shape((7,), 3, 1) == (3,)
    assert bottom_up((7,), 3, 1)(torch.zeros(2, 7)).shape == (2, 3)


def test_side_kernels_are_odd() -> None:
    assert [side_kernel(k) for k in (1, 2, 3, 4, 5, 6, 8, 9)] == [1, 1, 3, 3, 5, 3, 5, 9]


def test_bad_kernels() -> None:
    with pytest.raises(ValueError, match="a kernel at stride 1 odd; got kernel=4, stride=1"):
        conv_shape((1, 8, 8), 2, 4)
    with pytest.raises(ValueError, match=r"a kernel of 8 does not fit maps of \(1,\)"):
        conv_shape((1, 1), 2, 8, 8)
    with pytest.raises(ValueError, match="at most two axes"):
        conv_shape((1, 2, 2, 2), 2, 3)
    with pytest.raises(ValueError, match=r"must lead from \(1, 8\) to \(2, 8\)"):
        top_down((2, 8), (1, 8), 3, 2)
