"""A linear-Gaussian pair whose evidence is known, and a small KVAE."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule
from torch import Tensor

from pyro_seq.data import Batch
from pyro_seq.guides import KalmanGuide
from pyro_seq.models import KVAE

STEPS, OBS, LATENT, NOISE = 4, 3, 2, 0.7


def _hide(x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    seen = torch.ones(x.shape[:2], dtype=torch.bool) if mask is None else mask
    return torch.where(seen.unsqueeze(-1), x, 0.0), seen


class FactorModel(PyroModule):
    r"""z ~ N(0, I); x_t ~ N(W_t z, NOISE^2 I): one z ties all steps of a sequence together."""

    def __init__(self) -> None:
        super().__init__("factor_model")
        generator = torch.Generator().manual_seed(3)
        weight = torch.randn(STEPS, OBS, LATENT, generator=generator, dtype=torch.float64)
        self.weight = torch.nn.Parameter(weight)

    def forward(
        self, x: Tensor, mask: Tensor | None = None, controls: Tensor | None = None
    ) -> None:
        x, seen = _hide(x, mask)
        with pyro.plate("sequences", x.shape[0], dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(LATENT), 1.0).to_event(1))
            loc = torch.einsum("toz,bz->bto", self.weight, z)
            step = dist.Normal(loc, NOISE).to_event(1).mask(seen)
            pyro.sample("x", step.to_event(1), obs=x)

    def posterior(self, x: Tensor, mask: Tensor | None) -> dist.MultivariateNormal:
        """p(z | x), from the normal equations of the observed rows."""
        x, seen = _hide(x, mask)
        rows = self.weight * seen[:, :, None, None]
        precision = torch.eye(LATENT, dtype=x.dtype) + torch.einsum(
            "btoz,btow->bzw", rows, rows
        ) / (NOISE**2)
        shift = torch.einsum("btoz,bto->bz", rows, x) / NOISE**2
        loc = torch.linalg.solve(precision, shift)
        return dist.MultivariateNormal(loc, precision_matrix=precision)

    def log_evidence(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """log p(x) of the observed rows, from their dense joint covariance, row by row."""
        x, seen = _hide(x, mask)
        values = []
        for one, shown in zip(x, seen, strict=True):
            weight = self.weight[shown].flatten(0, 1)
            cov = weight @ weight.mT + NOISE**2 * torch.eye(len(weight), dtype=x.dtype)
            flat = one[shown].flatten()
            half = 0.5 * (flat @ torch.linalg.solve(cov, flat) + torch.logdet(cov))
            values.append(-half - 0.5 * len(flat) * math.log(2 * math.pi))
        return torch.stack(values).detach()


class FactorGuide(PyroModule):
    """The exact posterior, shifted and widened."""

    def __init__(self, model: FactorModel, shift: float = 0.0, widen: float = 1.0) -> None:
        super().__init__("factor_guide")
        self._model, self.shift, self.widen = (model,), shift, widen

    def forward(
        self, x: Tensor, mask: Tensor | None = None, controls: Tensor | None = None
    ) -> dict[str, Tensor]:
        exact = self._model[0].posterior(x, mask)
        moved = dist.MultivariateNormal(
            exact.loc + self.shift, scale_tril=self.widen * exact.scale_tril
        )
        with pyro.plate("sequences", x.shape[0], dim=-1):
            return {"z": pyro.sample("z", moved)}


def factor_batch(sequences: int = 7, masked: bool = True) -> Batch:
    generator = torch.Generator().manual_seed(5)
    x = 2.0 * torch.randn(sequences, STEPS, OBS, generator=generator, dtype=torch.float64)
    mask = torch.rand(sequences, STEPS, generator=generator) > 0.4
    mask[0], mask[1] = True, False
    return Batch(x, mask) if masked else Batch(x)


def kvae_pair(weights: str = "mlp", seed: int = 0, **options: object) -> tuple[KVAE, KalmanGuide]:
    torch.manual_seed(seed)
    model = KVAE(
        (1, 4, 4), decoder="mlp", decoder_options={"hidden": (8,)}, weights=weights, **options
    )
    guide = KalmanGuide(model, "mlp", {"hidden": (8,)})
    with torch.no_grad():  # frames that depend on the codes, and codes on the frames
        for parameter in model.decoder.parameters():
            parameter.add_(torch.randn_like(parameter))
        guide.encoder.skip.weight.normal_(0.0, 0.5)
    return model, guide


def kvae_batch(sequences: int = 5, time: int = 8, seed: int = 1) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    x = (torch.rand(sequences, time, 1, 4, 4, generator=generator) > 0.6).float()
    mask = torch.rand(sequences, time, generator=generator) > 0.4
    mask[:, 0] = True
    return Batch(x, mask)
