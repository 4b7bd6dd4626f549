"""The contracts of a memory."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Size, Tensor

from pyro_seq.memory import Context, Memory
from pyro_seq.ops.trees import leaves, map_tensors, stack
from pyro_seq.testing.contracts import (
    assert_finite,
    assert_same,
    example_mask,
    require,
    run_contracts,
    weighted_sum,
)

__all__ = ["MEMORY_CONTRACTS", "MemoryCase", "check_memory"]

BATCH, TIME = 3, 5
LONG = 200
EXTREME = 1e4


class MemoryCase(NamedTuple):
    """A memory to try.

    Attributes:
        make: Returns a new memory each time. One that wraps, or has slots enough for 200 steps.
    """

    make: Callable[[], Memory]


class Replay(NamedTuple):
    """Arguments of a memory's `forward`."""

    z: Tensor
    controls: Tensor | None
    mask: Tensor | None
    features: Tensor | None


def check_memory(make: Callable[[], Memory]) -> None:
    """Check that a memory keeps every contract of :data:`MEMORY_CONTRACTS`.

    Args:
        make: Returns a new memory each time: small, and either one that wraps or one with slots
            enough for 200 steps.

    Raises:
        ContractError: At the first contract that is broken; the message names it.

    Example:
        >>> from pyro_seq.memory import LRU
        >>> from pyro_seq.testing import check_memory
        >>> check_memory(lambda: LRU(latent=2, slots=4, heads=1, hidden=5))
    """
    run_contracts(MEMORY_CONTRACTS, MemoryCase(make), "The memory")


def _made(case: MemoryCase, *batch: int, time: int = TIME) -> tuple[Memory, Replay]:
    """A memory and inputs `(*batch, time, ...)` for it."""
    memory = case.make()
    require(
        isinstance(memory, Memory),
        f"expected a pyro_seq.memory.Memory, got {type(memory).__name__}.",
    )
    shape = (*(batch or (BATCH,)), time)
    z, controls, features = (
        torch.randn(*shape, size) if size else None
        for size in (memory.latent, memory.controls, memory.frame_features)
    )
    return memory.eval(), Replay(torch.as_tensor(z), controls, None, features)


def _part(inputs: Replay, take: Callable[[Tensor], Tensor]) -> Replay:
    """The inputs with a function applied to each."""
    return map_tensors(take, inputs)


def _scaled(inputs: Replay, scale: float) -> Replay:
    """The inputs times a number."""
    return _part(inputs, lambda part: scale * part)


def _alone(tree: Any, number: int, steps: Tensor | None = None) -> Any:  # noqa: ANN401
    """One sequence of a tree, as a batch of one; of the inputs perhaps some steps alone."""
    if steps is None:
        return map_tensors(lambda part: part[number : number + 1], tree)
    return map_tensors(lambda part: part[number : number + 1, steps], tree)


def _by_steps(memory: Memory, inputs: Replay, state: Any) -> Iterator[tuple[Context, Any]]:  # noqa: ANN401
    """Context and state after each step, one after the other."""
    for number in range(inputs.z.shape[-2]):
        at: list[Any] = [
            None if part is None else part[..., number, :]
            for part in (inputs.z, inputs.controls, inputs.features)
        ]
        context, state = memory.step(state, *at)
        yield context, state


def sizes_are_as_announced(case: MemoryCase) -> None:
    """Context and state have the shapes that the memory's attributes say, the batch first."""
    for batch in ((), (BATCH,), (2, BATCH)):
        memory, inputs = _made(case, *(batch or (1,)), time=1)
        before = memory.initial_state(Size(batch))
        for part in leaves(before):
            begins = part.shape[: len(batch)] == batch
            require(begins, f"a tensor of the state has shape {tuple(part.shape)}, not {batch}.")
        if batch:
            _check_sizes(memory, batch, *next(_by_steps(memory, inputs, before)), before)


def _check_sizes(
    memory: Memory,
    batch: tuple[int, ...],
    context: Context,
    state: Any,  # noqa: ANN401
    before: Any,  # noqa: ANN401
) -> None:
    """Raise a ContractError unless context and state have the shapes of the memory."""
    found = [tuple(part.shape) for part in context]
    sizes = ((memory.context,), (memory.reads,), (memory.heads, memory.slots))
    wanted = [(*batch, *size) for size in sizes]
    require(found == wanted, f"expected features, reads, weights {wanted}, got {found}.")
    for one, other in zip(leaves(state), leaves(before), strict=True):
        require(
            one.shape == other.shape and one.dtype == other.dtype,
            f"a tensor of the state was {tuple(other.shape)}, {other.dtype}, and is "
            f"{tuple(one.shape)}, {one.dtype} after a step.",
        )


