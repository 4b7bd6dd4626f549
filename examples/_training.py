"""What the examples of step models share: training of a pair, and the report of free energies."""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyro
import torch
from _interface import save_figure, write_json
from torch import Tensor
from torch.optim import Optimizer

from pyro_seq.data import Batch, SequenceDataset
from pyro_seq.distributions import window_log_density
from pyro_seq.evaluation import FreeEnergy, compare, free_energy
from pyro_seq.inference import FilteringELBO
from pyro_seq.plugins import get
from pyro_seq.training import (
    AnnealKL,
    Callback,
    CSVLogger,
    SequenceLoss,
    fit,
    load_checkpoint,
    quadratic,
    warmup_cosine,
)

__all__ = [
    "Pair",
    "Records",
    "Schedule",
    "Units",
    "draw",
    "exact",
    "finish",
    "first",
    "iterations",
    "learn",
    "make_filter",
    "over_iterations",
    "prepare",
    "report",
    "train",
]

ITERATIONS = (1, 2, 3, 4, 5, 6, 8)


class Pair(NamedTuple):
    """A step model and its filtering guide."""

    model: Any
    guide: Any


class Records(Callback):
    """What is measured after each epoch; a run that is resumed has it too."""

    def __init__(self) -> None:
        self.records: list[dict[str, float]] = []

    def state_dict(self) -> dict[str, Any]:
        """The records so far."""
        return {"records": self.records}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from those of a checkpoint."""
        self.records = [*state["records"]]


class Schedule(NamedTuple):
    """How a pair is trained.

    Attributes:
        epochs: Passes over the training batches.
        learning_rate: Peak rate, of the guide and, when model_rate is None, of the model.
        final_rate: Last rate as a fraction of the peak.
        model_rate: Peak rate of the model's parameters.
        clip_norm: Largest norm of all gradients together.
        kl_epochs: Epochs over which the weight of the KL terms grows to 1.
        hold: Share of all steps at the peak rate, before it falls.
        patience: Epochs without a better validation loss after which training ends.
    """

    epochs: int
    learning_rate: float
    final_rate: float = 0.05
    model_rate: float | None = None
    clip_norm: float = 100.0
    kl_epochs: int = 0
    hold: float = 0.0
    patience: int | None = None


class Units(NamedTuple):
    """What turns the probability of a window into a density: `numbers` windows of `width`."""

    width: float
    numbers: int


def prepare(args: argparse.Namespace) -> None:
    """Make the folder for results; the data are checked once, by the loaders."""
    args.out.mkdir(parents=True, exist_ok=True)
    pyro.enable_validation(False)
    torch.distributions.Distribution.set_default_validate_args(False)


def finish(
    metrics: Mapping[str, float],
    seconds: Mapping[str, float],
    began: float,
    args: argparse.Namespace,
    preset: Any,  # noqa: ANN401 - a named tuple
) -> None:
    """Write `metrics.json`, with the seconds of each training and of all."""
    total = max(time.perf_counter() - began, sum(seconds.values()))
    spent = {f"{name}_training_seconds": value for name, value in seconds.items()}
    config = {**vars(args), **preset._asdict()}
    write_json(args.out / "metrics.json", {**metrics, **spent, "seconds": total}, config)
    print(f"\nResults and figures are in {args.out}, after {total:.0f} s")


def first(
    dataset: SequenceDataset, count: int | None, steps: int | None = None
) -> SequenceDataset:
    """The first sequences of a data set, and the first steps of each; None for all."""
    if count is None and steps is None:
        return dataset
    part = dataset[list(range(min(count or len(dataset), len(dataset))))]
    part = Batch._make(None if one is None else one[:, :steps] for one in part)
    return SequenceDataset(part.x, lengths=part.lengths)


def make_filter(name: str, model: Any, options: Mapping[str, Any]) -> Any:  # noqa: ANN401
    """A guide by the name that examples give it: `avf_k2` is AVF with two iterations.

    Args:
        name: `"baseline"`, `"residual"`, `"vfem"` or `"avf_k"` with a number.
        model: The step model.
        options: Of the guides by their name in the registry, `"filter"`, `"avf"`, `"vfem"`; those
            of the papers' filter under `"baseline"`.
    """
    if name.startswith("avf_k"):
        return get("guides", "avf")(model, int(name.removeprefix("avf_k")), **options["avf"])
    if name == "vfem":
        return get("guides", "vfem")(model, **options["vfem"])
    shape = {"residual": True} if name == "residual" else options["baseline"]
    return get("guides", "filter")(model, **{"head_gain": 0.1, **options["filter"], **shape})


def train(
    name: str,
    pair: Pair,
    loader: Any,  # noqa: ANN401 - batches with a length
    validation: Iterable[Batch],
    schedule: Schedule,
    args: argparse.Namespace,
    config: Mapping[str, Any],
    callbacks: Sequence[Callback] = (),
) -> float:
    """Train a pair, or go on training it, and keep the weights of its best validation epoch.

    Args:
        name: Of the pair; its checkpoints are in `OUT/checkpoint/NAME`.
        pair: It is trained in place.
        loader: Training batches.
        validation: Batches of the validation loss.
        schedule: How.
        args: The command line.
        config: What is kept beside the checkpoint.
        callbacks: Called at the end of steps and epochs.

    Returns:
        Seconds.
    """
    loss = SequenceLoss(*pair, FilteringELBO())
    optimizer = torch.optim.Adam(_groups(pair, schedule))
    return learn(name, loss, optimizer, loader, validation, schedule, args, config, callbacks)


def learn(
    name: str,
    loss: SequenceLoss,
    optimizer: Optimizer,
    loader: Any,  # noqa: ANN401 - batches with a length
    validation: Iterable[Batch] | None,
    schedule: Schedule,
    args: argparse.Namespace,
    config: Mapping[str, Any],
    callbacks: Sequence[Callback] = (),
) -> float:
    """:func:`train` with a loss and an optimizer of one's own."""
    total = schedule.epochs * len(loader)
    warmup = min(50, total // 10)
    hold = int(schedule.hold * total)
    rates = warmup_cosine(optimizer, total, warmup=warmup, hold=hold, final=schedule.final_rate)
    annealing = [AnnealKL(loss, quadratic(schedule.kl_epochs))] if schedule.kl_epochs else []
    print(f"\nTraining {name}: {schedule.epochs} epochs of {len(loader)} steps", flush=True)
    folder = args.out / "checkpoint" / name
    config = {"filter": name, "seed": args.seed, **config}
    if args.resume:
        _check_same(folder, config)
    result = fit(
        loss,
        loader,
        validation,
        epochs=schedule.epochs,
        optimizer=optimizer,
        schedule=rates,
        clip_norm=schedule.clip_norm,
        seed=args.seed,
        checkpoint_dir=folder,
        resume=args.resume and folder.exists(),
        checkpoint_every=200,
        config=config,
        early_stopping=schedule.patience,
        loggers=[CSVLogger(args.out / f"training_{name}.csv")],
        callbacks=[*annealing, *callbacks],
    )
    if result.best_weights is not None:
        loss.load_state_dict(result.best_weights)
    best = result.best["epoch"]
    print(f"  {result.steps} steps in {result.seconds:.0f} s, best epoch {best:.0f}", flush=True)
    return result.seconds


def _check_same(folder: Path, config: Mapping[str, Any]) -> None:
    """Exits unless a checkpoint to go on from is of a run with the same settings."""
    there = load_checkpoint(folder) if folder.exists() else None
    asked = json.loads(json.dumps(dict(config)))
    for key, before in ({} if there is None else there.config).items():
        if key not in ("epochs", "evaluated") and key in asked and asked[key] != before:
            raise SystemExit(
                f"--resume: {folder} was trained with {key} = {before}; got {asked[key]}. "
                "Choose another folder with --out, or leave out --resume"
            )


def _groups(pair: Pair, schedule: Schedule) -> list[dict[str, Any]]:
    """Parameters with their rates; those that model and guide share are the model's."""
    of_model = list(pair.model.parameters())
    held = {id(parameter) for parameter in of_model}
    of_guide = [p for p in pair.guide.parameters() if id(p) not in held]
    rate = schedule.learning_rate
    groups = [
        {"params": of_model, "lr": rate if schedule.model_rate is None else schedule.model_rate},
        {"params": of_guide, "lr": rate},
    ]
    return [group for group in groups if group["params"]]


def exact(log_likelihood: Tensor, mask: Tensor | None) -> FreeEnergy:
    """The free energy of a model without latents: minus its log likelihood.

    Args:
        log_likelihood: Of each frame given those before, `(sequences, time)`.
        mask: Where a frame was observed, `(sequences, time)`.
    """
    nats = log_likelihood.double().cpu()
    seen = torch.ones_like(nats, dtype=torch.bool) if mask is None else mask.cpu()
    nats = torch.where(seen, nats, torch.zeros_like(nats))
    return FreeEnergy(nats, torch.zeros_like(nats), seen, 1)


def report(
    energies: Mapping[str, FreeEnergy], units: Units | None, args: argparse.Namespace
) -> tuple[dict[str, float], Any]:
    """Print and write what the free energies of several filters are.

    Args:
        energies: Of the same sequences, by the filter's name.
        units: Of the frames; None where free energies are those of densities already.
        args: The command line.

    Returns:
        The metrics, and the comparison by ArviZ.
    """
    metrics: dict[str, float] = {}
    title = "" if units is None else f"{'log density, 2..T':>22s}"
    print(f"\n{'nats per step':16s}{'free energy, 2..T':>24s}{'all frames':>18s}{title}")
    for name, energy in energies.items():
        found = _metrics(energy, units)
        values = [
            f"{found['free_energy_per_step']:15.3f} +- {found['free_energy_per_step_se']:<5.2g}",
            f"{found['free_energy_per_step_all']:18.3f}",
        ]
        if units is not None:
            values.append(f"{found['log_density_per_step']:22.3f}")
        print(f"{name:16s}{''.join(values)}")
        metrics |= {f"{name}_{key}": value for key, value in found.items()}
    comparison = compare({name: energy.bound() for name, energy in energies.items()})
    comparison.to_csv(args.out / "comparison.csv")
    print(f"\nBounds in nats, summed over {len(energy.mask)} test sequences (ArviZ)")
    print(comparison.to_string(float_format=lambda value: f"{value:.2f}"))
    return metrics, comparison


def _metrics(energy: FreeEnergy, units: Units | None) -> dict[str, float]:
    """Free energies in both conventions, and as log densities."""
    paper, every = energy.per_step(skip=1), energy.per_step(over="steps")
    found = {
        "free_energy_per_step": paper.mean,
        "free_energy_per_step_se": paper.standard_error,
        "free_energy_per_step_all": every.mean,
        "free_energy_per_step_all_se": every.standard_error,
        "divergence_per_step_all": float(energy.divergence.sum() / energy.mask.sum()),
    }
    if units is not None:
        for key in ("per_step", "per_step_all"):
            nats = torch.tensor(-found[f"free_energy_{key}"], dtype=torch.float64)
            found[f"log_density_{key}"] = float(window_log_density(nats, *units))
    return found


def iterations(pair: Pair, batch: Batch, chunk: int = 64, samples: int = 1) -> dict[int, float]:
    """Free energy per step of an AVF guide with other numbers of iterations than in training."""
    guide, curve = pair.guide, {}
    trained = guide.iterations
    for count in sorted({*ITERATIONS, trained}):
        guide.iterations = count
        energy = free_energy(*pair, batch, samples=samples, seed=0, chunk=chunk)
        curve[count] = energy.per_step(skip=1).mean
    guide.iterations = trained
    return curve


def over_iterations(
    pairs: Mapping[str, Pair],
    batch: Batch,
    metrics: dict[str, float],
    args: argparse.Namespace,
    chunk: int = 64,
    samples: int = 1,
) -> None:
    """Free energies of the AVF guides over iterations: into the metrics, and as a figure.

    Args:
        pairs: By the filter's name.
        batch: The test sequences.
        metrics: Those of :func:`report`; `NAME_at_K_free_energy_per_step` are added.
        args: The command line.
        chunk: Sequences times draws at once.
        samples: Draws that the free energies are means of.
    """
    curves = {
        name: iterations(pair, batch, chunk, samples)
        for name, pair in pairs.items()
        if "avf" in name
    }
    levels = {
        name: metrics[f"{name}_free_energy_per_step"] for name in pairs if name not in curves
    }
    for name, curve in curves.items():
        metrics |= {f"{name}_at_{k}_free_energy_per_step": value for k, value in curve.items()}

    def figure() -> None:
        from pyro_seq.evaluation.step_plots import plot_iterations

        save_figure(plot_iterations(curves, levels), args.out / "iterations.png")

    if curves:
        draw(figure)


def draw(figure: Callable[[], None]) -> None:
    """Make a figure, or warn that matplotlib is not there."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        figure()
    except ImportError as error:
        warnings.warn(f"no figures: {error}", stacklevel=2)
