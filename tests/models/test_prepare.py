"""What a split model prepares: once per step, before prior and guide, which both read it."""

from __future__ import annotations

from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import TraceMeanField_ELBO
from torch import Size, Tensor, nn

from pyro_seq.guides import NeuralFilter, OnlineFilter
from pyro_seq.inference import FilteringELBO
from pyro_seq.inference.filtering import filter_sequences
from pyro_seq.models import SplitStepModel, StepModel
from tests.models.test_step_model import GUIDES, agree, evaluated

LATENT, CONTROLS, FRAME, BATCH, TIME = 2, 1, 3, 4, 5


class Attentive(SplitStepModel):
    """Remembers the sum of its latents; what it makes of that and the control is prepared."""

    controls = CONTROLS
    reads_frames = False

    class State(NamedTuple):
        total: Tensor
        summary: Tensor

    class Visible(NamedTuple):
        summary: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Linear(LATENT + CONTROLS, LATENT)
        self.emit = nn.Linear(LATENT, FRAME)
        self.calls = [0]

    def begin(self, batch_shape: Size) -> State:
        zeros = self.emit.weight.new_zeros(*batch_shape, LATENT)
        return self.State(zeros, zeros)

    def prepare(self, state: State, u_t: Tensor | None) -> State:
        self.calls[0] += 1
        assert u_t is not None
        return state._replace(summary=self.network(torch.cat([state.total, u_t], -1)).tanh())

    def visible(self, state: Any) -> Visible:  # noqa: ANN401
        return self.Visible(state.state.summary)

    def latents(self, state: State, u_t: Tensor | None) -> Tensor:
        return pyro.sample("z", dist.Normal(state.summary, 1.0).to_event(1))

    def emission(self, latents: Tensor) -> Any:  # noqa: ANN401
        return dist.Normal(self.emit(latents), 0.5).to_event(1)

    def transition(
        self,
        state: State,
        latents: Tensor,
        embedding: None,
        u_t: Tensor | None,
    ) -> State:
        return state._replace(total=state.total + latents)


class Piece(StepModel):
    """The same in one piece; what the guide may read is made where it is asked for."""

    controls = CONTROLS

    class State(NamedTuple):
        total: Tensor

    def __init__(self, parts: Attentive) -> None:
        super().__init__()
        self.parts = parts

    def initial_state(self, batch_shape: Size) -> State:
        return self.State(self.parts.begin(batch_shape).total)

    def step(self, state: State, x_t: Tensor | None, u_t: Tensor | None = None) -> State:
        assert u_t is not None
        summary = self.parts.network(torch.cat([state.total, u_t], -1)).tanh()
        z = pyro.sample("z", dist.Normal(summary, 1.0).to_event(1))
        pyro.sample("x", self.parts.emission(z), obs=x_t)
        return self.State(state.total + z)


def data() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(BATCH, TIME, FRAME, generator=generator).double()
    mask = torch.rand(BATCH, TIME, generator=generator) > 0.3
    controls = torch.randn(BATCH, TIME, CONTROLS, generator=generator).double()
    return torch.where(mask.unsqueeze(-1), x, x.new_full((), float("nan"))), mask, controls


def made() -> Attentive:
    torch.manual_seed(1)
    return Attentive().double()


@pytest.mark.parametrize("guide", GUIDES)
def test_once_per_step_whatever_the_guide(guide: str) -> None:
    model = made()
    pair = GUIDES[guide](model).double()
    model.calls[0] = 0
    filter_sequences(pair, *data())
    assert model.calls == [TIME]


def test_the_guide_reads_what_is_prepared() -> None:
    """With q a function of the summary alone, another control changes q."""
    model = made()
    guide = NeuralFilter(model, hidden=4, reads=["summary"]).double()
    x, mask, controls = data()
    torch.nn.init.zeros_(guide.networks["z"].shares[0].weight)  # neither frame nor control
    share = guide.networks["z"].shares[1].weight
    with torch.no_grad():
        share[:, LATENT:] = 0.0
    pyro.set_rng_seed(0)
    first = guide(x[:, :1], None, controls[:, :1] * 0)["z_1"]
    pyro.set_rng_seed(0)
    second = guide(x[:, :1], None, controls[:, :1] * 0 + 1)["z_1"]
    assert (first - second).abs().min() > 1e-6


def test_equal_to_stock_pyro_and_to_one_piece() -> None:
    """The last compared by a guide that reads frames alone, which both show."""
    model = made()
    x, mask, controls = data()
    args = x, mask, controls
    guide = NeuralFilter(model, hidden=4).double()
    agree(
        evaluated(FilteringELBO(), model, guide, *args),
        evaluated(TraceMeanField_ELBO(), model, guide, *args),
    )
    results = []
    for each in (Piece(model), model):
        torch.manual_seed(2)
        own = NeuralFilter(each, hidden=4, reads=[]).double()
        results.append(evaluated(FilteringELBO(), each, own, *args))
    agree(results[1], results[0])


def test_generates_and_filters_online() -> None:
    model = made()
    x, mask, controls = data()
    assert model.generate(BATCH, TIME, controls).shape == x.shape
    guide = NeuralFilter(model, hidden=4).double()
    pyro.set_rng_seed(3)
    whole = filter_sequences(guide, x, mask, controls)
    pyro.set_rng_seed(3)
    online = OnlineFilter(model, guide, batch=BATCH, predict=False)
    for t in range(TIME):
        update = online.update(x[:, t], mask[:, t], controls[:, t])
        torch.testing.assert_close(update.free_energy, whole.free_energy[t])
