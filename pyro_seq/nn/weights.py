r"""Weight networks of mixture dynamics: :math:`\alpha_t(a_{0:t-1})`, by recurrence or window.

References:
    Fraccaro, Kamronn, Paquet, Winther (2017), section 3.3.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from pyro_seq.nn.arguments import check_positive
from pyro_seq.plugins import register

__all__ = ["LSTMWeights", "MLPWeights", "StaticWeights", "WeightNetwork"]


class WeightNetwork(nn.Module, ABC):
    r"""Dynamics parameter network :math:`\alpha_t(a_{0:t-1})`, on the simplex of K modes.

    Attributes:
        reads_codes: Whether the weights depend on the codes; set it False for weights that do
            not, so that :math:`a_0` is no parameter that never gets a gradient.
    """

    reads_codes: bool = True

    @abstractmethod
    def initial_state(self, batch: int) -> Any:  # noqa: ANN401
        """State before the first step, a tuple of tensors."""

    @abstractmethod
    def step(self, previous: Tensor, state: Any) -> tuple[Tensor, Any]:  # noqa: ANN401
        """Weights `(batch, modes)` and the next state, from the code `previous (batch, obs)`."""

    @abstractmethod
    def unroll(self, previous: Tensor) -> Tensor:
        """Weights `(batch, time, modes)` of all steps, from `previous (batch, time, obs)`."""


@register("dynamics", "lstm")
class LSTMWeights(WeightNetwork):
    r""":math:`d_t = \mathrm{LSTM}(a_{t-1}, d_{t-1}),\; \alpha_t = \mathrm{softmax}(W d_t)`.

    Args:
        obs: Size of the encoding a.
        modes: K.
        hidden: Units of the LSTM.
    """

    def __init__(self, obs: int, modes: int, hidden: int = 50) -> None:
        super().__init__()
        self.hidden = hidden
        self.cell = nn.LSTM(obs, hidden, batch_first=True)
        self.head = nn.Linear(hidden, modes)
        with torch.no_grad():  # remember by default: the forget gate starts open
            self.cell.get_parameter("bias_ih_l0")[hidden : 2 * hidden] = 1.0
            self.cell.get_parameter("bias_hh_l0")[hidden : 2 * hidden] = 0.0

    def initial_state(self, batch: int) -> tuple[Tensor, Tensor]:
        """Zeros."""
        zeros = self.head.weight.new_zeros(1, batch, self.hidden)
        return zeros, zeros

    def step(
        self, previous: Tensor, state: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """One cell."""
        output, state = self.cell(previous.unsqueeze(1), state)
        return self.head(output.squeeze(1)).softmax(-1), state

    def unroll(self, previous: Tensor) -> Tensor:
        """One call for the whole sequence."""
        return self.head(self.cell(previous)[0]).softmax(-1)


@register("dynamics", "mlp")
class MLPWeights(WeightNetwork):
    r""":math:`\alpha_t = \mathrm{softmax}(\mathrm{MLP}(a_{t-1}, \dots, a_{t-k}))`.

    Before the start stands :math:`a_0`.

    Args:
        obs: Size of the encoding a.
        modes: K.
        hidden: Units of each of the two hidden layers.
        window: Number k of past encodings.

    Raises:
        ValueError: When the window is not positive.
    """

    def __init__(self, obs: int, modes: int, hidden: int = 50, window: int = 1) -> None:
        super().__init__()
        check_positive(window=window)
        self.window = window
        self.network = nn.Sequential(
            nn.Linear(window * obs, hidden),
            nn.SiLU(),
            nn.Linear(hidden, hidden),
            nn.SiLU(),
            nn.Linear(hidden, modes),
        )

    def initial_state(self, batch: int) -> tuple[Tensor, ...]:
        """No encoding yet."""
        return ()

    def step(
        self, previous: Tensor, state: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Shift the window by one."""
        state = (*(state or (previous,) * (self.window - 1)), previous)[-self.window :]
        weights = self.network(torch.cat(state, -1)).softmax(-1)
        return weights, state[1:]

    def unroll(self, previous: Tensor) -> Tensor:
        """All windows at once."""
        padded = torch.cat([previous[:, :1]] * (self.window - 1) + [previous], 1)
        windows = padded.unfold(1, self.window, 1).mT.flatten(-2)
        return self.network(windows).softmax(-1)


@register("dynamics", "static")
class StaticWeights(WeightNetwork):
    r""":math:`\alpha` is one learnt point of the simplex: linear dynamics.

    Args:
        obs: Size of the encoding a.
        modes: K.
    """

    reads_codes = False

    def __init__(self, obs: int, modes: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(modes))

    def initial_state(self, batch: int) -> tuple[()]:
        """Nothing to remember."""
        return ()

    def step(self, previous: Tensor, state: tuple[()]) -> tuple[Tensor, tuple[()]]:
        """The same weights at every step."""
        return self.logits.softmax(-1).expand(previous.shape[0], -1), state

    def unroll(self, previous: Tensor) -> Tensor:
        """The same weights at every step."""
        return self.logits.softmax(-1).expand(*previous.shape[:2], -1)
