"""Messages in Gaussian chains against dense linear algebra, and against the printed equations."""

from __future__ import annotations

from typing import NamedTuple

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_seq.inference.message_passing import (
    GaussianChain,
    condition,
    elbo,
    filter_chain,
    log_evidence,
    mean_field,
    sweep_up,
    up_and_down,
    upward_messages,
)
from pyro_seq.ops.precision import combine


class Dense(NamedTuple):
    loc: Tensor
    precision: Tensor


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def golden() -> tuple[GaussianChain, Tensor]:
    """Appendix B: w_x = 1.5, w_yz = .7, the numbers of the specification."""
    weights, variances = tensor(1.0, 1.5, 0.7), tensor(0.4, 0.5, 1.0, 0.8)
    return GaussianChain(weights, variances, tensor(0.0, 0.0, 0.3)), tensor(2.0).squeeze()


def random_chains(number: int, levels: int, seed: int = 0) -> tuple[GaussianChain, Tensor]:
    g = torch.Generator().manual_seed(seed)
    uniform = lambda *s: torch.rand(*s, generator=g, dtype=torch.float64)  # noqa: E731
    signs = (uniform(number, levels) > 0.5) * 2.0 - 1
    weights = signs * (0.3 + 1.7 * uniform(number, levels))
    variances = 0.2 + 1.8 * uniform(number, levels + 1)
    offsets = 4 * uniform(number, levels) - 2
    return GaussianChain(weights, variances, offsets), 6 * uniform(number) - 3


def joint(chain: GaussianChain) -> dist.MultivariateNormal:
    """(x, z_1, ..., z_L) as one Gaussian, from the matrix that makes it of independent noise."""
    weights, variances, offsets = chain
    levels = weights.shape[-1]
    links = torch.diag_embed(weights, offset=1)
    mix = torch.linalg.inv(torch.eye(levels + 1, dtype=torch.float64) - links)
    shift = torch.cat([torch.zeros_like(offsets[..., :1]), offsets], -1)
    cov = mix @ torch.diag_embed(variances) @ mix.mT
    return dist.MultivariateNormal((mix @ shift.unsqueeze(-1)).squeeze(-1), cov)


def posterior(chain: GaussianChain, x: Tensor) -> Dense:
    """Mean and precision of the latents given x."""
    whole = joint(chain)
    precision = whole.precision_matrix
    own, cross = precision[..., 1:, 1:], precision[..., 1:, 0]
    shift = torch.linalg.solve(own, cross * (x - whole.loc[..., 0]).unsqueeze(-1))
    return Dense(whole.loc[..., 1:] - shift, own)


def test_the_golden_model() -> None:
    chain, x = golden()
    start = torch.stack([x, tensor(0.0)[0], tensor(0.3)[0]])
    beliefs = mean_field(chain, x, 100, start)
    torch.testing.assert_close(
        beliefs.loc, tensor(1.8328373, 1.08258929, 0.65104167), atol=1e-7, rtol=0
    )
    torch.testing.assert_close(
        beliefs.variance, tensor(2 / 9, 0.18181818, 0.57471264), atol=1e-8, rtol=0
    )
    exact = posterior(chain, x)
    marginal = torch.linalg.inv(exact.precision).diagonal()
    torch.testing.assert_close(marginal, tensor(0.36031746, 0.31071429, 0.625), atol=1e-8, rtol=0)
    assert log_evidence(chain, x).item() == pytest.approx(-1.9681562, abs=1e-7)
    assert elbo(chain, x, beliefs).item() == pytest.approx(-2.2360895, abs=1e-7)
    gap = 0.5 * (exact.precision.diagonal().log().sum() - torch.logdet(exact.precision))
    assert gap.item() == pytest.approx(0.2679333, abs=1e-7)
    assert (log_evidence(chain, x) - elbo(chain, x, beliefs) - gap).abs() < 1e-12


def test_the_golden_rate_of_convergence() -> None:
    chain, x = golden()
    exact = posterior(chain, x).loc
    loc = torch.stack([x, tensor(0.0)[0], tensor(0.3)[0]])
    errors = []
    while not errors or errors[-1] > 1e-14:
        loc = sweep_up(chain, x, loc)
        errors.append((loc - exact).abs().max().item())
    assert errors[20] / errors[19] == pytest.approx(0.41484, abs=1e-4)
    assert 34 <= len(errors) <= 42


