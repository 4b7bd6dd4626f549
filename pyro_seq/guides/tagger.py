r"""A tagger as a guide: it divides a frame among groups, and infers the latent of each.

.. math::
    o_k = \mathrm{ladder}(z_k, \delta z_k, m_k, L(m)_k), \quad
    q(h_k \mid \cdot) = N(\mu(o_k), \sigma^2(o_k)), \quad
    z, m = \mathrm{dec}(h), \ h \sim q, \quad \text{and again}

References:
    Prémont-Schwarz, Ilin, Hao, Rasmus, Boney, Valpola (2017), Recurrent ladder networks.
    Greff, Rasmus, Berglund, Hao, Schmidhuber, Valpola (2016), Tagger: deep unsupervised perceptual
    grouping.
    Greff, Kaufman, Kabra, Watters, Burgess, Zoran, Matthey, Botvinick, Lerchner (2019),
    Multi-object representation learning with iterative variational inference.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Size, Tensor

from pyro_seq.engines.rladder import RLadderState
from pyro_seq.engines.rows import LinearRow
from pyro_seq.engines.rtagger import RTagger, RTaggerState
from pyro_seq.guides.context import StepContext
from pyro_seq.guides.filtering import Choose, FilteringGuide, Inference
from pyro_seq.guides.ladder import warn_of_batch_norm
from pyro_seq.guides.sites import LatentSite, check_names
from pyro_seq.models.auxiliary import auxiliary
from pyro_seq.models.group_mixture import GroupMixtureModel
from pyro_seq.nn.gaussian_ladder import GaussianLadderCell
from pyro_seq.ops.trees import where
from pyro_seq.plugins import register

__all__ = ["TaggerGuide"]

GAIN, PRECISION = 0.3, 4.0


@register("guides", "tagger")
class TaggerGuide(FilteringGuide):
    r"""A tagger that infers the latents of the groups of a frame.

    At each iteration the ladder of every group reads the frame, its z and m, and what they leave
    unexplained; its highest level gives a message to its :math:`h_k`, combined by precision with
    the prior. A draw of h, decoded by the model, is the z and m of the next iteration. The first
    one begins, at the first frame that is seen, with the mean of the data and random shares, which
    make the groups differ, and at later frames with a draw of the prior: what the model foretells.

    The random shares and the draws before the last iteration are random numbers that the guide
    draws for itself: for any of them the last q is a density, so that the bound holds. While
    training, the free energies of the earlier iterations count too, beside the bound and as part
    of none: all iterations learn to end well.

    The ladder of the default engine has no recurrent rows. They may be given, and then remember
    earlier iterations and frames.

    Args:
        model: A :class:`~pyro_seq.models.GroupMixtureModel`.
        engine: An :class:`~pyro_seq.engines.RTagger` with ``readouts=False`` for the model's
            frames, groups and pixels; by default one with dense rows.
        iterations: For each frame. It may be changed after training.
        units: Of each row of the default engine, with layer normalisation; not read if there is
            an engine.
        noise: Of the default engine, see there; not read if there is an engine.
        earlier: Weight of the free energies of the earlier iterations.

    Warns:
        UserWarning: When the engine normalises over batches: no bound holds in training mode.

    Raises:
        TypeError: For another model or engine.
        ValueError: For an engine that does not fit the model, or a number out of range.

    Example:
        >>> model = GroupMixtureModel((1, 6, 6), groups=3, latent=4, decoder=[8])
        >>> guide = TaggerGuide(model, units=[12, 8])
        >>> guide(torch.ones(2, 1, 1, 6, 6))["h_1"].shape
        torch.Size([2, 3, 4])
    """

    def __init__(
        self,
        model: GroupMixtureModel,
        engine: RTagger | None = None,
        *,
        iterations: int = 3,
        units: Sequence[int] = (200, 100, 50),
        noise: float = 0.2,
        earlier: float = 1.0,
    ) -> None:
        super().__init__(model)
        if not isinstance(model, GroupMixtureModel):
            raise TypeError(f"model must be a GroupMixtureModel; got {type(model).__name__}")
        if iterations < 1 or earlier < 0:
            raise ValueError(
                "iterations must be at least 1 and earlier not negative; got "
                f"{iterations} and {earlier}"
            )
        if isinstance(units, int):
            raise TypeError(f"units must be a sequence, of each row one size; got {units}")
        self.frame_shape = model.frame_shape
        self.engine = _dense(model, units, noise) if engine is None else engine
        _check_engine(self.engine, model)
        warn_of_batch_norm(self.engine)
        self.iterations, self.earlier = iterations, earlier
        self.message = GaussianLadderCell(math.prod(self.engine.ladder.shapes[-1]), model.latent)
        with torch.no_grad():
            self.message.message.weight.mul_(GAIN)
            self.message.message.bias[: model.latent] = 0.0
            self.message.message.bias[model.latent :] = PRECISION

    def initial_state(self, batch_shape: Size) -> RLadderState:
        """That of the ladders of all groups."""
        return self.engine.ladder.initial_state(Size((*batch_shape, self.engine.groups)))

    def infer(self, context: StepContext, state: RLadderState) -> Inference:
        """Several iterations on one frame; q is that of the last."""
        costs = []
        choose, ladder = self._look(context, self._start(context, state))
        for _ in range(self.iterations - 1):
            energy = context.evaluate(choose)
            costs.append(energy.total)
            choose, ladder = self._look(context, _decoded(energy.emission, ladder))
        if context.frame.seen is not None:
            ladder = where(context.frame.seen, ladder, state)
        return Inference(choose, ladder, self._objective(context, costs))

    @torch.no_grad()
    def _start(self, context: StepContext, ladder: RLadderState) -> RTaggerState:
        """What the model foretells; before any frame was seen the mean, and random shares."""
        first = self.engine.initial_state(context.batch_shape)._replace(ladder=ladder)
        foretold = _decoded(context.evaluate(_prior).emission, ladder)
        seen = (ladder.iteration > 0).any(-1)
        return where(seen, foretold, first)

    def _look(self, context: StepContext, known: RTaggerState) -> tuple[Choose, RLadderState]:
        """One iteration: from the site of h to its q, and the state of the ladders."""
        said, ladder = self.engine.look(known, context.frame.x)
        return self._posterior(said.e[-1].flatten(len(context.batch_shape) + 1)), ladder

    def _posterior(self, features: Tensor) -> Choose:
        """From the site of h to its q, given what the ladders say `(*batch, groups, units)`."""

        def choose(site: LatentSite) -> Any:  # noqa: ANN401
            if site.name != "h":
                check_names(["h"], [*site.earlier, site.name])
            prior = site.prior.base_dist
            q = self.message(features, prior.loc, -2 * prior.scale.log())
            return dist.Normal(q.loc, q.scale, validate_args=False).to_event(2)

        return choose

    def _objective(self, context: StepContext, costs: list[Tensor]) -> Tensor | None:
        """The free energies of the earlier iterations; under stock Pyro a site with no value."""
        if not costs or not self.earlier:
            return None
        cost = self.earlier * torch.stack(costs).sum(0)
        if context.frame.seen is not None:
            cost = torch.where(context.frame.seen, cost, torch.zeros_like(cost))
        if not context.stock:
            return cost
        auxiliary("iterations", cost - cost.detach(), guide=True)
        return None


def _prior(site: LatentSite) -> Any:  # noqa: ANN401
    return site.prior


def _decoded(emission: Any, ladder: Any) -> RTaggerState:  # noqa: ANN401
    """The z and m that a mixture says, beside the state of the ladders."""
    values = emission.components
    shown = values.logits if isinstance(values, dist.Bernoulli) else values.mean
    return RTaggerState(values.mean, shown, emission.log_m, ladder)


def _dense(model: GroupMixtureModel, units: Sequence[int], noise: float) -> RTagger:
    """A tagger with dense rows and layer normalisation."""
    return RTagger(
        model.frame_shape,
        [LinearRow(width) for width in units],
        model.groups,
        pixels=model.pixels,
        mean=model.mean,
        noise=noise,
        norm="layer",
        d2e="none",
        readouts=False,
    )


def _check_engine(engine: Any, model: GroupMixtureModel) -> None:  # noqa: ANN401
    if not isinstance(engine, RTagger):
        raise TypeError(f"engine must be an RTagger; got {type(engine).__name__}")
    if engine.readouts:
        raise ValueError(
            "engine must be an RTagger with readouts=False: its z and m are those of the model"
        )
    ours = (tuple(engine.frame_shape), engine.groups, engine.pixels)
    wanted = (tuple(model.frame_shape), model.groups, model.pixels)
    if ours != wanted:
        raise ValueError(
            f"engine must have the frames, groups and pixels of the model, {wanted}; got {ours}"
        )
