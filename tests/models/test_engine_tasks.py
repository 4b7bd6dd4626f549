"""The tasks of engines as likelihoods, against the costs that the papers train by."""

from __future__ import annotations

import math
from typing import NamedTuple

import pytest
import torch
from pyro import poutine
from torch import Size, Tensor, nn
from torch.nn import functional

from pyro_seq.engines import ConvLSTMRow, Engine, LinearRow, LSTMRow, RLadder, RTagger, SoftMaxRow
from pyro_seq.guides import NoLatents
from pyro_seq.models import EngineTasks
from pyro_seq.training import SequenceLoss

FRAME = (1, 4, 4)


def ladder() -> RLadder:
    return RLadder(FRAME, [ConvLSTMRow(3), LSTMRow(4), SoftMaxRow(3)]).double()


def grouping(pixels: str = "bernoulli") -> RTagger:
    rows = [LinearRow(8), LSTMRow(5, normalised=True), SoftMaxRow(4)]
    return RTagger(FRAME, rows, 2, pixels=pixels, norm="layer").double()


class Count(NamedTuple):
    steps: Tensor


class Rise(Engine):
    """Counts its steps, and foretells nothing."""

    def initial_state(self, batch_shape: Size) -> Count:
        return Count(torch.zeros(batch_shape))

    def step(self, state: Count, x_t: Tensor) -> tuple[Count, Count]:
        return state, Count(state.steps + 1)


def sites(model: EngineTasks, *data: Tensor | None) -> dict[str, Tensor]:
    trace = poutine.trace(model).get_trace(*data)
    trace.compute_log_prob()
    return {name: trace.nodes[name]["log_prob"] for name in trace.observation_nodes}


def test_a_ladder_is_trained_by_squared_errors_and_cross_entropy() -> None:
    model = EngineTasks(ladder(), scale=0.5, frame_weight=0.3, class_weight=2.0)
    x, labels = torch.rand(2, 5, *FRAME).double(), torch.full((2, 5, 1), -1.0).double()
    labels[0, 4] = 2
    found = sites(model, x, None, labels)
    outputs, _ = model.engine(x)
    errors = (outputs.prediction[:, :-1] - x[:, 1:]).square().flatten(1).sum(1)
    constant = 0.5 * 4 * 16 * math.log(2 * math.pi * 0.25)
    torch.testing.assert_close(found["x"], -0.3 * (errors / (2 * 0.25) + constant))
    entropy = functional.cross_entropy(outputs.logits[0, 4], torch.tensor(2))
    torch.testing.assert_close(found["y"], torch.stack([-2 * entropy, torch.zeros_like(entropy)]))


@pytest.mark.parametrize("pixels", ["bernoulli", "gaussian"])
def test_iterations_of_a_tagger_have_the_mean_of_its_costs(pixels: str) -> None:
    model = EngineTasks(grouping(pixels), iterations=3)
    x, labels = (torch.rand(4, 1, *FRAME) > 0.5).double(), torch.tensor([0, 1, 2, -1])
    for mode in (model.eval, model.train):  # in training the frames are corrupted
        mode()
        torch.manual_seed(0)
        found = sites(model, x, None, labels.double().reshape(4, 1, 1))
        torch.manual_seed(0)
        passed = model.engine.denoise(x[:, 0], 3)
        torch.testing.assert_close(found["x"], -16 * passed.cost.mean(1))
        classes = passed.output.class_log_probs[:, -1]
        right = classes[torch.arange(4), labels.clamp(min=0)]
        torch.testing.assert_close(found["y"], torch.where(labels >= 0, right, 0))


def test_a_tagger_foretells_the_next_frame() -> None:
    model = EngineTasks(grouping().eval())
    x, mask = (torch.rand(3, 4, *FRAME) > 0.5).double(), torch.ones(3, 4, dtype=torch.bool)
    mask[1, 2:] = False
    torch.manual_seed(0)
    found = sites(model, x, mask)["x"]
    torch.manual_seed(0)
    cost = model.engine.predict(x, mask).cost
    torch.testing.assert_close(found, -16 * cost.sum(1))


