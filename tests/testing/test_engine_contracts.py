"""Each contract of engines passes on a sound one and fails, by name, on one with one fault."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
from torch import Size, Tensor, nn

from pyro_seq.engines import Engine
from pyro_seq.testing import ENGINE_CONTRACTS, ContractError, check_engine

FAULTS = {
    "no batch": "the_batch_comes_first",
    "state grows": "the_batch_comes_first",
    "forward": "steps_agree_with_forward",
    "iterate": "iterations_are_repeated_steps",
    "hidden state": "nothing_is_remembered",
    "in place": "nothing_is_remembered",
    "keeps": "states_can_be_saved",
    "couples": "sequences_are_independent",
    "one batch dimension": "batch_dimensions_flatten",
    "mask ignored": "masked_frames_leave_the_state",
    "unused parameter": "every_engine_parameter_is_trained",
    "scalar parameter": "every_engine_parameter_is_trained",
    "forgets": "past_frames_are_remembered",
    "accepts anything": "wrong_frames_are_refused",
    "float32": "double_engine_stays_double",
    "hidden constant": "copies_agree",
}


class ToyState(NamedTuple):
    """Sum of the frames, and how many there were."""

    total: Tensor
    steps: Tensor


class ToyOutput(NamedTuple):
    """A linear map of the sum."""

    features: Tensor


class ToyEngine(Engine):
    """Reads the sum of all frames, with one fault."""

    def __init__(self, fault: str = "") -> None:
        super().__init__((2, 3))
        self.fault, self.calls, self.kept = fault, 0, torch.zeros(1)
        self.out = nn.Linear(6, 5)
        self.scale = nn.Parameter(torch.ones(() if fault == "scalar parameter" else (1,)))
        if fault == "unused parameter":
            self.unused = nn.Parameter(torch.ones(1))
        self.constant = torch.randn(1) if fault == "hidden constant" else torch.zeros(1)

    def initial_state(self, batch_shape: Size) -> ToyState:
        zeros = self.out.weight.new_zeros
        shape = (6,) if self.fault == "no batch" else (*batch_shape, 6)
        return ToyState(zeros(shape), zeros(batch_shape, dtype=torch.long))

    def step(self, state: ToyState, x_t: Tensor) -> tuple[ToyOutput, ToyState]:
        if self.fault != "accepts anything":
            self.check_frames(x_t)
        self.calls += 1
        flat = x_t.reshape(*x_t.shape[:-2], -1)
        total = self._total(state, nn.functional.pad(flat, (0, 6 - flat.shape[-1])))
        out = self.scale * self.out(total) + self.constant.to(total)
        if self.fault == "hidden state" and self.calls > 8:
            out = 2 * out
        if self.fault == "float32":
            out = out.float()
        if self.fault == "state grows":
            total = torch.cat([total, total], -1)
        return ToyOutput(out), ToyState(total, state.steps + 1)

    def _total(self, state: ToyState, x: Tensor) -> Tensor:
        if self.fault == "in place":
            return state.total.add_(x.detach())
        if self.fault == "forgets":
            return x
        if self.fault == "keeps":
            self.kept = x if not state.steps.any() else self.kept + x
            return self.kept
        total = state.total + x
        if self.fault == "couples":
            return total - x.mean(0)
        return total.flip(0) if self.fault == "one batch dimension" and x.dim() > 2 else total

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        state: Any = None,  # noqa: ANN401
    ) -> tuple[Any, Any]:
        if self.fault == "mask ignored":
            mask = None
        outputs, state = super().forward(x, mask, state)
        if self.fault == "forward":
            outputs = ToyOutput(outputs.features + 1)
        return outputs, state

    def iterate(self, x: Tensor, n: int, state: Any = None) -> tuple[Any, Any]:  # noqa: ANN401
        outputs, state = super().iterate(x, n, state)
        if self.fault == "iterate":
            state = state._replace(steps=state.steps - 1)
        return outputs, state


def test_a_sound_engine_passes() -> None:
    check_engine(ToyEngine)


@pytest.mark.parametrize(("fault", "contract"), FAULTS.items(), ids=list(FAULTS))
def test_a_faulty_engine_fails(fault: str, contract: str) -> None:
    with pytest.raises(ContractError, match=f"The engine breaks the contract '{contract}'"):
        check_engine(partial(ToyEngine, fault))


def test_every_contract_has_an_engine_that_breaks_it() -> None:
    assert {contract.__name__ for contract in ENGINE_CONTRACTS} == set(FAULTS.values())


def test_other_parts_are_refused() -> None:
    with pytest.raises(ContractError, match=r"expected a pyro_seq\.engines\.Engine, got Linear"):
        check_engine(lambda: nn.Linear(2, 2))  # type: ignore[arg-type, return-value]
