"""Tables of filters of step models: music, speech, video, the pendulum."""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence
from typing import Any

from layout import each, mean, over_seeds, source, table

FILTERS = {
    "rnn": "RNN without latents (exact)",
    "baseline": "baseline: frame and h",
    "residual": "baseline with the last latent, residual",
    "vfem": "variational EM, 10 gradient steps",
    "avf_k1": "AVF, K = 1",
    "avf_k2": "AVF, K = 2",
    "avf_k5": "AVF, K = 5",
}


PAPER_MUSIC = {
    "jsb": {"baseline": "7.05", "avf_k1": "7.10", "avf_k5": "6.90"},
    "nottingham": {"baseline": "3.21", "avf_k1": "3.14"},
    "muse": {"baseline": "6.31", "avf_k1": "6.02"},
    "piano": {"baseline": "8.21", "avf_k1": "8.14"},
}


def music(runs: Sequence[dict[str, Any]]) -> str:
    """Free energies of the filters on one data set, means over seeds."""
    dataset = runs[0]["config"]["dataset"]
    rows = []
    for name, words in FILTERS.items():
        own = [run for run in runs if f"{name}_free_energy_per_step" in run]
        if not own:
            continue
        paper, every, cost = (
            [run[f"{name}_{key}"] for run in own]
            for key in ("free_energy_per_step", "free_energy_per_step_all", "training_seconds")
        )
        songs = own[0][f"{name}_free_energy_per_step_se"]
        rows.append([
            words, len(own), over_seeds(paper), f"{songs:.2f}", over_seeds(every),
            PAPER_MUSIC[dataset].get(name, ""), f"{statistics.fmean(cost):.0f}",
        ])  # fmt: skip
    columns = [
        "filter", "seeds", "2..T over T - 1, mean over songs", "s.e. over songs",
        "all frames, mean over steps", "the paper, corrected", "seconds",
    ]  # fmt: skip
    note = "\nNats per step; mean ± standard error over seeds.\n"
    return table(columns, rows) + note + source(runs)


WITHOUT_LATENTS = {
    "white_noise": "white noise (exact)",
    "copy_last": "around the last sample of the window before (exact)",
    "linear": "linear prediction from 16 samples (exact)",
}


def speech(runs: Sequence[dict[str, Any]]) -> str:
    """Free energies of the filters on speech in both units, means over seeds."""
    rows = []
    for name, words in {**WITHOUT_LATENTS, **FILTERS}.items():
        own = [run for run in runs if f"{name}_free_energy_per_step" in run]
        if not own:
            continue
        keys_of = ("free_energy_per_step", "free_energy_per_step_all", "log_density_per_step")
        values = [over_seeds([run[f"{name}_{key}"] for run in own], 1) for key in keys_of]
        spread = f"{own[0][f'{name}_free_energy_per_step_se']:.0f}"
        cost = [run[f"{name}_training_seconds"] for run in own if name in FILTERS]
        seconds = f"{statistics.fmean(cost):.0f}" if cost else ""
        rows.append([words, len(own), values[0], spread, *values[1:], seconds])
    columns = [
        "filter", "seeds", "2..T over T - 1, mean over utterances", "s.e. over utterances",
        "all windows, mean over steps", "log density, 2..T", "seconds",
    ]  # fmt: skip
    note = "\nNats per step of 200 samples; the first two of window probability, lower is better; "
    return table(columns, rows) + f"{note}log density: higher is better.\n" + source(runs)


def pendulum(runs: Sequence[dict[str, Any]]) -> str:
    """What three guides learn of the pendulum, means over seeds."""
    unknowns = ("friction", "shake", "gusts", "blur")
    true = dict(zip(unknowns, ("0.500", "0.100", "0.300", "0.100"), strict=True))
    words = {
        "independent": "normal without time (exact)", "truth": "the true model, q its prior",
        "filter": "`filter`, residual", "avf": "`avf`, K = 2", "vfem": "`vfem`, 20 gradient steps",
    }  # fmt: skip
    rows = []
    for name, title in words.items():
        row = [title]
        row += [true[u] if name == "truth" else each(runs, f"{name}_{u}", 3) for u in unknowns]
        row += [each(runs, f"{name}_free_energy_per_step_all", 3)]
        row += [each(runs, f"{name}_fivo_per_frame", 3)]
        row += [each(runs, f"{name}_covered_{c}", 2) for c in ("angle", "speed")]
        rows.append([*row, each(runs, f"{name}_training_seconds", 0)])
    columns = [
        "guide", *unknowns, "free energy", "FIVO", "angles covered", "speeds covered", "seconds",
    ]  # fmt: skip
    return table(columns, rows) + source(runs)


