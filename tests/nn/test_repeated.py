"""Layers of a loop get the gradient that any dense layer gets."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from pyro_seq.nn.recurrent import RepeatedLSTMCell, lstm_step
from pyro_seq.nn.repeated import RepeatedLinear, linear, repeated
from pyro_seq.ops.trees import leaves

TIMES = 4


class Recurrence(nn.Module):
    """h <- tanh(V h + W h + b), the rows of h two-dimensional."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = RepeatedLinear(3, 3), RepeatedLinear(3, 3, bias=False)

    def forward(self, h: Tensor, times: int | None, calls: int = TIMES) -> Tensor:
        with repeated(times):
            for _ in range(calls):
                h = (self.one(h) + self.two(h)).tanh()
        return h


def gradients(
    network: nn.Module, h: Tensor, times: int | None, calls: int = TIMES
) -> list[Tensor]:
    total = network(h, times, calls).square().sum()
    return list(torch.autograd.grad(total, [h, *network.parameters()]))


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return Recurrence().double()


def start() -> Tensor:
    return torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("times", [1, 3, TIMES, 9])
def test_gradients_are_those_of_plain_layers(network: nn.Module, times: int) -> None:
    """Also when the loop calls a layer more or less often than was said."""
    h = start()
    torch.testing.assert_close(gradients(network, h, times), gradients(network, h, None))


@pytest.mark.parametrize("times", [None, 3, TIMES])
def test_a_cell_of_an_lstm_is_the_plain_one(times: int | None) -> None:
    """Outputs, cells and all gradients, with two dimensions of the batch."""
    torch.manual_seed(0)
    own, plain = RepeatedLSTMCell(3, 4).double(), nn.LSTMCell(3, 4).double()
    plain.load_state_dict(own.state_dict())
    x, first = start(), torch.randn(2, 5, 4, dtype=torch.float64, requires_grad=True)
    found = []
    for cell in (own, plain):
        h, c = first, first.sin()
        with repeated(times):
            for _ in range(TIMES):
                h, c = lstm_step(cell, x + h.sum(-1, keepdim=True), h, c)
        total = (h.square() + c).sum()
        found.append([h, c, *torch.autograd.grad(total, [x, first, *cell.parameters()])])
    torch.testing.assert_close(found[0], found[1])
    torch.testing.assert_close(own(x[0].detach())[0], plain(x[0].detach())[0])


def test_weights_collect_one_gradient(network: nn.Module) -> None:
    def products(times: int | None) -> int:
        total = network(start(), times).sum()
        with torch.profiler.profile() as profile:
            total.backward()
        return sum(event.count for event in profile.key_averages() if event.key == "aten::mm")

    assert products(None) == 4 * TIMES  # of input and weight, for two layers
    assert products(TIMES) == 2 * TIMES + 2


def test_two_backward_passes_through_one_graph(network: nn.Module) -> None:
    """Even if the first asks for the gradient of the input alone."""
    h = start()
    expected = gradients(network, h, None)
    total = network(h, TIMES).square().sum()
    inputs = [h, *network.parameters()]
    for asked in ([0], [0, 1, 2, 3], [2], [0, 1, 2, 3]):
        found = torch.autograd.grad(total, [inputs[i] for i in asked], retain_graph=True)
        torch.testing.assert_close(list(found), [expected[i] for i in asked])


def test_loops_of_another_size_and_within_another(network: nn.Module) -> None:
    h, other = start(), torch.randn(1, 3, dtype=torch.float64)

    def run(times: int | None) -> list[Tensor]:
        with repeated(times):
            total = network.one(h).sum() + network.one(other).square().sum()
            total = total + network(other, None if times is None else 2).exp().sum()
            with repeated(None):
                total = total + network.two(other).square().sum()
            total = total + network.one(h).square().sum()
        return list(torch.autograd.grad(total, [h, *network.parameters()]))

    torch.testing.assert_close(run(2), run(None))


def test_frozen_weights_and_no_gradient(network: nn.Module) -> None:
    h = start()
    network.two.requires_grad_(False)
    asked = [h, network.one.weight]
    expected = torch.autograd.grad(network(h, None).sum(), asked)
    torch.testing.assert_close(torch.autograd.grad(network(h, TIMES).sum(), asked), expected)
    with torch.no_grad():
        assert not network(h, TIMES).requires_grad
    constant = network(h.detach(), TIMES)
    assert constant.grad_fn is not None


def test_a_weight_that_is_no_parameter() -> None:
    weight = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    x = torch.randn(4, 3, dtype=torch.float64)

    def run(times: int | None) -> tuple[Tensor, ...]:
        with repeated(times):
            total = sum((linear(x, weight * 2, None).square().sum() for _ in range(3)), x.sum())
        return torch.autograd.grad(total, weight)

    torch.testing.assert_close(run(3), run(None))


def test_copies_and_states_are_those_of_a_dense_layer(network: nn.Module) -> None:
    plain = nn.Linear(3, 3)
    plain.load_state_dict(network.one.state_dict())
    h = start()
    torch.testing.assert_close(
        gradients(copy.deepcopy(network), h, TIMES), gradients(network, h, None)
    )
    assert [leaf.shape for leaf in leaves(dict(plain.state_dict()))] == [(3, 3), (3,)]
