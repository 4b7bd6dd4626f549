"""The oracle for long sequences: a plain Kalman filter and RTS smoother in float64 NumPy."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class Smoothed(NamedTuple):
    """Smoothed moments of z per step, and log p(a_observed)."""

    loc: Array  # (T, z)
    cov: Array  # (T, z, z)
    log_prob: float


def smooth(model: tuple[Array, ...], a: Array, mask: Array) -> Smoothed:
    """One sequence; the fields of ``dense.Model`` without time dimensions, and ``mask (T,)``."""
    loc, cov, transition, offset, transition_cov, emission, emission_cov = model
    locs, covs, predictions, log_prob = [], [], [], 0.0
    for t, value in enumerate(a):
        if t > 0:
            loc, cov = transition @ loc + offset, transition @ cov @ transition.T + transition_cov
        predictions.append((loc, cov))
        if mask[t]:
            innovation_cov = emission @ cov @ emission.T + emission_cov
            gain = np.linalg.solve(innovation_cov, emission @ cov).T
            residual = value - emission @ loc
            quadratic = residual @ np.linalg.solve(innovation_cov, residual)
            log_det = np.linalg.slogdet(2 * np.pi * innovation_cov)[1]
            log_prob -= 0.5 * (quadratic + log_det)
            left = np.eye(len(loc)) - gain @ emission
            loc = loc + gain @ residual
            cov = left @ cov @ left.T + gain @ emission_cov @ gain.T
        locs.append(loc)
        covs.append(cov)
    for t in range(len(a) - 2, -1, -1):
        next_loc, next_cov = predictions[t + 1]
        gain = np.linalg.solve(next_cov, transition @ covs[t]).T
        locs[t] = locs[t] + gain @ (locs[t + 1] - next_loc)
        covs[t] = covs[t] + gain @ (covs[t + 1] - next_cov) @ gain.T
    return Smoothed(np.stack(locs), np.stack(covs), float(log_prob))
