"""Pyro's and funsor's GaussianHMM agree where they overlap: nothing missing, z_1 encoded."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from tests.distributions.setting import ALGORITHMS, Setting, make_setting
from tests.ops.dense import Model, expand
from tests.ops.noise import affine_map


def peer_arguments(setting: Setting) -> tuple:
    """Arguments of a GaussianHMM, whose z_0 moves before z_1: under A_1 = 0 the noise is z_1."""
    m = Model(*[p.detach() for p in expand(setting.model, setting.batch_shape)])
    steps = len(setting.batch_shape)

    def over_time(parameter: Tensor) -> Tensor:
        shape = list(parameter.shape)
        shape[steps] = setting.time
        return parameter.expand(shape).clone()

    transition, loc, cov = map(over_time, (m.transition, m.offset, m.transition_cov))
    transition[..., 0, :, :] = 0
    loc[..., 0, :], cov[..., 0, :, :] = m.initial_loc, m.initial_cov
    start = dist.MultivariateNormal(torch.zeros_like(m.initial_loc), m.initial_cov)
    noise_cov = over_time(m.emission_cov)
    noise = dist.MultivariateNormal(noise_cov.new_zeros(noise_cov.shape[:-1]), noise_cov)
    moves = dist.MultivariateNormal(loc, cov)
    return start, transition.mT, moves, over_time(m.emission).mT, noise


CASES = pytest.mark.parametrize("layout", ["constant", "varying", "kvae", "broadcast", "one_step"])


@CASES
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_pyro_gaussian_hmm(layout: str, algorithm: str) -> None:
    setting = make_setting(layout)
    peer, a = dist.GaussianHMM(*peer_arguments(setting)), setting.a.detach()
    d = setting.distribution(algorithm)
    torch.testing.assert_close(d.log_prob(a), peer.log_prob(a), rtol=1e-8, atol=1e-8)
    last, rows = peer.filter(a), d.filter(a)
    torch.testing.assert_close(rows.loc[..., -1, :], last.loc, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(
        rows.cov[..., -1, :, :], last.covariance_matrix, rtol=1e-8, atol=1e-8
    )


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_pyro_posterior_samples(algorithm: str) -> None:
    setting = make_setting("varying")
    peer, a = dist.GaussianHMM(*peer_arguments(setting)), setting.a.detach()
    posterior = setting.distribution(algorithm).posterior(a)
    samplers = (posterior.rsample, lambda: peer.rsample_posterior(a))
    (loc, root), (peer_loc, peer_root) = (affine_map(sampler) for sampler in samplers)
    torch.testing.assert_close(loc, peer_loc, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(root @ root.T, peer_root @ peer_root.T, rtol=1e-8, atol=1e-8)


@CASES
def test_funsor_gaussian_hmm(layout: str) -> None:
    funsor = pytest.importorskip("funsor")
    funsor.set_backend("torch")
    from funsor.pyro.hmm import GaussianHMM

    setting = make_setting(layout)
    peer, a = GaussianHMM(*peer_arguments(setting)), setting.a.detach()
    answer = setting.distribution().log_prob(a)
    torch.testing.assert_close(answer, peer.log_prob(a), rtol=1e-8, atol=1e-8)
