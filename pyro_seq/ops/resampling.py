r"""Resampling of weighted particles; nothing waits for the device.

.. math:: \mathrm{ESS} = 1 \Big/ \sum_i w_i^2
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pyro_seq.ops.trees import map_tensors

__all__ = ["SCHEMES", "ancestors", "resampled"]

SCHEMES = ("systematic", "multinomial")


def resampled(
    tree: Any,  # noqa: ANN401
    log_weights: Tensor,
    observed: Tensor | None = None,
    *,
    below: float = 0.5,
    scheme: str = "systematic",
) -> tuple[Any, Tensor]:
    """Particles drawn anew by their weights where the effective sample size is low.

    Args:
        tree: Tensors `(particles, batch, ...)`.
        log_weights: Normalised, `(particles, batch)`.
        observed: Where particles may be drawn anew, bool `(batch,)`; None for everywhere.
        below: The fraction of the particles below which the effective sample size is low.
        scheme: One of :data:`SCHEMES`.

    Returns:
        The tree of the new particles, and their log weights, equal where they were drawn.

    Raises:
        ValueError: When a tensor does not begin with the shape of the weights.
    """
    count = log_weights.shape[0]
    known = log_weights.detach()
    low = (2 * known).logsumexp(0) > -math.log(below * count)
    if observed is not None:
        low = low & observed
    kept = torch.arange(count, device=known.device).unsqueeze(1)
    index = torch.where(low, ancestors(known, scheme), kept)
    equal = torch.full_like(known, -math.log(count))
    return map_tensors(lambda part: _gather(part, index), tree), torch.where(
        low, equal, log_weights
    )


def ancestors(log_weights: Tensor, scheme: str = "systematic") -> Tensor:
    """Draws particles by their weights, as many as there are.

    Args:
        log_weights: `(particles, batch)`, normalised or not.
        scheme: `"systematic"` (the number of each is its expectation rounded up or down) or
            `"multinomial"` (independent draws).

    Returns:
        Indices into the particles, `(particles, batch)`.
    """
    count = log_weights.shape[0]
    if scheme == "systematic":
        grid = torch.arange(count, device=log_weights.device, dtype=log_weights.dtype)
        points = (grid.unsqueeze(1) + torch.rand_like(log_weights[:1])) / count
    else:
        points = torch.rand_like(log_weights)
    total = log_weights.softmax(0).cumsum(0)
    found = torch.searchsorted(
        (total / total[-1:]).T.contiguous(), points.T.contiguous(), right=True
    )
    return found.T.clamp(max=count - 1)


def _gather(part: Tensor, index: Tensor) -> Tensor:
    """The tensors of other particles, `(particles, batch, ...)`."""
    if part.shape[:2] != index.shape:
        raise ValueError(
            "every tensor of a state must begin with the batch shape, (particles, batch) = "
            f"{tuple(index.shape)}; got shape {tuple(part.shape)}"
        )
    index = index.reshape(*index.shape, *(1,) * (part.dim() - 2))
    return part.gather(0, index.expand_as(part))
