"""Build the tables of the documentation from the result files beside it.

    python docs/tables

reads `docs/results/*.json` and writes `docs/results/*.md`, which the pages include. A result file
is the `metrics.json` of an example, with the command and the machine under `"config"`, or the
report of `make bench`.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import ladders
from filters import iterations, iterations_of_video, music, music_levers, pendulum, speech, video
from groupings import groupings, without_learning
from kvae import box, environments, levers, pairs, starts
from memories import recall, turns, walks
from speed import (
    bench,
    bench_filters,
    bench_ladders,
    bench_memory,
    bench_memory_pairs,
    bench_online,
    bench_step,
)

RESULTS = Path(__file__).parents[1] / "results"


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
        own = {
            k: v for k, v in runs.items() if re.fullmatch(rf"avf_music_{name}(_vfem)?_seed\d+", k)
        }
        if own:
            made[f"avf_music_{name}.md"] = music([*own.values()])
        if own and name == "jsb":
            made["avf_iterations.md"] = iterations([*own.values()])
    for stem, make in (
        ("rladder_occluded_digits", ladders.occluded),
        ("rladder_occluded_mnist", ladders.occluded),
        ("rladder_occluded_labels", ladders.few_labels),
        ("rladder_music", ladders.music),
        ("ladder_guide_digits", ladders.guides),
        ("ladder_guide_jsb", ladders.guides),
        ("avf_speech", speech),
        ("my_own_model", pendulum),
        ("gtmm_map", walks),
        ("gtmm_rotation", turns),
    ):
        own = {k: v for k, v in runs.items() if re.fullmatch(rf"{stem}(_[a-z_]+)?_seed\d+", k)}
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
    own = {k: v for k, v in runs.items() if re.fullmatch(r"grouping_\w+_seed\d+", k)}
    if own:
        made["grouping.md"] = groupings([*own.values()])
        made["grouping_baselines.md"] = without_learning([*own.values()])
    if "bench" in runs:
        made["bench.md"] = bench(runs["bench"])
        made["bench_step.md"] = bench_step(runs["bench"])
    if "benchmark_avf" in runs:
        made["bench_avf.md"] = bench_filters(runs["benchmark_avf"])
        made["bench_online.md"] = bench_online(runs["benchmark_avf"])
    if "benchmark_memory" in runs:
        made["bench_memory.md"] = bench_memory(runs["benchmark_memory"])
        made["bench_memory_pairs.md"] = bench_memory_pairs(runs["benchmark_memory"])
    if "benchmark_ladders" in runs:
        made["bench_ladders.md"] = bench_ladders(runs["benchmark_ladders"])
    return made


if __name__ == "__main__":
    for name, text in tables().items():
        (RESULTS / name).write_text(text)
        print(f"wrote {RESULTS / name}")
