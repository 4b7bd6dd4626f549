r"""The recurrent tagger: ladders that share their weights divide a picture among them.

.. math::
    p(x_i) = \sum_k m_{ik}\, p(x_i \mid z_{ik}), \qquad
    z, m = \mathrm{ladder}(z, \delta z, m, L(m))

References:
    Prémont-Schwarz, Ilin, Hao, Rasmus, Boney, Valpola (2017), Recurrent ladder networks.
    Greff, Rasmus, Berglund, Hao, Schmidhuber, Valpola (2016), Tagger: deep unsupervised perceptual
    grouping.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from pyro.distributions.util import is_validation_enabled
from torch import Size, Tensor, nn

from pyro_seq.distributions.group_mixture import GroupMixture
from pyro_seq.engines.base import Engine
from pyro_seq.engines.rladder import RLadder, RLadderOutput, RLadderState
from pyro_seq.engines.rows import Row, SoftMaxRow, feed_forward
from pyro_seq.nn.arguments import check_choice, check_mean, check_positive
from pyro_seq.nn.norms import unit_norm
from pyro_seq.nn.repeated import RepeatedLinear
from pyro_seq.nn.space import top_down
from pyro_seq.ops.trees import stack, where
from pyro_seq.plugins import register

__all__ = ["Grouping", "RTagger", "RTaggerOutput", "RTaggerState", "tagger"]

PIXELS = ("gaussian", "bernoulli")


class RTaggerState(NamedTuple):
    """What a tagger knows.

    Attributes:
        z: Mean of each group, `(*batch, groups, *frame)`.
        shown: What the ladder reads of it: before the sigmoid, if there is one, save for the first
            iteration, which reads z.
        log_m: Logarithm of each group's share of each pixel, `(*batch, groups, 1, *space)`.
        ladder: State of the ladder of each group, `(*batch, groups, ...)`.
    """

    z: Tensor
    shown: Tensor
    log_m: Tensor
    ladder: RLadderState


class RTaggerOutput(NamedTuple):
    r"""What a tagger says at one step.

    Attributes:
        m: Share of each group in each pixel, `(*batch, groups, 1, *space)`; adds up to 1 over
            groups.
        z: Mean of each group, `(*batch, groups, *frame)`.
        log_m: Logarithm of m.
        raw_z: z before the sigmoid; z itself for Gaussian pixels.
        prediction: :math:`\sum_k m_k z_k`, `(*batch, *frame)`.
        class_log_probs: Of the classes, `(*batch, classes)`; None without a head.
        ladder: What the ladder of each group says, `(*batch, groups, ...)`.
    """

    m: Tensor
    z: Tensor
    log_m: Tensor
    raw_z: Tensor
    prediction: Tensor
    class_log_probs: Tensor | None
    ladder: RLadderOutput


class Grouping(NamedTuple):
    """A pass over a batch of pictures or sequences.

    Attributes:
        cost: Of each iteration or step, in nats per pixel, `(*batch, time)`.
        output: Of each iteration or step, with the time after the batch dimensions.
        state: After the last.
    """

    cost: Tensor
    output: RTaggerOutput
    state: RTaggerState


@register("engines", "rtagger")
class RTagger(Engine):
    r"""A recurrent tagger.

    Each of K groups has a ladder with the state of its own and the weights of all; they run as one
    batch. In an iteration the ladder of a group reads, as channels,

    - z, its own mean of the frame (before the sigmoid, for binary pixels);
    - :math:`\delta z`, the gradient of the log likelihood by z up to a factor:
      :math:`m (x - z)` for Gaussian pixels;
    - m, its share of each pixel;
    - :math:`L(m)`, the softmax over groups of :math:`\log p(x \mid z_k)`,

    and linear readouts of its lowest decoder level are the next z and, after a softmax over
    groups, m. Iterating on one picture that was corrupted is :meth:`denoise`; one step per frame
    that foretells the next is :meth:`predict`.

    Args:
        frame_shape: `(channels, *space)` with one axis or two.
        rows: Of the ladder. The cell of the first row is replaced by the readouts, which have its
            kernel and stride. A :class:`~pyro_seq.engines.SoftMaxRow` last counts one class more
            than there are, *no object*.
        groups: K.
        pixels: ``gaussian`` or ``bernoulli``.
        noise: Standard deviation of the corruption, or probability that a binary pixel flips. It
            is part of L(m) and :math:`\delta z` also where nothing is corrupted.
        mean: Of the data; what z begins with, and what the bias of its readout begins with, so
            that masks need not account for intensities.
        variance: Of Gaussian pixels about z, what training begins with:
            :math:`1 + \sqrt 2`, a = 1, with the authors. From there Adam needs some ten over the
            learning rate updates to reach .05, and while it is large the means of groups hardly
            matter. Binary pixels have none, and it is not read.
        readout_norm: Whether the readouts are normalised, as in the paper.
        readouts: False for one whose z and m come from elsewhere, as in a
            :class:`~pyro_seq.guides.TaggerGuide` from a model. Its ladder has no decoder, and it
            can :meth:`look` but takes no step by itself.
        norm: See :class:`RLadder`; ``batch`` counts groups as samples.
        iterations: For how many iterations batch statistics are kept apart.
        d2e: See :class:`RLadder`.
        d2e_init: See :class:`RLadder`.
        stable: See :class:`RLadder`.

    Raises:
        ValueError: For a size or name out of range, or rows that do not fit.

    Example:
        >>> from pyro_seq.engines import LinearRow, LSTMRow
        >>> rows = [LinearRow(20), LSTMRow(10, normalised=True)]
        >>> tagger = RTagger((1, 6, 6), rows, groups=3, pixels="bernoulli", norm="layer")
        >>> found = tagger.denoise((torch.rand(4, 1, 6, 6) > 0.5).float(), 2)
        >>> found.cost.shape, found.output.m.shape
        (torch.Size([4, 2]), torch.Size([4, 2, 3, 1, 6, 6]))
    """

    def __init__(
        self,
        frame_shape: Sequence[int],
        rows: Sequence[Row | SoftMaxRow],
        groups: int,
        *,
        pixels: str = "gaussian",
        noise: float = 0.2,
        mean: float = 0.5,
        variance: float = 1 + math.sqrt(2),
        readout_norm: bool = False,
        readouts: bool = True,
        norm: str = "batch",
        iterations: int = 8,
        d2e: str = "all",
        d2e_init: str = "zero",
        stable: bool = False,
    ) -> None:
        super().__init__(frame_shape)
        check_choice("pixels", pixels, PIXELS)
        _check_numbers(frame_shape, groups, noise, pixels, variance)
        mean = check_mean(mean, pixels)
        channels, *space = frame_shape
        bare: list[Any] = [*rows]
        bare[:1] = [replace(r, cell="none") for r in bare[:1] if isinstance(r, Row)]
        self.ladder = RLadder(
            (2 * channels + 2, *space), bare, d2e=d2e, d2e_init=d2e_init, norm=norm,
            iterations=iterations, stable=stable, decoder=readouts,
        )  # fmt: skip
        self.groups, self.pixels, self.noise, self.mean = groups, pixels, noise, mean
        self.readouts = readouts
        a = torch.full((1,), math.sinh(math.log(variance)))
        self.variance = nn.Parameter(a) if pixels == "gaussian" else None
        if not readouts:
            return
        first, lowest = self.ladder.rows[0], self.ladder.shapes[1]
        norms = ("batch" if norm == "batch" else "layer") if readout_norm else "none"
        self.read_z = _Readout(lowest, frame_shape, first, norms, iterations)
        self.read_m = _Readout(lowest, (1, *space), first, norms, iterations)
        start = math.log(mean / (1 - mean)) if pixels == "bernoulli" else mean
        self.bias_z = nn.Parameter(torch.full((1,), start))

    def initial_state(self, batch_shape: Size) -> RTaggerState:
        """Means of the data, and random shares, which make the groups differ."""
        shape = (*batch_shape, self.groups)
        z = next(self.parameters()).new_full((*shape, *self.frame_shape), self.mean)
        shares = torch.randn(*shape, 1, *self.frame_shape[1:], dtype=z.dtype, device=z.device)
        log_m = shares.log_softmax(self._group)
        return RTaggerState(z, z, log_m, self.ladder.initial_state(Size(shape)))

    def step(self, state: RTaggerState, x_t: Tensor) -> tuple[RTaggerOutput, RTaggerState]:
        """One iteration of all groups.

        Args:
            state: The state before.
            x_t: `(*batch, *frame)`; a corrupted picture, or the next frame.
        """
        batch = self.check_frames(x_t)
        if not self.readouts:
            raise TypeError("step needs readouts; this tagger has readouts=False, use look")
        said, ladder = self.look(state, x_t)
        lowest = said.d[0].flatten(0, len(batch))
        iteration = state.ladder.iteration.flatten()
        shape = (*batch, self.groups)
        raw_z = self.read_z(lowest, iteration).unflatten(0, shape) + self.bias_z
        log_m = self.read_m(lowest, iteration).unflatten(0, shape).log_softmax(self._group)
        z = raw_z.sigmoid() if self.pixels == "bernoulli" else raw_z
        m = log_m.exp()
        classes = None if said.logits is None else _class_log_probs(said.logits)
        output = RTaggerOutput(m, z, log_m, raw_z, (m * z).sum(self._group), classes, said)
        return output, RTaggerState(z, raw_z, log_m, ladder)

    def look(self, state: RTaggerState, x_t: Tensor) -> tuple[RLadderOutput, RLadderState]:
        """The ladders of all groups read the frame, and what is known of it.

        Args:
            state: The state before.
            x_t: `(*batch, *frame)`.

        Returns:
            What the ladders say, `(*batch, groups, ...)`, and their state after it.
        """
        self.check_frames(x_t)
        parts = self._inputs(state, x_t.unsqueeze(self._group))
        return self.ladder.step(state.ladder, torch.cat(parts, -len(self.frame_shape)))

    def denoise(
        self,
        x: Tensor,
        iterations: int = 3,
        state: RTaggerState | None = None,
    ) -> Grouping:
        """Iterate on pictures; each iteration costs what it leaves unexplained of the clean ones.

        In training mode the pictures are corrupted, once for all iterations.

        Args:
            x: `(*batch, *frame)`.
            iterations: How many.
            state: The state to begin with; None draws one.

        Raises:
            ValueError: When a shape does not fit, or, with Pyro's validation, a pixel has no
                density.
        """
        self.check_frames(x)
        self._check_pixels(x)
        seen = self.corrupt(x) if self.training else x
        output, state = self.iterate(seen, iterations, state)
        dim = x.dim() - len(self.frame_shape)
        return Grouping(self.cost(output, x.unsqueeze(dim)), output, state)

    def predict(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        state: RTaggerState | None = None,
        *,
        gaps: str = "wait",
    ) -> Grouping:
        """Read sequences; each step costs what it does not foretell of the next frame.

        Args:
            x: `(*batch, time, *frame)` of two frames or more.
            mask: bool, `(*batch, time)`; where the next frame is missing the cost is zero.
            state: The state to begin with; None draws one.
            gaps: What is read where a frame is missing, see
                :meth:`~pyro_seq.engines.Engine.forward`.

        Returns:
            The cost has `time - 1` steps, all else `time`.

        Raises:
            ValueError: When a shape does not fit, or, with Pyro's validation, a pixel has no
                density.
        """
        self.check_frames(x, time=True)
        dim = x.dim() - len(self.frame_shape) - 1
        if x.shape[dim] < 2:
            raise ValueError(f"x must have two frames or more; got shape {tuple(x.shape)}")
        if mask is not None:
            self._check_mask(mask, x.shape[: dim + 1])
        self._check_pixels(x, mask)
        output, state = self(x, mask, state, gaps=gaps)
        target = x.narrow(dim, 1, x.shape[dim] - 1)
        if mask is not None:
            there = mask[..., 1:]
            target = where(there, target, 0)
        fields = (output.log_m, output.z, output.raw_z)
        log_m, z, raw_z = (p.narrow(dim, 0, x.shape[dim] - 1) for p in fields)
        cost = self.cost(output._replace(log_m=log_m, z=z, raw_z=raw_z), target)
        return Grouping(cost if mask is None else torch.where(there, cost, 0), output, state)

    def imagine(
        self, output: RTaggerOutput, state: RTaggerState, steps: int
    ) -> tuple[RTaggerOutput, RTaggerState]:
        """Go on from the frame that was foretold, and the next, and so on.

        Args:
            output: Of the last step, without a time dimension.
            state: After it.
            steps: How many more.

        Returns:
            The outputs, with the time after the batch dimensions, and the state after the last.

        Raises:
            ValueError: When there are no steps, or the output is of several.
        """
        if steps < 1:
            raise ValueError(f"steps must be at least 1; got {steps}")
        if output.z.shape != state.z.shape:
            raise ValueError(
                f"output must be of one step, as the state, with z of {tuple(state.z.shape)}; got "
                f"{tuple(output.z.shape)}. Of a sequence take the last step of every tensor"
            )
        outputs = []
        for _ in range(steps):
            output, state = self.step(state, output.prediction)
            outputs.append(output)
        return stack(outputs, output.prediction.dim() - len(self.frame_shape)), state

    def cost(self, output: RTaggerOutput, target: Tensor) -> Tensor:
        r"""Minus the log likelihood of frames under the mixture, in nats per pixel.

        .. math:: -\frac{1}{N} \sum_i \log \sum_k m_{ik}\, p(x_i \mid z_{ik})

        Args:
            output: Of any number of steps.
            target: `(*batch, *frame)`, broadcast against the output.

        Returns:
            `(*batch,)`.
        """
        pixels = math.prod(self.frame_shape[1:])
        return -self.emission(output).log_prob(target) / pixels

    def emission(self, output: RTaggerOutput) -> GroupMixture:
        """The mixture that z and m are, a distribution of frames.

        Args:
            output: Of any number of steps.
        """
        values: Any
        if self.variance is None:
            values = dist.Bernoulli(logits=output.raw_z, validate_args=False)
        else:
            scale = self.pixel_variance().sqrt()
            values = dist.Normal(output.z, scale, validate_args=False)
        return GroupMixture(output.log_m, values, len(self.frame_shape), validate_args=False)

    def pixel_variance(self) -> Tensor:
        r""":math:`v = \exp(\mathrm{asinh}(a))`, of Gaussian pixels; trained."""
        if self.variance is None:
            raise ValueError("binary pixels have no variance; got pixels='bernoulli'")
        return self.variance.asinh().exp()

    def corrupt(self, x: Tensor) -> Tensor:
        """The frames with noise, or with some of their binary pixels flipped."""
        if self.pixels == "gaussian":
            return x + self.noise * torch.randn_like(x)
        return torch.where(torch.rand_like(x) < self.noise, 1 - x, x)

    def _check_pixels(self, x: Tensor, mask: Tensor | None = None) -> None:
        """With Pyro's validation, a ValueError unless all pixels observed have a density."""
        if not is_validation_enabled():
            return
        seen = x if mask is None else x[mask]
        if not seen.numel():
            return
        low, high = (float(end) for end in seen.detach().aminmax())
        if not math.isfinite(low) or not math.isfinite(high):
            raise ValueError("x must be finite where it is observed; got NaN or infinity")
        if self.pixels == "bernoulli" and (low < 0 or high > 1):
            raise ValueError(
                "x must lie between 0 and 1 for binary pixels; got values between "
                f"{low:.3g} and {high:.3g}. Scale the frames, or use pixels='gaussian'"
            )

    @property
    def _group(self) -> int:
        """The dimension of the groups, counted from the last."""
        return -1 - len(self.frame_shape)

    def _inputs(self, state: RTaggerState, x: Tensor) -> list[Tensor]:
        """Channels that the ladder reads, for frames `(*batch, 1, *frame)`."""
        channel, m = -len(self.frame_shape), state.log_m.exp()
        if self.variance is None:
            n = self.noise
            p = state.z * (1 - 2 * n) + n
            modelled = (m * p).sum(self._group, keepdim=True)
            error = m * (1 - 2 * n) * (x - modelled) / (modelled * (1 - modelled))
            log_p = x * p.log() + (1 - x) * (1 - p).log()
        else:
            error = m * (x - state.z)
            log_p = -0.5 * (x - state.z).square() / (self.pixel_variance() + self.noise**2)
        likely = log_p.sum(channel, keepdim=True).softmax(self._group)
        return [state.shown, error, m, likely]


