"""Errors say the argument, what was expected, what came, and the fix."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import pyro_seq
from pyro_seq.memory import ICM, LRU, NTM, Introspection, LSTMMemory

WITH_SLOTS = ["dnc", "icm", "introspection", "lru", "ntm"]


@pytest.mark.parametrize("name", WITH_SLOTS)
@pytest.mark.parametrize("size", ["latent", "slots", "heads", "hidden"])
@pytest.mark.parametrize("value", [0, -1])
def test_sizes(name: str, size: str, value: int) -> None:
    sizes = {"latent": 2, "slots": 3, "heads": 1, "hidden": 4} | {size: value}
    with pytest.raises(ValueError, match=f"^{size} must be at least 1; got {value}"):
        pyro_seq.get("memories", name)(**sizes)


def test_a_size_is_an_integer() -> None:
    with pytest.raises(TypeError, match=r"slots must be an int; got 2\.5"):
        NTM(2, 2.5)  # type: ignore[arg-type]


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
        (lambda: ICM(2, 9, top_k=10), "top_k must be from 1 to slots=9, or None; got 10"),
        (lambda: ICM(2, 9, top_k=0), "top_k must be from 1"),
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
