"""Group the pixels of pictures and videos by the objects that they belong to, without labels.

    python examples/rtagger_grouping.py --dataset squares --engine rtagger tagger --out runs/boxes

A tagger divides a frame among K groups, whose ladders share their weights. On still pictures it
removes noise, in three iterations; of moving ones it foretells the next frame. Nothing says what
an object is: groups that hold one object each are what makes this easy. `--engine` compares

- `rtagger`: an LSTM at the top (recurrent convolutions in pictures of digits), and links from the
  decoder of the iteration before to the encoder;
- `rtagger_no_d2e`: without these links; `rtagger_feedforward`: with them, without recurrent rows;
- `tagger`: without either, so that nothing but the groups themselves is handed on;
- `generative`: the same as inference in a generative model, whose bound is reported: the guide
  `tagger` of a `GroupMixtureModel`.

Data: `squares` (two hollow squares over each other), `moving_squares`, `hidden_squares` (the same,
but some frames in a row are not shown, and the tagger reads what it foretold of them), `shapes`
(three outlines of 20 by 20 pixels), `textured` (a digit of one texture on another), `moving` (two
moving digits). The digits of `textured` are those of scikit-learn, with `--preset paper` MNIST's;
those of `moving` are MNIST's.

What is reported: adjusted mutual information (AMI, compared with the larger entropy as in the
papers) and Rand index (ARI) of groups and objects on test scenes, after each iteration (`ami_1`)
or for each frame that was foretold (`ami_2`), for the last (`ami_final`) and the mean of the later
half of the frames (`ami_late`), where frames are hidden also of these (`ami_hidden`) and of those
after them (`ami_after`), all with standard errors over scenes (`_se`), beside groupings that take
no learning; the cost in nats per pixel; the error of classes (`test_error_percent`).

Written to OUT: `metrics.json` (the keys of several engines begin with their names), the ArviZ
comparison (`comparison.csv`) of nats per scene, and figures: scores over iterations, training
curves, and scenes divided into groups. The nats of a tagger are those of clean pixels given
corrupted ones, or of frames given those before, without hidden ones; of the generative form they
are a lower bound on the log likelihood of the scene. The two are different quantities, and are not
compared.

Presets: `smoke` ends in seconds; `default` is for a laptop's CPU, minutes for outlines; `paper`
has the paper's sizes for digits and larger ones for outlines, and wants a GPU.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from _grouping import (
    Groups,
    Watch,
    baselines,
    draw_curves,
    draw_groups,
    measured,
    spread_over,
)
from _interface import overridden, parser, pick_device
from _training import Schedule, draw, exact, finish, learn, prepare
from torch import Tensor

from pyro_seq.data import (
    Batch,
    FreshLoader,
    Pictures,
    Scenes,
    load_digits,
    load_small_digits,
    moving_digits,
    moving_shapes,
    procedural_textures,
    textured_digits,
)
from pyro_seq.engines import (
    ConvLSTMRow,
    ConvRow,
    LinearRow,
    LSTMRow,
    PoolRow,
    RTagger,
    SoftMaxRow,
)
from pyro_seq.engines.rows import feed_forward
from pyro_seq.evaluation import Bound, compare, free_energy
from pyro_seq.guides import NoLatents, TaggerGuide
from pyro_seq.inference import FilteringELBO
from pyro_seq.models import EngineTasks, GroupMixtureModel
from pyro_seq.nn import estimate_statistics
from pyro_seq.ops.trees import map_tensors
from pyro_seq.training import AnnealKL, Callback, SequenceLoss, linear

ENGINES = {
    "rtagger": (True, "all"),
    "rtagger_no_d2e": (True, "none"),
    "rtagger_feedforward": (False, "all"),
    "tagger": (False, "none"),
}
CLASSES = 10
CLASS_WEIGHT = 0.1  # of the classification cost beside the cost per pixel


class Preset(NamedTuple):
    """One setting of the experiment.

    Attributes:
        size: Height and width of a frame.
        groups: K.
        units: Of each dense row; none for the top of table 9.
        widths: Channels of each level of rows of convolutions.
        cell: The decoder's cell in these; `top` reads nothing from the encoder at its side.
        mean: Of the pixels.
        pixels: `"bernoulli"` or `"gaussian"`.
        noise: Of the corruption, and in what the ladders read.
        iterations: On a still picture.
        variance: That Gaussian pixels begin with.
        time: Frames of a sequence.
        hidden: Of how many frames in a row none is shown: in the middle of test sequences, in
            training as many or fewer, anywhere after the third.
        batches: Batches of an epoch.
        learning_rate: Largest rate, after a warm-up.
        hold: Share of all updates at that rate, before it falls as a cosine.
        clip_norm: Largest norm of the gradients of the cost per pixel.
        evaluated: Test scenes.
        watched: Validation scenes.
        kl_updates: Updates over which the weight of divergences grows evenly, in the generative
            form.
    """

    size: int
    groups: int
    units: tuple[int, ...]
    widths: tuple[int, ...]
    mean: float
    pixels: str
    noise: float
    iterations: int
    time: int
    batch: int
    epochs: int
    batches: int
    learning_rate: float
    hold: float = 0.6
    clip_norm: float = 5.0
    evaluated: int = 200
    watched: int = 100
    kl_updates: int = 500
    hidden: int = 0
    variance: float = 2.414
    cell: str = "conv_g1"


SQUARES = Preset(
    size=12,
    groups=3,
    units=(200, 100, 50),
    widths=(),
    mean=0.206,
    pixels="bernoulli",
    noise=0.2,
    iterations=3,
    time=1,
    batch=64,
    epochs=15,
    batches=100,
    learning_rate=1e-3,
)
MOVING = SQUARES._replace(noise=0.1, time=8, batch=32, epochs=8, evaluated=60, watched=60)
HIDDEN = MOVING._replace(time=12, hidden=4, epochs=15)
SHAPES = SQUARES._replace(size=20, groups=4, units=(500, 250, 100), mean=0.26, batch=50, epochs=30)
TEXTURED = Preset(
    size=28,
    groups=2,
    units=(),
    widths=(16, 32),
    mean=0.5,
    pixels="gaussian",
    noise=0.2,
    iterations=3,
    time=1,
    batch=16,
    epochs=10,
    batches=100,
    learning_rate=1e-3,
)
DIGITS = TEXTURED._replace(
    size=32, groups=3, mean=0.05, time=10, batch=16, epochs=10, evaluated=60, watched=30
)
DEFAULT = {
    "squares": SQUARES,
    "moving_squares": MOVING,
    "hidden_squares": HIDDEN,
    "shapes": SHAPES,
    "textured": TEXTURED,
    "moving": DIGITS,
}
PAPER_WIDTHS = {"widths": (96, 192, 192), "learning_rate": 4e-4, "batch": 16, "groups": 3}
PRESETS = {
    "default": DEFAULT,
    "smoke": {
        name: preset._replace(
            units=tuple(width // 10 for width in preset.units),
            widths=(4, 4) if preset.widths else (),
            batch=4,
            epochs=2,
            batches=3,
            time=min(preset.time, 6 if preset.hidden else 4),
            hidden=min(preset.hidden, 1),
            evaluated=12,
            watched=6,
        )
        for name, preset in DEFAULT.items()
    },
    "paper": {
        "squares": SQUARES._replace(epochs=100, evaluated=1000),
        "moving_squares": MOVING._replace(epochs=50, evaluated=1000),
        "hidden_squares": HIDDEN._replace(epochs=50, evaluated=1000),
        "shapes": SHAPES._replace(
            units=(2000, 1000, 500), batch=100, learning_rate=4e-4, epochs=100, batches=500,
            evaluated=1000,
        ),
        "textured": TEXTURED._replace(
            size=96, **PAPER_WIDTHS, epochs=160, batches=1000, evaluated=1000
        ),
        "moving": DIGITS._replace(
            size=64, **PAPER_WIDTHS, time=20, epochs=60, batches=1000, evaluated=1000
        ),
    },
}  # fmt: skip


class Trained(NamedTuple):
    """A way to divide scenes that was trained, and what it is trained by."""

    loss: SequenceLoss
    find: Callable[[Scenes], Groups]


def main() -> None:
    """Train every engine, divide test scenes, compare, plot."""
    args, preset = arguments()
    prepare(args)
    began = time.perf_counter()
    make = source(args, preset)
    test, watched = (make(n, seed=s) for n, s in ((preset.evaluated, 2), (preset.watched, 3)))
    metrics, watches, seconds, bounds, found = baselines(test), {}, {}, {}, {}
    show_baselines(metrics)
    for name in args.engine:
        torch.manual_seed(args.seed)
        trained = build(name, args, preset, make)
        watches[name] = Watch(trained.find, watched)
        seconds[name] = train(name, trained, watches[name], args, preset, make)
        found[name] = trained.find(test)
        report = measured(found[name], test)
        bounds[name] = bound(trained, test, preset)
        report |= nats(name, bounds[name])
        parameters = sum(p.numel() for p in trained.loss.parameters())
        metrics |= {f"{name}_{k}": v for k, v in {**report, "parameters": parameters}.items()}
        show(name, report)
        draw(partial(draw_groups, name, found[name], test, args, more(trained, test, args)))
    write_comparison(bounds, args)
    draw(lambda: draw_curves(metrics, watches, args))
    if len(args.engine) == 1:
        metrics |= {key.removeprefix(f"{args.engine[0]}_"): v for key, v in metrics.items()}
    finish(metrics, seconds, began, args, preset)


def arguments() -> tuple[argparse.Namespace, Preset]:
    """The command line, and the preset with what it overrides."""
    options = parser(__doc__.splitlines()[0] if __doc__ else "", "runs/rtagger_grouping")
    options.add_argument("--dataset", choices=tuple(DEFAULT), default="squares")
    known = [*ENGINES, "generative"]
    options.add_argument("--engine", nargs="+", choices=known, default=["rtagger"])
    options.add_argument("--norm", choices=("batch", "layer"), default="batch")
    options.add_argument(
        "--labels",
        type=int,
        default=0,
        help="digits of the bank whose class is known, for --dataset textured: 0 for none and no "
        "head, more than there are for all; half of a batch is then of labelled digits",
    )
    args = options.parse_args()
    preset = overridden(options, PRESETS[args.preset][args.dataset], args.set)
    if args.labels < 0 or (args.labels and args.dataset != "textured"):
        options.error("--labels: a number, for --dataset textured, whose scenes have one class")
    if args.labels and "generative" in args.engine:
        options.error("--labels: the generative form has no head of classes")
    if preset.hidden and not 0 < preset.hidden <= preset.time - 4:
        options.error(
            "--set hidden: expected 0, or at least 4 frames that are shown beside those hidden; "
            f"got hidden={preset.hidden} of time={preset.time}"
        )
    if preset.hidden and "generative" in args.engine:
        options.error("--engine generative: for frames that are all shown")
    if preset.widths and "generative" in args.engine:
        options.error("--engine generative: for outlines, the decoder is of dense layers")
    args.moving = preset.time > 1
    return args, preset


def source(args: argparse.Namespace, preset: Preset) -> Callable[..., Scenes]:
    """Draws scenes: called with how many, `seed=`, and whether they are of the test."""
    if args.dataset not in ("textured", "moving"):
        kind = "shapes20" if args.dataset == "shapes" else "squares12"
        make = partial(moving_shapes, kind, time=preset.time)
        return partial(with_hidden, make, preset.hidden) if preset.hidden else make
    banks = [digits(split, args, preset) for split in ("train", "test")]
    textures = procedural_textures(size=512 if preset.size > 40 else 128)

    def make(count: int, *, seed: int | torch.Generator, bank: Pictures | None = None) -> Scenes:
        chosen = banks[1] if bank is None and seed == 2 else banks[0] if bank is None else bank
        if args.dataset == "textured":
            return textured_digits(chosen, textures, count, size=preset.size, seed=seed)
        return moving_digits(chosen, count, time=preset.time, size=preset.size, seed=seed)

    make.labelled = banks[0].select(slice(args.labels)) if args.labels else None
    return make


def with_hidden(
    make: Callable[..., Scenes], hidden: int, count: int, *, seed: int | torch.Generator
) -> Scenes:
    """Scenes of which some frames in a row are masked; how many, and which, is drawn to train."""
    scenes = make(count, seed=seed)
    time = scenes.frames.shape[1]
    first, many = torch.tensor([(time - hidden + 1) // 2]), torch.tensor([hidden])
    if isinstance(seed, torch.Generator):
        first = torch.randint(3, time - 1, (count, 1), generator=seed)
        many = torch.randint(hidden + 1, (count, 1), generator=seed)
    frame = torch.arange(time)
    mask = (frame < first) | (frame >= first + many)
    return scenes._replace(batch=Batch(scenes.frames, mask.expand(count, time)))


def digits(split: str, args: argparse.Namespace, preset: Preset) -> Pictures:
    """A bank of digits; that of scikit-learn needs no download."""
    if args.dataset == "textured" and preset.size < 84:
        return load_small_digits(split)
    return load_digits(split, args.data_dir, size=28 if preset.size > 40 else 14)


def training_batch(make: Callable[..., Scenes], preset: Preset, *, seed: torch.Generator) -> Batch:
    """A batch of fresh scenes; where there are labels, half of it has them."""
    labelled = getattr(make, "labelled", None)
    if labelled is None:
        return make(preset.batch, seed=seed).batch
    half = preset.batch // 2
    parts = [make(half, seed=seed, bank=labelled), make(preset.batch - half, seed=seed)]
    labels = torch.cat([parts[0].labels, torch.full_like(parts[1].labels, -1)])
    frames = torch.cat([part.frames for part in parts])
    return Batch(frames, None, labels.unsqueeze(-1).to(frames))


def build(
    name: str, args: argparse.Namespace, preset: Preset, make: Callable[..., Scenes]
) -> Trained:
    """The engine of that name and its task, or the generative model and its guide."""
    device = pick_device(args.device)
    if name == "generative":
        model = GroupMixtureModel(
            (1, preset.size, preset.size),
            groups=preset.groups,
            pixels=preset.pixels,
            mean=preset.mean,
            decoder=preset.units[-2::-1],
        ).to(device)
        guide = TaggerGuide(
            model, iterations=preset.iterations, units=preset.units, noise=preset.noise
        ).to(device)
        return Trained(SequenceLoss(model, guide, FilteringELBO()), partial(find_inferred, guide))
    recurrent, links = ENGINES[name]
    table = rows(preset, CLASSES if args.labels else 0)
    engine = RTagger(
        (1, preset.size, preset.size),
        table if recurrent else feed_forward(table),
        preset.groups,
        pixels=preset.pixels,
        mean=preset.mean,
        noise=preset.noise,
        variance=preset.variance,
        norm=args.norm,
        d2e=links,
    )
    tasks = EngineTasks(
        engine,
        iterations=None if args.moving else preset.iterations,
        gaps="imagine",
        class_weight=CLASS_WEIGHT * preset.size**2,
    ).to(device)
    some = make(4 * preset.batch, seed=4)
    return Trained(SequenceLoss(tasks, NoLatents()), partial(find_foretold, tasks, some))


def rows(preset: Preset, classes: int) -> list[Any]:
    """Rows of convolutions, and above them dense ones, an LSTM last, or the top of table 9."""
    table: list[Any] = []
    for number, width in enumerate(preset.widths):
        table.append(ConvLSTMRow(width, 4 if number else 8, 2, cell=preset.cell))
        table += [ConvRow(width, 5, cell=preset.cell)] * 2
    if preset.units:
        *dense, top = preset.units
        cell = "top" if preset.cell == "top" else "g1"
        table += [LinearRow(width, cell=cell) for width in dense]
        head = [SoftMaxRow(1 + classes)] if classes else []
        return [*table, LSTMRow(top, normalised=True, cell=cell), *head]
    left = preset.size // 2 ** (len(preset.widths) + 1)
    units = 1 + (classes or CLASSES)
    table += [
        ConvLSTMRow(units, 4, 2, cell=preset.cell),
        PoolRow(left, "mean", cell="broadcast"),
        LinearRow(units, "linear"),
    ]
    return [*table, SoftMaxRow(units, project=False)] if classes else table


def train(
    name: str,
    trained: Trained,
    watch: Watch,
    args: argparse.Namespace,
    preset: Preset,
    make: Callable[..., Scenes],
) -> float:
    """Train, or go on training; returns seconds."""
    generative = name == "generative"
    epochs = preset.epochs * (4 if generative else 1)
    pixels = preset.size**2 * (preset.iterations if generative else 1)
    clip = preset.clip_norm * pixels
    rate = preset.learning_rate
    schedule = Schedule(epochs, rate, 0.02, clip_norm=clip, hold=preset.hold)
    callbacks: list[Callback] = [watch]
    if generative:
        callbacks.append(AnnealKL(trained.loss, linear(preset.kl_updates), per="step"))
    loader = FreshLoader(partial(training_batch, make, preset), preset.batches, seed=args.seed)
    optimizer = torch.optim.Adam(trained.loss.parameters(), preset.learning_rate)
    config = {"dataset": args.dataset, "norm": args.norm, **preset._asdict()}
    return learn(name, trained.loss, optimizer, loader, None, schedule, args, config, callbacks)


@torch.no_grad()
def find_foretold(tasks: EngineTasks, some: Scenes, scenes: Scenes) -> Groups:
    """How an engine divides scenes without noise; statistics are estimated anew before."""
    device = next(tasks.parameters()).device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        with estimate_statistics(tasks):
            for x, mask in pieces(some, len(some.frames) // 4, device):
                tasks.foretold(x, mask)
        tasks.eval()
        found = [divided(tasks, x, mask) for x, mask in pieces(scenes, 50, device)]
    return Groups(*spread_over(found))


def pieces(
    scenes: Scenes, size: int, device: torch.device
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Frames, and which of them are shown, of a few scenes after the other."""
    mask = scenes.batch.mask
    masks = itertools.repeat(None) if mask is None else mask.to(device).split(size)
    return zip(scenes.frames.to(device).split(size), masks, strict=False)


