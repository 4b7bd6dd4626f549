"""One step of recurrent cells, and networks of single frames over sequences of frames."""

from __future__ import annotations

from torch import Tensor, nn

from pyro_seq.nn.repeated import linear

__all__ = ["OverTime", "RepeatedLSTMCell", "lstm_step"]


class RepeatedLSTMCell(nn.LSTMCell):
    """``torch.nn.LSTMCell``, for a cell that is called at every step of a loop.

    It differs inside :func:`repeated` alone, and there only in the order of the sums that make
    the gradient of its weights; on CUDA, where the cell is one kernel, not at all.

    Example:
        >>> import torch
        >>> cell, state = RepeatedLSTMCell(3, 2), (torch.zeros(4, 2), torch.zeros(4, 2))
        >>> h, c = cell(torch.zeros(4, 3), state)
        >>> h.shape, c.shape
        (torch.Size([4, 2]), torch.Size([4, 2]))
    """

    def forward(
        self, inputs: Tensor, state: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Output and cell, `(batch, hidden)` each, for inputs `(batch, inputs)`."""
        if state is None or inputs.is_cuda:
            return super().forward(inputs, state)
        h, c = state
        gates = linear(inputs, self.weight_ih, self.bias_ih)
        gates = gates + linear(h, self.weight_hh, self.bias_hh)
        write, keep, new, read = gates.chunk(4, -1)
        c = keep.sigmoid() * c + write.sigmoid() * new.tanh()
        return read.sigmoid() * c.tanh(), c


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
