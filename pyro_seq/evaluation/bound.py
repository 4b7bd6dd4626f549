"""A bound on the log evidence of sequences, and means over sequences with their errors."""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor

__all__ = ["Bound", "Estimate", "mean_of", "ratio_of"]


class Estimate(NamedTuple):
    """A mean and its standard error.

    Attributes:
        mean: The mean.
        standard_error: From the spread over sequences; NaN for a single one.
    """

    mean: float
    standard_error: float


class Bound(NamedTuple):
    r"""A bound on :math:`\log p(x_i)` for each sequence, in nats, of its observed frames only.

    Means are over sequences, each with the weight 1; the mean per step is the sum of the bounds
    over the sum of the observed steps. Standard errors are those of the means, from the spread
    over sequences. Everything is float64 on the CPU.

    Attributes:
        name: Which bound, `"elbo"`, `"iwae"` or `"fivo"`.
        samples: Draws from the guide per sequence.
        per_sequence: The bound of each sequence, `(sequences,)`.
        steps: Observed steps of each sequence, `(sequences,)`.
        reconstruction: :math:`E_q[\log p(x_i \mid z)]`, the observed sites, `(sequences,)`.
        divergence: :math:`E_q[\log q(z \mid x_i) - \log p(z)]`, the latent sites, `(sequences,)`.
            The ELBO is the reconstruction minus the divergence; the other bounds are not.
    """

    name: str
    samples: int
    per_sequence: Tensor
    steps: Tensor
    reconstruction: Tensor
    divergence: Tensor

    @property
    def mean(self) -> float:
        """Nats per sequence."""
        return mean_of(self.per_sequence).mean

    @property
    def standard_error(self) -> float:
        """Of :attr:`mean`; NaN for a single sequence."""
        return mean_of(self.per_sequence).standard_error

    @property
    def per_step(self) -> float:
        """Nats per observed step."""
        return ratio_of(self.per_sequence, self.steps).mean

    @property
    def per_step_standard_error(self) -> float:
        """Of :attr:`per_step`, a ratio of two means, to first order."""
        return ratio_of(self.per_sequence, self.steps).standard_error

    def summary(self) -> dict[str, float]:
        """Means and standard errors, such as `elbo_per_frame` and `elbo_per_frame_se`."""
        return {
            f"{self.name}_per_sequence": self.mean,
            f"{self.name}_per_sequence_se": self.standard_error,
            f"{self.name}_per_frame": self.per_step,
            f"{self.name}_per_frame_se": self.per_step_standard_error,
        }


def mean_of(values: Tensor) -> Estimate:
    """Mean over sequences, `(sequences,)`."""
    error = float(values.std() / math.sqrt(len(values))) if len(values) > 1 else math.nan
    return Estimate(float(values.mean()), error)


def ratio_of(totals: Tensor, steps: Tensor) -> Estimate:
    """Sum of totals over the sum of steps, `(sequences,)` each, the error to first order."""
    ratio = float(totals.sum() / steps.sum())
    spread = totals - ratio * steps
    return Estimate(ratio, mean_of(spread).standard_error / float(steps.mean()))
