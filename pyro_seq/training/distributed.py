"""Training in several processes: one per device, started by ``torchrun``.

The same script runs in one process and, under ``torchrun --nproc-per-node=2 script.py``, in two:
``initialise`` reads the environment that torchrun sets, the data loaders take the rank and number
of processes (``pyro_seq.data.batches(..., rank=, world_size=)``), and ``fit`` does the rest.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

__all__ = [
    "Process",
    "gather",
    "initialise",
    "process_group",
    "rank",
    "sum_all",
    "world_size",
    "wrap",
]


class Process(NamedTuple):
    """This process among those that train together.

    Attributes:
        rank: its number, from 0.
        world_size: number of processes.
        device: device that it should train on.
    """

    rank: int
    world_size: int
    device: torch.device


def initialise(device: torch.device | str | None = None) -> Process:
    """Joins the processes that torchrun started, with NCCL on CUDA devices and gloo elsewhere.

    Without torchrun's environment nothing is started and the process is alone.

    Args:
        device: "cpu", "cuda" (the device with the local rank's number) or a single device; when
            None CUDA where there is one.

    Returns:
        Rank, number of processes and device.

    Raises:
        RuntimeError: torchrun's environment is there only in part.
    """
    kind = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    present = [name for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK") if name in os.environ]
    if not present:
        return Process(0, 1, kind)
    if len(present) < 3:
        raise RuntimeError(
            f"of RANK, WORLD_SIZE and LOCAL_RANK only {present} is set; start the script with "
            "torchrun, or unset them for a run in one process"
        )
    if kind.type == "cuda" and kind.index is None:
        kind = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    if kind.type == "cuda":
        torch.cuda.set_device(kind)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if kind.type == "cuda" else "gloo")
    return Process(dist.get_rank(), dist.get_world_size(), kind)


@contextmanager
def process_group(device: torch.device | str | None = None) -> Iterator[Process]:
    """``initialise`` as a context that leaves the group at its end."""
    process = initialise(device)
    try:
        yield process
    finally:
        if dist.is_available() and dist.is_initialized():
            dist.destroy_process_group()


def rank() -> int:
    """Number of this process, 0 where it is alone."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def world_size() -> int:
    """Number of processes, 1 where this one is alone."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def wrap(loss: nn.Module) -> nn.Module:
    """The loss in DistributedDataParallel where there are several processes, else as it is.

    The parameters of rank 0 are sent to the others. Parameters without a gradient in a step are
    allowed (``find_unused_parameters``; where all have one torch says once that this costs time).
    A loss that comes wrapped is kept as it is.
    """
    if world_size() == 1 or isinstance(loss, DistributedDataParallel):
        return loss
    return DistributedDataParallel(loss, find_unused_parameters=True)


def sum_all(values: Tensor) -> Tensor:
    """Sum of a tensor over the processes, the same on each."""
    if world_size() > 1:
        values = values.clone()
        dist.all_reduce(values)
    return values


def gather(value: Any) -> list[Any]:  # noqa: ANN401 - anything that can be pickled
    """Values of all processes in the order of their ranks, on each process."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values
