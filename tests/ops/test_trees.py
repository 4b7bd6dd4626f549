"""Trees of tensors keep their form."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import pytest
import torch
from torch import Size, Tensor

from pyro_seq.ops.trees import (
    detach,
    flatten_batch,
    leaves,
    map_tensors,
    stack,
    unbind,
    unflatten_batch,
    where,
)


class State(NamedTuple):
    h: Tensor
    cells: tuple[Any, ...]
    notes: dict[str, Any]


def tree(value: float = 0.0) -> State:
    full = lambda *shape: torch.full(shape, value)  # noqa: E731
    return State(full(2), (full(2, 3), [full(2), None]), {"a": full(2, 1), "b": 3, "c": ()})


def test_map_keeps_the_form() -> None:
    mapped = map_tensors(torch.add, tree(1.0), tree(2.0))
    assert type(mapped) is State and type(mapped.cells) is tuple
    assert type(mapped.cells[1]) is list and mapped.cells[1][1] is None
    assert mapped.notes["b"] == 3 and mapped.notes["c"] == ()
    assert [leaf.shape for leaf in leaves(mapped)] == [(2,), (2, 3), (2,), (2, 1)]
    assert all((leaf == 3).all() for leaf in leaves(mapped))
    assert map_tensors(torch.neg, torch.ones(1)) == -1
    assert map_tensors(torch.neg, None) is None


def test_trees_of_other_forms_are_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        map_tensors(torch.add, (torch.ones(1),), (torch.ones(1), torch.ones(1)))


def test_leaves_are_the_very_tensors_in_order() -> None:
    made = tree()
    found = [*leaves(made)]
    expected = [made.h, made.cells[0], made.cells[1][0], made.notes["a"]]
    assert [id(leaf) for leaf in found] == [id(leaf) for leaf in expected]
    assert [*leaves(None)] == []


def test_detach_cuts_the_graph() -> None:
    weight = torch.ones(2, requires_grad=True)
    cut = detach(State(weight * 2, (weight,), {}))
    assert not any(leaf.requires_grad for leaf in leaves(cut))
    assert (cut.h == 2).all()


@pytest.mark.parametrize("dim", [0, 1])
def test_unbind_undoes_stack(dim: int) -> None:
    trees = [tree(float(n)) for n in range(4)]
    together = stack(trees)
    assert [leaf.shape for leaf in leaves(together)] == [(4, 2), (4, 2, 3), (4, 2), (4, 2, 1)]
    if dim:
        together = map_tensors(lambda leaf: leaf.transpose(0, 1), together)
    apart = unbind(together, dim)
    assert len(apart) == 4
    for one, expected in zip(apart, trees, strict=True):
        assert type(one) is State
        for found, leaf in zip(leaves(one), leaves(expected), strict=True):
            assert torch.equal(found, leaf)


def test_where_chooses_by_the_first_dimensions() -> None:
    seen = torch.tensor([True, False])
    mixed = where(seen, tree(1.0), tree(math.nan))
    assert type(mixed) is State
    for leaf in leaves(mixed):
        assert (leaf[0] == 1).all() and leaf[1].isnan().all()
    assert torch.equal(where(seen, torch.ones(2, 3), 0), torch.tensor([[1.0] * 3, [0.0] * 3]))


@pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
def test_unflattened_batches_are_the_flat_ones(batch: tuple[int, ...]) -> None:
    made = (torch.randn(*batch, 4), [torch.zeros(batch), None])
    flat = flatten_batch(made, Size(batch))
    assert [leaf.shape[0] for leaf in leaves(flat)] == [Size(batch).numel()] * 2
    again = unflatten_batch(flat, Size(batch))
    assert all(map(torch.equal, leaves(again), leaves(made)))
