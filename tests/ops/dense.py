r"""The oracle: a linear-Gaussian state space model of one sequence as one dense Gaussian.

.. math:: (z_1, \dots, z_T, a_1, \dots, a_T) \sim N(\mu, \Sigma)

Every answer is a marginal or a conditional of that joint, taken with a general matrix solve. No
recursion over observations, no mask arithmetic (what is missing is left out of the index) and
no symmetry assumed: nothing here shares an idea with the code it judges. All functions take one
sequence without batch dimensions, in float64, and are differentiable by plain autograd;
:func:`each_sequence` runs one of them over a batch.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Model(NamedTuple):
    """The parameters; index 0 of a time-varying ``transition(_cov)`` and ``offset`` is unused."""

    initial_loc: Tensor  # (z,)
    initial_cov: Tensor  # (z, z)
    transition: Tensor  # (T | 1, z, z)
    offset: Tensor  # (T | 1, z)
    transition_cov: Tensor  # (T | 1, z, z)
    emission: Tensor  # (T | 1, a, z)
    emission_cov: Tensor  # (T | 1, a, a)


EVENT_DIMS = Model(1, 2, 3, 2, 3, 3, 3)


class Joint(NamedTuple):
    """Moments of the flattened trajectories: ``loc_z (T z,)``, ``cov_z (T z, T z)`` and so on."""

    loc_z: Tensor
    loc_a: Tensor
    cov_z: Tensor
    cov_za: Tensor
    cov_a: Tensor
    time: int


def at(parameter: Tensor, step: int) -> Tensor:
    """The parameter of one step; a time dimension of 1 means constant."""
    return parameter[step if len(parameter) > 1 else 0]


def joint(model: Model, time: int) -> Joint:
    """Moments of (z, a), written down step by step from the generative equations."""
    locs = [model.initial_loc]
    rows = [[model.initial_cov]]
    for t in range(1, time):
        transition = at(model.transition, t)
        locs.append(transition @ locs[-1] + at(model.offset, t))
        row = [transition @ cov for cov in rows[-1]]
        row.append(row[-1] @ transition.T + at(model.transition_cov, t))
        rows.append(row)
    blocks = [[rows[t][s] if s <= t else rows[s][t].T for s in range(time)] for t in range(time)]
    loc_z = torch.cat(locs)
    cov_z = torch.cat([torch.cat(row, dim=1) for row in blocks])
    emission = torch.block_diag(*[at(model.emission, t) for t in range(time)])
    noise = torch.block_diag(*[at(model.emission_cov, t) for t in range(time)])
    cov_za = cov_z @ emission.T
    return Joint(loc_z, emission @ loc_z, cov_z, cov_za, emission @ cov_za + noise, time)


def observed(a: Tensor, mask: Tensor | None) -> Tensor:
    """Flat indices of the observed coordinates of ``a (T, a)``; mask ``(T,)`` or ``(T, a)``."""
    if mask is None:
        return torch.arange(a.numel())
    full = mask[:, None].expand_as(a) if mask.dim() == 1 else mask
    return full.flatten().nonzero().flatten()


def gaussian_log_density(value: Tensor, loc: Tensor, cov: Tensor) -> Tensor:
    """log N(value; loc, cov) by a general solve."""
    delta = value - loc
    quadratic = delta @ torch.linalg.solve(cov, delta[:, None])[:, 0]
    log_det = torch.linalg.slogdet(cov).logabsdet + len(delta) * math.log(2 * math.pi)
    return -0.5 * (quadratic + log_det)


def log_prob(model: Model, a: Tensor, mask: Tensor | None = None) -> Tensor:
    """log p(a_observed)."""
    full, index = joint(model, len(a)), observed(a, mask)
    return gaussian_log_density(a.flatten()[index], full.loc_a[index], full.cov_a[index][:, index])


class Moments(NamedTuple):
    """Joint moments of a flattened trajectory."""

    loc: Tensor
    cov: Tensor


def condition(full: Joint, a: Tensor, index: Tensor) -> tuple[Moments, Moments]:
    """Moments of z and of (new, noisy) a given the coordinates ``index`` of a."""
    cov_zo, cov_ao = full.cov_za[:, index], full.cov_a[:, index]
    cov_oo = full.cov_a[index][:, index]
    residual = (a.flatten()[index] - full.loc_a[index])[:, None]
    solve = torch.linalg.solve
    z = Moments(
        full.loc_z + (cov_zo @ solve(cov_oo, residual))[:, 0],
        full.cov_z - cov_zo @ solve(cov_oo, cov_zo.T),
    )
    a_moments = Moments(
        full.loc_a + (cov_ao @ solve(cov_oo, residual))[:, 0],
        full.cov_a - cov_ao @ solve(cov_oo, cov_ao.T),
    )
    return z, a_moments


def posterior(model: Model, a: Tensor, mask: Tensor | None = None) -> Moments:
    """Joint moments of z given the observed coordinates."""
    return condition(joint(model, len(a)), a, observed(a, mask))[0]


def prior(model: Model, time: int) -> Moments:
    """Joint moments of z before any observation."""
    full = joint(model, time)
    return Moments(full.loc_z, full.cov_z)


class Trajectory(NamedTuple):
    """Marginals per step and covariances Cov(z_{t+1}, z_t) of neighbouring steps."""

    loc: Tensor  # (T, d)
    cov: Tensor  # (T, d, d)
    cross: Tensor  # (T - 1, d, d)


def trajectory(moments: Moments, time: int) -> Trajectory:
    """Cut the blocks of a trajectory's moments."""
    size = len(moments.loc) // time
    blocks = moments.cov.reshape(time, size, time, size)
    steps = torch.arange(time)
    return Trajectory(
        moments.loc.reshape(time, size),
        blocks[steps, :, steps],
        blocks[steps[1:], :, steps[:-1]],
    )