def weights_are_bounded(case: MemoryCase) -> None:
    """Read weights are not negative, and those of a head add up to 1 at most."""
    for scale in (1.0, 30.0):
        memory, inputs = _made(case, time=40)
        context, _ = memory(*_scaled(inputs, scale))
        assert_finite(context.weights, "read weights")
        weights = context.weights.detach()
        if weights.numel():
            least, most = weights.min(), weights.sum(-1).max()
            require(least >= -1e-6, f"a read weight is negative: {float(least):.3g}.")
            require(most <= 1 + 1e-5, f"the weights of a head add up to {float(most):.6g}.")


def steps_agree_with_forward(case: MemoryCase) -> None:
    """One step after the other gives what one call for all steps gives."""
    memory, inputs = _made(case)
    context, state = memory(*inputs)
    steps = list(_by_steps(memory, inputs, memory.initial_state(Size((BATCH,)))))
    joined = stack([one for one, _ in steps])
    assert_same(joined, map_tensors(lambda p: p.transpose(0, 1), context), "context by steps")
    assert_same(steps[-1][1], state, "state by steps")


def nothing_is_remembered(case: MemoryCase) -> None:
    """What a memory remembers is in the state; a step changes neither itself nor its input."""
    memory, inputs = _made(case)
    first = memory(*inputs)
    buffers = copy.deepcopy(dict(memory.named_buffers()))
    _, state = memory(*_part(inputs, lambda p: p.flip(0)))
    saved = map_tensors(torch.clone, state)
    list(_by_steps(memory, inputs, state))
    assert_same(state, saved, "the state given, after a step", 0.0)
    assert_same(memory(*inputs), first, "a replay after other calls", 0.0)
    assert_same(dict(memory.named_buffers()), buffers, "buffers", 0.0)


def states_can_be_saved(case: MemoryCase) -> None:
    """A replay from a state saved half-way goes on as the whole one does."""
    memory, inputs = _made(case)
    whole, end = memory(*inputs)
    _, state = memory(*_part(inputs, lambda p: p[:, :2]))
    file = io.BytesIO()
    torch.save(tuple(leaves(state)), file)
    file.seek(0)
    saved = iter(torch.load(file))
    memory(*_scaled(inputs, -1.0))
    state = map_tensors(lambda _: next(saved), state)
    rest, after = memory(*_part(inputs, lambda p: p[:, 2:]), state=state)
    assert_same(rest, map_tensors(lambda p: p[:, 2:], whole), "context after a saved state")
    assert_same(after, end, "state after a saved state")


def sequences_are_independent(case: MemoryCase) -> None:
    """A sequence alone has the context and state that it has in its batch."""
    memory, inputs = _made(case)
    whole = memory(*inputs)
    for i in range(BATCH):
        alone = memory(*_alone(inputs, i))
        assert_same(alone, _alone(whole, i), "one alone", 1e-4)


def batch_dimensions_flatten(case: MemoryCase) -> None:
    """Particles and sequences together are as many sequences."""
    memory, inputs = _made(case, 2, BATCH)
    flat = memory(*_part(inputs, lambda p: p.flatten(0, 1)))
    found = map_tensors(lambda p: p.flatten(0, 1), memory(*inputs))
    assert_same(found, flat, "with two batch dimensions", 1e-4)


def _hidden(inputs: Replay, mask: Tensor, fill: float) -> Replay:
    """The inputs with a value under the mask."""
    return _part(inputs, lambda part: part.masked_fill(~mask.unsqueeze(-1), fill))


def masked_steps_leave_the_state(case: MemoryCase) -> None:
    """Under the mask the state stays as it was, and what lies there, also NaN, changes nothing."""
    memory, inputs = _made(case)
    mask = example_mask(BATCH, TIME)
    results, parameters = [], list(memory.parameters())
    for fill in (0.0, torch.nan, torch.inf):
        hidden = _hidden(inputs, mask, fill)
        hidden = hidden._replace(z=hidden.z.requires_grad_(), mask=mask)
        context, state = memory(*hidden)
        seen = context._replace(features=torch.where(mask.unsqueeze(-1), context.features, 0))
        gradients = torch.autograd.grad(
            weighted_sum(seen, state), [hidden.z, *parameters], allow_unused=True
        )
        results.append((context, state, [g for g in gradients if g is not None]))
    for other in results[1:]:
        assert_same(other, results[0], "with another value under the mask")
    _, end, _ = results[0]
    for i, seen in enumerate(mask):
        _, state = memory(*_alone(inputs, i, seen))
        assert_same(_alone(end, i), state, "without hidden steps", 1e-4)


