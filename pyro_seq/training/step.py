"""One optimisation step, and the losses that wait on the device until they are read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from pyro_seq.data import Batch
from pyro_seq.training.distributed import sum_all, world_size

__all__ = ["LossMeter", "Precision", "StepValues", "autocast", "train_step"]

Precision = Literal["float32", "bfloat16"]


class StepValues(NamedTuple):
    """What one optimisation step measured, on the device.

    Attributes:
        loss: (), loss of the batch before the step.
        gradient_norm: (), norm of the gradients before clipping; zero where nothing is clipped.
    """

    loss: Tensor
    gradient_norm: Tensor


class LossMeter:
    """Keeps the values of steps on the device and reads them all at once."""

    def __init__(self) -> None:
        self._pending: list[Tensor] = []

    def add(self, values: StepValues) -> None:
        """Keeps the values of a step, without waiting for them."""
        self._pending.append(torch.stack(values))

    def read(self) -> list[tuple[float, float]]:
        """Loss and gradient norm of each step since the last read, means over the processes."""
        if not self._pending:
            return []
        values = sum_all(torch.stack(self._pending)) / world_size()
        self._pending = []
        return [(loss, norm) for loss, norm in values.tolist()]


def train_step(
    loss: nn.Module,
    batch: Batch,
    optimizer: torch.optim.Optimizer,
    *,
    schedule: LRScheduler | None = None,
    clip_norm: float | None = None,
    precision: Precision = "float32",
    on_gradients: Callable[[], None] | None = None,
) -> StepValues:
    """Computes the gradient of a batch's loss, clips it and takes one optimizer step.

    Args:
        loss: module from a batch to its mean loss.
        batch: sequences on the device of the loss.
        optimizer: optimizer of the loss's parameters.
        schedule: learning rate schedule, advanced by one.
        clip_norm: largest norm of all gradients together.
        precision: "bfloat16" runs the networks under autocast.
        on_gradients: called between the backward pass and the clipping.

    Returns:
        Loss and gradient norm, still on the device.
    """
    optimizer.zero_grad(set_to_none=True)
    with autocast(batch.x.device, precision):
        value = loss(batch)
    value.backward()
    if on_gradients is not None:
        on_gradients()
    norm = value.new_zeros(())
    if clip_norm is not None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        norm = nn.utils.clip_grad_norm_(parameters, clip_norm)
    optimizer.step()
    if schedule is not None:
        schedule.step()
    return StepValues(value.detach(), norm.detach())


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """Context for networks in ``precision``; the linear algebra switches it off itself."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")
