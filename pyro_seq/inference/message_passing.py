r"""Inference in a chain of Gaussians by messages up and down: what a recurrent ladder can compute.

.. math::
    z_L \sim N(o_L, \sigma_L^2), \quad
    z_l \sim N(o_l + w_{l+1} z_{l+1}, \sigma_l^2), \quad
    x \sim N(w_1 z_1, \sigma_0^2)

With offsets :math:`o = (0, \dots, 0, \mu)` and :math:`w_1 = 1` this is the static model of
Appendix B of the paper, whose :math:`\tilde x, x, y, z` are :math:`x, z_1, z_2, z_3` here. With
:math:`o_l = \omega_l m_{l,t-1}`, from the posterior means of the step before, it is one step of
the temporal model of Appendix C, whose :math:`x_t, y_t, z_t` are :math:`x, z_1, z_2`. With

.. math::
    m'_l = o_l + w_{l+1} m_{l+1}, \qquad
    s_l = \frac{w_l^2 \sigma_l^2}{w_l^2 \sigma_l^2 + \sigma_{l-1}^2}, \qquad
    v_l^{-1} = w_l^2 / \sigma_{l-1}^2 + 1 / \sigma_l^2

the best factor of :math:`q(z) = \prod_l N(z_l; m_l, v_l)` given the others is

.. math:: m_l = m'_l + \frac{s_l}{w_l} (m_{l-1} - o_{l-1} - w_l m'_l), \qquad m_0 = x,\; o_0 = 0

The paper's equations 17 and 20 hold other symbols, and 28 and 30 have s and 1 - s in each other's
place; here they are as derived. :math:`s_l / w_l` stays finite where a weight is 0.

References:
    Prémont-Schwarz, Ilin, Hao, Rasmus, Boney, Valpola (2017), Recurrent ladder networks,
    Appendices B and C.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_seq.ops.precision import Combined, combine

__all__ = [
    "Beliefs",
    "GaussianChain",
    "Messages",
    "Sweep",
    "condition",
    "elbo",
    "filter_chain",
    "log_evidence",
    "mean_field",
    "sweep_up",
    "up_and_down",
    "upward_messages",
]


class GaussianChain(NamedTuple):
    r"""A chain of latents, each a number, above an observation; the last one is the top.

    Attributes:
        weights: :math:`w_l`, from a latent to what lies below it, `(*batch, levels)`.
        variances: :math:`\sigma_0^2` of the observation, then those of the latents,
            `(*batch, levels + 1)`.
        offsets: :math:`o_l`, `(*batch, levels)`.
    """

    weights: Tensor
    variances: Tensor
    offsets: Tensor


class Beliefs(NamedTuple):
    """Independent normal posteriors.

    Attributes:
        loc: m, `(*batch, levels)`.
        variance: v, `(*batch, levels)`.
    """

    loc: Tensor
    variance: Tensor


class Messages(NamedTuple):
    r"""What the observation says of each latent, the latents between integrated out.

    Attributes:
        loc: :math:`l_l`, `(*batch, levels)`.
        precision: :math:`\pi_l`, `(*batch, levels)`: :math:`p(x \mid z_l) \propto N(z_l; l_l,
            1 / \pi_l)`.
    """

    loc: Tensor
    precision: Tensor


class Sweep(NamedTuple):
    r"""The means of one step in time, `(*batch, levels)` each.

    Attributes:
        predicted: :math:`m'`, before the observation: the next-step prediction of the decoder.
        encoded: :math:`\tilde m`, with it, but before the levels above changed: the encoder.
        loc: m, after all: the decoder.
    """

    predicted: Tensor
    encoded: Tensor
    loc: Tensor


def mean_field(
    chain: GaussianChain, x: Tensor, sweeps: int = 100, start: Tensor | None = None
) -> Beliefs:
    r"""The best product of normals, by coordinate updates from the bottom to the top (eq. 17-19).

    The means converge to those of the exact posterior, and the variances are the inverses of the
    diagonal of its precision, never larger than the exact ones.

    Args:
        chain: The chain.
        x: The observation, `(*batch,)`.
        sweeps: Updates of every level.
        start: First means, `(*batch, levels)`; by default those of the prior.

    Returns:
        The posteriors of the latents.

    Raises:
        ValueError: When a shape does not fit.

    Example:
        >>> w, v = torch.tensor([1.0, 1.5, 0.7]), torch.tensor([0.4, 0.5, 1.0, 0.8])
        >>> chain = GaussianChain(w, v, torch.tensor([0.0, 0.0, 0.3]))
        >>> mean_field(chain, torch.tensor(2.0)).loc
        tensor([1.8328, 1.0826, 0.6510])
    """
    _check(chain, x)
    loc = _predict(chain) if start is None else start
    for _ in range(sweeps):
        loc = sweep_up(chain, x, loc)
    return Beliefs(*torch.broadcast_tensors(loc, _variance(chain)))


def sweep_up(chain: GaussianChain, x: Tensor, loc: Tensor) -> Tensor:
    """The means `(*batch, levels)` after one update of each level, the lowest first."""
    levels = list(loc.unbind(-1))
    for level in range(len(levels)):
        levels[level] = _update(chain, x, levels, level)
    return _stack(levels)


def up_and_down(chain: GaussianChain, x: Tensor) -> Sweep:
    r"""One pass up and one down, from the means that are predicted (eq. 27-31).

    .. math::
        m'_l &= o_l + w_{l+1} m'_{l+1}, \qquad m'_0 = w_1 m'_1, \quad \tilde m_0 = x \\
        \tilde m_l &= m'_l + \frac{s_l}{w_l} (\tilde m_{l-1} - m'_{l-1}) \\
        m_l &= \tilde m_l + (1 - s_l) w_{l+1} (m_{l+1} - m'_{l+1}), \qquad m_L = \tilde m_L

    These are the coordinate updates of the levels 1, 2, ..., L, ..., 2, 1. One pass is not yet
    their fixed point; :func:`mean_field` goes on from ``start=sweep.loc``.

    Args:
        chain: The chain of this step, with the offsets that the past gives.
        x: The observation, `(*batch,)`.

    Returns:
        Predicted, encoded and final means.

    Raises:
        ValueError: When a shape does not fit.
    """
    _check(chain, x)
    weights, gain = chain.weights.unbind(-1), _gains(chain).unbind(-1)
    predicted = list(_predict(chain).unbind(-1))
    encoded, surprise = [], x - weights[0] * predicted[0]
    for mean, share in zip(predicted, gain, strict=True):
        surprise = share * surprise
        encoded.append(mean + surprise)
    loc = [encoded[-1]]
    for level in reversed(range(len(predicted) - 1)):
        rest = 1 - gain[level] * weights[level]
        change = loc[0] - predicted[level + 1]
        loc.insert(0, encoded[level] + rest * weights[level + 1] * change)
    return Sweep(*(_stack(means) for means in (predicted, encoded, loc)))


def filter_chain(
    chain: GaussianChain, recurrent: Tensor, x: Tensor, start: Tensor, sweeps: int = 1
) -> Sweep:
    r"""The temporal model: at each step the offsets are :math:`o_l + \omega_l m_{l,t-1}`.

    Given the means of the past as points; the means of a Kalman filter are others.

    Args:
        chain: The chain, `(*batch, ...)`, the same at every step.
        recurrent: :math:`\omega_l`, `(*batch, levels)`.
        x: Observations, `(*batch, time)`.
        start: Means before the first step, `(*batch, levels)`.
        sweeps: Passes per step, the first of them up and down.

    Returns:
        The means of every step, `(*batch, time, levels)` each.

    Raises:
        ValueError: When a shape does not fit, or there is no sweep.
    """
    if sweeps < 1:
        raise ValueError(f"sweeps must be 1 or more; got {sweeps}")
    loc, steps = start, []
    for x_t in x.unbind(-1):
        here = chain._replace(offsets=chain.offsets + recurrent * loc)
        step = up_and_down(here, x_t)
        loc = mean_field(here, x_t, sweeps - 1, step.loc).loc
        steps.append(step._replace(loc=loc))
    return Sweep(*(torch.stack(each, -2) for each in zip(*steps, strict=True)))


def upward_messages(chain: GaussianChain, x: Tensor) -> Messages:
    r"""Messages from the observation to every level, the levels between integrated out.

    .. math::
        l_{l+1} = (l_l - o_l) / w_{l+1}, \qquad
        \pi_{l+1} = w_{l+1}^2 / (\sigma_l^2 + 1 / \pi_l), \qquad
        l_1 = x / w_1, \quad \pi_1 = w_1^2 / \sigma_0^2

    Combined from the top down with :math:`p(z_l \mid z_{l+1})` by precision, they give the exact
    posterior (:func:`condition`).

    Args:
        chain: The chain, with weights that are not 0.
        x: The observation, `(*batch,)`.

    Raises:
        ValueError: When a shape does not fit.
    """
    _check(chain, x)
    below, spread, locs, spreads = x, chain.variances[..., 0], [], []
    levels = (part.unbind(-1) for part in (chain.weights, chain.variances[..., 1:], chain.offsets))
    for weight, variance, offset in zip(*levels, strict=True):
        locs.append(below / weight)
        spreads.append(spread / weight**2)
        below, spread = locs[-1] - offset, spreads[-1] + variance
    return Messages(_stack(locs), 1 / _stack(spreads))


def condition(
    chain: GaussianChain, messages: Messages, above: Tensor | None, level: int
) -> Combined:
    r"""The exact :math:`p(z_l \mid z_{l+1}, x)`: message and prior, weighted by precision.

    Args:
        chain: The chain.
        messages: Those of :func:`upward_messages`.
        above: :math:`z_{l+1}`, `(*batch,)`; None at the top.
        level: l, counted from 0.

    Returns:
        Mean and logarithm of the precision, with the gate.
    """
    prior = chain.offsets[..., level]
    if above is not None:
        prior = prior + chain.weights[..., level + 1] * above
    precision, own = messages.precision[..., level], chain.variances[..., level + 1]
    return combine(messages.loc[..., level], precision.log(), prior, -own.log())


def log_evidence(chain: GaussianChain, x: Tensor) -> Tensor:
    r""":math:`\log p(x)`, `(*batch,)`, nats."""
    _check(chain, x)
    loc = chain.weights[..., 0] * _predict(chain)[..., 0]
    squares = chain.weights.square().cumprod(-1) * chain.variances[..., 1:]
    return _log_normal((x - loc).square(), chain.variances[..., 0] + squares.sum(-1))


def elbo(chain: GaussianChain, x: Tensor, beliefs: Beliefs) -> Tensor:
    r"""The evidence lower bound of independent normal posteriors, `(*batch,)`, nats.

    Args:
        chain: The chain.
        x: The observation, `(*batch,)`.
        beliefs: Means and variances of the posteriors.

    Raises:
        ValueError: When a shape does not fit.
    """
    _check(chain, x)
    loc, variance = beliefs
    parents = torch.cat([loc[..., 1:], torch.zeros_like(loc[..., :1])], -1)
    spread = torch.cat([variance[..., 1:], torch.zeros_like(loc[..., :1])], -1)
    above = torch.cat([chain.weights[..., 1:], torch.zeros_like(chain.weights[..., :1])], -1)
    squares = (loc - chain.offsets - above * parents).square() + variance + above**2 * spread
    latents = _log_normal(squares, chain.variances[..., 1:])
    seen = (x - chain.weights[..., 0] * loc[..., 0]).square()
    seen = seen + chain.weights[..., 0] ** 2 * variance[..., 0]
    entropy = 0.5 * (1 + (2 * math.pi * variance).log())
    return _log_normal(seen, chain.variances[..., 0]) + (latents + entropy).sum(-1)


def _log_normal(square: Tensor, variance: Tensor) -> Tensor:
    return -0.5 * (square / variance + (2 * math.pi * variance).log())


def _gains(chain: GaussianChain) -> Tensor:
    """The shares s divided by the weights, `(*batch, levels)`."""
    below, own = chain.variances[..., :-1], chain.variances[..., 1:]
    return own * chain.weights / (own * chain.weights**2 + below)


def _variance(chain: GaussianChain) -> Tensor:
    below, own = chain.variances[..., :-1], chain.variances[..., 1:]
    return 1 / (chain.weights**2 / below + 1 / own)


def _predict(chain: GaussianChain) -> Tensor:
    """The means of the prior, `(*batch, levels)`."""
    offsets, weights = chain.offsets.unbind(-1), chain.weights.unbind(-1)
    means = [offsets[-1]]
    for offset, weight in zip(offsets[-2::-1], weights[:0:-1], strict=True):
        means.insert(0, offset + weight * means[0])
    return _stack(means)


def _update(chain: GaussianChain, x: Tensor, loc: list[Tensor], level: int) -> Tensor:
    """The best mean of one level, given those beside it."""
    weight, gain = chain.weights[..., level], _gains(chain)[..., level]
    prior = chain.offsets[..., level]
    if level + 1 < len(loc):
        prior = prior + chain.weights[..., level + 1] * loc[level + 1]
    below = x if level == 0 else loc[level - 1] - chain.offsets[..., level - 1]
    return prior + gain * (below - weight * prior)


def _stack(levels: list[Tensor]) -> Tensor:
    return torch.stack(torch.broadcast_tensors(*levels), -1)


def _check(chain: GaussianChain, x: Tensor) -> None:
    """Raises a ValueError that names the part of a chain that does not fit."""
    levels = chain.weights.shape[-1]
    for name, part, size in (
        ("variances", chain.variances, levels + 1),
        ("offsets", chain.offsets, levels),
    ):
        if part.shape[-1:] != (size,):
            raise ValueError(
                f"{name} must be (*batch, {size}) for a chain of {levels} levels; got shape "
                f"{tuple(part.shape)}"
            )
    shapes = [part.shape[:-1] for part in chain] + [x.shape]
    try:
        torch.broadcast_shapes(*shapes)
    except RuntimeError:
        raise ValueError(
            "the batch shapes of weights, variances, offsets and x must go together; got "
            f"{[tuple(shape) for shape in shapes]}"
        ) from None
