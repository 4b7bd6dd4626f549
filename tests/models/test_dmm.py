"""The deep Markov model."""

from __future__ import annotations

import itertools

import pytest
import torch
from pyro import poutine
from torch import Tensor

from pyro_seq.models import DMM


def small(**options: int) -> DMM:
    torch.manual_seed(0)
    return DMM(2, latent=2, hidden=4, width=4, **options).double()


def joint(model: DMM, x: Tensor, z: dict[str, Tensor], mask: Tensor | None = None) -> Tensor:
    """log p(x, z) of each sequence."""
    trace = poutine.trace(poutine.condition(model, z)).get_trace(x, mask)
    trace.compute_log_prob()
    return sum(s["log_prob"] for n, s in trace.nodes.items() if n[:2] in ("x_", "z_"))


def test_a_missing_frame_is_summed_out_exactly() -> None:
    """Against the sum of the joint density over all values of the missing frames."""
    model = small()
    x = torch.rand(3, 4, 2).round().double()
    mask = torch.ones(3, 4, dtype=torch.bool)
    mask[:, 1] = mask[:, 3] = False
    z = {f"z_{t}": torch.randn(3, 2).double() for t in range(1, 5)}
    values = [torch.tensor(v).double() for v in itertools.product((0.0, 1.0), repeat=2)]
    terms = []
    for second, last in itertools.product(values, values):
        whole = x.clone()
        whole[:, 1], whole[:, 3] = second, last
        terms.append(joint(model, whole, z))
    hidden = torch.where(mask.unsqueeze(-1), x, torch.nan)
    torch.testing.assert_close(joint(model, hidden, z, mask), torch.stack(terms).logsumexp(0))


def test_the_transition_begins_as_the_identity() -> None:
    """With a closed gate z moves on by itself, apart from noise."""
    model = small()
    with torch.no_grad():
        model.dynamics.gate[-1].bias.fill_(-40.0)
    state = model.State(torch.randn(5, 2).double())
    with poutine.trace() as recorder:
        model.latents(state, None)
    torch.testing.assert_close(recorder.trace.nodes["z"]["fn"].mean, state.z)


def test_presets_are_the_papers_sizes() -> None:
    model = DMM.preset("midi")
    assert model.dynamics.linear.weight.shape == (100, 100)
    assert model.dynamics.gate[0].weight.shape == (200, 100)
    assert model.emit[0].weight.shape == (100, 100)
    assert DMM.preset("midi", frame=12).emit[-1].logits.out_features == 12


@pytest.mark.parametrize("emission", ["normal", "window"])
def test_emissions_by_name(emission: str) -> None:
    options = {"width": 0.5} if emission == "window" else None
    model = DMM((2, 3), latent=2, emission=emission, emission_options=options)
    assert model.generate(2, 3).shape == (2, 3, 2, 3)
    with pytest.raises(ValueError, match="emission must be one of"):
        DMM(3, emission="poisson")
