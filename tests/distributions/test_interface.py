"""Shapes, expansion, broadcasting, errors and use as a Pyro site."""

from __future__ import annotations

import pickle

import pyro
import pytest
import torch
from pyro import poutine
from torch import Tensor

from pyro_seq.distributions import LinearGaussianSSM
from tests.distributions.setting import ALGORITHMS, Setting, make_setting


def plain(setting: Setting) -> dict[str, Tensor]:
    """Detached arguments of the constructor."""
    return {name: value.detach() for name, value in setting.model._asdict().items()}


@pytest.mark.parametrize("algorithm", ("auto", *ALGORITHMS))
@pytest.mark.parametrize("layout", ["constant", "varying", "broadcast", "one_step"])
def test_shapes(layout: str, algorithm: str) -> None:
    setting = make_setting(layout)
    d = setting.distribution(algorithm)
    batch, (time, obs) = setting.batch_shape, setting.a.shape[-2:]
    latent = setting.z.shape[-1]
    posterior = d.posterior(setting.a)
    assert d.has_rsample and posterior.has_rsample
    assert (d.batch_shape, d.event_shape) == (batch, (time, obs))
    assert (posterior.batch_shape, posterior.event_shape) == (batch, (time, latent))
    for shape in ((), (2,), (2, 3)):
        for sampler, size in ((d, obs), (posterior, latent), (d.latent_prior(), latent)):
            value = sampler.rsample(shape)
            assert value.shape == (*shape, *batch, time, size)
            assert sampler.log_prob(value).shape == (*shape, *batch)
    assert posterior.log_evidence.shape == batch
    marginals = posterior.marginals()
    assert (marginals.batch_shape, marginals.event_shape) == (batch, (time, latent))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_expand_repeats_the_distribution(algorithm: str) -> None:
    setting = make_setting("varying", "coordinates")
    d = setting.distribution(algorithm)
    wide = d.expand((4, 2))
    assert isinstance(wide, LinearGaussianSSM)
    assert (wide.batch_shape, wide.event_shape) == ((4, 2), d.event_shape)
    a = setting.a.detach() + torch.randn(4, 1, 1, 1, dtype=torch.float64)
    rows = torch.stack([d.log_prob(row) for row in a])
    torch.testing.assert_close(wide.log_prob(a), rows)
    torch.testing.assert_close(d.log_prob(a), rows)
    assert wide.rsample((3,)).shape == (3, 4, 2, *d.event_shape)
    smoothed = torch.stack([d.posterior(row).mean for row in a])
    torch.testing.assert_close(wide.posterior(a).mean, smoothed)
    posterior = d.posterior(a[0]).expand((4, 2))
    assert posterior.rsample().shape == (4, 2, *setting.z.shape[-2:])
    z = torch.randn(4, *setting.z.shape, dtype=torch.float64)
    rows = torch.stack([d.posterior(a[0]).log_prob(row) for row in z])
    torch.testing.assert_close(posterior.log_prob(z), rows)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_batch_of_observations_broadcasts_against_one_model(algorithm: str) -> None:
    setting = make_setting("constant")
    d = setting.distribution(algorithm)
    a = torch.randn(3, 4, 2, dtype=torch.float64)
    rows = torch.stack([d.log_prob(row) for row in a])
    torch.testing.assert_close(d.log_prob(a), rows)
    torch.testing.assert_close(d.posterior(a).log_evidence, rows)
    covariances = torch.stack([d.posterior(row).covariance for row in a])
    torch.testing.assert_close(d.posterior(a).covariance.expand_as(covariances), covariances)


def test_time_is_read_from_a_matrix_that_varies_and_asked_for_else() -> None:
    varying, constant = make_setting("varying"), make_setting("constant")
    assert LinearGaussianSSM(**plain(varying)).event_shape == (5, 2)
    with pytest.raises(ValueError, match="time"):
        LinearGaussianSSM(**plain(constant))
    without = plain(constant)
    del without["offset"]
    zero = {**without, "offset": torch.zeros(1, 2, dtype=torch.float64)}
    a = constant.a.detach()
    left = LinearGaussianSSM(**without, time=4).log_prob(a)
    torch.testing.assert_close(left, LinearGaussianSSM(**zero, time=4).log_prob(a))


def test_unused_first_transition_is_not_used() -> None:
    setting = make_setting("varying")
    model, a = plain(setting), setting.a.detach()
    other = {name: value.clone() for name, value in model.items()}
    for name in ("transition", "offset"):
        other[name][:, 0] += 5
    other["transition_cov"][:, 0] *= 3
    for algorithm in ALGORITHMS:
        left, right = (LinearGaussianSSM(**m, algorithm=algorithm) for m in (model, other))
        torch.testing.assert_close(left.log_prob(a), right.log_prob(a), rtol=0, atol=0)
        means = [d.posterior(a).mean for d in (left, right)]
        torch.testing.assert_close(*means, rtol=0, atol=0)


