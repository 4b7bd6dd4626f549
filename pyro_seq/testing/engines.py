"""The contracts of a neural inference engine."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Size, Tensor

from pyro_seq.engines.base import Engine
from pyro_seq.ops.trees import leaves, map_tensors, stack
from pyro_seq.testing.contracts import (
    assert_finite,
    assert_same,
    example_mask,
    require,
    run_contracts,
    weighted_sum,
)

__all__ = ["ENGINE_CONTRACTS", "EngineCase", "check_engine"]

BATCH, TIME = 3, 4
CROWD = 64


class EngineCase(NamedTuple):
    """An engine to try.

    Attributes:
        make: Returns a new engine each time, small.
    """

    make: Callable[[], Engine]


def check_engine(make: Callable[[], Engine]) -> None:
    """Check that an engine keeps every contract of :data:`ENGINE_CONTRACTS`.

    Args:
        make: Returns a new engine each time, small.

    Raises:
        ContractError: At the first contract that is broken; the message names it.

    Example:
        >>> from pyro_seq.engines import ConvLSTMRow, LSTMRow, RLadder
        >>> from pyro_seq.testing import check_engine
        >>> check_engine(lambda: RLadder((1, 4, 4), [ConvLSTMRow(2), LSTMRow(3)]))
    """
    run_contracts(ENGINE_CONTRACTS, EngineCase(make), "The engine")


class Trial(NamedTuple):
    """An engine in evaluation mode, frames `(*batch, time, *frame)` and an initial state."""

    engine: Engine
    x: Tensor
    state: Any


def _made(case: EngineCase, *batch: int, time: int = TIME) -> Trial:
    """An engine whose parameters are none of them at a special point, and something to read."""
    engine = case.make()
    require(
        isinstance(engine, Engine),
        f"expected a pyro_seq.engines.Engine, got {type(engine).__name__}.",
    )
    with torch.no_grad():  # what starts at zero may hide faults
        for parameter in engine.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    shape = Size(batch or (BATCH,))
    x = (torch.rand(*shape, time, *engine.frame_shape) > 0.5).float()
    return Trial(engine.eval(), x, engine.initial_state(shape))


def _alone(tree: Any, number: int) -> Any:  # noqa: ANN401
    """One sequence of a tree, as a batch of one."""
    return map_tensors(lambda part: part[number : number + 1], tree)


def _steps(trial: Trial) -> list[tuple[Any, Any]]:
    """Output and state after each step, one after the other."""
    found, state = [], trial.state
    dim = trial.x.dim() - len(trial.engine.frame_shape) - 1
    for x_t in trial.x.unbind(dim):
        output, state = trial.engine.step(state, x_t)
        found.append((output, state))
    return found


def the_batch_comes_first(case: EngineCase) -> None:
    """Outputs and states begin with the dimensions of the batch; a step keeps those of a state."""
    for batch in ((), (BATCH,), (2, BATCH)):
        engine, x, _ = _made(case, *(batch or (1,)), time=1)
        before = engine.initial_state(Size(batch))
        output, after = engine.step(before, x.reshape(*batch, *engine.frame_shape))
        for part in (*leaves(before), *leaves(output)):
            begins = part.shape[: len(batch)] == batch
            require(begins, f"for a batch {batch}, a part has shape {tuple(part.shape)}.")
        shapes = [[(p.shape, p.dtype) for p in leaves(state)] for state in (before, after)]
        require(shapes[0] == shapes[1], "a step changes shapes or types of the state.")


def steps_agree_with_forward(case: EngineCase) -> None:
    """One step after the other gives what one call for all steps gives."""
    trial = _made(case)
    outputs, state = trial.engine(trial.x, state=map_tensors(torch.clone, trial.state))
    found = _steps(trial)
    assert_same(stack([one for one, _ in found], 1), outputs, "outputs by steps")
    assert_same(found[-1][1], state, "state by steps")


def iterations_are_repeated_steps(case: EngineCase) -> None:
    """Iterating on a frame gives what a sequence of that frame gives."""
    trial = _made(case)
    x = trial.x[:, 0]
    found = trial.engine.iterate(x, TIME, map_tensors(torch.clone, trial.state))
    repeated = x.unsqueeze(1).expand(trial.x.shape)
    assert_same(found, trial.engine(repeated, state=trial.state), "iterations")


def nothing_is_remembered(case: EngineCase) -> None:
    """What an engine remembers is in the state; a step changes neither itself nor its input."""
    engine, x, state = trial = _made(case)
    first = engine(x, state=state)
    buffers = copy.deepcopy(dict(engine.named_buffers()))
    saved = map_tensors(torch.clone, first[1])
    _steps(trial._replace(x=x.flip(0), state=first[1]))
    assert_same(first[1], saved, "the state given, after a step", 0.0)
    assert_same(engine(x, state=state), first, "a replay after other calls", 0.0)
    assert_same(dict(engine.named_buffers()), buffers, "buffers", 0.0)


def states_can_be_saved(case: EngineCase) -> None:
    """A replay from a state saved half-way goes on as the whole one does."""
    engine, x, start = _made(case)
    whole, end = engine(x, state=start)
    _, state = engine(x[:, :2], state=start)
    file = io.BytesIO()
    torch.save(tuple(leaves(state)), file)
    file.seek(0)
    saved = iter(torch.load(file))
    engine(1 - x, state=start)
    rest, after = engine(x[:, 2:], state=map_tensors(lambda _: next(saved), state))
    assert_same(rest, map_tensors(lambda p: p[:, 2:], whole), "outputs after a saved state")
    assert_same(after, end, "state after a saved state")


def sequences_are_independent(case: EngineCase) -> None:
    """In evaluation a sequence alone has the outputs that it has among 64."""
    engine, x, state = _made(case, CROWD, time=2)
    _exercise(engine)
    whole = engine(x, state=state)
    for i in (0, CROWD - 1):
        alone = engine(_alone(x, i), state=_alone(state, i))
        assert_same(alone, _alone(whole, i), "one alone", 1e-4)


def _exercise(engine: Engine) -> None:
    """Give running statistics, if there are any, some training to come from."""
    engine.train()
    engine((torch.rand(8, TIME, *engine.frame_shape) > 0.5).float())
    engine.eval()


def batch_dimensions_flatten(case: EngineCase) -> None:
    """Particles and sequences together are as many sequences."""
    engine, x, state = _made(case, 2, BATCH)

    def flat(part: Tensor) -> Tensor:
        return part.flatten(0, 1)

    found = map_tensors(flat, engine(x, state=state))
    expected = engine(flat(x), state=map_tensors(flat, state))
    assert_same(found, expected, "with two batch dimensions", 1e-4)


def masked_frames_leave_the_state(case: EngineCase) -> None:
    """Under the mask the state stays as it was, and what lies there, also NaN, changes nothing."""
    engine, x, start = _made(case)
    mask = example_mask(BATCH, TIME)
    parameters, results = list(engine.parameters()), []
    for fill in (0.0, torch.nan, torch.inf):
        hidden = x.clone()
        hidden[~mask] = fill
        outputs, state = engine(hidden.requires_grad_(), mask, start)
        inputs = [hidden, *parameters]
        gradients = torch.autograd.grad(weighted_sum(outputs, state), inputs, allow_unused=True)
        results.append((outputs, state, [g for g in gradients if g is not None]))
    for other in results[1:]:
        assert_same(other, results[0], "with another value under the mask")
    for i, seen in enumerate(mask):
        _, state = engine(x[i : i + 1, seen], state=_alone(start, i))
        assert_same(_alone(results[0][1], i), state, "without hidden frames", 1e-4)


def every_engine_parameter_is_trained(case: EngineCase) -> None:
    """By the second step every parameter, of a dimension or more, has a finite gradient."""
    engine, x, state = _made(case)
    outputs, _ = engine(x[:, :2], state=state)
    said = weighted_sum(map_tensors(lambda p: p[:, 1:], outputs))
    named = dict(engine.named_parameters())
    require(bool(named) and said.requires_grad, "the outputs depend on no parameter.")
    gradients = torch.autograd.grad(said, list(named.values()), allow_unused=True)
    for (name, parameter), gradient in zip(named.items(), gradients, strict=True):
        require(parameter.dim() > 0, f"parameter {name!r} is 0-dimensional; give it shape (1,).")
        trained = gradient is not None and bool((gradient != 0).any())
        require(trained, f"parameter {name!r} gets no gradient.")
        assert_finite(torch.as_tensor(gradient), f"gradient of parameter {name!r}")


def past_frames_are_remembered(case: EngineCase) -> None:
    """An output depends on the frame of its step and on earlier ones, and on no later one."""
    engine, x, state = _made(case)
    outputs, _ = engine(x.requires_grad_(), state=state)
    said = weighted_sum(map_tensors(lambda p: p[:, 2], outputs))
    (gradient,) = torch.autograd.grad(said, x)
    require((gradient[:, 3:] == 0).all(), "an output depends on a later frame.")
    for step in (0, 2):
        felt = bool((gradient[:, step] != 0).any())
        require(felt, f"an output does not depend on the frame {2 - step} steps before.")


def wrong_frames_are_refused(case: EngineCase) -> None:
    """A frame, a mask or a number of iterations that does not fit is an error that names it."""
    engine, x, state = _made(case)
    mask = torch.ones(BATCH, TIME, dtype=torch.bool)
    wrong: tuple[tuple[str, Callable[[], Any]], ...] = (
        ("x", lambda: engine(x[..., :-1], state=state)),
        ("x", lambda: engine.step(state, x[:, 0, ..., :-1])),
        ("x", lambda: engine.iterate(x[:, 0, ..., :-1], 2, state)),
        ("mask", lambda: engine(x, mask[:, 1:], state)),
        ("mask", lambda: engine(x, mask.float(), state)),
        ("n", lambda: engine.iterate(x[:, 0], 0, state)),
    )
    for name, call in wrong:
        try:
            call()
        except ValueError as error:
            named = str(error).startswith(f"{name} must be")
            require(named, f"the error for a wrong {name} does not begin with it: {error}")
        else:
            require(False, f"no error for {name} that does not fit.")


def double_engine_stays_double(case: EngineCase) -> None:
    """An engine and frames in float64 give outputs and states in float64."""
    trial = _made(case)
    engine = trial.engine.double()
    state = engine.initial_state(trial.x.shape[:1])
    for part in leaves(engine(trial.x.double(), state=state)):
        exact = part.dtype == torch.float64 or not part.is_floating_point()
        require(exact, f"output or state is {part.dtype}.")


def copies_agree(case: EngineCase) -> None:
    """A deep copy, and a new engine with the parameters of the first, do as it does."""
    engine, x, state = _made(case)
    expected = engine(x, state=state)
    other = case.make().eval()
    other.load_state_dict(engine.state_dict())
    for name, twin in (("deep copy", copy.deepcopy(engine)), ("reloaded engine", other)):
        assert_same(twin(x, state=state), expected, name)


ENGINE_CONTRACTS: tuple[Callable[[EngineCase], None], ...] = (
    the_batch_comes_first,
    steps_agree_with_forward,
    iterations_are_repeated_steps,
    nothing_is_remembered,
    states_can_be_saved,
    sequences_are_independent,
    batch_dimensions_flatten,
    masked_frames_leave_the_state,
    every_engine_parameter_is_trained,
    past_frames_are_remembered,
    wrong_frames_are_refused,
    double_engine_stays_double,
    copies_agree,
)
