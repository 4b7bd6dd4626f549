"""Models of one size, for comparisons that are fair."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn

__all__ = ["match_parameters"]


def match_parameters(
    build: Callable[[int], nn.Module], target: float, tolerance: float = 0.05, *, most: int = 65536
) -> int:
    """The width at which a model has the number of parameters that is asked for, by bisection.

    Args:
        build: Makes a model of a width, for example of its controller; wider models have more
            parameters.
        target: The number of parameters.
        tolerance: By what share of the target the number may differ.
        most: The largest width to try.

    Returns:
        The width whose number of parameters is nearest. The random generator is left as it was.

    Raises:
        ValueError: When no width comes near enough.

    Example:
        >>> width = match_parameters(lambda width: nn.LSTMCell(8, width), target=10_000)
        >>> width, sum(p.numel() for p in nn.LSTMCell(8, width).parameters())
        (45, 9900)
    """
    if not 0 < target < math.inf:
        raise ValueError(f"target must be a positive number of parameters; got {target}")
    tried: dict[int, int] = {}

    def size(width: int) -> int:
        if width not in tried:
            with torch.random.fork_rng():
                tried[width] = sum(p.numel() for p in build(width).parameters())
        return tried[width]

    high = 1
    while high < most and size(high) < target:
        high = min(2 * high, most)
    low = 1
    while low + 1 < high:
        middle = (low + high) // 2
        low, high = (middle, high) if size(middle) < target else (low, middle)
    width = min((low, high), key=lambda w: abs(size(w) - target))
    if abs(size(width) - target) > tolerance * target:
        raise ValueError(
            f"target must be within reach: the nearest to {target:g} parameters is "
            f"{size(width)}, at width {width}, further than tolerance={tolerance:g} of it"
        )
    return width
