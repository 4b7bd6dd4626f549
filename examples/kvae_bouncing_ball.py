"""Train Kalman variational auto-encoders on a bouncing ball, impute missing frames, compare ELBOs.

    python examples/kvae_bouncing_ball.py --preset default --out runs/box
    torchrun --nproc-per-node=2 examples/kvae_bouncing_ball.py --preset paper

Pairs that differ in their dynamics are trained alike. Printed, and written to OUT:

- the share of wrong pixels in hidden frames, for gaps and for frames hidden at random, by
  smoothing, filtering, copying the last frame and drawing no ball (`metrics.json`, figures);
- the ArviZ comparison of the pairs' ELBOs on test sequences (`comparison.csv`, figure).

Presets: `smoke` ends in seconds; `default` is for a laptop's CPU; `paper` has the architecture and
the schedule of Fraccaro et al. (2017) and wants a GPU, though it runs on a CPU too.
"""

from __future__ import annotations

import argparse
import time
import warnings
from typing import Any, NamedTuple

import pyro
import torch
from _interface import overridden, parser, pick_device, save_figure, write_json
from torch.optim.lr_scheduler import LRScheduler

from pyro_seq.data import SequenceDataset, batches
from pyro_seq.evaluation import (
    blank_frame,
    compare,
    elbo,
    format_table,
    imputation_table,
)
from pyro_seq.guides import KalmanGuide
from pyro_seq.models import KVAE
from pyro_seq.plugins import available, get
from pyro_seq.training import (
    Callback,
    Context,
    CSVLogger,
    Freeze,
    SequenceLoss,
    WarnOnPlateau,
    fit,
    process_group,
    warmup_cosine,
    warmup_exponential,
)
from pyro_seq.training.distributed import Process

TRAIN_SEED, TEST_SEED, VALIDATION_SEED = 1234, 5678, 9101


class Preset(NamedTuple):
    """One setting of the experiment; variances and codes are in the units of a."""

    sequences: int
    test_sequences: int
    time: int
    epochs: int
    networks: str
    start: str
    modes: int
    dynamics: dict[str, Any]
    weights: dict[str, dict[str, Any]]
    learning_rate: float
    dynamics_rate: float
    schedule: str
    frozen_epochs: int
    reconstruction_weight: float = 0.3
    clip_norm: float = 150.0
    batch: int = 32
    obs: int = 2
    state: int = 4


DEFAULT = Preset(
    sequences=5000,
    test_sequences=1000,
    time=20,
    epochs=16,
    networks="mlp",
    start="moments",
    modes=8,
    dynamics={"start": "local_linear_trend", "learn_noise": "diagonal", "offsets": True},
    weights={"lstm": {"hidden": 128}, "mlp": {"window": 4, "hidden": 64}, "static": {}},
    learning_rate=0.003,
    dynamics_rate=0.012,
    schedule="cosine",
    frozen_epochs=0,
)
PRESETS = {
    "default": DEFAULT,
    "smoke": DEFAULT._replace(sequences=64, test_sequences=32, time=12, epochs=2),
    "paper": DEFAULT._replace(
        epochs=80,
        networks="conv",
        start="random",
        modes=3,
        dynamics={"start": "identity"},
        weights={"lstm": {"hidden": 50}, "mlp": {"window": 1, "hidden": 50}, "static": {}},
        learning_rate=0.007,
        dynamics_rate=0.007,
        schedule="exponential",
        frozen_epochs=10,
    ),
}


class Pair(NamedTuple):
    """A model and its guide."""

    model: KVAE
    guide: KalmanGuide


class Data(NamedTuple):
    """Sequences on the device, and the frame without a ball."""

    train: SequenceDataset
    validation: SequenceDataset
    test: SequenceDataset
    blank: torch.Tensor


def main() -> None:
    """Train, evaluate, compare, plot; under torchrun, in several processes."""
    args, preset = arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    with process_group(pick_device(args.device)) as process:
        data = load(args, preset, process.device)
        pyro.enable_validation(False)  # the data were checked; this saves a tenth of the time
        pairs, trained = {}, 0.0
        for name in args.pairs:
            pairs[name], seconds = train_pair(name, args, preset, data, process)
            trained += seconds
        if process.rank > 0:
            return
        metrics = evaluate(pairs, data, args)
    metrics["training_seconds"] = trained
    metrics["seconds"] = max(time.perf_counter() - began, trained)
    write_json(args.out / "metrics.json", metrics, {**vars(args), **preset._asdict()})
    print(f"\nResults and figures are in {args.out}, after {metrics['seconds']:.0f} s")


