"""The variational recurrent neural network."""

from __future__ import annotations

import pyro
import pytest
import torch
from torch import nn

from pyro_seq.guides import NeuralFilter
from pyro_seq.inference import FilteringELBO
from pyro_seq.models import VRNN
from pyro_seq.testing import check_guide
from tests.models.step_models import FRAME, data, make, small_vrnn


def test_presets_are_the_papers_sizes() -> None:
    with torch.device("meta"):
        model = VRNN.preset("timit", emission="window", emission_options={"width": 0.0018})
    widths = {
        name: [m.out_features for m in getattr(model, name).modules() if isinstance(m, nn.Linear)]
        for name in ("x_net", "z_net", "prior", "decoder")
    }
    assert widths == {
        "x_net": [600] * 4,
        "z_net": [500] * 4,
        "prior": [500] * 4 + [400],
        "decoder": [600] * 4 + [400],
    }
    assert (model.lstm.input_size, model.lstm.hidden_size) == (1100, 2000)
    assert model.decoder[-1].width == 0.0018


def test_the_filter_of_the_paper_shares_the_features_of_frames() -> None:
    """It keeps the contracts of a guide, and trains the shared network."""
    make_guide = lambda m: NeuralFilter(  # noqa: E731
        m, encoder=m.x_net, features=m.features, reads=["h"], hidden=4
    )
    check_guide(small_vrnn, make_guide, data()[0].float())
    model = make("vrnn")
    guide = make_guide(model).double()
    assert {id(p) for p in model.x_net.parameters()} <= {id(p) for p in guide.parameters()}


def test_the_latent_feeds_the_recurrent_state() -> None:
    """Other draws, other states: what no model whose LSTM reads frames alone has."""
    model = make("vrnn")
    x, _, _ = data()
    embedding, _ = model.embed(x, None)
    state = model.begin(torch.Size([len(x)]))
    after = []
    for seed in (0, 1):
        pyro.set_rng_seed(seed)
        latents = model.latents(state, None)
        after.append(model.transition(state, latents, embedding[:, 0], None).h)
    assert not torch.allclose(*after)


def test_a_network_of_the_caller() -> None:
    class Mean(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean((-1, -2))

    model = VRNN(
        FRAME, latent=2, hidden=4, x_net=Mean(), features=1, z_net=[], prior=[], decoder=[]
    )
    assert model.generate(2, 3).shape == (2, 3, *FRAME)
    guide = NeuralFilter(model, encoder=model.x_net, features=1, hidden=[])
    assert FilteringELBO()(model, guide)(data()[0].float()).isfinite()
    with pytest.raises(ValueError, match="features must be the size of the output of x_net"):
        VRNN(FRAME, x_net=Mean())


def test_dropout_is_for_others_and_not_for_the_recurrence() -> None:
    model = make("vrnn", dropout=0.9)
    x, _, _ = data()
    model.train()
    state = model.begin(torch.Size([len(x)]))
    embedding, _ = model.embed(x, None)
    after = model.transition(state, model.latents(state, None), embedding[:, 0], None)
    assert (after.h == 0).any() and (after.output != 0).all()
    model.eval()
    after = model.transition(state, model.latents(state, None), embedding[:, 0], None)
    assert torch.equal(after.h, after.output)
