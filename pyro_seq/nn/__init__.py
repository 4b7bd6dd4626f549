r"""Networks without randomness, and the heads that turn features into distributions."""

from __future__ import annotations

from pyro_seq.nn.activations import ClippedLeakyReLU
from pyro_seq.nn.conv_lstm import ConvLSTM, ConvLSTMState
from pyro_seq.nn.decoders import ConvDecoder, FrameDecoder, MLPDecoder
from pyro_seq.nn.dynamics import MixtureDynamics
from pyro_seq.nn.encoders import ConvEncoder, FrameEncoder, MLPEncoder
from pyro_seq.nn.gaussian_ladder import GaussianLadderCell
from pyro_seq.nn.heads import BernoulliHead, NormalHead, WindowHead, emission_head
from pyro_seq.nn.ladder_cells import G1, Broadcast, ConvG1, ConvG2, ConvG3, SigmoidPlusLinear
from pyro_seq.nn.matching import match_parameters
from pyro_seq.nn.mlp import mlp
from pyro_seq.nn.norms import IterationBatchNorm, UnitNorm, estimate_statistics, unit_norm
from pyro_seq.nn.pixels import PixelHead
from pyro_seq.nn.pyramid import PyramidDecoder, PyramidEncoder
from pyro_seq.nn.recurrent import OverTime, RepeatedLSTMCell, lstm_step
from pyro_seq.nn.repeated import RepeatedLinear, repeated
from pyro_seq.nn.transitions import GatedTransition, LinearTransition
from pyro_seq.nn.weights import LSTMWeights, MLPWeights, StaticWeights, WeightNetwork

__all__ = [
    "G1",
    "BernoulliHead",
    "Broadcast",
    "ClippedLeakyReLU",
    "ConvDecoder",
    "ConvEncoder",
    "ConvG1",
    "ConvG2",
    "ConvG3",
    "ConvLSTM",
    "ConvLSTMState",
    "FrameDecoder",
    "FrameEncoder",
    "GatedTransition",
    "GaussianLadderCell",
    "IterationBatchNorm",
    "LSTMWeights",
    "LinearTransition",
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
    "SigmoidPlusLinear",
    "StaticWeights",
    "UnitNorm",
    "WeightNetwork",
    "WindowHead",
    "emission_head",
    "estimate_statistics",
    "lstm_step",
    "match_parameters",
    "mlp",
    "repeated",
    "unit_norm",
]