def divided(tasks: EngineTasks, x: Tensor, mask: Tensor | None) -> Groups:
    """How an engine divides a few scenes."""
    said = tasks.foretold(x, mask)
    mixture, probs = said.emission, said.output.class_log_probs
    cost = -mixture.log_prob(x[:, 1:] if x.shape[1] > 1 else x) / x[0, 0].numel()
    classes = None if probs is None else probs[:, -1].argmax(-1)
    return Groups(mixture.m, mixture.components.mean, mixture.mean, cost, classes)


@torch.no_grad()
def find_inferred(guide: TaggerGuide, scenes: Scenes) -> Groups:
    """How the generative form divides scenes: by iterations, or frame by frame."""
    device, most = next(guide.parameters()).device, guide.iterations
    x = scenes.frames.to(device)
    counts = [most] if x.shape[1] > 1 else range(1, most + 1)
    drop = 1 if x.shape[1] > 1 else 0
    found = []
    guide.eval()
    guide.model.eval()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        for guide.iterations in counts:
            torch.manual_seed(0)
            h = torch.stack([*guide(x).values()], 1)[:, drop:]
            mixture = guide.model.emission(h)
            cost = -mixture.log_prob(x[:, drop:]) / x[0, 0].numel()
            given = mixture.responsibilities(x[:, drop:])
            parts = (mixture.m, mixture.components.mean, mixture.mean, cost, None, given)
            found.append(Groups(*parts))
    guide.iterations = most
    return Groups(*spread_over(found, 1))


