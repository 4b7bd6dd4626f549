"""Frames that are missing while time goes on: the engine reads what it foretold."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Size, Tensor

from pyro_seq.engines import ConvLSTMRow, LSTMRow, RLadder, RTagger
from pyro_seq.models import EngineTasks
from pyro_seq.ops.trees import map_tensors

FRAME, TIME = (1, 4, 4), 5


def engines() -> list[Any]:
    ladder = RLadder(FRAME, [ConvLSTMRow(2), LSTMRow(3)])
    made = RTagger(FRAME, [ConvLSTMRow(2), LSTMRow(3)], 2, pixels="bernoulli", mean=0.3)
    return [ladder.double().eval(), made.double().eval()]


def frames() -> tuple[Tensor, Tensor]:
    mask = torch.tensor([[1, 1, 0, 0, 1], [1, 0, 1, 0, 0], [0, 0, 1, 1, 0]], dtype=torch.bool)
    return torch.rand(3, TIME, *FRAME).double(), mask


@pytest.mark.parametrize("engine", engines())
def test_steps_read_what_was_foretold(engine: Any) -> None:  # noqa: ANN401
    x, mask = frames()
    start = engine.initial_state(Size([3]))
    hidden = x.clone()
    hidden[~mask] = torch.nan
    outputs, end = engine(hidden, mask, start, gaps="imagine")
    for row in range(3):
        state = map_tensors(lambda part, row=row: part[row : row + 1], start)
        foretold, begun = None, False
        for t in range(TIME):
            seen = bool(mask[row, t])
            begun |= seen
            if not begun:
                continue
            x_t = x[row : row + 1, t] if seen else foretold
            output, state = engine.step(state, x_t)
            foretold = output.prediction
            torch.testing.assert_close(outputs.prediction[row : row + 1, t], foretold)
        torch.testing.assert_close(
            map_tensors(lambda part, row=row: part[row : row + 1], end), state
        )


def test_a_gap_at_the_end_is_imagination() -> None:
    engine, (x, _) = engines()[1], frames()
    start = engine.initial_state(Size([3]))
    mask = (torch.arange(TIME) < 3).expand(3, TIME)
    outputs, end = engine(x, mask, start, gaps="imagine")
    seen, state = engine(x[:, :3], state=start)
    last = map_tensors(lambda part: part[:, -1], seen)
    imagined, expected = engine.imagine(last, state, 2)
    torch.testing.assert_close(outputs.m[:, 3:], imagined.m)
    torch.testing.assert_close(end, expected)


@pytest.mark.parametrize("engine", engines())
def test_a_sequence_may_be_cut_where_a_frame_is_observed(engine: Any) -> None:  # noqa: ANN401
    x, mask = (part[:1] for part in frames())
    start = engine.initial_state(Size([1]))
    whole, end = engine(x, mask, start, gaps="imagine")
    _, state = engine(x[:, :4], mask[:, :4], start, gaps="imagine")
    rest, last = engine(x[:, 4:], mask[:, 4:], state, gaps="imagine")
    torch.testing.assert_close(rest.prediction, whole.prediction[:, 4:])
    torch.testing.assert_close(last, end)
    _, state = engine(x[:, :3], mask[:, :3], start, gaps="imagine")
    _, waited = engine(x[:, 3:4], mask[:, 3:4], state, gaps="imagine")
    torch.testing.assert_close(waited, state)


def test_the_likelihood_is_of_observed_frames() -> None:
    engine, (x, mask) = engines()[1], frames()
    tasks = EngineTasks(engine, gaps="imagine").double()
    x, mask = x[:2].round(), mask[:2]
    torch.manual_seed(0)
    found = tasks.foretold(x, mask)
    torch.manual_seed(0)
    cost = engine.predict(x, mask, gaps="imagine").cost
    torch.testing.assert_close(found.log_likelihood, -16 * cost)
    assert ((cost != 0) == mask[:, 1:]).all()
    torch.manual_seed(0)
    waited = EngineTasks(engine).foretold(x, mask)
    assert (waited.log_likelihood - found.log_likelihood).abs()[0, 3] > 1e-6


def test_bad_input() -> None:
    x, mask = frames()
    with pytest.raises(ValueError, match="gaps must be one of wait, imagine; got 'skip'"):
        engines()[0](x, mask, gaps="skip")
    with pytest.raises(ValueError, match="gaps must be one of wait, imagine; got 'skip'"):
        EngineTasks(engines()[0], gaps="skip")
    blind = RLadder(FRAME, [ConvLSTMRow(2), LSTMRow(3)], decoder=False).double()
    with pytest.raises(TypeError, match="needs an engine that predicts frames"):
        blind(x, mask, gaps="imagine")
