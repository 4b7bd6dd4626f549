"""Errors say the argument, what was expected, what came, and the fix."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import pyro_seq
from pyro_seq.memory import ICM, LRU, Introspection, LSTMMemory, Memory

WITH_SLOTS = ["dnc", "icm", "introspection", "lru", "ntm"]
MEMORIES = [*WITH_SLOTS, "lstm"]


def made(name: str, controls: int = 0) -> Memory:
    sizes = {"frame_features": 0} if name == "lstm" else {"slots": 3, "heads": 1}
    return pyro_seq.get("memories", name)(latent=2, hidden=4, controls=controls, **sizes)


@pytest.mark.parametrize("name", WITH_SLOTS)
@pytest.mark.parametrize("size", ["latent", "slots", "heads", "hidden"])
@pytest.mark.parametrize("value", [0, -1])
def test_sizes(name: str, size: str, value: int) -> None:
    sizes = {"latent": 2, "slots": 3, "heads": 1, "hidden": 4} | {size: value}
    with pytest.raises(ValueError, match=f"^{size} must be at least 1; got {value}"):
        pyro_seq.get("memories", name)(**sizes)


@pytest.mark.parametrize("name", WITH_SLOTS)
@pytest.mark.parametrize("size", ["latent", "slots", "heads", "hidden", "controls"])
def test_a_size_is_an_integer(name: str, size: str) -> None:
    sizes = {"latent": 2, "slots": 3, "heads": 1, "hidden": 4} | {size: 2.5}
    with pytest.raises(TypeError, match=rf"^{size} must be an int; got 2\.5"):
        pyro_seq.get("memories", name)(**sizes)


def test_the_number_of_rows_read_is_an_integer() -> None:
    with pytest.raises(TypeError, match=r"top_k must be an int; got 2\.0"):
        ICM(2, 3, top_k=2.0)  # type: ignore[arg-type]
    memory = ICM(2, 3, hidden=4)
    memory.top_k = 4
    with pytest.raises(ValueError, match="top_k must be at most slots=3, or None; got 4"):
        memory(torch.zeros(1, 2, 2))


@pytest.mark.parametrize("name", ["dnc", "lru", "ntm"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"write": "tag"}, r"write must be one of latent_tag, .* got 'tag'"),
        ({"write": "latent_add", "word": 3}, "word must be the size of the latent, 2, .* got 3"),
        ({"word": 1}, "word must be at least the size of the latent, 2, .* got 1"),
        ({"write": "linear", "word": 0}, "word must be at least 1; got 0"),
        ({"word": 2, "write_previous": True}, "write_previous needs .* word=2, latent=2"),
        ({"write": "tanh", "write_previous": True}, "write_previous needs write='latent_tag'"),
        ({"write": "linear", "tied_query": True}, "tied_query needs .* got write='linear'"),
        ({"controls": -1}, "controls must be at least 0; got -1"),
    ],
)
def test_writes(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pyro_seq.get("memories", name)(2, 3, **options)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LRU(2, 9, heads=2, write_heads=3), "write_heads must be at most heads=2"),
        (lambda: LRU(2, 9, write_heads=0), "write_heads must be at least 1; got 0"),
        (lambda: LRU(2, 9, write="?"), "write must be one of .*key; got '?'"),
        (lambda: LRU(2, 9, write="key", tied_query=True), "need rows .* got write='key'"),
        (lambda: ICM(2, 9, top_k=10), "top_k must be at most slots=9, or None; got 10"),
        (lambda: ICM(2, 9, top_k=0), "top_k must be at least 1; got 0"),
        (lambda: ICM(2, 9, key=0), "key must be at least 1"),
        (lambda: ICM(2, 9, phases=4), "phases must be 0 for a memory without controls; got 4"),
        (lambda: ICM(2, 9, controls=2, phases=-1), "phases must be at least 0; got -1"),
        (lambda: Introspection(2, 9, order="?"), "order must be one of append, shift"),
        (lambda: Introspection(2, 9, attention="?"), "attention must be one of softplus"),
        (lambda: LSTMMemory(2, -1), "frame_features must be at least 0; got -1"),
    ],
)
def test_options(make: Any, message: str) -> None:  # noqa: ANN401
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("kind", [ICM, Introspection])
def test_more_steps_than_slots(kind: Any) -> None:  # noqa: ANN401
    memory = kind(2, 3, heads=1, hidden=4, ring=False)
    memory(torch.zeros(1, 3, 2))
    with pytest.raises(ValueError, match=r"slots must be at least the number of steps, 4, .*ring"):
        memory(torch.zeros(1, 4, 2))
    with pytest.raises(ValueError, match=r"got slots=3. Raise slots"):
        memory.check_steps(9)
    kind(2, 3, heads=1, hidden=4)(torch.zeros(1, 9, 2))


@pytest.mark.parametrize("name", WITH_SLOTS)
def test_controls_of_one_step(name: str) -> None:
    kind = pyro_seq.get("memories", name)
    for memory, u_t, message in (
        (kind(2, 3, controls=4), None, r"controls must be \(\*batch, 4\) .* got none"),
        (kind(2, 3, controls=4), torch.zeros(1, 3), r"controls must be .* got shape \(1, 3\)"),
        (kind(2, 3), torch.zeros(1, 3), "controls must be None for a memory that was made"),
    ):
        state = memory.initial_state(torch.Size([1]))
        with pytest.raises(ValueError, match=message):
            memory.step(state, torch.zeros(1, 2), u_t)


def test_replays() -> None:
    memory = LSTMMemory(2, 3, hidden=4)
    z, features = torch.zeros(2, 5, 2), torch.zeros(2, 5, 3)
    for change, message in (
        ({"z": z[0, 0]}, r"z must be \(\*batch, time, latent\) .* got shape \(2,\)"),
        ({"z": z[:, :0]}, "z must be .* of one step or more"),
        ({"features": features[:, :4]}, r"features must be .* \(2, 5\); got shape \(2, 4, 3\)"),
        ({"features": None}, r"features must be \(\*batch, 3\) .* got none"),
        ({"mask": torch.ones(2, 4) > 0}, r"mask must be bool .* got shape \(2, 4\)"),
        ({"mask": torch.ones(2, 5)}, r"mask must be bool .* got torch.float32. Use mask.bool"),
    ):
        with pytest.raises(ValueError, match=message):
            memory(**{"z": z, "features": features} | change)


@pytest.mark.parametrize("name", ["z", "controls", "mask"])
def test_replays_are_of_tensors(name: str) -> None:
    memory = LSTMMemory(2, 0, hidden=4, controls=1)
    given = {"z": torch.zeros(2, 5, 2), "controls": torch.zeros(2, 5, 1)}
    with pytest.raises(TypeError, match=rf"^{name} must be a tensor .* got ndarray"):
        memory(**given | {name: np.zeros((2, 5, 2))})
    with pytest.raises(TypeError, match="^z must be a tensor .* got NoneType"):
        memory(None)


@pytest.mark.parametrize("name", MEMORIES)
def test_states(name: str) -> None:
    """A state of another batch or memory is refused, also where it would broadcast."""
    memory, z = made(name), torch.zeros(2, 5, 2)
    for batch in ((), (1,), (3,)):
        with pytest.raises(ValueError, match="^state must be that of this memory and batch"):
            memory(z, state=memory.initial_state(torch.Size(batch)))
    other = made("ntm" if name != "ntm" else "dnc").initial_state(torch.Size([2]))
    for state in (other, 3):
        with pytest.raises(TypeError, match=f"State of this memory; got {type(state).__name__}"):
            memory(z, state=state)


@pytest.mark.parametrize("name", MEMORIES)
def test_inputs_of_one_step_are_of_one_batch(name: str) -> None:
    memory = made(name, controls=1)
    state = memory.initial_state(torch.Size([2]))
    with pytest.raises(ValueError, match=r"controls must be \(\*batch, 1\) = \(2, 1\)"):
        memory.step(state, torch.zeros(2, 2), torch.zeros(1, 1))
    with pytest.raises(ValueError, match=r"z must be \(\*batch, 2\) .* got shape \(\)"):
        memory.step(state, torch.zeros(()), torch.zeros(1))


def test_controls_may_be_integers() -> None:
    memory, z = made("icm", controls=2), torch.randn(2, 4, 2)
    u = torch.randint(3, (2, 4, 2))
    torch.testing.assert_close(memory(z, u), memory(z, u.float()))