def test_many_chains_have_the_exact_means() -> None:
    chain, x = random_chains(500, 3)
    chain = chain._replace(weights=torch.cat([torch.ones(500, 1), chain.weights[:, 1:]], 1))
    exact = posterior(chain, x)
    beliefs = mean_field(chain, x, 1500)
    assert (beliefs.loc - exact.loc).abs().max() < 1e-11
    diagonal = exact.precision.diagonal(dim1=-1, dim2=-2)
    torch.testing.assert_close(beliefs.variance, 1 / diagonal)
    marginal = torch.linalg.inv(exact.precision).diagonal(dim1=-1, dim2=-2)
    assert (beliefs.variance <= marginal + 1e-12).all()


@pytest.mark.parametrize("levels", [1, 2, 5])
def test_chains_of_any_length(levels: int) -> None:
    chain, x = random_chains(50, levels, seed=1)
    exact = posterior(chain, x)
    assert (mean_field(chain, x, 5000).loc - exact.loc).abs().max() < 1e-9
    marginal = dist.Normal(joint(chain).loc[:, 0], joint(chain).covariance_matrix[:, 0, 0].sqrt())
    torch.testing.assert_close(log_evidence(chain, x), marginal.log_prob(x))
    beliefs = mean_field(chain, x, 5000)
    gap = 0.5 * (
        exact.precision.diagonal(dim1=-1, dim2=-2).log().sum(-1) - torch.logdet(exact.precision)
    )
    torch.testing.assert_close(elbo(chain, x, beliefs), log_evidence(chain, x) - gap)


def test_the_bound_is_the_expectation_of_the_log_densities() -> None:
    chain, x = random_chains(4, 3, seed=2)
    beliefs = mean_field(chain, x, 2)
    z = beliefs.loc + beliefs.variance.sqrt() * torch.randn(200_000, 4, 3, dtype=torch.float64)
    log_q = dist.Normal(beliefs.loc, beliefs.variance.sqrt()).log_prob(z).sum(-1)
    log_p = joint(chain).log_prob(torch.cat([x.expand(200_000, 4).unsqueeze(-1), z], -1))
    terms = log_p - log_q
    error = terms.std(0) / 200_000**0.5
    assert ((terms.mean(0) - elbo(chain, x, beliefs)).abs() < 5 * error).all()


def test_the_mean_field_is_the_best_of_its_kind() -> None:
    chain, x = random_chains(20, 4, seed=3)
    loc, variance = (part.clone().requires_grad_() for part in mean_field(chain, x, 3000))
    from pyro_seq.inference.message_passing import Beliefs

    elbo(chain, x, Beliefs(loc, variance)).sum().backward()
    assert loc.grad.abs().max() < 1e-9
    assert variance.grad.abs().max() < 1e-9


@pytest.mark.parametrize("levels", [1, 2, 5])
def test_messages_from_below_make_the_posterior_exact(levels: int) -> None:
    chain, x = random_chains(30, levels, seed=4)
    exact = posterior(chain, x)
    messages = upward_messages(chain, x)
    above, total = None, torch.zeros(30, dtype=torch.float64)
    draws = []
    for level in reversed(range(levels)):
        q = condition(chain, messages, above, level)
        above = q.loc + q.scale * torch.randn(30, dtype=torch.float64)
        total = total + dist.Normal(q.loc, q.scale).log_prob(above)
        draws.insert(0, above)
    whole = dist.MultivariateNormal(exact.loc, precision_matrix=exact.precision)
    torch.testing.assert_close(total, whole.log_prob(torch.stack(draws, -1)))


@pytest.mark.parametrize("levels", [1, 2, 4])
def test_one_pass_up_and_down_is_a_round_of_coordinate_updates(levels: int) -> None:
    chain, x = random_chains(40, levels, seed=5)
    precision, exact = posterior(chain, x).precision, posterior(chain, x).loc
    means = torch.linalg.inv(
        torch.eye(levels, dtype=torch.float64) - torch.diag_embed(chain.weights[:, 1:], offset=1)
    )
    loc = (means @ chain.offsets.unsqueeze(-1)).squeeze(-1)
    sweep = up_and_down(chain, x)
    torch.testing.assert_close(sweep.predicted, loc)
    for level in range(levels):
        loc = relax(loc, exact, precision, level)
    torch.testing.assert_close(sweep.encoded, loc)
    for level in reversed(range(levels - 1)):
        loc = relax(loc, exact, precision, level)
    torch.testing.assert_close(sweep.loc, loc)


def relax(loc: Tensor, exact: Tensor, precision: Tensor, level: int) -> Tensor:
    """The coordinate update of one level of a Gaussian with this mean and precision."""
    slope = (precision[:, level] * (loc - exact)).sum(-1) / precision[:, level, level]
    return torch.cat([loc[:, :level], (loc[:, level] - slope)[:, None], loc[:, level + 1 :]], 1)


