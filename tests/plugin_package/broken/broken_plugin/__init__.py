"""Names that collide with another plugin's, are not callable or are not there."""

from __future__ import annotations

NUMBER = 3


def constant() -> None:
    """Take a name that another plugin has too."""
