"""Train generative models with memories on tasks of recall, and compare what they remember.

    python examples/gtmm_recall.py --task perfect --memory icm introspection lstm --out runs/recall

A sequence shows frames at random and then some of them again; where, the task says: `perfect`
(the first ones, in order), `parity` (new pictures of a 0 or a 1, the parity of the first labels),
`one_shot` (as `perfect`, characters of Omniglot, new ones in the test), `dynamic` (the label of a
frame is the place of the next), `cued` (what followed a frame that is shown again). The frames are
digits, or with `--frames vectors` normal vectors, for which a minute is enough.

What is reported: the divergence of q from the prior where frames are recalled, over that of new
frames (rho: 0 for a perfect memory, 1 for none), at the best and at the last epoch; that of the
last frame; free energies per step; the share of recalled frames for which the prediction is
nearest to the right one of those shown (retrieval), or for which a classifier finds the right
digit in the prediction (recall accuracy); the updates after which rho was first 1/2 or less; how
many latents are active.

Written to OUT: `metrics.json` (the keys of several memories begin with their names), the ArviZ
comparison (`comparison.csv`), and figures: divergence per step, training curves, frames with
predictions and generated ends, read weights.

Presets: `smoke` ends in seconds; `default` is for a laptop's CPU; `paper` has the sizes of the
paper and wants a GPU.
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from typing import Any, NamedTuple

import torch
from _interface import overridden, parser, pick_device, save_figure
from _memories import (
    FixedNormal,
    Trained,
    choose,
    classify,
    draw_measures,
    draw_reads,
    finish_memories,
    make_pair,
    measured,
    train_memories,
)
from _training import Pair, draw, prepare, report
from torch import Tensor, nn

from pyro_seq.data import (
    Batch,
    FreshLoader,
    Pictures,
    Recall,
    Vectors,
    load_digits,
    load_omniglot,
    recall,
)
from pyro_seq.evaluation import FreeEnergy, free_energy
from pyro_seq.evaluation.memories import continuation
from pyro_seq.evaluation.step_plots import reconstructions
from pyro_seq.nn.mlp import FlatFrames, mlp

TASKS = ("perfect", "parity", "one_shot", "dynamic", "cued")
NOISE = 0.1


class Preset(NamedTuple):
    """One setting of the experiment.

    Attributes:
        length: Frames shown first.
        recalled: Frames that follow.
        size: Height and width of pictures, 28 or 14; of vectors, their coordinates.
        latent: Size of z.
        hidden: Units of the controllers; those of the LSTM are half as many again.
        heads: Read heads.
        network: Units of the hidden layer of prior and filter.
        encoder: Units of each layer from the frame to its features.
        decoder: Units of each layer from z to the frame; none for vectors, which are z and noise.
        batches: Batches of an epoch.
        evaluated: Sequences that are validated on, and as many for the test.
        final_rate: The last learning rate as a fraction of the first, by a cosine.
        kl_epochs: Epochs over which the weight of the divergences grows to 1.
        residual: Whether the filter adds to the location of the prior.
        options: Further arguments of each memory by name.
    """

    length: int
    recalled: int
    size: int
    latent: int
    hidden: int
    heads: int
    network: int
    encoder: tuple[int, ...]
    decoder: tuple[int, ...]
    batch: int
    epochs: int
    batches: int
    learning_rate: float
    clip_norm: float
    evaluated: int = 256
    final_rate: float = 1.0
    kl_epochs: int = 0
    residual: bool = False
    options: dict[str, dict[str, Any]] = {}


VECTORS = Preset(
    length=8,
    recalled=3,
    size=8,
    latent=8,
    hidden=64,
    heads=2,
    network=64,
    encoder=(),
    decoder=(),
    batch=32,
    epochs=30,
    batches=100,
    learning_rate=3e-3,
    clip_norm=10.0,
)
DIGITS = Preset(
    length=10,
    recalled=3,
    size=14,
    latent=16,
    hidden=128,
    heads=3,
    network=64,
    encoder=(200, 64),
    decoder=(200, 200),
    batch=32,
    epochs=20,
    batches=200,
    learning_rate=3e-3,
    clip_norm=1.0,
    final_rate=0.05,
)
PRESETS = {
    "default": {"digits": DIGITS, "vectors": VECTORS},
    "smoke": {
        name: preset._replace(
            length=4, recalled=2, hidden=12, batch=4, epochs=2, batches=3, evaluated=8
        )
        for name, preset in (("digits", DIGITS), ("vectors", VECTORS))
    },
    "paper": {
        "digits": DIGITS._replace(
            length=20,
            recalled=5,
            size=28,
            latent=32,
            hidden=500,
            heads=5,
            network=128,
            encoder=(512, 256, 64),
            decoder=(256, 512),
            batch=10,
            epochs=200,
            batches=1000,
            learning_rate=1e-3,
        ),
        "vectors": VECTORS._replace(length=20, recalled=5, heads=5, batch=10, epochs=100),
    },
}
# What a cue needs: to be looked up by itself, and what followed it to be stored beside it.
CUED = {
    "ntm": {"tied_query": True},
    "lru": {"write_previous": True, "tied_query": True},
    "dnc": {"write_previous": True, "tied_query": True},
}


class Data(NamedTuple):
    """Where training sequences come from, the test sequences, and a bank to learn labels from."""

    train: FreshLoader
    validation: Recall
    test: Recall
    bank: Pictures | Vectors


def main() -> None:
    """Train with every memory, evaluate on fresh sequences, compare, plot."""
    args, preset = arguments()
    prepare(args)
    began = time.perf_counter()
    data = load(args, preset)
    config = {"task": args.task, "frames": args.frames, **preset._asdict()}
    make = partial(build, args=args, preset=preset, data=data)
    trained = train_memories(make, data.train, data.validation, preset, args, config)
    energies = {
        name: free_energy(*pair, data.test.batch, seed=0) for name, pair in trained.pairs.items()
    }
    metrics = evaluate(trained.pairs, energies, data, args)
    draw(lambda: draw_figures(trained, energies, data, args, preset))
    finish_memories(trained, metrics, began, args, preset)


def arguments() -> tuple[argparse.Namespace, Preset]:
    """The command line, and the preset with what it overrides."""
    options = parser(__doc__.splitlines()[0] if __doc__ else "", "runs/gtmm_recall")
    options.add_argument("--task", choices=TASKS, default="perfect", help="what is shown again")
    options.add_argument(
        "--frames", choices=("digits", "vectors"), default="digits", help="what a frame is"
    )
    args = choose(options, ["icm", "introspection", "lstm"], ["introspection", "lstm"])
    if args.frames == "vectors" and args.task in ("parity", "one_shot"):
        options.error(f"--task {args.task} is about pictures; leave out --frames vectors")
    preset = PRESETS[args.preset][args.frames]
    if args.task == "dynamic" and args.frames == "digits":  # each label is the place of a frame
        preset = preset._replace(length=max(preset.length, 10))
    return args, overridden(options, preset, args.set)


def load(args: argparse.Namespace, preset: Preset) -> Data:
    """Training sequences without end, and fixed ones of other pictures for the test."""
    if args.frames == "vectors":
        classes = preset.length if args.task == "dynamic" else 0
        banks: list[Any] = [Vectors(preset.size, classes)] * 2
    elif args.task == "one_shot":
        banks = [load_omniglot(s, args.data_dir, size=preset.size) for s in ("train", "test")]
    else:
        banks = [load_digits(s, args.data_dir, size=preset.size) for s in ("train", "test")]
    device = pick_device(args.device)
    if args.frames == "digits":
        banks = [bank.to(device) for bank in banks]
    make = partial(recall, args.task, length=preset.length, recalled=preset.recalled)
    return Data(
        FreshLoader(partial(make, banks[0], preset.batch), preset.batches, seed=args.seed),
        make(banks[0], preset.evaluated, seed=1_000_000),
        make(banks[1], preset.evaluated, seed=2_000_000),
        banks[0],
    )


def build(name: str, args: argparse.Namespace, preset: Preset, data: Data) -> Pair:
    """The model with that memory, and its filter."""
    frame = tuple(data.test.frames.shape[2:])
    values, pictures = torch.Size(frame).numel(), args.frames == "digits"
    cued = CUED.get(name, {}) if args.task == "cued" else {}
    return make_pair(
        name,
        frame,
        encoder=nn.Sequential(FlatFrames(), *mlp(values, preset.encoder)),
        features=(values, *preset.encoder)[-1],
        network=preset.network,
        options={**cued, **preset.options.get(name, {})},
        slots=preset.length + preset.recalled,
        heads=preset.heads,
        hidden=preset.hidden,
        device=pick_device(args.device),
        residual=preset.residual,
        latent=preset.latent if pictures else values,
        decoder=preset.decoder,
        emission="bernoulli" if pictures else FixedNormal(NOISE),
    )


def evaluate(
    pairs: dict[str, Pair],
    energies: dict[str, FreeEnergy],
    data: Data,
    args: argparse.Namespace,
) -> dict[str, float]:
    """What the pairs make of the test sequences; the comparison and the figures."""
    test = data.test
    metrics, _ = report(energies, None, args)
    classifier = None
    if args.frames == "digits" and args.task != "one_shot":
        classifier = classify(data.bank, 20 if args.preset == "smoke" else 1500)
    print(f"\n{'':16s}{'rho':>18s}{'KL before':>11s}{'recalled':>10s}{'last':>8s}", end="")
    print(f"{'retrieval':>11s}{'accuracy':>10s}")
    for name, pair in pairs.items():
        found = measured(energies[name], test)
        means = reconstructions(pair.guide, test.batch, seed=0)["prediction"].cpu()
        found |= predictions(means, test, classifier)
        print(
            f"{name:16s}{found['rho']:9.3f} +- {found['rho_se']:<5.2g}{found['kl_before']:11.2f}"
            f"{found['kl_recall']:10.2f}{found['last_frame_kl']:8.2f}"
            f"{found.get('retrieval', torch.nan):11.3f}"
            f"{found.get('recall_accuracy', torch.nan):10.3f}"
        )
        metrics |= {f"{name}_{key}": value for key, value in found.items()}
    return metrics


def predictions(
    means: Tensor, sequences: Recall, classifier: nn.Module | None
) -> dict[str, float]:
    """How often the frame that is predicted at a recalled step is nearest to the right one.

    Args:
        means: Frames predicted from those before them, `(sequences, time, *frame)`.
        sequences: The sequences.
        classifier: From pictures to logits of their labels.
    """
    found, steps = {}, sequences.recalled.cpu()
    frames, source = sequences.frames.cpu(), sequences.source.cpu()
    if (source[steps] >= 0).all():
        shown = frames[:, : int(source.max()) + 1].flatten(2)
        nearest = torch.cdist(means.flatten(2), shown).argmin(-1)
        found["retrieval"] = float((nearest == source)[steps].double().mean())
    if classifier is not None:
        with torch.no_grad():
            labels = classifier(means[steps]).argmax(-1)
        found["recall_accuracy"] = float((labels == sequences.labels.cpu()[steps]).double().mean())
    return found


def draw_figures(
    trained: Trained,
    energies: dict[str, FreeEnergy],
    data: Data,
    args: argparse.Namespace,
    preset: Preset,
) -> None:
    """Divergence per step, training curves, read weights, predicted and generated frames."""
    from pyro_seq.evaluation.plots import plot_strips

    test = data.test
    divergences = {name: energy.divergence.mean(0) for name, energy in energies.items()}
    draw_measures(divergences, trained.measures, test.recalled[0], args)
    first, rows = Batch(test.frames[:1]), {"frames": test.frames[0].cpu()}
    draw_reads(trained.pairs, first, args)
    if args.frames != "digits":
        return
    for name, pair in trained.pairs.items():
        means = reconstructions(pair.guide, first)["prediction"][0]
        rows[f"{name}: predicted"] = means.cpu()
        rows[f"{name}: generated"] = continuation(pair.guide, first, preset.length)[0]
    save_figure(plot_strips(rows), args.out / "frames.png")


if __name__ == "__main__":
    main()
