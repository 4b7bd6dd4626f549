"""The training loop over a loss that is a ``torch.nn.Module``."""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, NamedTuple

import pyro
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from tqdm import tqdm

from pyro_seq.training.callbacks import Callback, Context
from pyro_seq.training.loss import SequenceLoss

__all__ = ["FitResult", "fit"]


class FitResult(NamedTuple):
    history: list[dict[str, float]]
    best: dict[str, float]
    steps: int
    seconds: float


def fit(
    loss: SequenceLoss,
    train: Iterable[Any],
    validation: Iterable[Any] | None = None,
    *,
    epochs: int,
    optimizer: torch.optim.Optimizer,
    schedule: LRScheduler | None = None,
    clip_norm: float | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
    precision: Literal["float32", "bfloat16"] = "float32",
    callbacks: Sequence[Callback] = (),
    progress: bool | None = None,
    log_every: int = 50,
) -> FitResult:
    """First version: see the final one for the contract."""
    started = time.perf_counter()
    device = torch.device(device) if device is not None else next(loss.parameters()).device
    loss.to(device)
    pyro.set_rng_seed(seed)
    context = Context(loss, optimizer)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    show = sys.stderr.isatty() if progress is None else progress
    with tqdm(total=epochs * len(train), disable=not show, unit="step") as bar:
        for context.epoch in range(epochs):
            if hasattr(train, "set_epoch"):
                train.set_epoch(context.epoch)
            loss.train()
            losses: list[Tensor] = []
            epoch_losses: list[float] = []
            for batch in train:
                batch = type(batch)(*(None if t is None else t.to(device, non_blocking=True) for t in batch))
                with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
                    value = loss(batch)
                optimizer.zero_grad(set_to_none=True)
                value.backward()
                for callback in callbacks:
                    callback.on_gradients(context)
                if clip_norm is not None:
                    nn.utils.clip_grad_norm_(parameters, clip_norm)
                optimizer.step()
                if schedule is not None:
                    schedule.step()
                context.step += 1
                context.batch_loss = value.detach()
                losses.append(context.batch_loss)
                for callback in callbacks:
                    callback.on_step(context)
                bar.update()
                if len(losses) == log_every:
                    epoch_losses += torch.stack(losses).tolist()
                    losses = []
                    bar.set_postfix(loss=f"{epoch_losses[-1]:.4g}")
            if losses:
                epoch_losses += torch.stack(losses).tolist()
            context.record = {
                "epoch": context.epoch,
                "step": context.step,
                "loss": sum(epoch_losses) / len(epoch_losses),
                "learning_rate": optimizer.param_groups[0]["lr"],
            }
            if validation is not None:
                loss.eval()
                with torch.no_grad():
                    totals = [
                        loss.totals(type(b)(*(None if t is None else t.to(device) for t in b)))
                        for b in validation
                    ]
                context.record["validation_loss"] = float(
                    sum(t.loss for t in totals) / sum(t.count for t in totals)
                )
            for callback in callbacks:
                callback.on_epoch_end(context)
            context.history.append(context.record)
            if context.stop:
                break
    best = min(context.history, key=lambda r: r.get("validation_loss", r["loss"]))
    return FitResult(context.history, best, context.step, time.perf_counter() - started)
