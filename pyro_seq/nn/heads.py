"""From features to distributions: the last layers of priors, posteriors and emissions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
from torch import Tensor, nn

from pyro_seq.distributions import DiscretizedNormal
from pyro_seq.nn.arguments import check_choice
from pyro_seq.nn.repeated import RepeatedLinear

__all__ = ["EMISSIONS", "BernoulliHead", "NormalHead", "WindowHead", "emission_head"]

LOG_SCALES = (-7.5, 2.5)


class NormalHead(nn.Module):
    r"""Diagonal normal distribution, :math:`N(\mu(f), \mathrm{diag}\,\sigma^2(f))`.

    Args:
        features: Size of f.
        shape: Event shape, or the size of a vector.
        log_scales: Bounds of :math:`\log \sigma`, the lower one first.

    Raises:
        ValueError: If the bounds are not two, or the lower one is not the first.

    Example:
        >>> import torch
        >>> NormalHead(4, 2)(torch.zeros(3, 4)).event_shape
        torch.Size([2])
    """

    def __init__(
        self,
        features: int,
        shape: int | Sequence[int],
        log_scales: tuple[float, float] = LOG_SCALES,
    ) -> None:
        super().__init__()
        self.shape = (shape,) if isinstance(shape, int) else tuple(shape)
        if len(log_scales) != 2 or log_scales[0] > log_scales[1]:
            raise ValueError(f"log_scales must be (lower, upper); got {log_scales}")
        self.log_scales = log_scales
        self.parameters_of = RepeatedLinear(features, 2 * math.prod(self.shape))

    def forward(self, features: Tensor) -> dist.Independent:
        """The distribution given features `(*batch, features)`."""
        loc, scale = self.moments(features)
        return dist.Normal(loc, scale, validate_args=False).to_event(len(self.shape))

    def moments(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation, each `(*batch, *shape)`."""
        loc, log_scale = self.parameters_of(features).chunk(2, -1)
        shape = (*features.shape[:-1], *self.shape)
        return loc.reshape(shape), log_scale.clamp(*self.log_scales).exp().reshape(shape)


class WindowHead(nn.Module):
    """Normal distribution integrated over the window of the data's discretisation.

    Args:
        features: Size of the features.
        shape: Event shape, or the size of a vector.
        width: Width of the window, in the units of the data.
        **options: Further arguments of :class:`~pyro_seq.distributions.DiscretizedNormal`.
    """

    def __init__(
        self,
        features: int,
        shape: int | Sequence[int],
        width: float,
        **options: Any,  # noqa: ANN401
    ) -> None:
        super().__init__()
        self.normal = NormalHead(features, shape)
        self.width = width
        self.options = options

    def forward(self, features: Tensor) -> dist.Independent:
        """The distribution given features `(*batch, features)`."""
        loc, scale = self.normal.moments(features)
        each = DiscretizedNormal(loc, scale, self.width, validate_args=False, **self.options)
        return each.to_event(len(self.normal.shape))


class BernoulliHead(nn.Module):
    """Independent binary values, or greys between 0 and 1.

    Args:
        features: Size of the features.
        shape: Event shape, or the size of a vector.

    Attributes:
        frame_bounds: Between which values frames must lie; models check it.
    """

    frame_bounds = (0.0, 1.0)

    def __init__(self, features: int, shape: int | Sequence[int]) -> None:
        super().__init__()
        self.shape = (shape,) if isinstance(shape, int) else tuple(shape)
        self.logits = RepeatedLinear(features, math.prod(self.shape))

    def forward(self, features: Tensor) -> dist.Independent:
        """The distribution given features `(*batch, features)`."""
        logits = self.logits(features).reshape(*features.shape[:-1], *self.shape)
        return dist.Bernoulli(logits=logits, validate_args=False).to_event(len(self.shape))


EMISSIONS = {"bernoulli": BernoulliHead, "normal": NormalHead, "window": WindowHead}


def emission_head(
    name: str,
    features: int,
    shape: int | Sequence[int],
    **options: Any,  # noqa: ANN401
) -> nn.Module:
    """The emission of that name: `"bernoulli"`, `"normal"` or `"window"`.

    Args:
        name: One of :data:`EMISSIONS`.
        features: Size of the features that it reads.
        shape: Shape of a frame, or the size of a vector.
        **options: Further arguments of the class.

    Raises:
        ValueError: For an unknown name.
    """
    check_choice("emission", name, EMISSIONS)
    return EMISSIONS[name](features, shape, **options)
