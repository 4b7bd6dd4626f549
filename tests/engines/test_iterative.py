"""The network of iterative inference, against its equations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import elu

from pyro_seq.engines import IterativeInference
from pyro_seq.engines.iterative import layer_norm

SIZES = {"z.loc": 3, "z.scale": 3, "y.loc": 1}


def network(**options: Any) -> IterativeInference:  # noqa: ANN401
    torch.manual_seed(0)
    made = IterativeInference(SIZES, **{"hidden": [5, 5], "normalise": "log", **options}).double()
    with torch.no_grad():  # away from its start
        for parameter in made.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return made


def groups() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    parameters = {name: torch.randn(4, size).double() for name, size in SIZES.items()}
    gradients = {name: 9 * torch.randn(4, size).double() for name, size in SIZES.items()}
    return parameters, gradients


def by_hand(made: Any, read: list[Tensor], now: Tensor, slope: Tensor) -> Tensor:  # noqa: ANN401
    """Highway layers and the update, each matrix for itself."""
    width = made.head.in_features
    weight = torch.cat([made.first.weight, *(o.weight for o in made.others.values())], 1)
    rows = torch.cat(read, -1) @ weight.mT + made.first.bias
    linear, new, gate = rows[:, :width], rows[:, width : 2 * width], rows[:, 2 * width :]
    g = gate.sigmoid()
    h = g * linear + (1 - g) * elu(new)
    for layer in made.layers:
        new, gate = layer(h).split(width, -1)
        g = gate.sigmoid()
        h = g * h + (1 - g) * elu(new)
    output, gate = made.head(h).split(now.shape[-1], -1)
    g = gate.sigmoid()
    if made.update == "highway":
        return g * now + (1 - g) * output
    return now - made.gradient_scale * g * slope + output


@pytest.mark.parametrize("update", ["highway", "sgd"])
@pytest.mark.parametrize("normalise", ["layer", "log", "none"])
@pytest.mark.parametrize("reads", [("parameters", "gradients"), ("gradients",), ()])
def test_the_update_is_that_of_the_equations(
    update: str, normalise: str, reads: tuple[str, ...]
) -> None:
    others = {"frame": 4, "state": 2}
    made = network(
        update=update, normalise=normalise, reads=reads, others=others, gradient_scale=0.7
    )
    parameters, gradients = groups()
    inputs = {name: torch.randn(4, size).double() for name, size in others.items()}
    found = made(parameters, gradients, [made.share(n, v) for n, v in inputs.items()])

    def normalised(v: Tensor) -> Tensor:
        if normalise == "layer":
            spread = v.var(-1, correction=0, keepdim=True) if v.shape[-1] > 1 else torch.ones(())
            return (v - v.mean(-1, keepdim=True)) / spread.sqrt()
        return torch.where(v < 0, -1, 1) * (1 + v.abs()).log() if normalise == "log" else v

    terms = {"parameters": parameters, "gradients": gradients}
    read = [normalised(terms[kind][name]) for kind in reads for name in SIZES]
    read = read or [torch.zeros(4, 1).double()]
    together = [torch.cat([*group.values()], -1) for group in (parameters, gradients)]
    expected = by_hand(made, [*read, *inputs.values()], *together)
    torch.testing.assert_close(torch.cat([*found.values()], -1), expected)
    assert {name: value.shape[-1] for name, value in found.items()} == SIZES


def test_it_begins_with_little_change_where_all_is_flat() -> None:
    made = IterativeInference(SIZES, update="highway", hidden=[64])
    parameters, gradients = groups()
    some = {name: value.float() for name, value in parameters.items()}
    flat = {name: torch.zeros_like(value).float() for name, value in gradients.items()}
    before = torch.cat([*some.values()], -1)
    after = torch.cat([*made(some, flat).values()], -1)
    assert 0 < (after - before).square().mean() < before.square().mean()


def test_layer_norm_of_like_values_is_zero_and_has_no_infinite_slope() -> None:
    alike = torch.full((2, 4), 3.0, requires_grad=True)
    (slope,) = torch.autograd.grad(layer_norm(alike).sum(), alike)
    assert (layer_norm(alike) == 0).all() and slope.isfinite().all()
    assert (layer_norm(torch.randn(5, 1)) == 0).all()
    values = torch.randn(3, 50).double()
    torch.testing.assert_close(layer_norm(1e-3 * values), layer_norm(values))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"update": "adam"}, "update must be one of highway, sgd; got 'adam'"),
        ({"normalise": "batch"}, "normalise must be one of layer, log, none; got 'batch'"),
        ({"reads": ("frame",)}, "reads must be one of parameters, gradients; got 'frame'"),
        ({"hidden": [4, 5]}, r"one or more layers of one width; got \[4, 5\]"),
        ({"hidden": []}, r"one or more layers of one width; got \[\]"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        IterativeInference(SIZES, **options)
