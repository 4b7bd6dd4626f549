r"""Codes of a whole sequence under mixture dynamics, as a distribution.

References:
    Fraccaro, Kamronn, Paquet, Winther (2017), A disentangled recognition and nonlinear dynamics
    model for unsupervised learning.
"""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor

from pyro_seq.distributions import LinearGaussianPosterior, LinearGaussianSSM
from pyro_seq.nn.dynamics import MixtureDynamics

__all__ = ["JointState", "MixtureSSM"]


class MixtureSSM(TorchDistribution):
    r"""Equation 8 with z integrated out: :math:`p(a) = \prod_t p(a_t \mid a_{0:t-1})`.

    Given the codes, the matrices are known and the density is that of a linear-Gaussian model. One
    value is a whole sequence `a (time, obs)`.

    Args:
        dynamics: The modes and their weight network.
        batch: Number of sequences.
        time: Number of steps.
        observed: bool `(batch, time)`: missing frames are not scored, and predictions stand in for
            them; None means that every frame is there.
        controls: u, `(batch, time, controls)`.
    """

    arg_constraints: dict[str, Any] = {}
    support = constraints.independent(constraints.real, 2)
    has_rsample = True

    def __init__(
        self,
        dynamics: MixtureDynamics,
        batch: int,
        time: int,
        observed: Tensor | None = None,
        controls: Tensor | None = None,
    ) -> None:
        self.dynamics, self.observed, self.controls = dynamics, observed, controls
        super().__init__(
            torch.Size((batch,)), torch.Size((time, dynamics.obs)), validate_args=False
        )

    def expand(self, batch_shape: torch.Size, _instance: Any = None) -> MixtureSSM:  # noqa: ANN401
        """The same distribution with further dimensions before the sequences."""
        shape = torch.Size(batch_shape)
        if shape[-1:] != self.batch_shape[-1:]:
            raise ValueError(
                f"batch_shape must end in the number of sequences, {self.batch_shape[-1]}; "
                f"got {tuple(shape)}"
            )
        new = self._get_checked_instance(MixtureSSM, _instance)
        new.dynamics, new.observed, new.controls = self.dynamics, self.observed, self.controls
        super(MixtureSSM, new).__init__(shape, self.event_shape, validate_args=False)
        return new

    def log_prob(self, a: Tensor) -> Tensor:
        r""":math:`\log p(a)` of the observed frames, z integrated out exactly, in nats.

        Args:
            a: `(*sample, batch, time, obs)`.

        Returns:
            `(*sample, batch)`.
        """
        a = a.expand(torch.broadcast_shapes(a.shape, self.batch_shape + self.event_shape))
        given = self.dynamics.condition(a, self.observed, self.controls)
        if given.filtered is not None:
            return given.filtered.log_likelihood.sum(-1).to(a.dtype)
        return LinearGaussianSSM.from_model(
            given.model, time=a.shape[-2], validate_args=False
        ).log_prob(a)

    def state(self, a: Tensor) -> JointState:
        r""":math:`p(z \mid a)` for the model side of an estimator that samples z.

        Args:
            a: `(*sample, batch, time, obs)`.
        """
        model = self.dynamics.condition(a, self.observed, self.controls).model
        ssm = LinearGaussianSSM.from_model(
            model, time=a.shape[-2], mask=self.observed, validate_args=False
        )
        return JointState(ssm, a)

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """Codes drawn ancestrally, one step after the other, `(*sample, *batch, time, obs)`."""
        shape = torch.Size(sample_shape) + self.batch_shape
        controls = self.controls
        if controls is not None:
            controls = controls.expand(*shape, *controls.shape[-2:]).flatten(0, len(shape) - 1)
        state = self.dynamics.initial_state(shape.numel())
        codes = []
        for t in range(self.event_shape[0]):
            state, code = self.dynamics.draw(state, None if controls is None else controls[:, t])
            codes.append(code)
        return torch.stack(codes, 1).unflatten(0, shape)


class JointState(TorchDistribution):
    r""":math:`p(z \mid a) = p(a, z) / p(a)`, scored by the right-hand side.

    Beside the site of a, which contributes :math:`\log p(a)`, it makes up equation 7's
    :math:`\log p(a, z)`.

    Args:
        ssm: The linear-Gaussian model.
        a: `(*sample, batch, time, obs)`.
    """

    arg_constraints: dict[str, Any] = {}
    support = constraints.independent(constraints.real, 2)
    has_rsample = True

    def __init__(self, ssm: LinearGaussianSSM, a: Tensor) -> None:
        self.ssm, self.a = ssm, a
        self.posterior: LinearGaussianPosterior = ssm.posterior(a)
        super().__init__(
            self.posterior.batch_shape, self.posterior.event_shape, validate_args=False
        )

    def expand(self, batch_shape: torch.Size, _instance: Any = None) -> JointState:  # noqa: ANN401
        """The same distribution; only its own batch shape is possible."""
        if torch.Size(batch_shape) != self.batch_shape:
            raise ValueError(
                f"batch shape is fixed at {tuple(self.batch_shape)}; got {tuple(batch_shape)}"
            )
        return self

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """A joint sample of the trajectory, `(*sample, batch, time, state)`."""
        return self.posterior.rsample(sample_shape)

    def log_prob(self, z: Tensor) -> Tensor:
        r""":math:`\log p(a, z) - \log p(a)`, in nats."""
        return self.ssm.log_joint(z, self.a) - self.posterior.log_evidence
