"""What may happen between the steps of ``fit``: freezing, own measures."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pyro_seq.training.loss import SequenceLoss

__all__ = ["Callback", "Context", "Freeze"]


@dataclass
class Context:
    """Where a run of ``fit`` stands, as its callbacks see it.

    Attributes:
        loss: the loss that is trained, with ``loss.model`` and ``loss.guide``.
        optimizer: its optimizer.
        epoch: current epoch, from 0.
        batch: batches done in this epoch.
        step: optimizer steps done in all epochs.
        batch_loss: (), loss of the last batch, on the device; reading it as a float waits for it.
        record: measures of the current epoch; a callback adds its own in ``on_epoch_end``.
        history: records of the epochs before.
        stop: set True to end training after this epoch.
    """

    loss: SequenceLoss
    optimizer: torch.optim.Optimizer
    epoch: int = 0
    batch: int = 0
    step: int = 0
    batch_loss: Tensor | None = None
    record: dict[str, float] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)
    stop: bool = False


class Callback:
    """Hooks into ``fit`` that do nothing; override those that are needed.

    State that a resumed run needs goes through ``state_dict`` and ``load_state_dict`` and may hold
    tensors, numbers, strings, lists and dictionaries.
    """

    def on_gradients(self, context: Context) -> None:
        """After the backward pass, before clipping and the optimizer step."""

    def on_step(self, context: Context) -> None:
        """After each optimizer step."""

    def on_epoch_end(self, context: Context) -> None:
        """After validation, before the record of the epoch is closed, logged and saved."""

    def state_dict(self) -> dict[str, Any]:
        """State of the callback for a checkpoint."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what ``state_dict`` returned."""


class Freeze(Callback):
    """Holds parameters fixed for the first epochs by dropping their gradients.

    ``requires_grad`` stays as it is, so that DistributedDataParallel, which reads it once, and
    Pyro's parameter store, which sets it, both work. The optimizer sees no gradient: it neither
    moves the parameters nor fills their moments until they are released.

    Args:
        modules: modules (or single parameters) to hold.
        epochs: number of epochs from the start of training.
        reset_optimizer: whether the optimizer forgets the moments of all parameters at the end of
            these epochs, as if a second training began.

    Raises:
        ValueError: there is no parameter among the modules.
    """

    def __init__(
        self,
        modules: nn.Module | Iterable[nn.Module | nn.Parameter],
        epochs: int,
        *,
        reset_optimizer: bool = False,
    ) -> None:
        parts = [modules] if isinstance(modules, nn.Module) else list(modules)
        self.parameters = [
            parameter
            for part in parts
            for parameter in (part.parameters() if isinstance(part, nn.Module) else [part])
        ]
        self.epochs = epochs
        self.reset_optimizer = reset_optimizer
        if not self.parameters:
            raise ValueError(
                "Freeze: the modules given have no parameters; nothing would be frozen"
            )

    def on_gradients(self, context: Context) -> None:
        """Drops the gradients while the epochs last."""
        if context.epoch < self.epochs:
            for parameter in self.parameters:
                parameter.grad = None

    def on_epoch_end(self, context: Context) -> None:
        """Resets the optimizer after the last of the epochs, where asked for."""
        if self.reset_optimizer and context.epoch == self.epochs - 1:
            context.optimizer.state.clear()
