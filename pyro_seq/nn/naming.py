"""Names of root modules in Pyro's global parameter store."""

from __future__ import annotations

import itertools
from collections import defaultdict

__all__ = ["unique_name"]

_counters: dict[str, itertools.count[int]] = defaultdict(itertools.count)


def unique_name(prefix: str) -> str:
    """`prefix`, then `prefix_1`, `prefix_2` and so on.

    In Pyro's global parameter store a parameter is known by the name of its root module: two roots
    of one name share their parameters, and the second one's silently do not train.
    """
    number = next(_counters[prefix])
    return prefix if number == 0 else f"{prefix}_{number}"
