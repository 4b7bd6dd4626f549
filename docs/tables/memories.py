"""Tables of models with memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from layout import source, table

MEMORIES = ("icm", "introspection", "ntm", "lru", "dnc", "lstm")


RECALLED = (
    "rho", "rho_se", "last_validation_rho", "updates_to_half", "kl_before", "kl_recall",
    "last_frame_kl", "free_energy_per_step_all", "active_latents", "retrieval", "recall_accuracy",
    "parameters", "training_seconds",
)  # fmt: skip


def recall(runs: Sequence[dict[str, Any]]) -> str:
    """What each memory recalls in each task, a line for every seed."""
    rows = []
    for task in ("perfect", "cued", "dynamic", "parity", "one_shot"):
        for name in MEMORIES:
            for run in runs:
                if run["config"]["task"] == task and f"{name}_rho" in run:
                    rows.append([f"`{task}`", labelled(run, name), *recalled(run, name)])
    digits = runs[0]["config"]["frames"] == "digits"
    pictures = ["retrieved", "right digit"] if digits else []
    columns = [
        "task", "memory", "frames", "seed", "rate", "updates × batch", "rho", "last epoch",
        "updates to 1/2", "KL before", "recalled", "last frame", "free energy", "active",
        *pictures, "parameters", "seconds",
    ]  # fmt: skip
    return table(columns, rows) + source(runs)


def labelled(run: dict[str, Any], name: str) -> str:
    """The memory, and what `--set` made of it and of its training."""
    config = run["config"]
    was_set = any(text.startswith("options=") for text in config["set"])
    options = dict(config["options"].get(name, {})) if was_set else {}
    options |= {key: config[key] for key in ("kl_epochs", "residual") if config.get(key)}
    return ", ".join([name, *(f"`{key}={value}`" for key, value in options.items())])


def rate(config: dict[str, Any]) -> str:
    """The learning rate, the first and, where it falls, the last."""
    first, last = config["learning_rate"], config.get("final_rate", 1.0)
    return f"{first:g}" if last == 1 else f"{first:g} to {first * last:g}"


def recalled(run: dict[str, Any], name: str) -> list[str]:
    """One line of :func:`recall`."""
    config, of = run["config"], {k: run.get(f"{name}_{k}") for k in RECALLED}
    cells = [
        f"{config['length']} + {config['recalled']}", f"{config['seed']}",
        rate(config), f"{config['epochs'] * config['batches']} × {config['batch']}",
        f"{of['rho']:.3f} ± {of['rho_se']:.3f}",
        f"{of['last_validation_rho']:.3f}",
        f"{of['updates_to_half']}" if of["updates_to_half"] else "never",
        *(f"{of[k]:.2f}" for k in ("kl_before", "kl_recall", "last_frame_kl")),
        f"{of['free_energy_per_step_all']:.2f}",
        "" if of["active_latents"] is None else f"{of['active_latents']}",
    ]  # fmt: skip
    if config["frames"] == "digits":
        shares = (of["retrieval"], of["recall_accuracy"])
        cells += ["" if share is None else f"{share:.3f}" for share in shares]
    return [*cells, f"{of['parameters']}", f"{of['training_seconds']:.0f}"]


def memories(
    runs: Sequence[dict[str, Any]], columns: dict[str, tuple[str, int]], note: str = ""
) -> str:
    """Metrics of each memory, by the title of the column the key and the digits."""
    rows = []
    for run in runs:
        config = run["config"]
        for name in config["memory"]:
            start = f"{name}_"
            own = {k.removeprefix(start): v for k, v in run.items() if k.startswith(start)}
            own["updates"] = config["epochs"] * config["batches"]
            own["minutes"] = run[f"{name}_training_seconds"] / 60
            ratio = f"{run[f'{name}_rho']:.3f} ± {run[f'{name}_rho_se']:.3f}"
            values = [f"{own[key]:.{digits}f}" for key, digits in columns.values()]
            rows.append([labelled(run, name), config["seed"], ratio, *values])
    rows.sort(key=lambda row: float(str(row[2]).split()[0]))
    return table(["memory", "seed", "rho", *columns], rows) + note + source(runs)


def walks(runs: Sequence[dict[str, Any]]) -> str:
    """What memories keep of a map, one row per seed and memory."""
    columns = {
        "KL, new cells": ("kl_before", 2), "seen before": ("kl_recall", 2),
        "last step": ("last_frame_kl", 2), "free energy per step": ("free_energy_per_step_all", 2),
        "recall accuracy": ("recall_accuracy", 2),
        "of reconstructions": ("reconstruction_accuracy", 2),
        "generated recall": ("generated_recall", 2),
        "generated agreement": ("generated_agreement", 2), "updates": ("updates", 0),
        "minutes": ("minutes", 1),
    }  # fmt: skip
    return memories(runs, columns)


def turns(runs: Sequence[dict[str, Any]]) -> str:
    """What memories keep of the first turn of a camera, one row per seed and memory."""
    columns = {
        "KL, first turn": ("kl_before", 2), "second": ("kl_recall", 2),
        "last step": ("last_frame_kl", 2), "free energy per step": ("free_energy_per_step_all", 1),
        "nearer": ("turn_nearer_share", 3), "error": ("turn_error", 3), "updates": ("updates", 0),
        "minutes": ("minutes", 1),
    }  # fmt: skip
    note = "".join(
        f"\nThe true second turn (seed {run['config']['seed']}) is nearer in "
        f"{run['true_nearer_share']:.3f}; a copy of the nearest frame has an error of "
        f"{run['copy_error']:.3f}, the mean frame of {run['mean_error']:.3f}.\n"
        for run in runs
    )
    return memories(runs, columns, note)
