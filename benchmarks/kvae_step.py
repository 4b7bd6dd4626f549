"""One training step of a Kalman variational auto-encoder, and which part of it costs what."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.harness import Cost, Step, compare
from pyro_seq.guides.kalman import KalmanGuide
from pyro_seq.models.kvae import KVAE
from pyro_seq.training.loss import SequenceLoss

NETWORKS = ("mlp", "conv")
WHOLE = "whole step"
Row = dict[str, float | dict[str, float]]


def make_steps(networks: str, batch: int, time: int, size: int) -> dict[str, Step]:
    """The whole step, and each part alone, forward and backward."""
    torch.manual_seed(0)
    model = KVAE((1, size, size), decoder=networks)
    guide = KalmanGuide(model, networks)
    loss = SequenceLoss(model, guide)
    optimizer = torch.optim.Adam(loss.parameters(), lr=1e-3)
    x = (torch.rand(batch, time, 1, size, size) < 0.05).float()
    code = guide.codes(x).sample().requires_grad_()
    weights_input = code.detach()

    def backward(total: Tensor) -> None:
        total.backward()
        code.grad = None

    def whole() -> None:
        optimizer.zero_grad()
        loss(x).backward()
        optimizer.step()

    def encode() -> None:
        q = guide.codes(x)
        backward(q.log_prob(q.rsample()).sum())

    return {
        WHOLE: whole,
        "encoder": encode,
        "decoder": lambda: backward(model.frames(code).log_prob(x).sum()),
        "Kalman and weight network": lambda: backward(
            model.prior(batch, time).log_prob(code).sum()
        ),
        "weight network alone": lambda: backward(
            model.dynamics.network.unroll(weights_input).square().sum()
        ),
        "optimizer": optimizer.step,
    }


def run_step(
    networks: str, repetitions: int, batch: int = 32, time: int = 20, size: int = 32
) -> Row:
    """Costs of the parts; what they leave of the whole step is Pyro and the loss."""
    steps = make_steps(networks, batch, time, size)
    costs = {name: cost._asdict() for name, cost in compare(steps, repetitions).items()}
    parts = ("encoder", "decoder", "Kalman and weight network", "optimizer")
    rest = {
        key: costs[WHOLE][key] - sum(costs[part][key] for part in parts)
        for key in ("wall_ms", "cpu_ms", "operations")
    }
    return {"batch": batch, "time": time, "size": size, **costs, "Pyro and the rest": rest}


def describe_step(networks: str, row: Row) -> list[str]:
    """A line per part, with its share of the whole step's CPU time."""
    whole = Cost(**row[WHOLE]).cpu_ms
    lines = [f"KVAE step, {networks} networks, batch {row['batch']}, T {row['time']}:"]
    for name, cost in row.items():
        if isinstance(cost, dict):
            share = cost["cpu_ms"] / whole
            lines.append(
                f"  {name:<26} {cost['wall_ms']:>8.1f} ms  CPU {cost['cpu_ms']:>8.1f} ms"
                f"  {share:>5.0%}  {cost['operations']:>6} operations"
            )
    return lines
