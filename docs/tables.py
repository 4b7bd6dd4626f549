"""Build the tables of the documentation from the result files beside it.

    python docs/tables.py

reads `docs/results/*.json` and writes `docs/results/*.md`, which the pages include. A result file
is the `metrics.json` of an example, with the command and the machine under `"config"`, or the
report of `make bench`.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
GAPS = (1, 3, 7, 11, 15)
PROBABILITIES = ("0.1", "0.3", "0.5", "0.7", "0.9", "1")
METHODS = {"smooth": "smoothing", "filter": "filtering", "copy_last": "copy of the last frame"}
PAPER = {
    "smooth": [".0061", ".0078", ".0121", ".0174", ".0226"]
    + [".0058", ".0063", ".0076", ".0095", ".0190", ".0268"],
    "filter": [".0085", ".0115", ".0175", ".0222", ".0257"]
    + [".0078", ".0083", ".0101", ".0125", ".0215", ".0268"],
}


def tables(folder: Path = RESULTS) -> dict[str, str]:
    """Markdown by file name."""
    runs = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    made = {
        "kvae_box.md": box([v for k, v in runs.items() if k.startswith("kvae_box_seed")]),
        "kvae_pairs.md": pairs([v for k, v in runs.items() if k.startswith("kvae_box_seed")]),
        "kvae_environments.md": environments(runs),
        "kvae_starts.md": starts(
            {k: v for k, v in runs.items() if k.startswith(("kvae_start", "kvae_random"))}
        ),
        "kvae_levers.md": levers(
            {k: v for k, v in runs.items() if k == "kvae_box_seed0" or k.startswith("kvae_lever")}
        ),
    }
    for name in ("jsb", "nottingham", "muse", "piano"):
        own = {k: v for k, v in runs.items() if re.fullmatch(rf"avf_music_{name}_seed\d+", k)}
        if own:
            made[f"avf_music_{name}.md"] = music([*own.values()])
        if own and name == "jsb":
            made["avf_iterations.md"] = iterations([*own.values()])
    for stem, make in (
        ("avf_speech", speech),
        ("my_own_model", pendulum),
        ("gtmm_map", walks),
        ("gtmm_rotation", turns),
    ):
        own = {k: v for k, v in runs.items() if re.fullmatch(rf"{stem}_seed\d+", k)}
        if own:
            made[f"{stem}.md"] = make([*own.values()])
    own = {k: v for k, v in runs.items() if re.fullmatch(r"avf_video_seed\d+", k)}
    if own:
        made["avf_video.md"] = video([*own.values()])
        made["avf_video_iterations.md"] = iterations_of_video([*own.values()])
    levers_of_music = {k: v for k, v in runs.items() if k.startswith("avf_lever")}
    if levers_of_music:
        made["avf_levers.md"] = music_levers(runs["avf_music_jsb_seed0"], levers_of_music)
    for frames in ("vectors", "digits"):
        own = {k: v for k, v in runs.items() if re.fullmatch(rf"gtmm_{frames}_\w+_seed\d+", k)}
        if own:
            made[f"gtmm_{frames}.md"] = recall([*own.values()])
    if "bench" in runs:
        made["bench.md"] = bench(runs["bench"])
        made["bench_step.md"] = bench_step(runs["bench"])
    if "benchmark_avf" in runs:
        made["bench_avf.md"] = bench_filters(runs["benchmark_avf"])
        made["bench_online.md"] = bench_online(runs["benchmark_avf"])
    if "benchmark_memory" in runs:
        made["bench_memory.md"] = bench_memory(runs["benchmark_memory"])
        made["bench_memory_pairs.md"] = bench_memory_pairs(runs["benchmark_memory"])
    return made


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
            rows.append([name, config["seed"], ratio, *values])
    rows.sort(key=lambda row: float(str(row[2]).split()[0]))
    return table(["memory", "seed", "rho", *columns], rows) + note + source(runs)


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


def each(runs: Sequence[dict[str, Any]], key: str, digits: int) -> str:
    """Mean over runs, and nothing where no run has it."""
    own = [run[key] for run in runs if key in run]
    return f"{statistics.fmean(own):.{digits}f}" if own else ""


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


MEMORIES = ("icm", "introspection", "ntm", "lru", "dnc", "lstm")


def recall(runs: Sequence[dict[str, Any]]) -> str:
    """What each memory recalls in each task, a line for every seed."""
    rows = []
    for task in ("perfect", "cued", "dynamic", "parity", "one_shot"):
        for name in MEMORIES:
            for run in runs:
                if run["config"]["task"] == task and f"{name}_rho" in run:
                    rows.append([f"`{task}`", name, *recalled(run, name)])
    digits = runs[0]["config"]["frames"] == "digits"
    pictures = ["retrieved", "right digit"] if digits else []
    columns = [
        "task", "memory", "seed", "rho", "last epoch", "updates to 1/2", "KL before", "recalled",
        "last frame", "free energy", *pictures, "parameters", "seconds",
    ]  # fmt: skip
    return table(columns, rows) + source(runs)


def recalled(run: dict[str, Any], name: str) -> list[str]:
    """One line of :func:`recall`."""
    config, of = run["config"], {k: run.get(f"{name}_{k}") for k in RECALLED}
    cells = [
        f"{config['seed']}", f"{of['rho']:.3f} ± {of['rho_se']:.3f}",
        f"{of['last_validation_rho']:.3f}",
        f"{of['updates_to_half']}" if of["updates_to_half"] else "never",
        *(f"{of[k]:.2f}" for k in ("kl_before", "kl_recall", "last_frame_kl")),
        f"{of['free_energy_per_step_all']:.2f}",
    ]  # fmt: skip
    if config["frames"] == "digits":
        shares = (of["retrieval"], of["recall_accuracy"])
        cells += ["" if share is None else f"{share:.3f}" for share in shares]
    return [*cells, f"{of['parameters']}", f"{of['training_seconds']:.0f}"]


RECALLED = (
    "rho", "rho_se", "last_validation_rho", "updates_to_half", "kl_before", "kl_recall",
    "last_frame_kl", "free_energy_per_step_all", "retrieval", "recall_accuracy", "parameters",
    "training_seconds",
)  # fmt: skip

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


def over_seeds(values: Sequence[float], digits: int = 3) -> str:
    """Mean, and the standard error over seeds where there are several."""
    text = f"{statistics.fmean(values):.{digits}f}"
    if len(values) > 1:
        text += f" ± {statistics.stdev(values) / len(values) ** 0.5:.{digits}f}"
    return text


def bench(report: dict[str, Any]) -> str:
    """Ratios to Pyro's GaussianHMM."""
    names = {
        "posterior_short": "log density, joint sample, gradients (32, 20)",
        "posterior_long": "log density, joint sample, gradients (8, 1000)",
        "likelihood_short": "log density, gradients (32, 20)",
        "likelihood_long": "log density, gradients (8, 1000)",
    }
    rows = []
    for key, name in names.items():
        row = report["results"][key]
        ours, peer = row["pyro_seq"], row["GaussianHMM"]
        rows.append([
            name, f"{row['ratio_wall']:.2f}", f"{ours['wall_ms']:.1f} / {peer['wall_ms']:.1f}",
            f"{ours['operations']} / {peer['operations']}",
            f"{ours['peak_mib']:.1f} / {peer['peak_mib']:.1f}",
        ])  # fmt: skip
    columns = ["(batch, time), state 4, a 2", "ratio", "ms", "operations", "peak MiB"]
    machine = report["machine"]
    note = (
        f"`{machine['command']}`, {machine['cpu']}, one thread, torch {machine['torch']}; medians."
    )
    return table(columns, rows) + f"\n{note}\n"


