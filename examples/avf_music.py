"""Train filters of a stochastic recurrent network on polyphonic music, and compare free energies.

    python examples/avf_music.py --dataset jsb --preset default --out runs/jsb

One generative model (SRNN or VRNN) is trained with each of several filters:

- `baseline`: the papers' network of frame and recurrent state; `residual`: with the last latent,
  and locations added to the prior's;
- `vfem`: gradient descent on every step's free energy, no network (Algorithm 1);
- `avf_k1`, `avf_k2`, `avf_k5`: amortized variational filtering with K iterations;
- `rnn`: no latents, the same recurrent network and output; its numbers are exact.

Written to OUT: free energies in nats per step of the test songs in two conventions
(`<filter>_free_energy_per_step`: frames 2 to T of a song over T - 1, mean over songs;
`..._all`: all frames, mean over steps) with standard errors over songs in `metrics.json`, the
ArviZ comparison of the bounds in `comparison.csv`, and figures.

Presets: `smoke` ends in seconds; `default` is for a laptop's CPU; `paper` has the sizes and the
schedule of Marino et al. (2018).
"""

from __future__ import annotations

import argparse
import time
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from _interface import overridden, parser, pick_device, save_figure
from _music import KEYS, Songs, load_songs, training_crops, validation_crops
from _training import (
    Pair,
    Schedule,
    draw,
    exact,
    finish,
    learn,
    over_iterations,
    prepare,
    report,
)
from pyro.nn import PyroModule
from torch import Tensor, nn

from pyro_seq.data import Batch
from pyro_seq.data.polyphonic import POLYPHONIC
from pyro_seq.evaluation import FreeEnergy, free_energy
from pyro_seq.guides import NoLatents
from pyro_seq.inference import FilteringELBO
from pyro_seq.nn.activations import ClippedLeakyReLU
from pyro_seq.nn.mlp import mlp
from pyro_seq.plugins import get
from pyro_seq.training import SequenceLoss

FILTERS = ("baseline", "residual", "vfem", "avf_k1", "avf_k2", "avf_k5", "rnn")
SILENCE = -3.0
DRAWS = 5  # of the test songs' latents; the bound is the same, it scatters less
ACTIVATIONS = {"clipped": ClippedLeakyReLU, "elu": nn.ELU}


class Preset(NamedTuple):
    """One setting of the experiment.

    Attributes:
        sizes: Of the SRNN: latent, LSTM, and the hidden layers of prior and decoder.
        network: Units of each layer of a filter's network.
        activation: Nonlinearity of the model and of the network filters: "clipped", the leaky
            rectifier between -3 and 3, keeps latents from growing without bound; or "elu".
        avf: Options of the AVF guide.
        avf_draws: Draws for gradients in a step, shared out among the iterations, so that few
            iterations read less noise.
        vfem: Options of the guide of Algorithm 1.
        epochs: Passes over the songs, each of `crops_per_song` random crops of a song.
        songs: Songs of each split, None for all.
        frames: First frames of each song, None for all.
        transpose: Semitones by which training crops are moved at random, from and to.
    """

    sizes: dict[str, Any]
    network: list[int]
    avf: dict[str, Any]
    vfem: dict[str, Any]
    epochs: int
    learning_rate: float
    final_rate: float
    crop: int = 25
    batch: int = 32
    crops_per_song: int = 4
    dropout: float = 0.3
    frame_dropout: float = 0.1
    transpose: tuple[int, int] | None = (-3, 3)
    clip_norm: float = 2.0
    activation: str = "clipped"
    kl_epochs: int = 0
    avf_draws: int = 4
    songs: int | None = None
    frames: int | None = None


