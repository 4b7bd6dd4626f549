r"""Networks without randomness: encoders, decoders, and the dynamics of a mixture of modes."""

from __future__ import annotations

from pyro_seq.nn.decoders import ConvDecoder, FrameDecoder, MLPDecoder
from pyro_seq.nn.dynamics import (
    LSTMWeights,
    MixtureDynamics,
    MLPWeights,
    StaticWeights,
    WeightNetwork,
)
from pyro_seq.nn.encoders import ConvEncoder, FrameEncoder, MLPEncoder

__all__ = [
    "ConvDecoder",
    "ConvEncoder",
    "FrameDecoder",
    "FrameEncoder",
    "LSTMWeights",
    "MLPDecoder",
    "MLPEncoder",
    "MLPWeights",
    "MixtureDynamics",
    "StaticWeights",
    "WeightNetwork",
]
