r"""The mean teacher: a network is to agree with the running average of itself.

.. math::
    \bar\theta_n &= \alpha_n \bar\theta_{n-1} + (1 - \alpha_n) \theta_n, \qquad
    \alpha_n = \min\big(1 - 1 / n, \alpha\big)
    \\
    c(x) &= w_n \frac{1}{|Y|} \sum_y \big(p_{\theta}(y \mid \tilde x)
    - p_{\bar\theta}(y \mid \tilde x')\big)^2, \qquad
    w_n = w\, e^{-5 (1 - \min(n / N, 1))^2}

with noise of its own in each of the inputs. The cost needs no label. It is no likelihood: it
belongs beside a bound, as an :func:`~pyro_seq.models.auxiliary` one.

References:
    Tarvainen, Valpola (2017), Mean teachers are better role models.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from pyro_seq.training.callbacks import Callback, Context

__all__ = ["MeanTeacher"]


class MeanTeacher(nn.Module):
    r"""The average of a network over its training, and the cost of differing from it.

    As a part of the loss that is trained it is in every checkpoint. Its parameters take no
    gradient; :meth:`follow` makes the callback that updates it after each step.

    Buffers, such as the running statistics of batch normalisation, are copies of the student's.
    In training the teacher is in training mode too, with the statistics of the batch; estimate
    them anew before it is evaluated.

    Args:
        student: The network, of which this is a copy to begin with.
        decay: :math:`\alpha`; the first average is over all steps so far.
        weight: w, the weight of the cost when it has grown; for probabilities of classes 10 to
            100.
        ramp: N, steps over which it grows; 0 for none.

    Raises:
        ValueError: When an argument is out of its range.

    Example:
        >>> student = nn.Linear(3, 10)
        >>> teacher = MeanTeacher(student, weight=10.0, ramp=100)
        >>> x = torch.randn(8, 3)
        >>> cost = teacher.cost(student(x), teacher(x))
        >>> cost.shape, float(cost.detach().sum())
        (torch.Size([8]), 0.0)
        >>> teacher.update(student)  # after a step of the optimizer
        >>> int(teacher.average.n_averaged)
        1
    """

    def __init__(
        self, student: nn.Module, *, decay: float = 0.999, weight: float = 10.0, ramp: int = 0
    ) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be at least 0 and below 1; got {decay}")
        if weight < 0 or ramp < 0:
            raise ValueError(
                f"weight and ramp must not be negative; got weight={weight} and ramp={ramp}"
            )
        if not isinstance(student, nn.Module):
            raise TypeError(f"student must be a module; got {type(student).__name__}")
        self.decay, self.weight, self.ramp = decay, weight, ramp
        self.average = AveragedModel(student, avg_fn=self._average)
        self.average.requires_grad_(False)

    @torch.no_grad()
    def forward(self, *arguments: Any) -> Any:  # noqa: ANN401
        """What the average of the network says, without gradients."""
        return self.average(*arguments)

    def cost(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The weighted squared distance of two predictions.

        Args:
            student: Logits of the classes, `(*batch, classes)`.
            teacher: The same.

        Returns:
            The cost of each sample, `(*batch)`; no gradient reaches the teacher.

        Raises:
            ValueError: When the shapes differ.
        """
        if student.shape != teacher.shape:
            raise ValueError(
                "student and teacher must be logits of one shape (*batch, classes); got "
                f"{tuple(student.shape)} and {tuple(teacher.shape)}"
            )
        apart = student.softmax(-1) - teacher.detach().softmax(-1)
        return self.current_weight() * apart.square().mean(-1)

    def current_weight(self) -> Tensor:
        """:math:`w_n`, (), after n updates."""
        done = self.average.n_averaged / max(self.ramp, 1)
        done = done.clamp(max=1.0) if self.ramp else torch.ones_like(done)
        return self.weight * torch.exp(-5.0 * (1.0 - done).square())

    def update(self, student: nn.Module) -> None:
        """Takes the student's present parameters into the average.

        Raises:
            ValueError: For a network with other parameters.
        """
        self._check(student)
        self.average.update_parameters(student)

    def follow(self, student: nn.Module) -> Callback:
        """The callback of ``fit`` that updates the average after each step.

        Args:
            student: The network that is trained.

        Raises:
            ValueError: For a network with other parameters.
        """
        self._check(student)
        return _Follow(self, student)

    def _check(self, student: nn.Module) -> None:
        """The average pairs parameters by their order, and stops where either has no more."""
        ours, theirs = ([*n.parameters()] for n in (self.average.module, student))
        if [p.shape for p in ours] != [p.shape for p in theirs]:
            raise ValueError(
                "student must have the parameters of the network that the teacher was made of, "
                f"{[tuple(p.shape) for p in ours]}; got {[tuple(p.shape) for p in theirs]}"
            )

    def _average(self, average: Tensor, now: Tensor, count: Tensor | int) -> Tensor:
        """With the rate of the update after as many."""
        rate = torch.as_tensor(1.0 / (count + 1)).clamp(min=1.0 - self.decay)
        return average.lerp(now, rate.to(average))


class _Follow(Callback):
    """Updates a teacher after every step; what it knows is the teacher's."""

    def __init__(self, teacher: MeanTeacher, student: nn.Module) -> None:
        self.teacher, self.student = teacher, student

    def on_step(self, context: Context) -> None:
        """Once the optimizer has moved the student."""
        self.teacher.update(self.student)
