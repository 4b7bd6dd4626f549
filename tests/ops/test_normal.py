"""The probability of an interval against arithmetic with 80 digits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pyro_seq.ops.normal import log_normal_interval

mpmath = pytest.importorskip("mpmath")

CENTRES = (0.0, 1e-6, 0.1, 0.24, 0.26, 0.5, 1.0, 2.0, 5.0, 13.0, 30.0, 40.0, -0.7, -3.0, -40.0)
WIDTHS = (1e-8, 1e-4, 1.8e-3, 0.02, 0.1, 0.49, 0.5, 0.51, 1.0, 2.0, 5.0, 20.0, 79.0, 81.0, 100.0)


def exact(centre: float, width: float) -> tuple[float, float, float]:
    """Log probability and its derivatives for centre and width."""
    mpmath.mp.dps = 80
    c, w = mpmath.mpf(centre), mpmath.mpf(width)
    a, b, root = abs(c) - w / 2, abs(c) + w / 2, mpmath.sqrt(2)
    p = (mpmath.erfc(a / root) - mpmath.erfc(b / root)) / 2
    below, above = mpmath.npdf(a), mpmath.npdf(b)
    gradients = mpmath.sign(c) * (above - below) / p, (above + below) / (2 * p)
    return float(mpmath.log(p)), *(float(g) for g in gradients)


def evaluate(centre: Tensor, width: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    centre, width = centre.clone().requires_grad_(), width.clone().requires_grad_()
    value = log_normal_interval(centre, width)
    return value.detach(), *torch.autograd.grad(value.sum(), (centre, width))


@pytest.mark.parametrize(
    ("dtype", "rtol"), [(torch.float32, 6e-6), (torch.float64, 1e-14)], ids=["single", "double"]
)
def test_value_and_gradients_are_exact(dtype: torch.dtype, rtol: float) -> None:
    centre, width = torch.cartesian_prod(torch.tensor(CENTRES), torch.tensor(WIDTHS)).unbind(1)
    centre, width = centre.to(dtype), width.to(dtype)
    rows = [exact(*pair) for pair in zip(centre.tolist(), width.tolist(), strict=True)]
    wanted = torch.tensor(rows, dtype=torch.float64).unbind(1)
    for name, came, want in zip(("value", "c", "w"), evaluate(centre, width), wanted, strict=True):
        torch.testing.assert_close(
            came.double(), want, rtol=rtol, atol=1e-30, msg=lambda text, name=name: name + text
        )


def test_the_plain_difference_of_float32_fails_where_this_does_not() -> None:
    """The cases of the test above are hard: Phi(b) - Phi(a) is 0 or noise at them."""
    c, w = torch.tensor([8.0, 0.5]), torch.tensor([1e-2, 1e-8])
    plain = torch.special.ndtr(c + w / 2) - torch.special.ndtr(c - w / 2)
    wanted = torch.tensor([exact(*pair)[0] for pair in zip(c.tolist(), w.tolist(), strict=True)])
    assert ((plain.log() - wanted).abs() > 0.5).all()
    torch.testing.assert_close(log_normal_interval(c, w), wanted, rtol=1e-6, atol=0.0)


def test_extreme_arguments_give_no_nan() -> None:
    centre = torch.tensor([0.0, 1e6, 1e6, 0.0, -1e6, 1e10])
    width = torch.tensor([1e-30, 1e-3, 3e6, 1e10, 1e6, 1e10])
    for part in evaluate(centre, width):
        assert not part.isnan().any()
    value, by_centre, _ = evaluate(centre, width)
    assert value[2:4].tolist() == [0.0, 0.0] and (value <= 0).all()
    torch.testing.assert_close(by_centre[1], torch.tensor(-1e6), rtol=1e-3, atol=0.0)


def test_intervals_that_tile_the_line_add_up_to_one() -> None:
    edges = torch.cat([torch.linspace(-9, 9, 50), torch.tensor([-0.3, 0.01, 0.012])]).double()
    edges = edges.sort().values
    parts = log_normal_interval((edges[1:] + edges[:-1]) / 2, edges.diff())
    whole = log_normal_interval(torch.tensor(0.0).double(), torch.tensor(18.0).double())
    torch.testing.assert_close(parts.logsumexp(0), whole, rtol=0.0, atol=1e-14)


def test_derivatives_of_every_order_are_right() -> None:
    torch.manual_seed(0)
    centre = (3 * torch.randn(9, dtype=torch.float64)).requires_grad_()
    width = (0.01 + 2 * torch.rand(9, dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(log_normal_interval, (centre, width))
    assert torch.autograd.gradgradcheck(log_normal_interval, (centre, width))


def test_shapes_broadcast_and_vmap_maps() -> None:
    centre, width = torch.randn(3, 1), torch.rand(4) + 0.1
    came = log_normal_interval(centre, width)
    assert came.shape == (3, 4)
    rows = torch.func.vmap(torch.func.grad(lambda c: log_normal_interval(c, width).sum()))
    wanted = evaluate(centre.expand(3, 4), width.expand(3, 4))[1].sum(1)
    torch.testing.assert_close(rows(centre[:, 0]), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
def test_a_gpu_agrees() -> None:
    centre, width = torch.cartesian_prod(torch.tensor(CENTRES), torch.tensor(WIDTHS)).unbind(1)
    on_gpu = evaluate(centre.cuda(), width.cuda())
    for came, wanted in zip(on_gpu, evaluate(centre, width), strict=True):
        torch.testing.assert_close(came.cpu(), wanted, rtol=1e-5, atol=1e-20)
