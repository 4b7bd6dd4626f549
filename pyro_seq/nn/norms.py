r"""Normalisation of units inside networks that iterate.

.. math::
    \mathrm{N}(u) = g \odot \frac{u - \mathrm{mean}(u)}{\sqrt{\mathrm{var}(u) + \epsilon}} + b

with one gain and one bias per channel; mean and variance are taken over all units of one sample
(layer), or over the samples of a batch and the places of a map (batch).

References:
    Ba, Kiros, Hinton (2016), Layer normalization.
    Cooijmans, Ballas, Laurent, Gulcehre, Courville (2017), Recurrent batch normalization.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional

from pyro_seq.nn.arguments import check_choice, check_positive
from pyro_seq.nn.space import per_channel

__all__ = ["NORMS", "IterationBatchNorm", "UnitNorm", "estimate_statistics", "unit_norm"]

NORMS = ("layer", "batch", "none")


class UnitNorm(nn.GroupNorm):
    """Layer normalisation over all channels and places of one sample, affine per channel.

    Args:
        channels: Number of channels.

    Example:
        >>> UnitNorm(3)(torch.randn(2, 3, 5, 5)).mean().abs() < 1e-6
        tensor(True)
    """

    def __init__(self, channels: int) -> None:
        super().__init__(1, channels)

    def forward(
        self, u: Tensor, iteration: Tensor | None = None, shift: Tensor | None = None
    ) -> Tensor:
        """Of units `(batch, channels, *space)`; see :func:`unit_norm`."""
        bias = self.bias if shift is None else self.bias + shift
        return functional.group_norm(u, 1, self.weight, bias, self.eps)


class IterationBatchNorm(nn.Module):
    r"""Batch normalisation whose running statistics are of each iteration by itself.

    In a network that iterates, the first iteration has no feedback and other statistics than the
    next. Gain and bias are shared; running statistics are kept for each of the first iterations,
    and those of the last serve for all after it. In training the statistics are those of the
    batch; samples of a batch that are at different iterations, after missing frames, are
    normalised together.

    Running statistics begin as the average of the batches so far, and then move by ``momentum``.
    While a network changes fast they lag: see :func:`estimate_statistics`.

    Args:
        channels: Number of channels.
        iterations: For how many iterations statistics are kept apart.
        momentum: Least weight of a new batch in the running statistics.
        eps: Added to the variance.

    Raises:
        ValueError: In training, for a batch of one: every unit would be its own mean.

    Example:
        >>> norm, u = IterationBatchNorm(3), torch.randn(8, 3)
        >>> first = norm(u, torch.zeros(8, dtype=torch.long))
        >>> second = norm(2 * u, torch.ones(8, dtype=torch.long))
        >>> norm.running_var[1] / norm.running_var[0]
        tensor([4., 4., 4.])
    """

    running_mean: Tensor
    running_var: Tensor
    tracked: Tensor

    def __init__(
        self, channels: int, iterations: int = 8, momentum: float = 0.1, eps: float = 1e-5
    ) -> None:
        super().__init__()
        check_positive(iterations=iterations)
        self.momentum, self.eps = momentum, eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(iterations, channels))
        self.register_buffer("running_var", torch.ones(iterations, channels))
        self.register_buffer("tracked", torch.zeros(iterations, 1))

    def forward(self, u: Tensor, iteration: Tensor, shift: Tensor | None = None) -> Tensor:
        """Of units `(batch, channels, *space)`; see :func:`unit_norm`."""
        bias = self.bias if shift is None else self.bias + shift
        if not self.training:
            return self._evaluate(u, iteration, bias)
        if len(u) < 2:
            raise ValueError(
                "batch normalisation in training needs a batch of 2 or more; got a batch of 1. "
                "Use a larger batch, eval(), or norm='layer'"
            )
        self._track(u.detach().to(self.running_mean.dtype), iteration)
        return functional.batch_norm(u, None, None, self.weight, bias, True, eps=self.eps)

    def _evaluate(self, u: Tensor, iteration: Tensor, bias: Tensor) -> Tensor:
        last = (self.tracked > 0).sum().clamp(min=1) - 1
        index = torch.minimum(iteration, last)
        shape = (*u.shape[:2], *(1,) * (u.dim() - 2))
        scale = self.weight * (self.running_var[index] + self.eps).rsqrt()
        shift = bias - scale * self.running_mean[index]
        return torch.addcmul(shift.reshape(shape), u, scale.reshape(shape))

    @torch.no_grad()
    def _track(self, u: Tensor, iteration: Tensor) -> None:
        """Statistics of the batch count for each iteration by its share of the samples."""
        var, mean = torch.var_mean(u, dim=(0, *range(2, u.dim())))
        kept = torch.arange(len(self.tracked), device=u.device).unsqueeze(-1)
        at = (kept == iteration.clamp(max=len(kept) - 1)).to(u).mean(1, keepdim=True)
        self.tracked += at
        rate = torch.maximum(self.momentum * at, at / self.tracked.clamp(min=1e-6))
        self.running_mean.lerp_(mean.expand_as(self.running_mean), rate)
        self.running_var.lerp_(var.expand_as(self.running_var), rate)


class _Unnormalised(nn.Identity):
    """What it is given."""

    def forward(
        self, u: Tensor, iteration: Tensor | None = None, shift: Tensor | None = None
    ) -> Tensor:
        """The units as they are, and the shift."""
        return u if shift is None else u + per_channel(shift, u)


def unit_norm(norm: str, channels: int, iterations: int = 8) -> nn.Module:
    """The normalisation of that name, called with `(u, iteration, shift)`.

    u are units `(batch, channels, *space)`; the iteration of each sample, int64 `(batch,)`, makes
    a difference to batch normalisation alone; a shift `(channels,)`, where there is one, is added
    to the bias.

    Args:
        norm: One of :data:`NORMS`.
        channels: Number of channels.
        iterations: For how many iterations batch statistics are kept apart.

    Raises:
        ValueError: For an unknown name.
    """
    check_choice("norm", norm, NORMS)
    if norm == "batch":
        return IterationBatchNorm(channels, iterations)
    return UnitNorm(channels) if norm == "layer" else _Unnormalised()


@contextmanager
def estimate_statistics(network: nn.Module) -> Iterator[None]:
    """Within, batch norms forget their running statistics and average those of what passes.

    For evaluation after training, or in the midst of it: the plain average over all batches that
    pass, without gradients, of a network that no longer changes. Batch norms alone are in training
    mode within; dropout and the like are not.

    Args:
        network: A network with :class:`IterationBatchNorm` inside.

    Example:
        >>> norm, u = IterationBatchNorm(2), torch.randn(3, 10, 2)
        >>> with estimate_statistics(norm):
        ...     for batch in u:
        ...         _ = norm(batch, torch.zeros(10, dtype=torch.long))
        >>> torch.allclose(norm.running_mean[0], u.mean((0, 1)), atol=1e-6)
        True
    """
    modes = {module: module.training for module in network.modules()}
    norms = [module for module in modes if isinstance(module, IterationBatchNorm)]
    momenta = [norm.momentum for norm in norms]
    before = [norm.tracked.clone() for norm in norms]
    network.eval()
    for norm in norms:
        norm.tracked.zero_()
        norm.momentum = 0.0
        norm.train()
    try:
        with torch.no_grad():
            yield
    finally:
        for norm, momentum, tracked in zip(norms, momenta, before, strict=True):
            norm.momentum = momentum
            if not norm.tracked.any():  # nothing passed: the old statistics stand
                norm.tracked.copy_(tracked)
        for module, mode in modes.items():
            module.training = mode
