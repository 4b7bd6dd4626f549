r"""Frame encoders: from a frame to the mean and scale of its code, :math:`q(a_t \mid x_t)`."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pyro_seq.nn.arguments import check_choice
from pyro_seq.nn.convolutions import glorot_start, video_shape

__all__ = ["ENCODERS", "ConvEncoder", "FrameEncoder", "MLPEncoder", "STARTS"]

STARTS = ("random", "moments", "principal")


class FrameEncoder(nn.Module):
    r"""A network with a linear path beside it.

    .. math::
        \mu(x) = W (x - \bar x) + f(x),\qquad \sigma^2(x) = \sigma^2_{max}\, \mathrm{sigmoid}(g(x))

    W is zero until :meth:`start_from` sets it: a random network may fold the plane of positions
    when training begins and never unfold it; a linear map cannot fold.

    Args:
        trunk: From `(batch, *frame)` to features `(batch, features)`.
        features: Size of the trunk's output.
        frame_shape: Shape of one frame.
        obs: Size of the code a.
        max_var: :math:`\sigma^2_{max}`, the bound on the variance of q.
    """

    def __init__(
        self,
        trunk: nn.Module,
        features: int,
        frame_shape: Sequence[int],
        obs: int,
        max_var: float = 0.03,
    ) -> None:
        super().__init__()
        self.frame_shape, self.max_var = tuple(frame_shape), max_var
        self.trunk = trunk
        self.loc, self.scale = nn.Linear(features, obs), nn.Linear(features, obs)
        self.skip = nn.Linear(math.prod(self.frame_shape), obs)
        nn.init.zeros_(self.skip.weight)
        nn.init.zeros_(self.skip.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation `(*batch, obs)` of the code of frames `(*batch, *frame)`."""
        batch = x.shape[: x.dim() - len(self.frame_shape)]
        frames = x.reshape(-1, *self.frame_shape)
        features = self.trunk(frames)
        loc = self.loc(features) + self.skip(frames.flatten(1))
        scale = (self.max_var * self.scale(features).sigmoid()).sqrt()
        return loc.to(x.dtype).view(*batch, -1), scale.to(x.dtype).view(*batch, -1)

    @torch.no_grad()
    def start_from(self, frames: Tensor, start: str = "moments", spread: float = 5.0) -> None:
        r"""Set the linear path from data, and begin with nothing else.

        `"moments"` reads the centre of mass of what differs from the mean frame, along the last
        two dimensions; `"principal"` reads the first principal components. The codes are scaled so
        that their mean variance over the frames is `spread` squared. `"random"` changes nothing.

        Args:
            frames: Some training frames, `(count, *frame)`.
            start: One of the three.
            spread: Standard deviation of the codes to begin with; the unit is that of a, in which
                the noise variances of the dynamics are given.
        """
        check_choice("start", start, STARTS)
        _check_frames(frames, self.frame_shape)
        if start == "random":
            return
        flat = frames.to(self.skip.weight.dtype).flatten(1)
        mean = flat.mean(0)
        obs = self.skip.out_features
        rows = torch.zeros_like(self.skip.weight)
        if start == "moments":
            directions = _coordinates(self.frame_shape, flat.device, flat.dtype)[:obs]
        else:
            directions = torch.linalg.svd(flat[:4096] - mean, full_matrices=False).Vh[:obs]
        rows[: len(directions)] = directions
        codes = (flat - mean) @ rows.mT
        rows = rows * (spread / codes.var(0).mean().sqrt().clamp(min=1e-12))
        self.skip.weight.copy_(rows)
        self.skip.bias.copy_(-rows @ mean)
        nn.init.zeros_(self.loc.weight)
        nn.init.zeros_(self.loc.bias)


def _check_frames(frames: Tensor, frame_shape: tuple[int, ...]) -> None:
    if frames.shape[1:] != frame_shape:
        raise ValueError(
            f"frames must be (count, *frame) with frame = {frame_shape}; got shape "
            f"{tuple(frames.shape)}. Of sequences (batch, time, *frame) take x.flatten(0, 1)"
        )
    if not frames.isfinite().all():
        raise ValueError(
            "frames must be finite; got NaN or infinity. Take those that were observed: x[mask]"
        )


def _coordinates(frame_shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Column and row of every pixel, from the middle, `(2, pixels)`."""
    if len(frame_shape) < 2:
        raise ValueError(
            f"start 'moments' needs frames with rows and columns; got frame shape {frame_shape}. "
            "Use start='principal'"
        )
    height, width = frame_shape[-2:]
    rows = torch.arange(height, device=device, dtype=dtype) - (height - 1) / 2
    columns = torch.arange(width, device=device, dtype=dtype) - (width - 1) / 2
    grid = torch.stack([columns.expand(height, width), rows[:, None].expand(height, width)])
    return grid.expand(math.prod(frame_shape[:-2]), 2, height, width).transpose(0, 1).flatten(1)


def MLPEncoder(
    frame_shape: Sequence[int], obs: int, hidden: Sequence[int] = (128, 64), max_var: float = 0.03
) -> FrameEncoder:
    """A multi-layer perceptron on the flattened frame.

    Args:
        frame_shape: Shape of one frame.
        obs: Size of the code.
        hidden: Units of each hidden layer.
        max_var: Bound on the variance of q.
    """
    sizes = (math.prod(frame_shape), *hidden)
    layers: list[nn.Module] = [nn.Flatten()]
    for size, width in zip(sizes, sizes[1:], strict=False):
        layers += [nn.Linear(size, width), nn.SiLU()]
    return FrameEncoder(nn.Sequential(*layers), sizes[-1], frame_shape, obs, max_var)


def ConvEncoder(
    frame_shape: Sequence[int],
    obs: int,
    channels: Sequence[int] = (32, 32, 32),
    max_var: float = 0.03,
) -> FrameEncoder:
    """The paper's network: 3 x 3 convolutions of stride 2 with ReLU.

    Args:
        frame_shape: `(channels, height, width)`, any size.
        obs: Size of the code.
        channels: Channels of each layer.
        max_var: Bound on the variance of q.
    """
    depth, height, width = video_shape(frame_shape)
    layers: list[nn.Module] = []
    for size in channels:
        layers += [nn.Conv2d(depth, size, 3, stride=2, padding=1), nn.ReLU()]
        depth, height, width = size, (height + 1) // 2, (width + 1) // 2
    trunk = nn.Sequential(*layers, nn.Flatten())
    glorot_start(trunk)
    return FrameEncoder(trunk, depth * height * width, frame_shape, obs, max_var)


ENCODERS = {"conv": ConvEncoder, "mlp": MLPEncoder}
