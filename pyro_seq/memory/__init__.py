"""External memories: what the prior of a step knows of all latents before it."""

from __future__ import annotations

from pyro_seq.memory.base import Context, Memory
from pyro_seq.memory.controlled import ControlledMemory
from pyro_seq.memory.dnc import DNC, DNCState
from pyro_seq.memory.icm import ICM, ICMState
from pyro_seq.memory.interface import Interface, RowWriter
from pyro_seq.memory.introspection import Introspection, IntrospectionState
from pyro_seq.memory.lru import LRU, LRUState
from pyro_seq.memory.lstm import LSTMMemory, LSTMState
from pyro_seq.memory.ntm import NTM, NTMState

__all__ = [
    "DNC",
    "ICM",
    "LRU",
    "NTM",
    "Context",
    "ControlledMemory",
    "DNCState",
    "ICMState",
    "Interface",
    "Introspection",
    "IntrospectionState",
    "LRUState",
    "LSTMMemory",
    "LSTMState",
    "Memory",
    "NTMState",
    "RowWriter",
]
