"""Plots of videos, trajectories of codes, mixture weights and imputation errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from pyro_seq.data import Batch
from pyro_seq.evaluation.context import evaluating, place
from pyro_seq.evaluation.impute import impute
from pyro_seq.ops.trees import map_tensors

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "PAPER_GAPS",
    "PAPER_RANDOM",
    "plot_imputation_curves",
    "plot_imputed_frames",
    "plot_strips",
    "plot_trajectories",
    "plot_weights",
]

PAPER_GAPS = {
    "smooth": dict(
        zip(
            (1, 3, 5, 7, 9, 11, 13, 15),
            (0.0061, 0.0078, 0.0099, 0.0121, 0.0148, 0.0174, 0.0200, 0.0226),
            strict=True,
        )
    ),
    "filter": dict(
        zip(
            (1, 3, 5, 7, 9, 11, 13, 15),
            (0.0085, 0.0115, 0.0146, 0.0175, 0.0199, 0.0222, 0.0238, 0.0257),
            strict=True,
        )
    ),
}
"""Errors by length of the gap, bouncing ball: Fraccaro et al. (2017), Figure 3b, read off it."""

PAPER_RANDOM = {
    "smooth": dict(
        zip(
            (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0),
            (0.0058, 0.0061, 0.0063, 0.0068, 0.0076, 0.0083, 0.0095, 0.0129, 0.0190, 0.0268),
            strict=True,
        )
    ),
    "filter": dict(
        zip(
            (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0),
            (0.0078, 0.0078, 0.0083, 0.0090, 0.0101, 0.0115, 0.0125, 0.0157, 0.0215, 0.0268),
            strict=True,
        )
    ),
}
"""Errors by probability that a frame is hidden: Figure 3a, read off it."""


def plot_strips(
    rows: Mapping[str, Tensor], mask: Tensor | None = None, axes: Axes | None = None
) -> Axes:
    """Show videos as rows of frames; frames that were hidden have a red edge.

    Args:
        rows: One video per label, `(time, 1 | 3, height, width)` or `(time, height, width)`.
            Values below 0 are drawn as 0, those above 1 as 1, and NaN grey.
        mask: bool `(time,)`, True where a frame was observed.
        axes: Where to draw; a new figure by default.

    Returns:
        The axes.

    Raises:
        ValueError: If a video is of another shape.
    """
    strips = {label: _strip(label, video) for label, video in rows.items()}
    first = next(iter(strips.values()))
    time, height, width = first.shape[0], first.shape[1] + 1, first.shape[2] + 1
    axes = axes or new_axes(0.55 * time + 1.2, 0.55 * len(strips) + 0.7)
    for number, video in enumerate(strips.values()):
        for t, frame in enumerate(video):
            left, top = t * width, number * height
            extent = (left, left + width - 1, top + height - 1, top)
            axes.imshow(frame, cmap="gray", vmin=0, vmax=1, extent=extent, interpolation="nearest")
            if mask is not None and not bool(mask[t]):
                axes.add_patch(_edge(left, top, width - 1, height - 1))
    axes.set(xlim=(-0.5, time * width), ylim=(len(strips) * height, -0.5), facecolor="0.6")
    axes.set_yticks([(n + 0.5) * height for n in range(len(strips))], list(strips))
    axes.set_xticks([(t + 0.5) * width for t in range(time)], [str(t + 1) for t in range(time)])
    axes.tick_params(length=0)
    axes.set_xlabel("step")
    return axes


def plot_imputed_frames(
    guide: nn.Module,
    x: Tensor,
    mask: Tensor,
    controls: Tensor | None = None,
    *,
    sequence: int = 0,
    axes: Axes | None = None,
) -> Axes:
    """Show the true, filtered and smoothed frames of one sequence (the paper's Figure 2).

    Args:
        guide: Guide of a trained pair; see :func:`~pyro_seq.evaluation.impute`.
        x: True frames, `(batch, time, channels, height, width)`.
        mask: bool `(batch, time)`, True where observed.
        controls: u, `(batch, time, control)`.
        sequence: Which one to show.
        axes: Where to draw; a new figure by default.

    Returns:
        The axes.
    """
    one = slice(sequence, sequence + 1)
    part = map_tensors(lambda part: part[one], Batch(x, mask, controls))
    rows = {"true": x[sequence]}
    for label, how in (("filtered", "filter"), ("smoothed", "smooth")):
        rows[label] = impute(guide, part.x, part.mask, part.controls, how)[0]
    return plot_strips(rows, mask[sequence], axes)


def plot_trajectories(
    guide: Any,  # noqa: ANN401 - any guide with `smooth` and `filter`
    x: Tensor,
    mask: Tensor | None = None,
    controls: Tensor | None = None,
    *,
    sequence: int = 0,
    dims: tuple[int, int] = (0, 1),
    axes: Axes | None = None,
) -> Axes:
    """Draw one sequence in the plane of codes: encoded, filtered and smoothed (Figure 3c).

    Args:
        guide: Guide of a trained pair.
        x: Frames, `(batch, time, *frame)`.
        mask: bool `(batch, time)`, True where observed. Hidden steps have open markers.
        controls: u, `(batch, time, control)`.
        sequence: Which one to draw.
        dims: Which two coordinates of the code.
        axes: Where to draw; a new figure by default.

    Returns:
        The axes.
    """
    axes = axes or new_axes(5, 5)
    one = slice(sequence, sequence + 1)
    part = map_tensors(lambda part: part[one], Batch(x, mask, controls))
    shown = np.ones(x.shape[1], bool) if mask is None else mask[sequence].cpu().numpy()
    with evaluating(guide):
        paths = {how: getattr(guide, how)(*place(guide, part)) for how in ("filter", "smooth")}
    lines = {"filtered": paths["filter"].a, "smoothed": paths["smooth"].a}
    for (label, path), color in zip(lines.items(), ("tab:orange", "tab:blue"), strict=True):
        points = path[0, :, dims].cpu().numpy()
        axes.plot(*points.T, "-", color=color, lw=1.2, label=label)
        axes.plot(*points[shown].T, "o", color=color, ms=4)
        axes.plot(*points[~shown].T, "o", color=color, ms=5, mfc="white")
    encoded = paths["smooth"].encoded[0, :, dims].cpu().numpy()
    axes.plot(*encoded.T, "x", color="black", ms=6, label="encoded")
    axes.set(xlabel=f"$a_{dims[0] + 1}$", ylabel=f"$a_{dims[1] + 1}$")
    axes.set_aspect("equal", adjustable="datalim")
    axes.legend()
    return axes


def plot_weights(
    guide: Any,  # noqa: ANN401
    x: Tensor,
    mask: Tensor | None = None,
    controls: Tensor | None = None,
    *,
    points: int = 100,
    axes: Sequence[Axes] | None = None,
) -> np.ndarray:
    r"""Show the weight of each mode over the plane of codes (Figure 4).

    Where the weight network looks at :math:`a_{t-1}` alone its weights are a function of the
    plane, and are drawn as heat maps. Where it remembers more, each weight is drawn as the colour
    of the smoothed codes :math:`a_{t-1}` of the sequences given.

    Args:
        guide: Guide of a trained pair with mixture dynamics and codes of two coordinates.
        x: Frames, `(batch, time, *frame)`; they give the range of the plane.
        mask: bool `(batch, time)`, True where observed.
        controls: u, `(batch, time, control)`.
        points: Resolution of the heat map along each axis.
        axes: One per mode; a new figure by default.

    Returns:
        The axes, one per mode.

    Raises:
        ValueError: If the codes have not two coordinates.
    """
    dynamics = guide.model.dynamics
    if dynamics.obs != 2:
        raise ValueError(f"weights over a plane need codes of 2 coordinates; got {dynamics.obs}")
    with evaluating(guide, guide.model):
        smoothed = guide.smooth(*place(guide, Batch(x, mask, controls)))
        low, high = smoothed.a.amin((0, 1)), smoothed.a.amax((0, 1))
        plane = _weights_over(dynamics.network, low, high, points)
    panels = new_panels(2.2, 2.2, dynamics.modes) if axes is None else list(axes)
    before, after = smoothed.a[:, :-1].flatten(0, 1).cpu(), smoothed.weights[:, 1:].flatten(0, 1)
    style: dict[str, Any] = {"vmin": 0.0, "vmax": 1.0, "cmap": "viridis"}
    for mode, panel in enumerate(panels):
        if plane is None:
            drawn = panel.scatter(*before.T, c=after[:, mode].cpu(), s=2, **style)
        else:
            extent = (float(low[0]), float(high[0]), float(low[1]), float(high[1]))
            picture = plane[..., mode].cpu().numpy()
            drawn = panel.imshow(picture, origin="lower", extent=extent, aspect="auto", **style)
        panel.set(title=rf"$\alpha^{{({mode + 1})}}$", xlabel="$a_1$", ylabel="$a_2$")
        panel.label_outer()
    panels[0].figure.colorbar(drawn, ax=list(panels), label="weight")
    return np.asarray(panels)


def plot_imputation_curves(
    table: Mapping[str, float],
    kind: str = "gap",
    *,
    paper: bool = False,
    axes: Axes | None = None,
) -> Axes:
    """Draw errors over the length of the gap, or over the probability of hiding (Figure 3).

    Args:
        table: From :func:`~pyro_seq.evaluation.imputation_table`.
        kind: `"gap"` or `"p"`.
        paper: Draw the paper's curves for the bouncing ball beside them.
        axes: Where to draw; a new figure by default.

    Returns:
        The axes.

    Raises:
        ValueError: For an unknown kind.
    """
    if kind not in ("gap", "p"):
        raise ValueError(f"kind must be 'gap' or 'p'; got {kind!r}")
    axes = axes or new_axes(6.6, 3.4)
    published = PAPER_GAPS if kind == "gap" else PAPER_RANDOM
    colors = {"smooth": "tab:blue", "filter": "tab:orange", "copy_last": "tab:green"}
    for method, color in colors.items():
        start = f"{method}_{kind}_"
        curve = {float(k.removeprefix(start)): v for k, v in table.items() if k.startswith(start)}
        label = method.replace("_", " ")
        axes.plot(list(curve), list(curve.values()), "o-", color=color, ms=4, label=label)
        if paper and method in published:
            line = published[method]
            label = f"{method}, Fraccaro et al."
            axes.plot(list(line), list(line.values()), "--", color=color, lw=1, label=label)
    if "blank" in table:
        axes.axhline(table["blank"], color="0.5", ls=":", label="blank frame")
    name = "length of the gap (frames)" if kind == "gap" else "probability that a frame is hidden"
    axes.set(xlabel=name, ylabel="wrong pixels (fraction)", ylim=(0, None))
    axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1.01, 1.0))
    return axes


def new_panels(width: float, height: float, count: int, share_y: bool = True) -> np.ndarray:
    """Axes of one size in a new figure, in rows of at most four, `(count,)`."""
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install 'pyro-seq[plots]'") from error
    columns, rows = min(count, 4), -(-count // 4)
    size = (width * columns, height * rows)
    grid = plt.figure(figsize=size, layout="constrained").subplots(
        rows, columns, squeeze=False, sharex=True, sharey=share_y
    )
    for unused in grid.flat[count:]:
        unused.remove()
    return grid.flatten()[:count]


def new_axes(width: float, height: float) -> Axes:
    return new_panels(width, height, 1)[0]


def _edge(left: float, top: float, width: float, height: float) -> Any:  # noqa: ANN401
    from matplotlib.patches import Rectangle

    return Rectangle((left, top), width, height, fill=False, edgecolor="tab:red", lw=1.5)


def _strip(label: str, video: Tensor) -> np.ndarray:
    """Frames as arrays `(time, height, width)` or `(time, height, width, 3)`."""
    if video.dim() == 4 and video.shape[1] in (1, 3):
        video = video[:, 0] if video.shape[1] == 1 else video.movedim(1, -1)
    elif video.dim() != 3:
        raise ValueError(
            f"rows[{label!r}] must be (time, 1 or 3, height, width) or (time, height, width); "
            f"got shape {tuple(video.shape)}"
        )
    frames = video.detach().cpu().numpy()
    return frames.clip(0, 1) if video.is_floating_point() else frames


def _weights_over(network: Any, low: Tensor, high: Tensor, points: int) -> Tensor | None:  # noqa: ANN401
    """Weights on a grid `(second, first, modes)`; None if they depend on more than one code."""
    grid = torch.stack(
        torch.meshgrid(
            *(torch.linspace(float(a), float(b), points) for a, b in zip(low, high, strict=True)),
            indexing="xy",
        ),
        -1,
    ).to(low)
    flat = grid.flatten(0, 1)
    weights, state = network.step(flat, network.initial_state(len(flat)))
    again, _ = network.step(flat, network.step(flat.flip(0), network.initial_state(len(flat)))[1])
    if not torch.allclose(weights, again):
        return None
    return weights.view(points, points, -1)
