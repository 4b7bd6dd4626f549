"""Train one hierarchical model with several guides for equal times, and compare the bounds.

    python examples/ladder_guide.py --dataset digits --preset default --out runs/ladder_guide

`HierarchicalTemporalModel` has latents at two levels, and nothing else links one step to the
next. It is trained, anew with each guide, on black and white frames of digits that move behind
bars (8 by 8 pixels on 16 by 16, nothing is downloaded), or on the chorales of `--dataset jsb`:

- `filter`: a network of the frame and the last latents;
- `avf`: amortized variational filtering, K = 1;
- `ladder`: a recurrent ladder that carries all frames so far, its decoder read from the top down;
- `smoother`: the same with a second ladder that runs from the end, so that q sees later frames.

The epochs of the guides are such that each trains for about the same time; the seconds are in
`metrics.json`. The first three filter: their bounds are of one kind. That of `smoother` can be
tighter on the same model, but it cannot filter a stream.

Written to OUT: free energies in nats per step of the test sequences in two conventions
(`<guide>_free_energy_per_step`: frames 2 to T over T - 1, mean over sequences; `..._all`: all
frames, mean over steps) with standard errors over sequences in `metrics.json`, the ArviZ
comparison of the bounds in `comparison.csv`, and figures.

Presets: `smoke` ends in seconds; `default` is for a laptop's CPU; `paper`, whose name is that of
all examples though the paper has no such experiment, is larger and longer.
"""

from __future__ import annotations

import argparse
import time
from typing import Any, NamedTuple

import torch
from _interface import overridden, parser, pick_device, save_figure
from _music import KEYS, load_songs, training_crops, validation_crops
from _training import Pair, Schedule, draw, finish, prepare, report, train

from pyro_seq.data import Batch, FreshLoader, load_small_digits
from pyro_seq.data.occluded import occluded_digits
from pyro_seq.evaluation import free_energy
from pyro_seq.evaluation.step_plots import reconstructions
from pyro_seq.models import HierarchicalTemporalModel
from pyro_seq.plugins import get

HELD = 197
BLACK = 0.5
GUIDES = {
    "filter": ("filter", {"residual": True}),
    "avf": (
        "avf",
        {"encodes": ["parameters", "gradients", "observation"], "stop_gradients": False},
    ),
    "ladder": ("ladder", {}),
    "smoother": ("ladder", {"backward": True}),
}


class Preset(NamedTuple):
    """One setting of the experiment.

    Attributes:
        latents: Sizes of the levels, the lowest first.
        hidden: Units of the hidden layers of model and guides.
        units: Of each level of a ladder.
        epochs: Of each guide.
        annealed: Share of the epochs over which the weight of the KL terms grows to 1, so that
            latents are not given up before they are of use.
        crop: Steps of a training sequence.
        batch: Sequences of a batch.
        batches: Batches of an epoch of digits, drawn anew.
        crops_per_song: In an epoch of music.
        transpose: Semitones by which crops of music are moved at random, from and to.
        validated: Sequences of digits for validation.
        evaluated: Sequences of digits for the test.
        songs: Songs of each split, None for all.
    """

    epochs: dict[str, int]
    latents: list[int] = [16, 8]
    hidden: int = 128
    units: int = 128
    learning_rate: float = 3e-3
    final_rate: float = 0.05
    clip_norm: float = 10.0
    annealed: float = 0.0
    crop: int = 10
    batch: int = 64
    batches: int = 50
    crops_per_song: int = 2
    transpose: tuple[int, int] | None = (-5, 6)
    validated: int = 200
    evaluated: int = 1000
    samples: int = 5
    songs: int | None = None


# About equal times on one core, three minutes or more: medians of steps taken in turn.
DIGITS = Preset(epochs={"filter": 56, "avf": 40, "ladder": 44, "smoother": 35})
MUSIC = DIGITS._replace(
    epochs={"filter": 80, "avf": 57, "ladder": 63, "smoother": 50},
    learning_rate=1e-3,
    clip_norm=2.0,
    annealed=0.5,
    transpose=None,
    crop=25,
    batch=32,
    latents=[32, 16],
)
SMALL = {"epochs": dict.fromkeys(GUIDES, 1), "hidden": 16, "units": 16, "batch": 8, "batches": 4}
SMOKE = {**SMALL, "validated": 8, "evaluated": 16, "samples": 1, "songs": 8, "crops_per_song": 1}
PRESETS = {
    "default": {"digits": DIGITS, "jsb": MUSIC},
    "smoke": {"digits": DIGITS._replace(**SMOKE), "jsb": MUSIC._replace(**SMOKE)},
    "paper": {
        name: preset._replace(
            epochs={guide: 10 * count for guide, count in preset.epochs.items()},
            latents=[64, 32],
            hidden=512,
            units=512,
            learning_rate=1e-3,
        )
        for name, preset in (("digits", DIGITS), ("jsb", MUSIC))
    },
}


