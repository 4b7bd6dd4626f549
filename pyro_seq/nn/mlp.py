"""Dense networks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

__all__ = ["mlp"]


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
    """
    layers: list[nn.Module] = []
    for width in hidden:
        layers += [nn.Linear(inputs, width), activation()]
        if dropout:
            layers.append(nn.Dropout(dropout))
        inputs = width
    return nn.Sequential(*layers)
