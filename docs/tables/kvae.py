"""Tables of the Kalman VAE."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from layout import error, mean, source, table

GAPS = (1, 3, 7, 11, 15)


PROBABILITIES = ("0.1", "0.3", "0.5", "0.7", "0.9", "1")


METHODS = {"smooth": "smoothing", "filter": "filtering", "copy_last": "copy of the last frame"}


PAPER = {
    "smooth": [".0061", ".0078", ".0121", ".0174", ".0226"]
    + [".0058", ".0063", ".0076", ".0095", ".0190", ".0268"],
    "filter": [".0085", ".0115", ".0175", ".0222", ".0257"]
    + [".0078", ".0083", ".0101", ".0125", ".0215", ".0268"],
}


def keys(method: str) -> list[str]:
    """The metrics of one method, in the order of the columns."""
    return [f"{method}_gap_{gap}" for gap in GAPS] + [f"{method}_p_{p}" for p in PROBABILITIES]


def header() -> list[str]:
    """Two groups of columns: gaps and probabilities."""
    return [f"gap {gap}" for gap in GAPS] + [f"p={p}" for p in PROBABILITIES]


def box(runs: Sequence[dict[str, Any]]) -> str:
    """Imputation errors: mean over seeds, range of the smoothing errors, the paper's."""
    if not runs:
        return ""
    rows = []
    for method, name in METHODS.items():
        rows.append([name, *(error(mean(runs, key)) for key in keys(method))])
        if method == "smooth":
            for end, pick in (("least", min), ("greatest", max)):
                values = [error(pick(run[key] for run in runs)) for key in keys(method)]
                rows.append([f"– {end} of the seeds", *values])
        if method in PAPER:
            rows.append([f"– the paper, {name}", *PAPER[method]])
    rows.append(["blank frame", *[error(mean(runs, "blank"))] * 11])
    return table(["", *header()], rows) + source(runs)


def pairs(runs: Sequence[dict[str, Any]]) -> str:
    """ELBOs of the pairs: nats, standard error over test sequences, one row per seed and pair."""
    rows = []
    for run in runs:
        for name in run["config"]["pairs"]:
            value, spread = run[f"{name}_elbo_per_sequence"], run[f"{name}_elbo_per_sequence_se"]
            frame = run[f"{name}_elbo_per_frame"]
            rows.append(
                [name, run["config"]["seed"], f"{value:.2f} ± {spread:.2f}", f"{frame:.3f}"]
            )
    rows.sort(key=lambda row: (str(row[0]), row[1]))
    return table(["dynamics", "seed", "ELBO per sequence", "ELBO per frame"], rows)


def environments(runs: dict[str, dict[str, Any]]) -> str:
    """Smoothing and filtering in the four environments, means over seeds."""
    names = {"box": "box", "gravity": "gravity", "polygon": "polygon", "pong": "pong"}
    names["pong4"] = "pong, codes of 4"
    rows, kept = [], []
    for key, name in names.items():
        seeds = [run for stem, run in runs.items() if stem.startswith(f"kvae_{key}_seed")]
        kept += seeds[:1]
        for method in ("smooth", "filter") if seeds else ():
            values = (error(mean(seeds, column)) for column in keys(method))
            rows.append([name, len(seeds), METHODS[method], *values, error(mean(seeds, "blank"))])
    return table(["", "seeds", "", *header(), "blank"], rows) + source(kept)


def starts(runs: dict[str, dict[str, Any]]) -> str:
    """Short runs from many seeds: does each leave the plateau where no ball is drawn?"""
    rows = []
    for run in sorted(runs.values(), key=lambda r: (r["config"]["start"], r["config"]["seed"])):
        config = run["config"]
        values = [
            error(run[key]) for key in ("smooth_gap_1", "smooth_gap_7", "smooth_p_0.5", "blank")
        ]
        rows.append(
            [
                config["start"],
                config["seed"],
                config["epochs"],
                *values,
                f"{run['elbo_per_frame']:.2f}",
            ]
        )
    columns = ["start", "seed", "epochs", "gap 1", "gap 7", "p=0.5", "blank", "ELBO per frame"]
    return table(columns, rows) + source(list(runs.values()))


def levers(runs: dict[str, dict[str, Any]]) -> str:
    """One seed of the default preset, and the same with one thing changed."""
    rows = []
    for run in runs.values():
        own = run["config"]["command"].split("--preset default")[1].split()
        kept = [w for i, w in enumerate(own) if "--out" not in (w, own[i - 1])]
        change = " ".join(kept).replace("--pairs lstm", "").replace("--seed 0", "").strip()
        wanted = ("smooth_gap_1", "smooth_gap_7", "smooth_gap_15", "smooth_p_0.5", "filter_gap_7")
        values = [error(run[key]) for key in wanted]
        frame = f"{run['elbo_per_frame']:.2f}"
        rows.append([f"`{change}`" if change else "default preset", *values, frame])
    columns = ["", "gap 1", "gap 7", "gap 15", "p=0.5", "filtering, gap 7", "ELBO per frame"]
    return table(columns, rows)
