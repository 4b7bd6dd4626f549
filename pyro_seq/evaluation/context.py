"""The state in which a pair is evaluated: no gradients, eval mode, its own parameters, a seed."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import pyro
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn

from pyro_seq.data import Batch, as_batch
from pyro_seq.nn.naming import prepare_local_parameters

__all__ = ["as_batch", "blocks", "check", "decode", "evaluating", "place", "stacked"]

FRAMES = 128  # decoded at once; more is slower on a CPU


@contextlib.contextmanager
def evaluating(*modules: nn.Module, seed: int | None = None) -> Iterator[None]:
    """Evaluate modules without changing them or the random numbers of anybody else.

    Inside, all submodules are in evaluation mode, no gradients are recorded and, with a seed, the
    random numbers start from it. Afterwards each submodule is in the mode it was in.

    Args:
        *modules: A model and its guide, or one of them.
        seed: Seed of torch's random numbers; None goes on with the present ones.

    Warns:
        UserWarning: If a batch normalisation has no running statistics: it then mixes the
            sequences of a batch, and a value per sequence means little.
    """
    parts = [part for module in modules for part in module.modules()]
    modes = [part.training for part in parts]
    for part in parts:
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.running_mean is None:
            warnings.warn(
                f"{type(part).__name__} without running statistics normalises with the batch at "
                "hand, also in evaluation mode: the value of a sequence depends on its neighbours",
                UserWarning,
                stacklevel=4,
            )
    devices = {p.device for module in modules for p in module.parameters() if p.is_cuda}
    forked = (
        contextlib.nullcontext()
        if seed is None
        else torch.random.fork_rng(sorted(device.index for device in devices))
    )
    with torch.no_grad(), forked, _own_parameters(modules):
        if seed is not None:
            torch.manual_seed(seed)
        try:
            for part in parts:
                part.training = False
            yield
        finally:
            for part, mode in zip(parts, modes, strict=True):
                part.training = mode


@contextlib.contextmanager
def _own_parameters(modules: tuple[nn.Module, ...]) -> Iterator[None]:
    """Let each PyroParam have the value its module holds, and leave Pyro's global store as it is.

    A module takes over what the global store has under its name. For a deep copy, or a pair that
    was trained with local parameters, this may be the value of another module.
    """
    if pyro.settings.get("module_local_params"):
        for module in modules:
            prepare_local_parameters(module)
        yield
        return
    store = pyro.get_param_store()
    state = store.get_state()
    parts = [part for module in modules for part in module.modules()]
    for part in (part for part in parts if isinstance(part, PyroModule)):
        for name in part._pyro_params:
            full = f"{part._pyro_name}.{name}".lstrip(".")
            if state["params"].get(full) is not getattr(part, f"{name}_unconstrained"):
                state["params"].pop(full, None)
                state["constraints"].pop(full, None)
    with store.scope(state):
        yield


def place(module: nn.Module, batch: Batch) -> Batch:
    """The batch on the device of a module's parameters, whole numbers as floats of their type."""
    like = next((p for p in module.parameters() if p.is_floating_point()), torch.empty(0))
    if not batch.x.is_floating_point():
        batch = batch._replace(x=batch.x.to(like.dtype))
    return batch.to(like.device)


def check(model: Any, batch: Batch) -> None:  # noqa: ANN401
    """Let a model that can, as KVAE, name the argument that does not fit."""
    if hasattr(model, "check"):
        model.check(*batch)


def blocks(batch: Batch, size: int) -> Iterator[Batch]:
    """Parts of at most `size` sequences, in order."""
    if size < 1:
        raise ValueError(f"chunk must be at least 1; got {size}")
    for start in range(0, batch.x.shape[0], size):
        rows = slice(start, start + size)
        yield Batch._make(None if part is None else part[rows] for part in batch)


def decode(model: Any, codes: Tensor) -> Tensor:  # noqa: ANN401
    """Mean frames `(frames, *frame)` of codes `(frames, obs)`, a few at a time."""
    return torch.cat([model.decode(part) for part in codes.split(FRAMES)])


def stacked(batch: Batch, copies: int, chunk: int) -> Iterator[tuple[int, Batch]]:
    """A batch above itself, as many times at once as `chunk` rows have room for.

    Args:
        batch: A few sequences.
        copies: How many times in all.
        chunk: Number of rows that may be in memory at once; a single copy is allowed more.

    Yields:
        How many copies, and the batch of `copies * sequences` rows, copy by copy.
    """
    room = max(1, chunk // batch.x.shape[0])
    for start in range(0, copies, room):
        count = min(room, copies - start)
        parts = [None if t is None else t.repeat(count, *(1,) * (t.dim() - 1)) for t in batch]
        yield count, Batch._make(parts)
