"""Training of a loss by stochastic gradients."""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyro
import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from pyro_seq.data import Batch, SequenceDataset
from pyro_seq.training.callbacks import Callback
from pyro_seq.training.checkpoint import load_checkpoint
from pyro_seq.training.distributed import rank, world_size, wrap
from pyro_seq.training.loggers import Logger
from pyro_seq.training.loss import SequenceLoss
from pyro_seq.training.run import Options, Run
from pyro_seq.training.run_state import RunState
from pyro_seq.training.step import Precision

__all__ = ["FitResult", "fit"]


class FitResult(NamedTuple):
    """What a training run measured.

    Attributes:
        history: one record per epoch: "epoch", "step", "loss" (mean over its batches),
            "learning_rate", "seconds" since the start, "validation_loss" where there is
            validation, and the measures of the callbacks.
        best: the record with the smallest validation loss (training loss without validation).
        best_weights: state of the loss after that epoch, on the CPU; None without validation.
        steps: optimizer steps.
        seconds: duration, with the parts before it was resumed.
    """

    history: list[dict[str, float]]
    best: dict[str, float]
    best_weights: dict[str, Tensor] | None
    steps: int
    seconds: float


def fit(
    loss: SequenceLoss | DistributedDataParallel,
    train: Iterable[Batch],
    validation: Iterable[Batch] | None = None,
    *,
    epochs: int,
    optimizer: Optimizer,
    schedule: LRScheduler | None = None,
    clip_norm: float | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
    precision: Precision = "float32",
    checkpoint_dir: str | os.PathLike[str] | None = None,
    resume: bool | str | os.PathLike[str] = False,
    checkpoint_every: int | None = None,
    config: Mapping[str, Any] | None = None,
    early_stopping: int | None = None,
    loggers: Sequence[Logger] = (),
    callbacks: Sequence[Callback] = (),
    log_every: int = 50,
    progress: bool | None = None,
) -> FitResult:
    r"""Minimises :math:`\mathbb{E}[\ell_\theta(\text{batch})]` by stochastic gradients.

    A run that was killed, in the middle of an epoch too, and is resumed has the losses of one that
    was not, to the bit on a CPU. Under ``torchrun`` (see ``distributed.initialise``) every process
    calls ``fit``; gradients and measures are averaged and rank 0 writes.

    Args:
        loss: the loss; its model and guide are trained in place.
        train: batches of an epoch, iterated anew in each: ``pyro_seq.data.batches(...)``, a list,
            or a ``torch.utils.data.DataLoader`` that gives a ``Batch`` (see
            ``pyro_seq.data.SequenceDataset``). ``set_epoch(epoch)`` is called where it has
            one, and told the first batch wanted where that takes ``start``.
        validation: batches for the loss after each epoch; it draws the same noise in each, and
            leaves the random numbers of training as they were.
        epochs: number of epochs, those before a resumption included.
        optimizer: torch optimizer over the parameters of the loss.
        schedule: its learning rate schedule, advanced after every step.
        clip_norm: largest norm of all gradients together.
        seed: seed of the noise drawn in training; each process adds its rank.
        device: where to train; when None where the loss is.
        precision: "bfloat16" runs the networks under autocast; linear algebra stays as it is.
        checkpoint_dir: folder of checkpoints, written at the end of each epoch.
        resume: go on from ``checkpoint_dir``, or from a checkpoint folder given here; with nothing
            there yet the run starts anew, with a warning. Weights and the state of the optimizer,
            learning rates included, are the checkpoint's.
        checkpoint_every: steps between further checkpoints.
        config: JSON description of the run, kept beside the checkpoint; a run that resumes with
            another one warns of what differs.
        early_stopping: epochs without a better validation loss after which training ends.
        loggers: where measures go, every ``log_every`` steps and after each epoch.
        callbacks: called at the end of steps and epochs.
        log_every: steps between two reads of the losses from the device.
        progress: whether to show a progress bar; when None, if stderr is a terminal.

    Returns:
        History, best epoch and duration.

    Raises:
        ValueError: an argument is out of its range or does not go with another.
        TypeError: ``train`` or ``validation`` is a data set or a tensor and no batches, or the
            optimizer is none of torch's.
        NonFiniteLossError: the loss, a gradient or a parameter became infinite or NaN.
        CheckpointError: a checkpoint cannot be written, or the one to resume from is damaged or of
            another run.
    """
    options = Options(
        epochs=epochs,
        clip_norm=clip_norm,
        seed=seed,
        precision=precision,
        checkpoint_dir=None if checkpoint_dir is None else Path(checkpoint_dir),
        checkpoint_every=checkpoint_every,
        config=config or {},
        early_stopping=early_stopping,
        loggers=loggers,
        log_every=log_every,
        progress=rank() == 0 and (sys.stderr.isatty() if progress is None else progress),
    )
    plain = loss.module if isinstance(loss, DistributedDataParallel) else loss
    _check(plain, train, validation, optimizer, options, resume)
    if device is not None:
        plain.to(device)
    pyro.set_rng_seed(seed + rank())
    state = RunState(plain, optimizer, schedule, callbacks)
    if resume:
        folder = options.checkpoint_dir if resume is True else Path(resume)
        _resume(state, folder, options.config)
    elif options.checkpoint_dir is not None and (options.checkpoint_dir / "latest").exists():
        warnings.warn(
            f"{options.checkpoint_dir} holds checkpoints of an earlier run, which those of this "
            "run replace; pass resume=True to go on from them",
            stacklevel=2,
        )
    run = Run(state, wrap(loss), train, validation, options)
    run.execute()
    context = state.context
    return FitResult(context.history, run.best(), state.best_weights, context.step, state.seconds)


