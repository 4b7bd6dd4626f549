"""What the example of grouping needs beside training: scenes, scores, figures."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from _interface import save_figure
from _training import Records
from torch import Tensor

from pyro_seq.data import Scenes
from pyro_seq.evaluation import GroupScores, score_baselines, score_groups
from pyro_seq.evaluation.bound import mean_of

__all__ = [
    "Groups",
    "Watch",
    "baselines",
    "draw_curves",
    "draw_groups",
    "measured",
    "spread_over",
]

COLOURS = torch.tensor(
    [
        [0.12, 0.47, 0.71],
        [1.0, 0.5, 0.05],
        [0.17, 0.63, 0.17],
        [0.84, 0.15, 0.16],
        [0.58, 0.4, 0.74],
    ]
)


class Groups(NamedTuple):
    """How test scenes are divided, at each iteration or at each frame that was foretold.

    Attributes:
        masks: Share of each group in each pixel, `(scenes, steps, groups, 1, height, width)`.
        means: Mean of each group, `(scenes, steps, groups, 1, height, width)`.
        prediction: Mean of the frame, `(scenes, steps, 1, height, width)`.
        cost: Nats per pixel, `(scenes, steps)`.
        classes: The class of each scene that is found, `(scenes,)`, or None.
        posterior: Share of each group given the frame itself, where a model has it, or None.
    """

    masks: Tensor
    means: Tensor
    prediction: Tensor
    cost: Tensor
    classes: Tensor | None = None
    posterior: Tensor | None = None


class Watch(Records):
    """Scores on validation scenes after each epoch, and in its record."""

    def __init__(self, find: Callable[[Scenes], Groups], scenes: Scenes) -> None:
        super().__init__()
        self.find, self.scenes = find, scenes

    def on_epoch_end(self, context: Any) -> None:  # noqa: ANN401
        """Once per epoch; the network is left as it was."""
        training = context.loss.training
        scores = scored(self.find(self.scenes), self.scenes)
        context.loss.train(training)
        record = {"ami": mean_of_known(scores.ami[:, -1])[0]}
        self.records.append({"loss": context.record["loss"], **record})
        context.record |= {f"validation_{key}": value for key, value in record.items()}


def whose(scenes: Scenes, steps: int) -> Tensor:
    """The owner of each pixel at each iteration, or of each of the last frames."""
    segments = scenes.segments.cpu()
    if segments.shape[1] == 1:
        return segments.expand(-1, steps, -1, -1)
    return segments[:, segments.shape[1] - steps :]


def scored(groups: Groups, scenes: Scenes) -> GroupScores:
    """Scores of the masks, `(scenes, steps)`."""
    return score_groups(whose(scenes, groups.masks.shape[1]), groups.masks)


def measured(groups: Groups, scenes: Scenes) -> dict[str, float]:
    """Scores by iteration, or by the number of the frame, with their standard errors."""
    found: dict[str, float] = {}
    scores, steps = scored(groups, scenes), groups.masks.shape[1]
    time = scenes.segments.shape[1]
    first = 1 if time == 1 else time - steps + 1
    known = {**scores._asdict(), "cost": groups.cost}
    for step in range(steps):
        for name, values in known.items():
            found |= _estimate(f"{name}_{first + step}", values[:, step])
    for when, which in unseen(scenes, steps).items():
        for name, values in known.items():
            found |= _estimate(f"{name}_{when}", values[:, which].nanmean(1))
    for name, values in scores._asdict().items():
        found |= _estimate(f"{name}_final", values[:, -1])
        if time > 1:
            late = values[:, steps - time // 2 :]
            found |= _estimate(f"{name}_late", late.nanmean(1))
    if groups.posterior is not None:
        given = score_groups(whose(scenes, steps), groups.posterior)
        found |= _estimate("responsibilities_ami_final", given.ami[:, -1])
    if groups.classes is not None:
        wrong = (groups.classes != scenes.labels[:, 0].cpu()).double()
        found |= _estimate("test_error_percent", 100 * wrong)
    return found


def unseen(scenes: Scenes, steps: int) -> dict[str, Tensor]:
    """Which of the last frames are hidden, the same of all scenes, and which come after them."""
    if scenes.batch.mask is None:
        return {}
    hidden = ~scenes.batch.mask[0].cpu()[-steps:]
    return {"hidden": hidden, "after": (hidden.cumsum(0) > 0) & ~hidden}


def baselines(scenes: Scenes) -> dict[str, float]:
    """Scores of groupings without learning, over the same frames."""
    time = scenes.segments.shape[1]
    frames = scenes.segments.cpu()[:, -max(time // 2, 1) :]
    found: dict[str, float] = {}
    for name, scores in score_baselines(frames).items():
        for key, values in scores._asdict().items():
            found |= _estimate(f"baseline_{name}_{key}", values.nanmean(1))
    return found


def mean_of_known(values: Tensor) -> tuple[float, float]:
    """Mean over the scenes that have a score, and its standard error."""
    return tuple(mean_of(values[~values.isnan()]))


def _estimate(name: str, values: Tensor) -> dict[str, float]:
    return dict(zip((name, f"{name}_se"), mean_of_known(values), strict=True))


def draw_curves(
    metrics: Mapping[str, float], watches: Mapping[str, Watch], args: argparse.Namespace
) -> None:
    """Scores over iterations, or frames, beside the baselines; and over training."""
    from pyro_seq.evaluation.plots import new_panels
    from pyro_seq.evaluation.step_plots import plot_iterations

    curves = {}
    for name in watches:
        start = f"{name}_ami_"
        keys = [k.removeprefix(start) for k in metrics if k.startswith(start)]
        curves[name] = {int(k): metrics[start + k] for k in keys if k.isdigit()}
    levels = {
        k.removeprefix("baseline_").removesuffix("_ami").replace("_", " "): v
        for k, v in metrics.items()
        if k.startswith("baseline_") and k.endswith("_ami")
    }
    axes = plot_iterations(curves, levels, ylabel="adjusted mutual information")
    axes.set(xlabel="frame" if args.moving else "iteration")
    shade_hidden(axes, next(iter(watches.values())).scenes)
    save_figure(axes, args.out / "ami.png")
    panels = new_panels(3.6, 2.8, 2, share_y=False)
    labels = {"loss": "training loss (nats per frame)", "ami": "validation AMI, last"}
    for panel, (key, label) in zip(panels, labels.items(), strict=True):
        for name, watch in watches.items():
            values = [record[key] for record in watch.records]
            panel.plot(range(1, len(values) + 1), values, label=name)
        panel.set(xlabel="epoch", title=label)
        panel.locator_params(axis="x", integer=True)
    panels[0].legend(fontsize="small")
    save_figure(panels, args.out / "training.png")


def shade_hidden(axes: Any, scenes: Scenes) -> None:  # noqa: ANN401
    """Grey where frames are hidden, over the numbers of the frames."""
    hidden = unseen(scenes, scenes.frames.shape[1] - 1).get("hidden", torch.zeros(1))
    for place, frame in enumerate(hidden.nonzero().flatten().tolist()):
        label = None if place else "hidden"
        axes.axvspan(frame + 1.5, frame + 2.5, color="0.9", lw=0, zorder=0, label=label)
    axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1.01, 1.0))


def draw_groups(
    name: str,
    groups: Groups,
    scenes: Scenes,
    args: argparse.Namespace,
    more: Mapping[str, Tensor],
) -> None:
    """Frames, owners, masks in colours, and the reconstruction of each group.

    Still scenes are drawn side by side, a column for each iteration; of moving ones the first.
    """
    from pyro_seq.evaluation.plots import plot_strips

    count = 1 if args.moving else min(4, len(groups.masks))
    flat = lambda part: part[:count].flatten(0, 1).cpu()  # noqa: E731
    steps = groups.masks.shape[1]
    frames = scenes.frames[:, -steps:].expand(-1, steps, -1, -1, -1)
    rows = {"frame": flat(frames)}
    if scenes.batch.mask is not None:
        shown = scenes.batch.mask[:, -steps:, None, None, None]
        rows["seen"] = flat(torch.where(shown, frames, 0.5))
    rows |= {
        "objects": painted(flat(whose(scenes, steps))),
        "masks": mixed(flat(groups.masks)),
        "sum of groups": flat(groups.prediction),
    }
    for k in range(groups.means.shape[2]):
        rows[f"group {k + 1}"] = flat(groups.means[:, :, k])
    axes = plot_strips({**rows, **more})
    axes.set(xlabel="frame" if args.moving else "iteration of each scene")
    first = scenes.frames.shape[1] - steps + 1
    numbers = [first + n for n in range(steps)] if args.moving else [*range(1, steps + 1)] * count
    axes.set_xticklabels([str(n) for n in numbers])
    save_figure(axes, args.out / f"groups_{name}.png")


def mixed(masks: Tensor) -> Tensor:
    """Shares as colours, `(frames, 3, height, width)`, of masks `(frames, groups, 1, ...)`."""
    colours = COLOURS[torch.arange(masks.shape[1]) % len(COLOURS)]
    return torch.einsum("nkhw,kc->nchw", masks[:, :, 0], colours)


def painted(segments: Tensor) -> Tensor:
    """Owners as colours, `(frames, 3, height, width)`; background white, overlaps grey."""
    palette = torch.cat([torch.tensor([[0.6] * 3, [1.0] * 3]), COLOURS])
    return palette[(segments + 1) % len(palette)].movedim(-1, 1)


def spread_over(parts: Sequence[Groups], dim: int = 0) -> list[Tensor | None]:
    """The fields of several parts side by side, over scenes or over steps, on the CPU."""
    fields = zip(*parts, strict=True)
    return [None if field[0] is None else torch.cat(field, dim).cpu() for field in fields]