def gradients_are_finite(case: MemoryCase) -> None:
    """Gradients are finite after one step, after 200, and for latents of extreme size."""
    for time, scale in ((1, 1.0), (LONG, 1.0), (TIME, EXTREME), (TIME, 0.0)):
        memory, inputs = _made(case, 2, time=time)
        inputs = _scaled(inputs, scale)
        z = inputs.z.requires_grad_()
        context, state = memory(*inputs)
        for part in (*context, *leaves(state)):
            assert_finite(part, f"context or state after {time} steps of size {scale:g}")
        grads = torch.autograd.grad(
            weighted_sum(context, state), [z, *memory.parameters()], allow_unused=True
        )
        for name, grad in zip(["z", *dict(memory.named_parameters())], grads, strict=True):
            if grad is not None:
                assert_finite(grad, f"gradient of {name} after {time} steps of size {scale:g}")


def every_memory_parameter_is_trained(case: MemoryCase) -> None:
    """Every parameter has a dimension or more, and gets a gradient through the features."""
    memory, inputs = _made(case, time=8)
    with torch.no_grad():  # what starts at zero may hide others
        for parameter in memory.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    features = memory(*inputs)[0].features
    named = dict(memory.named_parameters())
    require(bool(named) and features.requires_grad, "the features depend on no parameter.")
    grads = torch.autograd.grad(
        (features * torch.randn_like(features)).sum(), list(named.values()), allow_unused=True
    )
    for (name, parameter), grad in zip(named.items(), grads, strict=True):
        require(parameter.dim() > 0, f"parameter {name!r} is 0-dimensional; give it shape (1,).")
        trained = grad is not None and bool((grad != 0).any())
        require(trained, f"parameter {name!r} gets no gradient.")


def past_latents_are_remembered(case: MemoryCase) -> None:
    """The context depends on the latents of this and of earlier steps, and on no later one."""
    memory, inputs = _made(case)
    z = inputs.z.requires_grad_()
    features = memory(*inputs)[0].features
    (grad,) = torch.autograd.grad(features[:, 2].square().sum(), z)
    require((grad[:, 3:] == 0).all(), "a context depends on a later latent.")
    require((grad[:, 0] != 0).any(), "a context does not depend on the latents two steps before.")


def wrong_inputs_are_refused(case: MemoryCase) -> None:
    """An input that is missing, unexpected or of the wrong size is a ValueError that names it."""
    memory, inputs = _made(case)
    wrong: dict[str, dict[str, Any]] = {"z": {"z": torch.zeros(BATCH, TIME, memory.latent + 1)}}
    for name, size in (("controls", memory.controls), ("features", memory.frame_features)):
        wrong[name] = {name: None if size else torch.zeros(BATCH, TIME, 1)}
    wrong["mask"] = {"mask": torch.ones(BATCH, TIME + 1, dtype=torch.bool)}
    for name, change in wrong.items():
        try:
            memory(*inputs._replace(**change))
        except ValueError as error:
            require(name in str(error), f"the error for wrong {name} does not name it: {error}")
        else:
            require(False, f"no error for {name} missing, unexpected or of the wrong size.")


def double_memory_stays_double(case: MemoryCase) -> None:
    """A memory and latents in float64 give contexts and states in float64."""
    memory, inputs = _made(case)
    context, state = memory.double()(*_part(inputs, Tensor.double))
    first = memory.initial_state(Size((BATCH,)))
    for part in (*context, *leaves(state), *leaves(first)):
        exact = part.dtype == torch.float64 or not part.is_floating_point()
        require(exact, f"context or state is {part.dtype}.")


def copies_agree(case: MemoryCase) -> None:
    """A deep copy, and a new memory with the parameters of the first, do as it does."""
    memory, inputs = _made(case)
    expected = memory(*inputs)
    other = case.make().eval()
    other.load_state_dict(memory.state_dict())
    for name, twin in (("deep copy", copy.deepcopy(memory)), ("reloaded memory", other)):
        assert_same(twin(*inputs), expected, name)


MEMORY_CONTRACTS: tuple[Callable[[MemoryCase], None], ...] = (
    sizes_are_as_announced,
    weights_are_bounded,
    steps_agree_with_forward,
    nothing_is_remembered,
    states_can_be_saved,
    sequences_are_independent,
    batch_dimensions_flatten,
    masked_steps_leave_the_state,
    gradients_are_finite,
    every_memory_parameter_is_trained,
    past_latents_are_remembered,
    wrong_inputs_are_refused,
    double_memory_stays_double,
    copies_agree,
)
