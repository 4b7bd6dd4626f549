r"""What an engine is trained to say, as likelihoods: the tasks of the ladder papers in Pyro.

.. math::
    p(x_{2:T}, y \mid x_1) = p(y \mid x_{1:T}) \prod_t p(x_{t+1} \mid x_{1:t})

There is no latent variable; the guide is :class:`~pyro_seq.guides.NoLatents`, and stochastic
variational inference is maximum likelihood.

References:
    Prémont-Schwarz, Ilin, Hao, Rasmus, Boney, Valpola (2017), Recurrent ladder networks.
    Greff, Rasmus, Berglund, Hao, Schmidhuber, Valpola (2016), Tagger: deep unsupervised perceptual
    grouping.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions.util import is_validation_enabled
from pyro.nn import PyroModule
from torch import Tensor

from pyro_seq.engines.base import GAPS, Engine
from pyro_seq.engines.rtagger import RTagger
from pyro_seq.models.step_handlers import hide
from pyro_seq.models.step_model import check_sequences, check_values
from pyro_seq.nn.arguments import check_choice, check_positive
from pyro_seq.nn.naming import unique_name
from pyro_seq.ops.trees import map_tensors

__all__ = ["EngineTasks", "Foretold"]


class Foretold(NamedTuple):
    """What an engine says of frames, and what they are.

    Attributes:
        output: The output of the engine after each iteration, or after each frame: the last is
            of frame T + 1, which is in no other field, `(batch, steps or time, ...)`.
        emission: Distribution of the frames, batch shape `(batch, steps)`, with `steps` the
            iterations, or time - 1 for the frames 2 to T.
        frames: `(batch, steps, *frame)`.
        there: Where a frame was observed, bool `(batch, steps)`, or None for everywhere.
    """

    output: Any
    emission: Any
    frames: Tensor
    there: Tensor | None

    @property
    def log_likelihood(self) -> Tensor:
        """Of each frame, nats, zero where it is missing, `(batch, steps)`."""
        nats = self.emission.log_prob(self.frames)
        return nats if self.there is None else torch.where(self.there, nats, 0)


class EngineTasks(PyroModule):
    r"""An engine whose predictions are observed.

    By default the engine takes one step for each frame and foretells the next: the site ``x`` has
    the frames 2 to T. With ``iterations`` it goes over a single frame again and again, and each
    iteration is to explain the frame: the site then is the mean of their log densities, a
    composite likelihood, of which the last term alone is to be reported (:meth:`foretold`). In
    training a tagger then sees the frame corrupted.

    Means per step or frame (of :class:`~pyro_seq.training.SequenceLoss` and
    :func:`~pyro_seq.evaluation.elbo`) are over observed frames, of which the first counts though
    nothing is said of it.

    An engine with a head has classes, the site ``y``. Its labels travel in the place of controls,
    `(batch, time, 1)`: the class at that step, -1 where there is none.

    A tagger foretells its mixture over groups. Any other prediction is the mean of a normal
    distribution: with C the weight of the squared error's mean over N values beside one
    cross-entropy, as in the paper, the variance would be N / 2C; better is scale 1 and the weight
    2C / N.

    Args:
        engine: An engine that predicts frames.
        iterations: How many, on sequences of one frame; None for one step per frame.
        gaps: What a step reads where its frame is missing: ``wait``, nothing, or ``imagine``, what
            the step before foretold of it; see :meth:`~pyro_seq.engines.Engine.forward`.
        scale: Standard deviation of a normal prediction.
        frame_weight: Factor on the log density of frames.
        class_weight: Factor on the log probability of classes.

    Raises:
        TypeError: When the engine is none, or in `forward` one that predicts no frame.
        ValueError: When a number is out of range, or in `forward` a shape does not fit, an
            observed frame cannot be scored, or a label is no class.

    Example:
        >>> import pyro
        >>> from pyro_seq.engines import ConvLSTMRow, RLadder, SoftMaxRow
        >>> from pyro_seq.guides import NoLatents
        >>> model = EngineTasks(RLadder((1, 4, 4), [ConvLSTMRow(2), SoftMaxRow(3)]))
        >>> svi = pyro.infer.SVI(
        ...     model, NoLatents(), pyro.optim.Adam({"lr": 1e-3}), pyro.infer.Trace_ELBO()
        ... )
        >>> labels = torch.tensor([[-1.0, -1.0, 2.0], [-1.0, -1.0, -1.0]]).unsqueeze(-1)
        >>> svi.step(torch.zeros(2, 3, 1, 4, 4), None, labels) > 0
        True
    """

    def __init__(
        self,
        engine: Engine,
        *,
        iterations: int | None = None,
        gaps: str = "wait",
        scale: float = 1.0,
        frame_weight: float = 1.0,
        class_weight: float = 1.0,
    ) -> None:
        super().__init__(unique_name("enginetasks"))
        if not isinstance(engine, Engine):
            raise TypeError(f"engine must be an Engine; got {type(engine).__name__}")
        if iterations is not None:
            check_positive(iterations=iterations)
        check_choice("gaps", gaps, GAPS)
        if not (scale > 0 and frame_weight >= 0 and class_weight >= 0):
            raise ValueError(
                "scale must be positive and weights must not be negative; got scale="
                f"{scale}, frame_weight={frame_weight}, class_weight={class_weight}"
            )
        self.engine, self.iterations, self.gaps, self.scale = engine, iterations, gaps, scale
        self.frame_weight, self.class_weight = frame_weight, class_weight

    def forward(
        self, x: Tensor, mask: Tensor | None = None, controls: Tensor | None = None
    ) -> None:
        """Observes the frames and the labels.

        Args:
            x: Frames `(batch, time, *frame)`; missing ones may be NaN.
            mask: bool `(batch, time)`, True where observed.
            controls: Labels, `(batch, time, 1)`; None for none.
        """
        check_sequences(x, mask, None, 0)
        self.engine.check_frames(x, time=True)
        if is_validation_enabled():
            binary = isinstance(self.engine, RTagger) and self.engine.pixels == "bernoulli"
            check_values(x, mask, None, (0.0, 1.0) if binary else None)
        found = self.foretold(x, mask)
        emission = found.emission if found.there is None else found.emission.mask(found.there)
        count = self.iterations or 1
        with pyro.plate("sequences", len(x), dim=-1):
            with poutine.scale(scale=self.frame_weight / count):
                pyro.sample("x", emission.to_event(1), obs=found.frames)
            if controls is not None:
                self._observe_labels(found.output, controls, mask)

    def foretold(self, x: Tensor, mask: Tensor | None = None) -> Foretold:
        """What the engine says of the frames at each iteration, or of frames 2 to T.

        Args:
            x: Frames `(batch, time, *frame)`; missing ones may be NaN.
            mask: bool `(batch, time)`, True where observed.
        """
        self.engine.check_frames(x, time=True)
        x = hide(x, mask)
        return self._next(x, mask) if self.iterations is None else self._again(x, mask)

    def _next(self, x: Tensor, mask: Tensor | None) -> Foretold:
        """Of each frame what the engine says of the next."""
        if x.shape[1] < 2:
            raise ValueError(f"x must have two frames or more; got shape {tuple(x.shape)}")
        output, _ = self.engine(x, mask, gaps=self.gaps)
        said = map_tensors(lambda part: part[:, :-1], _shown(output))
        there = None if mask is None else mask[:, 1:]
        return Foretold(output, self._emission(said), x[:, 1:], there)

    def _again(self, x: Tensor, mask: Tensor | None) -> Foretold:
        """Of a single frame what the engine says at each iteration."""
        if x.shape[1] != 1:
            raise ValueError(f"x must have one frame to iterate on; got shape {tuple(x.shape)}")
        assert self.iterations is not None
        seen = x[:, 0]
        if self.training and isinstance(self.engine, RTagger):
            seen = self.engine.corrupt(seen)
        output, _ = self.engine.iterate(seen, self.iterations)
        frames = x.expand(-1, self.iterations, *x.shape[2:])
        there = None if mask is None else mask.expand(-1, self.iterations)
        return Foretold(output, self._emission(_shown(output)), frames, there)

    def _emission(self, output: Any) -> Any:  # noqa: ANN401
        """The distribution of frames that an output stands for."""
        if isinstance(self.engine, RTagger):
            return self.engine.emission(output)
        if getattr(output, "prediction", None) is None:
            raise TypeError(
                f"engine must predict frames; this {type(self.engine).__name__} has no decoder, "
                "or one that ends above the frame, so that its output has no prediction"
            )
        normal = dist.Normal(output.prediction, self.scale, validate_args=False)
        return normal.to_event(len(self.engine.frame_shape))

    def _observe_labels(self, output: Any, labels: Tensor, mask: Tensor | None) -> None:  # noqa: ANN401
        """The classes at the steps that have a label; of several iterations, at the last."""
        name = "class_log_probs" if isinstance(self.engine, RTagger) else "logits"
        logits = getattr(output, name, None)
        if logits is None:
            raise ValueError("controls must be None for an engine without a head of classes")
        logits = logits if self.iterations is None else logits[:, -1:]
        if labels.shape != (*logits.shape[:2], 1):
            raise ValueError(
                f"controls must be labels (batch, time, 1) = {(*logits.shape[:2], 1)}; got shape "
                f"{tuple(labels.shape)}"
            )
        labels = labels.squeeze(-1)
        if is_validation_enabled():
            _check_labels(labels if mask is None else labels[mask], logits.shape[-1])
        known = labels >= 0 if mask is None else (labels >= 0) & mask
        classes = dist.Categorical(logits=logits, validate_args=False).mask(known)
        with poutine.scale(scale=self.class_weight):
            pyro.sample("y", classes.to_event(1), obs=torch.where(known, labels, 0).long())


def _check_labels(labels: Tensor, classes: int) -> None:
    """Raises a ValueError that shows the first label that is neither a class nor -1."""
    wrong = ~((labels >= -1) & (labels < classes) & (labels == labels.round()))
    if wrong.any():
        raise ValueError(
            f"controls must be labels from 0 to {classes - 1}, or -1 for none; got "
            f"{labels[wrong][0].item():g}"
        )


def _shown(output: Any) -> Any:  # noqa: ANN401
    """The output without what only the inside of a ladder needs."""
    return output._replace(ladder=None) if hasattr(output, "ladder") else output
