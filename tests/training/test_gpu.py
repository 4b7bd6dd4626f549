"""Training on a CUDA device; commands for one: pytest tests/training/test_gpu.py."""

from __future__ import annotations

from pathlib import Path

import pyro
import pytest
import torch

from pyro_seq.training import SequenceLoss, fit, load_weights
from pyro_seq.training.step import train_step
from tests.training.toys import ToyBatches, toy_batch, toy_pair

pytestmark = pytest.mark.gpu


def test_step_does_not_wait_for_the_device() -> None:
    loss = SequenceLoss(*toy_pair(), site_weights={"x": 0.3}).cuda()
    optimizer = torch.optim.Adam(loss.parameters(), 1e-2)
    batch = toy_batch().to("cuda")
    with pyro.validation_enabled(False):
        train_step(loss, batch, optimizer, clip_norm=1.0)
        torch.cuda.set_sync_debug_mode("error")
        try:
            train_step(loss, batch, optimizer, clip_norm=1.0)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_fit_and_resume(tmp_path: Path, precision: str) -> None:
    histories = []
    for epochs, resume in ((4, False), (2, False), (4, True)):
        loss = SequenceLoss(*toy_pair())
        result = fit(
            loss,
            ToyBatches(),
            ToyBatches(1, seed=7),
            epochs=epochs,
            optimizer=torch.optim.Adam(loss.parameters(), 1e-2),
            device="cuda",
            precision=precision,
            checkpoint_dir=tmp_path,
            resume=resume,
        )
        histories.append([record["loss"] for record in result.history])
    assert histories[2] == pytest.approx(histories[0], rel=1e-4)
    assert histories[0][-1] < histories[0][0]
    load_weights(SequenceLoss(*toy_pair()), tmp_path)
