"""What the examples of models with memory share: choice, training, ratios, figures."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from _interface import pick_device, save_figure
from _training import Pair, Records, Schedule, finish, train
from torch import Tensor, nn

from pyro_seq.data import Batch, FreshLoader, Recall
from pyro_seq.evaluation import FreeEnergy, free_energy, posterior_draws
from pyro_seq.evaluation.memories import recall_ratio, replay_memory
from pyro_seq.models import GTMM
from pyro_seq.nn.mlp import mlp
from pyro_seq.plugins import available, get

__all__ = [
    "FixedNormal",
    "Measure",
    "Trained",
    "choose",
    "classify",
    "draw_measures",
    "draw_reads",
    "finish_memories",
    "make_pair",
    "measured",
    "train_memories",
]

ACTIVE = 0.1


class FixedNormal(nn.Module):
    """Normal values around the decoder's output, whose spread is known.

    Args:
        scale: The standard deviation of each value.
        dims: Dimensions of a frame.
    """

    def __init__(self, scale: float, dims: int = 1) -> None:
        super().__init__()
        self.scale, self.dims = scale, dims

    def forward(self, loc: Tensor) -> Any:  # noqa: ANN401
        """Their distribution, of the shape of a frame."""
        return dist.Normal(loc, self.scale, validate_args=False).to_event(self.dims)


class Measure(Records):
    """Ratios of divergences on the validation sequences after each epoch, and in its record."""

    def __init__(self, sequences: Recall) -> None:
        super().__init__()
        self.sequences = sequences

    def on_epoch_end(self, context: Any) -> None:  # noqa: ANN401
        """Once per epoch, in one pass."""
        pair = context.loss.model, context.loss.guide
        ratio = measured(free_energy(*pair, self.sequences.batch, seed=0), self.sequences)
        self.records.append({"loss": context.record["validation_loss"], **ratio})
        context.record |= {f"validation_{key}": value for key, value in ratio.items()}


class Trained(NamedTuple):
    """Pairs by the name of their memory, the ratios of each epoch, and seconds of training."""

    pairs: dict[str, Pair]
    measures: dict[str, Measure]
    seconds: dict[str, float]


def choose(
    options: argparse.ArgumentParser, usual: Sequence[str], smoke: Sequence[str]
) -> argparse.Namespace:
    """Read a command line that also names memories.

    Args:
        options: All other options.
        usual: Memories by default.
        smoke: Those of the smoke preset.
    """
    known = available("memories")
    options.add_argument(
        "--memory",
        nargs="+",
        default=argparse.SUPPRESS,
        metavar="NAME",
        help=f"some of {', '.join(known)} (default: {' '.join(usual)})",
    )
    args = options.parse_args()
    if "memory" not in args:
        args.memory = list(smoke if args.preset == "smoke" else usual)
    args.memory = list(dict.fromkeys(args.memory))
    unknown = [name for name in args.memory if name not in known]
    if unknown:
        options.error(f"--memory: expected some of {known}; got {unknown}")
    return args


def make_pair(
    name: str,
    frame: Sequence[int],
    *,
    encoder: nn.Module,
    features: int,
    network: int,
    options: Mapping[str, Any],
    slots: int,
    heads: int,
    hidden: int,
    device: torch.device,
    residual: bool = False,
    **model: Any,  # noqa: ANN401
) -> Pair:
    """The model with a memory, and its filter.

    Args:
        name: Of the memory. The LSTM, which has no rows, has half as many units again.
        frame: Shape of a frame.
        encoder: From frames to features, which the filter and the LSTM read.
        features: How many.
        network: Units of the hidden layer of prior and filter.
        options: Further arguments of the memory.
        slots: Of the memory.
        heads: Of the memory.
        hidden: Units of its controller.
        device: Where the pair is to be.
        residual: Whether the filter adds to the location of the prior.
        **model: Further arguments of the model.
    """
    if name == "lstm":
        own: dict[str, Any] = {"frame_features": features, "hidden": 3 * hidden // 2}
    else:
        own = {"slots": slots, "heads": heads, "hidden": hidden}
    made = GTMM(
        frame,
        memory=name,
        memory_options={**own, **options},
        prior=[network],
        encoder=encoder if name == "lstm" else None,
        **model,
    )
    guide = get("guides", "filter")(
        made, hidden=[network], encoder=encoder, features=features, residual=residual
    )
    pair = Pair(made, guide)
    for part in pair:
        part.to(device)
    return pair


def train_memories(
    build: Callable[[str], Pair],
    loader: FreshLoader,
    validation: Recall,
    preset: Any,  # noqa: ANN401 - a named tuple
    args: argparse.Namespace,
    config: Mapping[str, Any],
) -> Trained:
    """Train with each memory of the command line, from the same seed and on the same batches."""
    schedule = Schedule(
        preset.epochs,
        preset.learning_rate,
        preset.final_rate,
        clip_norm=preset.clip_norm,
        kl_epochs=preset.kl_epochs,
    )
    trained = Trained({}, {}, {})
    batches = [validation.batch.to(pick_device(args.device))]
    for name in args.memory:
        torch.manual_seed(args.seed)
        pair, measure = build(name), Measure(validation)
        trained.pairs[name], trained.measures[name] = pair, measure
        trained.seconds[name] = train(
            name, pair, loader, batches, schedule, args, config, [measure]
        )
    return trained


def measured(energy: FreeEnergy, sequences: Recall) -> dict[str, float]:
    """The ratio of divergences and its parts."""
    ratio = recall_ratio(energy, recalled=sequences.recalled, before=sequences.before)
    return ratio._asdict()


def finish_memories(
    trained: Trained,
    metrics: dict[str, float],
    began: float,
    args: argparse.Namespace,
    preset: Any,  # noqa: ANN401 - a named tuple
) -> None:
    """Write `metrics.json`: also the last epoch, parameters and seconds of each memory.

    Also how many latents are active, and, where rho fell to 1/2 on the validation sequences, after
    how many updates it first did. Keys begin with the name of the memory; where there is one, they
    are there without it too.
    """
    for name, pair in trained.pairs.items():
        records = trained.measures[name].records
        metrics |= {f"{name}_last_validation_{key}": v for key, v in records[-1].items()}
        halved = [epoch for epoch, record in enumerate(records, 1) if record["rho"] <= 0.5]
        if halved:
            metrics[f"{name}_updates_to_half"] = halved[0] * preset.batches
        metrics[f"{name}_active_latents"] = active_latents(pair, trained.measures[name].sequences)
        metrics[f"{name}_parameters"] = sum(p.numel() for p in nn.ModuleList(pair).parameters())
    if len(trained.pairs) == 1:
        metrics |= {key.removeprefix(f"{args.memory[0]}_"): v for key, v in metrics.items()}
    finish(metrics, trained.seconds, began, args, preset)


def active_latents(pair: Pair, sequences: Recall) -> int:
    """Coordinates of z of whose variance new frames account for a tenth or more."""
    share = posterior_draws(*pair, sequences.batch, samples=2, seed=0).explained("z")
    new = sequences.before.float().mean(0) > 0.5  # at steps that are new in most sequences
    return int((share[new.cpu()].mean(0) > ACTIVE).sum())


def classify(bank: Any, steps: int) -> nn.Module:  # noqa: ANN401
    """A classifier of the pictures of a bank, on the CPU."""
    torch.manual_seed(0)
    size = bank.frames[0].numel()
    network = nn.Sequential(nn.Flatten(), *mlp(size, [300, 100], nn.ReLU), nn.Linear(100, 10))
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    for _ in range(steps):
        rows = torch.randint(len(bank.labels), (128,))
        loss = nn.functional.cross_entropy(network(bank.take(rows).cpu()), bank.labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.eval()


def draw_measures(
    divergences: Mapping[str, Tensor],
    measures: Mapping[str, Measure],
    recalled: Tensor | None,
    args: argparse.Namespace,
) -> None:
    """Divergence per step and training curves.

    Args:
        divergences: Means over sequences by label, `(time,)`.
        measures: By the name of the memory.
        recalled: Steps to shade, bool `(time,)`.
        args: The command line.
    """
    from pyro_seq.evaluation.memories import plot_divergence
    from pyro_seq.evaluation.plots import new_panels

    save_figure(plot_divergence(divergences, recalled), args.out / "divergence.png")
    labels = {"loss": "validation loss (nats per step)", "rho": "rho", "last_frame_kl": "last KL"}
    panels = new_panels(3.2, 2.6, len(labels), share_y=False)
    for panel, (key, label) in zip(panels, labels.items(), strict=True):
        for name, measure in measures.items():
            values = [record[key] for record in measure.records]
            panel.plot(range(1, len(values) + 1), values, "o-", ms=3, label=name)
        panel.set(xlabel="epoch", title=label)
        panel.locator_params(axis="x", integer=True)
    panels[0].legend(fontsize="small")
    save_figure(panels, args.out / "training.png")


def draw_reads(pairs: Mapping[str, Pair], batch: Batch, args: argparse.Namespace) -> None:
    """Read weights of each memory that has any, slot against time, for the first sequence."""
    from pyro_seq.evaluation.memories import plot_read_weights

    for name, pair in pairs.items():
        weights = replay_memory(pair.guide, batch).weights[0]
        if weights.numel():
            save_figure(plot_read_weights(weights), args.out / f"read_weights_{name}.png")
