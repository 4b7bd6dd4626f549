r"""The joint posterior of all states at once, from its block-tridiagonal precision.

With the whitened rows :math:`J, w` of :mod:`pyro_seq.ops.kalman.least_squares`,

.. math::
    \Lambda = J^\top J, \quad \mu = \Lambda^{-1} J^\top w, \quad
    \log p(a) = \log p(a, z) - \log p(z \mid a) \text{ at } z = \mu,

and :math:`\Lambda^{-1} J^\top (w + \epsilon)` with :math:`\epsilon \sim N(0, I)` is an exact joint
sample: sampling is solving with a perturbed right-hand side. There is no Python loop over time
(:mod:`pyro_seq.ops.block_tridiagonal`), and the backward pass is analytic: the gradient of
:math:`\log p(a)` needs the smoothed moments only, that of a sample one more solve. Second
derivatives are not offered and raise.

References:
    Papandreou, Yuille (2010), sampling by perturbation; Paninski et al. (2010), state space models
    as block-tridiagonal systems.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_seq.ops.block_tridiagonal import factorise, selected_inverse
from pyro_seq.ops.kalman.least_squares import (
    HALF_LOG_TWO_PI,
    evidence,
    minimiser,
    normal_matrix,
    whiten,
)
from pyro_seq.ops.kalman.model import LinearGaussian, Smoothed
from pyro_seq.ops.kalman.sequential import restrict

__all__ = ["InformationPosterior"]


class InformationPosterior:
    r"""Joint posterior :math:`N(\Lambda^{-1} J^\top w, \Lambda^{-1})`.

    Args:
        model: The state space model.
        value: a, `(*batch, time, obs)`.
        observed: bool `(*batch, time, obs)`, or None when everything is.
    """

    def __init__(
        self, model: LinearGaussian, value: Tensor, observed: Tensor | None = None
    ) -> None:
        self._batch = value.shape[:-2]
        self._count: Tensor | int = value.shape[-1] * value.shape[-2]
        if observed is not None:
            value, emission, emission_cov = restrict(
                value, model.emission, model.emission_cov, observed
            )
            model = model._replace(emission=emission, emission_cov=emission_cov)
            self._count = observed.sum((-1, -2)).to(value.dtype)
        self._rows, self._log_dets = whiten(model, value)
        with torch.no_grad():
            self._factor = factorise(*normal_matrix(self._rows, self._batch))
            self._mode = minimiser(self._rows, self._factor)

    @property
    def device(self) -> torch.device:
        """Where the tensors live."""
        return self._mode.device

    @property
    def noise_shape(self) -> torch.Size:
        """`(*batch, time, state + obs)`: one number per row of J."""
        obs, state = self._rows.emit.shape[-2:]
        return torch.Size((*self._mode.shape[:-1], state + obs))

    def mean(self) -> Tensor:
        r""":math:`\mu = \Lambda^{-1} J^\top w`."""
        return minimiser(self._rows, self._factor)

    def log_evidence(self) -> Tensor:
        r""":math:`\log p(a, \mu) - \log p(\mu \mid a)`."""
        core = evidence(self._rows, self._factor, self._mode)
        return core - self._log_dets - HALF_LOG_TWO_PI * self._count

    def smoothed(self) -> Smoothed:
        """Marginals from the selected inverse, differentiated by autograd."""
        factor = self._factor
        if torch.is_grad_enabled() and any(row.requires_grad for row in self._rows):
            factor = factorise(*normal_matrix(self._rows, self._batch))
        return Smoothed(self.mean(), *selected_inverse(factor))

    def sample(self, noise: Tensor) -> Tensor:
        r""":math:`\Lambda^{-1} J^\top (w + \epsilon)`."""
        state = self._rows.first.shape[-1]
        perturbed = self._rows._replace(
            w_first=self._rows.w_first + noise[..., 0, :state],
            w_step=self._rows.w_step + noise[..., 1:, :state],
            w_emit=self._rows.w_emit + noise[..., state:],
        )
        return minimiser(perturbed, self._factor)

    def log_prob(self, latent: Tensor) -> Tensor:
        r""":math:`\tfrac12 \log\det\Lambda - \tfrac12 |J (z - \mu)|^2 - \tfrac{n T}{2} \log 2\pi`.

        By :math:`|J (z - \mu)|^2 = |w - J z|^2 - |w - J \mu|^2`.
        """
        size = latent.shape[-1] * latent.shape[-2]
        core = evidence(self._rows, self._factor, self._mode)
        return -0.5 * self._rows.square(latent) - core - HALF_LOG_TWO_PI * size

    def expected_log_prob(self, moments: Smoothed) -> Tensor:
        r"""As :meth:`log_prob`, less :math:`\tfrac12 \mathrm{tr}(\Lambda\, \mathrm{Cov}_q)`.

        The trace meets three diagonals of the covariance only.
        """
        diagonal, lower = normal_matrix(self._rows, self._batch)
        own = (diagonal * moments.cov).sum((-1, -2, -3))
        cross = (lower * moments.cross_cov).sum((-1, -2, -3))
        return self.log_prob(moments.loc) - 0.5 * own - cross
