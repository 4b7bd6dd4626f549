"""One step of recurrent cells, and networks of single frames over sequences of frames."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["OverTime", "lstm_step"]


def lstm_step(cell: nn.LSTMCell, inputs: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """One step of an LSTM cell, with any number of batch dimensions.

    Args:
        cell: The cell.
        inputs: `(*batch, inputs)`.
        h: Output of the step before, `(*batch, hidden)`.
        c: Cell of the step before, `(*batch, hidden)`.

    Returns:
        Output and cell after the step.
    """
    if inputs.dim() <= 2:
        return cell(inputs, (h, c))
    h, c = cell(inputs.flatten(0, -2), (h.flatten(0, -2), c.flatten(0, -2)))
    batch = inputs.shape[:-1]
    return h.view(*batch, -1), c.view(*batch, -1)


class OverTime(nn.Module):
    """Applies a network of single frames to sequences of frames.

    Args:
        network: From `(count, *frame)` to `(count, *features)`.

    Example:
        >>> import torch
        >>> convolution = nn.Conv2d(1, 8, 3)
        >>> OverTime(convolution)(torch.zeros(4, 10, 1, 16, 16)).shape
        torch.Size([4, 10, 8, 14, 14])
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Features `(batch, time, *features)` of frames `(batch, time, *frame)`."""
        return self.network(x.flatten(0, 1)).unflatten(0, x.shape[:2])
