r"""Linear-Gaussian state space models as distributions over whole sequences."""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor

from pyro_seq.distributions.linear_gaussian_posterior import LinearGaussianPosterior
from pyro_seq.distributions.shapes import broadcast, check_mask, check_shapes
from pyro_seq.ops import kalman
from pyro_seq.ops.kalman import Filtered, LinearGaussian
from pyro_seq.ops.linalg import check_positive_definite, cholesky, matvec, no_autocast

__all__ = ["LinearGaussianSSM"]


class LinearGaussianSSM(TorchDistribution):
    r"""Distribution of the observations of a linear-Gaussian state space model.

    .. math::
        z_1 \sim N(m_1, P_1),\quad z_t \sim N(A_t z_{t-1} + b_t, Q_t),\quad
        a_t \sim N(C_t z_t, R_t),\qquad p(a) = \int p(a \mid z)\, p(z)\, dz

    One value is a whole sequence `a (time, obs)`. Every matrix has a time dimension of its own, of
    size `time`, or 1 if it is constant; batch dimensions broadcast. Controls enter as the offset
    :math:`b_t = B_t u_t`; the first state has none. The algebra runs in float64 outside autocast
    and returns the type of the parameters.

    Args:
        initial_loc: :math:`m_1`, `(*batch, state)`.
        initial_cov: :math:`P_1`, `(*batch, state, state)`.
        transition: A, `(*batch, time | 1, state, state)`; index 0 of a varying one is not used.
        transition_cov: Q, `(*batch, time | 1, state, state)`.
        emission: C, `(*batch, time | 1, obs, state)`.
        emission_cov: R, `(*batch, time | 1, obs, obs)`.
        offset: b, `(*batch, time | 1, state)`; zero by default.
        time: Number of steps; needed only when every matrix is constant.
        mask: What is observed, bool: whole frames `(*batch, time)`, or single coordinates
            `(*batch, time, obs)`. What lies under False, NaN included, changes nothing.
        algorithm: `"auto"`, `"information"` or `"sequential"`; see
            :func:`pyro_seq.ops.kalman.condition`.
        validate_args: Check values and that each covariance is positive definite.

    Raises:
        ValueError: Naming the argument whose shape does not fit, or the covariance and the step at
            which it is not positive definite.

    Example:
        >>> eye = torch.eye(2)
        >>> ssm = LinearGaussianSSM(torch.zeros(2), eye, 0.9 * eye[None], 0.1 * eye[None],
        ...                         torch.ones(1, 1, 2), torch.ones(1, 1, 1), time=5)
        >>> a = ssm.sample()
        >>> a.shape, ssm.log_prob(a).shape, ssm.posterior(a).mean.shape
        (torch.Size([5, 1]), torch.Size([]), torch.Size([5, 2]))

    References:
        Kalman (1960); Rauch, Tung, Striebel (1965).
    """

    arg_constraints: dict[str, Any] = {}
    support = constraints.independent(constraints.real, 2)
    has_rsample = True

    def __init__(
        self,
        initial_loc: Tensor,
        initial_cov: Tensor,
        transition: Tensor,
        transition_cov: Tensor,
        emission: Tensor,
        emission_cov: Tensor,
        offset: Tensor | None = None,
        *,
        time: int | None = None,
        mask: Tensor | None = None,
        algorithm: str = "auto",
        validate_args: bool | None = None,
    ) -> None:
        if algorithm not in kalman.ALGORITHMS:
            raise ValueError(
                f"algorithm must be one of {', '.join(kalman.ALGORITHMS)}; got {algorithm!r}"
            )
        if offset is None:
            offset = initial_loc.new_zeros(1, initial_loc.shape[-1])
        self._model = LinearGaussian(
            initial_loc, initial_cov, transition, offset, transition_cov, emission, emission_cov
        )
        steps, batch = check_shapes(self._model, time)
        self._algorithm = algorithm
        obs = emission.shape[-2]
        self._observed = None if mask is None else check_mask(mask, steps, obs, len(batch))
        if self._observed is not None:
            batch = broadcast("mask", "time, obs", self._observed.shape, batch)
        super().__init__(batch, torch.Size((steps, obs)), validate_args=validate_args)
        self._check_covariances()

    @classmethod
    def from_model(cls, model: LinearGaussian, **options: Any) -> LinearGaussianSSM:  # noqa: ANN401
        """The distribution of a model that is already a tuple of tensors.

        Args:
            model: The parameters.
            **options: `time`, `mask`, `algorithm` and `validate_args`, as of the class.
        """
        return cls(**model._asdict(), **options)

    def _check_covariances(self) -> None:
        """Each must be positive definite; without validation this is looked at on the CPU only."""
        for name in ("initial_cov", "transition_cov", "emission_cov"):
            matrix, first = getattr(self._model, name).detach(), 0
            if name == "transition_cov" and matrix.shape[-3] > 1:
                matrix, first = matrix[..., 1:, :, :], 1
            check = check_positive_definite if self._validate_args else cholesky
            check(matrix, name, per_step=name != "initial_cov", first_step=first)

    @property
    def model(self) -> LinearGaussian:
        """The parameters as they were given."""
        return self._model

    @property
    def state_size(self) -> int:
        """Number of coordinates of the state."""
        return self._model.initial_loc.shape[-1]

    def expand(self, batch_shape: torch.Size, _instance: Any = None) -> LinearGaussianSSM:  # noqa: ANN401
        """The same distribution with other batch dimensions."""
        new = self._get_checked_instance(LinearGaussianSSM, _instance)
        new._model, new._algorithm, new._observed = self._model, self._algorithm, self._observed
        super(LinearGaussianSSM, new).__init__(
            torch.Size(batch_shape), self.event_shape, validate_args=False
        )
        new._validate_args = self._validate_args
        return new

    def _arguments(self, value: Tensor) -> tuple[LinearGaussian, Tensor, Tensor | None]:
        """Parameters, value and mask in float64 with the batch dimensions of both."""
        self._check_value(value)
        batch = broadcast("value", "time, obs", value.shape, self.batch_shape)
        observed = self._observed
        if observed is not None:
            observed = observed.expand(*batch, *self.event_shape)
        return (
            self._model.to(torch.float64),
            value.to(torch.float64).expand(*batch, *self.event_shape),
            observed,
        )

    def _dtype(self, value: Tensor) -> torch.dtype:
        """The type of results."""
        return torch.promote_types(self._model.initial_loc.dtype, value.dtype)

    def _check_value(self, value: Tensor) -> None:
        if value.shape[-2:] != self.event_shape:
            raise ValueError(
                f"value must end in (time, obs) = {tuple(self.event_shape)}; "
                f"got shape {tuple(value.shape)}"
            )
        broadcast("value", "time, obs", value.shape, self.batch_shape)
        if self._validate_args:
            fine = torch.isfinite(value)
            if self._observed is not None:
                fine = fine | ~self._observed
            if not fine.all():
                raise ValueError(
                    "value must be finite where it is observed; got NaN or infinity. "
                    "Set mask False where a value is missing"
                )

    def _check_latent(self, latent: Tensor, name: str = "latent") -> None:
        needed = (self.event_shape[0], self.state_size)
        if latent.shape[-2:] != needed:
            raise ValueError(
                f"{name} must end in (time, state) = {needed}; got shape {tuple(latent.shape)}"
            )
        broadcast(name, "time, state", latent.shape, self.batch_shape)

    def _validate_sample(self, value: Tensor) -> None:
        self._check_value(value)

    def log_prob(self, value: Tensor) -> Tensor:
        r""":math:`\log p(a)` of the observed coordinates, z integrated out, in nats.

        Args:
            value: a, `(*sample, *batch, time, obs)`.

        Returns:
            `(*sample, *batch)`.
        """
        return self.posterior(value).log_evidence

    def posterior(self, value: Tensor) -> LinearGaussianPosterior:
        r"""The joint posterior :math:`p(z \mid a)`.

        Args:
            value: a, `(*sample, *batch, time, obs)`.
        """
        with no_autocast(value.device):
            posterior = kalman.condition(*self._arguments(value), algorithm=self._algorithm)
        return LinearGaussianPosterior(
            posterior, self._dtype(value), self.event_shape[0], self.state_size
        )

    def latent_prior(self) -> LinearGaussianPosterior:
        r"""The prior :math:`p(z)` over all states: the posterior when nothing is observed."""
        model = self._model.to(torch.float64)
        shape = (*self.batch_shape, *self.event_shape)
        nothing = torch.zeros(shape, dtype=torch.float64, device=model.initial_loc.device)
        with no_autocast(nothing.device):
            prior = kalman.condition(
                model, nothing, torch.zeros_like(nothing, dtype=torch.bool), self._algorithm
            )
        return LinearGaussianPosterior(
            prior, self._model.initial_loc.dtype, shape[-2], self.state_size
        )

    def emit(self, latent: Tensor) -> dist.Independent:
        r"""Observations given states: :math:`p(a \mid z) = \prod_t N(a_t; C_t z_t, R_t)`.

        The mask does not enter: this is also the distribution of what is missing.

        Args:
            latent: z, `(*sample, *batch, time, state)`.
        """
        self._check_latent(latent)
        dtype = self._dtype(latent)
        with no_autocast(latent.device):
            model = self._model.to(torch.float64)
            factor = cholesky(model.emission_cov, "emission_cov").to(dtype)
            loc = matvec(model.emission, latent.to(torch.float64)).to(dtype)
        return dist.MultivariateNormal(loc, scale_tril=factor, validate_args=False).to_event(1)

    def log_joint(self, latent: Tensor, value: Tensor) -> Tensor:
        r""":math:`\log p(a, z) = \log p(z) + \sum_t \log N(a_t; C_t z_t, R_t)`, in nats.

        Args:
            latent: z, `(*sample, *batch, time, state)`.
            value: a, `(*sample, *batch, time, obs)`.

        Returns:
            `(*sample, *batch)`.
        """
        self._check_latent(latent)
        with no_autocast(value.device):
            model, a, observed = self._arguments(value)
            total = _log_joint(model, latent.to(torch.float64), a, observed)
        return total.to(self._dtype(value))

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """Sequences drawn from the prior, `(*sample, *batch, time, obs)`, reparametrised."""
        latent = self.latent_prior().rsample(sample_shape)
        with no_autocast(latent.device):
            model = self._model.to(torch.float64)
            noise = torch.randn(
                *latent.shape[:-1], self.event_shape[-1], dtype=torch.float64, device=latent.device
            )
            loc = matvec(model.emission, latent.to(torch.float64))
            drawn = loc + matvec(cholesky(model.emission_cov, "emission_cov"), noise)
        return drawn.to(latent.dtype)

    def filter(self, value: Tensor) -> Filtered:
        r"""Marginals given the past: :math:`p(z_t \mid a_{1:t})`, :math:`p(z_t \mid a_{1:t-1})`.

        Args:
            value: a, `(*sample, *batch, time, obs)`.

        Returns:
            The moments and :math:`\log p(a_t \mid a_{1:t-1})` in nats.
        """
        with no_autocast(value.device):
            filtered = kalman.kalman_filter(*self._arguments(value))
        return Filtered(*(tensor.to(self._dtype(value)) for tensor in filtered))

    def observe(self, loc: Tensor, cov: Tensor) -> tuple[Tensor, Tensor]:
        r"""Moments of a from those of z, :math:`C m`, :math:`C P C^\top + R`.

        Given `predicted_loc` and `predicted_cov` of :meth:`filter` these are the one-step
        predictions of a; given the posterior's marginals, what a missing a was.

        Args:
            loc: m, `(*batch, time, state)`.
            cov: P, `(*batch, time, state, state)`.
        """
        self._check_latent(loc, "loc")
        with no_autocast(loc.device):
            model = self._model.to(torch.float64)
            mean = matvec(model.emission, loc.to(torch.float64))
            spread = (
                model.emission @ cov.to(torch.float64) @ model.emission.mT + model.emission_cov
            )
        return mean.to(loc.dtype), spread.to(loc.dtype)

    def forecast(self, value: Tensor, future: LinearGaussianSSM) -> LinearGaussianSSM:
        r"""Distribution of the observations that follow, :math:`p(a_{T+1:T+H} \mid a_{1:T})`.

        Args:
            value: a, `(*batch, time, obs)`.
            future: A model of H steps whose matrices govern them. Its first transition, offset and
                transition covariance lead from step T to T + 1; its initial moments and its mask
                are not used.

        Raises:
            TypeError: If the future is a number of steps or something else.
            ValueError: If its states are of another size.
        """
        if not isinstance(future, LinearGaussianSSM):
            raise TypeError(
                "future must be a LinearGaussianSSM of the steps to come; got "
                f"{type(future).__name__}. Where every matrix is constant use "
                "LinearGaussianSSM.from_model(ssm.model, time=steps)"
            )
        if future.state_size != self.state_size:
            raise ValueError(
                f"future must have states of {self.state_size} coordinates, as the model that it "
                f"goes on from; got {future.state_size}"
            )
        filtered = self.filter(value)
        now = future.model.at(0)
        loc, cov = kalman.predict(
            filtered.loc[..., -1, :],
            filtered.cov[..., -1, :, :],
            now.transition,
            now.offset,
            now.transition_cov,
        )
        model = future.model._replace(initial_loc=loc, initial_cov=cov)
        time = future.event_shape[0]
        return LinearGaussianSSM.from_model(model, time=time, algorithm=self._algorithm)

    @property
    def mean(self) -> Tensor:
        r""":math:`E[a]`, `(*batch, time, obs)`."""
        latent = self.latent_prior().mean
        with no_autocast(latent.device):
            return matvec(self._model.emission, latent)

    @property
    def variance(self) -> Tensor:
        r""":math:`\mathrm{Var}(a)` of every coordinate, `(*batch, time, obs)`."""
        states = self.latent_prior().smoothed
        return self.observe(states.loc, states.cov)[1].diagonal(dim1=-2, dim2=-1)


