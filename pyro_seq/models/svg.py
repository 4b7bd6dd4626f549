r"""Stochastic video generation with a learned prior.

.. math::
    g_t = \mathrm{enc}(x_t), \quad
    z_t \sim N(\mu(p_t), \sigma^2(p_t)), \; p_t = \mathrm{LSTM}(p_{t-1}, g_{t-1}), \quad
    x_t \sim p(x_t \mid \mathrm{dec}(h_t)), \; h_t = \mathrm{LSTM}(h_{t-1}, [g_{t-1}, z_t])

References:
    Denton, Fergus (2018), Stochastic video generation with a learned prior.
    Marino, Cvitkovic, Yue (2018), A general method for amortizing variational filtering.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import pyro
import torch
from torch import Size, Tensor, nn

from pyro_seq.models.presets import Presets
from pyro_seq.models.step_model import SplitState, SplitStepModel
from pyro_seq.nn.heads import NormalHead
from pyro_seq.nn.pixels import PixelHead
from pyro_seq.nn.pyramid import VGG, PyramidDecoder, PyramidEncoder
from pyro_seq.nn.recurrent import OverTime, lstm_step
from pyro_seq.ops.trees import where
from pyro_seq.plugins import register

__all__ = ["SVG"]

KTH = {"frame": (1, 64, 64), "emission": "window", "emission_options": {"width": 1 / 255}, **VGG}


@register("models", "svg")
class SVG(Presets, SplitStepModel):
    r"""Stochastic video generation: a learned prior from the frames, a predictor from latents too.

    The filter of its paper is an LSTM over the features of the frames:
    ``NeuralFilter(model, encoder=model.encoder, features=model.features, recurrent=256,
    hidden=[], reads=[])``.

    Args:
        frame: `(channels, height, width)`, pixels between 0 and 1.
        latent: Size of z.
        features: Size of g, and of what the decoder reads.
        hidden: Units of each LSTM.
        layers: LSTMs of the predictor, one on top of the other.
        channels: Channels of each stage of convolutions.
        convolutions: Convolutions of each stage.
        encoder: Module from frames `(count, *frame)` to `(count, features)`, in place of the
            convolutions.
        decoder: Module from `(count, features)` to maps `(count, maps, height, width)`, in place
            of the convolutions; the maps are those that the emission reads, 2 for each channel of
            a frame, or 1 with Bernoulli pixels.
        controls: Size of u, which prior and predictor read, or 0.
        emission: `"bernoulli"`, `"normal"`, `"window"`, or a module from maps to a distribution
            of the frame, which goes with a decoder.
        emission_options: Keyword arguments of a named emission.
        skip_frames: When not 0, the decoder also reads the encoder's maps of the last frame
            among the first so many ones, those that are there when it predicts the rest.

    Attributes:
        features: Size of g.
        PRESETS: `"kth"`, the sizes of Marino et al. for video of 64 x 64 pixels, and
            `"kth_skips"`, those of Denton and Fergus. Without their batch normalisation.

    Raises:
        ValueError: For an unknown emission, or skips with an encoder or decoder of the caller.

    Example:
        >>> model = SVG((1, 8, 8), latent=4, features=8, hidden=8, channels=(4, 8))
        >>> model.generate(batch=2, time=3).shape
        torch.Size([2, 3, 1, 8, 8])
    """

    PRESETS = {
        "kth": {**KTH, "latent": 512},
        "kth_skips": {**KTH, "latent": 24, "skip_frames": 10},
    }

    class State(NamedTuple):
        """Before a step.

        Attributes:
            g: Features of the last frame, `(*batch, features)`.
            p: Output of the prior's LSTM, `(*batch, hidden)`.
            cells: Output and cell of each LSTM of the predictor, `(*batch, hidden)`.
            maps: The encoder's maps that the decoder reads, `(*batch, channels, height, width)`.
        """

        g: Tensor
        p: Tensor
        cells: tuple[tuple[Tensor, Tensor], ...]
        maps: tuple[Tensor, ...]

    class Visible(NamedTuple):
        """What a guide reads: features, output of the prior's LSTM, output of the predictor's."""

        g: Tensor
        p: Tensor
        h: Tensor

    class Latents(NamedTuple):
        """What the emission reads, and the predictor's cells after the step."""

        code: Tensor
        cells: tuple[tuple[Tensor, Tensor], ...]
        maps: tuple[Tensor, ...]

    class Embedding(NamedTuple):
        """What the frames up to a step leave for the next one."""

        g: Tensor
        p: Tensor
        maps: tuple[Tensor, ...]

    class Memory(NamedTuple):
        """Output and cell of the prior's LSTM, number of frames read, and maps to go on with."""

        p: Tensor
        cell: Tensor
        frames: Tensor
        maps: tuple[Tensor, ...]

    def __init__(
        self,
        frame: Sequence[int],
        *,
        latent: int = 32,
        features: int = 128,
        hidden: int = 256,
        layers: int = 2,
        channels: Sequence[int] = (32, 64),
        convolutions: Sequence[int] = (1, 1),
        encoder: nn.Module | None = None,
        decoder: nn.Module | None = None,
        controls: int = 0,
        emission: str | nn.Module = "normal",
        emission_options: dict[str, Any] | None = None,
        skip_frames: int = 0,
    ) -> None:
        super().__init__()
        if skip_frames and not (encoder is None and decoder is None):
            raise ValueError("skip_frames needs the encoder and decoder of this class; got others")
        if isinstance(emission, str):
            emission = PixelHead(emission, **(emission_options or {}))
            maps = emission.maps * frame[0]
        elif decoder is None:
            raise ValueError("an emission that is a module needs a decoder; got None")
        stages = (channels, convolutions)
        if encoder is None:
            encoder = PyramidEncoder(frame, features, *stages)
        if decoder is None:
            decoder = PyramidDecoder(features, frame, maps, *stages, skip_frames > 0)
        self.encoder, self.decoder = OverTime(encoder), decoder
        self.head = emission
        self.controls, self.features, self.skip_frames = controls, features, skip_frames
        self.prior_lstm = nn.LSTM(features, hidden, batch_first=True)
        self.prior = NormalHead(hidden + controls, latent)
        inputs = [features + latent + controls, *[hidden] * (layers - 1)]
        self.predictor = nn.ModuleList(nn.LSTMCell(size, hidden) for size in inputs)
        self.output = nn.Sequential(nn.Linear(hidden, features), nn.Tanh())
        self.g_0 = nn.Parameter(torch.zeros(features))
        self.p_0 = nn.Parameter(torch.zeros(hidden))
        self.h_0 = nn.Parameter(torch.zeros(layers, hidden))

    def begin(self, batch_shape: Size) -> State:
        """Learnt starts, empty cells, and maps of zeros."""
        starts = [h.expand(*batch_shape, -1) for h in self.h_0]
        return self.State(
            self.g_0.expand(*batch_shape, -1),
            self.p_0.expand(*batch_shape, -1),
            tuple((h, torch.zeros_like(h)) for h in starts),
            self._no_maps(batch_shape),
        )

    def visible(self, state: SplitState) -> Visible:
        """What prior and predictor made of the past."""
        inner = state.state
        return self.Visible(inner.g, inner.p, inner.cells[-1][0])

    def initial_memory(self, batch: int) -> Memory:
        """Before the first frame."""
        p = self.p_0.expand(batch, -1)
        none = torch.zeros(batch, dtype=torch.long, device=p.device)
        return self.Memory(p, torch.zeros_like(p), none, self._no_maps(Size((batch,))))

    def embed(self, x: Tensor, memory: Memory) -> tuple[Embedding, Memory]:
        """Features of the frames, and what the prior's LSTM makes of those up to each."""
        maps: tuple[Tensor, ...] = ()
        if self.skip_frames:
            g, maps = self.encoder.network.pyramid(x.flatten(0, 1))  # type: ignore[operator]
            g = g.unflatten(0, x.shape[:2])
            maps = tuple(m.unflatten(0, x.shape[:2]) for m in maps)
            maps = tuple(
                self._kept(m, before, memory.frames)
                for m, before in zip(maps, memory.maps, strict=True)
            )
        else:
            g = self.encoder(x)
        start = tuple(m.unsqueeze(0).contiguous() for m in memory[:2])
        p, (last, cell) = self.prior_lstm(g, start)
        last_maps = tuple(m[:, -1] for m in maps)
        after = self.Memory(
            last.squeeze(0), cell.squeeze(0), memory.frames + x.shape[1], last_maps
        )
        return self.Embedding(g, p, maps), after

    def latents(self, state: State, u_t: Tensor | None) -> Latents:
        r"""Draws :math:`z_t \sim p(z_t \mid p_t, u_t)`, and predicts with it."""
        control = [] if u_t is None else [u_t]
        z = pyro.sample("z", self.prior(torch.cat([state.p, *control], -1)))
        inputs = torch.cat([state.g, z, *control], -1)
        cells: list[tuple[Tensor, Tensor]] = []
        for lstm, (h, c) in zip(self.predictor, state.cells, strict=True):
            assert isinstance(lstm, nn.LSTMCell)
            inputs, c = lstm_step(lstm, inputs, h, c)
            cells.append((inputs, c))
        return self.Latents(self.output(inputs), tuple(cells), state.maps)

    def emission(self, latents: Latents) -> Any:  # noqa: ANN401
        r""":math:`p(x_t \mid \mathrm{dec}(h_t))`."""
        batch = latents.code.shape[:-1]
        skips = [m.reshape(-1, *m.shape[-3:]) for m in latents.maps]
        maps = self.decoder(latents.code.reshape(-1, self.features), *([skips] if skips else []))
        return self.head(maps.reshape(*batch, *maps.shape[1:]))

    def transition(
        self, state: State, latents: Latents, embedding: Embedding, u_t: Tensor | None
    ) -> State:
        """The predictor's cells, and what the frames leave."""
        return self.State(embedding.g, embedding.p, latents.cells, embedding.maps)

    def _no_maps(self, batch_shape: Size) -> tuple[Tensor, ...]:
        if not self.skip_frames:
            return ()
        shapes = self.encoder.network.map_shapes
        return tuple(self.g_0.new_zeros(*batch_shape, *s) for s in shapes)  # type: ignore[union-attr]

    def _kept(self, maps: Tensor, before: Tensor, count: Tensor) -> Tensor:
        """Of each step the maps of the last frame that may be copied, `(batch, time, ...)`."""
        rows, steps = (torch.arange(n, device=maps.device) for n in maps.shape[:2])
        last = (self.skip_frames - 1 - count).clamp(min=0)
        kept = maps[rows[:, None], torch.minimum(steps, last[:, None])]
        return where(count < self.skip_frames, kept, before.unsqueeze(1))
