"""Registries of named parts, and the entry points by which other packages add to them.

A part is a class or function with a kind and a name, ``("models", "kvae")``. It becomes known in
one of three ways: it is built in, a script registers it with the decorator :func:`register`, or an
installed package names it as an entry point of the group ``pyro_seq.<kind>``. Nothing is imported
before :func:`get` asks for that very name.
"""

from __future__ import annotations

import difflib
import importlib
import warnings
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

__all__ = [
    "BrokenPluginError",
    "PluginCollisionError",
    "PluginError",
    "Registry",
    "UnknownPluginError",
    "available",
    "get",
    "kinds",
    "register",
]

Part = TypeVar("Part", bound=Callable[..., Any])

_BUILTIN: dict[str, dict[str, str]] = {
    "models": {
        "dmm": "pyro_seq.models.dmm",
        "group_mixture": "pyro_seq.models.group_mixture",
        "gtmm": "pyro_seq.models.gtmm",
        "hierarchical": "pyro_seq.models.hierarchical",
        "kvae": "pyro_seq.models.kvae",
        "srnn": "pyro_seq.models.srnn",
        "svg": "pyro_seq.models.svg",
        "vrnn": "pyro_seq.models.vrnn",
    },
    "guides": {
        "avf": "pyro_seq.guides.avf",
        "bootstrap": "pyro_seq.guides.bootstrap",
        "filter": "pyro_seq.guides.neural_filter",
        "kalman": "pyro_seq.guides.kalman",
        "ladder": "pyro_seq.guides.ladder",
        "smoother": "pyro_seq.guides.smoother",
        "tagger": "pyro_seq.guides.tagger",
        "vfem": "pyro_seq.guides.vfem",
    },
    "memories": {
        "dnc": "pyro_seq.memory.dnc",
        "icm": "pyro_seq.memory.icm",
        "introspection": "pyro_seq.memory.introspection",
        "lru": "pyro_seq.memory.lru",
        "lstm": "pyro_seq.memory.lstm",
        "ntm": "pyro_seq.memory.ntm",
    },
    "engines": {
        "rladder": "pyro_seq.engines.rladder",
        "rtagger": "pyro_seq.engines.rtagger",
        "tagger": "pyro_seq.engines.rtagger",
    },
    "datasets": {
        **dict.fromkeys(("box", "gravity", "polygon", "pong"), "pyro_seq.data.simulators"),
        **dict.fromkeys(
            ("moving_shapes12", "moving_shapes20", "moving_squares12"), "pyro_seq.data.moving"
        ),
        "occluded_digits": "pyro_seq.data.occluded",
        "rotation": "pyro_seq.data.rotations",
        "textured_digits": "pyro_seq.data.textured",
    },
    "dynamics": dict.fromkeys(("lstm", "mlp", "static"), "pyro_seq.nn.weights"),
}


class PluginError(Exception):
    """Base of everything that can be wrong with a registry lookup."""


class UnknownPluginError(PluginError, LookupError):
    """Nobody provides a part of this kind and name, or there is no such kind."""


class BrokenPluginError(PluginError, ImportError):
    """The part is announced, but importing it failed."""


class PluginCollisionError(PluginError, ValueError):
    """Two different parts claim one name."""


