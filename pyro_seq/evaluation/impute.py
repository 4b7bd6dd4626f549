"""Imputation of missing frames, by smoothing and by filtering, and what it must beat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pyro_seq.data import Batch, gap_mask, random_mask
from pyro_seq.evaluation.context import as_batch, blocks, decode, evaluating, place
from pyro_seq.evaluation.draws import posterior_draws
from pyro_seq.evaluation.metrics import pixel_error
from pyro_seq.guides.filtering import FilteringGuide
from pyro_seq.models.step_handlers import FRAME
from pyro_seq.nn.arguments import check_choice
from pyro_seq.ops.trees import where

__all__ = ["blank_frame", "copy_last", "format_table", "imputation_table", "impute"]

HOW = ("smooth", "filter")
CHUNK = 256


def impute(
    guide: nn.Module,
    x: Tensor,
    mask: Tensor,
    controls: Tensor | None = None,
    how: str | None = None,
    chunk: int = CHUNK,
    *,
    samples: int = 20,
    seed: int | None = None,
) -> Tensor:
    r"""Mean frames given the observed ones.

    For guides with the methods `smooth` and `filter`, which return mean codes `a`, and a `model`
    with `decode`, as :class:`~pyro_seq.guides.KalmanGuide` has them, these are
    :math:`\hat x_t = E[x_t \mid a_t = C_t E[z_t]]`; no random number is drawn.

    The guide of a step model draws latents, path by path, not reweighted, and
    :math:`\hat x_t = E_q\, E[x_t \mid z_t, s_{t-1}]` is the mean over the draws. A guide that
    filters does so with `how="filter"`, a smoother with `how="smooth"`.

    Args:
        guide: Guide of a trained pair.
        x: Frames, `(batch, time, *frame)`; what lies under False is not read.
        mask: bool `(batch, time)`, True where observed.
        controls: u, `(batch, time, control)`, known at all steps.
        how: `"smooth"` (from all observed frames) or `"filter"` (from those up to each frame); by
            default to smooth where the guide can.
        chunk: Sequences, times draws for a step model, that are in memory at once.
        samples: Draws of each sequence, for step models.
        seed: Seed of the draws; None goes on with torch's present state.

    Returns:
        `(batch, time, *frame)`, probabilities for binary frames, of the observed frames too.

    Raises:
        ValueError: For an unknown `how`.
        TypeError: If the guide cannot do it.

    Example:
        >>> from pyro_seq.guides import NeuralFilter
        >>> from pyro_seq.models import DMM
        >>> guide = NeuralFilter(DMM(frame=3, latent=2), hidden=8)
        >>> mask = torch.tensor([[True, False, True, True]])
        >>> impute(guide, torch.ones(1, 4, 3), mask, how="filter", samples=5).shape
        torch.Size([1, 4, 3])
    """
    if how is None:
        how = "filter" if isinstance(guide, FilteringGuide) and guide.online else "smooth"
    check_choice("how", how, HOW)
    if isinstance(guide, FilteringGuide):
        _check_direction(guide, how)
        batch = Batch(x, mask, controls)
        draws = posterior_draws(guide.model, guide, batch, samples=samples, seed=seed, chunk=chunk)
        return draws.frames[FRAME].mean(0).to(x.device)
    model = _model_of(guide, how)
    with evaluating(model, guide):
        parts = blocks(Batch(x, mask, controls), chunk)
        codes = torch.cat([_codes(guide, part, how) for part in parts])
        return decode(model, codes.flatten(0, 1)).to(x.device).view(x.shape)


def copy_last(x: Tensor, mask: Tensor) -> Tensor:
    """Put the last observed frame before it in the place of each missing one.

    Where there is none before, the first observed frame of the sequence stands; where there is
    none at all, zeros.

    Args:
        x: Frames, `(batch, time, *frame)`.
        mask: bool `(batch, time)`, True where observed.

    Returns:
        `(batch, time, *frame)`.
    """
    steps = torch.arange(x.shape[1], device=x.device)
    last = torch.where(mask, steps, -1).cummax(1).values
    first = mask.int().argmax(1, keepdim=True)
    source = torch.where(last < 0, first, last)
    copied = x[torch.arange(x.shape[0], device=x.device).unsqueeze(1), source]
    return where(mask.any(1), copied, torch.zeros_like(copied))


def blank_frame(x: Tensor, mask: Tensor | None = None) -> Tensor:
    """The median of each pixel over all observed frames: what stands still, without what moves.

    Args:
        x: Frames of the training set, `(sequences, time, *frame)`.
        mask: bool `(sequences, time)`, True where observed.

    Returns:
        `(*frame)`. Of binary frames it is the majority, 0 where both values are as frequent.
    """
    frames = x.flatten(0, 1) if mask is None else x[mask]
    if bool(((frames == 0) | (frames == 1)).all()):
        return (frames.sum(0, dtype=torch.float64) > len(frames) / 2).to(x.dtype)
    return frames.median(0).values


@torch.no_grad()
def imputation_table(
    model: nn.Module,
    guide: nn.Module,
    x: Tensor | tuple[Tensor, Tensor | None, Tensor | None],
    *,
    gaps: Sequence[int] = (1, 3, 5, 7, 9, 11, 13, 15),
    drop_probabilities: Sequence[float] = (0.1, 0.3, 0.5, 0.7, 0.9, 1.0),
    seed: int,
    observed_start: int = 4,
    blank: Tensor | None = None,
    error: str = "wrong_pixels",
    chunk: int = CHUNK,
) -> dict[str, float]:
    """Mean error of the pixels in hidden frames, for gaps and for frames hidden at random.

    The mask of each probability is drawn anew for every sequence from the seed alone. Frames that
    the batch itself lacks are hidden too, but not compared.

    Args:
        model: The model of the pair.
        guide: Its guide; see :func:`impute` for what it must have. If it has the method `encode`
            too, and `smooth` and `filter` take its result as `encoded`, as those of
            :class:`~pyro_seq.guides.KalmanGuide` do, then every frame is encoded only once.
        x: Test sequences: a :class:`~pyro_seq.data.Batch`, or frames `(sequences, time, *frame)`.
        gaps: Lengths of the gap after the first frames; those that do not fit are left out.
        drop_probabilities: Probabilities that a later frame is hidden.
        seed: Seed of the random masks.
        observed_start: Frames at the start that are never hidden.
        error: `"wrong_pixels"`, the fraction that is wrong, for binary frames as in the paper; or
            `"square"`, the mean squared error, for real-valued ones.
        blank: Frame without anything that moves, from :func:`blank_frame` of training data; by
            default that of `x`.
        chunk: Sequences that are in memory at once.

    Returns:
        Under `smooth_gap_N`, `filter_gap_N`, `copy_last_gap_N`, `smooth_p_X`, `filter_p_X` and
        `copy_last_p_X` the error of each method, over all hidden frames of all sequences; under
        `blank` that of the blank frame over all frames after the first.

    References:
        Fraccaro, Kamronn, Paquet, Winther (2017), section 5.1 and Figure 3.
    """
    batch = as_batch(x)
    count, time = batch.x.shape[:2]
    masks = {
        f"gap_{gap}": gap_mask(count, time, gap, observed_start=observed_start)
        for gap in gaps
        if observed_start + gap <= time
    } | {
        f"p_{p:g}": random_mask(count, time, p, observed_start=observed_start, seed=seed)
        for p in drop_probabilities
    }
    blank = blank_frame(batch.x, batch.mask) if blank is None else blank
    for how in HOW:
        _model_of(guide, how)
    with evaluating(model, guide):
        encoded = [_encode(guide, part) for part in blocks(batch, chunk)]
        table = {
            f"{method}_{name}": value
            for name, mask in masks.items()
            for method, value in _errors(model, guide, batch, mask, encoded, error, chunk).items()
        }
    later = (torch.arange(time, device=batch.x.device) >= observed_start).expand(count, time)
    shown = later if batch.mask is None else later & batch.mask
    nothing = blank.to(batch.x.device).expand_as(batch.x[shown])
    return table | {"blank": float(pixel_error(batch.x[shown], nothing, error).mean())}


def format_table(table: Mapping[str, float]) -> str:
    """Lay out the numbers of :func:`imputation_table` as text, a row per pattern.

    Args:
        table: Errors by key; keys of other forms are left out.

    Returns:
        Lines of equal width.
    """
    methods = ("smooth", "filter", "copy_last")
    patterns = [key.removeprefix("smooth_") for key in table if key.startswith("smooth_")]
    blank = table.get("blank", float("nan"))
    lines = [f"{'hidden':<10}" + "".join(f"{name:>11}" for name in (*methods, "blank"))]
    for pattern in patterns:
        errors = (*(table[f"{method}_{pattern}"] for method in methods), blank)
        label = pattern.replace("_", " ")
        lines.append(f"{label:<10}" + "".join(f"{error:>11.4f}" for error in errors))
    return "\n".join(lines)


def _check_direction(guide: FilteringGuide, how: str) -> None:
    """Raises a TypeError unless this guide of a step model imputes so."""
    can = "filter" if guide.online else "smooth"
    if how != can:
        raise TypeError(
            f"how must be {can!r} for {type(guide).__name__}, which "
            + ("reads no later frame" if guide.online else "reads the whole sequence")
            + f"; got {how!r}"
        )


def _model_of(guide: nn.Module, how: str) -> Any:  # noqa: ANN401 - any model with `decode`
    model = getattr(guide, "model", None)
    if not hasattr(guide, how) or not hasattr(model, "decode"):
        raise TypeError(
            f"guide must have the method {how}(x, mask, controls) and a model with decode(a); "
            f"{type(guide).__name__} has not. Use for example KalmanGuide"
        )
    return model


def _encode(guide: Any, part: Batch) -> Tensor | None:  # noqa: ANN401
    """Codes of all frames, whatever will be hidden of them; None if the guide has no such step."""
    if not hasattr(guide, "encode"):
        return None
    part = place(guide, part)
    return guide.encode(part.x, part.mask)


def _codes(guide: Any, part: Batch, how: str, encoded: Tensor | None = None) -> Tensor:  # noqa: ANN401
    options = {} if encoded is None else {"encoded": encoded}
    return getattr(guide, how)(*place(guide, part), **options).a


def _errors(
    model: Any,  # noqa: ANN401
    guide: nn.Module,
    batch: Batch,
    mask: Tensor,
    encoded: Sequence[Tensor | None],
    error: str,
    chunk: int,
) -> dict[str, float]:
    """Errors of each method under one mask. Only hidden frames are decoded."""
    mask = mask.to(batch.x.device)
    totals = dict.fromkeys((*HOW, "copy_last"), 0.0)
    frames = 0
    rows = zip(blocks(batch, chunk), mask.split(chunk), encoded, strict=True)
    for part, shown, known in rows:
        seen = shown if part.mask is None else shown & part.mask
        hidden = ~shown if part.mask is None else ~shown & part.mask
        truth = part.x[hidden]
        guesses = {"copy_last": copy_last(part.x, seen)[hidden]}
        for how in HOW:
            codes = _codes(guide, part._replace(mask=seen), how, known)
            guesses[how] = decode(model, codes[hidden.to(codes.device)])
        for method, guess in guesses.items():
            totals[method] += float(pixel_error(truth, guess.to(truth.device), error).sum())
        frames += len(truth)
    pixels = frames * batch.x[0, 0].numel()
    return {name: total / pixels if pixels else float("nan") for name, total in totals.items()}
