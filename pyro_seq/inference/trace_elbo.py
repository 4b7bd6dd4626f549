"""The evidence lower bound from one trace of guide and model, without waiting for the device."""

from __future__ import annotations

from typing import Any

import torch
from pyro.infer import Trace_ELBO
from pyro.infer.util import is_identically_zero
from pyro.poutine import Trace
from torch import Tensor, nn

__all__ = ["DeviceTraceELBO"]


class DeviceTraceELBO(Trace_ELBO):
    r"""Monte Carlo bound :math:`\mathcal{L} = \log p(x, z) - \log q(z \mid x)`, z drawn from q.

    Value and gradient are those of ``pyro.infer.Trace_ELBO``, which reads the loss of every site
    back to the host and so makes each training step wait for a GPU. For a guide whose sites are
    all reparametrised nothing of the kind is needed; a guide with another site is passed on to
    Pyro's own estimator. Pyro's validation reads from the device too: switch it off with
    ``pyro.enable_validation(False)`` where speed counts.
    """

    def differentiable_loss(
        self,
        model: nn.Module,
        guide: nn.Module,
        *args: Any,  # noqa: ANN401
        **kwargs: Any,  # noqa: ANN401
    ) -> Tensor:
        """Negative bound, summed over the batch, differentiable in all parameters.

        Args:
            model: generative model.
            guide: its guide.
            *args: arguments of both.
            **kwargs: keyword arguments of both.

        Returns:
            (), nats.
        """
        traces = self._get_traces(model, guide, args, kwargs)
        losses = [self._particle(*pair) for pair in traces]
        return torch.stack(losses).sum() / self.num_particles

    def _particle(self, model_trace: Trace, guide_trace: Trace) -> Tensor:
        if _reparametrised(guide_trace):
            return torch.as_tensor(guide_trace.log_prob_sum() - model_trace.log_prob_sum())
        loss, surrogate = self._differentiable_loss_particle(model_trace, guide_trace)
        return loss + (surrogate - surrogate.detach())


def _reparametrised(guide_trace: Trace) -> bool:
    """Whether no site of the guide needs a score-function term."""
    return all(
        is_identically_zero(site["score_parts"].score_function)
        for site in guide_trace.nodes.values()
        if site["type"] == "sample"
    )
