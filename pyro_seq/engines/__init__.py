"""Neural inference engines: networks that a guide carries."""

from __future__ import annotations

from pyro_seq.engines import presets
from pyro_seq.engines.base import Engine
from pyro_seq.engines.costs import classification_cost
from pyro_seq.engines.iterative import IterativeInference
from pyro_seq.engines.rladder import RLadder, RLadderOutput, RLadderState
from pyro_seq.engines.rows import (
    ConvLSTMRow,
    ConvRow,
    LinearRow,
    LSTMRow,
    PoolRow,
    Row,
    SoftMaxRow,
    feed_forward,
    row_shapes,
)
from pyro_seq.engines.rtagger import Grouping, RTagger, RTaggerOutput, RTaggerState, tagger

__all__ = [
    "ConvLSTMRow",
    "ConvRow",
    "Engine",
    "Grouping",
    "IterativeInference",
    "LSTMRow",
    "LinearRow",
    "PoolRow",
    "RLadder",
    "RLadderOutput",
    "RLadderState",
    "RTagger",
    "RTaggerOutput",
    "RTaggerState",
    "Row",
    "SoftMaxRow",
    "classification_cost",
    "feed_forward",
    "presets",
    "row_shapes",
    "tagger",
]
