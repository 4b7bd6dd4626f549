"""Tables of recurrent ladders."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

from layout import each, over_seeds, source, table

NETWORKS = (
    "static", "baseline", "hierarchical_rnn", "no_prediction", "no_d2e", "no_classification",
    "rladder",
)  # fmt: skip
PAPER = {
    "static": (".71 ± .03", ""), "baseline": ("2.02 ± .16", ""),
    "hierarchical_rnn": ("1.60 ± .05", ""), "no_prediction": ("1.51 ± .21", ""),
    "no_d2e": ("1.24 ± .05", "156.7 ± .4"), "no_classification": ("", "155.2 ± 2.5"),
    "rladder": (".74 ± .09", "150.1 ± .1"),
}  # fmt: skip
SETS = ("jsb", "jsb_eighth", "nottingham", "muse", "piano")
SONGS = {
    "jsb": "", "jsb_eighth": "5.64 ± .02", "nottingham": "2.42 ± .03", "muse": "5.69 ± .02",
    "piano": "6.19 ± .02",
}  # fmt: skip
GUIDES = ("filter", "avf", "ladder", "smoother")


def occluded(runs: Sequence[dict[str, Any]]) -> str:
    """What ladders and their ablations make of digits behind bars."""
    mnist = runs[0]["config"]["dataset"] == "mnist"
    rows = []
    settings = sorted({tuple(run["config"]["set"]) for run in runs})
    for name, setting in product(NETWORKS, settings):
        own = [
            run
            for run in runs
            if f"{name}_parameters" in run and tuple(run["config"]["set"]) == setting
        ]
        if own:
            cells = [
                over_seeds([run[f"{name}_{key}"] for run in own], digits)
                if f"{name}_{key}" in own[0]
                else ""
                for key, digits in (("test_error_percent", 2), ("prediction_error_e5", 1))
            ]
            minutes = sum(run[f"{name}_training_seconds"] for run in own) / len(own) / 60
            paper = PAPER[name] if mnist else ()
            label = ", ".join(f"`{part}`" for part in (name, *setting))
            rows.append([
                label, len(own), *cells, *paper, own[0][f"{name}_parameters"],
                own[0][f"{name}_updates"], f"{minutes:.1f}",
            ])  # fmt: skip
    titles = ["the paper, %", "the paper, 1e-5"] if mnist else []
    columns = [
        "network", "seeds", "wrong class, %", "prediction, 1e-5", *titles, "parameters",
        "updates", "minutes",
    ]  # fmt: skip
    errors = [run[k] for run in runs for k in run if k.endswith("test_error_percent_se")]
    note = (
        f"\nMean ± standard error over seeds; one test set, over whose sequences the standard "
        f"error of a wrong class is {min(errors):.2f} to {max(errors):.2f} points. A copy of the "
        f"last frame has a prediction error of {each(runs, 'copy_last_e5', 1)}e-5.\n"
    )
    return table(columns, rows) + note + source(runs)


def few_labels(runs: Sequence[dict[str, Any]]) -> str:
    """Errors with labels for some of the pictures, with and without the mean teacher."""
    rows = []
    for name in NETWORKS:
        for taught in (False, True):
            own = [
                run
                for run in runs
                if f"{name}_parameters" in run and run["config"]["mean_teacher"] == taught
            ]
            if own:
                key, other = (f"{name}{who}_test_error_percent" for who in ("", "_student"))
                student = [run[other] for run in own if other in run]
                rows.append([
                    f"`{name}`", own[0]["config"]["labels"], "yes" if taught else "no", len(own),
                    over_seeds([run[key] for run in own], 2),
                    over_seeds(student, 2) if student else "",
                ])  # fmt: skip
    columns = ["network", "labels", "mean teacher", "seeds", "wrong class, %", "of the student"]
    return table(columns, rows) + source(runs)


def music(runs: Sequence[dict[str, Any]]) -> str:
    """Exact likelihoods of music."""
    rows = []
    for name in SETS:
        own = [run for run in runs if run["config"]["dataset"] == name]
        if own:
            minutes = sum(run["rladder_training_seconds"] for run in own) / len(own) / 60
            keys = ("nll_per_step", "nll_per_step_of_songs", "nll_per_step_from_2")
            rows.append([
                f"`{name}`", len(own), *(over_seeds([run[k] for run in own]) for k in keys),
                each(own, "nll_per_step_se", 2), each(own, "marginals_nll_per_step", 2),
                SONGS[name], own[0]["parameters"], f"{minutes:.0f}",
            ])  # fmt: skip
    columns = [
        "set", "seeds", "all steps", "mean over songs", "2..T, mean over songs", "s.e. over songs",
        "shares of the notes", "the paper", "parameters", "minutes",
    ]  # fmt: skip
    return table(columns, rows) + source(runs)


def guides(runs: Sequence[dict[str, Any]]) -> str:
    """Bounds of one model trained with several guides."""
    rows = []
    for name in GUIDES:
        own = [run for run in runs if f"{name}_free_energy_per_step" in run]
        if own:
            keys = ("free_energy_per_step", "free_energy_per_step_all", "divergence_per_step_all")
            rows.append([
                f"`{name}`", len(own),
                *(over_seeds([run[f"{name}_{k}"] for run in own], 2) for k in keys),
                each(own, f"{name}_free_energy_per_step_se", 2),
                own[0][f"{name}_guide_parameters"],
                each(own, f"{name}_training_seconds", 0),
            ])  # fmt: skip
    columns = [
        "guide", "seeds", "2..T over T - 1", "all frames", "KL, all frames", "s.e. over sequences",
        "parameters", "seconds",
    ]  # fmt: skip
    note = "\nFree energies in nats per step, lower is better; mean ± standard error over seeds.\n"
    return table(columns, rows) + note + source(runs)
