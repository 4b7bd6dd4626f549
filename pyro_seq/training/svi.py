"""The two calls of ``pyro.infer.SVI`` over a loss module and a torch optimizer."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_seq.data import Batch, as_batch
from pyro_seq.training.loss import SequenceLoss
from pyro_seq.training.step import Precision, autocast, train_step

__all__ = ["SVI"]


class SVI:
    """Stochastic variational inference in the shape of Pyro's own, for code written against it.

    ``pyro.infer.SVI(model, guide, optim, loss)`` itself trains the same pairs, through Pyro's
    global parameter store; this one has a torch optimizer and leaves the store alone. Both calls
    take ``x, mask, controls`` as Pyro's do, or a ``Batch``. Their losses are means (per observed
    step, or per sequence), not sums, and they wait for the device: ``fit`` does not.

    Args:
        loss: loss of a model and guide pair.
        optimizer: torch optimizer of its parameters.
        clip_norm: largest norm of all gradients together.
        precision: "bfloat16" runs the networks under autocast.

    Example:
        >>> svi = SVI(loss, torch.optim.Adam(loss.parameters()))  # doctest: +SKIP
        >>> value = svi.step(batch)  # doctest: +SKIP
    """

    def __init__(
        self,
        loss: SequenceLoss,
        optimizer: torch.optim.Optimizer,
        *,
        clip_norm: float | None = None,
        precision: Precision = "float32",
    ) -> None:
        self.loss = loss
        self.optimizer = optimizer
        self.clip_norm = clip_norm
        self.precision: Precision = precision

    def step(
        self,
        batch: Tensor | tuple[Tensor, Tensor | None, Tensor | None],
        mask: Tensor | None = None,
        controls: Tensor | None = None,
    ) -> float:
        """One gradient step; returns the loss of the batch before it, in nats."""
        self.loss.train()
        whole = self._batch(batch, mask, controls)
        values = train_step(
            self.loss,
            whole,
            self.optimizer,
            clip_norm=self.clip_norm,
            precision=self.precision,
        )
        return float(values.loss)

    @torch.no_grad()
    def evaluate_loss(
        self,
        batch: Tensor | tuple[Tensor, Tensor | None, Tensor | None],
        mask: Tensor | None = None,
        controls: Tensor | None = None,
    ) -> float:
        """Loss of the batch, in nats, with the networks in evaluation mode."""
        training = self.loss.training
        whole = self._batch(batch, mask, controls)
        self.loss.eval()
        try:
            with autocast(whole.x.device, self.precision):
                return float(self.loss(whole))
        finally:
            self.loss.train(training)

    def _batch(
        self,
        batch: Tensor | tuple[Tensor, Tensor | None, Tensor | None],
        mask: Tensor | None,
        controls: Tensor | None,
    ) -> Batch:
        """The arguments of a call as a batch on the device of the loss."""
        whole = as_batch(batch) if isinstance(batch, tuple) else Batch(batch, mask, controls)
        return whole.to(next(self.loss.parameters()).device)
