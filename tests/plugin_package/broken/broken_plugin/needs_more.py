"""Fails on import, as a plugin does whose dependency is missing."""

from __future__ import annotations

raise ImportError("libflux.so.3: cannot open shared object file")
