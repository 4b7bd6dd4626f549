"""The convolutional LSTM against its equations, torch's LSTM cell, and itself step by step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from pyro_seq.nn import ConvLSTM, ConvLSTMState


def drawn(shape: tuple[int, ...], channels: int, **options: Any) -> ConvLSTM:  # noqa: ANN401
    """A layer in float64 with no parameter at a special value."""
    layer = ConvLSTM(shape, channels, **options).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return layer


def layer_norm(u: Tensor, norm: nn.Module) -> Tensor:
    shape = (-1, *(1,) * (u.dim() - 2))
    plain = functional.layer_norm(u, u.shape[1:])
    return plain * norm.weight.view(shape) + norm.bias.view(shape)


def test_equations_with_a_stride_and_feedback() -> None:
    layer = drawn((2, 10, 8), 3, kernel=4, stride=2, feedback=True)
    x = torch.randn(2, 2, 10, 8).double()
    h, c, d = torch.randn(3, 2, 3, 5, 4).double()
    terms = (
        layer_norm(functional.conv2d(x, layer.input.weight, None, 2, 1), layer.norm_input),
        layer_norm(functional.conv2d(h, layer.recurrent.weight, None, 1, 1), layer.norm_recurrent),
        layer_norm(functional.conv2d(d, layer.feedback.weight, None, 1, 1), layer.norm_feedback),
    )
    i, f, o, u = (sum(terms) + layer.bias.view(-1, 1, 1)).split(3, 1)
    c_next = f.sigmoid() * c + i.sigmoid() * u.tanh()
    h_next = o.sigmoid() * c_next.tanh()
    out, state = layer.step(ConvLSTMState(h, c), x, d)
    torch.testing.assert_close(out, h_next)
    torch.testing.assert_close(state, ConvLSTMState(h_next, c_next))


def test_without_norms_it_is_one_convolution_of_all_inputs() -> None:
    layer = drawn((2, 6, 6), 3, norm="none", feedback=True)
    x, h, c, d = (torch.randn(2, n, 6, 6).double() for n in (2, 3, 3, 3))
    maps = (layer.input, layer.recurrent, layer.feedback)
    weight = torch.cat([m.weight for m in maps], 1)
    i, f, o, u = functional.conv2d(torch.cat([x, h, d], 1), weight, layer.bias, 1, 1).split(3, 1)
    c_next = f.sigmoid() * c + i.sigmoid() * u.tanh()
    found, _ = layer.step(ConvLSTMState(h, c), x, d)
    torch.testing.assert_close(found, o.sigmoid() * c_next.tanh())


def test_over_units_it_is_torchs_cell() -> None:
    layer, cell = drawn((4,), 3, kernel=1, norm="none"), nn.LSTMCell(4, 3).double()

    def reordered(weight: Tensor) -> Tensor:  # ours is i, f, o, u
        i, f, o, u = weight.chunk(4)
        return torch.cat([i, f, u, o])

    with torch.no_grad():
        cell.weight_ih.copy_(reordered(layer.input.weight))
        cell.weight_hh.copy_(reordered(layer.recurrent.weight))
        cell.bias_ih.copy_(reordered(layer.bias))
        cell.bias_hh.zero_()
    x, h, c = torch.randn(2, 4).double(), *torch.randn(2, 2, 3).double()
    _, found = layer.step(ConvLSTMState(h, c), x)
    torch.testing.assert_close(tuple(found), cell(x, (h, c)))


@pytest.mark.parametrize("norm", ["layer", "batch", "none"])
@pytest.mark.parametrize("shape", [(2,), (2, 7), (2, 6, 6)])
def test_many_steps_are_steps_and_go_on(norm: str, shape: tuple[int, ...]) -> None:
    layer = drawn(shape, 3, kernel=1 if len(shape) == 1 else 3, norm=norm).eval()
    x = torch.randn(3, 5, *shape).double()
    outputs, last = layer(x)
    state = layer.initial_state(x.shape[:1])
    for number, x_t in enumerate(x.unbind(1)):
        h, state = layer.step(state, x_t, iteration=torch.full((3,), number))
        torch.testing.assert_close(h, outputs[:, number])
    torch.testing.assert_close(state, last)
    if norm != "batch":  # whose statistics depend on how far a sequence is
        _, half = layer(x[:, :2])
        rest, end = layer(x[:, 2:], half)
        torch.testing.assert_close(rest, outputs[:, 2:])
        torch.testing.assert_close(end, last)


def test_gradients_by_finite_differences() -> None:
    layer = drawn((1, 4), 2, stride=2)
    x = torch.randn(1, 3, 1, 4).double().requires_grad_()
    h, c = torch.randn(2, 1, 2, 2).double().requires_grad_().unbind()
    assert torch.autograd.gradcheck(lambda x, h, c: layer(x, ConvLSTMState(h, c))[0], (x, h, c))


def test_feedback_that_starts_at_zero_changes_nothing() -> None:
    layer = ConvLSTM((1, 4, 4), 2, feedback=True, feedback_gain=0.0)
    x, state = torch.randn(2, 1, 4, 4), layer.initial_state(torch.Size([2]))
    outputs = [layer.step(state, x, torch.randn(2, 2, 4, 4))[0] for _ in range(2)]
    assert (outputs[0] == outputs[1]).all()


def test_the_forget_gate_starts_open() -> None:
    assert ConvLSTM((1, 4, 4), 2).bias.tolist() == [0, 0, 1, 1, 0, 0, 0, 0]


def test_bad_input() -> None:
    layer = ConvLSTM((1, 4, 4), 2)
    with pytest.raises(ValueError, match=r"x must be \(batch, time, 1, 4, 4\).*\(2, 3, 1, 4\)"):
        layer(torch.zeros(2, 3, 1, 4))
    with pytest.raises(ValueError, match="must be called step by step"):
        ConvLSTM((1, 4, 4), 2, feedback=True)(torch.zeros(2, 3, 1, 4, 4))
    with pytest.raises(ValueError, match="feedback_gain needs a norm"):
        ConvLSTM((1, 4, 4), 2, feedback=True, feedback_gain=0.0, norm="none")
    with pytest.raises(ValueError, match="norm must be one of"):
        ConvLSTM((1, 4, 4), 2, norm="instance")