def _closest(name: str, known: tuple[str, ...]) -> str:
    near = difflib.get_close_matches(name.lower(), known, n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def _origin(part: Callable[..., Any]) -> str:
    return f"{getattr(part, '__module__', '?')}:{getattr(part, '__qualname__', repr(part))}"


def _describe(point: EntryPoint) -> str:
    owner = (
        f"distribution {point.dist.name} {point.dist.version}"
        if point.dist
        else "unknown distribution"
    )
    return f"entry point '{point.name} = {point.value}' of {owner}"


class Registry:
    """The parts of one kind, by name.

    Args:
        kind: Plural noun, for example ``"models"``; the entry-point group is ``pyro_seq.<kind>``.
        builtin: Name of each built-in part and the module whose import registers it.
    """

    def __init__(self, kind: str, builtin: dict[str, str] | None = None) -> None:
        self.kind = kind
        self.group = f"pyro_seq.{kind}"
        self._builtin = dict(builtin or {})
        self._registered: dict[str, Callable[..., Any]] = {}
        self._settled: dict[str, Callable[..., Any]] = {}

    def register(self, name: str, part: Part) -> Part:
        """Add a part under a name.

        Args:
            name: The name to look it up by.
            part: Class or function. Registering it anew after a module reload replaces it.

        Returns:
            The part, unchanged.

        Raises:
            TypeError: If the name is not a non-empty string.
            PluginCollisionError: If another part has the name.
        """
        if not isinstance(name, str) or not name:
            raise TypeError(
                f"name of a part of {self.kind!r}: expected a non-empty string, got {name!r}."
            )
        held = self._registered.get(name, self._settled.get(name))
        if held is not None and _origin(held) != _origin(part):
            raise self._collision(name, _origin(held), _origin(part))
        home = self._builtin.get(name)
        if (
            home is not None
            and part.__module__ != home
            and not part.__module__.startswith(home + ".")
        ):
            raise self._collision(name, f"the built-in part of {home}", _origin(part))
        self._registered[name] = part
        self._settled.pop(name, None)
        return part

    def get(self, name: str) -> Callable[..., Any]:
        """Return the part of that name, importing it if need be.

        Args:
            name: A name of :meth:`available`.

        Returns:
            The class or function.

        Raises:
            UnknownPluginError: If nobody provides the name.
            BrokenPluginError: If the import fails; the message names the culprit and the cause.
            PluginCollisionError: If two different parts claim the name.
        """
        if name not in self._settled:
            self._settled[name] = self._settle(name)
        return self._settled[name]

    def available(self, *, check: bool = False) -> tuple[str, ...]:
        """Return all known names, sorted.

        Args:
            check: Import each part, and leave out, with a warning that names the culprit, those
                that fail. Without it nothing is imported.

        Returns:
            The names.
        """
        points = {point.name for point in entry_points(group=self.group)}
        names = tuple(sorted(points | set(self._builtin) | set(self._registered)))
        return tuple(name for name in names if self._works(name)) if check else names

    def _works(self, name: str) -> bool:
        try:
            self.get(name)
        except PluginError as error:
            warnings.warn(f"Left out: {error}", RuntimeWarning, stacklevel=4)
            return False
        return True

    def _settle(self, name: str) -> Callable[..., Any]:
        points = tuple(entry_points(group=self.group, name=name))
        if name in self._builtin:
            self._import_builtin(name)
        elif name not in self._registered and not points:
            known = self.available()
            listed = ", ".join(known) or "none"
            raise UnknownPluginError(
                f"No part {name!r} of kind {self.kind!r}; available: {listed}."
                f"{_closest(str(name), known)}"
            )
        claims = [
            (_origin(part), part) for part in (self._registered.get(name),) if part is not None
        ]
        claims += [(_describe(point), self._load(point)) for point in points]
        for source, part in claims[1:]:
            if part is not claims[0][1]:
                raise self._collision(name, claims[0][0], source)
        return claims[0][1]

    def _import_builtin(self, name: str) -> None:
        home = self._builtin[name]
        if name in self._registered:
            return
        try:
            importlib.import_module(home)
        except PluginError:
            raise
        except Exception as error:
            raise BrokenPluginError(
                f"The built-in part {name!r} of kind {self.kind!r} could not be imported from "
                f"{home}: {type(error).__name__}: {error}"
            ) from error
        if name not in self._registered:
            raise BrokenPluginError(
                f"Importing {home} registered no part {name!r} of kind {self.kind!r}."
            )

    def _load(self, point: EntryPoint) -> Callable[..., Any]:
        try:
            part = point.load()
        except PluginError:
            raise
        except Exception as error:
            raise BrokenPluginError(
                f"Broken plugin {point.name!r} of kind {self.kind!r}: {_describe(point)} could "
                f"not be loaded: {type(error).__name__}: {error}"
            ) from error
        if not callable(part):
            raise BrokenPluginError(
                f"Broken plugin {point.name!r} of kind {self.kind!r}: {_describe(point)} must "
                f"name a class or function, but names a {type(part).__name__}."
            )
        return part

    def _collision(self, name: str, first: str, second: str) -> PluginCollisionError:
        return PluginCollisionError(
            f"Two parts claim the name {name!r} of kind {self.kind!r}: {first}, and {second}. "
            "Rename one of them or uninstall its package."
        )


_REGISTRIES = {kind: Registry(kind, builtin) for kind, builtin in _BUILTIN.items()}


def _registry(kind: str) -> Registry:
    if kind not in _REGISTRIES:
        known = tuple(_REGISTRIES)
        raise UnknownPluginError(
            f"No kind of part {kind!r}; kinds: {', '.join(known)}.{_closest(str(kind), known)}"
        )
    return _REGISTRIES[kind]


def kinds() -> tuple[str, ...]:
    """Return the kinds of parts there are."""
    return tuple(_REGISTRIES)


def register(kind: str, name: str) -> Callable[[Part], Part]:
    """Return a decorator that registers a class or function.

    Args:
        kind: One of :func:`kinds`.
        name: The name to look it up by.

    Returns:
        A decorator that returns its argument unchanged.

    Raises:
        UnknownPluginError: If there is no such kind.
        PluginCollisionError: If another part has the name (raised by the decorator).

    Example:
        >>> from pyro_seq import available, get, register
        >>> @register("engines", "identity")
        ... def identity(x):
        ...     return x
        >>> get("engines", "identity") is identity
        True
        >>> "identity" in available("engines")
        True
    """
    registry = _registry(kind)
    return lambda part: registry.register(name, part)


def get(kind: str, name: str) -> Any:  # noqa: ANN401 - a registry holds classes of any signature
    """Return the part of that kind and name, importing it if need be.

    Args:
        kind: One of :func:`kinds`.
        name: One of ``available(kind)``.

    Returns:
        The class or function.

    Raises:
        UnknownPluginError: If there is no such kind or name; the message lists what there is.
        BrokenPluginError: If its import fails; the message names the distribution, the entry point
            and the cause.
        PluginCollisionError: If two different parts claim the name; the message names both.
    """
    return _registry(kind).get(name)


def available(kind: str, *, check: bool = False) -> tuple[str, ...]:
    """Return the names of all parts of a kind, sorted, without importing them.

    Args:
        kind: One of :func:`kinds`.
        check: Import each part, and leave out, with a warning that names the culprit, those that
            fail.

    Returns:
        The names.

    Raises:
        UnknownPluginError: If there is no such kind.
    """
    return _registry(kind).available(check=check)
