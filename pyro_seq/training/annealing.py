r"""Weights of the KL terms that change while training goes on.

.. math:: \ell(n) = \sum_t \beta(n)\, KL_t - E_q[\log p(x_t \mid z_t)]
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from pyro.infer import ELBO
from torch import Tensor, nn

from pyro_seq.training.callbacks import Callback, Context

__all__ = ["AnnealKL", "linear", "quadratic"]

Schedule = Callable[[int], float]


def linear(count: int, start: float = 0.0) -> Schedule:
    r"""Weight :math:`\beta(n) = s + (1 - s) \min(n / N, 1)`.

    With `start=0.2` over 20 epochs, by steps, this is the schedule of the SRNN on music.

    Args:
        count: N, epochs or steps until the weight is 1; with 0 it always is.
        start: s, the first weight.

    Returns:
        The weight as a function of the epochs, or steps, done.

    Raises:
        ValueError: For a negative count or a start outside [0, 1].

    Example:
        >>> weight = linear(4, start=0.2)
        >>> [round(weight(n), 1) for n in range(6)]
        [0.2, 0.4, 0.6, 0.8, 1.0, 1.0]

    References:
        Fraccaro, Sonderby, Paquet, Winther (2016), Sequential neural models with stochastic
        layers.
    """
    return _power(count, start, 1)


def quadratic(count: int, start: float = 0.0) -> Schedule:
    r"""Weight :math:`\beta(n) = s + (1 - s) \min(n / N, 1)^2`.

    With `start=0` over 50 epochs this is what the authors' code of AVF has on music, where their
    paper says linear.

    Args:
        count: N, epochs or steps until the weight is 1; with 0 it always is.
        start: s, the first weight.

    Returns:
        The weight as a function of the epochs, or steps, done.

    Raises:
        ValueError: For a negative count or a start outside [0, 1].

    Example:
        >>> weight = quadratic(4)
        >>> [weight(n) for n in range(6)]
        [0.0, 0.0625, 0.25, 0.5625, 1.0, 1.0]

    References:
        Marino, Cvitkovic, Yue (2018), A general method for amortizing variational filtering.
    """
    return _power(count, start, 2)


class AnnealKL(Callback):
    r"""Sets the weight of the KL terms of a :class:`~pyro_seq.inference.FilteringELBO` in `fit`.

    The weight is a part of the training objective alone: without gradients the bound has none, so
    that validation, evaluation and every reported bound are those of the model. The training loss
    in the history is weighted; the weight stands beside it as `"kl_weight"`.

    Args:
        target: The bound, or a :class:`~pyro_seq.training.SequenceLoss` that has it, wrapped for
            several processes or not. A weight that is a tensor is filled in place, so that a
            captured graph sees the change.
        schedule: From the number of epochs, or steps, done to the weight: :func:`linear`,
            :func:`quadratic`, or any function.
        per: `"epoch"` or `"step"`.

    Raises:
        TypeError: When the target has no KL weight.
        ValueError: For another unit.

    Example:
        >>> from pyro_seq.inference import FilteringELBO
        >>> bound = FilteringELBO()
        >>> anneal = AnnealKL(bound, linear(20, start=0.2), per="epoch")
        >>> bound.kl_weight
        0.2
    """

    def __init__(
        self,
        target: ELBO | nn.Module,
        schedule: Schedule,
        *,
        per: Literal["epoch", "step"] = "epoch",
    ) -> None:
        if per not in ("epoch", "step"):
            raise ValueError(f"per must be 'epoch' or 'step'; got {per!r}")
        loss = getattr(target, "module", target)
        elbo = getattr(loss, "elbo", loss)
        if not hasattr(elbo, "kl_weight"):
            raise TypeError(
                f"target must have a KL weight, as FilteringELBO; got {type(elbo).__name__}. "
                "Use SequenceLoss(model, guide, FilteringELBO())"
            )
        self.elbo: Any = elbo
        self.schedule = schedule
        self.per = per
        self._done = 0
        self._set(0)

    def on_step(self, context: Context) -> None:
        """The weight of the next step."""
        if self.per == "step":
            self._set(context.step)

    def on_epoch_end(self, context: Context) -> None:
        """The weight of the next epoch; that of the last step goes into the record."""
        last = context.step - 1 if self.per == "step" else context.epoch
        context.record["kl_weight"] = float(self.schedule(last))
        if self.per == "epoch":
            self._set(context.epoch + 1)

    def state_dict(self) -> dict[str, Any]:
        """How many epochs or steps the weight counts."""
        return {"done": self._done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Sets the weight as it was when the checkpoint was made."""
        self._set(state["done"])

    def _set(self, done: int) -> None:
        self._done = done
        weight = float(self.schedule(done))
        if isinstance(self.elbo.kl_weight, Tensor):
            self.elbo.kl_weight.fill_(weight)
        else:
            self.elbo.kl_weight = weight


def _power(count: int, start: float, exponent: int) -> Schedule:
    if count < 0 or not 0 <= start <= 1:
        raise ValueError(f"count must be 0 or more and start from 0 to 1; got {count} and {start}")

    def weight(done: int) -> float:
        share = min(done / count, 1.0) if count else 1.0
        return start + (1.0 - start) * share**exponent

    return weight
