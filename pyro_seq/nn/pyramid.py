"""Convolutions in stages, each at half the resolution of the one before.

References:
    Simonyan, Zisserman (2015), Very deep convolutional networks for large-scale image recognition.
    Denton, Fergus (2018), Stochastic video generation with a learned prior.
    Wu, He (2018), Group normalization.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Size, Tensor, nn

from pyro_seq.nn.convolutions import video_shape

__all__ = ["VGG", "PyramidDecoder", "PyramidEncoder"]

VGG = {"channels": (64, 128, 256, 512), "convolutions": (2, 2, 3, 3)}
CHANNELS_PER_GROUP = 16


class PyramidEncoder(nn.Module):
    """From a picture to a vector.

    Normalised within groups of channels of each picture by itself: with batch normalisation a
    sequence would depend on the others of its batch, and no bound would hold.

    Args:
        frame_shape: `(channels, height, width)`, any size.
        features: Size of the vector, each between -1 and 1.
        channels: Channels of each stage.
        convolutions: Convolutions of each stage.

    Attributes:
        map_shapes: Shapes of the maps that :meth:`pyramid` returns.

    Example:
        >>> encoder = PyramidEncoder((1, 64, 64), 128, **VGG)
        >>> encoder.map_shapes[-1]
        torch.Size([512, 8, 8])
        >>> PyramidEncoder((1, 9, 6), 4)(torch.zeros(2, 1, 9, 6)).shape
        torch.Size([2, 4])
    """

    def __init__(
        self,
        frame_shape: Sequence[int],
        features: int,
        channels: Sequence[int] = (32, 64),
        convolutions: Sequence[int] = (1, 1),
    ) -> None:
        super().__init__()
        _check_stages(channels, convolutions)
        sizes = _resolutions(frame_shape, len(channels))
        self.map_shapes = [Size((c, *s)) for c, s in zip(channels, sizes, strict=False)]
        self.stages = nn.ModuleList(
            _stage([before, *[after] * count])
            for (before, after), count in zip(
                pairwise((frame_shape[0], *channels)), convolutions, strict=True
            )
        )
        self.head = nn.Linear(channels[-1] * math.prod(sizes[-1]), features)

    def forward(self, x: Tensor) -> Tensor:
        """Vectors `(count, features)` of pictures `(count, *frame)`."""
        return self.pyramid(x)[0]

    def pyramid(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Vectors, and the maps of each stage `(count, channels, height, width)`."""
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
            x = nn.functional.max_pool2d(x, 2, ceil_mode=True)
        return self.head(x.flatten(1)).tanh(), tuple(maps)


class PyramidDecoder(nn.Module):
    """From a vector to maps of the size of a picture: the mirror of :class:`PyramidEncoder`.

    Args:
        features: Size of the vector.
        frame_shape: `(channels, height, width)` of the picture.
        maps: Number of maps to return.
        channels: Channels of each stage, in the order of the encoder's.
        convolutions: Convolutions of each stage.
        skips: Whether each stage also reads the encoder's maps of that stage.

    Example:
        >>> decoder = PyramidDecoder(4, (1, 9, 6), maps=2)
        >>> decoder(torch.zeros(3, 4)).shape
        torch.Size([3, 2, 9, 6])
    """

    def __init__(
        self,
        features: int,
        frame_shape: Sequence[int],
        maps: int,
        channels: Sequence[int] = (32, 64),
        convolutions: Sequence[int] = (1, 1),
        skips: bool = False,
    ) -> None:
        super().__init__()
        _check_stages(channels, convolutions)
        self.sizes = _resolutions(frame_shape, len(channels))
        self.skips = skips
        low = (channels[-1], *self.sizes[-1])
        self.first = nn.Sequential(
            nn.Linear(features, math.prod(low)), nn.Unflatten(1, low), *_normalised(channels[-1])
        )
        after = [channels[0], *channels]
        self.stages = nn.ModuleList(
            _stage([width * (2 if skips else 1), *[width] * (count - 1), before])
            for width, before, count in zip(channels, after, convolutions, strict=False)
        )
        self.last = nn.Conv2d(channels[0], maps, 3, padding=1)

    def forward(self, features: Tensor, skips: Sequence[Tensor] = ()) -> Tensor:
        """Maps `(count, maps, height, width)`.

        Args:
            features: `(count, features)`.
            skips: The encoder's maps of each stage, if this decoder reads them.
        """
        x = self.first(features)
        for number in reversed(range(len(self.stages))):
            height, width = self.sizes[number]
            x = nn.functional.interpolate(x, scale_factor=2)[..., :height, :width]
            if self.skips:
                x = torch.cat([x, skips[number]], 1)
            x = self.stages[number](x)
        return self.last(x)


def _stage(widths: Sequence[int]) -> nn.Sequential:
    """Convolutions from each number of channels to the next."""
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Conv2d(before, after, 3, padding=1), *_normalised(after)]
    return nn.Sequential(*layers)


def _normalised(channels: int) -> list[nn.Module]:
    groups = math.gcd(channels, max(1, channels // CHANNELS_PER_GROUP))
    return [nn.GroupNorm(groups, channels), nn.LeakyReLU(0.2)]


def _resolutions(frame_shape: Sequence[int], stages: int) -> list[tuple[int, int]]:
    """Height and width of each stage, and after the last."""
    _, height, width = video_shape(frame_shape)
    sizes = [(height, width)]
    for _ in range(stages):
        height, width = (height + 1) // 2, (width + 1) // 2
        sizes.append((height, width))
    return sizes


def _check_stages(channels: Sequence[int], convolutions: Sequence[int]) -> None:
    if not channels or len(channels) != len(convolutions):
        raise ValueError(
            "channels and convolutions must have one number for each stage; "
            f"got {tuple(channels)} and {tuple(convolutions)}"
        )
