"""One state space model, everything with a gradient, as pyro_seq and as Pyro write it."""

from __future__ import annotations

from typing import NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor

from benchmarks.harness import Step
from pyro_seq.distributions import LinearGaussianSSM

OURS, PEER = "pyro_seq", "GaussianHMM"
STATE, OBS = 4, 2


class Problem(NamedTuple):
    """A and C vary over sequences and time, as in a KVAE; the noises are shared.

    A_1 is zero and P_1 equals Q, so that Pyro's model, which moves once before its first
    observation, is the same distribution.
    """

    initial_loc: Tensor
    initial_cov: Tensor
    transition: Tensor
    transition_cov: Tensor
    emission: Tensor
    emission_cov: Tensor
    value: Tensor

    def gradients(self, total: Tensor) -> Problem:
        """The gradient of a scalar for every tensor."""
        return Problem(*torch.autograd.grad(total, list(self)))


def make_problem(batch: int, time: int) -> Problem:
    """A seeded problem with stable dynamics; every tensor needs a gradient."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    transition = 0.95 * torch.eye(STATE) + 0.05 * normal(batch, time, STATE, STATE)
    transition[:, 0] = 0
    leaves = Problem(
        initial_loc=torch.zeros(STATE),
        initial_cov=0.08 * torch.eye(STATE),
        transition=transition,
        transition_cov=0.08 * torch.eye(STATE),
        emission=0.5 * normal(batch, time, OBS, STATE),
        emission_cov=0.03 * torch.eye(OBS),
        value=normal(batch, time, OBS),
    )
    return Problem(*(leaf.requires_grad_() for leaf in leaves))


def ours(problem: Problem) -> LinearGaussianSSM:
    """The distribution of this library."""
    return LinearGaussianSSM(
        problem.initial_loc,
        problem.initial_cov,
        problem.transition,
        problem.transition_cov[None],
        problem.emission,
        problem.emission_cov[None],
    )


def peer(problem: Problem) -> dist.GaussianHMM:
    """The distribution of Pyro."""
    zeros = problem.value.new_zeros
    return dist.GaussianHMM(
        dist.MultivariateNormal(problem.initial_loc, problem.initial_cov),
        problem.transition.mT,
        dist.MultivariateNormal(zeros(STATE), problem.transition_cov),
        problem.emission.mT,
        dist.MultivariateNormal(zeros(OBS), problem.emission_cov),
        duration=problem.value.shape[-2],
    )


def likelihood_steps(problem: Problem) -> dict[str, Step]:
    """log p(a) and its gradients."""

    def run(model: dist.TorchDistribution) -> tuple[Tensor, Problem]:
        total = model.log_prob(problem.value).sum()
        return total.detach(), problem.gradients(total)

    return {OURS: lambda: run(ours(problem)), PEER: lambda: run(peer(problem))}


def posterior_steps(problem: Problem) -> dict[str, Step]:
    """log p(a), one joint sample of p(z | a), and the gradients of both."""

    def run_ours() -> Problem:
        posterior = ours(problem).posterior(problem.value)
        return problem.gradients(posterior.log_evidence.sum() + posterior.rsample().sum())

    def run_peer() -> Problem:
        model = peer(problem)
        sample = model.rsample_posterior(problem.value)
        return problem.gradients(model.log_prob(problem.value).sum() + sample.sum())

    return {OURS: run_ours, PEER: run_peer}


def check_agreement(problem: Problem) -> None:
    """The two libraries compute the same number and gradients, or the comparison means nothing.

    In Pyro's model z_1 depends on A_1 and Q instead of m_1 and P_1: those are left out.
    """
    results = []
    for step in likelihood_steps(problem).values():
        total, found = step()
        results.append(
            (total, found.transition[:, 1:], found.emission, found.emission_cov, found.value)
        )
    for one, other in zip(*results, strict=True):
        tolerance = 1e-3 * float(one.abs().max())
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance)
