"""The loop of a training run over epochs and batches."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from pyro_seq.data import Batch
from pyro_seq.training.checkpoint import save_checkpoint
from pyro_seq.training.distributed import rank, world_size
from pyro_seq.training.loggers import Logger
from pyro_seq.training.run_state import RunState
from pyro_seq.training.step import LossMeter, Precision, train_step
from pyro_seq.training.validation import batches_from, mean_loss

__all__ = ["NonFiniteLossError", "Options", "Run"]


class NonFiniteLossError(FloatingPointError):
    """The loss, a gradient or a parameter became infinite or NaN."""


@dataclass(frozen=True)
class Options:
    """The arguments of ``fit`` that stay as they are during a run; see there."""

    epochs: int
    clip_norm: float | None
    seed: int
    precision: Precision
    checkpoint_dir: Path | None
    checkpoint_every: int | None
    config: Mapping[str, Any]
    early_stopping: int | None
    loggers: Sequence[Logger]
    log_every: int
    progress: bool


class Run:
    """A run that starts, or goes on, where its state stands.

    Args:
        state: what a checkpoint keeps.
        loss: the state's loss, wrapped for several processes where there are.
        train: batches of an epoch; iterated anew for each.
        validation: batches to measure the loss on after each epoch.
        options: everything else.
    """

    def __init__(
        self,
        state: RunState,
        loss: nn.Module,
        train: Iterable[Batch],
        validation: Iterable[Batch] | None,
        options: Options,
    ) -> None:
        self.state, self.context, self.loss = state, state.context, loss
        self.train, self.validation, self.options = train, validation, options
        self.loggers = options.loggers if rank() == 0 else ()
        self.monitor = "loss" if validation is None else "validation_loss"
        self.meter = LossMeter()
        self.last_saved = "none"

    def execute(self) -> None:
        """Trains until the last epoch or an early stop."""
        started = time.perf_counter() - self.state.seconds
        for logger in self.loggers:
            logger.start(self.context.step)
        try:
            with self._progress_bar() as bar:
                while self.context.epoch < self.options.epochs and not self.context.stop:
                    for batch in self._batches():
                        self._step(batch)
                        bar.update()
                        self.state.seconds = time.perf_counter() - started
                        self._after_step(bar)
                    self._end_epoch(started)
        finally:
            for logger in self.loggers:
                logger.close()

    def best(self) -> dict[str, float]:
        """Record of the best epoch so far."""
        return min(self.context.history, key=lambda record: record[self.monitor])

    def _progress_bar(self) -> tqdm:
        steps = len(self.train) if isinstance(self.train, Sized) else None
        return tqdm(
            total=None if steps is None else steps * self.options.epochs,
            initial=self.context.step,
            disable=not self.options.progress,
            unit="step",
        )

    def _batches(self) -> Iterator[Batch]:
        """Batches of the epoch from where it stands, random numbers as in an unbroken run."""
        self.state.begin_epoch()
        iterator = batches_from(self.train, self.context.epoch, self.context.batch)
        self.state.skipped_done_batches()
        yield from iterator
        if self.context.batch == 0:
            raise ValueError(
                f"train gave no batch in epoch {self.context.epoch}; a generator can be read only "
                "once: pass what can be iterated anew, such as pyro_seq.data.batches(...)"
            )

    def _step(self, batch: Batch) -> None:
        context, options = self.context, self.options
        if not isinstance(batch, Batch):
            raise TypeError(
                f"train must give batches of type Batch; got {type(batch).__name__}. "
                "Use pyro_seq.data.Batch(x, mask, controls)"
            )
        self.loss.train()
        try:
            values = train_step(
                self.loss,
                batch.to(self.state.device, non_blocking=True),
                context.optimizer,
                schedule=self.state.schedule,
                clip_norm=options.clip_norm,
                precision=options.precision,
                on_gradients=lambda: self._call("on_gradients"),
            )
        except (ValueError, RuntimeError) as error:
            self._explain(error)
            raise
        context.step += 1
        context.batch += 1
        context.batch_loss = values.loss
        self.meter.add(values)

    def _after_step(self, bar: tqdm) -> None:
        context, options = self.context, self.options
        self._call("on_step")
        if context.step % options.log_every == 0:
            self._read_losses()
            recent = self.state.epoch_values[-options.log_every :]
            losses, norms = zip(*recent, strict=True)
            values = {"batch_loss": math.fsum(losses) / len(losses), **self._learning_rate()}
            if options.clip_norm is not None:
                values["gradient_norm"] = math.fsum(norms) / len(norms)
            self._log({"epoch": context.epoch, **values})
            bar.set_postfix(epoch=context.epoch, loss=f"{values['batch_loss']:.5g}")
        if options.checkpoint_every and context.step % options.checkpoint_every == 0:
            self._save()

    def _end_epoch(self, started: float) -> None:
        context = self.context
        self._read_losses()
        losses = [loss for loss, _ in self.state.epoch_values]
        context.record = {"loss": math.fsum(losses) / len(losses), **self._learning_rate()}
        if self.validation is not None:
            context.record["validation_loss"] = self._validate(self.validation)
        self._call("on_epoch_end")
        self.state.seconds = time.perf_counter() - started
        record: dict[str, float] = {"epoch": context.epoch, "step": context.step}
        record.update((name, float(value)) for name, value in context.record.items())
        record["seconds"] = self.state.seconds
        self.state.end_epoch(record)
        self._log(record)
        self._judge(record)
        self._save()

    def _judge(self, record: dict[str, float]) -> None:
        """Keeps the weights of the best epoch, and stops when that lies too far back."""
        best, patience = self.best(), self.options.early_stopping
        if self.validation is not None and best is record:
            self.state.keep_best_weights()
        if patience is not None and record["epoch"] - best["epoch"] >= patience:
            self.context.stop = True

    def _validate(self, batches: Iterable[Batch]) -> float:
        options = self.options
        value = mean_loss(
            self.state.loss, batches, precision=options.precision, seed=options.seed + rank()
        )
        if not math.isfinite(value):
            self._fail(f"the validation loss is {value}", self.context.batch - 1)
        return value

    def _read_losses(self) -> None:
        """Reads the values of the last steps from the device and checks them."""
        rows = self.meter.read()
        for index, row in enumerate(rows):
            for what, value in zip(("loss", "norm of the gradients"), row, strict=True):
                if not math.isfinite(value):
                    self._fail(f"the {what} is {value}", self.context.batch - len(rows) + index)
        self.state.epoch_values += [list(row) for row in rows]

    def _explain(self, error: Exception) -> None:
        """Tells where a step failed, and looks for values that were not finite before it."""
        context = self.context
        error.add_note(
            f"in training, epoch {context.epoch}, batch {context.batch} (step {context.step}); "
            f"last checkpoint: {self.last_saved}"
        )
        if world_size() == 1:  # the reads below would wait for the other processes
            self._read_losses()
            self._check_parameters()

    def _fail(self, what: str, batch: int) -> None:
        context = self.context
        raise NonFiniteLossError(
            f"{what} at epoch {context.epoch}, batch {batch} "
            f"(step {context.step - context.batch + batch}); last checkpoint: {self.last_saved}. "
            "Try a lower learning rate, a warm-up, clip_norm, or look at the data of that batch"
        )

    def _save(self) -> None:
        """Writes a checkpoint; all processes take part, rank 0 writes."""
        if self.options.checkpoint_dir is None:
            return
        self._read_losses()
        self._check_parameters()
        state = self.state.state_dict()
        if rank() == 0:
            path = save_checkpoint(self.options.checkpoint_dir, state, self.options.config)
            self.last_saved = f"{path} (step {self.context.step})"

    def _check_parameters(self) -> None:
        named = list(self.state.loss.named_parameters())
        flags = torch.stack([parameter.isfinite().all() for _, parameter in named]).tolist()
        broken = [name for (name, _), fine in zip(named, flags, strict=True) if not fine]
        if broken:
            self._fail(f"parameters {broken} are not finite", self.context.batch - 1)

    def _learning_rate(self) -> dict[str, float]:
        return {"learning_rate": float(self.context.optimizer.param_groups[0]["lr"])}

    def _call(self, hook: str) -> None:
        for callback in self.state.callbacks:
            getattr(callback, hook)(self.context)

    def _log(self, values: Mapping[str, float]) -> None:
        for logger in self.loggers:
            logger.log(self.context.step, values)
