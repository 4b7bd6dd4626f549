r"""Frame decoders: from a code to the logits, or the mean, of every pixel."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pyro_seq.nn.convolutions import glorot_start, video_shape

__all__ = ["DECODERS", "ConvDecoder", "FrameDecoder", "MLPDecoder"]


class FrameDecoder(nn.Module):
    """A network from codes to frames, and what it adds to: one learnt value per pixel.

    Args:
        network: From `(batch, obs)` to `(batch, *frame)`.
        frame_shape: Shape of one frame.
    """

    def __init__(self, network: nn.Module, frame_shape: Sequence[int]) -> None:
        super().__init__()
        self.frame_shape = tuple(frame_shape)
        self.network = network
        self.base = nn.Parameter(torch.zeros(self.frame_shape))

    def forward(self, a: Tensor) -> Tensor:
        """`(*batch, *frame)` of codes `(*batch, obs)`."""
        frames = self.network(a.reshape(-1, a.shape[-1])).view(-1, *self.frame_shape)
        return (frames.to(a.dtype) + self.base).view(*a.shape[:-1], *self.frame_shape)

    @torch.no_grad()
    def start_from(self, frames: Tensor, likelihood: str = "bernoulli") -> None:
        """Begin with the mean of `frames (count, *frame)`: what stands still is drawn at once."""
        mean = frames.to(self.base.dtype).mean(0)
        self.base.copy_(torch.logit(mean.clamp(0.01, 0.99)) if likelihood == "bernoulli" else mean)


def MLPDecoder(
    obs: int, frame_shape: Sequence[int], hidden: Sequence[int] = (256, 256)
) -> FrameDecoder:
    """A multi-layer perceptron: the light decoder.

    Args:
        obs: Size of the code.
        frame_shape: Shape of one frame.
        hidden: Units of each hidden layer.
    """
    first = nn.Linear(obs, hidden[0])
    with torch.no_grad():  # kinks spread over the codes' range, several units wide
        first.weight.normal_(0.0, 0.3)
        first.bias.uniform_(-2.0, 2.0)
    layers: list[nn.Module] = [first, nn.SiLU()]
    for size, width in zip(hidden, hidden[1:], strict=False):
        layers += [nn.Linear(size, width), nn.SiLU()]
    layers += [nn.Linear(hidden[-1], math.prod(frame_shape)), nn.Unflatten(1, tuple(frame_shape))]
    return FrameDecoder(nn.Sequential(*layers), frame_shape)


class _Crop(nn.Module):
    """The first rows and columns of a frame that came out too large."""

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        self.height, self.width = height, width

    def forward(self, x: Tensor) -> Tensor:
        return x[..., : self.height, : self.width]


def ConvDecoder(
    obs: int, frame_shape: Sequence[int], channels: Sequence[int] = (32, 32, 32)
) -> FrameDecoder:
    """The paper's network: 3 x 3 convolutions, each followed by a pixel shuffle that doubles.

    Args:
        obs: Size of the code.
        frame_shape: `(channels, height, width)`, any size.
        channels: Channels after each doubling of the resolution.

    References:
        Shi et al. (2016), sub-pixel convolution.
    """
    depth, height, width = video_shape(frame_shape)
    factor = 2 ** len(channels)
    low, narrow, size = math.ceil(height / factor), math.ceil(width / factor), channels[0]
    layers: list[nn.Module] = [
        nn.Linear(obs, size * low * narrow),
        nn.Unflatten(1, (size, low, narrow)),
    ]
    for after in channels:
        layers += [nn.Conv2d(size, 4 * after, 3, padding=1), nn.ReLU(), nn.PixelShuffle(2)]
        size = after
    layers += [nn.Conv2d(size, depth, 1), _Crop(height, width)]
    network = nn.Sequential(*layers)
    glorot_start(network)
    return FrameDecoder(network, frame_shape)


DECODERS = {"conv": ConvDecoder, "mlp": MLPDecoder}
