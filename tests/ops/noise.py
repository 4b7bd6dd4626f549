r"""Read the exact affine map from standard normal noise to a sample.

A Gaussian sampler draws noise :math:`\epsilon` and returns :math:`c + M \epsilon`. Feeding it unit
vectors in place of noise gives :math:`M`, and with it the exact covariance :math:`M M^\top` of its
samples: no Monte-Carlo error, and no knowledge of how the sampler is written.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

STANDARD = (torch.ops.aten.randn, torch.ops.aten.randn_like)


class NoiseTape(TorchDispatchMode):
    """Replace the normal random numbers drawn inside by those of a tape, zeros past its end."""

    def __init__(self, tape: Tensor) -> None:
        super().__init__()
        self.tape = tape
        self.used = 0

    def _fill(self, out: Tensor) -> Tensor:
        values = self.tape[self.used : self.used + out.numel()].to(out)
        self.used += out.numel()
        values = torch.nn.functional.pad(values, (0, out.numel() - values.numel()))
        return out.copy_(values.reshape(out.shape))

    def __torch_dispatch__(
        self, func: OpOverload, types: tuple, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **(kwargs or {}))
        if func.overloadpacket in STANDARD:
            return self._fill(func(*args, **(kwargs or {})))
        if func is torch.ops.aten.normal_.default and tuple(args[1:3]) in [(), (0.0,), (0.0, 1.0)]:
            return self._fill(args[0])
        raise NotImplementedError(f"the noise tape does not know the random operation {func}")


def noise_count(sample: Callable[[], Tensor]) -> int:
    """How many normal numbers one call of ``sample`` draws."""
    with NoiseTape(torch.zeros(0, dtype=torch.float64)) as tape:
        sample()
    return tape.used


def affine_map(sample: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
    """Offset ``(n,)`` and matrix ``(n, noise)`` of a sampler of n numbers; differentiable."""
    count = noise_count(sample)
    units = torch.cat([torch.zeros(1, count), torch.eye(count)]).double()
    results = []
    for unit in units:
        with NoiseTape(unit):
            results.append(sample().flatten())
    stacked = torch.stack(results, dim=-1)
    return stacked[:, 0], stacked[:, 1:] - stacked[:, :1]
