r"""What a memory does for a model: divergences where it can predict, and where it was read.

.. math:: \rho = \frac{\text{mean of } KL_t \text{ over the steps that can be recalled}}
    {\text{mean of } KL_t \text{ over steps that cannot}}

References:
    Gemici, Hung, Santoro, Wayne, Mohamed, Rezende, Amos, Lillicrap (2017), Generative temporal
    models with memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Size, Tensor
from torch.nn.functional import pad

from pyro_seq.data import Batch
from pyro_seq.evaluation.context import as_batch, evaluating, place
from pyro_seq.evaluation.free_energy import FreeEnergy
from pyro_seq.evaluation.plots import new_axes, new_panels
from pyro_seq.guides.filtering import FilteringGuide
from pyro_seq.memory import Context
from pyro_seq.models.gtmm import GTMM
from pyro_seq.models.step_handlers import predicted
from pyro_seq.nn.arguments import check_positive

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "RecallRatio",
    "continuation",
    "nearer_share",
    "plot_divergence",
    "plot_read_weights",
    "recall_ratio",
    "replay_memory",
]


class RecallRatio(NamedTuple):
    r"""How much of the divergence a memory saves, means over sequences and steps, nats per step.

    Attributes:
        rho: The ratio of the two means; 0 for a perfect memory, 1 for none.
        kl_before: Mean divergence of the steps that nothing before them predicts.
        kl_recall: Mean divergence of the steps to be recalled.
        last_frame_kl: Mean divergence of the last step, of the sequences with a frame there.
        rho_se: Standard error of rho over sequences.
    """

    rho: float
    kl_before: float
    kl_recall: float
    last_frame_kl: float
    rho_se: float


def recall_ratio(energy: FreeEnergy, *, recalled: Tensor, before: Tensor) -> RecallRatio:
    r"""The ratio :math:`\rho` of divergences.

    Args:
        energy: Of sequences all of one length, from :func:`free_energy`.
        recalled: Steps that can be recalled, bool `(sequences, time)`.
        before: Steps to compare with, bool `(sequences, time)`.

    Returns:
        The ratio and what it is made of.

    Raises:
        ValueError: If a shape does not fit, there is no step of one kind, or one of them has no
            frame: its divergence is zero, and would count as recall.

    Example:
        >>> kl = torch.tensor([[4.0, 4.0, 1.0], [2.0, 4.0, 2.0]], dtype=torch.float64)
        >>> energy = FreeEnergy(torch.zeros(2, 3), kl, torch.ones(2, 3, dtype=torch.bool), 1)
        >>> last = torch.tensor([[False, False, True]]).expand(2, 3)
        >>> round(recall_ratio(energy, recalled=last, before=~last).rho, 4)
        0.4286
    """
    shape = energy.divergence.shape
    for name, steps in (("recalled", recalled), ("before", before)):
        if steps.shape != shape or steps.dtype != torch.bool:
            raise ValueError(
                f"{name} must be bool (sequences, time) = {tuple(shape)}; got {steps.dtype} "
                f"{tuple(steps.shape)}"
            )
        if not steps.any():
            raise ValueError(f"{name} must hold one step or more; it is False everywhere")
        missing = int((steps.cpu() & ~energy.mask).sum())
        if missing:
            raise ValueError(f"{name} must be steps with a frame; of {missing} it is missing")
    kl, recalled, before = energy.divergence, recalled.cpu(), before.cpu()
    late, early = ((kl * steps).sum(1) for steps in (recalled, before))
    counts = recalled.sum(1), before.sum(1)
    kl_recall, kl_before = late.sum() / counts[0].sum(), early.sum() / counts[1].sum()
    rho = kl_recall / kl_before
    # of a ratio of means, to first order
    each = late / counts[0].double().mean() - rho * early / counts[1].double().mean()
    error = each.std() / kl_before / len(kl) ** 0.5 if len(kl) > 1 else torch.tensor(torch.nan)
    last = kl[energy.mask[:, -1], -1].mean()
    return RecallRatio(*(float(v) for v in (rho, kl_before, kl_recall, last, error)))


def replay_memory(
    guide: FilteringGuide,
    batch: Tensor | tuple[Tensor, Tensor | None, Tensor | None],
    *,
    seed: int | None = 0,
) -> Context:
    """What the memory of a trained pair made of sequences, along one draw of their latents.

    Args:
        guide: Guide of a :class:`~pyro_seq.models.GTMM`.
        batch: A :class:`~pyro_seq.data.Batch`, or x alone, `(sequences, time, *frame)`.
        seed: Seed of the draw; None goes on with torch's present state.

    Returns:
        The context of every step, its tensors `(sequences, time, ...)`, on the CPU. `weights`
        say where each head read.

    Raises:
        TypeError: If it is no guide, or its model has no memory.
        ValueError: If frames are missing and the memory reads frames.
    """
    if not isinstance(guide, FilteringGuide):
        raise TypeError(f"guide must be a filtering guide; got {type(guide).__name__}")
    model = guide.model
    if not isinstance(model, GTMM):
        raise TypeError(f"guide must be of a GTMM; its model is a {type(model).__name__}")
    with evaluating(guide, model, seed=seed):
        placed: Batch = place(model, as_batch(batch))
        if model.reads_frames and placed.mask is not None and not placed.mask.all():
            raise ValueError("mask must be True everywhere for a memory that reads frames")
        draws = guide(*placed)
        z = torch.stack([draws[f"z_{t + 1}"] for t in range(placed.x.shape[1])], 1)
        features = model.embed(placed.x, None)[0] if model.reads_frames else None
        context, _ = model.memory(
            _delayed(z), placed.controls, features=None if features is None else _delayed(features)
        )
    return Context(*(part.cpu() for part in context))


def continuation(
    guide: FilteringGuide,
    batch: Tensor | tuple[Tensor, Tensor | None, Tensor | None],
    shown: int,
    *,
    seed: int | None = 0,
) -> Tensor:
    """Sequences that are shown up to a step and generated from there on, one draw of each.

    Latents are drawn from q as long as frames are shown, and then from the prior. A generated
    frame is the mean of the emission at the very latent that the model goes on with, so that it
    shows what a memory holds of it; a model that reads frames is fed these means.

    Args:
        guide: Guide of a trained step model, one that needs no later frame.
        batch: A :class:`~pyro_seq.data.Batch`, or x alone, `(sequences, time, *frame)`. Frames
            after the first `shown` are not read; controls of all steps are.
        shown: Number of frames that are shown, 0 or more.
        seed: Seed of the draws; None goes on with torch's present state.

    Returns:
        `(sequences, time, *frame)` on the CPU, the first `shown` of them as they were given.

    Raises:
        TypeError: If it is no guide of a step model, or `shown` is no int.
        ValueError: If `shown` is not a number of steps of the sequences.
    """
    if not isinstance(guide, FilteringGuide):
        raise TypeError(f"guide must be a filtering guide; got {type(guide).__name__}")
    whole = as_batch(batch)
    count, time = whole.x.shape[:2]
    check_positive(0, shown=shown)
    if shown > time:
        raise ValueError(f"shown must be a number of steps from 0 to {time}; got {shown}")
    seen = (torch.arange(time, device=whole.x.device) < shown).expand(count, time)
    mask = seen if whole.mask is None else seen & whole.mask
    with evaluating(guide, guide.model, seed=seed):
        placed = place(guide.model, whole._replace(mask=mask))
        guide.model.check(*placed)
        shape, means = Size((count,)), []
        state = guide.initial(shape)
        for frame in guide.frames(*placed, state, shape, defer=False)[0]:
            step = guide.advance(state, frame, shape)
            means.append(predicted(step.likelihood[0].distribution))
            state = step.state
    made = torch.stack(means, 1).cpu()
    return torch.cat([whole.x[:, :shown].to(made), made[:, shown:]], 1)


def nearer_share(frames: Tensor, own: Tensor) -> float:
    """How often a frame is nearer to one of its own sequence than to those of the others.

    Args:
        frames: `(sequences, steps, *frame)`.
        own: What each is to be like, of the same shape.

    Returns:
        The share of all steps and all pairs of two sequences, ties not counted: 1/2 by chance.

    Raises:
        ValueError: If the shapes differ, there are fewer than two sequences or no step, or a
            value is NaN or infinite.

    Example:
        >>> own = torch.tensor([[[0.0]], [[1.0]], [[5.0]]])
        >>> nearer_share(torch.tensor([[[0.1]], [[0.2]], [[5.0]]]), own)
        0.8333333333333334
    """
    if frames.shape != own.shape or frames.ndim < 3 or len(frames) < 2 or not frames.shape[1]:
        raise ValueError(
            "frames and own must be (sequences, steps, *frame) of one shape, two sequences and a "
            f"step or more; got {tuple(frames.shape)} and {tuple(own.shape)}"
        )
    if not (frames.isfinite().all() and own.isfinite().all()):
        raise ValueError("frames and own must be finite; got NaN or infinity")
    made, others = (part.transpose(0, 1).flatten(2).double() for part in (frames, own))
    apart = torch.cdist(made, others)  # steps, sequences, sequences
    nearer = apart.diagonal(dim1=1, dim2=2).unsqueeze(2) < apart
    return float(nearer.double().sum() / (len(made) * len(frames) * (len(frames) - 1)))


def plot_divergence(
    divergences: Mapping[str, Tensor],
    recalled: Tensor | None = None,
    *,
    axes: Axes | None = None,
) -> Axes:
    """Draw the divergence of each step, the steps to be recalled shaded (the paper's metric iii).

    Args:
        divergences: By label the mean over sequences, `(time,)`, nats.
        recalled: Steps to shade, bool `(time,)`.
        axes: Where to draw; a new figure by default.

    Returns:
        The axes.

    Raises:
        ValueError: If a shape does not fit.
    """
    for label, values in divergences.items():
        if values.ndim != 1 or (recalled is not None and recalled.shape != values.shape):
            raise ValueError(
                f"divergences must be (time,) each, as the steps recalled; {label!r} is "
                f"{tuple(values.shape)}, recalled {None if recalled is None else recalled.shape}"
            )
    axes = axes or new_axes(6, 3.2)
    axes.locator_params(axis="x", integer=True)
    for number, (label, values) in enumerate(divergences.items()):
        steps = np.arange(1, len(values) + 1)
        axes.plot(steps, values.cpu().numpy(), "o-", ms=3, lw=1.3, color=f"C{number}", label=label)
    if recalled is not None:
        for step in torch.nonzero(recalled).flatten().tolist():
            axes.axvspan(step + 0.5, step + 1.5, color="0.9", lw=0, zorder=0)
    axes.set(xlabel="step", ylabel="KL(q || p) (nats)", ylim=(0, None))
    axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1.01, 1.0))
    return axes


def plot_read_weights(weights: Tensor, axes: Axes | None = None) -> Axes:
    """Show where a memory was read, slot against time, one panel per head; 1 is black, 0 white.

    Args:
        weights: Of one sequence, `(time, heads, slots)`.
        axes: Where to draw a memory of one head; by default a new figure, of a panel per head.

    Returns:
        The axes of the first head.

    Raises:
        ValueError: If the weights are of another shape, there is no head, or more than one for
            the axes.
    """
    if weights.ndim != 3 or not weights.shape[1]:
        raise ValueError(
            f"weights must be (time, heads, slots), one head or more; got {tuple(weights.shape)}"
        )
    heads = weights.shape[1]
    if axes is not None and heads > 1:
        raise ValueError(f"axes are for weights of one head, weights[:, :1]; got {heads} heads")
    panels = [axes] if axes is not None else new_panels(2.2, 2.2, heads)
    for number, panel in enumerate(panels):
        picture = weights[:, number].T.cpu().numpy()
        extent = (0.5, weights.shape[0] + 0.5, -0.5, weights.shape[2] - 0.5)
        panel.imshow(
            picture, origin="lower", cmap="Greys", vmin=0, vmax=1, extent=extent, aspect="auto",
            interpolation="nearest",
        )  # fmt: skip
        panel.set(xlabel="step", title=f"head {number + 1}")
    panels[0].set_ylabel("slot")
    return panels[0]


def _delayed(parts: Tensor) -> Tensor:
    """What came one step before, zeros first, `(batch, time, size)`."""
    return pad(parts[:, :-1], (0, 0, 1, 0))
