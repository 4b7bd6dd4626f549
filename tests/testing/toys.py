"""A small pair that keeps every contract, and faults that can be switched on one by one."""

from __future__ import annotations

import itertools
import random

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.nn import PyroModule, PyroParam
from torch import Tensor, nn

_number = itertools.count()


def seen_frames(x: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return torch.ones(x.shape, dtype=torch.bool)
    return mask.unsqueeze(-1).expand(x.shape)


class ToyModel(PyroModule):
    """A latent random walk z seen through a linear map."""

    def __init__(self, frame: int = 2, fault: str = "") -> None:
        name = "toy_model" if fault == "fixed name" else f"toy_model_{next(_number)}"
        super().__init__(name)
        self.fault = fault
        self.emission = nn.Linear(1, frame)
        shape = () if fault == "scalar parameter" else (1,)
        self.scale = PyroParam(torch.full(shape, 0.5), constraint=constraints.positive)
        self.hidden = random.random() if fault == "hidden constant" else 0.0

    def forward(
        self, x: Tensor, mask: Tensor | None = None, controls: Tensor | None = None
    ) -> None:
        batch, time, _ = x.shape
        seen = seen_frames(x, mask)
        x = x * seen if self.fault == "product" else torch.where(seen, x, 0.0)
        if self.fault == "couples":
            x = x - x.mean(0)
        scored = torch.ones_like(seen) if self.fault == "scores missing" else seen
        if self.fault == "needs gradients":
            torch.autograd.grad(self.emission.weight.sum(), self.emission.weight)
        with pyro.plate("sequences", batch, dim=-1):
            zeros = torch.zeros(batch, time, 1, dtype=self.emission.weight.dtype)
            z = pyro.sample("z", dist.Normal(zeros, self.scale).to_event(2))
            loc = self.emission(z.cumsum(1)) + self.hidden
            if self.fault == "mask shifts" and mask is not None:
                loc = loc + 1.0
            if self.fault == "infinite":
                loc = loc / 0.0
            if self.fault == "float32":
                loc, x = loc.float(), x.float()
            likelihood = dist.Normal(loc, torch.ones_like(loc)).mask(scored)
            if self.fault == "no events":
                likelihood = likelihood.mask(False)
                with pyro.plate("time", time, dim=-3), pyro.plate("frame", x.shape[2], dim=-2):
                    pyro.sample("y", dist.Normal(0.0, 1.0), obs=torch.zeros(()))
            pyro.sample("x", likelihood.to_event(2), obs=None if self.fault == "unobserved" else x)


class ToyGuide(PyroModule):
    """A mean-field guide of the random walk's increments."""

    def __init__(self, model: ToyModel, fault: str = "") -> None:
        super().__init__("toy_guide" if fault == "fixed name" else f"toy_guide_{next(_number)}")
        self.fault = fault
        self.encoder = nn.Linear(model.emission.out_features, 1)
        shape = () if fault == "scalar parameter" else (1,)
        self.scale = PyroParam(torch.full(shape, 0.3), constraint=constraints.positive)
        if fault == "unused parameter":
            self.unused = nn.Linear(2, 2)
        self.calls = 0
        self.hidden = random.random() if fault == "hidden constant" else 0.0

    def forward(
        self, x: Tensor, mask: Tensor | None = None, controls: Tensor | None = None
    ) -> dict[str, Tensor] | Tensor:
        seen = seen_frames(x, mask)
        x = x * seen if self.fault == "product" else torch.where(seen, x, 0.0)
        if self.fault == "couples":
            x = x - x.mean(0)
        if self.fault == "hidden state":
            self.calls += 1
            x = x + self.calls
        loc = self.encoder(x) + self.hidden
        if self.fault == "detached":
            loc = loc.detach()
        with pyro.plate("sequences", x.shape[0], dim=-1):
            if self.fault == "wrong shape":
                loc = loc.expand(-1, -1, 3)
            z = pyro.sample("z", dist.Normal(loc, self.scale).to_event(2))
            if self.fault == "extra site":
                z_more = pyro.sample("more", dist.Normal(loc, 1.0).to_event(2))
                return {"z": z, "more": z_more}
        return z if self.fault == "returns a tensor" else {"z": z}
