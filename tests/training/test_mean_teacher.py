"""The mean teacher: its average, the cost of differing from it, checkpoints."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn

from pyro_seq.data import Batch
from pyro_seq.guides import NoLatents
from pyro_seq.models import auxiliary
from pyro_seq.training import MeanTeacher, SequenceLoss, fit


def moved(student: nn.Linear, generator: torch.Generator) -> Tensor:
    with torch.no_grad():
        student.weight.copy_(torch.randn(student.weight.shape, generator=generator))
    return student.weight.detach().clone()


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9])
def test_average(decay: float) -> None:
    """Of all steps so far to begin with, then exponential: against the sum written out."""
    student = nn.Linear(3, 4).double()
    teacher, generator = MeanTeacher(student, decay=decay), torch.Generator().manual_seed(0)
    steps = []
    for n in range(1, 13):
        steps.append(moved(student, generator))
        teacher.update(student)
        rates = [max(1 / k, 1 - decay) for k in range(1, n + 1)]
        weights = [r * math.prod(1 - s for s in rates[k + 1 :]) for k, r in enumerate(rates)]
        wanted = sum(w * step for w, step in zip(weights, steps, strict=True))
        torch.testing.assert_close(teacher.average.module.weight, wanted)
        assert math.isclose(sum(weights), 1.0)
    if decay == 0.9:  # no farther than where the rate of the mean is the larger one
        early = torch.stack(steps[:10]).mean(0)
        teacher = MeanTeacher(student, decay=decay)
        for step in steps[:10]:
            student.weight.data.copy_(step)
            teacher.update(student)
        torch.testing.assert_close(teacher.average.module.weight, early)


def test_cost_and_its_gradient() -> None:
    """The closed form; the gradient of the student alone."""
    torch.manual_seed(0)
    one, two = (torch.randn(5, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    teacher = MeanTeacher(nn.Linear(1, 1), weight=7.0)
    cost = teacher.cost(one, two)
    p, q = (logits.detach().exp() / logits.detach().exp().sum(-1, True) for logits in (one, two))
    torch.testing.assert_close(cost.detach(), 7.0 * (p - q).square().sum(-1) / 4)
    cost.sum().backward()
    slope = 2 * 7.0 / 4 * (p - q)
    torch.testing.assert_close(one.grad, p * (slope - (slope * p).sum(-1, keepdim=True)))
    assert two.grad is None


def test_weight_grows() -> None:
    student = nn.Linear(1, 1)
    teacher = MeanTeacher(student, weight=20.0, ramp=4)
    weights = []
    for _ in range(7):
        weights.append(float(teacher.current_weight()))
        teacher.update(student)
    wanted = [20 * math.exp(-5 * (1 - min(n / 4, 1)) ** 2) for n in range(7)]
    assert weights == pytest.approx(wanted)
    assert float(MeanTeacher(student, weight=3.0).current_weight()) == 3.0


def test_it_takes_no_gradient_and_shares_nothing() -> None:
    student = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    teacher = MeanTeacher(student)
    assert not any(p.requires_grad for p in teacher.parameters())
    assert all(p.requires_grad for p in student.parameters())
    assert not teacher(torch.ones(4, 2)).requires_grad
    student(torch.randn(8, 2) + 3)
    teacher.update(student)
    assert isinstance(student[1], nn.BatchNorm1d)
    torch.testing.assert_close(teacher.average.module[1].running_mean, student[1].running_mean)
    before = teacher(torch.ones(4, 2))
    with torch.no_grad():
        student[0].weight.add_(1.0)
    assert torch.equal(teacher(torch.ones(4, 2)), before)


class Classes(PyroModule):
    """A network whose only task is to agree with its teacher under noise."""

    def __init__(self) -> None:
        super().__init__("classes")
        self.student = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Linear(8, 4))
        self.teacher = MeanTeacher(self.student, decay=0.9, ramp=6)

    def forward(self, x: Tensor, mask: Any = None, controls: Any = None) -> None:  # noqa: ANN401
        frames = x[:, 0]
        said = self.student(frames + torch.randn_like(frames))
        taught = self.teacher(frames + torch.randn_like(frames))
        with pyro.plate("sequences", len(x), dim=-1):
            pyro.factor("y", torch.log_softmax(said, -1)[:, 0])
            auxiliary("consistency", self.teacher.cost(said, taught))


def run(folder: Path | None, epochs: int, resume: bool = False) -> dict[str, Tensor]:
    torch.manual_seed(0)
    model = Classes()
    loss = SequenceLoss(model, NoLatents(), per="sequence")
    batches = [Batch(torch.randn(6, 1, 3, generator=torch.Generator().manual_seed(1)))] * 3
    optimizer = torch.optim.Adam(model.student.parameters(), 0.05)
    fit(
        loss, batches, epochs=epochs, optimizer=optimizer, checkpoint_dir=folder, resume=resume,
        callbacks=[model.teacher.follow(model.student)], progress=False,
    )  # fmt: skip
    return loss.state_dict()


def test_a_resumed_run_has_the_same_teacher(tmp_path: Path) -> None:
    """To the bit; and the teacher of a run is not its student."""
    whole = run(None, 4)
    run(tmp_path, 2)
    resumed = run(tmp_path, 4, resume=True)
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert int(whole["model.teacher.average.n_averaged"]) == 12
    apart = whole["model.student.0.weight"] - whole["model.teacher.average.module.0.weight"]
    assert apart.abs().max() > 1e-3


def test_the_cost_counts_in_training_alone() -> None:
    torch.manual_seed(0)
    model = Classes()
    loss = SequenceLoss(model, NoLatents(), per="sequence")
    with torch.no_grad():
        model.student[2].weight.add_(torch.randn(4, 8))
    x = torch.randn(6, 1, 3)
    torch.manual_seed(1)
    trained = loss(Batch(x)).detach()
    torch.manual_seed(1)
    with torch.no_grad():
        assert trained > loss(Batch(x)) + 1e-4


def test_bad_input() -> None:
    network = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="decay must be at least 0 and below 1; got 1"):
        MeanTeacher(network, decay=1.0)
    with pytest.raises(ValueError, match="weight and ramp must not be negative; got weight=-1"):
        MeanTeacher(network, weight=-1.0)
    with pytest.raises(ValueError, match=r"one shape \(\*batch, classes\); got \(2, 3\)"):
        MeanTeacher(network).cost(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(TypeError, match="student must be a module; got str"):
        MeanTeacher("network")  # type: ignore[arg-type]
    for other in (nn.Linear(2, 3), nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))):
        for take in (MeanTeacher(network).update, MeanTeacher(network).follow):
            with pytest.raises(ValueError, match=r"student must have .*\[\(2, 2\), \(2,\)\]; got"):
                take(other)