def iterations(runs: Sequence[dict[str, Any]]) -> str:
    """Free energies of trained AVF guides run with other numbers of iterations."""
    counts = (1, 2, 3, 4, 5, 6, 8)
    rows = []
    for name in ("avf_k1", "avf_k2", "avf_k5"):
        own = [run for run in runs if f"{name}_at_1_free_energy_per_step" in run]
        if own:
            values = (mean(own, f"{name}_at_{count}_free_energy_per_step") for count in counts)
            rows.append([FILTERS[name], *(f"{value:.2f}" for value in values)])
    return table(["trained with", *(f"run with {count}" for count in counts)], rows)


def music_levers(default: dict[str, Any], runs: dict[str, dict[str, Any]]) -> str:
    """One seed of the default preset, and the same with one thing changed."""
    rows = []
    for run in (default, *runs.values()):
        command = run["config"]["command"]
        change = command.split("--set", 1)[1].strip() if "--set" in command else ""
        change = re.sub(r" --(out|seed|filters) .*", "", change)
        values = []
        for name in ("residual", "avf_k1"):
            value = run.get(f"{name}_free_energy_per_step")
            values.append("" if value is None else f"{value:.3f}")
        rows.append([f"`{change}`" if change else "default preset", *values])
    return table(["JSB, seed 0", FILTERS["residual"], FILTERS["avf_k1"]], rows)


VIDEO_FILTERS = {
    "white_noise": "white noise (exact)",
    "copy_last": "normal around the last frame (exact)",
    "copy_adaptive": "the same, deviations from the last change (exact)",
    "baseline": "baseline: LSTM over frames",
    "residual": "frame and all of the state, residual",
    "avf_k1": "AVF, K = 1",
    "avf_k2": "AVF, K = 2",
}


def video(runs: Sequence[dict[str, Any]]) -> str:
    """Free energies of the filters on video in both units, means over seeds."""
    rows = []
    for name, words in VIDEO_FILTERS.items():
        own = [run for run in runs if f"{name}_free_energy_per_step" in run]
        if not own:
            continue
        keys_of = ("free_energy_per_step", "free_energy_per_step_all", "log_density_per_step")
        values = [over_seeds([run[f"{name}_{key}"] for run in own], 0) for key in keys_of]
        spread = f"{own[0][f'{name}_free_energy_per_step_se']:.0f}"
        bits = f"{mean(own, f'{name}_bits_per_pixel'):.2f}"
        trained = f"{name}_training_seconds" in own[0]
        kinds = ("divergence_per_step_all", "prior_free_energy_per_step")
        inferred = [f"{mean(own, f'{name}_{k}'):.0f}" if trained else "" for k in kinds]
        rows.append([words, len(own), values[0], spread, bits, *values[1:], *inferred])
    columns = [
        "filter", "seeds", "2..T over T - 1, mean over clips", "s.e. over clips",
        "bits per pixel", "all frames, mean over steps", "log density, 2..T", "KL, all frames",
        "2..T, with q the prior",
    ]  # fmt: skip
    note = (
        "\nNats per step of 4096 pixels; window probability, lower is better, save for the log "
        "density, where higher is better.\n"
    )
    return table(columns, rows) + note + source(runs)


def iterations_of_video(runs: Sequence[dict[str, Any]]) -> str:
    """Free energies on video of AVF guides run with other numbers of iterations."""
    counts = (1, 2, 3, 4, 6, 8)
    rows = []
    for name in ("avf_k1", "avf_k2"):
        own = [run for run in runs if f"{name}_at_1_free_energy_per_step" in run]
        if own:
            values = (mean(own, f"{name}_at_{count}_free_energy_per_step") for count in counts)
            rows.append([VIDEO_FILTERS[name], *(f"{value:.0f}" for value in values)])
    return table(["trained with", *(f"run with {count}" for count in counts)], rows)
