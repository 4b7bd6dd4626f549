"""Neural inference engines: networks that a guide carries."""

from __future__ import annotations

from pyro_seq.engines.iterative import IterativeInference

__all__ = ["IterativeInference"]
