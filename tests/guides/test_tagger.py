"""The tagger as a guide: its bound against the evidence, its symmetry, its iterations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pyro_seq.engines import LinearRow, LSTMRow, RTagger, RTaggerState
from pyro_seq.evaluation import free_energy, iwae
from pyro_seq.guides import TaggerGuide
from pyro_seq.inference import FilteringELBO
from pyro_seq.models import DMM, GroupMixtureModel
from pyro_seq.ops.trees import map_tensors

FRAME = (1, 3, 3)


def model_of(frame: tuple[int, ...] = FRAME, **options: Any) -> GroupMixtureModel:  # noqa: ANN401
    options = {"groups": 3, "latent": 2, "decoder": [5], **options}
    return GroupMixtureModel(frame, **options).double()


def pictures(batch: int, frame: tuple[int, ...] = FRAME, time: int = 1) -> Tensor:
    return (torch.rand(batch, time, *frame) > 0.5).double()


def test_the_bound_is_below_the_evidence_and_weights_recover_it() -> None:
    """The evidence by quadrature over the latents of two groups."""
    model = model_of((1, 1, 3), groups=2, latent=1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    guide = TaggerGuide(model, units=[6], iterations=2).double()
    with torch.no_grad():
        guide.message.message.bias[1] = -1.0  # q wide enough for weights
    x = pictures(4, (1, 1, 3))
    line = torch.linspace(-7, 7, 281).double()
    grid = torch.cartesian_prod(line, line)
    prior = torch.distributions.Normal(0.0, 1.0).log_prob(grid).sum(-1)
    with torch.no_grad():
        mixture = model.emission(grid.unsqueeze(-1))
        joint = prior + mixture.log_prob(x)  # (batch, grid)
    evidence = joint.logsumexp(1) + 2 * (line[1] - line[0]).log()
    bound = free_energy(model, guide, x, samples=400, seed=0, chunk=1600).bound()
    assert (bound.per_sequence < evidence - 0.01).all()
    weighted = iwae(model, guide, x, samples=5000, seed=0, chunk=20_000).per_sequence
    torch.testing.assert_close(weighted, evidence, atol=0.05, rtol=0)


def test_groups_can_change_places(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the noise of the groups exchanged their latents are, and so at every iteration."""
    model, order = model_of(), torch.tensor([2, 0, 1])
    guide, x = TaggerGuide(model, units=[8, 6]).double(), pictures(2, time=2)

    def run(places: Tensor) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(0)

        def noise(shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=dtype)[:, places]

        def start(batch: torch.Size) -> RTaggerState:
            torch.manual_seed(0)
            state = RTagger.initial_state(guide.engine, batch)
            return map_tensors(lambda part: part[:, places], state)

        monkeypatch.setattr("torch.distributions.normal._standard_normal", noise)
        monkeypatch.setattr(guide.engine, "initial_state", start)
        return guide(x)

    first, other = run(torch.arange(3)), run(order)
    for name, h in first.items():
        assert (h[:, 0] - h[:, 1]).abs().max() > 1e-3
        torch.testing.assert_close(other[name], h[:, order])


def test_earlier_iterations_train_and_are_part_of_no_bound() -> None:
    model = model_of()
    guide, x = TaggerGuide(model, units=[8]).double(), pictures(2)
    found = []
    for guide.earlier in (0.0, 1.0):
        guide.zero_grad()
        torch.manual_seed(0)
        loss = FilteringELBO().differentiable_loss(model, guide, x)
        loss.backward()
        found.append((loss.detach(), guide.message.message.weight.grad.clone()))
    torch.testing.assert_close(found[0][0], found[1][0])
    assert (found[0][1] - found[1][1]).abs().max() > 1e-3


def test_more_iterations_change_q() -> None:
    model = model_of()
    guide, x, scales = TaggerGuide(model, units=[8]).double(), pictures(2), []
    for guide.iterations in (1, 3):
        scales.append(free_energy(model, guide, x, seed=0).divergence)
    assert (scales[0] - scales[1]).abs().min() > 1e-6


def test_an_engine_with_recurrent_rows_remembers_iterations() -> None:
    model = model_of()
    rows = [LinearRow(6), LSTMRow(4, normalised=True)]
    engine = RTagger(FRAME, rows, 3, pixels="bernoulli", norm="layer", d2e="none", readouts=False)
    guide = TaggerGuide(model, engine).double()
    FilteringELBO().differentiable_loss(model, guide, pictures(2, time=2)).backward()
    assert all(p.grad is not None for p in guide.parameters())
    state = guide.initial_state(torch.Size([2]))
    assert [part.shape[:2] for part in state.cells[0]] == [(2, 3), (2, 3)]


def test_what_does_not_fit_is_refused() -> None:
    model, rows = model_of(), [LinearRow(4)]
    with pytest.raises(TypeError, match="model must be a GroupMixtureModel; got DMM"):
        TaggerGuide(DMM(3, latent=2))
    with pytest.raises(ValueError, match="iterations must be at least 1 .* got 0"):
        TaggerGuide(model, iterations=0)
    with pytest.raises(ValueError, match="readouts=False: its z and m are those of the model"):
        TaggerGuide(model, RTagger(FRAME, rows, 3, pixels="bernoulli"))
    other = RTagger(FRAME, rows, 2, pixels="bernoulli", readouts=False, d2e="none")
    with pytest.raises(ValueError, match="engine must have the frames, groups and pixels"):
        TaggerGuide(model, other)
    with pytest.raises(TypeError, match="engine must be an RTagger; got Linear"):
        TaggerGuide(model, torch.nn.Linear(1, 1))
    with pytest.raises(ValueError, match=r"x must be .*frame = \(1, 3, 3\)"):
        TaggerGuide(model, units=[4]).double()(pictures(2, (1, 4, 4)))
    with pytest.raises(TypeError, match="step needs readouts; this tagger has readouts=False"):
        other.step(other.initial_state(torch.Size([2])), torch.zeros(2, *FRAME))
    with pytest.raises(TypeError, match="units must be a sequence, of each row one size; got 4"):
        TaggerGuide(model, units=4)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="x must .* torch.float64.*; got torch.float32"):
        TaggerGuide(model, units=[4]).double()(pictures(2, FRAME).float())


def test_a_tagger_that_normalises_over_batches_is_warned_of() -> None:
    engine = RTagger(FRAME, [LinearRow(4)], 3, pixels="bernoulli", norm="batch", readouts=False)
    with pytest.warns(UserWarning, match="RTagger normalises over batches") as caught:
        TaggerGuide(model_of(), engine)
    assert caught[0].filename == __file__
