"""Checks of the shapes of linear-Gaussian models, with errors that name the argument."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_seq.ops.kalman import LinearGaussian

__all__ = ["broadcast", "check_mask", "check_shapes"]


def broadcast(name: str, words: str, shape: torch.Size, batch: torch.Size) -> torch.Size:
    """The joint batch shape of an argument and the distribution, or an error that names it."""
    try:
        return torch.broadcast_shapes(shape[:-2], batch)
    except RuntimeError as error:
        raise ValueError(
            f"{name} must be (*sample, *batch, {words}) with batch = {tuple(batch)}; "
            f"got shape {tuple(shape)}"
        ) from error


def check_mask(mask: Tensor, steps: int, obs: int, batch_rank: int) -> Tensor:
    """The mask per coordinate, `(*batch, time, obs)`."""
    if mask.dtype != torch.bool:
        raise ValueError(f"mask must be a bool tensor, True where observed; got {mask.dtype}")
    coordinates = mask.dim() >= 2 and mask.shape[-2:] == (steps, obs)
    frames = mask.dim() >= 1 and mask.shape[-1] == steps
    if coordinates and frames:  # time = obs: the rank of the parameters decides
        coordinates, frames = mask.dim() == batch_rank + 2, mask.dim() == batch_rank + 1
    if coordinates:
        return mask
    if frames:
        return mask.unsqueeze(-1).expand(*mask.shape, obs)
    raise ValueError(
        f"mask must be (*batch, time) = (*batch, {steps}) or (*batch, time, obs) = "
        f"(*batch, {steps}, {obs}); got shape {tuple(mask.shape)}"
    )


def check_shapes(model: LinearGaussian, time: int | None) -> tuple[int, torch.Size]:
    """The number of steps and the batch shape, or an error that names what does not fit."""
    if model.initial_loc.dim() < 1 or model.emission.dim() < 3:
        raise ValueError(
            "initial_loc must be (*batch, state) and emission (*batch, time | 1, obs, state); "
            f"got shapes {tuple(model.initial_loc.shape)} and {tuple(model.emission.shape)}"
        )
    lengths, batches = _lengths_and_batches(model)
    if time is None and max(lengths.values()) == 1:
        raise ValueError("time must be given when every matrix is constant; got None")
    if time is not None and time < 1:
        raise ValueError(f"time must be at least 1; got {time}")
    steps = time if time is not None else max(lengths.values())
    for name, length in lengths.items():
        if length not in (1, steps):
            raise ValueError(
                f"{name} must have {steps} time steps, or 1 when it is constant; got {length}"
            )
    try:
        return steps, torch.broadcast_shapes(*batches.values())
    except RuntimeError as error:
        raise ValueError(f"batch shapes must broadcast; got {batches}") from error


def _lengths_and_batches(
    model: LinearGaussian,
) -> tuple[dict[str, int], dict[str, tuple[int, ...]]]:
    """Time steps and batch shape of every tensor by its name; its other dimensions are checked."""
    state, obs = model.initial_loc.shape[-1], model.emission.shape[-2]
    wanted = {
        "initial_loc": ("state", (state,)),
        "initial_cov": ("state, state", (state, state)),
        "transition": ("time | 1, state, state", (state, state)),
        "offset": ("time | 1, state", (state,)),
        "transition_cov": ("time | 1, state, state", (state, state)),
        "emission": ("time | 1, obs, state", (obs, state)),
        "emission_cov": ("time | 1, obs, obs", (obs, obs)),
    }
    lengths, batches = {}, {}
    for name, (words, tail) in wanted.items():
        shape = getattr(model, name).shape
        timed = not name.startswith("initial")
        rank = len(shape) - len(tail) - timed
        if rank < 0 or shape[rank + timed :] != tail:
            raise ValueError(
                f"{name} must be (*batch, {words}) with state = {state} and obs = {obs}; "
                f"got shape {tuple(shape)}"
            )
        if timed:
            lengths[name] = shape[rank]
        batches[name] = tuple(shape[:rank])
    return lengths, batches
