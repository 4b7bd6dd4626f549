"""Pyro for sequences: state space models, their guides, and tools to train and compare them."""

from __future__ import annotations

import importlib
from types import ModuleType

from pyro_seq.plugins import available, get, kinds, register

__version__ = "0.1.0"
__all__ = ["__version__", "available", "get", "kinds", "register"]

_PARTS = (
    *("ops", "distributions", "nn", "models", "guides", "inference"),
    *("training", "evaluation", "data", "testing"),
)


def __getattr__(name: str) -> ModuleType:
    """Import a subpackage on first use, so that ``import pyro_seq`` stays light."""
    if name in _PARTS:
        return importlib.import_module(f"pyro_seq.{name}")
    raise AttributeError(f"module 'pyro_seq' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_PARTS})
