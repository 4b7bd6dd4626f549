r"""The stochastic recurrent neural network.

.. math::
    h_t = \mathrm{LSTM}(h_{t-1}, x_{t-1}), \quad
    z_t \sim N(\mu(h_t, z_{t-1}), \sigma^2(h_t, z_{t-1})), \quad
    x_t \sim p(x_t \mid h_t, z_t)

References:
    Fraccaro, Sonderby, Paquet, Winther (2016), Sequential neural models with stochastic layers.
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
from pyro_seq.nn.activations import ClippedLeakyReLU
from pyro_seq.nn.heads import LOG_SCALES, NormalHead, emission_head
from pyro_seq.nn.mlp import JointMLP, encoder_and_size
from pyro_seq.plugins import register

__all__ = ["SRNN"]


@register("models", "srnn")
class SRNN(Presets, SplitStepModel):
    r"""Stochastic recurrent neural network: a deterministic layer h below a stochastic one, z.

    The LSTM reads the frames alone, so that all h are computed at once.

    Its papers' filters are ``NeuralFilter(model, reads=["h"])``, the baseline of Marino et al.;
    ``NeuralFilter(model, residual=True)``, with the last latent and locations added to the
    prior's, of Fraccaro et al.; and ``BackwardSmoother(model, residual=True, reads=["z"],
    embedding=["h"])``, their smoother; each with ``hidden=500`` for music.

    Args:
        frame: Size or shape of a frame.
        latent: Size of z.
        hidden: Units of the LSTM.
        prior: Units of each hidden layer of the prior network.
        decoder: Units of each hidden layer of the emission network.
        controls: Size of u, which the prior reads beside h and z, or 0.
        emission: `"bernoulli"`, `"normal"`, `"window"`, or a module from the features of
            the last decoder layer to a distribution of the frame.
        emission_options: Keyword arguments of a named emission.
        encoder: Module from frames `(batch, time, *frame)` to `(batch, time, features)` before the
            LSTM; by default the frame itself.
        features: Size of its output, when there is one.
        activation: Makes the nonlinearity of the dense layers.
        dropout: Probability with which a unit of the LSTM's output is dropped in training.
        frame_dropout: Probability with which a value of the frame is hidden from the LSTM in
            training; the emission is scored on the whole frame.
        log_scales: Bounds of the logarithm of the prior's standard deviations.

    Attributes:
        PRESETS: `"midi"` and `"timit"`, the sizes of Marino et al. for notes of the piano and for
            windows of 200 samples of speech.

    Raises:
        ValueError: For an unknown emission, or an encoder without `features`.

    Example:
        >>> model = SRNN(88, latent=4, hidden=8, prior=[8], decoder=[8])
        >>> model.generate(batch=2, time=5).shape
        torch.Size([2, 5, 88])
    """

    PRESETS = {
        "midi": {
            "frame": 88,
            "latent": 100,
            "hidden": 300,
            "prior": (500,),
            "decoder": (500, 500),
            "emission": "bernoulli",
            "activation": ClippedLeakyReLU,
        },
        "timit": {
            "frame": 200,
            "latent": 256,
            "hidden": 1024,
            "prior": (512, 512),
            "decoder": (512, 512),
            "emission": "normal",
            "activation": ClippedLeakyReLU,
        },
    }

    memoryless = True
    observed = ("h",)

    class State(NamedTuple):
        """The LSTM's output h `(*batch, hidden)`, its shares of prior and decoder, the last z."""

        h: Tensor
        prior: Tensor
        decoder: Tensor
        z: Tensor

    class Embedding(NamedTuple):
        """The LSTM's output after a frame, and its shares of prior and decoder."""

        h: Tensor
        prior: Tensor
        decoder: Tensor

    class Visible(NamedTuple):
        """What a guide reads: h `(*batch, hidden)` and the last latent z `(*batch, latent)`."""

        h: Tensor
        z: Tensor

    class Latents(NamedTuple):
        """What the emission reads: the share of h, and the latent of the step."""

        decoder: Tensor
        z: Tensor

    def __init__(
        self,
        frame: int | Sequence[int],
        *,
        latent: int = 100,
        hidden: int = 300,
        prior: Sequence[int] = (500,),
        decoder: Sequence[int] = (500, 500),
        controls: int = 0,
        emission: str | nn.Module = "bernoulli",
        emission_options: dict[str, Any] | None = None,
        encoder: nn.Module | None = None,
        features: int | None = None,
        activation: Callable[[], nn.Module] = nn.ELU,
        dropout: float = 0.0,
        frame_dropout: float = 0.0,
        log_scales: tuple[float, float] = LOG_SCALES,
    ) -> None:
        super().__init__()
        self.controls = controls
        size = Size((frame,) if isinstance(frame, int) else frame).numel()
        self.encoder, size = encoder_and_size(encoder, features, size)
        self.drop, self.drop_frame = nn.Dropout(dropout), nn.Dropout(frame_dropout)
        self.lstm = nn.LSTM(size, hidden, batch_first=True)
        self.h_0 = nn.Parameter(torch.zeros(hidden))
        self.z_0 = nn.Parameter(torch.zeros(latent))
        self.prior = JointMLP([hidden, latent + controls], prior, activation)
        self.prior_head = NormalHead(prior[-1], latent, log_scales)
        self.decoder = JointMLP([hidden, latent], decoder, activation)
        if isinstance(emission, str):
            emission = emission_head(emission, decoder[-1], frame, **(emission_options or {}))
        self.emit = emission

    def begin(self, batch_shape: Size) -> State:
        """Learnt start of h and z."""
        h, z = self.h_0.expand(*batch_shape, -1), self.z_0.expand(*batch_shape, -1)
        return self.State(h, self.prior.share(0, h), self.decoder.share(0, h), z)

    def visible(self, state: SplitState) -> Visible:
        """The LSTM's output and the last latent."""
        return self.Visible(state.state.h, state.state.z)

    def initial_memory(self, batch: int) -> tuple[Tensor, Tensor]:
        """Output and cell of the LSTM, `(batch, hidden)` each."""
        h = self.h_0.expand(batch, -1)
        return h, torch.zeros_like(h)

    def embed(self, x: Tensor, memory: tuple[Tensor, Tensor]) -> tuple[Embedding, Any]:
        r""":math:`h_{t+1}`, what the LSTM makes of the frames up to t, and its two shares."""
        h, (last, cell) = self.lstm(
            self.drop_frame(self.encoder(x)), tuple(m.unsqueeze(0).contiguous() for m in memory)
        )
        h = self.drop(h)
        embedding = self.Embedding(h, self.prior.share(0, h), self.decoder.share(0, h))
        return embedding, (last.squeeze(0), cell.squeeze(0))

    def latents(self, state: State, u_t: Tensor | None) -> Latents:
        r"""Draws :math:`z_t \sim p(z_t \mid h_t, z_{t-1}, u_t)`."""
        past = state.z if u_t is None else torch.cat([state.z, u_t], -1)
        prior = self.prior_head(self.prior(state.prior + self.prior.share(1, past)))
        return self.Latents(state.decoder, pyro.sample("z", prior))

    def emission(self, latents: Latents) -> Any:  # noqa: ANN401
        r""":math:`p(x_t \mid h_t, z_t)`."""
        return self.emit(self.decoder(latents.decoder + self.decoder.share(1, latents.z)))

    def transition(
        self, state: State, latents: Latents, embedding: Embedding, u_t: Tensor | None
    ) -> State:
        """The LSTM's next output, and the latent."""
        return self.State(*embedding, latents.z)