def printed_pass(chain: GaussianChain, x: Tensor) -> Tensor:
    """Equations 27 to 31 as the paper prints them: in 28 and 30 s and 1 - s change places."""
    w, o, v = chain.weights, chain.offsets, chain.variances
    s = v[:, 1:] * w**2 / (v[:, 1:] * w**2 + v[:, :-1])
    top = o[:, 1]
    predicted = o[:, 0] + w[:, 1] * top
    below = predicted + (1 - s[:, 0]) / w[:, 0] * (x - w[:, 0] * predicted)
    above = top + (1 - s[:, 1]) / w[:, 1] * (below - predicted)
    return torch.stack([below + s[:, 0] * w[:, 1] * (above - top), above], -1)


def test_the_temporal_updates_as_corrected_and_as_printed() -> None:
    chain, x = random_chains(500, 2, seed=6)
    exact = posterior(chain, x).loc
    rms = lambda loc: (loc - exact).square().mean().sqrt().item()  # noqa: E731
    once = up_and_down(chain, x).loc
    errors = [rms(mean_field(chain, x, more, once).loc) for more in (0, 2, 400)]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-12
    assert rms(printed_pass(chain, x)) > 3 * errors[0]
    assert (printed_pass(chain, x) - once).abs().max() > 1


def test_a_chain_over_time() -> None:
    chain, _ = random_chains(6, 2, seed=7)
    recurrent = torch.linspace(-0.9, 0.9, 12, dtype=torch.float64).reshape(6, 2)
    x = torch.randn(6, 5, dtype=torch.float64)
    start = torch.ones(6, 2, dtype=torch.float64)
    once, often = (filter_chain(chain, recurrent, x, start, sweeps) for sweeps in (1, 500))
    past = start
    for step in range(5):
        here = chain._replace(offsets=chain.offsets + recurrent * past)
        past = posterior(here, x[:, step]).loc
        torch.testing.assert_close(often.loc[:, step], past)
    assert once.loc.shape == (6, 5, 2)
    assert (once.loc - often.loc).abs().max() > 1e-3
    here = chain._replace(offsets=chain.offsets + recurrent * once.loc[:, 2])
    torch.testing.assert_close(once.predicted[:, 3], up_and_down(here, x[:, 3]).predicted)


def test_a_weight_of_zero_cuts_the_chain() -> None:
    weights = tensor(1.0, 0.0).requires_grad_()
    chain = GaussianChain(weights, tensor(0.5, 1.0, 2.0), tensor(0.1, 0.3))
    x = tensor(1.3).squeeze()
    for loc in (mean_field(chain, x, 5).loc, up_and_down(chain, x).loc):
        torch.testing.assert_close(loc[1], tensor(0.3).squeeze())
        assert torch.autograd.grad(loc.sum(), weights)[0].isfinite().all()


def test_a_gate_is_the_sigmoid_of_a_ratio_of_precisions() -> None:
    one, two, pi, rho = torch.rand(4, 7, dtype=torch.float64) + 0.1
    loc, log_precision, gate = combine(one, pi.log(), two, rho.log())
    precision = log_precision.exp()
    torch.testing.assert_close(gate, pi / (pi + rho))
    torch.testing.assert_close(loc, (pi * one + rho * two) / (pi + rho))
    torch.testing.assert_close(precision, pi + rho)
    assert combine(one, torch.zeros_like(pi).log(), two, rho.log()).loc.equal(two)


def test_chains_broadcast_and_keep_their_type() -> None:
    chain, _ = random_chains(3, 2)
    one = GaussianChain(*(part[0].float() for part in chain))
    x = torch.randn(4, 5)
    beliefs = mean_field(one, x, 3)
    assert beliefs.loc.shape == beliefs.variance.shape == (4, 5, 2)
    assert beliefs.loc.dtype == torch.float32
    assert mean_field(one, x, 0).variance.shape == (2,)
    assert elbo(one, x, beliefs).shape == log_evidence(one, x).shape == (4, 5)
    assert upward_messages(one, x).loc.shape == (4, 5, 2)
    torch.testing.assert_close(mean_field(one, x[1], 3).loc, beliefs.loc[1])


def test_bad_chains() -> None:
    chain, x = random_chains(3, 2)
    with pytest.raises(ValueError, match=r"variances must be \(\*batch, 3\).*got shape \(3, 2\)"):
        mean_field(chain._replace(variances=chain.variances[:, 1:]), x)
    with pytest.raises(ValueError, match="offsets must be"):
        up_and_down(chain._replace(offsets=chain.offsets[:, :1]), x)
    with pytest.raises(ValueError, match="batch shapes of weights, variances, offsets and x"):
        log_evidence(chain, torch.zeros(4))
    with pytest.raises(ValueError, match="sweeps must be 1 or more"):
        filter_chain(chain, chain.weights, torch.zeros(3, 4), chain.offsets, sweeps=0)