def _log_joint(model: LinearGaussian, z: Tensor, a: Tensor, observed: Tensor | None) -> Tensor:
    """The sum of the log densities of the first state, the transitions and what is observed."""
    later = [
        t[..., 1:, :, :] if t.shape[-3] > 1 else t
        for t in (model.transition, model.offset.unsqueeze(-1), model.transition_cov)
    ]
    transition, offset, noise = later
    start = dist.MultivariateNormal(
        model.initial_loc,
        scale_tril=cholesky(model.initial_cov, "initial_cov", per_step=False),
        validate_args=False,
    )
    step = dist.MultivariateNormal(
        matvec(transition, z[..., :-1, :]) + offset.squeeze(-1),
        scale_tril=cholesky(noise, "transition_cov"),
        validate_args=False,
    )
    emission, emission_cov = model.emission, model.emission_cov
    missing: Tensor | float = 0.0
    if observed is not None:
        a, emission, emission_cov = kalman.restrict(a, emission, emission_cov, observed)
        missing = (~observed).sum((-1, -2)).to(a.dtype)
    seen = dist.MultivariateNormal(
        matvec(emission, z), scale_tril=cholesky(emission_cov, "emission_cov"), validate_args=False
    )
    total = (
        start.log_prob(z[..., 0, :])
        + step.log_prob(z[..., 1:, :]).sum(-1)
        + seen.log_prob(a).sum(-1)
    )
    return total + 0.5 * math.log(2 * math.pi) * missing
