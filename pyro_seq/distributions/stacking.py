"""Distributions of the same family side by side as one."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Hashable, Sequence
from typing import Any, cast

import pyro.distributions as dist
import torch

from pyro_seq.distributions.parameters import PREFERRED, PriorWhere

__all__ = ["stack_distributions", "stack_pairs"]


def stack_distributions(distributions: Sequence[Any]) -> Any:  # noqa: ANN401
    """Distributions as one with a new first batch dimension, or None if they do not go together.

    Args:
        distributions: One or more. They go together if they have one family, whose parameters are
            all that defines it, and one shape; ``to_event`` around it is seen through.

    Example:
        >>> steps = [dist.Normal(torch.zeros(2), 1.0).to_event(1) for _ in range(5)]
        >>> stack_distributions(steps).batch_shape
        torch.Size([5])
    """
    first = distributions[0]
    family = type(first)
    if any(type(d) is not family or d.batch_shape != first.batch_shape for d in distributions):
        return None
    if family is dist.Independent:
        ranks = {d.reinterpreted_batch_ndims for d in distributions}
        inner = stack_distributions([d.base_dist for d in distributions])
        return None if inner is None or len(ranks) > 1 else inner.to_event(ranks.pop())
    names = _parameters(cast(Hashable, family))
    columns = [[getattr(d, name) for d in distributions] for name in names]
    if not names or any(part.shape != column[0].shape for column in columns for part in column):
        return None
    values = [torch.stack(column) for column in columns]
    return family(**dict(zip(names, values, strict=True)), validate_args=False)


def stack_pairs(posteriors: Sequence[Any], priors: Sequence[Any]) -> tuple[Any, Any] | None:
    """Posteriors as one and priors as one, or None; what q has of its own prior it keeps."""
    prior = stack_distributions(priors)
    if prior is None:
        return None
    if all(
        isinstance(q, PriorWhere) and q.component1 is p
        for q, p in zip(posteriors, priors, strict=True)
    ):
        inner = stack_distributions([q.component0 for q in posteriors])
        missing = torch.stack([q.missing for q in posteriors])
        return None if inner is None else (PriorWhere(missing, inner, prior), prior)
    posterior = stack_distributions(posteriors)
    return None if posterior is None else (posterior, prior)


@functools.cache
def _parameters(family: Any) -> tuple[str, ...]:  # noqa: ANN401
    """Names of the parameters of a family, or none if there is more that defines a member."""
    known = family.arg_constraints
    arguments = set(inspect.signature(family).parameters) - {"validate_args"}
    if not isinstance(known, dict) or arguments != set(known):
        return ()
    names: list[str] = [*known]
    return tuple(dict.fromkeys(PREFERRED.get(name, name) for name in names))
