"""Dense networks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from pyro_seq.nn.arguments import check_positive
from pyro_seq.nn.repeated import RepeatedLinear

__all__ = ["FlatFrames", "JointMLP", "encoder_and_size", "mlp"]


def mlp(
    inputs: int,
    hidden: Sequence[int],
    activation: Callable[[], nn.Module] = nn.ELU,
    dropout: float = 0.0,
) -> nn.Sequential:
    """Dense layers, each followed by its nonlinearity, and by dropout if there is any.

    Args:
        inputs: Size of the input.
        hidden: Units of each layer; the output is the last layer's.
        activation: Makes a nonlinearity.
        dropout: Probability that a unit is dropped in training.

    Raises:
        TypeError: If the layers are no sequence of ints.
        ValueError: If a layer has no unit.
    """
    if not isinstance(hidden, Sequence):
        raise TypeError(f"units of layers must be a sequence, such as [64]; got {hidden!r}")
    layers: list[nn.Module] = []
    for width in hidden:
        check_positive(units=width)
        layers += [RepeatedLinear(inputs, width), activation()]
        if dropout:
            layers.append(nn.Dropout(dropout))
        inputs = width
    return nn.Sequential(*layers)


class JointMLP(nn.Module):
    r"""Dense layers over several inputs whose shares of the first layer can be computed apart.

    .. math:: f(a, b) = g(W_a a + W_b b + c)

    What is known for all steps of a sequence is multiplied once, outside the loop over time.

    Args:
        inputs: Size of each input.
        hidden: Units of each layer; the output is the last layer's.
        activation: Makes a nonlinearity.
        dropout: Probability that a unit is dropped in training.

    Example:
        >>> import torch
        >>> network = JointMLP([3, 2], [8])
        >>> a, b = torch.ones(5, 3), torch.ones(5, 2)
        >>> network(network.share(0, a) + network.share(1, b)).shape
        torch.Size([5, 8])
    """

    def __init__(
        self,
        inputs: Sequence[int],
        hidden: Sequence[int],
        activation: Callable[[], nn.Module] = nn.ELU,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if not hidden:
            raise ValueError("hidden must have one layer or more; got none")
        self.shares = nn.ModuleList(
            RepeatedLinear(n, hidden[0], bias=not i) for i, n in enumerate(inputs)
        )
        bound = sum(inputs) ** -0.5
        for parameter in self.shares.parameters():
            nn.init.uniform_(parameter, -bound, bound)
        self.activation = activation()
        self.drop = nn.Dropout(dropout)
        self.rest = mlp(hidden[0], hidden[1:], activation, dropout)

    def share(self, number: int, value: Tensor) -> Tensor:
        """What an input `(*batch, size)` adds to the first layer, `(*batch, units)`."""
        return self.shares[number](value)

    def forward(self, total: Tensor) -> Tensor:
        """The output, given the sum of all shares."""
        return self.rest(self.drop(self.activation(total)))


class FlatFrames(nn.Module):
    """Each frame laid end to end, `(batch, time, size)`; a frame that is a number has size 1."""

    def forward(self, x: Tensor) -> Tensor:
        """Frames `(batch, time, *frame)`, flat."""
        return x.reshape(*x.shape[:2], -1)


def encoder_and_size(
    encoder: nn.Module | None, features: int | None, size: int
) -> tuple[nn.Module, int]:
    """An encoder of frames and the size of its features; by default frames of that size, flat."""
    if encoder is None:
        return FlatFrames(), size
    if features is None:
        raise ValueError("features must be the size of the encoder's output; got None")
    return encoder, features
