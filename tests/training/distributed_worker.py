"""What each of two processes does for ``test_distributed``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from pyro_seq.data import Batch, SequenceDataset, batches
from pyro_seq.training import JSONLinesLogger, SequenceLoss, fit, process_group
from pyro_seq.training.distributed import gather, rank, sum_all, world_size, wrap
from tests.training.resume_script import Interrupt
from tests.training.toys import ToyBatches, toy_batch, toy_pair

CASES = [("step", "ragged"), ("sequence", "ragged"), ("step", "none"), ("step", "one_sided")]


def joined(masks: str) -> Batch:
    """Seven sequences, a number that two processes do not share evenly."""
    batch = toy_batch(4, 7, noise=True)
    if masks == "none":
        return batch._replace(mask=None)
    if masks == "one_sided":  # nothing that the second process sees was observed
        hidden = (torch.arange(7) % 2 == 1).unsqueeze(-1)
        return batch._replace(mask=batch.mask & ~hidden)
    return batch


def gradients(loss: torch.nn.Module, batch: Batch) -> tuple[float, list[torch.Tensor]]:
    loss.zero_grad()
    value = loss(batch)
    value.backward()
    return value.item(), [p.grad.clone() for p in loss.parameters()]


def train(folder: Path, batch_size: int, **arguments: Any) -> dict[str, Any]:  # noqa: ANN401
    """A run whose noise comes with the data, so that it is the same in one process and in two."""
    data = SequenceDataset(*toy_batch(9, 22, noise=True))
    place = {"rank": rank(), "world_size": world_size()}
    loss = SequenceLoss(*toy_pair(rank()))
    result = fit(
        loss,
        batches(data, batch_size, **place),
        batches(data, batch_size, shuffle=False, **place),
        epochs=3,
        optimizer=torch.optim.Adam(loss.parameters(), 1e-2),
        clip_norm=3.0,
        checkpoint_dir=folder / "checkpoint",
        checkpoint_every=4,
        loggers=[JSONLinesLogger(folder / f"log_{rank()}.jsonl")],
        **arguments,
    )
    return {"history": result.history, "weights": loss.state_dict()}


def interrupted(folder: Path) -> dict[str, Any]:
    """A run with noise of its own, stopped in an epoch and resumed."""
    outcome = {}
    for name, resume in (("whole", False), ("broken", False), ("broken", True)):
        loss = SequenceLoss(*toy_pair())
        loss.model.unused = torch.nn.Parameter(torch.zeros(1))
        try:
            outcome[name] = fit(
                loss,
                ToyBatches(5, seed=100 * rank()),
                epochs=2,
                optimizer=torch.optim.Adam(loss.parameters(), 1e-2),
                checkpoint_dir=folder / name,
                checkpoint_every=2,
                resume=resume,
                callbacks=[Interrupt(8 if name == "broken" and not resume else -1)],
            ).history
        except KeyboardInterrupt:
            continue
    return outcome


def refused() -> str:
    loss = SequenceLoss(*toy_pair())
    loader = batches(SequenceDataset(torch.randn(8, 5, 3)), 2)
    try:
        fit(loss, loader, epochs=1, optimizer=torch.optim.SGD(loss.parameters(), 0.1))
    except ValueError as error:
        return str(error)
    return "accepted"


def work(number: int, folder: Path, port: int) -> None:
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    environment = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": 2, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in environment.items()})
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    with process_group("cpu") as process:
        results: dict[str, Any] = {"process": tuple(map(str, process))}
        for per, masks in CASES:
            torch.manual_seed(number)
            loss = wrap(SequenceLoss(*toy_pair(seed=number), per=per))
            share = Batch._make(
                None if part is None else part[number::2] for part in joined(masks)
            )
            results[f"{per} {masks}"] = gradients(loss, share)
        results["gather"] = gather(f"rank {number}")
        results["sum"] = sum_all(torch.tensor([1.0, float(number)])).tolist()
        results["refused"] = refused()
        results["fit"] = train(folder, 3)
        results["interrupted"] = interrupted(folder)
    torch.save(results, folder / f"results_{number}.pt")
    # DistributedDataParallel keeps gloo's threads alive; one that releases a tensor while the
    # interpreter shuts down aborts the process, so this one ends without shutting down.
    os._exit(0)
