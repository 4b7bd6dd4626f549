"""Linear-Gaussian step models, whose evidence and local posteriors are known, and odd ones."""

from __future__ import annotations

from typing import NamedTuple

import pyro
import pyro.distributions as dist
import torch
from torch import Size, Tensor, nn

from pyro_seq.data import Batch
from pyro_seq.distributions import LinearGaussianSSM
from pyro_seq.guides.context import StepContext
from pyro_seq.guides.filtering import FilteringGuide, Inference
from pyro_seq.guides.sites import LatentSite
from pyro_seq.models.step_model import SplitStepModel, StepModel

LATENT, OBS = 2, 3


class State(NamedTuple):
    z: Tensor


class _Matrices(nn.Module):
    """A, B, C and the standard deviations; the columns of C are orthogonal, so that the exact
    local posterior has a diagonal covariance."""

    def __init__(self, controls: int, noise: float) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(7)
        randn = lambda *size: torch.randn(*size, generator=generator, dtype=torch.float64)  # noqa: E731
        self.A = nn.Parameter(0.5 * randn(LATENT, LATENT))
        self.B = nn.Parameter(randn(LATENT, controls))
        self.C = nn.Parameter(torch.linalg.qr(randn(OBS, LATENT))[0] * torch.tensor([1.5, 0.7]))
        self.start = nn.Parameter(randn(LATENT))
        self.q = nn.Parameter(torch.tensor([0.8, 1.2], dtype=torch.float64))
        self.r = nn.Parameter(torch.full((OBS,), noise, dtype=torch.float64))

    def ahead(self, z: Tensor, u_t: Tensor | None) -> Tensor:
        loc = z @ self.A.mT
        return loc if u_t is None else loc + u_t @ self.B.mT

    def exact(self, prior: Tensor, x_t: Tensor) -> dist.Distribution:
        """p(z_t | z_{t-1}, x_t), from the precisions; diagonal."""
        precision = self.q**-2 + (self.C.square() / self.r[:, None] ** 2).sum(0)
        shift = prior / self.q**2 + (x_t / self.r**2) @ self.C
        return dist.Normal(shift / precision, precision.rsqrt()).to_event(1)

    def evidence(self, batch: Batch) -> LinearGaussianSSM:
        """The marginal of the frames."""
        x, mask, controls = batch
        first = self.ahead(self.start, None if controls is None else controls[:, 0])
        offset = None if controls is None else controls @ self.B.mT
        cov = torch.diag(self.q**2)
        return LinearGaussianSSM(
            first,
            cov,
            self.A[None],
            cov[None],
            self.C[None],
            torch.diag(self.r**2)[None],
            offset,
            time=x.shape[1],
            mask=mask,
        )


class LinearStep(StepModel):
    """A linear-Gaussian model as a free-form step."""

    def __init__(self, controls: int = 0, noise: float = 0.6) -> None:
        super().__init__()
        self.controls = controls
        self.parts = _Matrices(controls, noise)

    def initial_state(self, batch_shape: Size) -> State:
        return State(self.parts.start.expand(*batch_shape, -1))

    def step(self, state: State, x_t: Tensor | None, u_t: Tensor | None = None) -> State:
        p = self.parts
        z = pyro.sample("z", dist.Normal(p.ahead(state.z, u_t), p.q).to_event(1))
        pyro.sample("x", dist.Normal(z @ p.C.mT, p.r).to_event(1), obs=x_t)
        return State(z)


class SplitLinearStep(SplitStepModel):
    """The same in parts."""

    reads_frames = False

    def __init__(self, controls: int = 0, noise: float = 0.6) -> None:
        super().__init__()
        self.controls = controls
        self.parts = _Matrices(controls, noise)

    def begin(self, batch_shape: Size) -> State:
        return State(self.parts.start.expand(*batch_shape, -1))

    def latents(self, state: State, u_t: Tensor | None) -> Tensor:
        p = self.parts
        return pyro.sample("z", dist.Normal(p.ahead(state.z, u_t), p.q).to_event(1))

    def emission(self, latents: Tensor) -> dist.Distribution:
        return dist.Normal(latents @ self.parts.C.mT, self.parts.r).to_event(1)

    def transition(
        self, state: State, latents: Tensor, embedding: None, u_t: Tensor | None
    ) -> State:
        return State(latents)


class ExactFilter(FilteringGuide):
    """The exact local posterior, with shift and stretch of one's choice."""

    def __init__(
        self, model: LinearStep | SplitLinearStep, shift: float = 0.0, stretch: float = 1.0
    ) -> None:
        super().__init__(model)
        self.shift = nn.Parameter(torch.full((1,), shift, dtype=torch.float64))
        self.stretch = nn.Parameter(torch.full((1,), stretch, dtype=torch.float64))

    def infer(self, context: StepContext, state: None) -> Inference:
        def choose(site: LatentSite) -> dist.Distribution:
            exact = self.model.parts.exact(site.prior.base_dist.loc, context.frame.x)
            moved = dist.Normal(exact.mean + self.shift, exact.stddev * self.stretch)
            return moved.to_event(1)

        return Inference(choose)


def linear_batch(
    model: LinearStep | SplitLinearStep, sequences: int = 6, time: int = 5, masked: bool = False
) -> Batch:
    """Sequences drawn from the model, ragged and with a gap if masked."""
    pyro.set_rng_seed(3)
    u = torch.randn(sequences, time, model.controls).double() if model.controls else None
    x = model.generate(sequences, time, controls=u).double()
    mask = None
    if masked:
        mask = torch.ones(sequences, time, dtype=torch.bool)
        mask[0, 1], mask[1, 3:], mask[2, 0] = False, False, False
        x = torch.where(mask[..., None], x, torch.nan)
    return Batch(x, mask, u)
