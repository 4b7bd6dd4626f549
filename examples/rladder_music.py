"""Train a recurrent ladder to foretell polyphonic music, and measure its likelihood exactly.

    python examples/rladder_music.py --dataset jsb_eighth --preset default --out runs/rladder_jsb

The ladder of table 8 runs over the pitches: at each step it reads which notes sound, and says of
each of the 88 with what probability it sounds at the next, independently of the others given the
past. There is no latent variable, so that minus the log likelihood is exact. It reads silence
before the first step, which counts as any other.

`jsb` has a step for a quarter note, `jsb_eighth` for an eighth: never compare the two.

Written to OUT: `metrics.json` with the nats per step of the test songs, `nll_per_step`, the sum
over all steps of all songs over their number; `nll_per_step_of_songs`, where each song counts the
same, `nll_per_step_from_2`, the same without first steps; standard errors (`..._se`) over songs;
`marginals_nll_per_step`, of the shares of the notes in the training songs; and figures.

Presets: `smoke` ends in seconds; `default` is for a laptop's CPU, with fewer channels, trained on
crops that are moved by semitones; `paper` has table 8, longer crops, and early stopping.
"""

from __future__ import annotations

import argparse
import time
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from _interface import overridden, parser, pick_device, save_figure
from _music import Songs, load_songs, training_crops, validation_crops
from _training import Schedule, draw, exact, finish, learn, prepare
from pyro.nn import PyroModule
from torch import Tensor, nn

from pyro_seq.data import Batch, batches
from pyro_seq.data.polyphonic import POLYPHONIC
from pyro_seq.engines import presets
from pyro_seq.evaluation import FreeEnergy
from pyro_seq.guides import NoLatents
from pyro_seq.training import SequenceLoss

STRETCH = 100  # steps whose levels are in memory at once when nothing is trained


class Preset(NamedTuple):
    """One setting of the experiment.

    Attributes:
        channels: Of each convolutional LSTM; all but the first halve the pitches.
        units: Of the LSTM at the top.
        options: Of the ladder, in place of the paper's.
        hidden: Share of the notes that are hidden from the ladder in training, at random.
        crop: Steps of a training crop.
        crops_per_song: In an epoch.
        transpose: Semitones by which training crops are moved at random, from and to.
        patience: Epochs without a better validation loss after which training ends.
        songs: Songs of each split, None for all.
    """

    channels: list[int]
    units: int
    epochs: int
    options: dict[str, Any] = {}
    learning_rate: float = 1e-2
    final_rate: float = 0.02
    clip_norm: float = 5.0
    weight_decay: float = 0.0
    hidden: float = 0.1
    crop: int = 25
    batch: int = 32
    crops_per_song: int = 4
    transpose: tuple[int, int] | None = (-5, 6)
    patience: int | None = None
    songs: int | None = None


DEFAULT = Preset(channels=[16, 24, 32], units=48, epochs=40)
PRESETS = {
    "default": DEFAULT,
    "smoke": DEFAULT._replace(channels=[4, 4], units=8, epochs=1, crops_per_song=1, songs=12),
    "paper": DEFAULT._replace(
        channels=[32, 64, 96, 128, 160],
        units=96,
        epochs=20,
        final_rate=1.0,
        hidden=0.0,
        crop=100,
        transpose=None,
        patience=3,
    ),
}
# What differs by default. About 30 updates an epoch; none of this was compared.
SETS: dict[str, dict[str, Any]] = {
    "jsb": {},
    "jsb_eighth": {"crop": 50, "batch": 16, "crops_per_song": 29},
    "nottingham": {"crops_per_song": 2, "transpose": None, "hidden": 0.05},
    "muse": {"crops_per_song": 2, "transpose": None},
    "piano": {"crops_per_song": 11, "hidden": 0.05},
}


