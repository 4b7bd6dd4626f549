r"""Linear maps between stacks of maps with no axis (units), one (pitch) or two (pictures).

A shape is ``(channels, *space)``. A kernel k is padded so that places stay where they are, by
:math:`p = \lfloor (k - 1) / 2 \rfloor`, and a stride s divides each axis,
:math:`n' = \lfloor (n + 2 p - k) / s \rfloor + 1`. The mirror of a convolution is the transposed
one, with the output padding that gives back n.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from pyro_seq.nn.repeated import RepeatedLinear

__all__ = ["bottom_up", "conv_shape", "per_channel", "side_kernel", "top_down"]

Shape = tuple[int, ...]
_CONV: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d}
_TRANSPOSED: dict[int, Any] = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d}


def conv_shape(shape: Sequence[int], channels: int, kernel: int, stride: int = 1) -> Shape:
    """Shape after a convolution; units, which have no axis, become `(channels,)`.

    Args:
        shape: `(channels, *space)` before.
        channels: Channels after.
        kernel: Size of the kernel along each axis.
        stride: Of each axis.

    Raises:
        ValueError: For a kernel that has no middle at stride 1, or is larger than the map, or more
            than two axes.

    Example:
        >>> conv_shape((1, 32, 32), 8, kernel=3, stride=2)
        (8, 16, 16)
    """
    _, *space = shape
    if len(space) > 2:
        raise ValueError(f"a shape must be (channels, *space) of at most two axes; got {shape}")
    if kernel < 1 or stride < 1 or (stride == 1 and space and not kernel % 2):
        raise ValueError(
            "kernel and stride must be positive, and a kernel at stride 1 odd; "
            f"got kernel={kernel}, stride={stride}"
        )
    padding = (kernel - 1) // 2
    sizes = tuple((n + 2 * padding - kernel) // stride + 1 for n in space)
    if min(sizes, default=1) < 1:
        raise ValueError(f"a kernel of {kernel} does not fit maps of {tuple(space)}")
    return (channels, *sizes)


def bottom_up(shape: Sequence[int], channels: int, kernel: int, stride: int = 1) -> nn.Module:
    """A convolution without a bias, or a dense layer for units.

    Args:
        shape: `(channels, *space)` of its input.
        channels: Of its output.
        kernel: Size of the kernel along each axis.
        stride: Of each axis.

    Raises:
        ValueError: As in :func:`conv_shape`.
    """
    conv_shape(shape, channels, kernel, stride)
    dims = len(shape) - 1
    if not dims:
        return RepeatedLinear(shape[0], channels, bias=False)
    padding = (kernel - 1) // 2
    return _CONV[dims](shape[0], channels, kernel, stride, padding, bias=False)


def top_down(top: Sequence[int], shape: Sequence[int], kernel: int, stride: int = 1) -> nn.Module:
    """The mirror of a convolution from `shape` to `top`, without a bias.

    Args:
        top: `(channels, *space)` of its input.
        shape: `(channels, *space)` of its output.
        kernel: Size of the kernel along each axis.
        stride: Of the convolution that it mirrors.

    Raises:
        ValueError: If no output padding gives the shape.

    Example:
        >>> import torch
        >>> up = top_down((8, 6), (4, 11), kernel=3, stride=2)
        >>> up(torch.zeros(1, 8, 6)).shape
        torch.Size([1, 4, 11])
    """
    if len(top) != len(shape) or conv_shape(shape, top[0], kernel, stride) != tuple(top):
        raise ValueError(
            f"a kernel of {kernel} at stride {stride} must lead from {tuple(shape)} to "
            f"{tuple(top)} for a cell that mirrors it"
        )
    if stride == 1 or len(shape) == 1:
        return bottom_up(top, shape[0], kernel)
    padding = (kernel - 1) // 2
    missing = tuple(
        n - ((m - 1) * stride - 2 * padding + kernel)
        for m, n in zip(top[1:], shape[1:], strict=True)
    )
    if min(missing) < 0 or max(missing) >= stride:
        raise ValueError(
            f"a transposed convolution with a kernel of {kernel} at stride {stride} cannot lead "
            f"from {tuple(top)} to {tuple(shape)}"
        )
    return _TRANSPOSED[len(shape) - 1](
        top[0], shape[0], kernel, stride, padding, output_padding=missing, bias=False
    )


def side_kernel(kernel: int) -> int:
    """The kernel of inputs that already have the shape of the output: odd, and no larger."""
    return kernel if kernel % 2 else 2 * (kernel // 4) + 1


def per_channel(values: Tensor, like: Tensor) -> Tensor:
    """Values `(..., channels)` with the axes of maps `(batch, channels, *space)` after them."""
    return values.reshape(*values.shape, *(1,) * (like.dim() - 2))
