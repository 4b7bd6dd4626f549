"""A small step model and filtering guide, and faults that can be switched on one by one."""

from __future__ import annotations

from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from torch import Size, Tensor, nn

from pyro_seq.guides import FilteringGuide, Inference, StepContext
from pyro_seq.models import StepModel


class ToyStepModel(StepModel):
    """A latent walk z seen through a linear map."""

    class State(NamedTuple):
        z: Tensor

    def __init__(self, fault: str = "") -> None:
        super().__init__()
        self.fault = fault
        self.emission = nn.Linear(1, 2)
        self.spread = nn.Parameter(torch.zeros(1))

    def initial_state(self, batch_shape: Size) -> State:
        return self.State(self.spread.new_zeros(*batch_shape, 1))

    def step(self, state: State, x_t: Tensor | None, u_t: Tensor | None = None) -> State:
        z = pyro.sample("z", dist.Normal(state.z, self.spread.exp()).to_event(1))
        if self.fault == "model keeps":
            self.emission.last = z
        if self.fault == "in place":
            state.z.add_(1.0)
        pyro.sample("x", dist.Normal(self.emission(z), 1.0).to_event(1), obs=x_t)
        return self.State(z)


class ToyFilter(FilteringGuide):
    """A normal distribution around a linear map of the frame."""

    def __init__(self, model: ToyStepModel, fault: str = "") -> None:
        super().__init__(model)
        self.fault = fault
        self.network = nn.Linear(2, 1)
        if fault == "unused parameter":
            self.unused = nn.Linear(2, 2)
        if fault == "ascends":
            for parameter in (*model.parameters(), *self.parameters()):
                parameter.register_hook(torch.neg)

    def encode(self, x: Tensor, mask: Tensor | None, controls: Tensor | None) -> Tensor:
        return x.flip(1).cumsum(1).flip(1) if self.fault == "looks ahead" else x

    def frames(self, x: Tensor, *arguments: Any, **options: Any) -> Any:  # noqa: ANN401
        frames, memory = super().frames(x, *arguments, **options)
        if self.fault == "raw frames":
            frames = [f._replace(encoding=x[:, t]) for t, f in enumerate(frames)]
        return frames, memory

    def announce(self) -> None:
        if self.fault != "unannounced":
            super().announce()

    def infer(self, context: StepContext, state: Any) -> Inference:  # noqa: ANN401
        network = self._modules["network"] if self.fault == "unannounced" else self.network
        loc = network(context.frame.encoding)
        if self.fault == "infinite":
            loc = loc / 0.0
        if self.fault == "float32":
            loc = loc.float()
        if self.fault == "detached":
            loc = loc.detach()
        if self.fault == "stock only" and context.stock:
            loc = loc + 1.0
        if self.fault == "guide keeps":
            self.last = loc
        posterior = dist.Normal(loc, torch.full_like(loc, 0.5)).to_event(1)
        return Inference(lambda site: posterior)