@torch.no_grad()
def bound(trained: Trained, test: Scenes, preset: Preset) -> Bound:
    """Nats of each test scene: of clean pixels or next frames, or a bound on all."""
    model, guide = trained.loss.model, trained.loss.guide
    device = next(trained.loss.parameters()).device
    if isinstance(model, GroupMixtureModel):
        return free_energy(model, guide, test.batch.to(device), samples=4, seed=0).bound()
    torch.manual_seed(0)
    nats = []
    for x, mask in pieces(test, 50, device):
        if preset.time > 1:
            nats.append(model.foretold(x, mask).log_likelihood)
            continue
        output, _ = model.engine.iterate(model.engine.corrupt(x[:, 0]), preset.iterations)
        last = map_tensors(lambda part: part[:, -1:], output._replace(ladder=None))
        nats.append(model.engine.emission(last).log_prob(x))
    mask = test.batch.mask
    return exact(torch.cat(nats), None if mask is None else mask[:, 1:]).bound()


def nats(name: str, found: Bound) -> dict[str, float]:
    """The bound, or the conditional log likelihood, of a scene."""
    key = "elbo" if name == "generative" else "conditional_log_likelihood"
    return {f"{key}_per_scene": found.mean, f"{key}_per_scene_se": found.standard_error}


def write_comparison(bounds: dict[str, Bound], args: argparse.Namespace) -> None:
    """Nats per scene of the engines, of one kind: bounds, where there is nothing else."""
    alike = {name: each for name, each in bounds.items() if name != "generative"} or bounds
    comparison = compare(alike)
    comparison.to_csv(args.out / "comparison.csv")
    kind = "conditional log likelihoods" if alike is not bounds else "as above"
    print(f"\nNats, summed over the test scenes ({kind}; ArviZ)")
    print(comparison.to_string(float_format=lambda value: f"{value:.2f}"))


