"""Trains the toy pair with checkpoints: resume_script.py FOLDER KILL_AT_STEP."""

from __future__ import annotations

import os
import random
import signal
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader

from pyro_seq.data import Batch, SequenceDataset, batches
from pyro_seq.training import (
    Callback,
    Context,
    CSVLogger,
    JSONLinesLogger,
    MemoryLogger,
    SequenceLoss,
    WarnOnPlateau,
    fit,
    warmup_cosine,
)
from tests.training.toys import ToyBatches, toy_pair


class Noise(Callback):
    """Draws from every generator and counts, so that generators and count must be restored."""

    count = 0

    def on_step(self, context: Context) -> None:
        self.count += 1
        scale = 1e-3 * (random.random() + np.random.rand() + float(torch.rand(())))  # noqa: NPY002
        with torch.no_grad():
            context.loss.model.emission.bias.add_(scale)

    def on_epoch_end(self, context: Context) -> None:
        context.record["count"] = self.count

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count = state["count"]


class KillAt(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, context: Context) -> None:
        if context.step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


class Interrupt(KillAt):
    def on_step(self, context: Context) -> None:
        if context.step == self.step:
            raise KeyboardInterrupt


def collate(parts: list[Batch]) -> Batch:
    return Batch(torch.stack([part.x for part in parts]))


def loader(kind: str) -> Any:  # noqa: ANN401
    if kind == "toy":
        return ToyBatches(5)
    x = torch.randn(22, 5, 3, generator=torch.Generator().manual_seed(1))
    if kind == "batches":
        return batches(SequenceDataset(x), 5, drop_probability=0.3, observed_start=1)
    return DataLoader(SequenceDataset(x), 5, shuffle=True, collate_fn=collate)


class Trained(NamedTuple):
    history: list[dict[str, float]]
    weights: dict[str, torch.Tensor]
    memory: MemoryLogger


def train(
    folder: Path,
    stop: Callback,
    *,
    resume: bool | Path = False,
    kind: str = "batches",
    checkpoints: bool = True,
) -> Trained:
    loss = SequenceLoss(*toy_pair())
    optimizer = torch.optim.AdamW(loss.parameters(), 1e-2)
    memory = MemoryLogger()
    result = fit(
        loss,
        loader(kind),
        ToyBatches(2, seed=50),
        epochs=4,
        optimizer=optimizer,
        schedule=warmup_cosine(optimizer, 20, warmup=4),
        clip_norm=5.0,
        checkpoint_dir=folder / "checkpoint" if checkpoints else None,
        checkpoint_every=3 if checkpoints else None,
        resume=resume,
        early_stopping=10,
        log_every=1,
        loggers=[memory, CSVLogger(folder / "log.csv"), JSONLinesLogger(folder / "log.jsonl")],
        callbacks=[Noise(), WarnOnPlateau("loss", stall=3), stop],
    )
    return Trained(result.history, loss.state_dict(), memory)


if __name__ == "__main__":
    train(Path(sys.argv[1]), KillAt(int(sys.argv[2])))