def bench_step(report: dict[str, Any]) -> str:
    """What the parts of one KVAE training step cost."""
    steps = {name: row for name, row in report["results"].items() if name.startswith("kvae_step_")}
    parts = list(
        dict.fromkeys(k for row in steps.values() for k, v in row.items() if isinstance(v, dict))
    )
    columns = ["CPU ms", *(name.removeprefix("kvae_step_") + " networks" for name in steps)]
    rows = [
        [part, *(f"{row[part]['cpu_ms']:.1f}" if part in row else "" for row in steps.values())]
        for part in parts
    ]
    return table(columns, rows)


def bench_filters(report: dict[str, Any]) -> str:
    """Training steps of an SRNN against code by hand and against Pyro's DMM."""
    names = {
        "srnn_filter": "SRNN, filter of frame and h",
        "srnn_filter_latent": "SRNN, filter of frame, h and last z",
        "avf": "SRNN, AVF, K = 1",
        "avf_k5": "SRNN, AVF, K = 5",
        "srnn_dmm": "SRNN, filter of frame and h",
    }
    rows = []
    for key, name in names.items():
        row = report["results"][key]
        peer = next(k for k, v in row.items() if isinstance(v, dict) and k != "pyro_seq")
        ours, other = row["pyro_seq"], row[peer]
        rows.append([
            name, peer, f"{row['ratio_wall']:.2f}", f"{row['ratio_fastest']:.2f}",
            f"{row['ratio_cpu']:.2f}", f"{row['target']}" if "target" in row else "",
            f"{ours['wall_ms']:.1f} / {other['wall_ms']:.1f}",
            f"{ours['operations']} / {other['operations']}",
            f"{ours['peak_mib']:.1f} / {other['peak_mib']:.1f}",
        ])  # fmt: skip
    columns = ["one training step", "against", "ratio", "of the fastest", "of CPU time", "target"]
    machine = report["machine"]
    note = (
        f"`{machine['command']}`, {machine['cpu']}, one thread of {machine['cores']} cores, load "
        f"average {machine['load_average']}, torch {machine['torch']}; medians."
    )
    return table([*columns, "ms", "operations", "peak MiB"], rows) + f"\n{note}\n"


