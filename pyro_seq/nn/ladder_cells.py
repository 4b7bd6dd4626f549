r"""Decoder cells of recurrent ladders: what comes from above meets what the encoder has found.

Each is called with v from the level above, `(batch, *top)`, h from the encoder at the level of its
output, `(batch, *shape)`, and the iteration of each sample, and returns y of the shape of h.

References:
    Prémont-Schwarz, Ilin, Hao, Rasmus, Boney, Valpola (2017), Recurrent ladder networks.
    Rasmus, Valpola, Honkala, Berglund, Raiko (2015), Semi-supervised learning with
    ladder networks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pyro_seq.nn.norms import unit_norm
from pyro_seq.nn.repeated import RepeatedLinear
from pyro_seq.nn.space import bottom_up, per_channel, side_kernel, top_down

__all__ = ["G1", "Broadcast", "ConvG1", "ConvG2", "ConvG3", "SigmoidPlusLinear"]

MEAN = (0.0, 1.0, 0.0, 1.0, 0.0)
GATE = (1.0, 1.0, 0.0, 0.0, 0.0)


class SigmoidPlusLinear(nn.Module):
    r"""A sigmoid and a line for each channel, eq. 6.

    .. math:: f(u, w) = w_0\, \mathrm{sigm}(w_1 u + w_2) + w_3 u + w_4

    Args:
        channels: Number of channels, each with its own w.
        start: What the five weights start with: ``MEAN`` is the identity, ``GATE`` a sigmoid.

    Example:
        >>> f = SigmoidPlusLinear(3, GATE)
        >>> f(torch.zeros(2, 3))
        tensor([[0.5000, 0.5000, 0.5000],
                [0.5000, 0.5000, 0.5000]], grad_fn=<AddcmulBackward0>)
    """

    def __init__(self, channels: int, start: Sequence[float] = MEAN) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(start).unsqueeze(-1).repeat(1, channels))

    def forward(self, u: Tensor) -> Tensor:
        """Of units `(batch, channels, *space)`."""
        w0, w1, w2, w3, w4 = per_channel(self.weight, u).unbind()
        return torch.addcmul(torch.addcmul(w4, w3, u), w0, torch.addcmul(w2, w1, u).sigmoid())


class _Gate(nn.Module):
    r""":math:`y = s \odot h + (1 - s) \odot f(u, w)`, with :math:`s = f(u, w^s)`."""

    def __init__(self, channels: int, stable: bool, lateral: bool) -> None:
        super().__init__()
        self.mean, self.gate = SigmoidPlusLinear(channels), SigmoidPlusLinear(channels, GATE)
        self.stable, self.lateral = stable, lateral

    def forward(self, u: Tensor, h: Tensor) -> Tensor:
        gate, mean = self.gate(u), self.mean(u)
        # Under autocast h may have half the precision.
        h = h.to(mean.dtype) if self.lateral else torch.zeros_like(mean)
        return torch.lerp(mean, h, gate.sigmoid() if self.stable else gate)


class G1(nn.Module):
    r"""The dense gating cell.

    .. math:: u = \mathrm{N}(A v), \quad s = f(u, w^s), \quad y = s \odot h + (1 - s) \odot f(u, w)

    Args:
        top: Shape of v, laid end to end.
        shape: Shape of h and y.
        norm: See :func:`~pyro_seq.nn.unit_norm`.
        iterations: For how many iterations batch statistics are kept apart.
        stable: Whether s goes through one more sigmoid, so that it is a weight for any u.
        lateral: False for zeros in place of h.

    Example:
        >>> G1((16,), (8, 4, 4))(torch.zeros(2, 16), torch.zeros(2, 8, 4, 4)).shape
        torch.Size([2, 8, 4, 4])
    """

    def __init__(
        self,
        top: Sequence[int],
        shape: Sequence[int],
        *,
        norm: str = "layer",
        iterations: int = 8,
        stable: bool = False,
        lateral: bool = True,
    ) -> None:
        super().__init__()
        units = math.prod(shape)
        self.top = RepeatedLinear(math.prod(top), units, bias=False)
        self.norm = unit_norm(norm, units, iterations)
        self.combine = _Gate(units, stable, lateral)

    def forward(self, v: Tensor, h: Tensor, iteration: Tensor | None = None) -> Tensor:
        """The output y of v and h."""
        u = self.norm(self.top(v.flatten(1)), iteration)
        return self.combine(u, h.flatten(1)).view_as(h)


class ConvG1(nn.Module):
    r"""The convolutional gating cell: :class:`G1` with a convolution, and one w per channel.

    Args:
        top: `(channels, *space)` of v.
        shape: `(channels, *space)` of h and y.
        kernel: Size of the kernel of v.
        stride: Of the encoder's operation that the cell mirrors.
        norm: See :func:`~pyro_seq.nn.unit_norm`.
        iterations: For how many iterations batch statistics are kept apart.
        stable: Whether s goes through one more sigmoid.
        lateral: False for zeros in place of h.

    Raises:
        ValueError: When kernel and stride do not lead from `top` to `shape`.

    Example:
        >>> cell = ConvG1((8, 8, 8), (4, 16, 16), kernel=4, stride=2)
        >>> cell(torch.zeros(2, 8, 8, 8), torch.zeros(2, 4, 16, 16)).shape
        torch.Size([2, 4, 16, 16])
    """

    def __init__(
        self,
        top: Sequence[int],
        shape: Sequence[int],
        kernel: int,
        stride: int = 1,
        *,
        norm: str = "layer",
        iterations: int = 8,
        stable: bool = False,
        lateral: bool = True,
    ) -> None:
        super().__init__()
        self.top = top_down(top, shape, kernel, stride)
        self.norm = unit_norm(norm, shape[0], iterations)
        self.combine = _Gate(shape[0], stable, lateral)

    def forward(self, v: Tensor, h: Tensor, iteration: Tensor | None = None) -> Tensor:
        """The output y of v and h."""
        return self.combine(self.norm(self.top(v), iteration), h)


class _Meeting(nn.Module):
    r""":math:`\mathrm{N}(A * v) + \mathrm{N}(B * h) + c`."""

    def __init__(
        self,
        top: Sequence[int],
        shape: Sequence[int],
        channels: int,
        kernel: int,
        side: int,
        stride: int,
        norm: str,
        iterations: int,
    ) -> None:
        super().__init__()
        self.top = top_down(top, (channels, *shape[1:]), kernel, stride)
        self.side = bottom_up(shape, channels, side)
        self.norm_top = unit_norm(norm, channels, iterations)
        self.norm_side = unit_norm(norm, channels, iterations)
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, v: Tensor, h: Tensor, iteration: Tensor | None) -> Tensor:
        top = self.norm_top(self.top(v), iteration, self.bias)
        return top + self.norm_side(self.side(h), iteration)


class ConvG2(nn.Module):
    r"""The convolutional cell of two candidates.

    .. math::
        \mu_j &= f(\mathrm{N}(A_j * v) + \mathrm{N}(B_j * h) + c_j, w_j), \quad j = 1, 2 \\
        s &= f(\mathrm{N}(A_s * v) + \mathrm{N}(B_s * h) + c_s, w_s), \qquad
        y = s \odot \mu_1 + (1 - s) \odot \mu_2

    The gate s is no weight once training has moved :math:`w_s`, as in the paper.

    Args:
        top: `(channels, *space)` of v.
        shape: `(channels, *space)` of h and y.
        kernel: Size of the kernel of v; that of h is as large, or smaller if it is even.
        stride: Of the encoder's operation that the cell mirrors.
        norm: See :func:`~pyro_seq.nn.unit_norm`.
        iterations: For how many iterations batch statistics are kept apart.

    Raises:
        ValueError: When kernel and stride do not lead from `top` to `shape`.

    Example:
        >>> cell = ConvG2((8, 44), (4, 88), kernel=3, stride=2)
        >>> cell(torch.zeros(2, 8, 44), torch.zeros(2, 4, 88)).shape
        torch.Size([2, 4, 88])
    """

    def __init__(
        self,
        top: Sequence[int],
        shape: Sequence[int],
        kernel: int,
        stride: int = 1,
        *,
        norm: str = "layer",
        iterations: int = 8,
    ) -> None:
        super().__init__()
        channels, side = shape[0], side_kernel(kernel)
        self.meetings = nn.ModuleList(
            _Meeting(top, shape, channels, kernel, side, stride, norm, iterations)
            for _ in range(3)
        )
        self.shapes = nn.ModuleList(
            SigmoidPlusLinear(channels, start) for start in (MEAN, MEAN, GATE)
        )

    def forward(self, v: Tensor, h: Tensor, iteration: Tensor | None = None) -> Tensor:
        """The output y of v and h."""
        one, other, gate = (
            f(meet(v, h, iteration)) for f, meet in zip(self.shapes, self.meetings, strict=True)
        )
        return torch.lerp(other, one, gate)


class ConvG3(nn.Module):
    r"""The convolutional cell with a hidden layer.

    .. math::
        u &= \mathrm{relu}(\mathrm{N}(A * v) + \mathrm{N}(B * h) + c) \\
        s &= \mathrm{sigm}(W_s * u), \qquad y = s \odot (D * u) + (1 - s) \odot (E * u)

    Kernels other than that of v have size 3. The channels of u are as many as those of y, or of v
    where y has only one.

    Args:
        top: `(channels, *space)` of v.
        shape: `(channels, *space)` of h and y.
        kernel: Size of the kernel of v; that of h is 3.
        stride: Of the encoder's operation that the cell mirrors.
        norm: See :func:`~pyro_seq.nn.unit_norm`.
        iterations: For how many iterations batch statistics are kept apart.

    Raises:
        ValueError: When kernel and stride do not lead from `top` to `shape`.

    Example:
        >>> cell = ConvG3((8, 8, 8), (4, 16, 16), kernel=6, stride=2)
        >>> cell(torch.zeros(2, 8, 8, 8), torch.zeros(2, 4, 16, 16)).shape
        torch.Size([2, 4, 16, 16])
    """

    def __init__(
        self,
        top: Sequence[int],
        shape: Sequence[int],
        kernel: int,
        stride: int = 1,
        *,
        norm: str = "layer",
        iterations: int = 8,
    ) -> None:
        super().__init__()
        hidden = top[0] if shape[0] == 1 else shape[0]
        self.meet = _Meeting(top, shape, hidden, kernel, 3, stride, norm, iterations)
        self.outputs = bottom_up((hidden, *shape[1:]), 3 * shape[0], 3)
        self.bias = nn.Parameter(torch.zeros(3 * shape[0]))

    def forward(self, v: Tensor, h: Tensor, iteration: Tensor | None = None) -> Tensor:
        """The output y of v and h."""
        outputs = self.outputs(self.meet(v, h, iteration).relu())
        gate, one, other = (outputs + per_channel(self.bias, outputs)).chunk(3, 1)
        return torch.lerp(other, one, gate.sigmoid())


class Broadcast(nn.Module):
    """The mirror of a pool without weights: every place of y has the value of its place in v.

    Args:
        top: `(channels, *space)` of v.
        shape: `(channels, *space)` of y; each axis a multiple of that of v.

    Raises:
        ValueError: When the shapes do not fit.

    Example:
        >>> Broadcast((3, 1, 1), (3, 6, 6))(torch.zeros(2, 3, 1, 1), None).shape
        torch.Size([2, 3, 6, 6])
    """

    def __init__(self, top: Sequence[int], shape: Sequence[int]) -> None:
        super().__init__()
        sizes = list(zip(top[1:], shape[1:], strict=False))
        if len(top) != len(shape) or top[0] != shape[0] or any(n % m for m, n in sizes):
            raise ValueError(
                "to broadcast, both must have the same channels, and axes that divide; "
                f"got {tuple(top)} to {tuple(shape)}"
            )
        self.factors = tuple(n // m for m, n in sizes)

    def forward(self, v: Tensor, h: Tensor | None, iteration: Tensor | None = None) -> Tensor:
        """The output y of v; h is not read."""
        for axis, factor in enumerate(self.factors, 2):
            v = v.repeat_interleave(factor, axis)
        return v
