"""What a guide must know of a model before it can be built."""

from __future__ import annotations

from typing import Any, NamedTuple

import pyro
import torch
from torch import Size, Tensor

from pyro_seq.guides.sites import InferSites, site_parameters
from pyro_seq.models.step_handlers import explaining, observe
from pyro_seq.models.step_model import StepModel
from pyro_seq.ops.trees import leaves

__all__ = ["Prototype", "flat", "prototype"]

BATCH = 7  # seldom the size of a latent, which would hide that .to_event is missing


class Prototype(NamedTuple):
    """The latents and the sizes of a step model.

    Attributes:
        sizes: For each latent site in order the sizes of its free parameters by name.
        values: Number of values of each latent site.
        frame_shape: Shape of one frame.
        state: Size of the visible state, all its tensors laid end to end.
        controls: Size of the controls.
    """

    sizes: dict[str, dict[str, int]]
    values: dict[str, int]
    frame_shape: Size
    state: int
    controls: int


def prototype(model: StepModel) -> Prototype:
    """Runs one step of a model to find its latents.

    Args:
        model: The step model; its parameters and the random numbers are left as they are.

    Raises:
        ValueError: When a latent has no reparametrised prior, or there is no latent or no frame.
    """
    batch = Size((BATCH,))
    devices = {p.device for p in model.parameters() if p.is_cuda}
    with torch.no_grad(), torch.random.fork_rng(sorted(d.index for d in devices)):
        state = model.initial_state(batch)
        like = next(leaves(state), torch.zeros(()))
        u = like.new_zeros(BATCH, model.controls) if model.controls else None
        plate = pyro.plate("sequences", BATCH, dim=-1)
        with pyro.poutine.block(), plate, observe(None) as observed, explaining(None, u):
            model.step(state, None, u)
        frame = observed.frame
        sites = InferSites(lambda site: site.prior, batch)
        with sites, explaining(frame, u):
            model.step(state, frame, u)
    if not sites.latents:
        raise ValueError("the step must sample at least one latent; got none")
    sizes = {}
    for site in sites.latents:
        free = site_parameters(site)
        sizes[site.name] = {name: value.shape[-1] for name, value in free.items()}
    return Prototype(
        sizes,
        {site.name: site.value[0].numel() for site in sites.latents},
        frame.shape[1:],
        flat(model.visible(state), batch).shape[-1],
        model.controls,
    )


def flat(state: Any, batch_shape: Size) -> Tensor:  # noqa: ANN401
    """All tensors of a state end to end, `(*batch, size)`."""
    parts = [leaf.reshape(*batch_shape, -1) for leaf in leaves(state)]
    if not parts:
        return torch.zeros(*batch_shape, 0)
    kinds = [part.dtype for part in parts if part.is_floating_point()]
    kind = kinds[0] if kinds else torch.get_default_dtype()
    return torch.cat([part.to(kind) for part in parts], -1)
