"""Effect handlers that change the objective of a model and guide pair."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType

import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import Message

from pyro_seq.models.auxiliary import AUXILIARY

__all__ = ["site_scale", "without_auxiliary"]


class site_scale(Messenger):  # noqa: N801 - named like Pyro's own handlers
    r"""Multiplies the log density of named sample sites: :math:`\log p(s) \to w_s \log p(s)`.

    Wrapped around an ELBO, a weight on a site of both model and guide scales its whole
    divergence term, and a weight on an observed site scales its likelihood. The weighted sum is
    an objective for training; it is not an ELBO and must not be reported as one.

    Args:
        weights: positive weight per site name; a float or a 0-dimensional tensor.

    Raises:
        ValueError: a weight is not positive; or, when the context is left, a named site was
            never sampled inside it.

    Example:
        >>> import pyro, torch
        >>> import pyro.distributions as dist
        >>> def model():
        ...     return pyro.sample("x", dist.Normal(0.0, 1.0), obs=torch.zeros(()))
        >>> with site_scale({"x": 0.5}):
        ...     trace = pyro.poutine.trace(model).get_trace()
        >>> full = dist.Normal(0.0, 1.0).log_prob(torch.zeros(()))
        >>> torch.equal(trace.log_prob_sum(), 0.5 * full)
        True
    """

    def __init__(self, weights: Mapping[str, float | torch.Tensor]) -> None:
        super().__init__()
        for name, weight in weights.items():
            if not isinstance(weight, torch.Tensor) and not weight > 0:
                raise ValueError(
                    f"site_scale: the weight of site '{name}' must be positive, got {weight}; "
                    "to leave a site out of the objective use pyro.poutine.mask"
                )
        self.weights = dict(weights)
        self._seen: set[str] = set()

    def __enter__(self) -> site_scale:
        self._seen = set()
        super().__enter__()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        super().__exit__(exc_type, exc_value, traceback)
        missing = set(self.weights) - self._seen
        if exc_type is None and missing:
            raise ValueError(
                f"site_scale: no sample site named {sorted(missing)} was met; "
                "check the names in site_weights against the sites of the model"
            )

    def _pyro_sample(self, msg: Message) -> None:
        name = msg["name"]
        if name in self.weights:
            self._seen.add(name)
            msg["scale"] = self.weights[name] * msg["scale"]


class without_auxiliary(Messenger):  # noqa: N801 - named like Pyro's own handlers
    r"""Takes the sites ``aux/...`` out of model and guide: what is left is the bound.

    Wrapped around an ELBO. Without gradients those of
    :func:`~pyro_seq.models.auxiliary` count for nothing anyway.

    Example:
        >>> import pyro
        >>> from pyro_seq.models import auxiliary
        >>> def model():
        ...     auxiliary("task", torch.tensor(3.0))
        >>> with without_auxiliary():
        ...     trace = pyro.poutine.trace(model).get_trace()
        >>> float(trace.log_prob_sum())
        0.0
    """

    def _pyro_sample(self, msg: Message) -> None:
        if str(msg["name"]).startswith(AUXILIARY):
            msg["mask"] = False
