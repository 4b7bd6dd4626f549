r"""Plots of step models and their filters: bands, inference iterations, piano rolls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pyro_seq.data import Batch
from pyro_seq.evaluation.context import as_batch, evaluating, place
from pyro_seq.evaluation.draws import Band
from pyro_seq.evaluation.plots import new_axes, plot_strips
from pyro_seq.guides.context import StepContext
from pyro_seq.guides.filtering import FilteringGuide
from pyro_seq.models.step_handlers import predicted
from pyro_seq.ops.trees import map_tensors

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "plot_filtered_states",
    "plot_inference",
    "plot_iterations",
    "plot_piano_rolls",
    "reconstructions",
]


def plot_filtered_states(
    bands: Mapping[str, Band],
    truth: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    sequence: int = 0,
    component: int = 0,
    name: str = "z",
    axes: Axes | None = None,
) -> Axes:
    """Draw filtered states over time: a mean and a band for each filter, and the truth.

    Args:
        bands: From :meth:`~pyro_seq.evaluation.Draws.band`, by the filter's name; mean and
            bounds `(sequences, time, size)`.
        truth: True states `(sequences, time, size)`.
        mask: bool `(sequences, time)`, True where a frame was observed. Other steps are shaded.
        sequence: Which one to draw.
        component: Which coordinate of the state.
        name: What the state is called, and its unit.
        axes: Where to draw; a new figure by default.

    Returns:
        The axes.

    Raises:
        ValueError: If a band has another number of dimensions.
    """
    axes = axes or new_axes(8, 3)
    for number, (label, band) in enumerate(bands.items()):
        if band.mean.dim() != 3:
            raise ValueError(
                f"bands[{label!r}] must have a mean (sequences, time, size); got shape "
                f"{tuple(band.mean.shape)}"
            )
        mean, lower, upper = (part[sequence, :, component].cpu().numpy() for part in band)
        steps = np.arange(1, len(mean) + 1)
        axes.plot(steps, mean, "-", color=f"C{number}", lw=1.3, label=label)
        axes.fill_between(steps, lower, upper, color=f"C{number}", alpha=0.2, lw=0)
    if truth is not None:
        values = truth[sequence, :, component].cpu().numpy()
        steps = np.arange(1, len(values) + 1)
        axes.plot(steps, values, "--", color="black", lw=1.2, label="truth")
    if mask is not None:
        for step in torch.nonzero(~mask[sequence]).flatten().tolist():
            axes.axvspan(step + 0.5, step + 1.5, color="0.9", zorder=0)
    axes.set(xlabel="step", ylabel=name)
    axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1.01, 1.0))
    return axes


def plot_iterations(
    curves: Mapping[str, Mapping[int, float]],
    levels: Mapping[str, float] | None = None,
    *,
    ylabel: str = "free energy (nats per step)",
    axes: Axes | None = None,
) -> Axes:
    """Draw free energy over the number of inference iterations (the AVF paper's Figure 4).

    Args:
        curves: By the filter's name the free energy for each number of iterations.
        levels: Values that know no iterations, such as other filters', drawn as lines.
        ylabel: What is drawn, and its unit.
        axes: Where to draw; a new figure by default.

    Returns:
        The axes.

    References:
        Marino, Cvitkovic, Yue (2018), A general method for amortizing variational filtering.
    """
    axes = axes or new_axes(5.5, 3.4)
    from matplotlib.ticker import MaxNLocator

    for number, (label, curve) in enumerate(curves.items()):
        counts = sorted(curve)
        axes.plot(counts, [curve[k] for k in counts], "o-", ms=4, color=f"C{number}", label=label)
    for number, (label, value) in enumerate((levels or {}).items(), len(curves)):
        axes.axhline(value, color=f"C{number}", ls="--", lw=1, label=label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="inference iterations", ylabel=ylabel)
    axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1.01, 1.0))
    return axes


def plot_piano_rolls(rolls: Mapping[str, Tensor], axes: Axes | None = None) -> Axes:
    """Draw notes, or their probabilities, over time; one roll above the other.

    Args:
        rolls: By label `(time, keys)` between 0 and 1, the first key the lowest, A0.
        axes: Where to draw; a new figure by default.

    Returns:
        The axes.

    Raises:
        ValueError: If a roll is of another shape.
    """
    for label, roll in rolls.items():
        if roll.dim() != 2:
            raise ValueError(
                f"rolls[{label!r}] must be (time, keys); got shape {tuple(roll.shape)}"
            )
    time, keys = (max(roll.shape[i] for roll in rolls.values()) for i in (0, 1))
    axes = axes or new_axes(min(0.09 * time + 2, 14), 1.7 * len(rolls) + 0.6)
    gap = keys + 6
    for number, roll in enumerate(reversed([*rolls.values()])):
        low = number * gap
        extent = (0.5, roll.shape[0] + 0.5, low - 0.5, low + roll.shape[1] - 0.5)
        picture = roll.detach().float().T.cpu().numpy()
        axes.imshow(
            picture, origin="lower", extent=extent, aspect="auto", cmap="Greys", vmin=0, vmax=1,
            interpolation="nearest",
        )  # fmt: skip
    middles = [number * gap + keys / 2 for number in reversed(range(len(rolls)))]
    axes.set_yticks(middles, list(rolls))
    for number in range(1, len(rolls)):
        axes.axhspan(number * gap - 6.5, number * gap - 0.5, color="0.85", lw=0)
    axes.set(xlabel="step", xlim=(0.5, time + 0.5), ylim=(-0.5, len(rolls) * gap - 6.5))
    return axes


def reconstructions(
    guide: FilteringGuide,
    batch: Tensor | tuple[Tensor, Tensor | None, Tensor | None],
    iterations: Sequence[int] | None = None,
    *,
    seed: int | None = 0,
) -> dict[str, Tensor]:
    """Mean frames before inference and after each number of its iterations, step by step.

    The guide goes through the sequence as it always does. At every step the frame is predicted
    from the prior, and reconstructed from what q is after the number of iterations asked for.

    Args:
        guide: Guide of a trained pair.
        batch: A :class:`~pyro_seq.data.Batch`, or x alone, `(sequences, time, *frame)`.
        iterations: Numbers of iterations, for a guide that has them; by default its own.
        seed: Seed of the draws; None goes on with torch's present state.

    Returns:
        Means of the frame's distribution, `(sequences, time, *frame)`: `"prediction"`, and for
        each number `"1 iteration"`, `"2 iterations"`; `"reconstruction"` for other guides.

    Raises:
        ValueError: If the guide has no iterations and some are asked for.
    """
    trained = getattr(guide, "iterations", None)
    if iterations is not None and trained is None:
        raise ValueError(f"iterations are for AVF and VariationalEM; got {type(guide).__name__}")
    with evaluating(guide, guide.model, seed=seed):
        placed = place(guide.model, as_batch(batch))
        try:
            return _means(guide, placed, iterations or ([trained] if trained else []))
        finally:
            if trained is not None:
                guide.iterations = trained


def plot_inference(
    guide: FilteringGuide,
    x: Tensor,
    mask: Tensor | None = None,
    controls: Tensor | None = None,
    *,
    iterations: Sequence[int] | None = None,
    sequence: int = 0,
    seed: int | None = 0,
    axes: Axes | None = None,
) -> Axes:
    """Show frames, predictions and reconstructions over inference iterations (Figure 3).

    Args:
        guide: Guide of a trained pair.
        x: Pictures, `(batch, time, channels, height, width)`.
        mask: bool `(batch, time)`, True where observed.
        controls: u, `(batch, time, controls)`.
        iterations: As in :func:`reconstructions`.
        sequence: Which one to show.
        seed: Seed of the draws.
        axes: Where to draw; a new figure by default.

    Returns:
        The axes.

    References:
        Marino, Cvitkovic, Yue (2018), A general method for amortizing variational filtering.
    """
    rows = slice(sequence, sequence + 1)
    one = map_tensors(lambda part: part[rows], Batch(x, mask, controls))
    means = reconstructions(guide, one, iterations, seed=seed)
    strips = {"frame": one.x[0], **{name: value[0] for name, value in means.items()}}
    return plot_strips(strips, None if one.mask is None else one.mask[0], axes)


def _means(guide: FilteringGuide, batch: Batch, iterations: Sequence[int]) -> dict[str, Tensor]:
    """Mean frames of every step, `(sequences, time, *frame)`, by what q was."""
    shape = torch.Size(batch.x.shape[:1])
    state = guide.initial(shape)
    frames, _ = guide.frames(*batch, state, shape, defer=False)
    found: dict[str, list[Tensor]] = {}
    usual = getattr(guide, "iterations", None)
    for frame in frames:
        context = StepContext(guide.model, state.model, frame, shape)
        chosen: dict[str, Any] = {"prediction": lambda site: site.prior}
        for count in iterations:
            guide.iterations = count
            name = f"{count} iteration{'s' if count > 1 else ''}"
            chosen[name] = guide.infer(context, state.guide).choose
        if usual is None:
            chosen["reconstruction"] = guide.infer(context, state.guide).choose
        else:
            guide.iterations = usual
        for name, choose in chosen.items():
            mean = predicted(context.evaluate(choose).emission)
            found.setdefault(name, []).append(mean)
        state = guide.advance(state, frame, shape).state
    return {name: torch.stack(means, 1) for name, means in found.items()}