DEFAULT = Preset(
    sizes={
        "latent": 32,
        "hidden": 200,
        "prior": [128],
        "decoder": [256],
        "log_scales": [-4.0, 2.0],
    },
    network=[256, 256],
    avf={
        "encodes": ["parameters", "gradients", "observation"],
        "stop_gradients": False,
    },
    vfem={"iterations": 10, "rate": 0.3, "optimizer": "sgd", "samples": 4},
    epochs=70,
    learning_rate=0.01,
    final_rate=0.05,
)
PRESETS = {
    "default": DEFAULT,
    "smoke": DEFAULT._replace(
        sizes={"latent": 4, "hidden": 16, "prior": [16], "decoder": [16]},
        network=[16],
        epochs=2,
        batch=8,
        crops_per_song=1,
        songs=6,
        frames=25,
    ),
    "paper": DEFAULT._replace(
        sizes={"latent": 100, "hidden": 300, "prior": [500], "decoder": [500, 500]},
        network=[1024, 1024],
        avf={
            "encodes": ["parameters", "gradients"],
            "stop_gradients": True,
            "update": "sgd",
            "normalise": "layer",
            "units": "own",
        },
        epochs=800,
        batch=16,
        learning_rate=1e-4,
        final_rate=1.0,
        clip_norm=1000.0,
        crops_per_song=1,
        dropout=0.0,
        frame_dropout=0.0,
        transpose=None,
        kl_epochs=50,
        avf_draws=1,
    ),
}
# What differs on the larger sets. Transposition was compared, two short runs of the baseline on
# each; dropout and epochs were chosen without a comparison.
LARGER: dict[str, dict[str, Any]] = {
    "jsb": {},
    "nottingham": {"epochs": 40, "dropout": 0.1, "frame_dropout": 0.05, "transpose": None},
    "muse": {"epochs": 24, "dropout": 0.2, "transpose": None},
    "piano": {"epochs": 36, "dropout": 0.1, "frame_dropout": 0.05, "crops_per_song": 16},
}
LONG = 200  # songs of more frames get no curve over iterations: it would take most of the time


