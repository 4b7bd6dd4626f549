"""Normalisation: agreement with torch, statistics of each iteration, and their estimation."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pyro_seq.nn import IterationBatchNorm, UnitNorm, estimate_statistics, unit_norm

SHAPES = [(16, 3), (16, 3, 7), (16, 3, 4, 5)]


def at(iteration: int, batch: int = 16) -> Tensor:
    return torch.full((batch,), iteration)


@pytest.mark.parametrize("shape", SHAPES)
def test_layer_norm_is_over_all_units_of_a_sample(shape: tuple[int, ...]) -> None:
    norm, u = UnitNorm(3).double(), 3 + 2 * torch.randn(shape).double()
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, 2.0, -1.0]))
        norm.bias.copy_(torch.tensor([0.0, 1.0, 5.0]))
    flat = u.flatten(1)
    plain = (flat - flat.mean(1, True)) / (flat.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
    affine = (p.reshape(3, *(1,) * (len(shape) - 2)) for p in (norm.weight, norm.bias))
    weight, bias = affine
    torch.testing.assert_close(norm(u), plain.view_as(u) * weight + bias)


@pytest.mark.parametrize("shape", SHAPES)
def test_one_iteration_is_torchs_batch_norm(shape: tuple[int, ...]) -> None:
    ours, torchs = IterationBatchNorm(3), (nn.BatchNorm1d, nn.BatchNorm2d)[len(shape) == 4](3)
    batches = torch.randn(13, *shape)
    for number, u in enumerate(batches, 1):
        torch.testing.assert_close(ours(u, at(0)), torchs(u))
        if number == 10:  # until then ours is the average, and torch's depends on where it began
            expected = batches[:10].movedim(2, -1).flatten(0, -2).mean(0)
            torch.testing.assert_close(ours.running_mean[0], expected)
            torchs.running_mean.copy_(ours.running_mean[0])
            torchs.running_var.copy_(ours.running_var[0])
    torch.testing.assert_close(ours.running_mean[0], torchs.running_mean)
    torch.testing.assert_close(ours.running_var[0], torchs.running_var)
    u = torch.randn(shape)
    torch.testing.assert_close(ours.eval()(u, at(0)), torchs.eval()(u))


def test_iterations_have_their_own_statistics_and_the_last_serves_for_all_after() -> None:
    norm = IterationBatchNorm(2, iterations=3)
    for number in range(5):
        norm(10 * number + torch.randn(1000, 2), at(number, 1000))
    torch.testing.assert_close(
        norm.running_mean[:2], torch.tensor([[0.0, 0.0], [10.0, 10.0]]), atol=0.2, rtol=0
    )
    assert (norm.running_mean[2] > 20).all()
    norm.eval()
    u = torch.randn(1, 2)
    assert (norm(u, at(9, 1)) == norm(u, at(2, 1))).all()
    assert (norm(u, at(1, 1)) != norm(u, at(0, 1))).all()


def test_an_iteration_never_seen_in_training_has_the_statistics_of_the_last_that_was() -> None:
    norm, u = IterationBatchNorm(2, iterations=8), torch.randn(4, 2)
    for number in range(2):
        norm(5 + u, at(number, 4))
    norm.eval()
    assert (norm(u, at(6, 4)) == norm(u, at(1, 4))).all()


def test_samples_at_other_iterations_count_by_their_share() -> None:
    norm, u = IterationBatchNorm(2, iterations=2), torch.randn(4, 2)
    norm(u, torch.tensor([0, 0, 0, 1]))
    torch.testing.assert_close(norm.tracked, torch.tensor([[0.75], [0.25]]))
    norm(u + 1, torch.tensor([1, 1, 1, 1]))  # rate 1 / 1.25
    expected = u.mean(0) + 1 / 1.25
    torch.testing.assert_close(norm.running_mean[1], expected)
    torch.testing.assert_close(norm.running_mean[0], u.mean(0))


def test_a_batch_of_one_is_refused_in_training_alone() -> None:
    norm = IterationBatchNorm(2)
    with pytest.raises(ValueError, match=r"needs a batch of 2 or more; got a batch of 1.*norm="):
        norm(torch.zeros(1, 2, 8, 8), at(0, 1))
    norm.eval()(torch.zeros(1, 2, 8, 8), at(0, 1))


def test_estimates_are_plain_averages_and_modes_are_restored() -> None:
    norm = IterationBatchNorm(3)
    network = nn.ModuleList([norm, nn.Dropout(), nn.Linear(3, 3)]).train()
    network[2].eval()
    norm(100 + torch.randn(8, 3), at(0, 8))
    u = torch.randn(5, 8, 3)
    with estimate_statistics(network):
        assert not network[1].training
        for batch in u:
            assert not norm(batch, at(0, 8)).requires_grad
    torch.testing.assert_close(norm.running_mean[0], u.mean((0, 1)))
    torch.testing.assert_close(norm.running_var[0], u.var(1).mean(0))
    assert [m.training for m in network] == [True, True, False] and norm.momentum == 0.1


def test_where_nothing_passes_the_old_statistics_stand() -> None:
    norm, u = IterationBatchNorm(3), torch.randn(8, 3)
    for iteration in (0, 1):
        norm(iteration + u, at(iteration, 8))
    expected = norm.eval()(u, at(1, 8))
    with estimate_statistics(norm):
        pass
    assert (norm(u, at(1, 8)) == expected).all()


def test_gradients_are_those_of_torch() -> None:
    u = torch.randn(6, 3, 4, requires_grad=True)
    weights = torch.randn(6, 3, 4)
    ours, torchs = IterationBatchNorm(3), nn.BatchNorm1d(3)
    for iteration in (0, 1):
        found, expected = (
            torch.autograd.grad((weights * y).sum(), u)[0]
            for y in (ours(u, at(iteration, 6)), torchs(u))
        )
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", ["layer", "batch", "none"])
@pytest.mark.parametrize("training", [True, False])
def test_a_shift_is_added(name: str, training: bool) -> None:
    norm, u, shift = unit_norm(name, 3).train(training), torch.randn(4, 3, 5), torch.randn(3)
    torch.testing.assert_close(norm(u, at(0, 4), shift), norm(u, at(0, 4)) + shift[:, None])


def test_names() -> None:
    assert isinstance(unit_norm("layer", 3), UnitNorm)
    u = torch.randn(2, 3)
    assert unit_norm("none", 3)(u, None) is u
    with pytest.raises(ValueError, match="norm must be one of layer, batch, none; got 'group'"):
        unit_norm("group", 3)
    with pytest.raises(ValueError, match="iterations must be at least 1; got 0"):
        unit_norm("batch", 3, 0)