@pytest.mark.parametrize("iterations", [None, 2])
def test_missing_frames_change_nothing(iterations: int | None) -> None:
    model = EngineTasks(grouping().eval(), iterations=iterations)
    x = (torch.rand(3, 3 if iterations is None else 1, *FRAME) > 0.5).double()
    mask = torch.ones(x.shape[:2], dtype=torch.bool)
    mask[1, -1] = False
    found = []
    for fill in (0.0, torch.nan):
        filled = torch.where(mask[..., None, None, None], x, fill)
        torch.manual_seed(0)
        nats = sites(model, filled, mask)["x"]
        found.append((nats, *torch.autograd.grad(nats.sum(), [*model.engine.read_m.parameters()])))
    torch.testing.assert_close(found[1], found[0])
    if iterations is not None:
        assert found[0][0][1] == 0


def test_the_loss_of_training_reaches_every_parameter() -> None:
    for model, time in ((EngineTasks(ladder()), 3), (EngineTasks(grouping(), iterations=2), 1)):
        loss = SequenceLoss(model, NoLatents())
        labels = torch.zeros(4, time, 1).double()
        loss((torch.rand(4, time, *FRAME).double().round(), None, labels)).backward()
        parameters: nn.Module = model.engine
        assert all(p.grad is not None for p in parameters.parameters())


def test_what_does_not_fit_is_refused() -> None:
    x = torch.zeros(2, 1, *FRAME).double()
    with pytest.raises(ValueError, match="iterations must be at least 1; got 0"):
        EngineTasks(ladder(), iterations=0)
    with pytest.raises(ValueError, match="scale must be positive and weights .* scale=0"):
        EngineTasks(ladder(), scale=0.0)
    with pytest.raises(TypeError, match="iterations must be an int; got 2.5"):
        EngineTasks(ladder(), iterations=2.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="weights must not be negative; .* class_weight=nan"):
        EngineTasks(ladder(), class_weight=math.nan)
    blind = RLadder(FRAME, [LSTMRow(3)], decoder=False).double()
    with pytest.raises(TypeError, match="engine must predict frames; this RLadder has no decoder"):
        EngineTasks(blind)(x.expand(-1, 3, *FRAME))
    with pytest.raises(TypeError, match="this Rise .* its output has no prediction"):
        EngineTasks(Rise(FRAME))(torch.zeros(2, 3, *FRAME))
    with pytest.raises(ValueError, match="x must have two frames or more"):
        EngineTasks(ladder())(x)
    with pytest.raises(ValueError, match="x must have one frame to iterate on"):
        EngineTasks(ladder(), iterations=2)(x.expand(-1, 3, *FRAME))
    with pytest.raises(ValueError, match=r"controls must be labels .*\(2, 1, 1\); got .*\(2, 1\)"):
        EngineTasks(grouping(), iterations=2)(x, None, torch.zeros(2, 1))
    headless = RTagger(FRAME, [LinearRow(4)], 2, norm="layer").double()
    with pytest.raises(ValueError, match="engine without a head of classes"):
        EngineTasks(headless, iterations=1)(x, None, torch.zeros(2, 1, 1))
    with pytest.raises(TypeError, match="engine must be an Engine; got Linear"):
        EngineTasks(nn.Linear(1, 1))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="mask must be bool"):
        EngineTasks(ladder())(x.expand(-1, 3, *FRAME), torch.ones(2, 3))
    with pytest.raises(ValueError, match="x must be torch.float64, .*; got torch.float32"):
        EngineTasks(ladder())(x.expand(-1, 3, *FRAME).float())
    with pytest.raises(ValueError, match="x must be finite where it is observed"):
        EngineTasks(ladder())(x.expand(-1, 3, *FRAME) * math.nan)
    with pytest.raises(ValueError, match="x must lie between 0 and 1 for Bernoulli frames"):
        EngineTasks(grouping(), iterations=2)(x - 1)


@pytest.mark.parametrize("label", [3.0, -2.0, 1.5, math.nan])
def test_a_label_that_is_no_class_is_refused_where_it_is_observed(label: float) -> None:
    x, labels = torch.zeros(2, 3, *FRAME).double(), torch.full((2, 3, 1), -1.0)
    labels[0, 2] = label
    with pytest.raises(ValueError, match=f"labels from 0 to 2, or -1 for none; got {label:g}"):
        EngineTasks(ladder())(x, None, labels)
    mask = torch.tensor([[True, True, False], [True, True, True]])
    assert sites(EngineTasks(ladder()), x, mask, labels)["y"].tolist() == [0.0, 0.0]