def more(trained: Trained, test: Scenes, args: argparse.Namespace) -> dict[str, Tensor]:
    """The first moving scene, foretold from its first half and then from what was foretold."""
    short = test.frames.shape[1] < 3
    if short or not isinstance(trained.loss.model, EngineTasks):
        return {}
    engine = trained.loss.model.engine
    half = test.frames.shape[1] // 2
    with torch.no_grad():
        output, state = engine(test.frames[:1, :half].to(next(engine.parameters()).device))
        last = map_tensors(lambda part: part[:, -1], output)
        dreamt, _ = engine.imagine(last, state, test.frames.shape[1] - 1 - half)
        both = torch.cat([output.prediction, dreamt.prediction], 1)[0]
    return {f"from {half} frames": both.cpu()}


def show_baselines(metrics: dict[str, float]) -> None:
    """Print what takes no learning."""
    print("AMI without learning:")
    for key, value in metrics.items():
        if key.endswith("_ami"):
            name = key.removeprefix("baseline_").removesuffix("_ami")
            print(f"  {name:12s}{value:8.3f} +- {metrics[f'{key}_se']:.3f}")


def show(name: str, found: dict[str, float]) -> None:
    """Print the scores of an engine."""
    steps = [key for key in found if key.startswith("ami_") and not key.endswith("_se")]
    print(f"\n{name:20s}" + "".join(f"{key.removeprefix('ami_'):>8s}" for key in steps))
    for what in ("ami", "ari"):
        values = [found[key.replace("ami", what, 1)] for key in steps]
        print(f"{what.upper():20s}" + "".join(f"{value:8.3f}" for value in values))
    print(f"{'standard error, AMI':20s}" + "".join(f"{found[f'{key}_se']:8.3f}" for key in steps))
    for key, value in found.items():
        if "per_scene" in key or key.startswith(("test_error", "responsibilities")):
            print(f"{key:36s}{value:10.3f}")


if __name__ == "__main__":
    main()
