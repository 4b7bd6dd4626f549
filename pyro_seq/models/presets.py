"""Sizes of published models, by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

__all__ = ["Presets"]


class Presets:
    """Gives a class the constructor ``preset``: the arguments of a publication, by name.

    Attributes:
        PRESETS: Keyword arguments of the class, by the name of the setting.

    Example:
        >>> class Walk(Presets):
        ...     PRESETS = {"small": {"latent": 2, "hidden": 8}}
        ...     def __init__(self, latent, hidden):
        ...         self.sizes = latent, hidden
        >>> Walk.preset("small", hidden=16).sizes
        (2, 16)
    """

    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    @classmethod
    def preset(cls, name: str, **options: Any) -> Self:  # noqa: ANN401
        """An instance with the sizes of a publication.

        Args:
            name: One of :attr:`PRESETS`.
            **options: Arguments of the class, in place of the preset's or beside them.

        Raises:
            ValueError: For an unknown name.
        """
        if name not in cls.PRESETS:
            raise ValueError(
                f"name must be a preset of {cls.__name__}, {', '.join(cls.PRESETS) or 'none'}; "
                f"got {name!r}"
            )
        return cls(**{**cls.PRESETS[name], **options})
