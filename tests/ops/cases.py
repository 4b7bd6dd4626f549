"""Seeded random models, masks and observations, small enough for the dense oracle."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from tests.ops.dense import EVENT_DIMS, Model

FIELDS = Model._fields
NOISES = ("initial_cov", "transition_cov", "emission_cov")


class Layout(NamedTuple):
    """Sizes of a case: what varies over time, and what has a batch shape of its own."""

    batch: tuple[int, ...]
    time: int
    latent: int
    obs: int
    varying: tuple[str, ...] = ()
    own_batch: dict[str, tuple[int, ...]] = {}


OWN_BATCH = {"initial_loc": (3,), "transition": (2, 1), "emission": (1,), "offset": ()}
LAYOUTS = {
    "constant": Layout((), 4, 2, 2),
    "varying": Layout((2,), 5, 3, 2, FIELDS),
    "kvae": Layout((3,), 6, 4, 2, ("transition", "emission", "offset"), dict.fromkeys(NOISES, ())),
    "broadcast": Layout((2, 3), 4, 2, 1, ("transition", "emission_cov"), OWN_BATCH),
    "more_observed": Layout((2,), 7, 2, 3, ("emission", "transition_cov")),
    "scalar": Layout((2,), 8, 1, 1, ("transition", "offset")),
    "one_step": Layout((2,), 1, 3, 2, FIELDS),
    "two_steps": Layout((2,), 2, 2, 2, FIELDS),
    "three_steps": Layout((), 3, 2, 1, FIELDS),
}
MASKS = ("none", "ones", "frames", "coordinates", "nothing", "only_first", "only_last")


def leaf_shapes(layout: Layout) -> dict[str, tuple[int, ...]]:
    """Shape of each free tensor; covariances are given by square factors."""
    z, a = layout.latent, layout.obs
    events = dict(zip(FIELDS, [(z,), (z, z), (z, z), (z,), (z, z), (a, z), (a, a)], strict=True))
    shapes = {}
    for name, event_dim in zip(FIELDS, EVENT_DIMS, strict=True):
        steps = (layout.time,) if name in layout.varying else (1,)
        timed = event_dim > len(events[name])
        own = layout.own_batch.get(name, layout.batch)
        shapes[name] = own + (steps if timed else ()) + events[name]
    return {**shapes, "a": (*layout.batch, layout.time, a), "z": (*layout.batch, layout.time, z)}


def random_leaves(layout: Layout, seed: int = 0, scale: float = 1.0) -> dict[str, Tensor]:
    """Free tensors in float64 that need a gradient."""
    generator = torch.Generator().manual_seed(seed)
    leaves = {}
    for name, shape in leaf_shapes(layout).items():
        value = scale * torch.randn(shape, generator=generator, dtype=torch.float64)
        if name in NOISES:
            value = 0.3 * value + 0.7 * torch.eye(shape[-1], dtype=torch.float64)
        if name == "transition":
            value = 0.4 * value + 0.6 * torch.eye(shape[-1], dtype=torch.float64)
        leaves[name] = value.requires_grad_()
    return leaves


def build_model(leaves: dict[str, Tensor]) -> Model:
    """The model of free tensors: a covariance is F F' + 0.05 I."""
    values = []
    for name in FIELDS:
        value = leaves[name]
        if name in NOISES:
            value = value @ value.mT + 0.05 * torch.eye(value.shape[-1], dtype=value.dtype)
        values.append(value)
    return Model(*values)


def random_mask(layout: Layout, kind: str, seed: int = 1) -> Tensor | None:
    """A mask by name, unequal over the batch; "frames" leaves the last sequence all missing."""
    generator = torch.Generator().manual_seed(seed)
    frames = (*layout.batch, layout.time)
    if kind == "none":
        return None
    if kind == "coordinates":
        return torch.rand((*frames, layout.obs), generator=generator) < 0.6
    if kind == "frames":
        mask = torch.rand(frames, generator=generator) < 0.6
        if layout.batch:
            mask[(-1,) * len(layout.batch)] = False
        return mask
    mask = torch.full(frames, kind == "ones")
    if kind.startswith("only"):
        mask[..., 0 if kind == "only_first" else -1] = True
    return mask


def hide(a: Tensor, mask: Tensor | None, fill: float = float("nan")) -> Tensor:
    """The observations with ``fill`` written under every False of the mask."""
    if mask is None:
        return a
    full = mask if mask.dim() == a.dim() else mask[..., None]
    return torch.where(full, a, torch.full_like(a, fill))