class Filtered(NamedTuple):
    """Moments of z_t given a_{1:t}, of z_t and a_t given a_{1:t-1}, and log p(a_t | a_{1:t-1})."""

    loc: Tensor
    cov: Tensor
    predicted_loc: Tensor
    predicted_cov: Tensor
    observation_loc: Tensor
    observation_cov: Tensor
    log_likelihood: Tensor


def filtered(model: Model, a: Tensor, mask: Tensor | None = None) -> Filtered:
    """Condition anew on each beginning of the sequence."""
    full, index, (time, size) = joint(model, len(a)), observed(a, mask), a.shape
    rows = []
    for t in range(time):
        past, present = index[index < t * size], index[index < (t + 1) * size]
        predicted_z, predicted_a = (trajectory(m, time) for m in condition(full, a, past))
        updated = trajectory(condition(full, a, present)[0], time)
        evidence = [
            gaussian_log_density(a.flatten()[i], full.loc_a[i], full.cov_a[i][:, i])
            for i in (past, present)
        ]
        pairs = [(m.loc[t], m.cov[t]) for m in (updated, predicted_z, predicted_a)]
        rows.append((*itertools.chain(*pairs), evidence[1] - evidence[0]))
    return Filtered(*map(torch.stack, zip(*rows, strict=True)))


def forecast(model: Model, a: Tensor, mask: Tensor | None, steps: int) -> tuple[Moments, Moments]:
    """Joint moments of z and of a over ``steps`` more steps, which the model covers too."""
    time, size = a.shape
    future = torch.cat([a, a.new_zeros(steps, size)])
    z, new = condition(joint(model, time + steps), future, observed(a, mask))
    cut_z, cut_a = time * len(model.initial_loc), time * size
    future_z = Moments(z.loc[cut_z:], z.cov[cut_z:, cut_z:])
    return future_z, Moments(new.loc[cut_a:], new.cov[cut_a:, cut_a:])


def posterior_log_prob(model: Model, z: Tensor, a: Tensor, mask: Tensor | None = None) -> Tensor:
    """log p(z | a_observed) of a whole trajectory ``z (T, z)``."""
    return gaussian_log_density(z.flatten(), *posterior(model, a, mask))


def log_joint(model: Model, z: Tensor, a: Tensor, mask: Tensor | None = None) -> Tensor:
    """log p(z, a_observed), as one Gaussian over both."""
    full, index = joint(model, len(a)), observed(a, mask)
    cov_za = full.cov_za[:, index]
    upper = torch.cat([full.cov_z, cov_za], dim=1)
    lower = torch.cat([cov_za.T, full.cov_a[index][:, index]], dim=1)
    cov = torch.cat([upper, lower])
    value = torch.cat([z.flatten(), a.flatten()[index]])
    return gaussian_log_density(value, torch.cat([full.loc_z, full.loc_a[index]]), cov)


def kl_divergence(q: Moments, p: Moments) -> Tensor:
    """KL(q || p) of two dense Gaussians."""
    delta = p.loc - q.loc
    trace = torch.linalg.solve(p.cov, q.cov).diagonal().sum()
    quadratic = delta @ torch.linalg.solve(p.cov, delta[:, None])[:, 0]
    log_dets = [torch.linalg.slogdet(m.cov).logabsdet for m in (p, q)]
    return 0.5 * (trace + quadratic - len(delta) + log_dets[0] - log_dets[1])


def product_of_marginals(moments: Moments, time: int) -> Moments:
    """The Gaussian that keeps each step's marginal and forgets every correlation in time."""
    return Moments(moments.loc, torch.block_diag(*trajectory(moments, time).cov))


def expand(model: Model, batch_shape: torch.Size) -> Model:
    """Every parameter with the full batch shape in front."""
    pairs = zip(model, EVENT_DIMS, strict=True)
    return Model(*[p.expand(batch_shape + p.shape[p.dim() - event :]) for p, event in pairs])


def each_sequence(
    function: Callable, model: Model, batch_shape: torch.Size, *values: Tensor | None
) -> Tensor | tuple[Tensor, ...]:
    """Stack ``function(model_i, *values_i)`` over the batch; a value is fully batched or None."""
    full = expand(model, batch_shape)
    results = []
    for index in itertools.product(*map(range, batch_shape)):
        single = Model(*[parameter[index] for parameter in full])
        results.append(function(single, *[None if v is None else v[index] for v in values]))
    if isinstance(results[0], Tensor):
        return torch.stack(results).reshape(batch_shape + results[0].shape)
    columns = zip(*results, strict=True)
    return type(results[0])(*[torch.stack(c).reshape(batch_shape + c[0].shape) for c in columns])
