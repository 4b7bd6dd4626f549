r"""Samples: their exact moments, read from the affine map of their noise, and its gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.distributions.setting import ALGORITHMS, Setting, make_setting
from tests.ops import dense
from tests.ops.noise import affine_map, noise_count

CASES = [
    ("varying", "none"),
    ("varying", "coordinates"),
    ("two_steps", "frames"),
    ("one_step", "frames"),
    ("scalar", "only_last"),
    ("constant", "nothing"),
]


def block_diagonal(moments: dense.Moments) -> dense.Moments:
    """Moments of the flattened batch: sequences are independent."""
    size = moments.loc.shape[-1]
    blocks = moments.cov.reshape(-1, size, size)
    return dense.Moments(moments.loc.flatten(), torch.block_diag(*blocks))


def prior_of(setting: Setting, which: str) -> dense.Moments:
    """Prior moments of the latents or of the observations."""

    def moments(model: dense.Model) -> dense.Moments:
        full = dense.joint(model, setting.time)
        if which == "z":
            return dense.Moments(full.loc_z, full.cov_z)
        return dense.Moments(full.loc_a, full.cov_a)

    return setting.each(moments)


def assert_moments(sample: object, moments: dense.Moments) -> None:
    """The sampler's affine map has exactly these moments."""
    offset, matrix = affine_map(sample)
    right = block_diagonal(moments)
    torch.testing.assert_close(offset, right.loc, rtol=0, atol=1e-8)
    torch.testing.assert_close(matrix @ matrix.T, right.cov, rtol=0, atol=1e-8)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize(("layout", "mask"), CASES)
def test_posterior_samples_have_the_dense_moments(layout: str, mask: str, algorithm: str) -> None:
    setting = make_setting(layout, mask)
    posterior = setting.distribution(algorithm).posterior(setting.a)
    assert_moments(posterior.rsample, setting.dense_posterior())


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("layout", ["varying", "one_step", "broadcast", "constant"])
def test_prior_samples_have_the_dense_moments(layout: str, algorithm: str) -> None:
    setting = make_setting(layout)
    d = setting.distribution(algorithm)
    assert_moments(d.rsample, prior_of(setting, "a"))
    assert_moments(d.latent_prior().rsample, prior_of(setting, "z"))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize(("layout", "mask"), [("varying", "coordinates"), ("kvae", "frames")])
def test_reparametrised_gradients_are_those_of_the_moments(
    layout: str, mask: str, algorithm: str
) -> None:
    r"""d(M M')/dparameters is fixed by the covariance, whichever root M the sampler uses."""
    setting = make_setting(layout, mask)
    setting = setting._replace(
        leaves={
            k: v[:1] if v.shape[:1] == setting.batch_shape else v
            for k, v in setting.leaves.items()
        },
        mask=setting.mask[:1],
        batch_shape=torch.Size((1,)),
    )
    posterior = setting.distribution(algorithm).posterior(setting.a)
    found = affine_map(posterior.rsample)
    right = block_diagonal(setting.dense_posterior())
    generator = torch.Generator().manual_seed(5)
    readouts = [torch.randn(m.shape, generator=generator, dtype=m.dtype) for m in right]
    leaves = [leaf for name, leaf in setting.leaves.items() if name != "z"]

    def gradient(loc: Tensor, cov: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad((readouts[0] * loc).sum() + (readouts[1] * cov).sum(), leaves)

    answers = zip(gradient(found[0], found[1] @ found[1].T), gradient(*right), strict=True)
    for answer, expected in answers:
        torch.testing.assert_close(answer, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_samples_of_one_call_are_independent(algorithm: str) -> None:
    setting = make_setting("two_steps", "frames")
    d = setting.distribution(algorithm)
    for sampler in (d, d.posterior(setting.a), d.latent_prior()):
        count = noise_count(sampler.rsample)
        assert noise_count(lambda s=sampler: s.rsample((3,))) == 3 * count
        _, matrix = affine_map(lambda s=sampler: s.rsample((2,)))
        first, second = matrix.detach().chunk(2)
        torch.testing.assert_close(first @ second.T, torch.zeros(len(first), len(first)).double())
        torch.testing.assert_close(first @ first.T, second @ second.T)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_sample_is_seeded_and_has_no_gradient(algorithm: str) -> None:
    setting = make_setting("varying", "frames")
    d = setting.distribution(algorithm)
    for sampler in (d, d.posterior(setting.a)):
        draws = []
        for draw in (sampler.sample, sampler.rsample, sampler.sample):
            torch.manual_seed(3)
            draws.append(draw((2,)))
        assert [d.requires_grad for d in draws] == [False, True, False]
        torch.testing.assert_close(draws[0], draws[1].detach(), rtol=0, atol=0)
        torch.testing.assert_close(draws[0], draws[2], rtol=0, atol=0)
        assert not torch.allclose(draws[0], sampler.sample((2,)))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize(("layout", "mask"), [("varying", "coordinates"), ("kvae", "frames")])
def test_the_joint_estimate_is_exact_for_every_sample(
    layout: str, mask: str, algorithm: str
) -> None:
    setting = make_setting(layout, mask)
    d = setting.distribution(algorithm)
    posterior = d.posterior(setting.a)
    torch.manual_seed(0)
    for z in (posterior.rsample((4,)), 10 * torch.randn(4, *setting.z.shape).double()):
        estimate = d.log_joint(z, setting.a) - posterior.log_prob(z)
        right = d.log_prob(setting.a).expand_as(estimate)
        torch.testing.assert_close(estimate, right, rtol=1e-8, atol=1e-8)
