r"""Posterior draws of the latent sites and the mean frames that they imply."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from pyro import poutine
from pyro.distributions import Independent, MaskedDistribution
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor, nn

from pyro_seq.data import Batch
from pyro_seq.distributions import LinearGaussianSSM
from pyro_seq.evaluation.context import (
    as_batch,
    blocks,
    check,
    decode,
    evaluating,
    place,
    stacked,
)
from pyro_seq.models.step_model import StepModel
from pyro_seq.nn.arguments import check_choice
from pyro_seq.ops.trees import where

__all__ = ["Band", "Draws", "posterior_draws"]


class Band(NamedTuple):
    """Mean and central interval over draws, `(sequences, *event)` each."""

    mean: Tensor
    lower: Tensor
    upper: Tensor


class Draws(NamedTuple):
    """Draws from the guide, on the CPU.

    Attributes:
        sites: Value of each latent site, `(samples, sequences, *event)`.
        frames: Mean of each observed site given the draw, `(samples, sequences, time, *frame)`.
    """

    sites: dict[str, Tensor]
    frames: dict[str, Tensor]

    def band(self, name: str, probability: float = 0.9) -> Band:
        """Mean and band of a latent site or of mean frames, over the draws.

        Args:
            name: Of a site, such as `"z"`, or of frames, `"x"`.
            probability: That of the central interval.

        Raises:
            ValueError: For an unknown name or a probability outside (0, 1).
        """
        values = self._named(name)
        if not 0 < probability < 1:
            raise ValueError(f"probability must be between 0 and 1; got {probability}")
        tail = (1 - probability) / 2
        lower, upper = torch.from_numpy(np.quantile(values.numpy(), [tail, 1 - tail], axis=0))
        return Band(values.mean(0), lower, upper)

    def explained(self, name: str) -> Tensor:
        r"""Share of the variance of each unit that the sequences account for.

        .. math:: \frac{\mathrm{Var}_x\, \mathrm{E}[z \mid x]}
            {\mathrm{Var}_x\, \mathrm{E}[z \mid x] + \mathrm{E}_x\, \mathrm{Var}[z \mid x]}

        A unit that says nothing of the frames has about 0: it has collapsed to the prior. The
        numerator is the activity of Burda, Grosse, Salakhutdinov (2016), *Importance weighted
        autoencoders*; the share does not depend on the unit's scale. Both variances are estimated
        without bias, and a negative estimate is 0.

        Args:
            name: Of a site, such as `"z"`.

        Returns:
            `(*event)`; of a step model `(time, *event)`.

        Raises:
            ValueError: For an unknown name, or fewer than two draws or sequences.
        """
        values = self._named(name).double()
        if min(values.shape[:2]) < 2:
            raise ValueError(
                "explained needs two draws or more of two sequences or more; got "
                f"{values.shape[0]} of {values.shape[1]}. Ask posterior_draws for samples=2"
            )
        within = values.var(0).mean(0)
        between = (values.mean(0).var(0) - within / len(values)).clamp(min=0)
        return between / (between + within)

    def _named(self, name: str) -> Tensor:
        known = self.sites | self.frames
        check_choice("name", name, known)
        return known[name]


def posterior_draws(
    model: nn.Module,
    guide: nn.Module,
    batch: Tensor | tuple[Tensor, Tensor | None, Tensor | None],
    *,
    samples: int = 1,
    seed: int | None = None,
    chunk: int = 64,
) -> Draws:
    r"""Draw latent sites given the observed frames.

    Guides with codes and mixture dynamics (:class:`~pyro_seq.guides.KalmanGuide`) give codes and
    states whatever the estimator: :math:`a_t \sim q(a_t \mid x_t)` where a frame is observed,
    :math:`z \sim p(z \mid a)` jointly, :math:`a_t \sim p(a_t \mid z_t)` where one is missing.
    Other pairs give their own sites; steps that the guide's distribution masks out, and what
    follows from them, are NaN: what a guide draws there is no posterior.

    Step models give the sites of their step over time, `"z"` for `z_1, z_2, ...`: with a
    filtering guide these are filtered states,
    :math:`z_t \sim q(z_t \mid z_{<t}, x_{\le t})`, drawn path by path, not reweighted. Where a
    frame is missing, and in padding, they are predictions. :meth:`Draws.band` makes means and
    bands of them.

    Args:
        model: Generative model.
        guide: Its guide.
        batch: A :class:`~pyro_seq.data.Batch`, or x alone, `(sequences, time, *frame)`.
        samples: Draws of each sequence.
        seed: Seed of the draws; None goes on with torch's present state.
        chunk: Sequences times samples that are in memory at once.

    Returns:
        The draws.

    Raises:
        ValueError: If the number of samples is not positive, or the batch does not fit the model.
    """
    if samples < 1:
        raise ValueError(f"samples must be at least 1; got {samples}")
    dynamic = hasattr(guide, "codes") and hasattr(model, "dynamics") and hasattr(model, "decode")
    draw = _from_dynamics if dynamic else _from_traces
    with evaluating(model, guide, seed=seed):
        parts = []
        for part in blocks(as_batch(batch), chunk):
            passes = stacked(place(model, part), samples, chunk)
            parts.append([_unstack(draw(model, guide, rows), count) for count, rows in passes])
    return Draws(
        _join([[one.sites for one in part] for part in parts]),
        _join([[one.frames for one in part] for part in parts]),
    )


def _unstack(draws: Draws, copies: int) -> Draws:
    """Rows `(copies * sequences, ...)` as `(copies, sequences, ...)` on the CPU."""
    return Draws(
        *(
            {k: v.reshape(copies, -1, *v.shape[1:]).cpu() for k, v in part.items()}
            for part in draws
        )
    )


def _join(parts: list[list[dict[str, Tensor]]]) -> dict[str, Tensor]:
    """Put draws, and parts of the batch, one after the other."""
    return {
        name: torch.cat([torch.cat([draws[name] for draws in part]) for part in parts], 1)
        for name in parts[0][0]
    }


def _from_dynamics(model: Any, guide: Any, part: Batch) -> Draws:  # noqa: ANN401
    x, mask, controls = part
    check(model, part)
    a = guide.codes(x, mask).sample()
    given = model.dynamics.condition(a, mask, controls)
    ssm = LinearGaussianSSM.from_model(given.model, time=x.shape[1], mask=mask)
    z = ssm.posterior(a).rsample()
    if mask is not None:
        a = torch.where(mask.unsqueeze(-1), a, ssm.emit(z.double()).sample().to(a.dtype))
    frames = decode(model, a.flatten(0, 1)).view(x.shape)
    return Draws({"a": a, "z": z.to(a.dtype)}, {"x": frames})


def _from_traces(model: nn.Module, guide: nn.Module, part: Batch) -> Draws:
    trace = prune_subsample_sites(poutine.trace(guide).get_trace(*part))
    sites: dict[str, Any] = {name: trace.nodes[name] for name in trace.stochastic_nodes}
    seen = {name: _scored(site["fn"]) for name, site in sites.items()}
    values = {name: _blank(site["value"], seen[name]) for name, site in sites.items()}
    hidden = [mask for mask in seen.values() if mask is not None]
    shown = torch.stack(hidden).all(0) if hidden else None
    predicted = poutine.trace(poutine.replay(model, trace=trace)).get_trace(*part)
    frames = {}
    for name in predicted.observation_nodes:
        site: Any = predicted.nodes[name]
        frames[name] = _blank(site["fn"].mean.expand_as(site["value"]), shown)
    if isinstance(model, StepModel):
        return Draws(_over_time(values), _over_time(frames))
    return Draws(values, frames)


def _over_time(steps: dict[str, Tensor]) -> dict[str, Tensor]:
    """Values of `z_1, z_2, ...`, `(batch, *event)`, as one of `z`, `(batch, time, *event)`."""
    names = {name: name.rpartition("_")[0] for name in steps}
    return {
        base: torch.stack([value for name, value in steps.items() if names[name] == base], 1)
        for base in dict.fromkeys(names.values())
    }


def _scored(fn: Any) -> Tensor | None:  # noqa: ANN401
    """Which steps a site's distribution scores, bool `(batch, time)`; None if all."""
    while isinstance(fn, Independent) and not isinstance(fn, MaskedDistribution):
        fn = fn.base_dist
    mask = getattr(fn, "_mask", None)
    return mask if isinstance(mask, Tensor) and mask.dim() == 2 else None


def _blank(value: Tensor, shown: Tensor | None) -> Tensor:
    if shown is None or not value.is_floating_point() or value.shape[:2] != shown.shape:
        return value
    return where(shown, value, torch.nan)