class Notes(PyroModule):
    """The likelihood of each frame given those before, by a ladder."""

    def __init__(self, ladder: nn.Module, rates: Tensor, hidden: float) -> None:
        super().__init__("notes")
        self.ladder = ladder
        self.usual = nn.Parameter(torch.logit(rates))
        self.hide = nn.Dropout(hidden)

    def logits(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Of the notes of each frame, `(songs, time, keys)`, given those before it."""
        seen = torch.ones_like(x[..., 0], dtype=torch.bool) if mask is None else mask
        seen = torch.cat([torch.ones_like(seen[:, :1]), seen[:, :-1]], 1)
        before = torch.cat([torch.zeros_like(x[:, :1]), self.hide(x[:, :-1])], 1).unsqueeze(2)
        state, found = None, []
        for part in zip(before.split(STRETCH, 1), seen.split(STRETCH, 1), strict=True):
            outputs, state = self.ladder(*part, state)
            found.append(outputs.prediction.squeeze(2))
        return self.usual + torch.cat(found, 1)

    def steps(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Log probability of each frame given those before, `(songs, time)`; 0 in padding."""
        x = x if mask is None else torch.where(mask.unsqueeze(-1), x, torch.zeros_like(x))
        nats = dist.Bernoulli(logits=self.logits(x, mask)).log_prob(x).sum(-1)
        return nats if mask is None else torch.where(mask, nats, torch.zeros_like(nats))

    def forward(self, x: Tensor, mask: Tensor | None = None, controls: None = None) -> None:
        """One factor per song."""
        with pyro.plate("songs", len(x), dim=-1):
            pyro.factor("x", self.steps(x, mask).sum(-1))


def main() -> None:
    """Train, evaluate on the test songs, plot."""
    args, preset = arguments()
    prepare(args)
    began = time.perf_counter()
    data = load_songs(args, preset.songs)
    model, seconds = train(data, args, preset)
    metrics = evaluate(model, data)
    metrics["parameters"] = sum(p.numel() for p in model.parameters())
    show(metrics, args)
    draw(lambda: draw_song(model, data, args))
    finish(metrics, {"rladder": seconds}, began, args, preset)


def arguments() -> tuple[argparse.Namespace, Preset]:
    """The command line, and the preset with what it overrides."""
    options = parser(__doc__.splitlines()[0] if __doc__ else "", "runs/rladder_music")
    options.add_argument("--dataset", choices=tuple(POLYPHONIC), default="jsb_eighth")
    args = options.parse_args()
    preset = PRESETS[args.preset]
    if args.preset == "default":
        preset = preset._replace(**SETS[args.dataset])
    return args, overridden(options, preset, args.set)


def train(data: Songs, args: argparse.Namespace, preset: Preset) -> tuple[Notes, float]:
    """The model with the weights of its best validation epoch, and seconds."""
    torch.manual_seed(args.seed)
    ladder = presets.polyphonic(preset.channels, preset.units, **preset.options)
    model = Notes(ladder, rates(data), preset.hidden)
    loss = SequenceLoss(model, NoLatents()).to(pick_device(args.device))
    schedule = Schedule(
        preset.epochs,
        preset.learning_rate,
        preset.final_rate,
        clip_norm=preset.clip_norm,
        patience=preset.patience,
    )
    optimizer = torch.optim.AdamW(
        loss.parameters(), preset.learning_rate, weight_decay=preset.weight_decay
    )
    loader = training_crops(data, preset, args.seed, "pad")
    validation = validation_crops(data, preset.crop, "pad")
    config = {"dataset": args.dataset, **preset._asdict()}
    return model, learn("rladder", loss, optimizer, loader, validation, schedule, args, config)


def rates(data: Songs) -> Tensor:
    """The share of the steps of training songs in which each key sounds, never 0."""
    batch = whole(data.train)
    sounds = batch.x.sum((0, 1))
    return (sounds + 0.1) / (batch.observed.sum() + 0.2)


def whole(dataset: Any) -> Batch:  # noqa: ANN401 - a split of songs
    """All songs at once, padded."""
    return dataset[list(range(len(dataset)))]


@torch.no_grad()
def energies(model: Notes, data: Songs) -> FreeEnergy:
    """Minus the log probability of each step of each test song."""
    model.eval()
    device = next(model.parameters()).device
    steps = [
        exact(model.steps(*batch.to(device)[:2]), batch.mask)
        for batch in batches(data.test, 16, shuffle=False)
    ]
    longest = max(part.mask.shape[1] for part in steps)

    def join(field: str) -> Tensor:
        each = [getattr(part, field) for part in steps]
        return torch.cat([nn.functional.pad(one, (0, longest - one.shape[1])) for one in each])

    return FreeEnergy(join("log_likelihood"), join("divergence"), join("mask"), 1)


def evaluate(model: Notes, data: Songs) -> dict[str, float]:
    """Nats per step of the test songs, as three averages, and of the training songs' shares."""
    energy = energies(model, data)
    found = {
        "nll_per_step": energy.per_step(over="steps"),
        "nll_per_step_of_songs": energy.per_step(),
        "nll_per_step_from_2": energy.per_step(skip=1),
    }
    test = whole(data.test)
    nats = dist.Bernoulli(rates(data)).log_prob(torch.nan_to_num(test.x)).sum(-1)
    found["marginals_nll_per_step"] = exact(nats, test.mask).per_step(over="steps")
    metrics = {}
    for name, estimate in found.items():
        metrics |= {name: estimate.mean, f"{name}_se": estimate.standard_error}
    return metrics


def show(metrics: dict[str, float], args: argparse.Namespace) -> None:
    """Print what `metrics.json` has."""
    print(f"\nMinus log likelihood of the test songs of {args.dataset}, nats per step")
    for name, text in (
        ("nll_per_step", "all steps"),
        ("nll_per_step_of_songs", "mean over songs"),
        ("nll_per_step_from_2", "mean over songs, steps 2..T"),
        ("marginals_nll_per_step", "shares of the notes alone, all steps"),
    ):
        print(f"{text:40s}{metrics[name]:10.3f} +- {metrics[f'{name}_se']:.2g}")


@torch.no_grad()
def draw_song(model: Notes, data: Songs, args: argparse.Namespace) -> None:
    """A song, and the probability of every note given the steps before."""
    from pyro_seq.evaluation.step_plots import plot_piano_rolls

    song = data.test[[0]].x[:, :60].to(next(model.parameters()).device)
    foretold = torch.sigmoid(model.logits(song, None))
    rolls = {"song": song[0].cpu(), "foretold": foretold[0].cpu()}
    save_figure(plot_piano_rolls(rolls), args.out / "piano_rolls.png")


if __name__ == "__main__":
    main()
