"""Train filters of a recurrent latent variable model on speech waveforms, and compare them.

    python examples/avf_speech.py --corpus librispeech --preset default --out runs/speech

A frame is a window of 200 samples, standardised; its samples are normal, integrated over one step
of 16 bit. One generative model (SRNN or VRNN) is trained with each of several filters:

- `baseline`: the papers' network of frame and recurrent state; `residual`: it reads all of the
  model's state, and locations are added to the prior's;
- `avf_k1`, `avf_k2`: amortized variational filtering with K iterations;
- `vfem`: gradient descent on every step's free energy, no network.

Beside them stand models without latents: `white_noise`, independent normal samples;
`copy_last`, normal around the last sample of the window before; and `linear`, every sample
predicted from the 16 before it, those of its own window too, with a variance for each window
before it.

Written to OUT: nats per step of the test utterances in both units, as window probability
(`<filter>_free_energy_per_step`) and as log density (`<filter>_log_density_per_step`), for frames
2 to T over T - 1, mean over utterances, and as `..._all`, all frames, mean over steps
(`metrics.json`); the ArviZ comparison (`comparison.csv`); free energy over iterations
(`iterations.png`).

Presets: `smoke` ends in seconds; `default` is for a laptop's CPU; `paper` has the sizes and the
schedule of Marino et al. (2018) and wants a GPU, though it runs on a CPU too.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from _interface import overridden, parser, pick_device, save_figure
from _training import (
    Pair,
    Schedule,
    Units,
    draw,
    exact,
    finish,
    first,
    make_filter,
    over_iterations,
    prepare,
    report,
    train,
)
from torch import Tensor, nn

from pyro_seq.data import (
    Batch,
    SequenceDataset,
    Speech,
    batches,
    fixed_crops,
    load_speech,
    load_timit,
    random_crops,
)
from pyro_seq.distributions import DiscretizedNormal
from pyro_seq.evaluation import FreeEnergy, free_energy
from pyro_seq.nn.activations import ClippedLeakyReLU
from pyro_seq.plugins import get

FILTERS = ("baseline", "residual", "vfem", "avf_k1", "avf_k2")
ORDER = 16


class Preset(NamedTuple):
    """One setting of the experiment.

    Attributes:
        sizes: Arguments of each model, or the name of its preset.
        network: Units of each layer of a filter's network.
        avf: Further options of the AVF guide; `stop_gradients` chooses between EM and gradients
            through time.
        crops: For each corpus the windows of a training crop, and crops of each utterance in an
            epoch.
        levels: Whether networks read windows at one level, and the level beside them.
        shift: Whether training windows begin at any sample, and with either sign.
        utterances: Of each split, None for all.
        windows: First windows of each utterance, None for all.
    """

    sizes: dict[str, dict[str, Any] | str]
    network: list[int]
    avf: dict[str, Any]
    epochs: int
    learning_rate: float
    final_rate: float = 0.05
    clip_norm: float = 1000.0
    kl_epochs: int = 0
    crops: dict[str, tuple[int, int]] = {
        "librispeech": (20, 16),
        "fsdd": (20, 1),
        "timit": (40, 1),
    }
    batch: int = 32
    levels: bool = True
    shift: bool = True
    utterances: int | None = None
    windows: int | None = None
    vfem: dict[str, Any] = {"iterations": 10, "rate": 0.3}


LAYERS = [256]
DEFAULT = Preset(
    sizes={
        "srnn": {"latent": 64, "hidden": 256, "prior": LAYERS, "decoder": LAYERS},
        "vrnn": {
            "latent": 64,
            "hidden": 256,
            "x_net": LAYERS,
            "z_net": LAYERS,
            "prior": LAYERS,
            "decoder": LAYERS,
        },
    },
    network=[256, 256],
    avf={"encodes": ["parameters", "gradients", "observation"], "stop_gradients": False},
    epochs=25,
    learning_rate=3e-3,
    clip_norm=50.0,
)
PRESETS = {
    "default": DEFAULT,
    "smoke": DEFAULT._replace(
        epochs=1,
        batch=4,
        crops=dict.fromkeys(DEFAULT.crops, (10, 1)),
        utterances=6,
        windows=20,
    ),
    "paper": DEFAULT._replace(
        sizes={"srnn": "timit", "vrnn": "timit"},
        network=[1024, 1024],
        avf={
            "encodes": ["parameters", "gradients", "observation"],
            "stop_gradients": True,
            "normalise": "layer",
        },
        epochs=1000,
        learning_rate=1e-4,
        final_rate=1.0,
        clip_norm=1000.0,
        kl_epochs=50,
        batch=64,
        crops=dict.fromkeys(DEFAULT.crops, (40, 1)),
        levels=False,
        shift=False,
    ),
}


class Data(NamedTuple):
    """The three splits, and the size of a step of 16 bit in the units of the frames."""

    train: SequenceDataset
    validation: SequenceDataset
    test: SequenceDataset
    width: float


def main() -> None:
    """Train every filter, evaluate on the test utterances, compare, plot."""
    args, preset = arguments()
    prepare(args)
    began = time.perf_counter()
    data = load(args, preset)
    length, count = preset.crops[args.corpus]
    crops = fixed_crops(data.validation, length, seed=0, crops_per_sequence=count, short="pad")
    schedule = Schedule(
        preset.epochs,
        preset.learning_rate,
        preset.final_rate,
        clip_norm=preset.clip_norm,
        kl_epochs=preset.kl_epochs,
    )
    pairs, seconds = {}, {}
    for name in args.filters:
        pairs[name] = build(name, args, preset, data)
        loader = random_crops(
            data.train,
            length + preset.shift,
            preset.batch,
            crops_per_sequence=count,
            short="pad",
            augment=shifted if preset.shift else None,
            seed=args.seed,
        )
        config = {"corpus": args.corpus, "model": args.model, **preset._asdict()}
        validation = batches(crops, 64, shuffle=False)
        seconds[name] = train(name, pairs[name], loader, validation, schedule, args, config)
    metrics = evaluate(pairs, data, args)
    finish(metrics, seconds, began, args, preset)


def arguments() -> tuple[argparse.Namespace, Preset]:
    """The command line, and the preset with what it overrides."""
    options = parser(__doc__.splitlines()[0] if __doc__ else "", "runs/avf_speech")
    options.add_argument("--corpus", choices=("librispeech", "fsdd"), default="librispeech")
    options.add_argument(
        "--timit", type=Path, default=None, help="folder of your TIMIT, in place of the corpus"
    )
    options.add_argument("--model", choices=("srnn", "vrnn"), default="srnn")
    options.add_argument(
        "--filters", nargs="+", choices=FILTERS, default=None, help="which to train"
    )
    args = options.parse_args()
    if args.filters is None:
        args.filters = ["baseline", "residual", "avf_k1", "avf_k2"]
        args.filters = ["baseline", "avf_k1"] if args.preset == "smoke" else args.filters
    if args.timit is not None:
        args.corpus = "timit"
    return args, overridden(options, PRESETS[args.preset], args.set)


def load(args: argparse.Namespace, preset: Preset) -> Data:
    """The three splits of the corpus."""
    splits: list[Speech] = []
    for split in ("train", "validation", "test"):
        splits.append(
            load_speech(args.corpus, split, args.data_dir)
            if args.timit is None
            else load_timit(args.timit, split)
        )
    kept = [first(part.dataset, preset.utterances, preset.windows) for part in splits]
    return Data(*kept, splits[0].width)


def shifted(batch: Batch, generator: torch.Generator) -> Batch:
    """Crops that begin some samples later, one window shorter, and with either sign."""
    count, time, window = batch.x.shape
    first = torch.randint(window, (count, 1), generator=generator)
    sign = 1 - 2 * torch.randint(2, (count, 1), generator=generator)
    places = (first + torch.arange((time - 1) * window)).to(batch.x.device)
    x = batch.x.flatten(1).gather(1, places) * sign.to(batch.x)
    mask = None if batch.mask is None else batch.mask[:, :-1] & batch.mask[:, 1:]
    return Batch(x.view(count, time - 1, window), mask)


class Levels(nn.Module):
    """Windows at one level, and the logarithm of the level that each had."""

    def __init__(self, width: float) -> None:
        super().__init__()
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        """From windows `(..., window)` to `(..., window + 1)`."""
        level = x.square().mean(-1, keepdim=True).add(self.width**2).sqrt()
        return torch.cat([x / level, level.log()], -1)


def build(name: str, args: argparse.Namespace, preset: Preset, data: Data) -> Pair:
    """The model and the filter of that name."""
    torch.manual_seed(args.seed)
    window, kind = data.train.data.x.shape[-1], get("models", args.model)
    sizes = preset.sizes[args.model]
    arguments: dict[str, Any] = {
        "emission": "window",
        "emission_options": {"width": data.width},
    }
    reading: dict[str, Any] = {}
    if preset.levels:
        reading = {"encoder": Levels(data.width), "features": window + 1}
    if args.model == "srnn":
        arguments |= reading
    if isinstance(sizes, str):
        model = kind.preset(sizes, **arguments)
    else:
        model = kind(window, **sizes, activation=ClippedLeakyReLU, **arguments)
    own: dict[str, Any] = {"reads": ["h"]}
    if args.model == "vrnn":
        own |= {"encoder": model.x_net, "features": model.features}
    options = {
        "filter": {"hidden": preset.network, "activation": ClippedLeakyReLU, **reading},
        "baseline": own,
        "avf": {"hidden": preset.network, **preset.avf, **reading},
        "vfem": preset.vfem,
    }
    pair = Pair(model, make_filter(name, model, options))
    for part in pair:
        part.to(pick_device(args.device))
    return pair


def evaluate(pairs: dict[str, Pair], data: Data, args: argparse.Namespace) -> dict[str, float]:
    """Free energies of the test utterances in both units, the comparison and the figure."""
    train, test = (part[list(range(len(part)))] for part in (data.train, data.test))
    energies = {name: free_energy(*pair, test, seed=0, chunk=16) for name, pair in pairs.items()}
    energies |= without_latents(train, test, data.width)
    units = Units(data.width, test.x.shape[-1])
    metrics, comparison = report(energies, units, args)
    metrics["width"] = data.width
    over_iterations(pairs, test, metrics, args)

    def figure() -> None:
        from pyro_seq.evaluation import plot_compare

        save_figure(plot_compare(comparison), args.out / "comparison.png")

    draw(figure)
    return metrics


def without_latents(train: Batch, test: Batch, width: float) -> dict[str, FreeEnergy]:
    """What simple models of the samples give the test utterances; they are exact."""
    white = scores(test.x, torch.zeros(()), spread(train.x, train), width)
    last = train.x[:, :-1, -1:].expand_as(train.x[:, 1:])
    inner = Batch(train.x[:, 1:], None if train.mask is None else train.mask[:, 1:])
    scale = spread(inner.x - last, inner, offset=True)
    copy = scores(test.x[:, 1:], test.x[:, :-1, -1:], scale, width)
    return {
        name: exact(torch.cat([white[:, :1], value], 1), test.mask)
        for name, value in (
            ("white_noise", white[:, 1:]),
            ("copy_last", copy),
            ("linear", linear(train, test, width)),
        )
    }


def linear(train: Batch, test: Batch, width: float) -> Tensor:
    """Log probability of windows from the second on, each sample given those before it.

    A linear prediction of each sample; its variance is a power of that of the prediction errors in
    the window before, both fitted to the training utterances by least squares.
    """
    past, now = lagged(train)
    weights = torch.linalg.lstsq(past, now.unsqueeze(-1)).solution.squeeze(-1)
    errors = [
        (x.flatten(1)[:, ORDER:] - x.flatten(1).unfold(1, ORDER, 1)[:, :-1].double() @ weights)
        for x in (train.x, test.x)
    ]
    levels = [
        torch.nn.functional.pad(e, (ORDER, 0)).view(x.shape).square().mean(-1).add(width**2).log()
        for e, x in zip(errors, (train.x, test.x), strict=True)
    ]
    seen = torch.ones_like(levels[0][:, 2:], dtype=torch.bool)
    seen = seen if train.mask is None else train.mask[:, 2:]
    before, after = levels[0][:, 1:-1][seen], levels[0][:, 2:][seen]
    design = torch.stack([before, torch.ones_like(before)], -1)
    slope, offset = torch.linalg.lstsq(design, after.unsqueeze(-1)).solution.squeeze(-1)
    shift = (after.exp() / (slope * before + offset).exp()).mean().log()
    scale = (0.5 * (slope * levels[1][:, :-1] + offset + shift)).exp().unsqueeze(-1)
    means = test.x - torch.nn.functional.pad(errors[1], (ORDER, 0)).view(test.x.shape)
    return scores(test.x[:, 1:], means[:, 1:], scale, width)


def lagged(batch: Batch, count: int = 400_000) -> tuple[Tensor, Tensor]:
    """Stretches of samples and the sample after each, from within utterances."""
    past = batch.x.flatten(1).unfold(1, ORDER + 1, 1)
    if batch.mask is not None:
        whole = batch.mask.repeat_interleave(batch.x.shape[-1], 1)[:, ORDER:]
        past = past[whole]
    rows = past.reshape(-1, ORDER + 1)
    rows = rows[:: max(1, len(rows) // count)].double()
    return rows[:, :-1], rows[:, -1]


def spread(values: Tensor, batch: Batch, offset: bool = False) -> Tensor:
    """Root mean square of values, of all samples or for each offset in a window."""
    seen = values.flatten(0, 1) if batch.mask is None else values[batch.mask]
    square = seen.double().square()
    return (square.mean(0) if offset else square.mean()).sqrt()


def scores(x: Tensor, loc: Tensor, scale: Tensor, width: float) -> Tensor:
    """Log probability of each window, `(utterances, time)`."""
    return DiscretizedNormal(loc.double(), scale, width).log_prob(x.double()).sum(-1)


if __name__ == "__main__":
    main()
