"""Checks of arguments that are sizes or names."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["check_choice", "check_positive"]


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Raises a ValueError unless the value is one of the choices."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}; got {value!r}")


def check_positive(least: int = 1, **sizes: int) -> None:
    """Raises an error that names the first size that is no int, or below the least."""
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int):
            raise TypeError(f"{name} must be an int; got {size!r}")
        if size < least:
            raise ValueError(f"{name} must be at least {least}; got {size}")
