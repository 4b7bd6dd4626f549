"""What a checkpoint keeps, so that a resumed run equals one that was never broken."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from pyro_seq.training.callbacks import Callback, Context
from pyro_seq.training.checkpoint import Checkpoint, CheckpointError
from pyro_seq.training.distributed import gather, rank, world_size
from pyro_seq.training.loss import SequenceLoss
from pyro_seq.training.random_state import get_random_state, set_random_state

__all__ = ["RunState"]

_COUNTERS = ("epoch", "batch", "step", "stop", "history")


class RunState:
    """Weights, optimizer, schedule, callbacks, counters, history and random number generators.

    Args:
        loss: loss that is trained, not wrapped.
        optimizer: its optimizer.
        schedule: learning rate schedule of the optimizer.
        callbacks: callbacks of the run.

    Attributes:
        context: the run's counters and history.
        epoch_values: loss and gradient norm of each step of the epoch that was read so far.
        best_weights: state of the loss at its best epoch, on the CPU.
        seconds: duration of the run, all its parts together.
    """

    def __init__(
        self,
        loss: SequenceLoss,
        optimizer: Optimizer,
        schedule: LRScheduler | None,
        callbacks: Sequence[Callback],
    ) -> None:
        self.loss, self.optimizer = loss, optimizer
        self.schedule, self.callbacks = schedule, callbacks
        self.context = Context(loss, optimizer)
        self.epoch_values: list[list[float]] = []
        self.best_weights: dict[str, Tensor] | None = None
        self.seconds = 0.0
        self._epoch_random: dict[str, Any] | None = None
        self._resumed_random: dict[str, Any] | None = None

    @property
    def device(self) -> torch.device:
        """Device of the loss."""
        return next(self.loss.parameters()).device

    def begin_epoch(self) -> None:
        """Before the epoch's batches are asked for: random numbers as when the epoch began."""
        if self._epoch_random is not None:
            set_random_state(self._epoch_random, self.device)
        elif self._resumed_random is not None:
            set_random_state(self._resumed_random, self.device)
            self._resumed_random = None
        self._epoch_random = self._epoch_random or get_random_state(self.device)

    def skipped_done_batches(self) -> None:
        """After the done batches are skipped: random numbers as when the checkpoint was made."""
        if self._resumed_random is not None:
            set_random_state(self._resumed_random, self.device)
            self._resumed_random = None

    def end_epoch(self, record: dict[str, float]) -> None:
        """Closes the epoch with its record."""
        context = self.context
        context.history.append(record)
        context.epoch, context.batch, self.epoch_values = context.epoch + 1, 0, []
        self._epoch_random = None

    def keep_best_weights(self) -> None:
        """Copies the weights of the loss, and what else its modules keep."""
        self.best_weights = {
            name: value.detach().cpu().clone() if isinstance(value, Tensor) else deepcopy(value)
            for name, value in self.loss.state_dict().items()
        }

    def state_dict(self) -> dict[str, Any]:
        """State of plain types and tensors; all processes take part."""
        random_states = gather([get_random_state(self.device), self._epoch_random])
        schedule = self.schedule
        return {
            "module": self.loss.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "optimizer_class": type(self.optimizer).__name__,
            "schedule": None if schedule is None else schedule.state_dict(),
            "callbacks": [callback.state_dict() for callback in self.callbacks],
            "random": random_states,
            "epoch_values": self.epoch_values,
            "best_weights": self.best_weights,
            "seconds": self.seconds,
            **{name: getattr(self.context, name) for name in _COUNTERS},
        }

    def restore(self, checkpoint: Checkpoint) -> None:
        """Takes up the state of a checkpoint.

        Raises:
            CheckpointError: it belongs to another module, optimizer or number of processes.
        """
        state, processes = checkpoint.state, world_size()
        try:
            if len(state["random"]) != processes:
                raise ValueError(
                    f"it was written by {len(state['random'])} processes, this run has {processes}"
                )
            self._load_parts(state)
            for name in _COUNTERS:
                setattr(self.context, name, state[name])
            self._resumed_random, self._epoch_random = state["random"][rank()]
            self.epoch_values, self.seconds = state["epoch_values"], state["seconds"]
            self.best_weights = state["best_weights"]
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{checkpoint.path} does not fit this run: {error}. Resume with the model, "
                "optimizer, schedule, callbacks and number of processes it was started with"
            ) from error

    def _load_parts(self, state: dict[str, Any]) -> None:
        if (self.schedule is None) != (state["schedule"] is None):
            raise ValueError("one of them has a schedule and the other has none")
        if len(self.callbacks) != len(state["callbacks"]):
            raise ValueError(
                f"it has {len(state['callbacks'])} callbacks, this run {len(self.callbacks)}"
            )
        here = type(self.optimizer).__name__
        there = state.get("optimizer_class", here)
        if there != here:
            raise ValueError(f"its optimizer is {there}, that of this run {here}")
        self.loss.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.schedule is not None:
            self.schedule.load_state_dict(state["schedule"])
        for callback, saved in zip(self.callbacks, state["callbacks"], strict=True):
            callback.load_state_dict(saved)
