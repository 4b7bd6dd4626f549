"""The loss of a model and guide pair as an ordinary ``torch.nn.Module``."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Literal, NamedTuple

import pyro
import torch
from pyro.infer import ELBO
from torch import Tensor, nn

from pyro_seq.data import as_batch
from pyro_seq.inference import DeviceTraceELBO, site_scale
from pyro_seq.nn.naming import prepare_local_parameters
from pyro_seq.training.distributed import sum_all, world_size

__all__ = ["LossTotals", "SequenceLoss"]


class LossTotals(NamedTuple):
    """A loss as a sum over a batch and what it is divided by.

    Attributes:
        loss: (), objective summed over the batch, nats.
        units: (), observed steps or sequences of the batch.
    """

    loss: Tensor
    units: Tensor


class SequenceLoss(nn.Module):
    r"""Negative evidence lower bound, :math:`-\frac{1}{n} \sum_i \mathcal{L}(x_i)`, in nats.

    The parameters of model and guide are submodules, so a torch optimizer, DistributedDataParallel
    or a checkpoint sees them as those of any network. Nothing is left in Pyro's global parameter
    store: two models of one class in one process train independently.

    In training mode under ``torch.distributed``, n counts the batches of all processes and the
    value is scaled by their number, so that the mean of the gradients over processes is the
    gradient of one process on the joined batch.

    Args:
        model: generative model, ``forward(x, mask, controls)``.
        guide: its guide, same arguments.
        elbo: the bound, any with ``differentiable_loss``; when None that of
            ``pyro.infer.Trace_ELBO()``, computed by ``DeviceTraceELBO``.
        site_weights: factors on the log density of named sites, for example ``{"x": 0.3}``. The
            result is then a weighted objective and not an ELBO.
        per: n counts observed steps ("step") or sequences with an observed step ("sequence").

    Raises:
        ValueError: ``per`` is neither of the two, or the guide stands in the model's place.
        TypeError: ``elbo`` has no ``differentiable_loss``.
    """

    def __init__(
        self,
        model: nn.Module,
        guide: nn.Module,
        elbo: ELBO | None = None,
        site_weights: Mapping[str, float | Tensor] | None = None,
        per: Literal["step", "sequence"] = "step",
    ) -> None:
        super().__init__()
        if per not in ("step", "sequence"):
            raise ValueError(f"per must be 'step' or 'sequence', got {per!r}")
        if getattr(model, "model", None) is guide:
            raise ValueError(
                "model and guide are in each other's place; use SequenceLoss(model, guide)"
            )
        elbo = DeviceTraceELBO() if elbo is None else elbo
        if not hasattr(elbo, "differentiable_loss"):
            raise TypeError(
                "elbo must have a method differentiable_loss(model, guide, x, mask, controls), "
                f"{type(elbo).__name__} has none; use Trace_ELBO or TraceMeanField_ELBO"
            )
        self.model = model
        self.guide = guide
        self.elbo = elbo
        self.site_weights = dict(site_weights or {})
        self.per = per
        prepare_local_parameters(self)

    def forward(
        self,
        batch: Tensor | tuple[Tensor, Tensor | None, Tensor | None],
        mask: Tensor | None = None,
        controls: Tensor | None = None,
    ) -> Tensor:
        r"""Mean loss of a batch.

        Args:
            batch: a ``pyro_seq.data.Batch``, or x alone: (batch, time, \*frame).
            mask: (batch, time) bool, True where observed; only with x alone.
            controls: (batch, time, control); only with x alone.

        Returns:
            (), nats per observed step or per sequence.
        """
        total, units = self.totals(batch, mask, controls)
        processes = world_size() if self.training else 1
        if processes > 1:
            units = sum_all(units)
        return total * (processes / units.clamp(min=1))

    def totals(
        self,
        batch: Tensor | tuple[Tensor, Tensor | None, Tensor | None],
        mask: Tensor | None = None,
        controls: Tensor | None = None,
    ) -> LossTotals:
        """Loss summed over the batch of this process, and its units; arguments as for a call."""
        parts = as_batch(batch) if isinstance(batch, tuple) else (batch, mask, controls)
        x, mask, controls = parts
        scaled = site_scale(self.site_weights) if self.site_weights else contextlib.nullcontext()
        with pyro.settings.context(module_local_params=True), scaled:
            total = self.elbo.differentiable_loss(self.model, self.guide, x, mask, controls)
        units = _count(x, mask, self.per)
        return LossTotals(total, units.to(torch.promote_types(total.dtype, torch.float32)))


def _count(x: Tensor, mask: Tensor | None, per: str) -> Tensor:
    """Observed steps, or sequences with an observed step: a 0-dimensional number on x's device."""
    if mask is None:
        number = x.shape[0] if per == "sequence" else x.shape[0] * x.shape[1]
        return torch.full((), number, device=x.device)
    return (mask.any(-1) if per == "sequence" else mask).sum()
