r"""A frame whose pixels belong to groups, with the group of each pixel summed out.

.. math:: p(x) = \prod_i \sum_k m_{ik} \prod_c p(x_{ci} \mid z_{kci})

References:
    Prémont-Schwarz, Ilin, Hao, Rasmus, Boney, Valpola (2017), Recurrent ladder networks, eq. 4.
"""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Size, Tensor
from torch.distributions.utils import _sum_rightmost

__all__ = ["GroupMixture"]


class GroupMixture(TorchDistribution):
    r"""A mixture over groups at every pixel, whose channels have one group together.

    For frames of one channel it is ``MixtureSameFamily(Categorical(m), ...)`` at every pixel. In
    addition it keeps channels first, and says which group has which pixel given the frame:
    :meth:`responsibilities`.

    Args:
        log_m: Logarithm of the share of each group in each pixel, `(*batch, groups, 1, *space)`;
            shares add up to 1 over groups.
        components: Distribution of each value given its group, whose batch shape is
            `(*batch, groups, channels, *space)` and whose event shape is empty.
        frame_dims: Number of dimensions of a frame, `(channels, *space)`.

    Raises:
        ValueError: When the shapes do not fit.

    Example:
        >>> import pyro.distributions as dist
        >>> log_m = torch.randn(2, 3, 1, 4, 5).log_softmax(1)
        >>> mixture = GroupMixture(log_m, dist.Bernoulli(logits=torch.zeros(2, 3, 1, 4, 5)))
        >>> mixture.batch_shape, mixture.event_shape
        (torch.Size([2]), torch.Size([1, 4, 5]))
        >>> mixture.responsibilities(mixture.sample()).shape
        torch.Size([2, 3, 1, 4, 5])
    """

    arg_constraints = {}
    has_rsample = False

    def __init__(
        self,
        log_m: Tensor,
        components: Any,  # noqa: ANN401
        frame_dims: int = 3,
        validate_args: bool | None = None,
    ) -> None:
        shape = components.batch_shape
        batch = shape[: -frame_dims - 1]
        shares = (*shape[:-frame_dims], 1, *shape[len(shape) - frame_dims + 1 :])
        if len(shape) <= frame_dims or log_m.shape != shares or components.event_shape:
            raise ValueError(
                f"log_m must be (*batch, groups, 1, *space) = {tuple(shares)} for components "
                f"(*batch, groups, channels, *space) = {tuple(shape)} without an event; got shape "
                f"{tuple(log_m.shape)} and the event {tuple(components.event_shape)}"
            )
        self.log_m, self.components = log_m, components
        super().__init__(batch, shape[-frame_dims:], validate_args=validate_args)

    @constraints.dependent_property
    def support(self) -> Any:  # noqa: ANN401
        """That of the components, for all values of a frame."""
        return constraints.independent(self.components.support, len(self.event_shape))

    @property
    def m(self) -> Tensor:
        """The share of each group in each pixel, `(*batch, groups, 1, *space)`."""
        return self.log_m.exp()

    @property
    def mean(self) -> Tensor:
        r""":math:`\sum_k m_k z_k`, `(*batch, *frame)`."""
        return (self.m * self.components.mean).sum(self._group)

    @property
    def variance(self) -> Tensor:
        """Of each value, `(*batch, *frame)`."""
        second = self.components.variance + self.components.mean.square()
        return (self.m * second).sum(self._group) - self.mean.square()

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of frames `(*sample, *batch, *frame)`, nats."""
        if self._validate_args:
            self._validate_sample(value)
        return _sum_rightmost(self._joint(value).logsumexp(self._group), len(self.event_shape))

    def responsibilities(self, value: Tensor) -> Tensor:
        r"""The share of each group in each pixel given the frame, by Bayes' rule.

        .. math:: r_{ik} = m_{ik}\, p(x_i \mid z_{ik}) \,/\, p(x_i)

        Args:
            value: Frames, `(*sample, *batch, *frame)`.

        Returns:
            `(*sample, *batch, groups, 1, *space)`; they add up to 1 over groups.
        """
        return self._joint(value).softmax(self._group)

    @torch.no_grad()
    def sample(self, sample_shape: Size = Size()) -> Tensor:  # noqa: B008
        """Frames, `(*sample, *batch, *frame)`."""
        drawn = self.components.sample(sample_shape)
        shares = self.m.expand(*sample_shape, *self.m.shape).movedim(self._group, -1)
        group = torch.distributions.Categorical(shares, validate_args=False).sample()
        index = group.unsqueeze(self._group)
        index = index.expand(*drawn.shape[: self._group], 1, *self.event_shape)
        return drawn.gather(self._group, index).squeeze(self._group)

    def expand(self, batch_shape: Any, _instance: Any = None) -> GroupMixture:  # noqa: ANN401
        """The same for a larger batch."""
        new = self._get_checked_instance(GroupMixture, _instance)
        batch_shape = Size(batch_shape)
        new.log_m = self.log_m.expand(*batch_shape, *self.log_m.shape[self._group :])
        within = self.components.batch_shape[self._group :]
        new.components = self.components.expand(batch_shape + within)
        super(GroupMixture, new).__init__(batch_shape, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    @property
    def _group(self) -> int:
        """The dimension of the groups, counted from the last."""
        return -1 - len(self.event_shape)

    def _joint(self, value: Tensor) -> Tensor:
        """Log density of each pixel and group, `(*sample, *batch, groups, 1, *space)`."""
        each = self.components.log_prob(value.unsqueeze(self._group))
        return each.sum(self._group + 1, keepdim=True) + self.log_m
