"""The contracts of a weight network of mixture dynamics."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_seq.nn.weights import WeightNetwork
from pyro_seq.testing.contracts import assert_close, assert_finite, require, run_contracts

__all__ = ["WEIGHT_CONTRACTS", "WeightCase", "check_weights"]

BATCH, TIME = 3, 5


class WeightCase(NamedTuple):
    """A weight network and the sizes to try it with.

    Attributes:
        make: Returns a new network, called as ``make(obs, modes)``.
        obs: Size of the code.
        modes: Number of modes.
    """

    make: Callable[[int, int], WeightNetwork]
    obs: int
    modes: int


def check_weights(
    make: Callable[[int, int], WeightNetwork], *, obs: int = 2, modes: int = 3
) -> None:
    """Check that a weight network keeps every contract of :data:`WEIGHT_CONTRACTS`.

    Args:
        make: Returns a new network each time, called as ``make(obs, modes)``: a class, or a
            ``functools.partial`` of one with its options.
        obs: Size of the code.
        modes: Number of modes, at least 2.

    Raises:
        ContractError: At the first contract that is broken; the message names it.

    Example:
        >>> from pyro_seq.nn import LSTMWeights
        >>> from pyro_seq.testing import check_weights
        >>> check_weights(LSTMWeights)
    """
    run_contracts(WEIGHT_CONTRACTS, WeightCase(make, obs, modes), "The weight network")


def _made(case: WeightCase) -> tuple[WeightNetwork, Tensor]:
    """A network in evaluation mode and codes `(batch, time, obs)` to read."""
    network = case.make(case.obs, case.modes)
    require(
        isinstance(network, WeightNetwork),
        f"expected a pyro_seq.nn.WeightNetwork, got {type(network).__name__}.",
    )
    return network.eval(), torch.randn(BATCH, TIME, case.obs)


def _by_steps(network: WeightNetwork, codes: Tensor) -> Tensor:
    """Weights of all steps, one after the other."""
    state, weights = network.initial_state(len(codes)), []
    for code in codes.unbind(1):
        one, state = network.step(code, state)
        weights.append(one)
    return torch.stack(weights, 1)


def weights_are_on_the_simplex(case: WeightCase) -> None:
    """Weights are (batch, time, modes), none negative, and add up to 1."""
    network, codes = _made(case)
    weights = network.unroll(codes)
    wanted = (BATCH, TIME, case.modes)
    require(
        weights.shape == wanted,
        f"unroll: expected weights of shape {wanted}, got {tuple(weights.shape)}.",
    )
    assert_finite(weights, "unroll")
    require((weights >= 0).all(), f"a weight is negative: {float(weights.detach().min()):.3g}.")
    assert_close(weights.sum(-1), torch.ones(BATCH, TIME), "sum of the weights")


def steps_agree_with_unroll(case: WeightCase) -> None:
    """One step after the other gives the weights that one call for all steps gives."""
    network, codes = _made(case)
    assert_close(_by_steps(network, codes), network.unroll(codes), "weights by steps", 1e-4)


def nothing_is_remembered(case: WeightCase) -> None:
    """What a network remembers is in the state that it returns: calls leave no trace."""
    network, codes = _made(case)
    first = _by_steps(network, codes)
    network.unroll(codes.flip(0))
    _by_steps(network, codes.flip(1))
    assert_close(_by_steps(network, codes), first, "weights after other calls")


def sequences_have_their_own_weights(case: WeightCase) -> None:
    """A sequence alone has the weights that it has in its batch."""
    network, codes = _made(case)
    for weigh in (network.unroll, lambda part: _by_steps(network, part)):
        whole = weigh(codes)
        for i in range(BATCH):
            assert_close(weigh(codes[i : i + 1]), whole[i : i + 1], "weights of one alone", 1e-4)


def reads_codes_is_true(case: WeightCase) -> None:
    """The weights depend on the codes if ``reads_codes`` says so, and not otherwise."""
    network, codes = _made(case)
    codes.requires_grad_()
    weights = network.unroll(codes)
    gradient = None
    if weights.requires_grad:
        total = (weights * torch.randn_like(weights)).sum()
        (gradient,) = torch.autograd.grad(total, codes, allow_unused=True)
    reads = gradient is not None and bool((gradient != 0).any())
    require(
        reads == network.reads_codes,
        f"reads_codes is {network.reads_codes}, but the weights "
        f"{'depend' if reads else 'do not depend'} on the codes.",
    )


def every_weight_parameter_is_trained(case: WeightCase) -> None:
    """Every parameter has a dimension or more, and gets a finite gradient."""
    network, codes = _made(case)
    named = dict(network.named_parameters())
    for name, parameter in named.items():
        require(parameter.dim() > 0, f"parameter {name!r} is 0-dimensional; give it shape (1,).")
    if not named:
        return
    weights = network.unroll(codes)
    require(weights.requires_grad, "the weights depend on no parameter.")
    total = (weights * torch.randn_like(weights)).sum()
    grads = torch.autograd.grad(total, list(named.values()), allow_unused=True)
    for name, grad in zip(named, grads, strict=True):
        require(grad is not None, f"parameter {name!r} gets no gradient.")
        assert_finite(torch.as_tensor(grad), f"gradient of parameter {name!r}")


def double_weights_stay_double(case: WeightCase) -> None:
    """A network and codes in float64 give weights in float64."""
    network, codes = _made(case)
    network, codes = network.double(), codes.double()
    for name, weights in (
        ("unroll", network.unroll(codes)),
        ("step", _by_steps(network, codes)),
    ):
        require(weights.dtype == torch.float64, f"{name} returns {weights.dtype}.")


WEIGHT_CONTRACTS: tuple[Callable[[WeightCase], None], ...] = (
    weights_are_on_the_simplex,
    steps_agree_with_unroll,
    nothing_is_remembered,
    sequences_have_their_own_weights,
    reads_codes_is_true,
    every_weight_parameter_is_trained,
    double_weights_stay_double,
)
