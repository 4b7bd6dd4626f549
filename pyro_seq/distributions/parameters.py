"""Distributions as vectors of free parameters, and back."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Hashable
from typing import Any, cast

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import ExpandedDistribution
from torch import Size, Tensor
from torch.distributions import (
    Distribution,
    Transform,
    biject_to,
    kl_divergence,
    register_kl,
    transform_to,
)

__all__ = [
    "PREFERRED",
    "PriorWhere",
    "divergence",
    "free_parameters",
    "is_location",
    "is_represented",
    "is_unbounded",
    "parameter_names",
    "prior_where",
    "with_parameters",
]

Parameters = dict[str, Tensor]

# One parametrisation of a family that has several; what is fixed stays as it is in the prior.
PREFERRED: dict[str, str] = {
    "covariance_matrix": "scale_tril",
    "precision_matrix": "scale_tril",
    "probs": "logits",
}
_FIXED = ("temperature",)
_LOCATIONS = ("loc", "logits")
_EXP = dist.transforms.ExpTransform()
# A point; a support without a bijection onto it (in newer versions of torch).
_EXCLUDED = (dist.Delta, getattr(torch.distributions, "GeneralizedPareto", dist.Delta))
_WRAPPERS = (dist.Independent, dist.MaskedDistribution, ExpandedDistribution)


def free_parameters(distribution: Distribution) -> Parameters:
    r"""Unconstrained parameters of a reparametrised distribution.

    .. math:: \lambda_i = T_i^{-1}(\theta_i)

    with :math:`T_i` the bijection of Pyro and torch onto the constraint of parameter i: the
    logarithm of a scale or concentration, a location as it is. A family whose support moves with
    its parameters (Uniform, Pareto) is represented by a normal distribution carried onto the
    support, :math:`z = T(\lambda_{loc} + e^{\lambda_{scale}} \varepsilon)`, from 0 and 1.

    Args:
        distribution: Any with ``has_rsample``; ``to_event``, ``mask``, ``expand`` and transforms
            around it are seen through.

    Returns:
        Parameters by name, each `(*batch, size)`.

    Raises:
        ValueError: For a distribution that is not reparametrised, or a point mass.

    Example:
        >>> free_parameters(dist.Gamma(torch.ones(3), torch.ones(3)).to_event(1))["rate"]
        tensor([0., 0., 0.])
    """
    core, inner = _core(distribution)
    batch = distribution.batch_shape
    _check_core(core)
    if _moves_support(core):
        zeros = torch.zeros(_unconstrained(core, inner), device=_device(core)).reshape(*batch, -1)
        return {"loc": zeros, "scale": torch.zeros_like(zeros)}
    return {name: _free(core, inner, name).reshape(*batch, -1) for name in _names(core)}


def parameter_names(distribution: Distribution) -> tuple[str, ...]:
    """Names of the free parameters, in order."""
    core, _ = _core(distribution)
    return ("loc", "scale") if _moves_support(core) else _names(core)


def with_parameters(prior: Any, parameters: Parameters) -> Any:  # noqa: ANN401
    """The distribution of the prior's family that has these unconstrained parameters.

    Args:
        prior: The distribution that gives the form: its family, shapes, transforms and whatever
            is no free parameter.
        parameters: As :func:`free_parameters` returns for it, with other values.

    Returns:
        A distribution of the prior's shapes; one that is masked counts where the prior does.
    """
    if isinstance(prior, dist.Independent):
        inner = with_parameters(prior.base_dist, parameters)
        return inner.to_event(prior.reinterpreted_batch_ndims)
    if isinstance(prior, dist.MaskedDistribution):
        return with_parameters(prior.base_dist, parameters).mask(prior._mask)
    if _is_plain_transformed(prior):
        base = with_parameters(prior.base_dist, parameters)
        if isinstance(prior, dist.FoldedDistribution):
            return dist.FoldedDistribution(base, validate_args=False)
        return dist.TransformedDistribution(base, prior.transforms, validate_args=False)
    core, inner = _core(prior)
    if _moves_support(core):
        return _carried(core, inner, parameters)
    values = {}
    for name in _names(core):
        shape = (*inner, *_event(core, name))
        values[name] = _bijection(core, name)(parameters[name].reshape(shape))
    values |= {name: getattr(core, name) for name in _FIXED if hasattr(core, name)}
    return type(core)(**values, **_unvalidated(cast(Hashable, type(core))))


def is_location(distribution: Distribution, name: str) -> bool:
    """Whether a free parameter is a location; in a family without any, each counts as one."""
    names = parameter_names(distribution)
    return name in _LOCATIONS or not set(_LOCATIONS).intersection(names)


def is_unbounded(distribution: Distribution, name: str) -> bool:
    """Whether a free parameter is used as it is; any other may overflow in an exponential."""
    core, _ = _core(distribution)
    if _moves_support(core):
        return name == "loc"
    constraint = core.arg_constraints[name]
    return getattr(constraint, "base_constraint", constraint) is constraints.real


def is_represented(distribution: Distribution) -> bool:
    """Whether :func:`with_parameters` makes the distribution itself of its free parameters."""
    core, _ = _core(distribution)
    return not _moves_support(core)


def divergence(
    posterior: Distribution, prior: Distribution, value: Tensor, analytic: bool = True
) -> Tensor:
    r""":math:`KL(q \| p)` where a closed form is registered, else :math:`\log q(z) - \log p(z)`.

    Args:
        posterior: q.
        prior: p.
        value: A draw z of q.
        analytic: Whether to use a closed form.

    Returns:
        `(*batch)`, nats.
    """
    if analytic:
        try:
            return kl_divergence(posterior, prior)
        except NotImplementedError:
            pass
    return posterior.log_prob(value) - prior.log_prob(value)


class PriorWhere(dist.MaskedMixture):
    r"""The prior where nothing was observed, the posterior elsewhere.

    .. math:: q'(z) = p(z) \text{ where missing, } q(z) \text{ elsewhere}

    Its divergence from the prior is zero where the prior stands.

    Args:
        missing: bool, of the batch shape.
        posterior: q.
        prior: p, of the same shapes.

    Example:
        >>> p, q = dist.Normal(torch.zeros(2), 1.0), dist.Normal(torch.ones(2), 1.0)
        >>> kl_divergence(PriorWhere(torch.tensor([True, False]), q, p), p)
        tensor([0.0000, 0.5000])
    """

    def __init__(self, missing: Tensor, posterior: Any, prior: Any) -> None:  # noqa: ANN401
        super().__init__(missing, posterior, prior, validate_args=False)
        self.missing = missing.expand(self.batch_shape)

    def expand(self, batch_shape: Any, _instance: Any = None) -> PriorWhere:  # noqa: ANN401
        """The same, expanded part by part."""
        if Size(batch_shape) == self.batch_shape:
            return self
        parts = (part.expand(batch_shape) for part in (self.component0, self.component1))
        return PriorWhere(self.missing.expand(batch_shape), *parts)


def prior_where(missing: Tensor | None, posterior: Any, prior: Any) -> Any:  # noqa: ANN401
    """:class:`PriorWhere`, or the posterior if everything was observed (missing is None)."""
    return posterior if missing is None else PriorWhere(missing, posterior, prior)


@register_kl(PriorWhere, Distribution)
def _kl_prior_where(posterior: PriorWhere, prior: Any) -> Tensor:  # noqa: ANN401
    other = kl_divergence(posterior.component0, prior)
    same = posterior.component1 is prior
    chosen = torch.zeros_like(other) if same else kl_divergence(posterior.component1, prior)
    return torch.where(posterior.missing, chosen, other)


def _core(distribution: Any) -> tuple[Any, Size]:  # noqa: ANN401
    """The distribution that holds the parameters, and the batch shape that they are to have."""
    inner = distribution.batch_shape
    while isinstance(distribution, _WRAPPERS) or _is_plain_transformed(distribution):
        expanded = isinstance(distribution, ExpandedDistribution)
        distribution = distribution.base_dist
        inner = inner if expanded else distribution.batch_shape
    return distribution, inner


def _check_core(core: Any) -> None:  # noqa: ANN401
    known = bool(core.arg_constraints) or _moves_support(core)
    if isinstance(core, _EXCLUDED) or not getattr(core, "has_rsample", False) or not known:
        raise ValueError(
            "expected a continuous distribution that is reparametrised (has_rsample); got "
            f"{type(core).__name__}"
        )


def _is_plain_transformed(distribution: Any) -> bool:  # noqa: ANN401
    """Whether it is transforms around a base that holds all parameters."""
    transformed = isinstance(distribution, torch.distributions.TransformedDistribution)
    return transformed and not distribution.arg_constraints


def _names(core: Any) -> tuple[str, ...]:  # noqa: ANN401
    names = [PREFERRED.get(name, name) for name in core.arg_constraints if name not in _FIXED]
    return tuple(dict.fromkeys(names))


def _bijection(core: Any, name: str) -> Transform:  # noqa: ANN401
    """From the real line onto the values that a parameter may have."""
    constraint = core.arg_constraints[name]
    if constraint in (constraints.positive, constraints.nonnegative):
        return _EXP
    if constraint is constraints.lower_triangular:
        constraint = constraints.lower_cholesky
    registry = transform_to if constraint is constraints.lower_cholesky else biject_to
    try:
        return registry(constraint)
    except NotImplementedError:
        raise ValueError(
            f"expected parameters with a bijection from the real line; got {type(core).__name__} "
            f"with {name} in {constraint}"
        ) from None


@functools.cache
def _unvalidated(family: Any) -> dict[str, bool]:  # noqa: ANN401
    """The argument that switches validation off, for a family that has it."""
    has = "validate_args" in inspect.signature(family).parameters
    return {"validate_args": False} if has else {}


def _event(core: Any, name: str) -> Size:  # noqa: ANN401
    return getattr(core, name).shape[len(core.batch_shape) :]


def _free(core: Any, inner: Size, name: str) -> Tensor:  # noqa: ANN401
    value = getattr(core, name)
    if inner != core.batch_shape:
        value = value.expand((*inner, *_event(core, name)))
    return _bijection(core, name).inv(value)


def _moves_support(core: Any) -> bool:  # noqa: ANN401
    """Whether the support depends on the parameters, so that another member has another one."""
    return isinstance(type(core).support, constraints.dependent_property)


def _unconstrained(core: Any, inner: Size) -> Size:  # noqa: ANN401
    return biject_to(core.support).inverse_shape((*inner, *core.event_shape))


def _device(core: Any) -> torch.device:  # noqa: ANN401
    values = (getattr(core, name, None) for name in core.arg_constraints)
    return next((v.device for v in values if isinstance(v, Tensor)), torch.device("cpu"))


def _carried(core: Any, inner: Size, parameters: Parameters) -> Any:  # noqa: ANN401
    """A normal distribution on the real line, carried onto the support."""
    shape = _unconstrained(core, inner)
    loc, scale = (parameters[name].reshape(shape) for name in ("loc", "scale"))
    base = dist.Normal(loc, scale.exp(), validate_args=False).to_event(len(shape) - len(inner))
    return dist.TransformedDistribution(base, [biject_to(core.support)], validate_args=False)