class Data(NamedTuple):
    """Training batches, those of the validation loss, and the test sequences."""

    frame: list[int]
    train: Any
    validation: Any
    test: Batch


def main() -> None:
    """Train a model with each guide, evaluate on the test sequences, compare, plot."""
    args, preset = arguments()
    prepare(args)
    began = time.perf_counter()
    data = songs(args, preset) if args.dataset == "jsb" else digits(args, preset)
    pairs, energies, seconds = {}, {}, {}
    for name in args.guides:
        pairs[name] = build(name, data, args, preset)
        schedule = Schedule(
            preset.epochs[name],
            preset.learning_rate,
            preset.final_rate,
            clip_norm=preset.clip_norm,
            kl_epochs=round(preset.annealed * preset.epochs[name]),
        )
        config = {"dataset": args.dataset, **preset._asdict()}
        seconds[name] = train(
            name, pairs[name], data.train, data.validation, schedule, args, config
        )
        energies[name] = free_energy(
            *pairs[name], data.test, samples=preset.samples, seed=0, chunk=500
        )
    metrics, _ = report(energies, None, args)
    for name, pair in pairs.items():
        for part, module in pair._asdict().items():
            metrics[f"{name}_{part}_parameters"] = sum(p.numel() for p in module.parameters())
    draw(lambda: draw_predictions(pairs, data, args))
    finish(metrics, seconds, began, args, preset)


def arguments() -> tuple[argparse.Namespace, Preset]:
    """The command line, and the preset with what it overrides."""
    options = parser(__doc__.splitlines()[0] if __doc__ else "", "runs/ladder_guide")
    options.add_argument("--dataset", choices=("digits", "jsb"), default="digits")
    usual = ["filter", "avf", "ladder"]
    options.add_argument("--guides", nargs="+", choices=tuple(GUIDES), default=usual)
    args = options.parse_args()
    return args, overridden(options, PRESETS[args.preset][args.dataset], args.set)


def digits(args: argparse.Namespace, preset: Preset) -> Data:
    """Digits behind bars, drawn anew for training, of other pictures for the test."""
    device = pick_device(args.device)
    known, test = (load_small_digits(split).to(device) for split in ("train", "test"))
    bank, held = known.select(slice(-HELD)), known.select(slice(-HELD, None))

    def make(bank: Any, count: int, *, seed: Any) -> Batch:  # noqa: ANN401
        scenes = occluded_digits(bank, count, time=preset.crop, seed=seed)
        return Batch((scenes.frames > BLACK).float())

    def fresh(*, seed: torch.Generator) -> Batch:
        return make(bank, preset.batch, seed=seed)

    return Data(
        [1, 16, 16],
        FreshLoader(fresh, preset.batches, seed=args.seed),
        [make(held, preset.validated, seed=1_000_000)],
        make(test, preset.evaluated, seed=2_000_000),
    )


def songs(args: argparse.Namespace, preset: Preset) -> Data:
    """Crops of chorales for training, whole ones for the test."""
    data = load_songs(args, preset.songs)
    test = data.test[list(range(len(data.test)))].to(pick_device(args.device))
    validation = validation_crops(data, preset.crop)
    return Data([KEYS], training_crops(data, preset, args.seed), validation, test)


def build(name: str, data: Data, args: argparse.Namespace, preset: Preset) -> Pair:
    """The model, from the same seed, and the guide of that name."""
    torch.manual_seed(args.seed)
    model = HierarchicalTemporalModel(
        data.frame, latents=preset.latents, hidden=preset.hidden, decoder=[preset.hidden]
    )
    known, options = GUIDES[name]
    sizes: dict[str, Any] = {"hidden": [preset.hidden, preset.hidden]}
    if known == "ladder":
        sizes = {"hidden": preset.hidden, "units": preset.units}
    guide = get("guides", known)(model, **{**sizes, **options})
    device = pick_device(args.device)
    return Pair(model.to(device), guide.to(device))


def draw_predictions(pairs: dict[str, Pair], data: Data, args: argparse.Namespace) -> None:
    """A test sequence, and what each guide with its model predicts of every frame."""
    from pyro_seq.evaluation.plots import plot_strips
    from pyro_seq.evaluation.step_plots import plot_piano_rolls

    first = Batch._make(None if part is None else part[:1, :60] for part in data.test)
    rows = {"frames": first.x[0].cpu()}
    for name, pair in pairs.items():
        rows[f"{name}: predicted"] = reconstructions(pair.guide, first)["prediction"][0].cpu()
    plot = plot_piano_rolls if args.dataset == "jsb" else plot_strips
    save_figure(plot(rows), args.out / "predictions.png")


if __name__ == "__main__":
    main()
