"""From maps of the size of a picture to the distribution of its pixels."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
from torch import Tensor, nn

from pyro_seq.distributions import DiscretizedNormal
from pyro_seq.nn.arguments import check_choice

__all__ = ["PixelHead"]

MAPS = {"bernoulli": 1, "normal": 2, "window": 2}


class PixelHead(nn.Module):
    r"""Independent pixels between 0 and 1, whose mean is a logistic function of a map.

    .. math:: \mu = \mathrm{sigm}(m_1), \quad \log \sigma = \mathrm{clip}(m_2)

    Args:
        emission: `"bernoulli"`, `"normal"` or `"window"`.
        log_scales: Bounds of :math:`\log \sigma`.
        **options: Further arguments of :class:`~pyro_seq.distributions.DiscretizedNormal`
            when the emission is `"window"`, `width` first of all.

    Attributes:
        maps: Maps for each channel of the picture.

    Raises:
        ValueError: For an unknown emission, or options that it does not have.

    Example:
        >>> import torch
        >>> head = PixelHead("window", width=1 / 255)
        >>> head(torch.zeros(5, 2 * 3, 8, 8)).event_shape
        torch.Size([3, 8, 8])
    """

    def __init__(
        self,
        emission: str,
        log_scales: tuple[float, float] = (-5.0, 2.5),
        **options: Any,  # noqa: ANN401
    ) -> None:
        super().__init__()
        check_choice("emission", emission, MAPS)
        if ("width" in options) != (emission == "window"):
            raise ValueError(
                "the options of an emission must hold width when it is 'window', and only then; "
                f"got emission {emission!r} with {options}"
            )
        self.emission = emission
        self.frame_bounds = (0.0, 1.0) if emission == "bernoulli" else None
        self.log_scales = log_scales
        self.options = options
        self.maps = MAPS[emission]

    def forward(self, maps: Tensor) -> dist.Independent:
        """The distribution given maps `(*batch, maps * channels, height, width)`."""
        if self.emission == "bernoulli":
            return dist.Bernoulli(logits=maps, validate_args=False).to_event(3)
        middle, log_scale = maps.chunk(2, -3)
        loc, scale = middle.sigmoid(), log_scale.clamp(*self.log_scales).exp()
        if self.emission == "normal":
            return dist.Normal(loc, scale, validate_args=False).to_event(3)
        return DiscretizedNormal(loc, scale, validate_args=False, **self.options).to_event(3)
