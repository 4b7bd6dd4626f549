r"""Networks without randomness, and the heads that turn features into distributions."""

from __future__ import annotations

from pyro_seq.nn.activations import ClippedLeakyReLU
from pyro_seq.nn.decoders import ConvDecoder, FrameDecoder, MLPDecoder
from pyro_seq.nn.dynamics import MixtureDynamics
from pyro_seq.nn.encoders import ConvEncoder, FrameEncoder, MLPEncoder
from pyro_seq.nn.heads import BernoulliHead, NormalHead, WindowHead, emission_head
from pyro_seq.nn.matching import match_parameters
from pyro_seq.nn.mlp import mlp
from pyro_seq.nn.pixels import PixelHead
from pyro_seq.nn.pyramid import PyramidDecoder, PyramidEncoder
from pyro_seq.nn.recurrent import OverTime, RepeatedLSTMCell, lstm_step
from pyro_seq.nn.repeated import RepeatedLinear, repeated
from pyro_seq.nn.weights import LSTMWeights, MLPWeights, StaticWeights, WeightNetwork

__all__ = [
    "BernoulliHead",
    "ClippedLeakyReLU",
    "ConvDecoder",
    "ConvEncoder",
    "FrameDecoder",
    "FrameEncoder",
    "LSTMWeights",
    "MLPDecoder",
    "MLPEncoder",
    "MLPWeights",
    "MixtureDynamics",
    "NormalHead",
    "OverTime",
    "PixelHead",
    "PyramidDecoder",
    "PyramidEncoder",
    "RepeatedLSTMCell",
    "RepeatedLinear",
    "StaticWeights",
    "WeightNetwork",
    "WindowHead",
    "emission_head",
    "lstm_step",
    "match_parameters",
    "mlp",
    "repeated",
]