def bench_online(report: dict[str, Any]) -> str:
    """Time and memory of online updates, early and late."""
    row = report["results"]["online"]
    rows = [
        [
            name, f"{found['first_ms']:.2f} / {found['last_ms']:.2f}",
            f"{found['first_rss_mib']:.1f} / {found['last_rss_mib']:.1f}",
            f"{found['first_tensors']} / {found['last_tensors']}",
        ]
        for name, found in row.items() if isinstance(found, dict)
    ]  # fmt: skip
    title = f"{row['steps']} updates, first / last {row['window']}"
    return table([title, "CPU ms per update", "MiB of the process", "tensors alive"], rows)


def bench_memory(report: dict[str, Any]) -> str:
    """Forward and backward of every memory against an LSTM cell."""
    rows = [
        [
            name, f"{cost['ratio_wall']:.1f}", f"{cost['ratio_fastest']:.1f}",
            f"{cost['ratio_cpu']:.1f}", cost["launches_per_step"], f"{cost['peak_mib']:.1f}",
        ]
        for name, cost in report["results"]["memories"].items() if isinstance(cost, dict)
    ]  # fmt: skip
    columns = ["", "ratio", "of the fastest", "of CPU time", "launches per step", "peak MiB"]
    machine = report["machine"]
    note = (
        f"`{machine['command']}`, {machine['cpu']}, one thread of {machine['cores']} cores, load "
        f"average {machine['load_average']}, torch {machine['torch']}; medians."
    )
    return table(columns, rows) + f"\n{note}\n"


def bench_memory_pairs(report: dict[str, Any]) -> str:
    """The DNC against that of a package, and an ICM that reads few rows against all."""
    results, rows = report["results"], []
    for key, name, peer in (
        ("memories_dnc", "dnc", "dnc"),
        ("memories_top_k", "icm, {top_k} of {slots} rows", "dense"),
    ):
        row = results[key]
        ours, other = row["pyro_seq"], row[peer]
        rows.append([
            name.format(**row), f"`{row['peer']}`" if "peer" in row else "all rows",
            f"{row['ratio_wall']:.2f}", f"{row['ratio_fastest']:.2f}", f"{row['ratio_cpu']:.2f}",
            f"{row['target']}" if "target" in row else "",
            f"{ours['operations']} / {other['operations']}",
            f"{ours['graph_mib']:.1f} / {other['graph_mib']:.1f}" if "graph_mib" in ours else "",
            f"{ours['peak_mib']:.1f} / {other['peak_mib']:.1f}",
        ])  # fmt: skip
    columns = ["", "against", "ratio", "of the fastest", "of CPU time", "target", "operations"]
    return table([*columns, "graph MiB", "peak MiB"], rows)


def mean(runs: Iterable[dict[str, Any]], key: str) -> float:
    """Mean over runs."""
    return statistics.fmean(run[key] for run in runs)


def error(value: float) -> str:
    """A share of wrong pixels, as the paper prints it."""
    return f"{value:.4f}".removeprefix("0")


def source(runs: Sequence[dict[str, Any]]) -> str:
    """The commands behind a table, N for the seed."""
    each = (re.sub(r"(seed ?)\d+", r"\1N", run["config"]["command"]) for run in runs)
    commands = "\n".join(f"    {command}" for command in dict.fromkeys(each))
    machines = {
        "{threads} thread(s) of {processor}, torch {torch}".format(**run["config"]["machine"])
        for run in runs
    }
    return f"\nMade by\n\n{commands}\n\non {'; '.join(sorted(machines))}.\n" if runs else ""


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join("| " + " | ".join(str(cell) for cell in line) + " |\n" for line in lines)


if __name__ == "__main__":
    for name, text in tables().items():
        (RESULTS / name).write_text(text)
        print(f"wrote {RESULTS / name}")