def arguments() -> tuple[argparse.Namespace, Preset]:
    """The command line, and the preset with what it overrides."""
    options = parser(__doc__.splitlines()[0] if __doc__ else "", "runs/kvae_bouncing_ball")
    options.add_argument(
        "--environment", choices=("box", "gravity", "polygon", "pong"), default="box"
    )
    options.add_argument(
        "--pairs",
        nargs="+",
        default=None,
        metavar="DYNAMICS",
        help="weight networks to train; the imputation table is of the first",
    )
    options.add_argument("--epochs", type=int, default=None, help="override those of the preset")
    options.add_argument(
        "--drop", type=float, default=0.0, help="probability that a training frame is hidden"
    )
    options.add_argument(
        "--test-seed", type=int, default=TEST_SEED, help="seed of the test sequences"
    )
    options.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    args = options.parse_args()
    preset = overridden(options, PRESETS[args.preset], args.set)
    if args.epochs is not None:
        preset = preset._replace(epochs=args.epochs)
    args.pairs = args.pairs or list(preset.weights)
    for name in set(args.pairs) - set(available("dynamics")):
        options.error(
            f"--pairs: expected some of {', '.join(available('dynamics'))}; got {name!r}"
        )
    return args, preset


def load(args: argparse.Namespace, preset: Preset, device: torch.device) -> Data:
    """Training, validation and test sequences of the environment."""
    simulate = get("datasets", args.environment)
    sizes = (preset.sequences, max(32, preset.test_sequences // 4), preset.test_sequences)
    train, validation, test = (
        SequenceDataset(
            torch.from_numpy(
                simulate(size, time=preset.time, seed=seed, data_dir=args.data_dir).frames
            )
        ).to(device)
        for size, seed in zip(sizes, (TRAIN_SEED, VALIDATION_SEED, args.test_seed), strict=True)
    )
    return Data(train, validation, test, blank_frame(first_of(train, 500)))


def first_of(dataset: SequenceDataset, count: int) -> torch.Tensor:
    """Frames of the first sequences, `(count, time, 1, 32, 32)`."""
    return dataset[list(range(min(count, len(dataset))))].x


def build(name: str, seed: int, preset: Preset, frames: torch.Tensor) -> Pair:
    """The pair of one weight network, started from some training frames `(count, 1, 32, 32)`."""
    torch.manual_seed(seed)
    model = KVAE(
        tuple(frames.shape[1:]),
        obs=preset.obs,
        state=preset.state,
        modes=preset.modes,
        weights=name,
        weights_options=preset.weights.get(name, {}),
        decoder=preset.networks,
        dynamics_options=preset.dynamics,
    )
    guide = KalmanGuide(model, preset.networks)
    if preset.start != "random":
        guide.start_from(frames, preset.start)
    return Pair(model, guide)


def train_pair(
    name: str, args: argparse.Namespace, preset: Preset, data: Data, process: Process
) -> tuple[Pair, float]:
    """Train one pair, or go on training it; the weights of the best validation epoch are kept."""
    pair = build(name, args.seed, preset, first_of(data.train, 500).flatten(0, 1).cpu())
    loss = SequenceLoss(*pair, site_weights={"x": preset.reconstruction_weight})
    loss.to(process.device)
    loader = batches(
        data.train,
        preset.batch,
        seed=args.seed,
        drop_last=True,
        drop_probability=args.drop,
        rank=process.rank,
        world_size=process.world_size,
    )
    optimizer, schedule = optimisation(pair, loss, preset, len(loader))
    callbacks: list[Callback] = [plateau(data)]
    if preset.frozen_epochs:
        callbacks.append(Freeze([pair.model.dynamics.network], preset.frozen_epochs))
    say(
        process,
        f"\nTraining the pair with {name} dynamics: {preset.epochs} epochs of {len(loader)} steps",
    )
    folder = args.out / "checkpoint" / name
    result = fit(
        loss,
        loader,
        batches(data.validation, 250, shuffle=False),
        epochs=preset.epochs,
        optimizer=optimizer,
        schedule=schedule,
        clip_norm=preset.clip_norm,
        seed=args.seed,
        precision=args.precision,
        checkpoint_dir=folder,
        resume=args.resume and folder.exists(),
        checkpoint_every=200,
        config={"pair": name, **preset._asdict()},
        loggers=[CSVLogger(args.out / f"training_{name}.csv")],
        callbacks=callbacks,
    )
    if result.best_weights is not None:
        loss.load_state_dict(result.best_weights)
    best = result.best["epoch"]
    say(process, f"  {result.steps} steps in {result.seconds:.0f} s, best epoch {best:.0f}")
    return pair, result.seconds


def optimisation(
    pair: Pair, loss: SequenceLoss, preset: Preset, steps: int
) -> tuple[torch.optim.Optimizer, LRScheduler]:
    """Adam with a rate of its own for the dynamics, and the schedule for epochs of `steps`."""
    dynamics = list(pair.model.dynamics.parameters())
    others = [p for p in loss.parameters() if all(p is not q for q in dynamics)]
    groups = [
        {"params": others, "lr": preset.learning_rate},
        {"params": dynamics, "lr": preset.dynamics_rate},
    ]
    optimizer = torch.optim.Adam(groups)
    if preset.schedule == "exponential":
        return optimizer, warmup_exponential(optimizer, 20 * steps)
    total = preset.epochs * steps
    return optimizer, warmup_cosine(optimizer, total, warmup=min(50, total - 1))


def say(process: Process, text: str) -> None:
    """Print in the first process only."""
    if process.rank == 0:
        print(text, flush=True)


def plateau(data: Data) -> WarnOnPlateau:
    """Warn while the frames are drawn no better than without the ball."""
    frames = first_of(data.validation, 64)
    nothing = (frames != data.blank).float().mean().item()

    @torch.no_grad()
    def error(context: Context) -> float:
        guide: Any = context.loss.guide
        drawn = guide.model.decode(guide.encoder(frames)[0])
        return ((drawn > 0.5) != (frames > 0.5)).float().mean().item()

    return WarnOnPlateau(
        error,
        nothing,
        tolerance=0.05,
        patience=3,
        name="reconstruction_error",
        message='No ball is drawn: start the encoder from the data (start="moments").',
    )


def evaluate(pairs: dict[str, Pair], data: Data, args: argparse.Namespace) -> dict[str, float]:
    """The metrics of the first pair, the bounds of all, and the figures."""
    test, blank = data.test, data.blank
    batch = test[list(range(len(test)))]
    bounds = {name: elbo(*pair, batch, seed=0) for name, pair in pairs.items()}
    table = imputation_table(*pairs[args.pairs[0]], batch, seed=0, blank=blank)
    metrics = {**table, **bounds[args.pairs[0]].summary()}
    for name, bound in bounds.items():
        metrics |= {f"{name}_{key}": value for key, value in bound.summary().items()}
    print(
        f"\nShare of wrong pixels in hidden frames, {args.environment}, {args.pairs[0]} dynamics"
    )
    print(format_table(table))
    comparison = compare(bounds)
    comparison.to_csv(args.out / "comparison.csv")
    print(f"\nELBO in nats, summed over {len(test)} test sequences (ArviZ)")
    print(comparison.to_string(float_format=lambda value: f"{value:.2f}"))
    try:
        draw_figures(pairs, batch, table, comparison, args)
    except ImportError as error:
        warnings.warn(f"no figures: {error}", stacklevel=2)
    return metrics


def draw_figures(
    pairs: dict[str, Pair],
    batch: Any,  # noqa: ANN401
    table: dict[str, float],
    comparison: Any,  # noqa: ANN401
    args: argparse.Namespace,
) -> None:
    """The paper's Figures 3 and 4, imputed frames, and the comparison, as PNG files."""
    import matplotlib

    matplotlib.use("Agg")
    from pyro_seq.data import gap_mask
    from pyro_seq.evaluation import plot_compare
    from pyro_seq.evaluation.plots import (
        plot_imputation_curves,
        plot_imputed_frames,
        plot_trajectories,
        plot_weights,
    )

    guide = pairs[args.pairs[0]].guide
    x = batch.x[:64]
    mask = gap_mask(len(x), x.shape[1], min(7, x.shape[1] - 5)).to(x.device)
    save_figure(plot_imputed_frames(guide, x, mask, sequence=1), args.out / "imputed_frames.png")
    save_figure(plot_trajectories(guide, x, mask, sequence=1), args.out / "trajectory.png")
    for kind in ("gap", "p"):
        axes = plot_imputation_curves(table, kind, paper=args.environment == "box")
        save_figure(axes, args.out / f"imputation_{kind}.png")
    if len(pairs) > 1:
        save_figure(plot_compare(comparison), args.out / "comparison.png")
    for name, pair in pairs.items():
        if name != "static" and pair.model.dynamics.obs == 2:
            save_figure(plot_weights(pair.guide, x[:32]), args.out / f"weights_{name}.png")


if __name__ == "__main__":
    main()
