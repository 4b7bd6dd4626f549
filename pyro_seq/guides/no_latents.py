r"""The guide of a model that has no latent variables.

.. math:: q(\emptyset \mid x) = 1
"""

from __future__ import annotations

from pyro.nn import PyroModule
from torch import Tensor

from pyro_seq.nn.naming import unique_name

__all__ = ["NoLatents"]


class NoLatents(PyroModule):
    """A guide without a site: stochastic variational inference is then maximum likelihood.

    Example:
        >>> import torch
        >>> NoLatents()(torch.zeros(2, 3, 4))
        {}
    """

    def __init__(self) -> None:
        super().__init__(unique_name("nolatents"))

    def forward(
        self, x: Tensor, mask: Tensor | None = None, controls: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Draws nothing; the arguments are those of every guide."""
        return {}
