r"""Costs beside the bound, in a model or in a guide: for training alone.

.. math:: \mathrm{loss} = -\mathcal{L} + \sum_i w_i c_i

Prediction of the next frame, a classifier, consistency between two networks: they shape a network
and say nothing about evidence.
"""

from __future__ import annotations

import pyro
import torch
from torch import Tensor

__all__ = ["AUXILIARY", "auxiliary"]

AUXILIARY = "aux/"


def auxiliary(name: str, cost: Tensor, weight: float = 1.0, *, guide: bool = False) -> None:
    r"""Adds a cost to the loss of training, and to no reported bound.

    It is a ``pyro.factor`` at the site ``aux/name``, in a model or a step of one with the density
    :math:`e^{-w c}`, in a guide, whose densities count the other way, with :math:`e^{w c}`. It
    counts while gradients are recorded. Without them (``torch.no_grad``), as in every evaluation
    of this library and in ``evaluate_loss`` of Pyro's SVI, it is 1; under
    :class:`~pyro_seq.inference.without_auxiliary` it is 1 with gradients too.

    Args:
        name: Name of the task.
        cost: c, `(*batch)`, of the shape of the plates around it.
        weight: w.
        guide: Whether this is called in a guide.

    Raises:
        ValueError: When the weight is negative.

    Example:
        >>> import pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("sequences", 2):
        ...         auxiliary("size", x.square(), 0.5)
        ...         return pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)
        >>> trace = pyro.poutine.trace(model).get_trace(torch.tensor([2.0, 0.0]))
        >>> trace.compute_log_prob()
        >>> trace.nodes["aux/size"]["log_prob"]
        tensor([-2., -0.])
    """
    if weight < 0:
        raise ValueError(f"weight must not be negative; got {weight}")
    paid = weight * cost if torch.is_grad_enabled() else torch.zeros_like(cost)
    pyro.factor(AUXILIARY + name, paid if guide else -paid, has_rsample=True if guide else None)
