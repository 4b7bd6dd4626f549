"""The stochastic recurrent neural network."""

from __future__ import annotations

import pyro
import pytest
import torch
from torch import nn

from pyro_seq.guides import NeuralFilter
from pyro_seq.inference import FilteringELBO
from pyro_seq.inference.filtering import filter_sequences
from pyro_seq.models import SRNN
from pyro_seq.nn import ClippedLeakyReLU, OverTime
from tests.models.step_models import FRAME, data, make


def test_presets_are_the_papers_sizes() -> None:
    """1.26 million parameters for music, as measured on the authors' code."""
    with torch.device("meta"):
        music, speech = SRNN.preset("midi"), SRNN.preset("timit", hidden=512)
    assert sum(p.numel() for p in music.parameters()) == pytest.approx(1.26e6, rel=0.005)
    assert isinstance(music.decoder.activation, ClippedLeakyReLU)
    assert (speech.lstm.input_size, speech.lstm.hidden_size) == (200, 512)
    with pytest.raises(ValueError, match="name must be a preset of SRNN, midi, timit; got 'jsb'"):
        SRNN.preset("jsb")


def test_the_lstm_reads_nothing_but_frames() -> None:
    """The states h of all steps are those of one call of the LSTM, whatever was drawn."""
    model = make("srnn")
    x, _, _ = data()
    h, _ = model.lstm(x.flatten(2), tuple(m[None] for m in model.initial_memory(len(x))))
    for seed in (0, 1):
        pyro.set_rng_seed(seed)
        guide = NeuralFilter(model, hidden=4).double()
        state = filter_sequences(guide, x).state.model
        torch.testing.assert_close(model.visible(state).h, h[:, -1])
        torch.testing.assert_close(state.memory[0], h[:, -1])


@pytest.mark.parametrize("emission", ["normal", "window"])
def test_emissions_by_name(emission: str) -> None:
    options = {"width": 0.5} if emission == "window" else None
    model = make("srnn", emission=emission, emission_options=options)
    x = torch.randn(3, 4, *FRAME).double()
    loss = FilteringELBO()(model, NeuralFilter(model, hidden=4).double())
    assert loss(x).isfinite()
    assert model.generate(2, 3).shape == (2, 3, *FRAME)


def test_parts_of_the_caller() -> None:
    """Convolutions before the LSTM, and any distribution as the emission."""

    class Counts(nn.Module):
        def forward(self, features: torch.Tensor) -> pyro.distributions.Independent:
            rate = nn.functional.softplus(features).unflatten(-1, FRAME)
            return pyro.distributions.Poisson(rate).to_event(3)

    encoder = OverTime(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten()))
    model = SRNN(
        FRAME, latent=2, hidden=4, prior=[5], decoder=[20], encoder=encoder, features=12,
        emission=Counts(),
    )  # fmt: skip
    x = torch.poisson(torch.ones(3, 4, *FRAME))
    loss = FilteringELBO()(model, NeuralFilter(model, hidden=4))(x)
    loss.backward()
    assert encoder.network[0].weight.grad.abs().sum() > 0
    with pytest.raises(ValueError, match="features must be the size of the encoder's output"):
        SRNN(FRAME, encoder=encoder)


def test_dropout_is_for_training() -> None:
    """It hides units of h and values of what the LSTM reads; what is scored stays whole."""
    model = make("srnn", dropout=0.5, frame_dropout=0.5)
    x, _, _ = data()
    memory = model.initial_memory(len(x))
    model.train()
    first, second = model.embed(x, memory)[0].h, model.embed(x, memory)[0].h
    assert not torch.equal(first, second) and (first == 0).any()
    model.eval()
    assert torch.equal(model.embed(x, memory)[0].h, model.embed(x, memory)[0].h)


def test_unknown_emissions_are_refused() -> None:
    with pytest.raises(ValueError, match="emission must be one of bernoulli, normal, window"):
        SRNN(3, emission="poisson")
    with pytest.raises(ValueError, match="hidden must have one layer or more"):
        SRNN(3, prior=[])
