r"""Bounds with several particles, from the log weights of the steps.

.. math:: w_t^i = \frac{p(x_t \mid z_t^i, s_{t-1}^i)\, p(z_t^i \mid s_{t-1}^i)}
    {q(z_t^i \mid x_{\le t}, z_{<t}^i)}, \qquad z_t^i \sim q, \quad i = 1 \dots N

References:
    Burda, Grosse, Salakhutdinov (2016), Importance weighted autoencoders.
    Maddison, Lawson, Tucker, Heess, Norouzi, Mnih, Doucet, Teh (2017), Filtering variational
    objectives.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor

from pyro_seq.guides.context import Frame
from pyro_seq.guides.filtering import FilteringGuide, FilterState
from pyro_seq.inference.filtering import (
    Filtered,
    StepELBO,
    filter_sequences,
    start,
    with_objective,
)
from pyro_seq.models.step_model import StepModel
from pyro_seq.nn.arguments import check_choice
from pyro_seq.ops.resampling import SCHEMES, resampled

__all__ = ["FIVO", "IWAE", "ParticleFiltered", "filter_particles"]


class ParticleFiltered(NamedTuple):
    r"""What a particle filter computes.

    Attributes:
        log_evidence: :math:`\log \hat p(x_{1:T})`, `(batch,)`, nats.
        log_weights: Normalised weights of the particles after the last step,
            `(particles, batch)`; their exponentials sum to 1.
        terms: The terms of every step, `(time, particles, batch)`, and the last state.
    """

    log_evidence: Tensor
    log_weights: Tensor
    terms: Filtered


class IWAE(StepELBO):
    r"""Importance-weighted bound of a step model and a filtering guide.

    .. math:: \mathcal{L}_N = E\Big[\log \frac1N \sum_i \prod_t w_t^i\Big] \le \log p(x_{1:T})

    With one particle this is the evidence lower bound with sampled divergences; it never falls as
    N grows. The gradient is the reparametrised one.

    Args:
        num_particles: N, drawn side by side.

    Example:
        >>> import torch
        >>> from pyro_seq.guides import NeuralFilter
        >>> from pyro_seq.models import DMM
        >>> model = DMM(frame=3, latent=2, hidden=8)
        >>> loss = IWAE(num_particles=8)(model, NeuralFilter(model, hidden=8))
        >>> loss(torch.ones(4, 6, 3)).shape
        torch.Size([])
    """

    def differentiable_loss(
        self,
        model: StepModel,
        guide: FilteringGuide,
        x: Tensor,
        mask: Tensor | None = None,
        controls: Tensor | None = None,
    ) -> Tensor:
        """Minus the bound summed over the batch; arguments as in :class:`StepELBO`."""
        start(model, guide)
        count = self.num_particles
        terms = filter_sequences(guide, x, mask, controls, particles=count, analytic=False)
        weights = (terms.log_likelihood - terms.divergence).sum(0)
        bound = weights.logsumexp(0) - math.log(count)
        return with_objective(-bound.sum(), terms.objective, count)


class FIVO(StepELBO):
    r"""Filtering variational objective: the estimate of a particle filter whose proposal is q.

    .. math:: \mathcal{L} = E\Big[\sum_t \log \sum_i \bar w_{t-1}^i w_t^i\Big] \le \log p(x_{1:T})

    The particles of a sequence are resampled after a step in which it was observed, where the
    effective sample size :math:`1 / \sum_i (\bar w_t^i)^2` is below a fraction of N; each sequence
    decides for itself, and nothing is read back from the device. Without resampling this is
    :class:`IWAE`. As usual the gradient is that through the particles and their weights, and
    the high-variance term of the choice of ancestors is left out: it is biased.

    Args:
        num_particles: N, drawn side by side.
        resample_below: Fraction of N below which particles are resampled; 0 never does.
        scheme: `"systematic"` or `"multinomial"`.

    Raises:
        ValueError: For another scheme or a fraction outside [0, 1].

    Example:
        >>> import torch
        >>> from pyro_seq.guides import Bootstrap
        >>> from pyro_seq.models import DMM
        >>> model = DMM(frame=3, latent=2, hidden=8)
        >>> loss = FIVO(num_particles=8)(model, Bootstrap(model))
        >>> loss(torch.ones(4, 6, 3)).shape
        torch.Size([])
    """

    def __init__(
        self,
        num_particles: int = 4,
        resample_below: float = 0.5,
        *,
        scheme: str = "systematic",
    ) -> None:
        super().__init__(num_particles)
        check_resampling(resample_below, scheme)
        self.resample_below = resample_below
        self.scheme = scheme

    def differentiable_loss(
        self,
        model: StepModel,
        guide: FilteringGuide,
        x: Tensor,
        mask: Tensor | None = None,
        controls: Tensor | None = None,
    ) -> Tensor:
        """Minus the bound summed over the batch; arguments as in :class:`StepELBO`."""
        start(model, guide)
        result = filter_particles(
            guide,
            x,
            mask,
            controls,
            particles=self.num_particles,
            resample_below=self.resample_below,
            scheme=self.scheme,
        )
        total = -result.log_evidence.sum()
        return with_objective(total, result.terms.objective, self.num_particles)


def filter_particles(
    guide: FilteringGuide,
    x: Tensor,
    mask: Tensor | None = None,
    controls: Tensor | None = None,
    *,
    particles: int,
    resample_below: float = 0.5,
    scheme: str = "systematic",
) -> ParticleFiltered:
    """Runs a particle filter whose proposal is the guide.

    Args:
        guide: The guide; its model is the model.
        x: Frames `(batch, time, *frame)`; missing ones may be NaN.
        mask: bool `(batch, time)`, True where observed.
        controls: u, `(batch, time, controls)`.
        particles: N.
        resample_below: See :class:`FIVO`.
        scheme: See :class:`FIVO`.

    Returns:
        The estimate of the evidence, whose exponential is unbiased, and the weighted particles.
    """
    check_resampling(resample_below, scheme)
    ensemble = _Ensemble(particles, resample_below, scheme)
    terms = filter_sequences(
        guide, x, mask, controls, particles=particles, analytic=False, between=ensemble.weigh
    )
    evidence, weights = ensemble.log_evidence, ensemble.log_weights
    assert isinstance(evidence, Tensor) and isinstance(weights, Tensor)
    return ParticleFiltered(evidence, weights, terms)


class _Ensemble:
    """Weights of particles `(particles, batch)`, and the evidence `(batch,)` so far."""

    def __init__(self, count: int, resample_below: float, scheme: str) -> None:
        self.count, self.below, self.scheme = count, resample_below, scheme
        self.log_weights: Tensor | float = -math.log(count)
        self.log_evidence: Tensor | float = 0.0

    def weigh(self, step: Tensor, frame: Frame, state: FilterState) -> FilterState:
        """Takes in the log weights of a step; resamples, and returns the state to go on from."""
        joint = self.log_weights + step
        evidence = joint.logsumexp(0)
        self.log_evidence = self.log_evidence + evidence
        weights = joint - evidence
        self.log_weights = weights
        if self.below == 0 or self.count == 1:
            return state
        observed = None if frame.seen is None else frame.seen[0]
        state, self.log_weights = resampled(
            state, weights, observed, below=self.below, scheme=self.scheme
        )
        return state


def check_resampling(resample_below: float, scheme: str) -> None:
    """Raises a ValueError for a fraction out of range or an unknown scheme."""
    if not 0 <= resample_below <= 1:
        raise ValueError(
            "resample_below must be a fraction of the particles, from 0 (never) to 1; "
            f"got {resample_below}"
        )
    check_choice("scheme", scheme, SCHEMES)