class RNN(PyroModule):
    """The control without latents: an LSTM over the frames, and the decoder on its output."""

    def __init__(self, hidden: int, decoder: list[int], dropout: float) -> None:
        super().__init__("rnn")
        self.lstm = nn.LSTM(KEYS, hidden, batch_first=True)
        self.first = nn.Parameter(torch.zeros(hidden))
        self.drop = nn.Dropout(dropout)
        self.decoder = nn.Sequential(*mlp(hidden, decoder), nn.Linear(decoder[-1], KEYS))
        nn.init.constant_(self.decoder[-1].bias, SILENCE)

    def steps(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Log density of each frame given those before, `(batch, time)`; 0 in padding."""
        x = x if mask is None else torch.where(mask.unsqueeze(-1), x, torch.zeros_like(x))
        outputs = self.lstm(x[:, :-1])[0]
        h = torch.cat([self.first.expand(len(x), 1, -1), outputs], 1)
        nats = dist.Bernoulli(logits=self.decoder(self.drop(h))).log_prob(x).sum(-1)
        return nats if mask is None else torch.where(mask, nats, torch.zeros_like(nats))

    def forward(self, x: Tensor, mask: Tensor | None = None, controls: None = None) -> None:
        """One factor per sequence."""
        with pyro.plate("sequences", len(x), dim=-1):
            pyro.factor("x", self.steps(x, mask).sum(-1))


def build(name: str, args: argparse.Namespace, preset: Preset) -> Pair:
    """The model and the filter of that name."""
    torch.manual_seed(args.seed)
    if name == "rnn":
        sizes = preset.sizes
        return Pair(RNN(sizes["hidden"], sizes["decoder"], preset.dropout), NoLatents())
    activation = ACTIVATIONS[preset.activation]
    model = get("models", args.model)(
        KEYS,
        **preset.sizes,
        activation=activation,
        dropout=preset.dropout,
        frame_dropout=preset.frame_dropout,
    )
    nn.init.constant_(model.emit.logits.bias, SILENCE)
    options = {"hidden": preset.network, "activation": activation, "head_gain": 0.1}
    if name == "baseline":
        return Pair(model, get("guides", "filter")(model, reads=["h"], **options))
    if name == "residual":
        return Pair(model, get("guides", "filter")(model, residual=True, **options))
    if name == "vfem":
        return Pair(model, get("guides", "vfem")(model, **preset.vfem))
    iterations = int(name.removeprefix("avf_k"))
    draws = {"samples": max(1, preset.avf_draws // iterations)}
    options = {"hidden": preset.network, **draws, **preset.avf}
    return Pair(model, get("guides", "avf")(model, iterations, **options))


def main() -> None:
    """Train every filter, evaluate on the test songs, compare, plot."""
    args, preset = arguments()
    prepare(args)
    began = time.perf_counter()
    device = pick_device(args.device)
    data = load_songs(args, preset.songs, preset.frames)
    trained, seconds = {}, {}
    for name in args.filters:
        trained[name], seconds[name] = train(name, args, preset, data, device)
    metrics = evaluate(trained, data, args)
    finish(metrics, seconds, began, args, preset)


def arguments() -> tuple[argparse.Namespace, Preset]:
    """The command line, and the preset with what it overrides."""
    options = parser(__doc__.splitlines()[0] if __doc__ else "", "runs/avf_music")
    options.add_argument("--dataset", choices=tuple(POLYPHONIC), default="jsb")
    options.add_argument("--model", choices=("srnn", "vrnn"), default="srnn")
    options.add_argument(
        "--filters", nargs="+", choices=FILTERS, default=None, help="which to train"
    )
    args = options.parse_args()
    if args.filters is None:
        args.filters = ["baseline", "avf_k1"] if args.preset == "smoke" else list(FILTERS)
    preset = PRESETS[args.preset]
    if args.preset == "default":
        preset = preset._replace(**LARGER[args.dataset])
    return args, overridden(options, preset, args.set)


def train(
    name: str, args: argparse.Namespace, preset: Preset, data: Songs, device: torch.device
) -> tuple[Pair, float]:
    """Train one filter with its model; the weights of the best validation epoch are kept."""
    pair = build(name, args, preset)
    loss = SequenceLoss(*pair, None if name == "rnn" else FilteringELBO()).to(device)
    loader = training_crops(data, preset, args.seed)
    schedule = Schedule(
        preset.epochs,
        preset.learning_rate,
        preset.final_rate,
        clip_norm=preset.clip_norm,
        kl_epochs=0 if name == "rnn" else preset.kl_epochs,
    )
    optimizer = torch.optim.Adam(loss.parameters(), preset.learning_rate)
    config = {"dataset": args.dataset, **preset._asdict()}
    validation = validation_crops(data, preset.crop)
    seconds = learn(name, loss, optimizer, loader, validation, schedule, args, config)
    return pair, seconds


def energies(pair: Pair, batch: Batch) -> FreeEnergy:
    """Free energy of each frame of each song, mean over draws; exact for the RNN."""
    model, guide = pair
    if not isinstance(model, RNN):
        return free_energy(model, guide, batch, samples=DRAWS, seed=0, chunk=DRAWS * 128)
    model.eval()
    with torch.no_grad():
        return exact(model.steps(batch.x, batch.mask), batch.mask)


def evaluate(trained: dict[str, Pair], data: Songs, args: argparse.Namespace) -> dict[str, float]:
    """Free energies of the test songs in both conventions, the comparison and the figures."""
    batch = data.test[list(range(len(data.test)))]
    found = {name: energies(pair, batch) for name, pair in trained.items()}
    metrics, _ = report(found, None, args)
    if batch.x.shape[1] <= LONG:
        over_iterations(trained, batch, metrics, args, DRAWS * 128, DRAWS)
    draw(lambda: draw_rolls(trained, batch, args))
    return metrics


def draw_rolls(trained: dict[str, Pair], batch: Batch, args: argparse.Namespace) -> None:
    """A song with what each filter predicts of it."""
    from pyro_seq.evaluation.step_plots import plot_piano_rolls, reconstructions

    song = Batch(batch.x[:1, :60], None if batch.mask is None else batch.mask[:1, :60])
    rolls = {"song": song.x[0]}
    for name, (_, guide) in trained.items():
        if name != "rnn":
            rolls[f"{name}, predicted"] = reconstructions(guide, song)["prediction"][0]
    save_figure(plot_piano_rolls(rolls), args.out / "piano_rolls.png")


if __name__ == "__main__":
    main()
