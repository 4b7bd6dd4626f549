"""Checks of arguments that are sizes or names."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

__all__ = ["check_choice", "check_mean", "check_positive"]


def check_choice(name: str, value: str, choices: Collection[str]) -> None:
    """Raises a ValueError unless the value is one of the choices."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}; got {value!r}")


def check_mean(mean: Any, pixels: str) -> float:  # noqa: ANN401
    """The mean as a float, or an error unless pixels of that kind can have it."""
    try:
        mean = float(mean)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"mean must be one number for all pixels; got {type(mean).__name__}"
        ) from error
    if pixels == "bernoulli" and not 0 < mean < 1:
        raise ValueError(f"mean of binary pixels must be between 0 and 1; got {mean}")
    if not math.isfinite(mean):
        raise ValueError(f"mean must be finite; got {mean}")
    return mean


def check_positive(least: int = 1, **sizes: int) -> None:
    """Raises an error that names the first size that is no int, or below the least."""
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int):
            raise TypeError(f"{name} must be an int; got {size!r}")
        if size < least:
            raise ValueError(f"{name} must be at least {least}; got {size}")
