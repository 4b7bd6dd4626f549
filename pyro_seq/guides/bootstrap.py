r"""The guide that looks at no frame.

.. math:: q(z_t \mid z_{<t}, x_{\le t}) = p(z_t \mid s_{t-1})

References:
    Gordon, Salmond, Smith (1993), Novel approach to nonlinear/non-Gaussian Bayesian state
    estimation.
"""

from __future__ import annotations

from typing import Any

from pyro_seq.guides.context import StepContext
from pyro_seq.guides.filtering import FilteringGuide, Inference
from pyro_seq.plugins import register

__all__ = ["Bootstrap"]


@register("guides", "bootstrap")
class Bootstrap(FilteringGuide):
    """The prior as the posterior: the proposal of the bootstrap particle filter.

    It has no parameters and works with latents of any kind, discrete ones included. With many
    particles and resampling (:class:`~pyro_seq.inference.FIVO`) it is a filter; with one it is the
    bound that any inference has to improve on.

    Args:
        model: Any :class:`~pyro_seq.models.StepModel`.

    Example:
        >>> import torch
        >>> from pyro_seq.models import DMM
        >>> guide = Bootstrap(DMM(frame=3, latent=2))
        >>> guide(torch.ones(4, 2, 3))["z_2"].shape
        torch.Size([4, 2])
    """

    def infer(self, context: StepContext, state: Any) -> Inference:  # noqa: ANN401
        """The prior of every site."""
        return Inference(lambda site: site.prior)