def _resume(state: RunState, folder: Path | None, config: Mapping[str, Any]) -> None:
    assert folder is not None
    checkpoint = load_checkpoint(folder)
    if checkpoint is None:
        warnings.warn(f"no checkpoint in {folder} to resume from: starting anew", stacklevel=3)
        return
    state.restore(checkpoint)
    now, then = json.loads(json.dumps(dict(config), default=str)), checkpoint.config
    changes = [
        f"{key}: {then.get(key)!r} there, {now.get(key)!r} here"
        for key in sorted(now | then)
        if now.get(key) != then.get(key)
    ]
    if config and changes:
        warnings.warn(
            f"config differs from that of {checkpoint.path}: {'; '.join(changes)}. Weights, "
            "optimizer and learning rates are those of the checkpoint",
            stacklevel=3,
        )


def _check(
    loss: SequenceLoss,
    train: Iterable[Batch],
    validation: Iterable[Batch] | None,
    optimizer: Optimizer,
    options: Options,
    resume: bool | str | os.PathLike[str],
) -> None:
    _check_types(train, validation, optimizer)
    for name in ("epochs", "log_every", "checkpoint_every", "early_stopping"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if options.clip_norm is not None and not options.clip_norm > 0:
        raise ValueError(f"clip_norm must be positive, got {options.clip_norm}")
    if options.precision not in ("float32", "bfloat16"):
        raise ValueError(f"precision must be 'float32' or 'bfloat16', got {options.precision!r}")
    if options.early_stopping is not None and validation is None:
        raise ValueError("early_stopping needs validation batches to judge by; pass validation=")
    if options.checkpoint_dir is None and (resume is True or options.checkpoint_every):
        raise ValueError("resume=True and checkpoint_every need checkpoint_dir=")
    processes = getattr(getattr(train, "sampler", None), "world_size", None)
    if world_size() > 1 and processes == 1:
        raise ValueError(
            f"train was made for one process, this run has {world_size()}: each would take the "
            "same batches; make it with batches(..., rank=rank(), world_size=world_size())"
        )
    _check_optimizer(loss, optimizer)


def _check_types(train: object, validation: object, optimizer: object) -> None:
    for name, value in (("train", train), ("validation", validation)):
        if isinstance(value, Tensor | Batch | SequenceDataset):
            raise TypeError(
                f"{name} must be batches that can be iterated anew, such as "
                "pyro_seq.data.batches(dataset, batch_size) or a list of Batch; got "
                f"{type(value).__name__}"
            )
    if not isinstance(optimizer, Optimizer):
        raise TypeError(
            f"optimizer must be one of torch.optim; got {type(optimizer).__name__}. Those of "
            "pyro.optim go with pyro.infer.SVI"
        )


def _check_optimizer(loss: SequenceLoss, optimizer: Optimizer) -> None:
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    own = {id(parameter) for parameter in loss.parameters()}
    if not held & own:
        raise ValueError(
            "the optimizer holds no parameter of the loss, so nothing would be trained; make it "
            "from loss.parameters(), after one call of the loss if the guide then makes its own"
        )
    names = [
        name
        for name, parameter in loss.named_parameters()
        if parameter.requires_grad and id(parameter) not in held
    ]
    if names:
        warnings.warn(
            f"parameters that the optimizer does not hold stay fixed: {names}", stacklevel=4
        )
