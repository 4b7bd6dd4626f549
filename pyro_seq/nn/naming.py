"""Names of root modules in Pyro's global parameter store, and parameters without it."""

from __future__ import annotations

import itertools
from collections import defaultdict

from torch import nn

__all__ = ["prepare_local_parameters", "unique_name"]

_counters: dict[str, itertools.count[int]] = defaultdict(itertools.count)


def unique_name(prefix: str) -> str:
    """`prefix`, then `prefix_1`, `prefix_2` and so on.

    In Pyro's global parameter store a parameter is known by the name of its root module: two roots
    of one name share their parameters, and the second one's silently do not train.
    """
    number = next(_counters[prefix])
    return prefix if number == 0 else f"{prefix}_{number}"


def prepare_local_parameters(root: nn.Module) -> None:
    """Let modules that were built under Pyro's global store run with local parameters.

    Pyro reads ``module_local_params`` both when a PyroModule is built and when it is called, and a
    module built without it lacks the (empty) local state that the call then enters.
    """
    for module in root.modules():
        context = getattr(module, "_pyro_context", None)
        if context is not None and not hasattr(context, "param_state"):
            context.param_state = {"params": {}, "constraints": {}}
