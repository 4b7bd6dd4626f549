"""Decoder cells against their equations, written again with torch's functions in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from pyro_seq.nn import G1, Broadcast, ConvG1, ConvG2, ConvG3, SigmoidPlusLinear
from pyro_seq.nn.ladder_cells import GATE, MEAN

TOP, SHAPE = (5, 4, 3), (2, 8, 6)


def drawn(cell: Any) -> Any:  # noqa: ANN401
    with torch.no_grad():
        for parameter in cell.double().parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return cell


def inputs(top: tuple[int, ...] = TOP, shape: tuple[int, ...] = SHAPE) -> tuple[Tensor, Tensor]:
    return torch.randn(2, *top).double(), torch.randn(2, *shape).double()


def f(u: Tensor, module: SigmoidPlusLinear) -> Tensor:
    w = module.weight.reshape(5, -1, *(1,) * (u.dim() - 2))
    return w[0] * torch.sigmoid(w[1] * u + w[2]) + w[3] * u + w[4]


def norm(u: Tensor, module: nn.Module) -> Tensor:
    shape = (-1, *(1,) * (u.dim() - 2))
    plain = functional.layer_norm(u, u.shape[1:])
    return plain * module.weight.view(shape) + module.bias.view(shape)


def meeting(v: Tensor, h: Tensor, module: nn.Module) -> Tensor:
    up = functional.conv_transpose2d(v, module.top.weight, stride=2, padding=2)
    side = functional.conv2d(h, module.side.weight, padding=1)
    sums = norm(up, module.norm_top) + norm(side, module.norm_side)
    return sums + module.bias.view(-1, 1, 1)


@pytest.mark.parametrize("stable", [False, True])
def test_g1(stable: bool) -> None:
    cell, (v, h) = drawn(G1(TOP, SHAPE, stable=stable)), inputs()
    u = norm(v.flatten(1) @ cell.top.weight.T, cell.norm)
    s = f(u, cell.combine.gate)
    s = s.sigmoid() if stable else s
    y = s * h.flatten(1) + (1 - s) * f(u, cell.combine.mean)
    torch.testing.assert_close(cell(v, h), y.view_as(h))


def test_conv_g1() -> None:
    cell, (v, h) = drawn(ConvG1(TOP, SHAPE, 6, 2)), inputs()
    up = functional.conv_transpose2d(v, cell.top.weight, stride=2, padding=2)
    u = norm(up, cell.norm)
    s = f(u, cell.combine.gate)
    torch.testing.assert_close(cell(v, h), s * h + (1 - s) * f(u, cell.combine.mean))


def test_conv_g2() -> None:
    cell, (v, h) = drawn(ConvG2(TOP, SHAPE, 6, 2)), inputs()
    one, other, s = (
        f(meeting(v, h, meet), shape)
        for meet, shape in zip(cell.meetings, cell.shapes, strict=True)
    )
    torch.testing.assert_close(cell(v, h), s * one + (1 - s) * other)


def test_conv_g3() -> None:
    cell, (v, h) = drawn(ConvG3(TOP, SHAPE, 6, 2)), inputs()
    u = meeting(v, h, cell.meet).relu()
    gate, one, other = (
        functional.conv2d(u, w, b, padding=1)
        for w, b in zip(cell.outputs.weight.chunk(3), cell.bias.chunk(3), strict=True)
    )
    s = gate.sigmoid()
    torch.testing.assert_close(cell(v, h), s * one + (1 - s) * other)


def test_a_cell_of_one_channel_is_hidden_in_as_many_as_come_from_above() -> None:
    assert ConvG3((32, 8, 8), (1, 8, 8), 9).meet.side.weight.shape == (32, 1, 3, 3)
    assert ConvG3((32, 8, 8), (2, 8, 8), 9).meet.side.weight.shape == (2, 2, 3, 3)


@pytest.mark.parametrize("sizes", [(), (6, 2)])
def test_without_a_lateral_way_nothing_is_read_from_the_side(sizes: tuple[int, ...]) -> None:
    whole = drawn((ConvG1 if sizes else G1)(TOP, SHAPE, *sizes))
    cell = (ConvG1 if sizes else G1)(TOP, SHAPE, *sizes, lateral=False).double()
    cell.load_state_dict(whole.state_dict())
    v, h = inputs()
    torch.testing.assert_close(cell(v, torch.full_like(h, torch.nan)), whole(v, 0 * h))


@pytest.mark.parametrize("kind", [G1, ConvG1, ConvG2, ConvG3])
@pytest.mark.parametrize("spaces", [((6,), (11,)), ((3, 4), (6, 8))])
def test_shapes_gradients_and_samples(kind: Any, spaces: Any) -> None:  # noqa: ANN401
    top, shape = (3, *spaces[0]), (2, *spaces[1])
    made = kind(top, shape) if kind is G1 else kind(top, shape, 3, 2)
    cell, (v, h) = drawn(made), inputs(top, shape)
    y = cell(v, h)
    assert y.shape == h.shape
    torch.testing.assert_close(cell(v[1:], h[1:]), y[1:])
    grads = torch.autograd.grad((y * torch.randn_like(y)).sum(), [*cell.parameters()])
    assert all(g.isfinite().all() and (g != 0).any() for g in grads)


def test_what_f_starts_with() -> None:
    u = torch.randn(3, 2, 4)
    torch.testing.assert_close(SigmoidPlusLinear(2, MEAN)(u), u)
    torch.testing.assert_close(SigmoidPlusLinear(2, GATE)(u), u.sigmoid())


def test_broadcast_is_the_transpose_of_a_sum() -> None:
    cell, (v, x) = Broadcast((2, 2, 1), (2, 4, 3)), inputs((2, 2, 1), (2, 4, 3))
    pooled = 6 * functional.avg_pool2d(x, (2, 3))
    torch.testing.assert_close((cell(v, x) * x).sum(), (v * pooled).sum())


def test_bad_shapes() -> None:
    with pytest.raises(ValueError, match=r"axes that divide; got \(2, 3\) to \(2, 4\)"):
        Broadcast((2, 3), (2, 4))
    with pytest.raises(ValueError, match="must lead from"):
        ConvG1(TOP, SHAPE, 3, 1)
