r"""Exact inference in linear-Gaussian state space models, by two algorithms with one interface."""

from __future__ import annotations

from torch import Tensor

from pyro_seq.ops.kalman.information import InformationPosterior
from pyro_seq.ops.kalman.model import Filtered, LinearGaussian, Posterior, Smoothed
from pyro_seq.ops.kalman.sequential import (
    SequentialPosterior,
    Updated,
    kalman_filter,
    predict,
    restrict,
    update,
)

__all__ = [
    "ALGORITHMS",
    "Filtered",
    "InformationPosterior",
    "LinearGaussian",
    "Posterior",
    "SequentialPosterior",
    "Smoothed",
    "Updated",
    "condition",
    "kalman_filter",
    "predict",
    "restrict",
    "update",
]

ALGORITHMS = ("auto", "information", "sequential")


def condition(
    model: LinearGaussian, value: Tensor, observed: Tensor | None = None, algorithm: str = "auto"
) -> Posterior:
    r"""The joint posterior :math:`p(z_{1:T} \mid a)`.

    `"information"` factorises the joint precision in :math:`\log_2 T` batched levels and has an
    analytic backward pass; `"sequential"` is the Kalman filter and smoother, one Python step per
    frame, differentiable any number of times. `"auto"` takes `"information"` for more than two
    steps: it was the faster one at every longer length that was measured (`make bench`).

    Args:
        model: The state space model.
        value: a, `(*batch, time, obs)`; what is not observed may be NaN.
        observed: bool `(*batch, time, obs)`, or None when everything is.
        algorithm: `"auto"`, `"information"` or `"sequential"`.

    Returns:
        The posterior.

    Raises:
        ValueError: For an unknown algorithm.
        NotPositiveDefiniteError: Naming the covariance and the step.
    """
    if algorithm not in ALGORITHMS:
        raise ValueError(f"algorithm must be one of {', '.join(ALGORITHMS)}; got {algorithm!r}")
    if algorithm == "sequential" or (algorithm == "auto" and value.shape[-2] <= 2):
        return SequentialPosterior(model, value, observed)
    return InformationPosterior(model, value, observed)
