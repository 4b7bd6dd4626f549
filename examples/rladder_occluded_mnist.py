"""Train recurrent ladders, and what is left of them in ablations, on digits that move behind bars.

    python examples/rladder_occluded_mnist.py --networks rladder no_d2e --out runs/occluded

A digit moves behind bars for five frames (`--set time=N`: for N). A network says at the last which
digit it is, and at each frame what the next one looks like:

- `rladder`: the recurrent ladder, both tasks;
- `static`: classifies what can be known at best, all of the digit that was seen at some step;
- `baseline`: an LSTM on top of a convolutional network; `hierarchical_rnn`: the ladder's encoder;
- `no_prediction`, `no_classification`: the ladder with one of the tasks;
- `no_d2e`: without the links from the decoder to the encoder of the next step.

`--dataset digits`: the digits of scikit-learn, 8 by 8 pixels, on frames of 16 by 16; nothing is
downloaded. `--dataset mnist`: Occluded Moving MNIST, 32 by 32.

With `--labels N` only N pictures have a label, and half of each batch is drawn of them; with
`--mean-teacher` the classes of all sequences are to agree with those that the running average of
the network, the teacher, gives them under other noise. Errors are then the teacher's.

Written to OUT: `metrics.json` with the share of wrong classes at the last frame
(`test_error_percent`), the squared error per pixel of all frames but the first, predicted from
those before (`prediction_error_e5`, in units of 1e-5) beside that of a copy of the last frame
(`copy_last_e5`), and figures: frames and predictions, errors over training and over time steps.
Standard errors (`..._se`) are over test sequences, those of one picture taken together. The keys
of several networks begin with their names.

Presets: `smoke` ends in seconds; `default` is for a laptop's CPU, with a small ladder; `paper`
has the networks of the paper (tables 5 to 7) with its first and last rate, and wants a GPU.
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from _interface import overridden, parser, pick_device, save_figure
from _training import Records, Schedule, draw, finish, learn, prepare
from pyro.nn import PyroModule
from torch import Tensor

from pyro_seq.data import Batch, FreshLoader, Pictures, load_digits, load_small_digits
from pyro_seq.data.occluded import occluded_digits
from pyro_seq.data.scenes import Scenes
from pyro_seq.engines import presets
from pyro_seq.engines.presets import ABLATIONS, Ablation
from pyro_seq.guides import NoLatents
from pyro_seq.models import auxiliary
from pyro_seq.nn.norms import estimate_statistics
from pyro_seq.training import Context, MeanTeacher, SequenceLoss

SHOWN = 2


class Preset(NamedTuple):
    """One setting of the experiment.

    Attributes:
        time: Frames of a sequence.
        paper_network: Whether the networks are those of tables 5 to 7, not the small ones.
        options: Of the networks.
        prediction: Weight of the squared error of predictions, the mean over frames and pixels;
            that of the cost of the class in nats is 1.
        batch: Sequences of a batch.
        batches: Batches of an epoch, all drawn anew.
        final_rate: The last rate as a fraction of the first, by a cosine.
        noise: Standard deviation of noise on every pixel, with a teacher.
        dropout: Share of units that are dropped before the classes, with a teacher.
        consistency: Weight of the squared distance to the teacher's classes when it has grown.
        ramp: Epochs over which it grows.
        held: Pictures for validation.
        validated: Sequences of the validation set.
        evaluated: Sequences of the test set.
        statistics: Batches for new statistics of batch normalisation before evaluation.
    """

    epochs: int
    batches: int
    batch: int = 16
    time: int = 5
    paper_network: bool = False
    options: dict[str, Any] = {"norm": "mixed"}
    prediction: float = 100.0
    learning_rate: float = 3e-3
    final_rate: float = 0.0
    clip_norm: float = 5.0
    noise: float = 0.15
    dropout: float = 0.5
    consistency: float = 10.0
    ramp: int = 5
    held: int = 197
    validated: int = 400
    evaluated: int = 2000
    statistics: int = 10


SMALL = Preset(epochs=18, batches=100)
LARGE = SMALL._replace(batches=500, held=10_000, validated=1000, evaluated=10_000)
PRESETS = {
    "default": {"digits": SMALL, "mnist": LARGE},
    "smoke": {
        name: preset._replace(
            epochs=2, batches=2, batch=8, validated=8, evaluated=16, statistics=1
        )
        for name, preset in (("digits", SMALL), ("mnist", LARGE))
    },
    "paper": {
        "digits": SMALL._replace(epochs=100),
        "mnist": LARGE._replace(
            paper_network=True,
            options={},
            epochs=100,
            batch=100,
            learning_rate=1e-3,
            final_rate=0.1,
            validated=10_000,
        ),
    },
}


class Data(NamedTuple):
    """Pictures to train on, those with a label, and fixed sequences of others."""

    bank: Pictures
    labelled: Pictures
    validation: Scenes
    test: Scenes


class Network(NamedTuple):
    """A ladder, or what is left of one."""

    name: str
    ladder: Any
    ablation: Ablation

    @property
    def static(self) -> bool:
        """Whether it is shown reconstructions."""
        return self.ablation.options.get("encoder") == "static"


class Found(NamedTuple):
    """What a network makes of sequences.

    Attributes:
        wrong: Whether the most probable class at each step is wrong, `(sequences, time)`; None
            where classes are not learned.
        errors: Mean squared error of each frame but the first, `(sequences, time - 1)`; None
            where no frame is predicted.
        frames: The predictions of the first sequences, `(some, time - 1, *frame)`, or None.
    """

    wrong: Tensor | None
    errors: Tensor | None
    frames: Tensor | None


class Tasks(PyroModule):
    """What a ladder is trained to do: the class at the last frame, and every next frame.

    Labels are the controls of a batch, and -1 where there is none. With a teacher a third task is
    to agree with it, for which both see noise.
    """

    def __init__(
        self, network: Network, preset: Preset, teacher: MeanTeacher | None = None
    ) -> None:
        super().__init__("tasks")
        self.ladder, self.teacher = network.ladder, teacher
        self.classification = network.ablation.classification
        self.weight = preset.prediction if network.ablation.prediction else 0.0
        self.noise = preset.noise if teacher is not None else 0.0

    def forward(self, x: Tensor, mask: None = None, controls: Any = None) -> None:  # noqa: ANN401
        """The class is observed where it is known; squared errors are a factor."""
        outputs, _ = self.ladder(self.noisy(x))
        labels = controls[:, -1, 0].long()
        with pyro.plate("sequences", len(x), dim=-1):
            if self.classification:
                known = labels >= 0
                share = known.float().mean().clamp(min=1 / len(x))
                with pyro.poutine.scale(scale=1 / share):  # the mean over those with a label
                    y = dist.Categorical(logits=outputs.logits[:, -1]).mask(known)
                    pyro.sample("y", y, obs=labels.clamp(min=0))
            if self.weight:
                errors = frame_errors(outputs.prediction[:, :-1], x[:, 1:])
                pyro.factor("next_frames", -self.weight * errors.mean(1))
            if self.teacher is not None:
                taught, _ = self.teacher(self.noisy(x))
                last = outputs.logits[:, -1], taught.logits[:, -1]
                auxiliary("consistency", self.teacher.cost(*last))

    def noisy(self, x: Tensor) -> Tensor:
        """Frames with noise, where there is a teacher."""
        return x + self.noise * torch.randn_like(x) if self.noise else x


class Measure(Records):
    """Errors on the validation sequences after each epoch."""

    def __init__(self, network: Network, data: Data, preset: Preset) -> None:
        super().__init__()
        self.network, self.data, self.preset = network, data, preset

    def on_epoch_end(self, context: Context) -> None:
        """Into the record of the epoch."""
        scenes = self.data.validation
        values = summary(renewed(self.network, self.data, self.preset, scenes), scenes)
        self.records.append({"update": float(context.step), **values})
        context.record |= {f"validation_{key}": value for key, value in values.items()}


def main() -> None:
    """Train each network, evaluate it on the test sequences, plot."""
    args, preset = arguments()
    prepare(args)
    began = time.perf_counter()
    data = load(args, preset)
    trained = {name: train(name, data, args, preset) for name in args.networks}
    found, metrics = {}, {}
    for name, one in trained.items():
        found[name] = renewed(one.teacher or one.network, data, preset)
        values = summary(found[name], data.test)
        if one.teacher is not None:
            own = summary(renewed(one.network, data, preset), data.test)
            values |= {f"student_{key}": value for key, value in own.items()}
        values["parameters"] = sum(p.numel() for p in one.network.ladder.parameters())
        values["updates"] = preset.epochs * preset.batches
        metrics |= {f"{name}_{key}": value for key, value in values.items()}
        if len(trained) == 1:
            metrics |= values
    copies = frame_errors(data.test.frames[:, :-1], data.test.frames[:, 1:])
    metrics |= measured("copy_last_e5", 1e5 * copies.mean(1), data.test)
    show(metrics, args)
    curves = {name: one.records for name, one in trained.items()}
    draw(lambda: draw_figures(found, curves, copies, data.test, args))
    seconds = {name: one.seconds for name, one in trained.items()}
    finish(metrics, seconds, began, args, preset)


def arguments() -> tuple[argparse.Namespace, Preset]:
    """The command line, and the preset with what it overrides."""
    options = parser(__doc__.splitlines()[0] if __doc__ else "", "runs/rladder_occluded_mnist")
    options.add_argument("--dataset", choices=("digits", "mnist"), default="digits")
    options.add_argument("--networks", nargs="+", choices=[*ABLATIONS], default=["rladder"])
    options.add_argument(
        "--labels", type=int, default=None, help="pictures with a label, drawn by the seed"
    )
    options.add_argument("--mean-teacher", action="store_true")
    args = options.parse_args()
    if args.mean_teacher and "no_classification" in args.networks:
        options.error("--mean-teacher teaches classes; leave out no_classification")
    return args, overridden(options, PRESETS[args.preset][args.dataset], args.set)


def load(args: argparse.Namespace, preset: Preset) -> Data:
    """Pictures to train on; validation and test sequences, the same for every seed."""
    if args.dataset == "mnist":
        banks = [load_digits(split, args.data_dir, size=14) for split in ("train", "test")]
    else:
        banks = [load_small_digits(split) for split in ("train", "test")]
    train, test = (bank.to(pick_device(args.device)) for bank in banks)
    held, bank = train.select(slice(-preset.held, None)), train.select(slice(-preset.held))
    labelled = bank
    if args.labels is not None:
        if not 1 <= args.labels <= len(bank.frames):
            raise SystemExit(f"--labels: expected 1 to {len(bank.frames)}; got {args.labels}")
        generator = torch.Generator().manual_seed(args.seed)
        labelled = bank.select(
            torch.randperm(len(bank.frames), generator=generator)[: args.labels]
        )
    return Data(
        bank,
        labelled,
        occluded_digits(held, preset.validated, time=preset.time, seed=1_000_000),
        occluded_digits(test, preset.evaluated, time=preset.time, seed=2_000_000),
    )


def training_batches(
    network: Network, data: Data, preset: Preset, batches: int, seed: int
) -> FreshLoader:
    """Batches drawn anew; with few labels half of each has them, the rest is drawn of all."""
    few = data.labelled is not data.bank

    def make(*, seed: torch.Generator) -> Batch:
        count = preset.batch // 2 if few else preset.batch
        draw_from = partial(occluded_digits, time=preset.time, seed=seed)
        drawn = [draw_from(data.labelled, count)]
        if few:
            drawn.append(draw_from(data.bank, preset.batch - count))
        labels = [drawn[0].labels, *(torch.full_like(more.labels, -1) for more in drawn[1:])]
        x = torch.cat([seen_by(network, scenes) for scenes in drawn])
        controls = torch.cat(labels).to(x)[:, None].expand(-1, x.shape[1], 1)
        return Batch(x, None, controls)

    return FreshLoader(make, batches, seed=seed)


def seen_by(network: Network, scenes: Scenes) -> Tensor:
    """The frames, or the reconstruction alone, `(sequences, time, *frame)`."""
    return scenes.info["reconstruction"][:, None] if network.static else scenes.frames


class Trained(NamedTuple):
    """A network that was trained, its teacher where it had one, and how it went."""

    network: Network
    teacher: Network | None
    records: list[dict[str, float]]
    seconds: float


def train(name: str, data: Data, args: argparse.Namespace, preset: Preset) -> Trained:
    """Train a network, and have it measured after each epoch."""
    torch.manual_seed(args.seed)
    network = build(name, data, args, preset)
    teacher, taught, callbacks = None, None, []
    if args.mean_teacher:
        ramp = preset.ramp * preset.batches
        teacher = MeanTeacher(network.ladder, weight=preset.consistency, ramp=ramp)
        taught = network._replace(ladder=teacher.average.module)
        callbacks.append(teacher.follow(network.ladder))
    measure = Measure(taught or network, data, preset)
    loss = SequenceLoss(Tasks(network, preset, teacher), NoLatents(), per="sequence")
    loss.to(pick_device(args.device))
    optimizer = torch.optim.Adam(network.ladder.parameters(), preset.learning_rate)
    schedule = Schedule(
        preset.epochs, preset.learning_rate, preset.final_rate, clip_norm=preset.clip_norm
    )
    keys = ("dataset", "labels", "mean_teacher")
    seconds = learn(
        name,
        loss,
        optimizer,
        training_batches(network, data, preset, preset.batches, args.seed),
        None,
        schedule,
        args,
        {**{key: getattr(args, key) for key in keys}, **preset._asdict()},
        [*callbacks, measure],
    )
    return Trained(network, taught, measure.records, seconds)


def build(name: str, data: Data, args: argparse.Namespace, preset: Preset) -> Network:
    """The network of that name."""
    options: dict[str, Any] = {**preset.options, **ABLATIONS[name].options}
    options["dropout"] = preset.dropout if args.mean_teacher else 0.0
    if preset.paper_network:
        ladder = presets.occluded_mnist(**options)
    else:
        ladder = presets.occluded_digits(size=data.test.frames.shape[-1], **options)
    return Network(name, ladder.to(pick_device(args.device)), ABLATIONS[name])


def renewed(network: Network, data: Data, preset: Preset, scenes: Scenes | None = None) -> Found:
    """Errors on the test sequences, or on others, with new statistics of batch normalisation."""
    with estimate_statistics(network.ladder):
        for batch in training_batches(network, data, preset, preset.statistics, 3_000_000):
            network.ladder(batch.x)
    return judge(network, data.test if scenes is None else scenes)


@torch.no_grad()
def judge(network: Network, scenes: Scenes) -> Found:
    """Errors of a network in evaluation mode."""
    network.ladder.eval()
    wrong: list[Tensor] = []
    errors: list[Tensor] = []
    first = None
    for x, labels in zip(
        seen_by(network, scenes).split(250), scenes.labels[:, :1].split(250), strict=True
    ):
        outputs, _ = network.ladder(x)
        if network.ablation.classification:
            wrong.append(outputs.logits.argmax(-1) != labels.to(x.device))
        if network.ablation.prediction:
            predicted = outputs.prediction[:, :-1]
            errors.append(frame_errors(predicted, x[:, 1:]))
            first = predicted[:SHOWN].cpu() if first is None else first
    return Found(
        torch.cat(wrong).double().cpu() if wrong else None,
        torch.cat(errors).double().cpu() if errors else None,
        first,
    )


def frame_errors(predicted: Tensor, frames: Tensor) -> Tensor:
    """Mean squared error of each frame, `(sequences, time)`."""
    return (predicted - frames).square().flatten(2).mean(-1)


def summary(found: Found, scenes: Scenes) -> dict[str, float]:
    """The numbers of `metrics.json`."""
    values = {}
    if found.wrong is not None:
        values |= measured("test_error_percent", 100 * found.wrong[:, -1], scenes)
    if found.errors is not None:
        values |= measured("prediction_error_e5", 1e5 * found.errors.mean(1), scenes)
    return values


def measured(name: str, values: Tensor, scenes: Scenes) -> dict[str, float]:
    """Mean over sequences, and its standard error, where those of a picture go together."""
    values, rows = values.double().cpu(), scenes.info["rows"].cpu()
    apart = torch.zeros(int(rows.max()) + 1, dtype=torch.float64)
    apart.index_add_(0, rows, values - values.mean())
    error = apart.square().sum().sqrt() / len(values)
    return {name: float(values.mean()), f"{name}_se": float(error)}


def show(metrics: dict[str, float], args: argparse.Namespace) -> None:
    """Print the numbers of all networks."""
    print(f"\n{'':18s}{'wrong class %':>20s}{'prediction error e-5':>26s}")
    for name in args.networks:
        cells = []
        for key, width in (("test_error_percent", 12), ("prediction_error_e5", 18)):
            value, error = (metrics.get(f"{name}_{key}{end}") for end in ("", "_se"))
            cell = "" if value is None else f"{value:{width}.1f} +- {error:<4.1f}"
            cells.append(f"{cell:>{width + 8}s}")
        print(f"{name:18s}{''.join(cells)}")
    print(f"{'copy of the last':38s}{metrics['copy_last_e5']:18.1f}")


def draw_figures(
    found: dict[str, Found],
    curves: dict[str, list[dict[str, float]]],
    copies: Tensor,
    test: Scenes,
    args: argparse.Namespace,
) -> None:
    """Frames and predictions; errors over training, and over time steps."""
    from pyro_seq.evaluation.plots import new_panels, plot_strips

    for number in range(min(SHOWN, len(test.frames))):
        frames = test.frames[number].cpu()
        rows = {"frames": frames}
        for name, one in found.items():
            if one.frames is not None:
                hidden = torch.full_like(frames[:1], torch.nan)
                rows[f"{name}: predicted"] = torch.cat([hidden, one.frames[number]])
        last = torch.full_like(frames, torch.nan)
        last[-1] = test.info["reconstruction"][number].cpu()
        rows["all that was seen"] = last
        save_figure(plot_strips(rows), args.out / f"frames_{number}.png")
    titles = {"test_error_percent": "wrong class (%)", "prediction_error_e5": "prediction (1e-5)"}
    looks = {name: {"label": name, "color": f"C{n}"} for n, name in enumerate(found)}
    panels = new_panels(3.4, 2.8, 2, share_y=False)
    for panel, (key, title) in zip(panels, titles.items(), strict=True):
        for name, records in curves.items():
            points = [(record["update"], record[key]) for record in records if key in record]
            panel.plot(*zip(*points, strict=True), **looks[name]) if points else None
        panel.set(xlabel="update", title=f"validation: {title}")
        if panel.lines:
            panel.legend(fontsize="small")
    save_figure(panels, args.out / "training.png")
    panels, count = new_panels(3.4, 2.8, 2, share_y=False), test.frames.shape[1]
    for name, one in found.items():
        if one.wrong is not None:
            panels[0].plot(*over_steps(100 * one.wrong, count), marker="o", **looks[name])
        if one.errors is not None:
            panels[1].plot(*over_steps(1e5 * one.errors, count), marker="o", **looks[name])
    panels[1].plot(*over_steps(1e5 * copies.cpu(), count), "k:", label="copy of the last")
    for panel, title in zip(panels, titles.values(), strict=True):
        panel.set(xlabel="frame", title=f"test: {title}")
        if panel.lines:
            panel.legend(fontsize="small")
    save_figure(panels, args.out / "steps.png")


def over_steps(values: Tensor, frames: int) -> tuple[list[int], list[float]]:
    """Numbers of the last frames, and means over sequences."""
    return [*range(frames - values.shape[1] + 1, frames + 1)], values.mean(0).tolist()


if __name__ == "__main__":
    main()
