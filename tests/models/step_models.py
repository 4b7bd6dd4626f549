"""The step models in small, and the same models as one step written by hand, layer by layer."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from torch import Size, Tensor, nn

from pyro_seq.models import DMM, SRNN, SVG, VRNN, SplitStepModel, StepModel

FRAME = (1, 4, 5)
PIXELS = 20
BATCH, TIME = 4, 4


def lstm(layer: nn.Module, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """One step of an LSTM in its equations; the weights are those of torch's layer or cell."""
    weights = [w for name, w in layer.named_parameters() if "weight" in name]
    biases = [b for name, b in layer.named_parameters() if "bias" in name]
    gates = x @ weights[0].mT + h @ weights[1].mT + biases[0] + biases[1]
    i, f, g, o = gates.chunk(4, -1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def joint(network: Any, *inputs: Tensor) -> Tensor:  # noqa: ANN401
    """A network of shares as one matrix on all inputs together."""
    weight = torch.cat([share.weight for share in network.shares], 1)
    first = torch.cat(inputs, -1) @ weight.mT + network.shares[0].bias
    return network.rest(nn.functional.elu(first))


def normal(head: Any, features: Tensor) -> Any:  # noqa: ANN401
    loc, log_scale = head.parameters_of(features).chunk(2, -1)
    return dist.Normal(loc, log_scale.clamp(-7.5, 2.5).exp()).to_event(1)


def bernoulli(head: Any, features: Tensor) -> Any:  # noqa: ANN401
    logits = head.logits(features).unflatten(-1, FRAME)
    return dist.Bernoulli(logits=logits).to_event(3)


class Twin(StepModel):
    """A model in one piece with a copy of the parameters of one in parts."""

    def __init__(self, parts: SplitStepModel) -> None:
        super().__init__()
        self.parts = copy.deepcopy(parts)
        self.controls = parts.controls

    def start(self, start: Tensor, batch_shape: Size) -> Tensor:
        return start.expand(*batch_shape, -1)


class TwinDMM(Twin):
    class State(NamedTuple):
        z: Tensor

    def initial_state(self, batch_shape: Size) -> State:
        return self.State(self.start(self.parts.z_0, batch_shape))

    def step(self, state: State, x_t: Tensor | None, u_t: Tensor | None = None) -> State:
        parts: Any = self.parts
        inputs = torch.cat([state.z] if u_t is None else [state.z, u_t], -1)
        own = parts.dynamics
        gate, proposal = own.gate(inputs).sigmoid(), own.proposal(inputs)
        loc = (1 - gate) * own.linear(state.z) + gate * proposal
        scale = nn.functional.softplus(own.scale(proposal.relu())) + 1e-4
        z = pyro.sample("z", dist.Normal(loc, scale).to_event(1))
        pyro.sample("x", bernoulli(parts.emit[-1], parts.emit[:-1](z)), obs=x_t)
        return self.State(z)


class TwinSRNN(Twin):
    class State(NamedTuple):
        h: Tensor
        c: Tensor
        z: Tensor

    def initial_state(self, batch_shape: Size) -> State:
        h = self.start(self.parts.h_0, batch_shape)
        return self.State(h, torch.zeros_like(h), self.start(self.parts.z_0, batch_shape))

    def step(self, state: State, x_t: Tensor | None, u_t: Tensor | None = None) -> State:
        parts: Any = self.parts
        past = [state.h, state.z] if u_t is None else [state.h, state.z, u_t]
        z = pyro.sample("z", normal(parts.prior_head, joint(parts.prior, *past)))
        features = joint(parts.decoder, state.h, z)
        x = pyro.sample("x", bernoulli(parts.emit, features), obs=x_t)
        h, c = lstm(parts.lstm, x.flatten(-3), state.h, state.c)
        return self.State(h, c, z)

    def visible(self, state: State) -> Any:  # noqa: ANN401
        return SRNN.Visible(state.h, state.z)


class TwinVRNN(Twin):
    class State(NamedTuple):
        h: Tensor
        c: Tensor

    def initial_state(self, batch_shape: Size) -> State:
        h = self.start(self.parts.h_0, batch_shape)
        return self.State(h, torch.zeros_like(h))

    def step(self, state: State, x_t: Tensor | None, u_t: Tensor | None = None) -> State:
        parts: Any = self.parts
        control = [] if u_t is None else [u_t]
        features = parts.prior[:-1](torch.cat([state.h, *control], -1))
        z = pyro.sample("z", normal(parts.prior[-1], features))
        z = parts.z_net(z)
        features = parts.decoder[:-1](torch.cat([z, state.h], -1))
        x = pyro.sample("x", bernoulli(parts.decoder[-1], features), obs=x_t)
        x = parts.x_net[1:](x.flatten(-3))
        return self.State(*lstm(parts.lstm, torch.cat([x, z, *control], -1), *state))

    def visible(self, state: State) -> Any:  # noqa: ANN401
        return VRNN.Visible(state.h)


class TwinSVG(Twin):
    class State(NamedTuple):
        g: Tensor
        prior: tuple[Tensor, Tensor]
        low: tuple[Tensor, Tensor]
        top: tuple[Tensor, Tensor]

    def initial_state(self, batch_shape: Size) -> State:
        parts: Any = self.parts
        starts = [self.start(h, batch_shape) for h in (parts.p_0, *parts.h_0)]
        cells = [(h, torch.zeros_like(h)) for h in starts]
        return self.State(self.start(parts.g_0, batch_shape), *cells)

    def step(self, state: State, x_t: Tensor | None, u_t: Tensor | None = None) -> State:
        parts: Any = self.parts
        control = [] if u_t is None else [u_t]
        z = pyro.sample("z", normal(parts.prior, torch.cat([state.prior[0], *control], -1)))
        low = lstm(parts.predictor[0], torch.cat([state.g, z, *control], -1), *state.low)
        top = lstm(parts.predictor[1], low[0], *state.top)
        code = parts.output[0](top[0]).tanh()
        middle, log_scale = parts.decoder(code).chunk(2, -3)
        pixels = dist.Normal(middle.sigmoid(), log_scale.clamp(-5.0, 2.5).exp())
        x = pyro.sample("x", pixels.to_event(3), obs=x_t)
        g = parts.encoder.network(x)
        return self.State(g, lstm(parts.prior_lstm, g, *state.prior), low, top)

    def visible(self, state: State) -> Any:  # noqa: ANN401
        return SVG.Visible(state.g, state.prior[0], state.top[0])


def small_dmm(**options: Any) -> DMM:  # noqa: ANN401
    return DMM(FRAME, latent=2, hidden=5, width=6, **options)


def small_srnn(**options: Any) -> SRNN:  # noqa: ANN401
    return SRNN(FRAME, **{"latent": 2, "hidden": 4, "prior": [5], "decoder": [5, 6], **options})


def small_vrnn(**options: Any) -> VRNN:  # noqa: ANN401
    sizes = {"latent": 2, "hidden": 4, "x_net": [5], "z_net": [3], "prior": [5], "decoder": [6]}
    return VRNN(FRAME, **{**sizes, **options})


def small_svg(**options: Any) -> SVG:  # noqa: ANN401
    sizes = {"latent": 2, "features": 4, "hidden": 3, "channels": (3, 4)}
    return SVG(FRAME, **{**sizes, **options})


MAKERS: dict[str, Callable[..., SplitStepModel]] = {
    "dmm": small_dmm,
    "srnn": small_srnn,
    "vrnn": small_vrnn,
    "svg": small_svg,
}
TWINS = {"dmm": TwinDMM, "srnn": TwinSRNN, "vrnn": TwinVRNN, "svg": TwinSVG}


def make(name: str, **options: Any) -> SplitStepModel:  # noqa: ANN401
    """A model in float64 whose parameters are away from their start."""
    torch.manual_seed(3)
    model = MAKERS[name](**options).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def data(masked: str = "none", controls: int = 0) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Frames, NaN where the mask hides them, with the mask and controls.

    Args:
        masked: "none", "padding" (ragged sequences) or "gaps" (both).
        controls: Size of the controls.
    """
    generator = torch.Generator().manual_seed(7)
    x = (torch.rand(BATCH, TIME, *FRAME, generator=generator) > 0.5).double()
    u = torch.randn(BATCH, TIME, controls, generator=generator).double() if controls else None
    if masked == "none":
        return x, None, u
    mask = torch.ones(BATCH, TIME, dtype=torch.bool)
    mask[1, 3:] = False
    mask[2, 1:] = False
    if masked == "gaps":
        mask[0, 0] = mask[0, 2] = mask[3, 1] = mask[3, 2] = False
    x[~mask] = float("nan")
    return x, mask, u
