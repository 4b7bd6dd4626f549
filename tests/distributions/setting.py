"""What the distribution answers and what the dense joint Gaussian answers, side by side."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_seq.distributions import LinearGaussianSSM
from tests.ops import dense
from tests.ops.cases import LAYOUTS, build_model, hide, random_leaves, random_mask
from tests.ops.dense import Model

ALGORITHMS = ("sequential", "information")
Answers = dict[str, Tensor]


class Setting(NamedTuple):
    """One case: free tensors, mask and sizes."""

    leaves: dict[str, Tensor]
    mask: Tensor | None
    batch_shape: torch.Size
    time: int

    @property
    def model(self) -> Model:
        """The parameters made of the leaves."""
        return build_model(self.leaves)

    @property
    def a(self) -> Tensor:
        """The observations, NaN where missing."""
        return hide(self.leaves["a"], self.mask)

    @property
    def z(self) -> Tensor:
        """Some latent trajectory."""
        return self.leaves["z"]

    def distribution(self, algorithm: str = "auto") -> LinearGaussianSSM:
        """The distribution under test."""
        return LinearGaussianSSM(
            **self.model._asdict(), time=self.time, mask=self.mask, algorithm=algorithm
        )

    def each(self, function: Callable, *values: Tensor | None) -> Tensor | tuple[Tensor, ...]:
        """A function of the oracle over the sequences of the batch."""
        return dense.each_sequence(function, self.model, self.batch_shape, *values)

    def dense_posterior(self) -> dense.Moments:
        """Joint posterior moments per sequence, flattened over (time, z)."""
        return self.each(dense.posterior, self.leaves["a"], self.mask)


def make_setting(layout: str, mask: str = "none", seed: int = 0) -> Setting:
    """A case by names."""
    sizes = LAYOUTS[layout]
    leaves = random_leaves(sizes, seed)
    return Setting(leaves, random_mask(sizes, mask), torch.Size(sizes.batch), sizes.time)


def library_answers(setting: Setting, algorithm: str) -> Answers:
    """Every quantity, by the library, from observations that are NaN where missing."""
    d, a, z = setting.distribution(algorithm), setting.a, setting.z
    posterior, rows, prior = d.posterior(a), d.filter(a), d.latent_prior()
    observation_loc, observation_cov = d.observe(rows.predicted_loc, rows.predicted_cov)
    marginals = posterior.marginals()
    return {
        "log_prob": d.log_prob(a),
        "log_evidence": posterior.log_evidence,
        "log_joint": d.log_joint(z, a),
        "posterior log_prob": posterior.log_prob(z),
        "posterior loc": posterior.mean,
        "posterior cov": posterior.covariance,
        "posterior cross": posterior.cross_covariance,
        "marginals loc": marginals.mean,
        "marginals cov": marginals.base_dist.covariance_matrix,
        "prior log_prob": prior.log_prob(z),
        "prior loc": prior.mean,
        "prior cov": prior.covariance,
        "prior cross": prior.cross_covariance,
        "filtered loc": rows.loc,
        "filtered cov": rows.cov,
        "predicted loc": rows.predicted_loc,
        "predicted cov": rows.predicted_cov,
        "observation loc": observation_loc,
        "observation cov": observation_cov,
        "log_likelihood": rows.log_likelihood,
    }


def dense_answers(setting: Setting) -> Answers:
    """Every quantity, by the dense joint Gaussian, which leaves out what is missing."""
    a, z, mask, time = setting.leaves["a"], setting.z, setting.mask, setting.time
    log_prob = setting.each(dense.log_prob, a, mask)
    rows = setting.each(dense.filtered, a, mask)
    after = setting.each(lambda *args: dense.trajectory(dense.posterior(*args), time), a, mask)
    before = setting.each(lambda model: dense.trajectory(dense.prior(model, time), time))
    return {
        "log_prob": log_prob,
        "log_evidence": log_prob,
        "log_joint": setting.each(dense.log_joint, z, a, mask),
        "posterior log_prob": setting.each(dense.posterior_log_prob, z, a, mask),
        "posterior loc": after.loc,
        "posterior cov": after.cov,
        "posterior cross": after.cross,
        "marginals loc": after.loc,
        "marginals cov": after.cov,
        "prior log_prob": setting.each(
            lambda model, z: dense.gaussian_log_density(z.flatten(), *dense.prior(model, time)), z
        ),
        "prior loc": before.loc,
        "prior cov": before.cov,
        "prior cross": before.cross,
        "filtered loc": rows.loc,
        "filtered cov": rows.cov,
        "predicted loc": rows.predicted_loc,
        "predicted cov": rows.predicted_cov,
        "observation loc": rows.observation_loc,
        "observation cov": rows.observation_cov,
        "log_likelihood": rows.log_likelihood,
    }


def assert_same(answers: Answers, expected: Answers, tolerance: float = 1e-8) -> None:
    """Equal names, shapes and values."""
    assert answers.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            answers[name], value, rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )
