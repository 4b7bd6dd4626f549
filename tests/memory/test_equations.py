"""Each memory against the slow reference, for every option that changes an equation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import pyro_seq
from pyro_seq.memory import Memory
from tests.memory.reference import REFERENCES, replay

LATENT, SLOTS, TIME = 3, 4, 7
PAIRS = {"write_previous": True, "tied_query": True}
SETTINGS: dict[str, list[dict[str, Any]]] = {
    "introspection": [
        {},
        {"order": "shift"},
        {"attention": "softmax", "context_includes_state": True},
        {"learnt_gates": True},
        {"slots": TIME},
    ],
    "ntm": [
        {},
        PAIRS,
        {"tied_query": True, "read_before_write": False},
        {"write": "linear", "word": 5},
        {"write": "latent_add"},
    ],
    "lru": [
        {},
        PAIRS,
        {"write": "key", "write_heads": 2, "key_strength": False},
        {"write": "tanh", "write_heads": 2},
        {"write": "latent_add", "tied_query": True},
    ],
    "dnc": [
        {},
        PAIRS,
        {"write": "linear", "erase_freed": True},
        {"write": "latent_add", "tied_query": True, "context_includes_state": False},
    ],
    "icm": [
        {},
        {"slots": TIME},
        {"positions": False, "key": 4},
        {"context_includes_state": False},
        {"top_k": SLOTS},
        {"controls": 2},
        {"controls": 2, "phases": 3, "slots": TIME},
        {"controls": 2, "phases": 0},
    ],
    "lstm": [{"frame_features": 0}],
}


def make(name: str, **options: Any) -> Memory:  # noqa: ANN401
    """A memory with parameters away from where they start."""
    sizes = {"hidden": 4} if name == "lstm" else {"slots": SLOTS, "heads": 2, "hidden": 4}
    memory = pyro_seq.get("memories", name)(LATENT, **sizes | options).double()
    with torch.no_grad():
        for parameter in memory.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    return memory


def latents() -> Tensor:
    z = torch.randn(2, TIME, LATENT, dtype=torch.float64)
    z[:, 0] = 0
    return z


@pytest.mark.parametrize(
    ("name", "options"), [(name, options) for name, all_ in SETTINGS.items() for options in all_]
)
def test_equations(name: str, options: dict[str, Any]) -> None:
    memory, z = make(name, **options), latents()
    controls = None
    if memory.controls:
        controls = torch.randn(*z.shape[:2], memory.controls, dtype=z.dtype)
    context, _ = memory(z, controls)
    features, weights = replay(name, memory, z, controls)
    torch.testing.assert_close(context.features, features, rtol=0, atol=2e-5)
    torch.testing.assert_close(
        context.weights, weights.view_as(context.weights), rtol=0, atol=2e-5
    )


def test_every_memory_has_a_reference() -> None:
    parts = {name: pyro_seq.get("memories", name) for name in pyro_seq.available("memories")}
    ours = {name for name, part in parts.items() if part.__module__.startswith("pyro_seq.")}
    assert ours == set(REFERENCES) == set(SETTINGS)


@pytest.mark.parametrize("options", [{}, {"positions": False}, {"key": 2}, {"controls": 2}])
@pytest.mark.parametrize("slots", [SLOTS, 2 * TIME])
def test_as_many_as_slots_are_all(slots: int, options: dict[str, Any]) -> None:
    """With gradients of latents and parameters, with a ring and without."""
    dense = make("icm", slots=slots, **options)
    sparse = make("icm", slots=slots, top_k=slots, **options)
    sparse.load_state_dict(dense.state_dict())
    z = latents().requires_grad_()
    controls = torch.randn(2, TIME, 2).double() if dense.controls else None
    results = []
    for memory in (dense, sparse):
        context, _ = memory(z, controls)
        total = (context.features * torch.linspace(0, 1, memory.context)).square().sum()
        results.append([*context, *torch.autograd.grad(total, [z, *memory.parameters()])])
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=1e-10)


def test_a_latent_that_is_not_read_has_no_gradient() -> None:
    """Rows beyond the top_k: exactly zero, of the last step's read."""
    memory = make("icm", slots=12, top_k=2, positions=False, context_includes_state=False)
    state = memory.initial_state(torch.Size([2]))
    for z in latents().unbind(1):
        _, state = memory.step(state, z)
    stored = state.latents.detach().requires_grad_()
    keys = state.keys.detach().requires_grad_()
    context, after = memory.step(
        state._replace(latents=stored, keys=keys), torch.randn(2, LATENT).double()
    )
    values, of_keys = torch.autograd.grad(context.features.sum(), [stored, keys])
    read = torch.zeros(2, 12, dtype=torch.bool)
    read.scatter_(-1, after.chosen.flatten(-2), True)
    assert (values[~read] == 0).all() and (values.abs().sum(-1) > 0).sum(-1).max() <= 4
    assert ((of_keys != 0).any(-1).sum(-1) <= 4).all() and (of_keys != 0).any()
