r"""The free energy of a step model and a filtering guide, step by step.

.. math:: F_t = KL(q(z_t \mid \cdot)\, \|\, p(z_t \mid s_{t-1}))
    - E_q[\log p(x_t \mid z_t, s_{t-1})]
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pyro_seq.evaluation.bound import Bound, Estimate, mean_of, ratio_of
from pyro_seq.evaluation.context import as_batch, blocks, evaluating
from pyro_seq.evaluation.step_pairs import step_terms
from pyro_seq.guides.filtering import FilteringGuide
from pyro_seq.models.step_model import StepModel
from pyro_seq.nn.arguments import check_choice

__all__ = ["FreeEnergy", "free_energy"]

OVER = ("sequences", "steps")


class FreeEnergy(NamedTuple):
    r"""Minus the evidence lower bound of each step of each sequence, nats.

    Everything is float64 (the mask bool) on the CPU. Steps of padding and missing frames count
    zero, save that a guide which reads later frames has a divergence at missing ones too.

    Attributes:
        log_likelihood: :math:`E_q[\log p(x_t \mid z_t, s_{t-1})]`, `(sequences, time)`.
        divergence: :math:`KL(q \| p)`, `(sequences, time)`.
        mask: Where a frame was observed, bool `(sequences, time)`.
        samples: Draws that the expectations are means of.
    """

    log_likelihood: Tensor
    divergence: Tensor
    mask: Tensor
    samples: int

    @property
    def nats(self) -> Tensor:
        """The free energy of each step, `(sequences, time)`."""
        return self.divergence - self.log_likelihood

    def per_step(self, skip: int = 0, over: str = "sequences") -> Estimate:
        r"""Mean free energy per step, in one of two conventions.

        - `over="sequences"`: each sequence's free energy over the number of its observed steps,
          then the mean over sequences. With `skip=1` this is what the papers on music report:
          frames 2 to T over T - 1.
        - `over="steps"`: the sum of all free energies over the number of all observed steps, so
          that a long sequence counts more.

        With `skip=1` the latent of the first step is still drawn from :math:`q(z_1 \mid x_1)`, and
        its divergence is not paid for: the number bounds
        :math:`-\log \tilde p(x_{2:T} \mid x_1)` of the model whose first latent is drawn from that
        encoder, and not of the model itself.

        Args:
            skip: Number of first steps that count neither above nor below.
            over: `"sequences"` or `"steps"`.

        Returns:
            Nats per step, with the standard error over sequences. Sequences without an observed
            step left are left out.

        Raises:
            ValueError: For another convention, or when no step is left.
        """
        check_choice("over", over, OVER)
        totals, steps = self._sums(skip)
        return mean_of(totals / steps) if over == "sequences" else ratio_of(totals, steps)

    def bound(self, skip: int = 0) -> Bound:
        """The evidence lower bound of each sequence.

        Args:
            skip: Number of first steps that do not count, see :meth:`per_step`.
        """
        likelihood, divergence = (
            part[:, skip:].sum(1) for part in (self.log_likelihood, self.divergence)
        )
        steps = self.mask[:, skip:].sum(1).double()
        return Bound("elbo", self.samples, likelihood - divergence, steps, likelihood, divergence)

    def _sums(self, skip: int) -> tuple[Tensor, Tensor]:
        """Free energy and number of steps of each sequence that has one."""
        if skip < 0:
            raise ValueError(f"skip must be a number of steps, 0 or more; got {skip}")
        steps = self.mask[:, skip:].sum(1)
        kept = steps > 0
        if not kept.any():
            raise ValueError(f"no observed step is left after skip={skip}")
        return self.nats[kept, skip:].sum(1), steps[kept].double()


def free_energy(
    model: StepModel,
    guide: FilteringGuide,
    batch: Tensor | tuple[Tensor, Tensor | None, Tensor | None],
    *,
    samples: int = 1,
    analytic: bool = True,
    seed: int | None = None,
    chunk: int = 64,
) -> FreeEnergy:
    r"""Free energy of each step of each sequence, an upper bound on :math:`-\log p(x_i)` in sum.

    .. math:: \sum_t F_t = -E_q[\log p(x_i, z) - \log q(z \mid x_i)] \ge -\log p(x_i)

    In one pass of model and guide, without any weight, both in evaluation mode.

    Args:
        model: A step model.
        guide: Its filtering guide.
        batch: A :class:`~pyro_seq.data.Batch`, or x alone, `(sequences, time, *frame)`.
        samples: Draws from the guide that expectations are means of.
        analytic: Whether divergences have their closed form, where one is registered.
        seed: Seed of the draws; None goes on with torch's present state. The draws depend on the
            seed, on `samples` and on `chunk`.
        chunk: Sequences times samples that are in memory at once, over all their steps.

    Returns:
        The free energies.

    Raises:
        TypeError: If the guide is no filtering guide.
        ValueError: If a number is not positive, the guide is of another model, or a shape does
            not fit.

    Example:
        >>> from pyro_seq.guides import NeuralFilter
        >>> from pyro_seq.models import DMM
        >>> model = DMM(frame=3, latent=2)
        >>> energy = free_energy(model, NeuralFilter(model, hidden=8), torch.ones(4, 6, 3), seed=0)
        >>> energy.nats.shape
        torch.Size([4, 6])
        >>> energy.per_step(skip=1).mean > 0
        True
    """
    if samples < 1:
        raise ValueError(f"samples must be at least 1; got {samples}")
    whole = as_batch(batch)
    with evaluating(model, guide, seed=seed):
        parts = [
            [term.mean(0) for term in step_terms(model, guide, part, samples, chunk, analytic)]
            for part in blocks(whole, chunk)
        ]
    log_likelihood, divergence = (torch.cat(column) for column in zip(*parts, strict=True))
    mask = torch.ones(whole.x.shape[:2], dtype=torch.bool) if whole.mask is None else whole.mask
    return FreeEnergy(log_likelihood, divergence, mask.cpu(), samples)