WRONG = {
    "initial_cov": torch.eye(3)[:, :2],
    "transition": torch.eye(4).expand(2, 5, 4, 4),
    "transition_cov": torch.eye(2).expand(2, 5, 2, 2),
    "emission": torch.zeros(2, 5, 3, 2),
    "emission_cov": torch.eye(3).expand(2, 5, 3, 3),
    "offset": torch.zeros(2, 5, 2),
    "mask": torch.ones(2, 4, dtype=torch.bool),
    "mask ": torch.ones(2, 5, 3, dtype=torch.bool),
    "mask  ": torch.ones(4, 5, dtype=torch.bool),
    "transition ": torch.eye(3).expand(2, 4, 3, 3),
    "emission ": torch.zeros(5, 5, 2, 3),
    "initial_loc ": torch.tensor(0.0),
    "transition_cov ": torch.eye(3),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_shapes_are_named(name: str) -> None:
    arguments = {**plain(make_setting("varying")), name.strip(): WRONG[name]}
    if WRONG[name].dtype != torch.bool:
        arguments[name.strip()] = WRONG[name].double()
    with pytest.raises(ValueError, match=name.strip()):
        LinearGaussianSSM(**arguments)


def test_other_bad_input_is_named() -> None:
    setting = make_setting("varying")
    model = plain(setting)
    with pytest.raises((ValueError, TypeError), match="mask.*bool"):
        LinearGaussianSSM(**model, mask=torch.ones(2, 5))
    with pytest.raises(ValueError, match="(?s)algorithm.*nonsense|nonsense.*algorithm"):
        LinearGaussianSSM(**model, algorithm="nonsense")
    with pytest.raises(ValueError, match="time"):
        LinearGaussianSSM(**model, time=7)
    with pytest.raises(ValueError, match="time must be at least 1; got 0"):
        LinearGaussianSSM(**model, time=0)
    d = LinearGaussianSSM(**model)
    masked = LinearGaussianSSM(**model, mask=torch.ones(2, 5, dtype=torch.bool))
    for bad in (torch.zeros(2, 4, 2), torch.zeros(2, 5, 3), torch.zeros(5), torch.zeros(3, 5, 2)):
        for use in (d.log_prob, d.posterior, d.filter, masked.log_prob):
            with pytest.raises(ValueError, match=r"value.*shape"):
                use(bad.double())
    right, cov = torch.zeros(2, 5, 3).double(), torch.eye(3).double()
    for bad in (torch.zeros(2, 4, 3), torch.zeros(2, 5, 2), torch.zeros(4, 5, 3)):
        for use in (
            d.emit,
            lambda z: d.log_joint(z, setting.a),
            lambda z: d.observe(z, cov),
        ):
            use(right)
            with pytest.raises(ValueError, match=r"^(latent|loc) must .* got shape"):
                use(bad.double())
    posterior = d.posterior(setting.a.detach())
    for bad in (torch.zeros(2, 4, 3), torch.zeros(2, 5, 2)):
        with pytest.raises(ValueError, match=r"value.*shape"):
            posterior.log_prob(bad.double())


def test_as_a_site_in_a_plate() -> None:
    setting = make_setting("varying", "frames")
    d = setting.distribution()

    def model(a: Tensor | None) -> Tensor:
        with pyro.plate("sequences", 2, dim=-1):
            return pyro.sample("a", d, obs=a)

    trace = poutine.trace(model).get_trace(setting.a)
    trace.compute_log_prob()
    torch.testing.assert_close(trace.nodes["a"]["log_prob"], d.log_prob(setting.a))
    assert model(None).shape == (2, 5, 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_emits_what_is_missing_too(dtype: torch.dtype) -> None:
    setting = make_setting("varying", "frames")
    assert not setting.mask.all()
    model = {name: value.to(dtype) for name, value in plain(setting).items()}
    d = LinearGaussianSSM(**model, mask=setting.mask)
    z, a = setting.z.detach().double(), torch.randn(2, 5, 2).double()
    steps = torch.distributions.MultivariateNormal(
        (model["emission"].double() @ z.unsqueeze(-1)).squeeze(-1),
        model["emission_cov"].double(),
    )
    emitted = d.emit(z)
    assert emitted.mean.dtype == torch.float64
    torch.testing.assert_close(emitted.log_prob(a), steps.log_prob(a).sum(-1))
    assert d.emit(z.to(dtype)).sample().dtype == dtype


def test_constructor_keeps_working_without_a_gradient_and_by_pickle() -> None:
    setting = make_setting("varying", "frames")
    d = LinearGaussianSSM(**plain(setting), mask=setting.mask)
    copy, a = pickle.loads(pickle.dumps(d)), setting.a.detach()
    torch.testing.assert_close(copy.log_prob(a), d.log_prob(a))
    assert not d.log_prob(a).requires_grad
