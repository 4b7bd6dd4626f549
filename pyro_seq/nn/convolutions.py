"""What the convolutional encoder and decoder share."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

__all__ = ["glorot_start", "video_shape"]


def glorot_start(network: nn.Module) -> None:
    """Give every convolution and linear layer Glorot's uniform weights and no bias.

    References:
        Glorot, Bengio (2010).
    """
    for layer in network.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def video_shape(frame_shape: Sequence[int]) -> tuple[int, int, int]:
    """Channels, height and width, or an error when the frame has other dimensions."""
    if len(frame_shape) != 3:
        raise ValueError(
            "a convolutional network needs frame_shape (channels, height, width); "
            f"got {tuple(frame_shape)}"
        )
    channels, height, width = frame_shape
    return channels, height, width
