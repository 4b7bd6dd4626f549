"""The loss of batches that are not trained on, and batches from the middle of an epoch."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterable, Iterator

import torch

from pyro_seq.data import Batch
from pyro_seq.training.distributed import sum_all
from pyro_seq.training.loss import SequenceLoss
from pyro_seq.training.random_state import preserved_random_state
from pyro_seq.training.step import Precision, autocast

__all__ = ["batches_from", "mean_loss"]


@torch.no_grad()
def mean_loss(
    loss: SequenceLoss, batches: Iterable[Batch], *, precision: Precision, seed: int
) -> float:
    """Mean loss over all batches and processes, always with the same noise.

    Args:
        loss: the loss, not wrapped; left in evaluation mode.
        batches: batches of this process.
        precision: precision of the networks.
        seed: seed of the noise; the generators are put back to their state afterwards.

    Returns:
        Nats per observed step, or per sequence.

    Raises:
        ValueError: nothing was observed.
    """
    loss.eval()
    device = next(loss.parameters()).device
    sums = torch.zeros(2, device=device, dtype=torch.float64)
    with preserved_random_state(device, seed):
        for batch in batches_from(batches, 0, 0):
            batch = batch.to(device, non_blocking=True)
            with autocast(device, precision):
                sums += torch.stack(loss.totals(batch)).double()
    total, units = sum_all(sums).tolist()
    if units == 0:
        raise ValueError("validation has no observed step: it is empty, or its masks are False")
    return total / units


def batches_from(batches: Iterable[Batch], epoch: int, start: int) -> Iterator[Batch]:
    """Batches of an epoch from number ``start`` on."""
    set_epoch = getattr(batches, "set_epoch", None)
    if set_epoch is not None and "start" in inspect.signature(set_epoch).parameters:
        set_epoch(epoch, start=start)
        return iter(batches)
    if set_epoch is not None:
        set_epoch(epoch)
    iterator = iter(batches)
    for _ in itertools.islice(iterator, start):
        pass
    return iterator
