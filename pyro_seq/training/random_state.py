"""The state of every random number generator that a training run draws from."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyro
import torch

__all__ = ["get_random_state", "preserved_random_state", "set_random_state"]


def get_random_state(device: torch.device) -> dict[str, Any]:
    """States of the generators of Python, NumPy, torch and the CUDA device, as plain types."""
    version, numbers, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)  # noqa: NPY002
    return {
        "python": [version, list(numbers), gauss],
        "numpy": [name, [int(key) for key in keys], position, has_gauss, cached],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Restores what ``get_random_state`` returned; a device of another kind keeps its state."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    keys = np.array(keys, dtype=np.uint32)
    np.random.set_state((name, keys, position, has_gauss, cached))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"], device)


@contextmanager
def preserved_random_state(device: torch.device, seed: int) -> Iterator[None]:
    """Draws from generators seeded with ``seed``, and restores the states at the end."""
    state = get_random_state(device)
    pyro.set_rng_seed(seed)
    try:
        yield
    finally:
        set_random_state(state, device)
