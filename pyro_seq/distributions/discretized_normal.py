r"""The normal distribution of data that come in steps: 16 bit samples, 8 bit pixels."""

from __future__ import annotations

from typing import Literal

import torch
from pyro.distributions import Normal, TorchDistribution, constraints
from torch import Tensor
from torch.distributions.utils import broadcast_all

from pyro_seq.ops.normal import log_normal_interval

__all__ = ["DiscretizedNormal", "window_log_density"]

Window = Literal["centred", "right"]


class DiscretizedNormal(TorchDistribution):
    r"""Normal distribution integrated over the window that each recorded number stands for.

    .. math::
        P(x) = \Phi\!\left(\frac{x + w/2 - \mu}{\sigma}\right)
        - \Phi\!\left(\frac{x - w/2 - \mu}{\sigma}\right)

    A recorded x is a number rounded to a multiple of w, the `width`. Its probability, at most 1,
    bounds the log-likelihood from above, which a density does not: a model cannot gain without end
    by shrinking :math:`\sigma`. Log probabilities and their gradients keep their precision in
    float32, out to 40 :math:`\sigma` and beyond, and for windows that are tiny beside
    :math:`\sigma`, where :math:`\log P(x) = \log N(x; \mu, \sigma^2) + \log w`. Free energies in
    the two units differ by :math:`\log w` per number; see :func:`window_log_density`.

    Sampling rounds a draw of the normal to a multiple of w (to the nearest one below it for
    `window="right"`), which gives every multiple its probability; it has no gradient. Values need
    not lie on that grid: the grid of standardised data is shifted.

    Args:
        loc: :math:`\mu`.
        scale: :math:`\sigma`, positive.
        width: w, positive: the size of a step in the units of the data, such as 1/256 for pixels
            of 8 bits between 0 and 1.
        window: `"centred"`, numbers were rounded, or `"right"`, numbers were cut off and x stands
            for :math:`[x, x + w]`.
        floor: When given, the log probability is :math:`\log(P(x) + \text{floor})`, computed as
            the difference of two distribution functions. With 1e-6 this is the formula of the
            release that came with Marino et al. It is **improper**, as the sum over all values is
            greater than 1 by floor times their number (up to 0.064 nats per number for 16 bits),
            costs at most 13.8 nats per number however wrong the prediction, and has no gradient
            there. For comparison with published numbers only.
        validate_args: Whether to check the arguments.

    Raises:
        ValueError: If `window` is unknown, `floor` is negative, or another argument is out of its
            range.

    Example:
        >>> pixels = DiscretizedNormal(torch.tensor([0.5, 0.5]), 0.01, width=1 / 256)
        >>> pixels.log_prob(torch.tensor([0.5, 0.9]))
        tensor([  -1.8653, -796.8101])

    References:
        J. Marino, M. Cvitkovic, Y. Yue (2018). A General Method for Amortizing Variational
        Filtering.
    """

    arg_constraints = {
        "loc": constraints.real,
        "scale": constraints.positive,
        "width": constraints.positive,
    }
    support = constraints.real
    has_rsample = False

    def __init__(
        self,
        loc: Tensor | float,
        scale: Tensor | float,
        width: Tensor | float,
        *,
        window: Window = "centred",
        floor: float | None = None,
        validate_args: bool | None = None,
    ) -> None:
        if window not in ("centred", "right"):
            raise ValueError(f"window: expected 'centred' or 'right', got {window!r}.")
        if floor is not None and floor < 0:
            raise ValueError(f"floor: expected a number that is not negative, got {floor}.")
        self.loc, self.scale, self.width = broadcast_all(_single(loc), _single(scale), width)
        self.window = window
        self.floor = floor
        super().__init__(self.loc.shape, validate_args=validate_args)

    def expand(
        self, batch_shape: torch.Size, _instance: DiscretizedNormal | None = None
    ) -> DiscretizedNormal:
        """Return the distribution with a larger batch.

        Args:
            batch_shape: The new batch shape.

        Returns:
            The same distribution for every element.
        """
        new = self._get_checked_instance(DiscretizedNormal, _instance)
        for name in self.arg_constraints:
            setattr(new, name, getattr(self, name).expand(batch_shape))
        new.window, new.floor = self.window, self.floor
        super(DiscretizedNormal, new).__init__(torch.Size(batch_shape), validate_args=False)
        new._validate_args = self._validate_args
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log probability of the window of each value.

        Args:
            value: Recorded numbers, of a shape that broadcasts with the batch.

        Returns:
            The log probabilities, in nats.
        """
        if self._validate_args:
            self._validate_sample(value)
        middle = value - self.loc
        if self.window == "right":
            middle = middle + 0.5 * self.width
        if self.floor is None:
            return log_normal_interval(middle / self.scale, self.width / self.scale)
        unit = Normal(torch.zeros_like(self.loc), self.scale, validate_args=False)
        half = 0.5 * self.width
        return torch.log(unit.cdf(middle + half) - unit.cdf(middle - half) + self.floor)

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """Draw normal numbers and round them as the data were.

        Args:
            sample_shape: The shape of the sample dimensions.

        Returns:
            Multiples of the width, `(*sample_shape, *batch)`.
        """
        shape = self._extended_shape(sample_shape)
        with torch.no_grad():
            draws = torch.normal(self.loc.expand(shape), self.scale.expand(shape)) / self.width
            steps = draws.round() if self.window == "centred" else draws.floor()
            return steps * self.width

    @property
    def mean(self) -> Tensor:
        r"""The mean, :math:`\mu`, or :math:`\mu - w/2` for `window="right"`.

        That of the rounded numbers differs by less than :math:`w\,e^{-2 (\pi \sigma / w)^2}`.
        """
        return self.loc if self.window == "centred" else self.loc - 0.5 * self.width

    @property
    def variance(self) -> Tensor:
        r"""The variance with Sheppard's correction, :math:`\sigma^2 + w^2 / 12`.

        Close to that of the rounded numbers unless :math:`\sigma` is less than half a window.
        """
        return self.scale**2 + self.width**2 / 12


def _single(value: Tensor | float) -> Tensor | float:
    """Half precision, which the networks have under autocast, cannot hold a width."""
    half = isinstance(value, Tensor) and value.dtype in (torch.bfloat16, torch.float16)
    return value.float() if half else value  # type: ignore[union-attr]


def window_log_density(log_prob: Tensor, width: Tensor | float, numbers: int = 1) -> Tensor:
    r"""Turn the log probability of windows into a log density.

    .. math:: \log p(x) = \log P(x) - n \log w

    For values and for bounds alike: the bound on the log probability of a frame of 200 numbers
    becomes the one on its log density by `numbers=200`.

    Args:
        log_prob: Log probability of the windows of n numbers together, in nats.
        width: w, the width of a window.
        numbers: n.

    Returns:
        The log density of the n numbers, in nats, of the shape of `log_prob`.

    Example:
        >>> normal = DiscretizedNormal(torch.zeros(1), 1.0, width=1e-3)
        >>> window_log_density(normal.log_prob(torch.zeros(1)), 1e-3)
        tensor([-0.9189])
    """
    return log_prob - numbers * torch.log(torch.as_tensor(width, dtype=log_prob.dtype))
