r"""What a memory makes of a map: the same cell generated again, and where reads fall on the map.

References:
    Gemici, Hung, Santoro, Wayne, Mohamed, Rezende, Amos, Lillicrap (2017), Generative temporal
    models with memory, Figure 15.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyro_seq.evaluation.plots import new_panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "Consistency",
    "consistency",
    "overlay",
    "plot_overlays",
    "plot_reads_on_map",
    "reads_by_cell",
    "visits",
]


class Consistency(NamedTuple):
    """How often a generated frame shows what its cell showed before, shares of steps.

    Attributes:
        recalled: Of the generated frames in cells that were shown, those with the cell's label.
        agreeing: Of the frames in cells that were generated before, those with the label that
            was generated first.
    """

    recalled: float
    agreeing: float


def visits(cells: Tensor) -> Tensor:
    """How many times the cell of each step was visited before.

    Args:
        cells: Number of the cell of each step, long `(*batch, time)`.

    Returns:
        Long `(*batch, time)`.

    Example:
        >>> visits(torch.tensor([3, 4, 3, 3, 4]))
        tensor([0, 0, 1, 2, 1])
    """
    same = cells.unsqueeze(-1) == cells.unsqueeze(-2)
    return same.tril(-1).sum(-1)


def consistency(labels: Tensor, truth: Tensor, source: Tensor, shown: int) -> Consistency:
    """Whether a walk that was generated after a context comes back to what was there.

    Args:
        labels: What a classifier sees in each frame, long `(sequences, time)`.
        truth: The label of the cell of each step on the true map, of that shape.
        source: The step of the first visit to the cell, -1 where it is the first, of that shape.
        shown: Number of frames that were not generated.

    Returns:
        The shares; NaN where there is no such step.

    Raises:
        ValueError: If the shapes differ.

    Example:
        >>> labels = torch.tensor([[7, 1, 7, 2, 2, 3]])
        >>> truth = torch.tensor([[7, 1, 7, 5, 5, 1]])
        >>> source = torch.tensor([[-1, -1, 0, -1, 3, 1]])
        >>> consistency(labels, truth, source, shown=2)
        Consistency(recalled=0.5, agreeing=1.0)
    """
    if not labels.shape == truth.shape == source.shape or labels.dim() != 2:
        raise ValueError(
            "labels, truth and source must be (sequences, time), all of one shape; got "
            f"{tuple(labels.shape)}, {tuple(truth.shape)} and {tuple(source.shape)}"
        )
    made = torch.arange(labels.shape[1], device=labels.device) >= shown
    of_shown, of_made = made & (source >= 0) & (source < shown), source >= shown
    first = labels.gather(1, source.clamp(min=0))
    recalled, agreeing = (labels == truth)[of_shown], (labels == first)[of_made]
    return Consistency(float(recalled.double().mean()), float(agreeing.double().mean()))


def reads_by_cell(weights: Tensor, cells: Tensor, count: int) -> Tensor:
    """How much was read of each cell, for a memory whose row n holds the latent of step n.

    Such are the introspection network in its usual order and the introspective content memory;
    row 0 holds the zeros from before the first step.

    Args:
        weights: Of one head, or summed over heads, `(*batch, time, slots)`, slots as many as
            steps or more.
        cells: Number of the cell of each step, long `(*batch, time)`.
        count: Number of cells.

    Returns:
        `(*batch, time, count)`; what is left to 1 was read of rows not yet written, or not at all.

    Raises:
        ValueError: If a shape does not fit.
    """
    time = cells.shape[-1]
    if weights.shape[:-1] != cells.shape or weights.shape[-1] < time:
        raise ValueError(
            "weights must be (*batch, time, slots), slots as many as steps or more, and cells "
            f"(*batch, time); got {tuple(weights.shape)} and {tuple(cells.shape)}"
        )
    rows = weights[..., 1:time]  # step 1 is in row 1
    place = cells[..., None, : time - 1].expand(rows.shape)
    return weights.new_zeros(*weights.shape[:-1], count).scatter_add(-1, place, rows)


def overlay(frames: Tensor, cells: Tensor, side: int) -> Tensor:
    """The walk drawn on the map, visit over visit (the paper's Figure 15).

    The frame of the first visit to a cell is drawn in red, that of the second over it in yellow,
    that of the third in white; later ones are not drawn. Where frames agree nothing of an earlier
    one is left to see.

    Args:
        frames: Of one walk, between 0 and 1, `(time, 1, height, width)`.
        cells: Number of the cell of each step, row by row, long `(time,)`.
        side: Number of cells along a side.

    Returns:
        `(3, side * height, side * width)`.

    Raises:
        ValueError: If a shape does not fit.
    """
    if frames.dim() != 4 or frames.shape[1] != 1 or cells.shape != frames.shape[:1]:
        raise ValueError(
            "frames must be (time, 1, height, width) and cells (time,); got "
            f"{tuple(frames.shape)} and {tuple(cells.shape)}"
        )
    height, width = frames.shape[2:]
    picture = frames.new_zeros(3, side, height, side, width)
    for frame, cell, visit in zip(frames, cells.tolist(), visits(cells).tolist(), strict=True):
        if visit < 3:
            drawn = picture[: visit + 1, cell // side, :, cell % side]
            drawn.copy_(drawn.maximum(frame[0]))
    return picture.reshape(3, side * height, side * width)


def plot_overlays(
    walks: Mapping[str, Tensor],
    cells: Tensor,
    side: int,
    times: Sequence[int] = (5, 10, 15, 20, 25),
) -> np.ndarray:
    """Show walks on the map as they go on, one row for each (the paper's Figure 15).

    Args:
        walks: By label the frames of one walk, `(time, 1, height, width)`.
        cells: Number of the cell of each step, the same for all, long `(time,)`.
        side: Number of cells along a side.
        times: After how many steps; a row above the walks shows the moves since the last.

    Returns:
        The axes, `(rows, times)`.
    """
    import matplotlib.pyplot as plt

    times = [time for time in times if time <= len(cells)]
    rows = {"moves": None, **walks}
    size = (1.25 * len(times) + 0.4, 1.3 * len(rows))
    panels = plt.figure(figsize=size, layout="constrained").subplots(
        len(rows), len(times), squeeze=False
    )
    for (label, frames), row in zip(rows.items(), panels, strict=True):
        row[0].set_ylabel(label, fontsize="small")
        for panel, since, time in zip(row, [1, *times], times, strict=False):
            panel.set(xticks=[], yticks=[])
            if frames is None:
                _draw_moves(panel, cells[since - 1 : time], side)
                panel.set_title(f"step {time}", fontsize="small")
            else:
                picture = overlay(frames[:time], cells[:time], side)
                panel.imshow(picture.clamp(0, 1).movedim(0, -1).cpu().numpy())
    return panels


def plot_reads_on_map(
    frames: Tensor, reads: Tensor, cells: Tensor, side: int, steps: Sequence[int]
) -> np.ndarray:
    """Show where on the map a memory was read before a cell was visited again.

    Args:
        frames: Of one walk, `(time, 1, height, width)`; each panel has the map as known by then.
        reads: From :func:`reads_by_cell`, `(time, cells)`.
        cells: Number of the cell of each step, long `(time,)`.
        side: Number of cells along a side.
        steps: Which steps to show, from 0; the cell of the step has a green edge, and the colour
            of a cell is how much was read of it.

    Returns:
        The axes.
    """
    from matplotlib.patches import Rectangle

    panels = new_panels(1.7, 1.8, len(steps))
    for panel, step in zip(panels, steps, strict=True):
        known = overlay(frames[:step], cells[:step], side).amax(0).cpu().numpy()
        extent = (-0.5, side - 0.5, side - 0.5, -0.5)
        panel.imshow(known, cmap="gray", vmin=0, vmax=1, extent=extent)
        shares = reads[step].view(side, side).cpu().numpy()
        panel.imshow(
            np.ones_like(shares),
            cmap="autumn",
            vmin=1,
            alpha=0.7 * shares.clip(0, 1),
            extent=extent,
        )
        row, column = divmod(int(cells[step]), side)
        corner = (column - 0.48, row - 0.48)
        panel.add_patch(Rectangle(corner, 0.96, 0.96, fill=False, edgecolor="tab:green", lw=2))
        panel.set(xticks=[], yticks=[], title=f"step {step + 1}")
    return panels


def _draw_moves(panel: Axes, cells: Tensor, side: int) -> None:
    """Arrows from cell to cell."""
    places = [divmod(cell, side) for cell in cells.tolist()]
    for (row, column), (below, beside) in zip(places, places[1:], strict=False):
        panel.annotate(
            "", (beside, below), (column, row), arrowprops={"arrowstyle": "->", "color": "C1"}
        )
    panel.set(xlim=(-0.5, side - 0.5), ylim=(side - 0.5, -0.5), facecolor="0.2", aspect="equal")
