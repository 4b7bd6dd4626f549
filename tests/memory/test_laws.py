"""What memories promise beyond their equations: where they write and find, what they cost."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

import pyro_seq
from pyro_seq.memory import DNC, ICM, LRU, NTM, Context, Introspection, Memory
from pyro_seq.ops.resampling import resampled
from pyro_seq.ops.trees import leaves, map_tensors
from tests.operators import Launches

LATENT, BATCH, TIME = 4, 3, 6
SIZES: dict[str, Any] = {"heads": 2, "hidden": 8}


def latents(time: int = TIME) -> Tensor:
    return torch.randn(BATCH, time, LATENT)


def run(memory: Memory, z: Tensor) -> Iterator[tuple[Context, Any]]:
    state = memory.initial_state(torch.Size(z.shape[:1]))
    for z_t in z.unbind(1):
        context, state = memory.step(state, z_t)
        yield context, state


@pytest.mark.parametrize("kind", [DNC, LRU, NTM])
@pytest.mark.parametrize("write", ["latent_tag", "latent_add"])
def test_each_latent_has_a_row_of_its_own(kind: type[Memory], write: str) -> None:
    """Before anything is learnt; an LRU memory, which counts what is read, needs more slots."""
    slots = 5 * TIME if kind is LRU else TIME
    memory, z = kind(LATENT, slots, write=write, **SIZES), 3 * latents()
    if write == "latent_add":  # what is added is noise before it is learnt
        with torch.no_grad():
            memory.interface.rows_of("row", memory.interface.layer.weight).zero_()
            memory.interface.rows_of("row", memory.interface.layer.bias).zero_()
    *_, (_, state) = run(memory, z)
    stored = state.rows[..., :LATENT]
    likeness = torch.cosine_similarity(stored.unsqueeze(2), z.unsqueeze(1), -1)
    likeness, row = likeness.max(1)
    assert likeness.min() > 0.7
    assert all(len(set(rows)) == TIME for rows in row.tolist())


def test_append_and_shift_and_ring() -> None:
    """Row t holds z_t, or the latent t steps ago; with too few rows the oldest is lost."""
    z = latents(7)
    for slots in (7, 4):
        append = Introspection(LATENT, slots, **SIZES)(z)[1].rows
        shift = Introspection(LATENT, slots, order="shift", **SIZES)(z)[1].rows
        for t in range(7 - slots, 7):
            assert torch.equal(append[:, t % slots], z[:, t])
            assert torch.equal(shift[:, 6 - t], z[:, t])
    assert torch.equal(ICM(LATENT, 4, **SIZES)(z)[1].latents[:, 2], z[:, 6])


def test_laws_of_the_dnc() -> None:
    memory = DNC(LATENT, TIME, **SIZES)
    with torch.no_grad():
        for parameter in memory.parameters():
            parameter.mul_(3)
    for _, state in run(memory, 3 * latents(40)):
        slots = state.usage, state.precedence, state.write, state.weights, state.links
        assert all((part >= 0).all() for part in slots)
        assert (state.usage <= 1 + 1e-6).all()
        sums = state.write, state.precedence, state.weights, state.links, state.links.mT
        assert all((part.sum(-1) <= 1 + 1e-5).all() for part in sums)
        assert (state.links.diagonal(dim1=-2, dim2=-1) == 0).all()


def test_a_new_dnc_writes_one_slot_after_the_other_and_links_them() -> None:
    memory = DNC(LATENT, TIME, **SIZES)
    with torch.no_grad():
        memory.interface.rows_of("gates", memory.interface.layer.bias).fill_(20)
        memory.interface.rows_of("free", memory.interface.layer.bias).fill_(-20)
    for number, (_, state) in enumerate(run(memory, latents())):
        torch.testing.assert_close(
            state.write, torch.eye(TIME)[number].expand(BATCH, -1), atol=1e-4, rtol=0
        )
    chain = torch.diag(torch.ones(TIME - 1), -1).expand(BATCH, -1, -1)
    torch.testing.assert_close(state.links, chain, atol=1e-3, rtol=0)


def test_usage_may_be_a_constant_for_the_gradient() -> None:
    z = latents().requires_grad_()
    found = []
    for detach in (True, False):
        memory = DNC(LATENT, TIME, detach_usage=detach, **SIZES)
        state = memory.initial_state(torch.Size([BATCH]))
        write = torch.full_like(state.write, 0.1, requires_grad=True)
        _, after = memory.step(state._replace(write=write), z[:, 0])
        grad = torch.autograd.grad(after.usage.sum(), write, allow_unused=True)[0]
        found.append(grad is not None and bool((grad != 0).any()))
    assert found == [False, True]


def test_least_recently_used_slots_are_replaced() -> None:
    """What is read stays: with its reads fixed to slot 0, that slot alone survives."""
    memory = LRU(LATENT, 3, heads=1, hidden=8)
    with torch.no_grad():
        memory.interface.rows_of("gates", memory.interface.layer.bias).fill_(-20)
    z, state = latents(), memory.initial_state(torch.Size([BATCH]))
    for number, z_t in enumerate(z.unbind(1)):
        _, state = memory.step(state, z_t)
        state = state._replace(
            usage=state.usage + torch.tensor([10.0, 0, 0]), weights=0 * state.weights
        )
        if number == 0:
            torch.testing.assert_close(state.rows[:, 0, :LATENT], z[:, 0])
    torch.testing.assert_close(state.rows[:, 0, :LATENT], z[:, 0])


@pytest.mark.parametrize("top_k", [None, 3])
def test_a_likeness_is_found_before_anything_is_learnt(top_k: int | None) -> None:
    """ICM: the latent seen before, not the copy just written; and after it comes the next."""
    z = latents(8)
    z[:, 7] = z[:, 2]
    memory = ICM(LATENT, 8, top_k=top_k, **SIZES)
    ways = memory.interface.layer.bias
    for way, found in ((0, 2), (1, 3)):
        with torch.no_grad():
            memory.interface.rows_of("strengths", ways).fill_(50)
            memory.interface.rows_of("ways", ways).view(2, -1)[:] = 20 * torch.eye(5)[way]
        *_, (context, _) = run(memory, z)
        assert (context.weights.argmax(-1) == found).all()
        assert (context.features[..., -2:] > 0.5).all()  # how well it matched


def test_keys_are_as_unlike_as_what_they_stand_for() -> None:
    """Before anything is learnt, by likeness and, where pairs are written, by predecessor."""
    z = latents(20)[0]
    unit = torch.nn.functional.normalize
    for layer in (
        ICM(LATENT, 4, **SIZES).content,
        DNC(LATENT, 4, write_previous=True, **SIZES).writer.pair,
    ):
        keys = unit(layer(z), dim=-1)
        torch.testing.assert_close(keys @ keys.mT, unit(z, dim=-1) @ unit(z, dim=-1).mT)


def test_the_first_step_of_icm_finds_nothing() -> None:
    memory = ICM(LATENT, 8, positions=False, **SIZES)
    context, _ = next(run(memory, latents()))
    assert (context.weights == 0).all() and (context.reads == 0).all()
    assert (context.features[..., -2:] == 0).all()


def test_a_place_is_found_by_any_way_to_it() -> None:
    """ICM: with opposite turns for opposite moves, on a walk along two axes."""
    moves = torch.tensor(
        [[0.0, 1], [1, 0], [0, -1], [0, -1], [-1, 0], [0, 1]]
    )  # back to the start
    memory = ICM(LATENT, 8, controls=2, **SIZES)
    start = memory.interface.layer.bias
    with torch.no_grad():
        memory.interface.layer.weight.zero_()
        memory.interface.rows_of("strengths", start).fill_(-20)
        memory.interface.rows_of("phase_strengths", start).fill_(200)
        memory.interface.rows_of("ways", start).view(2, -1)[:] = 20 * torch.eye(5)[0]
        memory.turn.weight.normal_(std=3)  # neighbours are far below the null row
    controls = torch.cat([torch.zeros(1, 2), moves]).expand(BATCH, -1, -1)
    context, state = memory(latents(7), controls)
    torch.testing.assert_close(state.phase, torch.zeros_like(state.phase), atol=1e-5, rtol=0)
    places = controls[0].cumsum(0).tolist()
    for t, place in enumerate(places):  # row n has the latent of step n, row 0 zeros of no place
        rows = [n + 1 for n in range(t - 1) if places[n] == place]
        expected = torch.zeros(8)
        if rows:
            expected[rows] = 1 / len(rows)
        torch.testing.assert_close(
            context.weights[:, t], expected.expand(BATCH, 2, -1), atol=0.05, rtol=0
        )
    assert rows == [1] and len(places) == 7


def test_top_k_may_change_between_sequences() -> None:
    memory, z = ICM(LATENT, TIME, top_k=TIME, **SIZES), latents()
    before = memory(z)[0].features
    memory.top_k = 2
    context, _ = memory(z)
    assert ((context.weights != 0).sum(-1) <= 2).all()
    memory.top_k = TIME
    assert torch.equal(memory(z)[0].features, before)


def test_sparse_reads_cost_less() -> None:
    """What the graph keeps at 2,000 slots: a share of 3 % of the dense read's."""
    kept = []
    for top_k in (None, 8):
        memory = ICM(16, 2000, top_k=top_k, positions=False, **SIZES)
        state = memory.initial_state(torch.Size([2]))
        state = state._replace(keys=torch.randn_like(state.keys), steps=state.steps + 2000)
        sizes: dict[int, Tensor] = {}

        def pack(part: Tensor, sizes: dict[int, Tensor] = sizes) -> Tensor:
            sizes[part.data_ptr()] = part
            return part

        with saved_tensors_hooks(pack, lambda part: part):
            memory(torch.randn(2, 5, 16), state=state)
        kept.append(sum(part.untyped_storage().nbytes() for part in sizes.values()))
    assert kept[1] < 0.03 * kept[0]


