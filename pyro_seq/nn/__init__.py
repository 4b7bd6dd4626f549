r"""Networks without randomness: encoders, decoders, and the dynamics of a mixture of modes."""

from __future__ import annotations

from pyro_seq.nn.decoders import ConvDecoder, FrameDecoder, MLPDecoder
from pyro_seq.nn.dynamics import MixtureDynamics
from pyro_seq.nn.encoders import ConvEncoder, FrameEncoder, MLPEncoder
from pyro_seq.nn.weights import LSTMWeights, MLPWeights, StaticWeights, WeightNetwork

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
