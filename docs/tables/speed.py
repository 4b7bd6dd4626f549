"""Tables of the benchmarks."""

from __future__ import annotations

from typing import Any

from layout import table


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
    return table([*columns, "ms", "operations", "peak MiB"], rows) + _made_by(report)


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
    return table(columns, rows) + _made_by(report)


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


def bench_ladders(report: dict[str, Any]) -> str:
    """The convolutional LSTM, groups in one batch, and what a step of a ladder is made of."""
    results, rows = report["results"], []
    cells, step, groups = (results[k] for k in ("conv_lstm", "rladder_step", "rtagger_groups"))
    normed, bare, plain = (cells[k] for k in ("pyro_seq", "pyro_seq, no norms", "plain"))
    at_once = f"{groups['groups']} groups at once"
    for name, peer, target, row, ours, other in (
        ("ConvLSTM with two norms", "a plain cell", cells["target"], normed, normed, plain),
        ("ConvLSTM without", "a plain cell", "", bare, bare, plain),
        (at_once, "one after the other", groups["target"], groups, groups["together"],
         groups["alone"]),
    ):  # fmt: skip
        rows.append([
            name, peer,
            f"{row['ratio_wall']:.2f}", f"{row['ratio_fastest']:.2f}", f"{row['ratio_cpu']:.2f}",
            f"{target}", f"{ours['wall_ms']:.1f} / {other['wall_ms']:.1f}",
            f"{ours['operations']} / {other['operations']}",
            f"{ours['peak_mib']:.1f} / {other['peak_mib']:.1f}",
        ])  # fmt: skip
    columns = ["", "against", "ratio", "of the fastest", "of CPU time", "target", "ms"]
    share = (
        f"\nThe ladder of Table 5: {100 * step['share_of_convolutions']:.0f} % of the CPU time of "
        f"{step['ms']:.0f} ms in convolutions (target {100 * step['target']:.0f} %).\n"
    )
    return table([*columns, "operations", "peak MiB"], rows) + share + _made_by(report)


def _made_by(report: dict[str, Any]) -> str:
    """The command and the machine."""
    machine = report["machine"]
    return (
        f"\n`{machine['command']}`, {machine['cpu']}, one thread of {machine['cores']} cores, "
        f"load average {machine['load_average']}, torch {machine['torch']}; medians.\n"
    )