@pytest.mark.parametrize("name", ["dnc", "icm", "introspection", "lru", "ntm"])
def test_particles_are_drawn_anew(name: str) -> None:
    """A state expands over particles, and these can be drawn by weight."""
    memory = pyro_seq.get("memories", name)(LATENT, TIME, **SIZES)
    z = torch.randn(5, BATCH, LATENT)
    state = map_tensors(
        lambda part: part.expand(5, *part.shape), memory.initial_state(torch.Size([BATCH]))
    )
    _, state = memory.step(state, z)
    weights = torch.full((5, BATCH), -torch.inf)
    weights[3] = 0
    drawn, _ = resampled(state, weights)
    for one, other in zip(leaves(drawn), leaves(state), strict=True):
        assert torch.equal(one, other[3].expand_as(one))


@pytest.mark.parametrize(
    ("name", "options"),
    [(n, {}) for n in ("dnc", "icm", "introspection", "lru", "ntm")] + [("icm", {"top_k": 2})],
)
def test_nothing_waits_for_the_device(name: str, options: dict[str, Any]) -> None:
    """Tensors without values have none to wait for, forward and backward."""
    memory = pyro_seq.get("memories", name)(LATENT, TIME, **SIZES, **options).to("meta")
    z = torch.randn(BATCH, TIME, LATENT, device="meta", requires_grad=True)
    torch.stack([context.features for context, _ in run(memory, z)]).sum().backward()
    assert z.grad is not None and z.grad.shape == z.shape
    with pytest.raises(RuntimeError, match="meta"):
        z.sum().item()


@pytest.mark.parametrize(
    ("name", "most"), [("dnc", 100), ("icm", 80), ("introspection", 30), ("lru", 55), ("ntm", 60)]
)
def test_launches_do_not_grow_with_heads_or_batch(name: str, most: int) -> None:
    def launches(heads: int, batch: int) -> int:
        memory = pyro_seq.get("memories", name)(LATENT, TIME, heads=heads, hidden=8)
        state = memory.initial_state(torch.Size([batch]))
        with torch.no_grad(), Launches() as counter:
            memory.step(state, torch.randn(batch, LATENT))
        return counter.count

    assert launches(2, 2) == launches(6, 9)
    assert launches(2, 2) <= most
