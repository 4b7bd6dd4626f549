"""Tensors in nested tuples, named tuples, lists and dictionaries: states of recurrent parts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Size, Tensor

__all__ = [
    "detach",
    "flatten_batch",
    "leaves",
    "map_tensors",
    "stack",
    "unbind",
    "unflatten_batch",
    "where",
]

_SEQUENCES = (tuple, list)


def map_tensors(function: Callable[..., Any], tree: Any, *others: Any) -> Any:  # noqa: ANN401
    """Applies a function to every tensor of a tree, and keeps its form.

    Args:
        function: Called with a tensor, and with the tensors of the others at its place.
        tree: A tensor, or a tuple, named tuple, list or dictionary of trees; what is none of
            these, a number or None, stays as it is.
        *others: Trees of the same form.

    Returns:
        The tree of results.

    Example:
        >>> map_tensors(lambda t: t + 1, (torch.zeros(1), None, {"a": torch.ones(1)}))
        (tensor([1.]), None, {'a': tensor([2.])})
    """
    if isinstance(tree, Tensor):
        return function(tree, *others)
    if isinstance(tree, dict):
        return {key: map_tensors(function, tree[key], *(o[key] for o in others)) for key in tree}
    if isinstance(tree, _SEQUENCES):
        parts = [map_tensors(function, *each) for each in zip(tree, *others, strict=True)]
        return type(tree)(*parts) if hasattr(tree, "_fields") else type(tree)(parts)
    return tree


def leaves(tree: Any) -> Iterator[Tensor]:  # noqa: ANN401
    """The tensors of a tree, in order."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, dict):
        for part in tree.values():
            yield from leaves(part)
    elif isinstance(tree, _SEQUENCES):
        for part in tree:
            yield from leaves(part)


def detach(tree: Any) -> Any:  # noqa: ANN401
    """The tree without its gradient."""
    return map_tensors(Tensor.detach, tree)


def where(seen: Tensor, after: Any, before: Any) -> Any:  # noqa: ANN401
    """One tree where something was seen, else another of its form, or a number for a tensor.

    Args:
        seen: bool `(*batch)`, the first dimensions of every tensor.
        after: The tree where it is True.
        before: That where it is False.
    """

    def choose(new: Tensor, old: Any) -> Tensor:  # noqa: ANN401
        return torch.where(seen.reshape(*seen.shape, *(1,) * (new.dim() - seen.dim())), new, old)

    return map_tensors(choose, after, before)


def stack(trees: Sequence[Any], dim: int = 0) -> Any:  # noqa: ANN401
    """Trees of one form as one tree, each of its tensors with a new dimension."""
    return map_tensors(lambda *each: torch.stack(each, dim), trees[0], *trees[1:])


def flatten_batch(tree: Any, batch: Size) -> Any:  # noqa: ANN401
    """A tree whose tensors have one batch dimension in place of those given."""
    if len(batch) == 1:
        return tree
    return map_tensors(lambda p: p.reshape((batch.numel(), *p.shape[len(batch) :])), tree)


def unflatten_batch(tree: Any, batch: Size) -> Any:  # noqa: ANN401
    """A tree whose tensors have the batch dimensions given in place of one."""
    if len(batch) == 1:
        return tree
    return map_tensors(lambda p: p.reshape((*batch, *p.shape[1:])), tree)


def unbind(tree: Any, dim: int = 0) -> list[Any]:  # noqa: ANN401
    """A tree as one tree for each index of a dimension of its tensors, which they lose."""
    columns = zip(*(leaf.unbind(dim) for leaf in leaves(tree)), strict=True)
    trees = []
    for column in columns:
        parts = iter(column)
        trees.append(map_tensors(lambda _, parts=parts: next(parts), tree))
    return trees
