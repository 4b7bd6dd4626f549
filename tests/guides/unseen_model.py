"""A step model that no part of the library was written for."""

from __future__ import annotations

from typing import NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.nn import PyroParam
from torch import Size, Tensor, nn

from pyro_seq.models import StepModel

COUNTS, CONTROLS = 3, 2


class Traffic(StepModel):
    r"""Vehicles counted on some roads, in a weather u.

    .. math::
        s_t \sim \mathrm{Gamma}(2, \beta), \quad
        v_t \sim N(f(v_{t-1}, \log(1 + x_{t-1}), u_t), s_t^2), \quad
        g_t \sim N(\langle w, v_t \rangle, 0.5^2), \quad
        x_t \sim \mathrm{Poisson}(\mathrm{softplus}(W \sin(v_t)) e^{g_t})

    Written in one piece: a positive latent s, a latent v whose prior depends on it, a latent
    number g that depends on v, and counts, which the next step reads.
    """

    controls = CONTROLS

    class State(NamedTuple):
        flow: Tensor
        last: Tensor

    def __init__(self, flow: int = 2) -> None:
        super().__init__()
        self.rate = PyroParam(torch.full((flow,), 4.0), constraints.positive)
        self.move = nn.Sequential(
            nn.Linear(flow + COUNTS + CONTROLS, 6), nn.Tanh(), nn.Linear(6, flow)
        )
        self.gain = nn.Linear(flow, 1)
        self.roads = nn.Linear(flow, COUNTS)

    def initial_state(self, batch_shape: Size) -> State:
        like = self.gain.weight
        flow = like.new_zeros(*batch_shape, like.shape[1])
        return self.State(flow, like.new_zeros(*batch_shape, COUNTS))

    def step(self, state: State, x_t: Tensor | None, u_t: Tensor | None = None) -> State:
        assert u_t is not None
        rate = self.rate.expand(state.flow.shape)
        spread = pyro.sample("spread", dist.Gamma(torch.full_like(rate, 2.0), rate).to_event(1))
        loc = self.move(torch.cat([state.flow, state.last, u_t], -1))
        flow = pyro.sample("flow", dist.Normal(loc, spread + 1e-3).to_event(1))
        gain = pyro.sample("gain", dist.Normal(self.gain(flow).squeeze(-1), 0.5))
        gain = gain.clamp(-5.0, 5.0).exp().unsqueeze(-1)
        mean = nn.functional.softplus(self.roads(flow.sin())) * gain
        x = pyro.sample("x", dist.Poisson(mean).to_event(1), obs=x_t)
        return self.State(flow, x.log1p())


def traffic(batch: int = 4, time: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    """Counts, a mask with gaps and sequences of different length, and controls."""
    controls = torch.randn(batch, time, CONTROLS)
    level = torch.stack([controls[..., 0].cumsum(1).sin() + 1.0] * COUNTS, -1)
    x = torch.poisson(3 * level)
    mask = torch.ones(batch, time, dtype=torch.bool)
    mask[0, 1:3] = False
    mask[1, 0] = False
    mask[2, time - 2 :] = False
    return x, mask, controls
