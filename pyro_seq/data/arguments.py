"""Checks of arguments that are numbers of things."""

from __future__ import annotations

from numbers import Integral

__all__ = ["check_numbers"]


def check_numbers(least: int = 1, **numbers: int) -> None:
    """Raises an error that names the first number that is no int, or below the least."""
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, Integral):
            raise TypeError(f"{name}: expected an int, got {value!r}.")
        if value < least:
            raise ValueError(f"{name}: expected at least {least}, got {value}.")
