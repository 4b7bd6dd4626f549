"""A training step of an engine reads no tensor, and a CUDA device gives the numbers of the CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pytest
import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

from pyro_seq.engines import (
    ConvLSTMRow,
    ConvRow,
    LinearRow,
    LSTMRow,
    PoolRow,
    RLadder,
    RTagger,
    SoftMaxRow,
)

FRAME = (1, 6, 6)


class NoReading(TorchDispatchMode):
    """Fails where a value is brought to Python, for which a device would have to be waited for."""

    def __torch_dispatch__(
        self, func: OpOverload, types: tuple, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        assert func is not torch.ops.aten._local_scalar_dense.default, "a tensor was read"
        return func(*args, **(kwargs or {}))


def ladder() -> RLadder:
    rows = [ConvLSTMRow(3), ConvRow(4), PoolRow(2), LSTMRow(5), SoftMaxRow(3)]
    return RLadder(FRAME, rows, norm="batch", d2e="all")


def tagger(pixels: str) -> RTagger:
    rows = [LinearRow(8), LSTMRow(4, normalised=True), SoftMaxRow(3)]
    return RTagger(FRAME, rows, 2, pixels=pixels)


def ladder_loss(engine: RLadder, x: Tensor, mask: Tensor) -> Tensor:
    outputs, _ = engine(x, mask)
    return outputs.logits.square().mean() + (outputs.prediction - x).square().mean()


def tagger_loss(engine: RTagger, x: Tensor, mask: Tensor) -> Tensor:
    state = engine.initial_state(x.shape[:1])
    state = state._replace(log_m=torch.zeros_like(state.log_m))  # not drawn: devices differ
    found = engine.predict(x, mask, state)
    return found.cost.sum() - found.output.class_log_probs[:, :, 0].sum()


CASES = [
    pytest.param(ladder, ladder_loss, id="rladder"),
    pytest.param(lambda: tagger("gaussian"), tagger_loss, id="rtagger, gaussian"),
    pytest.param(lambda: tagger("bernoulli"), tagger_loss, id="rtagger, bernoulli"),
]


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = (torch.rand(4, 3, *FRAME, generator=generator) < 0.4).float()
    return x, torch.rand(4, 3, generator=generator) > 0.3


@pytest.mark.parametrize(("make", "loss"), CASES)
def test_a_step_reads_no_tensor(make: Callable[[], Any], loss: Callable[..., Tensor]) -> None:
    engine, (x, mask) = make(), data()
    with pyro.validation_enabled(False), NoReading():
        loss(engine, x, mask).backward()
    with pytest.raises(AssertionError, match="a tensor was read"), NoReading():
        float(x.sum())


@pytest.mark.gpu
@pytest.mark.parametrize(("make", "loss"), CASES)
def test_values_and_gradients_equal_those_of_the_cpu(
    make: Callable[[], Any], loss: Callable[..., Tensor]
) -> None:
    results = []
    for device in ("cpu", "cuda"):
        torch.manual_seed(0)
        engine = make().double().to(device)
        x, mask = data()
        value = loss(engine, x.double().to(device), mask.to(device))
        gradients = torch.autograd.grad(value, [*engine.parameters()])
        results.append([value, *gradients, *engine.buffers()])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(other.cpu(), one, rtol=1e-6, atol=1e-8)


@pytest.mark.gpu
@pytest.mark.parametrize(("make", "loss"), CASES)
def test_a_step_does_not_wait_for_the_device(
    make: Callable[[], Any], loss: Callable[..., Tensor]
) -> None:
    engine, (x, mask) = make().cuda(), (part.cuda() for part in data())
    loss(engine, x, mask).backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss(engine, x, mask).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
