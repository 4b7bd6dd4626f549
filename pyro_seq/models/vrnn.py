r"""The variational recurrent neural network.

.. math::
    z_t \sim N(\mu(h_{t-1}), \sigma^2(h_{t-1})), \quad
    x_t \sim p(x_t \mid \varphi_z(z_t), h_{t-1}), \quad
    h_t = \mathrm{LSTM}(h_{t-1}, [\varphi_x(x_t), \varphi_z(z_t)])

References:
    Chung, Kastner, Dinh, Goel, Courville, Bengio (2015), A recurrent latent variable model for
    sequential data.
    Marino, Cvitkovic, Yue (2018), A general method for amortizing variational filtering.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pyro
import torch
from torch import Size, Tensor, nn

from pyro_seq.models.presets import Presets
from pyro_seq.models.step_model import SplitState, SplitStepModel
from pyro_seq.nn.heads import NormalHead, emission_head
from pyro_seq.nn.mlp import FlatFrames, mlp
from pyro_seq.nn.recurrent import lstm_step
from pyro_seq.plugins import register

__all__ = ["VRNN"]


@register("models", "vrnn")
class VRNN(Presets, SplitStepModel):
    r"""Variational recurrent neural network: the latents feed the recurrent state.

    The filter of its papers reads the features of the frame and h:
    ``NeuralFilter(model, encoder=model.x_net, features=model.features, reads=["h"])``.

    Args:
        frame: Size or shape of a frame.
        latent: Size of z.
        hidden: Units of the LSTM.
        x_net: Units of each layer of :math:`\varphi_x`, or a module from frames
            `(batch, time, *frame)` to `(batch, time, features)`.
        z_net: Units of each layer of :math:`\varphi_z`.
        prior: Units of each hidden layer of the prior network.
        decoder: Units of each hidden layer of the emission network.
        controls: Size of u, which prior and LSTM read, or 0.
        emission: `"bernoulli"`, `"normal"`, `"window"`, or a module from the features of
            the last decoder layer to a distribution of the frame.
        emission_options: Keyword arguments of a named emission.
        features: Size of the features of `x_net`, when it is a module.
        activation: Makes the nonlinearity of the dense layers.
        dropout: Probability with which prior, emission and guide miss a unit of h in training.
        frame_dropout: Probability with which a value of the frame is hidden from the LSTM in
            training; the emission is scored on the whole frame.

    Attributes:
        features: Size of the features of `x_net`.
        PRESETS: `"timit"`, the sizes of Marino et al. for windows of 200 samples of speech.

    Raises:
        ValueError: For an unknown emission, or a module `x_net` without `features`.

    Example:
        >>> model = VRNN(88, latent=4, hidden=8)
        >>> model.generate(batch=2, time=5).shape
        torch.Size([2, 5, 88])
    """

    PRESETS = {
        "timit": {
            "frame": 200,
            "latent": 200,
            "hidden": 2000,
            "x_net": (600,) * 4,
            "z_net": (500,) * 4,
            "prior": (500,) * 4,
            "decoder": (600,) * 4,
            "emission": "normal",
            "activation": nn.ReLU,
        }
    }

    class State(NamedTuple):
        """What others read of h, the LSTM's output and its cell, each `(*batch, hidden)`."""

        h: Tensor
        output: Tensor
        cell: Tensor

    class Visible(NamedTuple):
        """What a guide reads."""

        h: Tensor

    class Latents(NamedTuple):
        """What the emission reads."""

        h: Tensor
        z: Tensor

    def __init__(
        self,
        frame: int | Sequence[int],
        *,
        latent: int = 32,
        hidden: int = 200,
        x_net: Sequence[int] | nn.Module = (200,),
        z_net: Sequence[int] = (200,),
        prior: Sequence[int] = (200,),
        decoder: Sequence[int] = (200,),
        controls: int = 0,
        emission: str | nn.Module = "bernoulli",
        emission_options: dict[str, Any] | None = None,
        features: int | None = None,
        activation: Callable[[], nn.Module] = nn.ELU,
        dropout: float = 0.0,
        frame_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.controls = controls
        if isinstance(x_net, nn.Module):
            if features is None:
                raise ValueError("features must be the size of the output of x_net; got None")
            self.x_net, self.features = x_net, features
        else:
            size = Size((frame,) if isinstance(frame, int) else frame).numel()
            self.x_net = nn.Sequential(FlatFrames(), *mlp(size, x_net, activation))
            self.features = (size, *x_net)[-1]
        self.drop, self.drop_frame = nn.Dropout(dropout), nn.Dropout(frame_dropout)
        self.z_net = mlp(latent, z_net, activation)
        z_size, summary = (latent, *z_net)[-1], hidden + controls
        self.lstm = nn.LSTMCell(self.features + z_size + controls, hidden)
        self.h_0 = nn.Parameter(torch.zeros(hidden))
        self.prior = nn.Sequential(
            *mlp(summary, prior, activation), NormalHead((summary, *prior)[-1], latent)
        )
        if isinstance(emission, str):
            last = (z_size + hidden, *decoder)[-1]
            emission = emission_head(emission, last, frame, **(emission_options or {}))
        self.decoder = nn.Sequential(*mlp(z_size + hidden, decoder, activation), emission)

    def begin(self, batch_shape: Size) -> State:
        """Learnt start of h, and an empty cell."""
        h = self.h_0.expand(*batch_shape, -1)
        return self.State(h, h, torch.zeros_like(h))

    def visible(self, state: SplitState) -> Visible:
        """What prior and emission read, h alone."""
        return self.Visible(state.state.h)

    def embed(self, x: Tensor, memory: None) -> tuple[Tensor, None]:
        r""":math:`\varphi_x(x_t)`, `(batch, time, features)`."""
        return self.x_net(self.drop_frame(x)), memory

    def latents(self, state: State, u_t: Tensor | None) -> Latents:
        r"""Draws :math:`z_t \sim p(z_t \mid h_{t-1}, u_t)`."""
        inputs = state.h if u_t is None else torch.cat([state.h, u_t], -1)
        return self.Latents(state.h, pyro.sample("z", self.prior(inputs)))

    def emission(self, latents: Latents) -> Any:  # noqa: ANN401
        r""":math:`p(x_t \mid \varphi_z(z_t), h_{t-1})`."""
        return self.decoder(torch.cat([self.z_net(latents.z), latents.h], -1))

    def transition(
        self, state: State, latents: Latents, embedding: Tensor, u_t: Tensor | None
    ) -> State:
        """One step of the LSTM."""
        inputs = [embedding, self.z_net(latents.z)]
        inputs = inputs if u_t is None else [*inputs, u_t]
        h, c = lstm_step(self.lstm, torch.cat(inputs, -1), state.output, state.cell)
        return self.State(self.drop(h), h, c)
