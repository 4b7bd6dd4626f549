"""Each contract of memories passes on a sound one and fails, by name, on one with one fault."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
from torch import Size, Tensor, nn

from pyro_seq.memory import Context, Memory
from pyro_seq.testing import MEMORY_CONTRACTS, ContractError, check_memory

FAULTS = {
    "context": "sizes_are_as_announced",
    "no batch": "sizes_are_as_announced",
    "sum": "weights_are_bounded",
    "forward": "steps_agree_with_forward",
    "hidden state": "nothing_is_remembered",
    "in place": "nothing_is_remembered",
    "keeps": "states_can_be_saved",
    "couples": "sequences_are_independent",
    "one batch dimension": "batch_dimensions_flatten",
    "mask ignored": "masked_steps_leave_the_state",
    "root": "gradients_are_finite",
    "unused parameter": "every_memory_parameter_is_trained",
    "scalar parameter": "every_memory_parameter_is_trained",
    "forgets": "past_latents_are_remembered",
    "accepts anything": "wrong_inputs_are_refused",
    "float32": "double_memory_stays_double",
    "float32 at first": "double_memory_stays_double",
    "hidden constant": "copies_agree",
}


class ToyState(NamedTuple):
    """Sum of the latents."""

    total: Tensor


class ToyMemory(Memory):
    """Reads the sum of all latents, with one fault."""

    def __init__(self, fault: str = "") -> None:
        super().__init__(3, slots=2, heads=1, controls=2, frame_features=1)
        self.fault, self.calls, self.kept = fault, 0, torch.zeros(1)
        self.reads, self.context = 3, 4 if fault == "context" else 5
        self.out, self.score = nn.Linear(6, 5), nn.Linear(3, 2)
        self.scale = nn.Parameter(torch.ones(() if fault == "scalar parameter" else (1,)))
        if fault == "unused parameter":
            self.unused = nn.Parameter(torch.ones(1))
        self.constant = torch.randn(1) if fault == "hidden constant" else torch.zeros(1)

    def initial_state(self, batch_shape: Size) -> ToyState:
        self.kept = torch.zeros(1)
        shape = (3,) if self.fault == "no batch" else (*batch_shape, 3)
        of = torch.float32 if self.fault == "float32 at first" else self.score.weight.dtype
        return ToyState(torch.zeros(shape, dtype=of))

    def step(
        self,
        state: ToyState,
        z: Tensor,
        u_t: Tensor | None = None,
        features: Tensor | None = None,
    ) -> tuple[Context, ToyState]:
        if self.fault != "accepts anything":
            self.inputs(z, u_t, features)
        self.calls += 1
        total = self._total(state, z)
        square = total.square().sum(-1, keepdim=True)
        read = total / (1 + square.sqrt() if self.fault == "root" else (1 + square).sqrt())
        weights = self.score(read).softmax(-1).unsqueeze(-2)
        rest = zip((u_t, features), (2, 1), strict=True)
        inputs = [read, *(z.new_zeros(*z.shape[:-1], n) if p is None else p for p, n in rest)]
        out = self.scale * self.out(torch.cat([p[..., :3] for p in inputs], -1)[..., :6])
        out = out + weights[..., 0, :1] + self.constant.to(read)
        if self.fault == "hidden state" and self.calls > 12:
            out = 2 * out
        if self.fault == "float32":
            out = out.float()
        weights = 1.1 * weights if self.fault == "sum" else weights
        return Context(out, read, weights), ToyState(total)

    def _total(self, state: ToyState, z: Tensor) -> Tensor:
        if self.fault == "in place":
            return state.total.add_(z.detach())
        if self.fault == "forgets":
            return z
        if self.fault == "keeps":
            self.kept = self.kept + z
            return self.kept
        total = state.total + z
        if self.fault == "couples":
            return total - z.mean(0)
        return total.flip(0) if self.fault == "one batch dimension" and z.dim() > 2 else total

    def forward(
        self,
        z: Tensor,
        controls: Tensor | None = None,
        mask: Tensor | None = None,
        features: Tensor | None = None,
        state: Any = None,  # noqa: ANN401
    ) -> tuple[Context, Any]:
        if self.fault == "mask ignored":
            mask = None
        context, state = super().forward(z, controls, mask, features, state)
        if self.fault == "forward":
            context = context._replace(features=context.features + 1)
        return context, state


def test_a_sound_memory_passes() -> None:
    check_memory(ToyMemory)


@pytest.mark.parametrize(("fault", "contract"), FAULTS.items(), ids=list(FAULTS))
def test_a_faulty_memory_fails(fault: str, contract: str) -> None:
    with pytest.raises(ContractError, match=f"The memory breaks the contract '{contract}'"):
        check_memory(partial(ToyMemory, fault))


def test_every_contract_has_a_memory_that_breaks_it() -> None:
    assert {contract.__name__ for contract in MEMORY_CONTRACTS} == set(FAULTS.values())


def test_other_parts_are_refused() -> None:
    with pytest.raises(ContractError, match=r"expected a pyro_seq\.memory\.Memory, got Linear"):
        check_memory(lambda: nn.Linear(2, 2))  # type: ignore[arg-type, return-value]
