"""What the contracts share: how a contract is run, and what it says when it is broken."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import pyro
import torch
from pyro.poutine import Trace
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_seq.ops.trees import leaves

__all__ = [
    "ContractError",
    "assert_close",
    "assert_same",
    "example_mask",
    "isolated",
    "log_probs",
    "run_contracts",
    "weighted_sum",
]

Case = TypeVar("Case")


class ContractError(AssertionError):
    """A part does not keep a contract; the message names the part, the contract and the fact."""


@contextmanager
def isolated(seed: int = 0, *, local: bool = True) -> Iterator[None]:
    """Run with a seed, an empty parameter store and validation, and restore all three.

    Args:
        seed: Seed of torch, NumPy and Python.
        local: Whether modules keep their parameters to themselves (Pyro's setting
            ``module_local_params``) or share them through the global store.
    """
    state = pyro.util.get_rng_state()
    settings = pyro.settings.context(module_local_params=local)
    with pyro.get_param_store().scope(), settings, pyro.validation_enabled(True):
        pyro.set_rng_seed(seed)
        try:
            yield
        finally:
            pyro.util.set_rng_state(state)


def run_contracts(contracts: Sequence[Callable[[Case], None]], case: Case, subject: str) -> None:
    """Run each contract by itself.

    Args:
        contracts: Functions that raise when the case breaks them.
        case: What they are given.
        subject: Name of the part, for the message.

    Raises:
        ContractError: At the first contract that is broken, also when the part itself raised.
    """
    for contract in contracts:
        try:
            with isolated():
                contract(case)
        except Exception as error:
            law = (contract.__doc__ or "").strip().splitlines()[0]
            cause = "" if isinstance(error, ContractError) else f"{type(error).__name__}: "
            raise ContractError(
                f"{subject} breaks the contract {contract.__name__!r} ({law}) {cause}{error}"
            ) from error


def require(condition: bool | Tensor, message: str) -> None:
    """Raise a ContractError with the message unless the condition holds."""
    if not condition:
        raise ContractError(message)


def assert_close(found: Tensor, expected: Tensor, what: str, tolerance: float = 1e-5) -> None:
    """Raise a ContractError unless two tensors agree in shape and value.

    Args:
        found: The tensor to judge; NaN never agrees.
        expected: What it should be.
        what: Names the quantity in the message.
        tolerance: Relative to the largest entry of ``expected``, at least absolute.
    """
    require(
        found.shape == expected.shape,
        f"{what}: expected shape {tuple(expected.shape)}, got {tuple(found.shape)}.",
    )
    if not found.numel():
        return
    if expected.dtype == torch.bool:
        found, expected = found.int(), expected.int()
    bound = tolerance * max(1.0, float(expected.detach().abs().max()))
    error = (found - expected).detach().abs().max()
    require(bool(error <= bound), f"{what}: differs by {float(error):.3g}, allowed {bound:.3g}.")


def assert_same(found: Any, expected: Any, what: str, tolerance: float = 1e-5) -> None:  # noqa: ANN401
    """Raise a ContractError unless two trees of tensors, such as states, agree."""
    require(type(found) is type(expected), f"{what}: a {type(found).__name__}.")
    pairs = [[*leaves(found)], [*leaves(expected)]]
    require(len(pairs[0]) == len(pairs[1]), f"{what}: other parts.")
    for one, other in zip(*pairs, strict=True):
        assert_close(one, other, what, tolerance)


def weighted_sum(*trees: Any) -> Tensor:  # noqa: ANN401
    """A number to which every floating-point tensor contributes with weights of its own."""
    parts = [p for p in leaves(trees) if p.is_floating_point()]
    generator = torch.Generator().manual_seed(1)
    weights = (torch.randn(p.shape, generator=generator).to(p) for p in parts)
    return torch.stack([(p * w).sum() for p, w in zip(parts, weights, strict=True)]).sum()


def assert_finite(value: Tensor, what: str) -> None:
    """Raise a ContractError if a tensor holds NaN or infinity."""
    require(value.isfinite().all(), f"{what} holds NaN or infinity.")


def log_probs(trace: Trace) -> dict[str, Tensor]:
    """Return the log density of each sample site of a trace, by name, plates left out."""
    trace.compute_log_prob()
    sites = trace.nodes.items()
    return {
        name: site["log_prob"]
        for name, site in sites
        if site["type"] == "sample" and not site_is_subsample(site)
    }


def latents(trace: Trace) -> dict[str, Tensor]:
    """Return the value of each sample site that is not observed, by name, plates left out."""
    sites: dict[str, Any] = {name: trace.nodes[name] for name in trace.stochastic_nodes}
    return {name: s["value"] for name, s in sites.items() if not site_is_subsample(s)}


def example_mask(batch: int, time: int) -> Tensor:
    """Return a mask with a hole in each sequence, the first step too, and a short last sequence.

    Args:
        batch: Number of sequences.
        time: Number of steps, at least 2.

    Returns:
        Bool tensor (batch, time), True where observed; every row has both.

    Raises:
        ValueError: If there are fewer than two steps.
    """
    if time < 2:
        raise ValueError(f"time: expected at least 2 steps to leave one out, got {time}.")
    mask = torch.ones(batch, time, dtype=torch.bool)
    mask[torch.arange(batch), torch.arange(batch) % time] = False
    mask[-1] = torch.arange(time) < max(1, time // 2)
    return mask
