r"""Variational filtering EM (Algorithm 1): inference by gradient descent, without a network.

.. math:: \lambda_t \leftarrow \lambda_t - \alpha_k\, \mathrm{Adam}(\nabla_{\lambda_t} F_t)

References:
    Marino, Cvitkovic, Yue (2018), A general method for amortizing variational filtering.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyro_seq.guides.context import StepContext
from pyro_seq.guides.filtering import FilteringGuide, Inference
from pyro_seq.guides.local import STARTS, UNITS, LocalProblem, Parameters
from pyro_seq.guides.prototype import prototype
from pyro_seq.models.step_model import StepModel
from pyro_seq.nn.arguments import check_choice, check_positive
from pyro_seq.plugins import register

__all__ = ["VariationalEM"]


@register("guides", "vfem")
class VariationalEM(FilteringGuide):
    r"""The posterior of each step by gradient descent on the step's free energy.

    Algorithm 1 of the paper: q begins at the prior and is optimised anew at every step of every
    sequence; the guide has no parameters. The model learns from draws that are constants for
    later steps. Where a step has several latents, q of a later one is moved from the prior that it
    has given the draws of the earlier ones.

    Args:
        model: Any :class:`~pyro_seq.models.StepModel` with reparametrised latents.
        iterations: Gradient steps.
        rate: Learning rate of the first; it falls linearly to a tenth of it.
        optimizer: `"adam"` or `"sgd"`, for each parameter by itself. Adam's steps are as long
            where a gradient is noise alone: with many latents that say little, descend with
            `"sgd"`, a rate below 1 in units of the start, and several draws per gradient.
        samples: Draws per gradient.
        start: `"prior"` or `"zeros"` (unconstrained parameters).
        units: What is descended on: `"start"`, moves from the start, locations in units of its
            scale; or `"own"`, the parameters themselves, as in the paper.

    Raises:
        TypeError: When the model is no step model.
        ValueError: For an unknown name, a number out of range, or a latent without a
            reparametrised prior.

    Example:
        >>> from pyro_seq.models import DMM
        >>> guide = VariationalEM(DMM(frame=3, latent=2), iterations=5)
        >>> guide(torch.ones(4, 2, 3))["z_2"].shape
        torch.Size([4, 2])
    """

    stops_gradients = True

    def __init__(
        self,
        model: StepModel,
        iterations: int = 20,
        *,
        rate: float = 0.1,
        optimizer: str = "adam",
        samples: int = 1,
        start: str = "prior",
        units: str = "start",
    ) -> None:
        super().__init__(model)
        known = prototype(model)
        self.frame_shape, self.reads_priors = known.frame_shape, len(known.sizes) > 1
        check_choice("optimizer", optimizer, ("adam", "sgd"))
        check_choice("start", start, STARTS)
        check_choice("units", units, UNITS)
        check_positive(iterations=iterations, samples=samples)
        if not rate > 0:
            raise ValueError(f"rate must be positive; got {rate}")
        self.iterations, self.rate, self.optimizer = iterations, rate, optimizer
        self.samples, self.start, self.units = samples, start, units

    def infer(self, context: StepContext, state: Any) -> Inference:  # noqa: ANN401
        """Gradient descent from the prior."""
        problem = LocalProblem(context, self.start, self.samples, units=self.units)
        slope = problem.begin()
        now = {name: value.detach() for name, value in problem.beginning.items()}
        moments = {name: (torch.zeros_like(v), torch.zeros_like(v)) for name, v in now.items()}
        for number in range(self.iterations):
            if number:
                slope = problem.slope(now)
            rate = self.rate * (1 - 0.9 * number / max(self.iterations - 1, 1))
            slopes = problem.gradients_in_moves(slope.gradients)
            moves = self._descend(problem.moves(now), slopes, moments, rate, number + 1)
            now = problem.moved(moves)
        return Inference(problem.chooser(now, constant=not context.stock))

    def _descend(
        self,
        now: Parameters,
        gradients: Parameters,
        moments: dict[str, tuple[Tensor, Tensor]],
        rate: float,
        number: int,
    ) -> Parameters:
        """The parameters after one step; Adam's moments are replaced."""
        if self.optimizer == "sgd":
            return {name: value - rate * gradients[name] for name, value in now.items()}
        after = {}
        for name, value in now.items():
            mean, square = moments[name]
            mean = torch.lerp(gradients[name], mean, 0.9)
            square = torch.lerp(gradients[name].square(), square, 0.99)
            moments[name] = mean, square
            step = (mean / (1 - 0.9**number)) / ((square / (1 - 0.99**number)).sqrt() + 1e-8)
            after[name] = value - rate * step
        return after
