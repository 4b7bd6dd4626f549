"""Stochastic video generation."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from pyro_seq.guides import NeuralFilter
from pyro_seq.inference import FilteringELBO
from pyro_seq.inference.filtering import filter_sequences
from pyro_seq.models import SVG
from pyro_seq.ops.trees import leaves
from pyro_seq.testing import check_guide
from tests.models.step_models import FRAME, TIME, data, make, small_svg


def test_presets_are_the_papers_sizes() -> None:
    with torch.device("meta"):
        ours, skips = SVG.preset("kth"), SVG.preset("kth_skips", emission_options={"width": 0.1})
    assert (ours.prior_lstm.input_size, ours.prior_lstm.hidden_size) == (128, 256)
    assert [cell.input_size for cell in ours.predictor] == [128 + 512, 256]
    assert ours.prior.shape == (512,) and skips.prior.shape == (24,)
    assert ours.decoder.last.out_channels == 2
    assert skips.skip_frames == 10 and skips.head.options == {"width": 0.1}


def test_the_filter_of_the_paper() -> None:
    """An LSTM over the model's own features of frames; it keeps the contracts of a guide."""
    make_guide = lambda m: NeuralFilter(  # noqa: E731
        m, encoder=m.encoder, features=m.features, recurrent=3, hidden=[], reads=[]
    )
    check_guide(small_svg, make_guide, data()[0].float())


def test_an_lstm_of_the_guide_skips_missing_frames() -> None:
    """Its state after a gap is that of the sequence without the gap."""
    model = make("svg")
    guide = NeuralFilter(model, recurrent=3, reads=[], hidden=4).double()
    x = torch.rand(2, TIME, *FRAME).double()
    mask = torch.ones(2, TIME, dtype=torch.bool)
    mask[:, 1] = False
    gap = filter_sequences(guide, x, mask).state.guide
    short = filter_sequences(guide, x[:, [0, 2, 3]]).state.guide
    for found, expected in zip(gap, short, strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("skip_frames", [1, 2, 10])
def test_skips_are_of_the_last_frame_that_may_be_copied(skip_frames: int) -> None:
    """Also where a sequence comes in stretches."""
    model = make("svg", skip_frames=skip_frames)
    x = torch.rand(2, 5, *FRAME).double()
    maps = [model.encoder.network.pyramid(x[:, t])[1] for t in range(5)]
    whole, memory = model.embed(x, model.initial_memory(2))
    for t in range(5):
        for found, expected in zip(whole.maps, maps[min(t, skip_frames - 1)], strict=True):
            torch.testing.assert_close(found[:, t], expected)
    for cut in range(1, 5):
        first, between = model.embed(x[:, :cut], model.initial_memory(2))
        second, after = model.embed(x[:, cut:], between)
        for parts in zip(leaves(first), leaves(second), leaves(whole), strict=True):
            torch.testing.assert_close(torch.cat(parts[:2], 1), parts[2])
        for found, expected in zip(leaves(after), leaves(memory), strict=True):
            torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("masked", ["none", "gaps"])
def test_skips_reach_the_decoder_and_its_gradient_the_encoder(masked: str) -> None:
    model = make("svg", skip_frames=2)
    x, mask, _ = data(masked)
    loss = FilteringELBO()(model, NeuralFilter(model, hidden=4).double())(x, mask)
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    state = filter_sequences(NeuralFilter(model, hidden=4).double(), x, mask).state.model
    assert {*model.visible(state)._fields} == {"g", "p", "h"}
    latents = model.latents(state.state, None)
    other = latents._replace(maps=tuple(torch.zeros_like(m) for m in latents.maps))
    assert not torch.allclose(model.emission(latents).mean, model.emission(other).mean)
    assert model.generate(time=2, state=state).shape == (len(x), 2, *FRAME)


def test_networks_of_the_caller() -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 20)

        def forward(self, features: Tensor) -> Tensor:
            return self.linear(features).unflatten(1, FRAME)

    class Laplace(nn.Module):
        def forward(self, maps: Tensor) -> dist.Independent:
            return dist.Laplace(maps, 0.1).to_event(3)

    options = {"features": 4, "hidden": 3, "latent": 2, "decoder": Flat()}
    model = SVG(FRAME, encoder=nn.Sequential(nn.Flatten(), nn.Linear(20, 4)), **options,
                emission=Laplace())  # fmt: skip
    assert FilteringELBO()(model, NeuralFilter(model, hidden=4))(data()[0].float()).isfinite()
    with pytest.raises(ValueError, match="an emission that is a module needs a decoder"):
        SVG(FRAME, emission=Laplace())
    with pytest.raises(
        ValueError, match="skip_frames needs the encoder and decoder of this class"
    ):
        SVG(FRAME, **options, skip_frames=2)
    with pytest.raises(ValueError, match=r"frame_shape \(channels, height, width\)"):
        SVG((20,))


def test_layers_of_the_predictor() -> None:
    for layers in (1, 3):
        model = small_svg(layers=layers)
        assert len(model.begin(torch.Size([2])).cells) == layers
        assert model.generate(2, 2).shape == (2, 2, *FRAME)


def test_one_sequence_does_not_depend_on_the_others_in_training() -> None:
    """As it would with batch normalisation."""
    model = make("svg").train()
    guide = NeuralFilter(model, hidden=4).double()
    x = torch.rand(3, TIME, *FRAME).double()
    energies = []
    for other in (x[1:], 1 - x[1:]):
        pyro.set_rng_seed(0)
        energies.append(filter_sequences(guide, torch.cat([x[:1], other])).free_energy[:, 0])
    torch.testing.assert_close(*energies)