class _Readout(nn.Module):
    r""":math:`c\, \mathrm{N}(T d)`, with T the mirror of the first row."""

    def __init__(
        self, lowest: Sequence[int], shape: Sequence[int], row: Row, norm: str, iterations: int
    ) -> None:
        super().__init__()
        self.shape, dense = tuple(shape), len(lowest) == 1
        kernel, stride = row.mirrored
        self.map = (
            RepeatedLinear(lowest[0], math.prod(shape), bias=False)
            if dense
            else top_down(lowest, shape, kernel, stride)
        )
        self.norm = unit_norm(norm, math.prod(shape) if dense else shape[0], iterations)
        self.gain = nn.Parameter(torch.ones(1))

    def forward(self, d: Tensor, iteration: Tensor) -> Tensor:
        """Maps `(batch, *shape)`."""
        return self.gain * self.norm(self.map(d), iteration).reshape(len(d), *self.shape)


@register("engines", "tagger")
def tagger(
    frame_shape: Sequence[int],
    rows: Sequence[Row | SoftMaxRow],
    groups: int,
    **options: Any,  # noqa: ANN401
) -> RTagger:
    """The tagger without recurrence: it hands on nothing but z and m from iteration to iteration.

    Args:
        frame_shape: `(channels, *space)` with one axis or two.
        rows: Of the ladder; recurrent ones are replaced by the like without.
        groups: K.
        **options: Of :class:`RTagger`, other than `d2e`.

    Example:
        >>> from pyro_seq.engines import LSTMRow
        >>> made = tagger((1, 6, 6), [LSTMRow(9)], groups=2)
        >>> made.ladder.rows[0]
        LinearRow(cell='none', cell_kernel=None, units=9, activation='relu')
    """
    return RTagger(frame_shape, feed_forward(rows), groups, **{**options, "d2e": "none"})


def _class_log_probs(logits: Tensor) -> Tensor:
    """Of the classes, given the logits of each group `(*batch, groups, 1 + classes)`.

    The last logit of a group says that it holds no object.
    """
    log_p = logits.log_softmax(-1)[..., :-1]
    return log_p.logsumexp(-2) - log_p.logsumexp((-2, -1)).unsqueeze(-1)


def _check_numbers(
    frame_shape: Sequence[int], groups: int, noise: float, pixels: str, variance: float
) -> None:
    if len(frame_shape) < 2:
        raise ValueError(
            f"frame_shape must be (channels, *space) with one axis or two; got {frame_shape}"
        )
    check_positive(groups=groups)
    if noise < 0 or (pixels == "bernoulli" and not 0 < noise < 0.5):
        raise ValueError(f"noise must be positive, and below 0.5 for binary pixels; got {noise}")
    if not variance > 0 or math.isinf(variance):
        raise ValueError(f"variance must be positive and finite; got {variance}")
