r"""The inner problem of variational filtering: one step's posterior as numbers to be optimised.

.. math:: \lambda^* = \arg\min_\lambda F_t(\lambda)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_seq.distributions.parameters import is_unbounded, with_parameters
from pyro_seq.guides.context import LocalEnergy, StepContext
from pyro_seq.guides.sites import LatentSite, site_parameters

__all__ = ["STARTS", "LocalProblem", "Slope"]

LIMIT = 7.5
STARTS = ("prior", "zeros")

Parameters = dict[str, Tensor]


class Slope(NamedTuple):
    """Free energy and gradient at some parameters.

    Attributes:
        energy: Of the last draw.
        gradients: Gradient of each element's free energy in its parameters, mean over draws.
    """

    energy: LocalEnergy
    gradients: Parameters


class LocalProblem:
    """The free energy of one step as a function of the free parameters of all its posteriors.

    Parameters are one dictionary for all sites, with the names `"site.parameter"`.

    Args:
        context: The step.
        start: `"prior"` (its parameters) or `"zeros"`.
        samples: Draws over which a gradient is averaged.
        attached: Whether the start keeps its gradient through the model's state.

    Attributes:
        beginning: The start, known after :meth:`begin`.
    """

    def __init__(
        self, context: StepContext, start: str = "prior", samples: int = 1, attached: bool = False
    ) -> None:
        self.context = context
        self.start = start
        self.samples = samples
        self.attached = attached
        self.beginning: Parameters = {}
        self._bounds: dict[str, tuple[Tensor, Tensor]] = {}

    def begin(self) -> Slope:
        """Slope at the start."""
        leaves: Parameters = {}

        def choose(site: LatentSite) -> Any:  # noqa: ANN401
            if f"{site.name}." not in {name[: len(site.name) + 1] for name in leaves}:
                self._meet(site)
                for name, value in self.beginning.items():
                    leaves.setdefault(name, _leaf(value))
            return chosen(site, leaves)

        # what the start of a later site owes to an earlier one is in the same graph
        return self._slope(choose, leaves, keep=self.attached)

    def slope(self, parameters: Parameters) -> Slope:
        """Slope at these parameters, of which only the values are read."""
        leaves = {name: _leaf(value) for name, value in parameters.items()}
        return self._slope(self.chooser(leaves), leaves)

    def chooser(self, parameters: Parameters) -> Callable[[LatentSite], Any]:
        """From a site to its posterior with these parameters."""
        return lambda site: chosen(site, parameters)

    def bound(self, parameters: Parameters) -> Parameters:
        """The parameters, logarithms of scales and the like within bounds around the start."""
        return {
            name: value.clamp(*self._bounds[name]) if name in self._bounds else value
            for name, value in parameters.items()
        }

    def _meet(self, site: LatentSite) -> None:
        for name, value in site_parameters(site).items():
            key = f"{site.name}.{name}"
            value = torch.zeros_like(value) if self.start == "zeros" else value
            self.beginning[key] = value
            if not is_unbounded(site.prior, name):
                value = value.detach()
                self._bounds[key] = value - LIMIT, value + LIMIT

    def _slope(
        self, choose: Callable[[LatentSite], Any], leaves: Parameters, keep: bool = False
    ) -> Slope:
        with torch.enable_grad():
            energies = [self.context.evaluate(choose, self.attached) for _ in range(self.samples)]
            if not leaves:
                raise ValueError("the step must sample at least one latent; got none")
            total = sum(energy.total.sum() for energy in energies)
            slopes = torch.autograd.grad(
                total,  # type: ignore[arg-type]
                [*leaves.values()],
                retain_graph=keep,
                allow_unused=True,
                materialize_grads=True,
            )
        gradients = [slope / self.samples if self.samples > 1 else slope for slope in slopes]
        return Slope(energies[-1], dict(zip(leaves, gradients, strict=True)))


def chosen(site: LatentSite, parameters: Parameters) -> Any:  # noqa: ANN401
    """The posterior of a site, of the family of its prior."""
    start = len(site.name) + 1
    own = {n[start:]: v for n, v in parameters.items() if n.startswith(f"{site.name}.")}
    return with_parameters(site.prior, own)


def _leaf(value: Tensor) -> Tensor:
    return value.detach().requires_grad_()
