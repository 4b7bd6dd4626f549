r"""A deep Markov model as one writes it in Pyro: a loop of statements, smoothed, stepped by SVI.

The sizes are those of Pyro's tutorial. References: Krishnan, Shalit, Sontag (2017), Structured
inference networks for nonlinear state space models.
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import Adam
from torch import Tensor, nn

from benchmarks.harness import Step

LATENT, EMISSION, TRANSITION, RECURRENT = 100, 100, 200, 600


def network(inputs: int, hidden: int, outputs: int, layers: int = 1) -> nn.Sequential:
    """Dense layers with ReLU, and a linear one."""
    sizes = [inputs] + [hidden] * layers
    parts: list[nn.Module] = []
    for one, two in zip(sizes[:-1], sizes[1:], strict=True):
        parts += [nn.Linear(one, two), nn.ReLU()]
    return nn.Sequential(*parts, nn.Linear(hidden, outputs))


class DeepMarkovModel(nn.Module):
    r"""A gated transition, Bernoulli notes, and a posterior from a network that reads backward.

    .. math::
        z_t \sim N((1 - g) \odot (W z_{t-1} + b) + g \odot m, \sigma^2), \quad g, m, \sigma
        \text{ networks of } z_{t-1}; \qquad
        q(z_t \mid z_{t-1}, r_t), \; r_t = \mathrm{RNN}(r_{t+1}, x_t)
    """

    def __init__(self, notes: int) -> None:
        super().__init__()
        self.first, self.first_posterior = (nn.Parameter(torch.zeros(LATENT)) for _ in range(2))
        self.gate = network(LATENT, TRANSITION, LATENT)
        self.proposal = network(LATENT, TRANSITION, LATENT)
        self.linear, self.scale = (nn.Linear(LATENT, LATENT) for _ in range(2))
        self.emission = network(LATENT, EMISSION, notes, layers=2)
        self.backward_network = nn.RNN(notes, RECURRENT, nonlinearity="relu", batch_first=True)
        self.combine = nn.Linear(LATENT, RECURRENT)
        self.loc, self.log_scale = (nn.Linear(RECURRENT, LATENT) for _ in range(2))

    def model(self, x: Tensor) -> None:
        """p(x, z), (B, T, notes)."""
        pyro.module("dmm", self)
        z = self.first.expand(x.shape[0], -1)
        with pyro.plate("sequences", x.shape[0]):
            for t in pyro.markov(range(x.shape[1])):
                gate, proposal = self.gate(z).sigmoid(), self.proposal(z)
                loc = torch.lerp(self.linear(z), proposal, gate)
                scale = nn.functional.softplus(self.scale(proposal.relu()))
                z = pyro.sample(f"z_{t}", dist.Normal(loc, scale).to_event(1))
                logits = self.emission(z)
                pyro.sample(f"x_{t}", dist.Bernoulli(logits=logits).to_event(1), obs=x[:, t])

    def guide(self, x: Tensor) -> None:
        """q(z | x)."""
        pyro.module("dmm", self)
        later = self.backward_network(x.flip(1))[0].flip(1)
        z = self.first_posterior.expand(x.shape[0], -1)
        with pyro.plate("sequences", x.shape[0]):
            for t in pyro.markov(range(x.shape[1])):
                hidden = 0.5 * (self.combine(z).tanh() + later[:, t])
                scale = nn.functional.softplus(self.log_scale(hidden))
                z = pyro.sample(f"z_{t}", dist.Normal(self.loc(hidden), scale).to_event(1))


def dmm_step(x: Tensor) -> Step:
    """One step of SVI with Adam on these frames."""
    pyro.clear_param_store()
    dmm = DeepMarkovModel(x.shape[-1])
    svi = SVI(dmm.model, dmm.guide, Adam({"lr": 1e-4}), Trace_ELBO())
    return lambda: svi.step(x)
