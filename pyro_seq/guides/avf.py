r"""Amortized variational filtering.

.. math:: \lambda_t \leftarrow f_\phi(\lambda_t, \nabla_{\lambda_t} F_t), \quad
    \text{K times, from the parameters of the prior } p(z_t \mid s_{t-1})

References:
    Marino, Cvitkovic, Yue (2018), A general method for amortizing variational filtering.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Size, Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from pyro_seq.engines.iterative import IterativeInference
from pyro_seq.guides.context import LocalEnergy, StepContext
from pyro_seq.guides.filtering import FilteringGuide, Inference
from pyro_seq.guides.local import STARTS, UNITS, LocalProblem
from pyro_seq.guides.prototype import flat, prototype
from pyro_seq.guides.sites import check_names
from pyro_seq.models.step_handlers import predicted
from pyro_seq.models.step_model import StepModel
from pyro_seq.nn.arguments import check_choice, check_positive
from pyro_seq.nn.mlp import encoder_and_size
from pyro_seq.nn.repeated import repeated
from pyro_seq.plugins import register

__all__ = ["AVF", "ENCODES"]

ENCODES = ("parameters", "gradients", "observation", "errors", "state")


@register("guides", "avf")
class AVF(FilteringGuide):
    r"""A network that improves q by the gradient of the step's free energy, K times.

    Each step of the sequence begins at the prior, evaluates the free energy at one draw, and lets
    the network of :class:`~pyro_seq.engines.IterativeInference` make new parameters of its
    gradient. Only the gradient with respect to q's parameters is computed there.

    With `stop_gradients`, as in the paper, this is variational EM: the network learns from the
    free energies after each iteration, with the model's state as a constant; the model learns
    from draws that are constants for later steps. Without, model and network learn together from
    the free energy after the last iteration, through time; the gradients that the network reads
    are constants in either case.

    Where a step has several latents, q of a later one is moved from the prior that it has given
    the draws of the earlier ones.

    Args:
        model: Any :class:`~pyro_seq.models.StepModel` with reparametrised latents.
        iterations: K.
        hidden: Units of each layer of the network, all alike, or of the only one. The paper has
            1024 in each of two.
        update: `"highway"` or `"sgd"`.
        encodes: What the network reads, of :data:`ENCODES`: the parameters and their gradients,
            the frame, the precision-weighted errors of frame and latents
            (:math:`e = (x - \mu_x) / \sigma_x^2` and :math:`(z - \mu_p) / \sigma_p^2`, read as
            :math:`\mathrm{sign}(e) \log(1 + |e|)`), the model's state.
        normalise: How parameters and gradients are read: `"log"`, `"layer"` (the authors') or
            `"none"`, see :class:`~pyro_seq.engines.IterativeInference`.
        start: `"prior"` or `"zeros"` (unconstrained parameters).
        units: What is updated: `"start"`, moves from the start, locations in units of its scale;
            or `"own"`, the parameters themselves, as in the paper.
        samples: Draws per gradient.
        stop_gradients: See above.
        encoder: Module from frames `(batch, time, *frame)` to `(batch, time, features)` before
            "observation"; by default the frame itself.
        features: Size of its output, when there is one.
        gradient_scale: Factor on the gradient in the learnt SGD step. The authors' code has 1 /
            batch size there.

    Raises:
        TypeError: When the model is no step model.
        ValueError: For an unknown name, or a latent without a reparametrised prior.

    Example:
        >>> from pyro_seq.models import SRNN
        >>> model = SRNN(88, latent=4, hidden=8, prior=[8], decoder=[8])
        >>> guide = AVF(model, iterations=2, hidden=[16])
        >>> guide(torch.ones(2, 3, 88))["z_3"].shape
        torch.Size([2, 4])
    """

    def __init__(
        self,
        model: StepModel,
        iterations: int = 1,
        *,
        hidden: int | Sequence[int] = (64, 64),
        update: str = "highway",
        encodes: Sequence[str] = ("parameters", "gradients"),
        normalise: str = "log",
        start: str = "prior",
        units: str = "start",
        samples: int = 1,
        stop_gradients: bool = True,
        encoder: nn.Module | None = None,
        features: int | None = None,
        gradient_scale: float = 1.0,
    ) -> None:
        super().__init__(model)
        check_positive(iterations=iterations, samples=samples)
        check_choice("start", start, STARTS)
        check_choice("units", units, UNITS)
        unknown = [name for name in encodes if name not in ENCODES]
        if unknown or not encodes:
            raise ValueError(f"encodes must be some of {', '.join(ENCODES)}; got {encodes}")
        known = prototype(model)
        self.frame_shape = known.frame_shape
        self.iterations, self.samples = iterations, samples
        self.start, self.units = start, units
        self.reads_priors = self._several = len(known.sizes) > 1
        self.stops_gradients = stop_gradients
        self.encodes = tuple(encodes)
        frame, values = known.frame_shape.numel(), sum(known.values.values())
        self.encoder, observation = encoder_and_size(encoder, features, frame)
        others = {
            "observation": observation,
            "errors": frame + values,
            "state": known.state + known.controls,
        }
        self.network = IterativeInference(
            {f"{s}.{p}": n for s, sizes in known.sizes.items() for p, n in sizes.items()},
            hidden=[hidden] if isinstance(hidden, int) else hidden,
            update=update,
            reads=[name for name in encodes if name not in others],
            others={name: others[name] for name in encodes if name in others},
            normalise=normalise,
            gradient_scale=gradient_scale,
        )
        self._online: tuple[Optimizer, LRScheduler | None] | None = None

    def step_online(
        self, optimizer: Optimizer | None, schedule: LRScheduler | None = None
    ) -> None:
        """Steps the network at every time step, inside the pass, as the authors' code does.

        In training mode the network then learns from each step's free energies at once, with an
        optimizer and a schedule of its own, and its parameters get no gradient from the bound.
        The optimizer's state is part of this module's `state_dict`.

        Args:
            optimizer: Over the parameters of this guide; None goes back to one step per batch.
            schedule: Advanced after each of its steps.

        Raises:
            ValueError: When the guide does not stop gradients.
        """
        if optimizer is not None and not self.stops_gradients:
            raise ValueError("step_online needs a guide with stop_gradients=True")
        self._online = None if optimizer is None else (optimizer, schedule)

    def encode(self, x: Tensor, mask: Tensor | None, controls: Tensor | None) -> Tensor | None:
        """What all frames add to the network's first layer, if it reads them."""
        if "observation" not in self.encodes:
            return None
        return self.network.share("observation", self.encoder(x))

    def infer(self, context: StepContext, state: Any) -> Inference:  # noqa: ANN401
        """K iterations of the network."""
        online = self._online is not None and self.training and torch.is_grad_enabled()
        with repeated(None) if online else nullcontext():  # online, its weights change in the loop
            return self._iterate(context, online)

    def _iterate(self, context: StepContext, online: bool) -> Inference:
        learns = torch.is_grad_enabled()
        stops = self.stops_gradients
        problem = LocalProblem(context, self.start, self.samples, not stops, self.units)
        slope = problem.begin()
        check_names(self.network.sizes, problem.beginning)
        now = problem.beginning
        # The last iterate's gradient comes from the bound itself where the emission is scored
        # outside the loop, or with the loop's own gradients; else it is taken here.
        apart = not context.stock and (self._several or not context.frame.deferred)
        last = learns and stops and (online or apart)
        gains: list[Tensor] = []
        alike = self._constant(context)
        for number in range(self.iterations):
            before = {n: v.detach() for n, v in now.items()} if stops else now
            shares = alike
            if "errors" in self.encodes:
                share = self.network.share("errors", errors(context, slope.energy))
                shares = [*alike, share]
            gradients = problem.gradients_in_moves(slope.gradients)
            now = problem.moved(self.network(before, gradients, shares, problem.moves(before)))
            if number + 1 < self.iterations or last:
                slope = problem.slope(now)
                gains += [(slope.gradients[n] * v).sum(-1) for n, v in now.items()]
        objective = (
            torch.stack(gains).sum(0) / self.iterations if learns and stops and gains else None
        )
        if last:
            now = {name: value.detach() for name, value in now.items()}
        elif learns and stops and not context.stock:
            now = {
                name: _scale_gradient(value, 1 / self.iterations) for name, value in now.items()
            }
        if online:
            assert objective is not None
            self._learn(objective)
            objective = None
        constant = stops and not context.stock
        return Inference(problem.chooser(now, constant), objective=objective)

    def _constant(self, context: StepContext) -> list[Tensor]:
        """Shares of what the network reads alike in every iteration."""
        shares = []
        if "observation" in self.encodes:
            shares.append(context.frame.encoding)
        if "state" in self.encodes:
            state = flat(context.visible, context.batch_shape)
            if self.stops_gradients:
                state = state.detach()
            if context.frame.control is not None:
                state = torch.cat([state, context.frame.control], -1)
            shares.append(self.network.share("state", state))
        return shares

    def _learn(self, objective: Tensor) -> None:
        """One step of the network's own optimizer."""
        assert self._online is not None
        optimizer, schedule = self._online
        optimizer.zero_grad(set_to_none=True)
        objective.mean().backward(inputs=[p for p in self.parameters() if p.requires_grad])
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if schedule is not None:
            schedule.step()

    def get_extra_state(self) -> dict[str, Any]:
        """State of the network's own optimizer and schedule."""
        if self._online is None:
            return {}
        optimizer, schedule = self._online
        state = {"optimizer": optimizer.state_dict()}
        return state if schedule is None else {**state, "schedule": schedule.state_dict()}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restores what :meth:`get_extra_state` returned, if there is an optimizer to have it."""
        if self._online is None or not state:
            return
        optimizer, schedule = self._online
        optimizer.load_state_dict(state["optimizer"])
        if schedule is not None:
            schedule.load_state_dict(state["schedule"])


def errors(context: StepContext, energy: LocalEnergy) -> Tensor:
    """Precision-weighted errors of frame and latents, `(*batch, size)`, without gradient."""
    batch, seen = context.batch_shape, context.frame.seen
    frame = _error(context.frame.x, energy.emission, batch)
    if seen is not None:
        frame = torch.where(seen.unsqueeze(-1), frame, torch.zeros_like(frame))
    latents = [_error(site.value, site.prior, batch) for site in energy.sites]
    return torch.cat([frame, *latents], -1).detach()


def _error(value: Tensor, distribution: Any, batch: Size) -> Tensor:  # noqa: ANN401
    """The error e over its variance as sign(e) log(1 + |e|), `(*batch, size)`."""
    try:
        variance = distribution.variance
    except NotImplementedError:
        raise ValueError(
            f"encodes 'errors' needs the variance of each site; {type(distribution).__name__} "
            "has none. Leave 'errors' out"
        ) from None
    error = (value - predicted(distribution)) / variance.clamp(min=1e-6)
    error = (error.sign() * error.abs().log1p()).nan_to_num()
    return error.reshape(*batch, -1)


def _scale_gradient(value: Tensor, factor: float) -> Tensor:
    """The value, with its gradient multiplied by a factor."""
    return value if factor == 1.0 else torch.lerp(value.detach(), value, factor)
