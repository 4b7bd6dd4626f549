"""The contracts of a distribution."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import NamedTuple

import pyro
import torch
from pyro.distributions import ExpandedDistribution, TorchDistribution
from torch import Tensor

from pyro_seq.testing.contracts import (
    assert_close,
    assert_finite,
    require,
    run_contracts,
)

__all__ = ["DISTRIBUTION_CONTRACTS", "DistributionCase", "check_distribution"]


class DistributionCase(NamedTuple):
    """A family of distributions and parameters to try it at.

    Attributes:
        make: Returns the distribution of the parameters.
        parameters: Tensors in float64.
    """

    make: Callable[..., TorchDistribution]
    parameters: tuple[Tensor, ...]

    def at(self, dtype: torch.dtype = torch.float64) -> TorchDistribution:
        """Return the distribution at fresh copies of the parameters in a dtype."""
        return self.make(*(p.detach().to(dtype) for p in self.parameters))

    def with_leaves(self) -> tuple[TorchDistribution, tuple[Tensor, ...]]:
        """Return the distribution and the leaf tensors that it is a function of."""
        leaves = tuple(p.detach().clone().requires_grad_() for p in self.parameters)
        return self.make(*leaves), leaves


def check_distribution(
    make: Callable[..., TorchDistribution], parameters: Sequence[Tensor]
) -> None:
    """Check that a distribution keeps every contract of :data:`DISTRIBUTION_CONTRACTS`.

    Args:
        make: Returns the distribution, given the parameters; whatever else it needs it brings.
        parameters: Differentiable parameters, floating point. They should give the distribution
            a batch of two or more, and few enough coordinates for thousands of samples.

    Raises:
        ContractError: At the first contract that is broken; the message names it.

    Example:
        >>> import torch, pyro.distributions as dist
        >>> from pyro_seq.testing import check_distribution
        >>> check_distribution(
        ...     lambda loc, scale: dist.Normal(loc, scale).to_event(1),
        ...     (torch.zeros(2, 3), torch.ones(3)),
        ... )
    """
    case = DistributionCase(make, tuple(p.detach().double() for p in parameters))
    run_contracts(DISTRIBUTION_CONTRACTS, case, "The distribution")


def shapes_follow_torch(case: DistributionCase) -> None:
    """Samples are (*sample, *batch, *event), log densities (*sample, *batch), all finite."""
    made, _ = case.with_leaves()
    require(made.event_dim == len(made.event_shape), "event_dim is not the length of event_shape.")
    for shape in ((), (3,), (2, 1)):
        value = made.sample(torch.Size(shape))
        expected = shape + made.batch_shape + made.event_shape
        require(
            value.shape == expected,
            f"sample({shape}): expected shape {tuple(expected)}, got {tuple(value.shape)}.",
        )
        require(not value.requires_grad, "sample() keeps a gradient; only rsample() may.")
        density = made.log_prob(value)
        expected = shape + made.batch_shape
        require(
            density.shape == expected,
            f"log_prob of sample({shape}): expected shape {tuple(expected)}, "
            f"got {tuple(density.shape)}.",
        )
        assert_finite(density, "log_prob of a sample")


def samples_are_scored_one_by_one(case: DistributionCase) -> None:
    """The log density of many samples at once is that of each by itself."""
    made = case.at()
    value = made.sample(torch.Size((3,)))
    together = made.log_prob(value)
    for i in range(3):
        assert_close(made.log_prob(value[i]), together[i], f"log_prob of sample {i}", 1e-9)


def batch_elements_are_independent(case: DistributionCase) -> None:
    """The log density of one element of the batch depends on no other element's value."""
    made = case.at()
    value = made.sample()
    if not value.is_floating_point():
        return
    value.requires_grad_()
    flat = made.log_prob(value).reshape(-1)
    for i in range(flat.numel()):
        (grad,) = torch.autograd.grad(flat[i], value, retain_graph=True)
        by_element = grad.reshape(flat.numel(), -1).abs().sum(-1)
        others = torch.arange(flat.numel()) != i
        require(
            not by_element[others].any(),
            f"log_prob of batch element {i} depends on the value of another element.",
        )


def expand_repeats(case: DistributionCase) -> None:
    """``expand`` gives the new batch shape and the same log density, and samples each anew."""
    made = case.at()
    shape = torch.Size((2, 3)) + made.batch_shape
    wide = made.expand(shape)
    require(
        isinstance(wide, (type(made), ExpandedDistribution)),
        f"expand returns a {type(wide).__name__}.",
    )
    require(
        wide.batch_shape == shape and wide.event_shape == made.event_shape,
        f"expand({tuple(shape)}) has batch_shape {tuple(wide.batch_shape)} and event_shape "
        f"{tuple(wide.event_shape)}.",
    )
    drawn = wide.sample(torch.Size((9,)))
    expected = (9, *shape, *made.event_shape)
    require(drawn.shape == expected, f"after expand, samples have shape {tuple(drawn.shape)}.")
    require(
        not torch.equal(drawn[:, 0], drawn[:, 1]),
        "expand repeats one sample along its new dimension; it must draw each anew.",
    )
    value = made.sample()
    density = made.log_prob(value).expand(shape)
    assert_close(wide.log_prob(value), density, "log_prob after expand", 1e-9)
    twice = made.expand(shape[1:]).expand(shape)
    assert_close(twice.log_prob(value), density, "log_prob after expanding twice", 1e-9)


