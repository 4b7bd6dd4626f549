r"""The inner problem of variational filtering: one step's posterior as numbers to be optimised.

.. math:: \lambda^* = \arg\min_\lambda F_t(\lambda)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_seq.distributions.parameters import (
    free_parameters,
    is_represented,
    is_unbounded,
    parameter_names,
    with_parameters,
)
from pyro_seq.guides.context import LocalEnergy, StepContext
from pyro_seq.guides.sites import LatentSite, site_parameters

__all__ = ["STARTS", "UNITS", "LocalProblem", "Slope"]

LIMIT = 7.5
STARTS = ("prior", "zeros")
UNITS = ("start", "own")

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
    r"""The free energy of one step as a function of the free parameters of all its posteriors.

    Parameters are one dictionary for all sites, with the names `"site.parameter"`. If they start
    at the prior, a site that comes after others in the step has

    .. math:: q(z_i \mid z_{<i}) \text{ with the parameters }
        \lambda_{p}(z_{<i}) + \lambda_i - \lambda_i^{(0)},

    the prior's given the draws :math:`z_{<i}`, moved as far as the start was moved; where nothing
    was moved, q is the prior whatever was drawn before.

    An optimiser may see the parameters as moves from the start, locations in units of the start's
    scale,

    .. math:: \delta = (\mu - \mu^{(0)}) / \sigma^{(0)}, \quad
        \rho = \log \sigma - \log \sigma^{(0)}, \qquad
        KL(q \| p) = \tfrac12 (\delta^2 + e^{2 \rho} - 1) - \rho \text{ for a normal prior,}

    so that a narrow prior asks no more of it than a wide one: :meth:`moves`, :meth:`moved`.

    Args:
        context: The step.
        start: `"prior"` (its parameters) or `"zeros"`.
        samples: Draws over which a gradient is averaged.
        attached: Whether the start keeps its gradient through the model's state.
        units: `"start"`, or `"own"` where moves are the parameters themselves.

    Attributes:
        beginning: The start, known after :meth:`begin`.
    """

    def __init__(
        self,
        context: StepContext,
        start: str = "prior",
        samples: int = 1,
        attached: bool = False,
        units: str = "start",
    ) -> None:
        self.context = context
        self.start = start
        self.samples = samples
        self.attached = attached
        self.units = units
        self.beginning: Parameters = {}
        self._bounds: dict[str, tuple[Tensor, Tensor]] = {}
        self._at_prior = start == "prior"

    def begin(self) -> Slope:
        """Slope at the start."""
        leaves: Parameters = {}
        met: set[str] = set()

        def choose(site: LatentSite) -> Any:  # noqa: ANN401
            if site.name not in met:
                met.add(site.name)
                leaves.update({name: _leaf(value) for name, value in self._meet(site).items()})
            return self._chosen(site, leaves)

        # what the start of a later site owes to an earlier one is in the same graph
        return self._slope(choose, leaves, keep=self.attached, at_start=True)

    def slope(self, parameters: Parameters) -> Slope:
        """Slope at these parameters, of which only the values are read."""
        leaves = {name: _leaf(value) for name, value in parameters.items()}
        return self._slope(self.chooser(leaves), leaves)

    def chooser(
        self, parameters: Parameters, constant: bool = False
    ) -> Callable[[LatentSite], Any]:
        """From a site to its posterior with these parameters.

        Args:
            parameters: Of all sites.
            constant: Whether q keeps no gradient through the prior that it is moved from.
        """
        return lambda site: self._chosen(site, parameters, constant)

    def bound(self, parameters: Parameters) -> Parameters:
        """The parameters, logarithms of scales and the like within bounds around the start."""
        return {
            name: value.clamp(*self._bounds[name]) if name in self._bounds else value
            for name, value in parameters.items()
        }

    def gradients_in_moves(self, gradients: Parameters) -> Parameters:
        """Gradients in the moves, of those in the parameters."""
        if self.units == "own":
            return gradients
        return {name: value * self._unit(name) for name, value in gradients.items()}

    def moves(self, parameters: Parameters) -> Parameters:
        """Parameters as moves from the start."""
        if self.units == "own":
            return parameters
        return {
            name: (value - self._start(name)) / self._unit(name)
            for name, value in parameters.items()
        }

    def moved(self, moves: Parameters) -> Parameters:
        """The parameters, within bounds, that the moves lead to."""
        if self.units == "own":
            return self.bound(moves)
        return self.bound(
            {name: self._start(name) + self._unit(name) * value for name, value in moves.items()}
        )

    def _start(self, name: str) -> Tensor:
        value = self.beginning[name]
        return value if self.attached else value.detach()

    def _unit(self, name: str) -> Tensor | float:
        """The start's scale for the location of a family that has both, else 1."""
        site, _, parameter = name.rpartition(".")
        scale = f"{site}.scale"
        return self._start(scale).exp() if parameter == "loc" and scale in self.beginning else 1.0

    def _meet(self, site: LatentSite) -> Parameters:
        """Where the parameters of a site begin."""
        beginning = {}
        for name, value in site_parameters(site).items():
            key = f"{site.name}.{name}"
            value = torch.zeros_like(value) if self.start == "zeros" else value
            beginning[key] = value
            if not is_unbounded(site.prior, name):
                value = value.detach()
                self._bounds[key] = value - LIMIT, value + LIMIT
        self.beginning |= beginning
        self._at_prior = self._at_prior and is_represented(site.prior)
        return beginning

    def _chosen(self, site: LatentSite, parameters: Parameters, constant: bool = False) -> Any:  # noqa: ANN401
        """The posterior of a site, of the family of its prior."""
        names = parameter_names(site.prior)
        own = {name: parameters[f"{site.name}.{name}"] for name in names}
        if site.earlier and self.start == "prior":
            base = free_parameters(site.prior)
            for name, value in own.items():
                moved = value - self._start(f"{site.name}.{name}")
                own[name] = moved + (base[name].detach() if constant else base[name])
        return with_parameters(site.prior, own)

    def _slope(
        self,
        choose: Callable[[LatentSite], Any],
        leaves: Parameters,
        keep: bool = False,
        at_start: bool = False,
    ) -> Slope:
        with torch.enable_grad():
            energies = [self.context.evaluate(choose, self.attached) for _ in range(self.samples)]
            # at the prior the divergence is zero, and so is its gradient
            least = at_start and self._at_prior
            parts = [-each.log_likelihood if least else each.total for each in energies]
            total = torch.stack([part.sum() for part in parts]).sum()
        if not leaves:
            raise ValueError("the step must sample at least one latent; got none")
        if total.requires_grad:
            slopes = torch.autograd.grad(
                total,
                [*leaves.values()],
                retain_graph=keep,
                allow_unused=True,
                materialize_grads=True,
            )
        else:  # the likelihood reads no latent
            slopes = tuple(torch.zeros_like(leaf) for leaf in leaves.values())
        gradients = [slope / self.samples if self.samples > 1 else slope for slope in slopes]
        return Slope(energies[-1], dict(zip(leaves, gradients, strict=True)))


def _leaf(value: Tensor) -> Tensor:
    return value.detach().requires_grad_()
