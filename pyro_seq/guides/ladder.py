r"""A neural inference engine as a guide: its decoder from the top down, each latent a draw.

.. math::
    o_t, s_t = \mathrm{engine}(s_{t-1}, x_t), \qquad
    q(z_t \mid z_{t-1}, x_{\le t}) = \prod_{l=L}^{1} q\big(z_t^l \mid d_l(t), z_t^{>l}, p_t^l\big)

where :math:`p_t^l` is the prior of a latent given the latents before and above. Any such q is a
density, whatever the engine computes, so that the bound is one. A message from the decoder moves
the free parameters :math:`\lambda` of the prior, or, if it is :math:`N(m', 1 / \rho)`, a message
:math:`(l, \pi)` is combined with it by precision, as in eq. 18 of the paper,

.. math::
    q = q(\lambda_p + \Delta) \qquad\text{or}\qquad
    q = N\Big(\frac{\pi l + \rho m'}{\pi + \rho}, \frac{1}{\pi + \rho}\Big).

The latter is never wider than the prior.

References:
    Prémont-Schwarz, Ilin, Hao, Rasmus, Boney, Valpola (2017), Recurrent ladder networks.
    Sonderby, Raiko, Maaloe, Sonderby, Winther (2016), Ladder variational autoencoders.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Size, Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pyro_seq.distributions.parameters import free_parameters, with_parameters
from pyro_seq.engines.rladder import RLadder
from pyro_seq.engines.rows import LinearRow, LSTMRow, Row
from pyro_seq.guides.context import Frame, StepContext
from pyro_seq.guides.filtering import FilteringGuide, Inference
from pyro_seq.guides.prototype import Prototype, prototype
from pyro_seq.guides.sites import LatentSite, check_names
from pyro_seq.models.auxiliary import auxiliary
from pyro_seq.models.step_model import StepModel
from pyro_seq.nn.arguments import check_choice
from pyro_seq.nn.gaussian_ladder import GaussianLadderCell
from pyro_seq.nn.mlp import JointMLP
from pyro_seq.nn.norms import IterationBatchNorm
from pyro_seq.nn.repeated import RepeatedLinear
from pyro_seq.ops.trees import where
from pyro_seq.plugins import register

__all__ = ["LadderGuide", "LadderGuideState"]

LIMIT = 7.5
COMBINE = ("residual", "precision")


class LadderGuideState(NamedTuple):
    """What the guide knows of the frames so far.

    Attributes:
        engine: The state of the engine.
        features: What its decoder said at the last frame that was seen, `(*batch, size)` for each
            latent site.
        prediction: Its prediction of the next frame, or None if it makes none.
        frames: How many frames were seen, long `(*batch)`.
    """

    engine: Any
    features: tuple[Tensor, ...]
    prediction: Tensor | None
    frames: Tensor


@register("guides", "ladder")
class LadderGuide(FilteringGuide):
    r"""A recurrent ladder, or any other engine with a decoder, that infers the latents of a step.

    The engine reads the frames, whose state it keeps; the first latent of a step reads the
    highest level of its decoder, the last one the lowest, and each is told the latents before it
    and the parameters of its prior. Where a frame is missing the engine stays as it was.

    With ``backward`` a second engine goes through the sequence from its end, so that q depends on
    later frames too. Such a guide smooths; it needs the whole sequence, and q is the prior only
    where nothing is observed any more.

    Args:
        model: Any :class:`~pyro_seq.models.StepModel` with reparametrised latents.
        engine: An engine whose output has the levels of a decoder, `d`, for frames of as many
            values as the model's; by default a dense :class:`~pyro_seq.engines.RLadder` with a
            level for each latent.
        levels: For each latent site in the order of the step the index of its level in `d`; by
            default spread evenly from the top down, without the prediction of a frame; a single
            latent reads the lowest.
        backward: Whether to smooth, or the engine that runs backward; True takes a copy of the
            engine, with parameters of its own.
        units: Units of each level of the default engine; not read if there is an engine.
        hidden: Units of each hidden layer from the decoder to a message, or of the only one.
        combine: `"residual"`, messages move the prior's free parameters, or `"precision"`, they
            are combined with normal priors as in eq. 18; others are moved all the same.
        prediction: Weight of the engine's own task beside the bound, the squared error of its
            prediction of the next frame, summed over the frame; the default engine predicts none.
            It trains the guide and is part of no bound, see :func:`~pyro_seq.models.auxiliary`.

    Warns:
        UserWarning: When the engine normalises over batches: no bound holds in training mode.

    Raises:
        TypeError: When the model is no step model.
        ValueError: When a latent has no reparametrised prior, or the engine has no decoder or
            reads other frames, or predicts none where it is to be trained to, for a size or
            weight out of range, or an unknown way to combine.

    Example:
        >>> from pyro_seq.models import HierarchicalTemporalModel
        >>> model = HierarchicalTemporalModel(88, latents=[4, 2])
        >>> guide = LadderGuide(model, units=8, hidden=8)
        >>> guide(torch.ones(2, 3, 88))["z1_3"].shape
        torch.Size([2, 4])
    """

    def __init__(
        self,
        model: StepModel,
        engine: Any = None,  # noqa: ANN401
        *,
        levels: Sequence[int] | None = None,
        backward: Any = False,  # noqa: ANN401
        units: int = 64,
        hidden: int | Sequence[int] = 64,
        combine: str = "residual",
        prediction: float = 0.0,
    ) -> None:
        super().__init__(model)
        check_choice("combine", combine, COMBINE)
        known = prototype(model)
        self.frame_shape, self.sizes = known.frame_shape, known.sizes
        layers = [hidden] if isinstance(hidden, int) else list(hidden)
        if not layers or min(layers) < 1:
            raise ValueError(f"hidden must be one positive size or more; got {hidden}")
        if prediction < 0:
            raise ValueError(f"prediction must not be negative; got {prediction}")
        engine = _dense(known, units) if engine is None else engine
        self.forward_reader = _Reader(engine, known, levels)
        other = copy.deepcopy(engine) if backward is True else backward
        self.backward_reader = None if other is False else _Reader(other, known, levels)
        self.online = self.backward_reader is None
        self.prediction = prediction
        if prediction and not self.forward_reader.predicts:
            raise ValueError(
                "prediction must be 0 for an engine that predicts no frame, as the default one; "
                f"got {prediction} for {type(engine).__name__}"
            )
        features = self.forward_reader.sizes
        if self.backward_reader is not None:
            pairs = zip(features, self.backward_reader.sizes, strict=True)
            features = [one + two for one, two in pairs]
        self.networks, self.messages = nn.ModuleDict(), nn.ModuleDict()
        others = known.controls
        for (name, sizes), size in zip(known.sizes.items(), features, strict=True):
            prior = sum(sizes.values())
            self.networks[name] = JointMLP([size, others + prior], layers)
            self.messages[name] = _message(layers[-1], sizes, combine == "precision")
            others += known.values[name]

    def initial_state(self, batch_shape: Size) -> LadderGuideState:
        """The state of the engine, and zeros for what its decoder said."""
        return self.forward_reader.initial_state(batch_shape)

    def informed(self, mask: Tensor) -> Tensor:
        """Where the frame was observed, or, when smoothing, some frame at the step or after it."""
        return mask if self.online else mask.flip(1).cumsum(1).flip(1) > 0

    def encode(self, x: Tensor, mask: Tensor | None, controls: Tensor | None) -> Any:  # noqa: ANN401
        """What the engine that runs backward says of each step, `(batch, time, size)` per site."""
        reader = self.backward_reader
        if reader is None:
            return None
        state = reader.initial_state(x.shape[:1])
        seen = [None] * x.shape[1] if mask is None else mask.unbind(1)
        found: list[tuple[Tensor, ...]] = []
        for x_t, seen_t in zip(reversed(x.unbind(1)), reversed(seen), strict=True):
            state = reader(state, x_t, seen_t, x.shape[:1])
            found.insert(0, state.features)
        return tuple(torch.stack(column, 1) for column in zip(*found, strict=True))

    def infer(self, context: StepContext, state: LadderGuideState) -> Inference:
        """One step of the engine, and one message for each site."""
        frame, batch = context.frame, context.batch_shape
        cost = self._cost(context, state) if self.prediction else None
        state = self.forward_reader(state, frame.x, frame.seen, batch)
        features = dict(zip(self.sizes, self._features(state, frame), strict=True))

        def choose(site: LatentSite) -> Any:  # noqa: ANN401
            if site.name not in self.sizes:
                check_names(self.sizes, [*site.earlier, site.name])
            start = free_parameters(site.prior)
            others = [v.reshape(*batch, -1) for v in site.earlier.values()]
            others += [] if frame.control is None else [frame.control]
            others += start.values()
            network: Any = self.networks[site.name]
            total = network.share(0, features[site.name]) + network.share(1, torch.cat(others, -1))
            return self._posterior(site, network(total), start)

        return Inference(choose, state, cost)

    def _cost(self, context: StepContext, state: LadderGuideState) -> Tensor | None:
        """The error of the prediction of this frame; under stock Pyro it is a site of its own."""
        frame, batch = context.frame, context.batch_shape
        assert state.prediction is not None
        apart = (state.prediction - frame.x.reshape(state.prediction.shape)).square()
        cost = apart.reshape(*batch, -1).sum(-1)
        known = state.frames > 0
        known = known if frame.seen is None else known & frame.seen
        cost = self.prediction * torch.where(known, cost, torch.zeros_like(cost))
        if not context.stock:
            return cost
        auxiliary("prediction", cost, guide=True)
        return None

    def _features(self, state: LadderGuideState, frame: Frame) -> Sequence[Tensor]:
        """What the decoders say at this step, of the past and, when smoothing, of the rest."""
        if self.online:
            return state.features
        return [torch.cat(both, -1) for both in zip(state.features, frame.encoding, strict=True)]

    def _posterior(self, site: LatentSite, hidden: Tensor, start: dict[str, Tensor]) -> Any:  # noqa: ANN401
        """The prior combined with a message, or moved by it."""
        message: Any = self.messages[site.name]
        if isinstance(message, GaussianLadderCell):
            q = message(hidden, start["loc"], -2 * start["scale"])
            return with_parameters(site.prior, {"loc": q.loc, "scale": -0.5 * q.log_precision})
        sizes = self.sizes[site.name]
        moves = message(hidden).clamp(-LIMIT, LIMIT).split([*sizes.values()], -1)
        moved = {name: start[name] + move for name, move in zip(sizes, moves, strict=True)}
        return with_parameters(site.prior, moved)


class _Reader(nn.Module):
    """An engine, and which levels of its decoder are read.

    Attributes:
        sizes: The size of the level of each latent site.
        predicts: Whether the engine predicts the next frame.
    """

    def __init__(self, engine: Any, known: Prototype, levels: Sequence[int] | None) -> None:  # noqa: ANN401
        super().__init__()
        _check_frame(engine, known.frame_shape)
        warn_of_batch_norm(engine, stacklevel=4)
        self.engine = engine
        output = self._try()
        d = getattr(output, "d", ())
        self.predicts = getattr(output, "prediction", None) is not None
        lowest = int(self.predicts)
        if len(d) <= lowest:
            raise ValueError(
                "engine must have a decoder above the frame, in the field d of its output; got "
                f"{type(engine).__name__} with {len(d)} levels"
            )
        sites = len(known.sizes)
        if levels is None:
            spread = torch.linspace(lowest, len(d) - 1, sites).round().int()
            levels = spread.flip(0).tolist()
        if len(levels) != sites or not all(0 <= level < len(d) for level in levels):
            raise ValueError(
                f"levels must be one index from 0 to {len(d) - 1} for each of the sites "
                f"{[*known.sizes]}; got {[*levels]}"
            )
        self.levels, self.sizes = [*levels], [d[level].numel() for level in levels]

    def initial_state(self, batch: Size) -> LadderGuideState:
        """That of the engine, and zeros."""
        like = next(self.engine.parameters())
        features = tuple(like.new_zeros(*batch, size) for size in self.sizes)
        prediction = like.new_zeros(*batch, *self.engine.frame_shape) if self.predicts else None
        frames = like.new_zeros(batch, dtype=torch.long)
        return LadderGuideState(self.engine.initial_state(batch), features, prediction, frames)

    def forward(
        self, state: LadderGuideState, x_t: Tensor, seen: Tensor | None, batch: Size
    ) -> LadderGuideState:
        """One step of the engine; where nothing was seen all stays as it was."""
        output, after = self.engine.step(
            state.engine, x_t.reshape(*batch, *self.engine.frame_shape)
        )
        features = tuple(output.d[level].reshape(*batch, -1) for level in self.levels)
        prediction = output.prediction if self.predicts else None
        new = LadderGuideState(after, features, prediction, state.frames + 1)
        if seen is None:
            return new
        return where(seen, new, state)

    def _try(self) -> Any:  # noqa: ANN401
        """The output of one step on a frame of zeros, with nothing left behind."""
        engine, training = self.engine, self.engine.training
        engine.eval()
        with torch.no_grad():
            zeros = next(engine.parameters()).new_zeros(1, *engine.frame_shape)
            output, _ = engine.step(engine.initial_state(Size((1,))), zeros)
        engine.train(training)
        return output


def warn_of_batch_norm(engine: nn.Module, stacklevel: int = 3) -> None:
    """Warns when an engine of a guide normalises over batches."""
    if any(isinstance(part, IterationBatchNorm | _BatchNorm) for part in engine.modules()):
        warnings.warn(
            f"{type(engine).__name__} normalises over batches: in training mode sequences "
            "depend on each other, and no bound holds. Use norm='layer'",
            stacklevel=stacklevel,
        )


def _check_frame(engine: Any, frame_shape: Size) -> None:  # noqa: ANN401
    """Raises a ValueError unless the engine reads frames of as many values."""
    shape = getattr(engine, "frame_shape", None)
    if shape is None or Size(shape).numel() != frame_shape.numel():
        raise ValueError(
            f"engine must read frames of {frame_shape.numel()} values, as the model's of shape "
            f"{tuple(frame_shape)}; got {type(engine).__name__} for frames of "
            f"{None if shape is None else tuple(shape)}"
        )


def _dense(known: Prototype, units: int) -> RLadder:
    """A ladder of two dense rows or more, one for each latent, with an LSTM at the top."""
    rows: list[Row] = [LinearRow(units) for _ in range(len(known.sizes) - 2)]
    ends = LinearRow(units, cell="none"), LSTMRow(units)
    return RLadder((known.frame_shape.numel(),), [ends[0], *rows, ends[1]], d2e="all")


def _message(features: int, sizes: dict[str, int], precision: bool) -> nn.Module:
    """From hidden units to a message, or to moves of the prior's free parameters."""
    if precision and [*sizes] == ["loc", "scale"]:
        return GaussianLadderCell(features, sizes["loc"])
    head = RepeatedLinear(features, sum(sizes.values()))
    with torch.no_grad():  # to begin with, close to the prior
        head.weight.mul_(0.1)
        head.bias.zero_()
    return head
