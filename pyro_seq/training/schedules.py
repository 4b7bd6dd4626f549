"""Learning rate schedules: torch's own, put together; advanced once per optimizer step."""

from __future__ import annotations

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

__all__ = ["warmup_cosine", "warmup_exponential"]


def warmup_cosine(
    optimizer: Optimizer, steps: int, *, warmup: int = 0, hold: int = 0, final: float = 0.0
) -> LambdaLR:
    r"""Linear warm-up, then half a cosine: rate times :math:`f + (1 - f) (1 + \cos \pi s) / 2`.

    Here s runs from 0, after the warm-up and the steps at the peak rate, to 1 at the last step,
    and f is ``final``.

    Args:
        optimizer: its learning rates are the peak rates.
        steps: number of all steps; afterwards the rate stays at its final value.
        warmup: steps over which the rate grows to its peak; the first step has rate 1/warmup.
        hold: steps at the peak rate after the warm-up.
        final: last rate as a fraction of the peak.

    Returns:
        Schedule to pass to ``fit``.

    Raises:
        ValueError: there are not more steps than warm-up and hold have.
    """
    if not 0 <= warmup < steps:
        raise ValueError(f"warmup must be at least 0 and less than steps = {steps}, got {warmup}")
    if not 0 <= hold < steps - warmup:
        raise ValueError(
            f"hold must be at least 0 and less than the {steps - warmup} steps left, got {hold}"
        )
    start = warmup + hold

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        done = min(max(step - start, 0) / (steps - start), 1.0)
        return final + (1.0 - final) * 0.5 * (1.0 + math.cos(math.pi * done))

    return LambdaLR(optimizer, factor)


def warmup_exponential(
    optimizer: Optimizer, every: int, *, factor: float = 0.85, warmup: int = 0
) -> LambdaLR:
    r"""Linear warm-up, and stairs: the rate times :math:`\gamma^{\lfloor n / m \rfloor}`.

    With ``every`` = 20 epochs of steps and ``factor`` 0.85 this is the schedule of the Kalman VAE.

    Args:
        optimizer: its learning rates are the first rates.
        every: steps m between two decays; n counts the steps done.
        factor: the decay :math:`\gamma`, above 0 and at most 1.
        warmup: steps over which the rate grows to its first value.

    Returns:
        Schedule to pass to ``fit``.

    Raises:
        ValueError: ``every`` is less than 1 or ``factor`` outside (0, 1].
    """
    if every < 1 or not 0.0 < factor <= 1.0:
        raise ValueError(f"every must be >= 1 and factor in (0, 1], got {every} and {factor}")

    def rate(step: int) -> float:
        return factor ** (step // every) * min((step + 1) / warmup if warmup else 1.0, 1.0)

    return LambdaLR(optimizer, rate)