def gradients_reach_every_parameter(case: DistributionCase) -> None:
    """``log_prob`` and ``rsample``, if there is one, have finite gradients for the parameters."""
    made, leaves = case.with_leaves()
    results = {"log_prob": made.log_prob(made.sample()).sum()}
    if made.has_rsample:
        results["rsample"] = made.rsample().sum()
    for name, result in results.items():
        require(result.requires_grad, f"{name} has no gradient.")
        grads = torch.autograd.grad(result, leaves, allow_unused=True, retain_graph=True)
        for i, grad in enumerate(grads):
            if grad is not None:
                assert_finite(grad, f"the gradient of {name} for parameter {i}")
            require(
                grad is not None or name == "rsample",
                f"parameter {i} gets no gradient from {name}.",
            )
        require(any(g is not None for g in grads), f"no parameter gets a gradient from {name}.")


def samples_agree_with_the_density(case: DistributionCase) -> None:
    """The score, the gradient of log_prob for a parameter, averages to zero over samples.

    Twenty groups of 100 samples; an average more than seven standard errors from zero is judged
    wrong. It holds for densities whose support does not depend on the parameters.
    """
    made, leaves = case.with_leaves()
    scores = []
    for _ in range(20):
        total = made.log_prob(made.sample(torch.Size((100,)))).sum()
        grads = torch.autograd.grad(total, leaves, retain_graph=True)
        scores.append(torch.cat([g.reshape(-1) for g in grads]))
    score = torch.stack(scores)
    error = score.std(0) / len(scores) ** 0.5
    off = score.mean(0).abs() / error.clamp(min=1e-9)
    require(
        bool((off < 7).all()),
        f"the average score is {float(off.max()):.1f} standard errors from zero: sample() and "
        "log_prob() are of different distributions.",
    )


def dtype_follows_the_parameters(case: DistributionCase) -> None:
    """Float32 parameters give float32, float64 give float64, and the two agree."""
    double, single = case.at(), case.at(torch.float32)
    value = double.sample()
    for made, dtype in ((double, torch.float64), (single, torch.float32)):
        require(made.sample().dtype == dtype, f"a sample has dtype {made.sample().dtype}.")
        density = made.log_prob(value.to(dtype))
        require(density.dtype == dtype, f"log_prob has dtype {density.dtype}, not {dtype}.")
        assert_close(density.double(), double.log_prob(value), f"log_prob in {dtype}", 1e-3)


def copies_agree(case: DistributionCase) -> None:
    """A deep copy and a pickled copy have the log density of the original."""
    made = case.at()
    value = made.sample()
    for other in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert_close(other.log_prob(value), made.log_prob(value), "log_prob of a copy", 1e-12)


def wrong_event_shapes_are_refused(case: DistributionCase) -> None:
    """A value whose event shape is wrong raises ValueError."""
    made = case.at()
    value = made.sample()
    for dim in range(-made.event_dim, 0):
        longer = torch.cat([value, value.narrow(dim, 0, 1)], dim)
        try:
            made.log_prob(longer)
        except ValueError:
            continue
        require(
            False,
            f"log_prob accepts shape {tuple(longer.shape)} where events have the shape "
            f"{tuple(made.event_shape)}.",
        )


def works_as_a_sample_site(case: DistributionCase) -> None:
    """Inside plates of its batch shape it can be sampled, observed and masked."""
    made = case.at()

    def model(value: Tensor | None = None) -> Tensor:
        with ExitStack() as plates:
            for i, size in enumerate(reversed(made.batch_shape)):
                plates.enter_context(pyro.plate(f"plate_{i}", size, dim=-1 - i))
            return pyro.sample("value", made, obs=value)

    value = model()
    trace = pyro.poutine.trace(model).get_trace(value)
    total = torch.as_tensor(trace.log_prob_sum())
    assert_close(total, made.log_prob(value).sum(), "log density of the site", 1e-9)
    hidden = pyro.poutine.trace(pyro.poutine.mask(model, mask=False)).get_trace(value)
    require(bool(hidden.log_prob_sum() == 0), "poutine.mask does not remove its log density.")


DISTRIBUTION_CONTRACTS: tuple[Callable[[DistributionCase], None], ...] = (
    shapes_follow_torch,
    samples_are_scored_one_by_one,
    batch_elements_are_independent,
    expand_repeats,
    gradients_reach_every_parameter,
    samples_agree_with_the_density,
    dtype_follows_the_parameters,
    copies_agree,
    wrong_event_shapes_are_refused,
    works_as_a_sample_site,
)
