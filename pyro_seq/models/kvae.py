r"""The Kalman variational auto-encoder.

.. math::
    p(x, a, z \mid u) = \prod_t p(x_t \mid a_t)\; N(a_t; C_t z_t, R)\;
    \cdot N(z_1; 0, \sigma_1^2 I) \prod_{t \ge 2} N(z_t; A_t z_{t-1} + B_t u_t, Q)

with :math:`[A_t, B_t, C_t] = \sum_k \alpha_t^{(k)}(a_{0:t-1}) [A^{(k)}, B^{(k)}, C^{(k)}]`.

References:
    Fraccaro, Kamronn, Paquet, Winther (2017), A disentangled recognition and nonlinear dynamics
    model for unsupervised learning.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.util import is_validation_enabled
from pyro.nn import PyroModule
from torch import Tensor, nn

from pyro_seq.models.mixture_ssm import MixtureSSM
from pyro_seq.models.step_handlers import hide
from pyro_seq.nn.arguments import check_choice
from pyro_seq.nn.decoders import DECODERS
from pyro_seq.nn.dynamics import MixtureDynamics
from pyro_seq.nn.naming import unique_name
from pyro_seq.nn.weights import WeightNetwork
from pyro_seq.plugins import get, register

__all__ = ["ESTIMATORS", "Generated", "KVAE"]

ESTIMATORS = ("closed_form", "joint", "marginal")
LIKELIHOODS = ("bernoulli", "gaussian")


class Generated(NamedTuple):
    """Codes `a (batch, time, obs)` and mean `frames (batch, time, *frame)`."""

    a: Tensor
    frames: Tensor


@register("models", "kvae")
class KVAE(PyroModule):
    r"""Kalman variational auto-encoder: frames x, codes a, states z.

    Sites: `"a"` with event shape `(time, obs)`, `"x"` with event shape `(time, *frame)`, and `"z"`
    with event shape `(time, state)` unless it is integrated out. How z is treated has a name:

    - `"closed_form"`: :math:`\log p(a)` exactly, no z is drawn. The tightest and the cheapest.
    - `"joint"`: z drawn from the joint smoothed posterior (equation 7). Every draw gives the value
      of the closed form.
    - `"marginal"`: z drawn from the product of its smoothed marginals, as the authors' code does.
      A bound too, looser by the KL divergence of that product from the joint.

    Args:
        frame_shape: Shape of one frame, `(channels, height, width)` for the convolutional decoder.
        obs: Size of the code a.
        state: Size of the state z.
        modes: K.
        controls: Size of u, or 0.
        weights: Weight network, `"lstm"`, `"mlp"`, `"static"`, another name of the registry
            `dynamics`, or a module.
        weights_options: Keyword arguments of the weight network.
        decoder: `"conv"` (the paper's), `"mlp"`, or a module from codes to frames.
        decoder_options: Keyword arguments of the decoder.
        likelihood: `"bernoulli"` for binary frames, or `"gaussian"` with a learnt variance for
            every pixel.
        pixel_var: Variance of every pixel to begin with (Gaussian frames).
        estimator: One of the three above.
        dynamics_options: Further keyword arguments of
            :class:`~pyro_seq.nn.dynamics.MixtureDynamics`.

    Raises:
        ValueError: For an unknown name; in `forward`, for frames, mask or controls of the wrong
            shape and for values that the likelihood does not allow.
        TypeError: In `forward`, for frames of another type than the parameters.

    Example:
        >>> model = KVAE((1, 8, 8), decoder="mlp")
        >>> x = model.generate(batch=2, time=5).frames
        >>> x.shape
        torch.Size([2, 5, 1, 8, 8])
    """

    def __init__(
        self,
        frame_shape: Sequence[int],
        *,
        obs: int = 2,
        state: int = 4,
        modes: int = 3,
        controls: int = 0,
        weights: str | WeightNetwork = "lstm",
        weights_options: dict[str, Any] | None = None,
        decoder: str | nn.Module = "conv",
        decoder_options: dict[str, Any] | None = None,
        likelihood: str = "bernoulli",
        pixel_var: float = 0.1,
        estimator: str = "closed_form",
        dynamics_options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(unique_name("kvae"))
        check_choice("likelihood", likelihood, LIKELIHOODS)
        self.frame_shape, self.likelihood = tuple(frame_shape), likelihood
        network = weights
        if isinstance(network, str):
            network = cast(
                WeightNetwork, get("dynamics", network)(obs, modes, **(weights_options or {}))
            )
        elif weights_options:
            raise ValueError(options_without_name("weights"))
        if isinstance(decoder, str):
            check_choice("decoder", decoder, DECODERS)
            decoder = DECODERS[decoder](obs, frame_shape, **(decoder_options or {}))
        elif decoder_options:
            raise ValueError(options_without_name("decoder"))
        self.dynamics = MixtureDynamics(
            network, obs, state, modes, controls=controls, **(dynamics_options or {})
        )
        self.decoder = decoder
        if not pixel_var > 0:
            raise ValueError(f"pixel_var must be positive; got {pixel_var}")
        if likelihood == "gaussian":
            self.pixel_log_var = nn.Parameter(torch.full(self.frame_shape, pixel_var).log())
        self._estimator = ""
        self.estimator = estimator

    @property
    def estimator(self) -> str:
        """How z is treated; may be set to another name at any time."""
        return self._estimator

    @estimator.setter
    def estimator(self, name: str) -> None:
        check_choice("estimator", name, ESTIMATORS)
        self._estimator = name

    def forward(
        self, x: Tensor, mask: Tensor | None = None, controls: Tensor | None = None
    ) -> Tensor:
        """The generative model, observed at x.

        Args:
            x: Frames `(batch, time, *frame)`; missing ones may be NaN.
            mask: bool `(batch, time)`, True where observed.
            controls: u, `(batch, time, controls)`.

        Returns:
            The codes a, `(batch, time, obs)`.
        """
        self.check(x, mask, controls)
        batch, time = x.shape[:2]
        with pyro.plate("sequences", batch, dim=-1):
            prior = self.prior(batch, time, mask, controls)
            a = pyro.sample("a", prior)
            if self.estimator != "closed_form":
                pyro.sample("z", prior.state(a))
            pyro.sample("x", self.frames(a, mask), obs=hide(x, mask))
        return a

    def prior(
        self, batch: int, time: int, mask: Tensor | None = None, controls: Tensor | None = None
    ) -> MixtureSSM:
        r""":math:`p(a \mid u)`, a distribution over sequences of codes; z integrated out."""
        if batch < 1 or time < 1:
            raise ValueError(f"batch and time must be at least 1; got {batch} and {time}")
        self.check_controls(controls, batch, time)
        return MixtureSSM(self.dynamics, batch, time, mask, controls)

    def frames(self, a: Tensor, mask: Tensor | None = None) -> dist.Independent:
        r""":math:`\prod_t p(x_t \mid a_t)` of observed frames; codes `(*batch, time, obs)`."""
        pixels = self._pixels(a)
        if self.likelihood == "bernoulli":
            each = dist.Bernoulli(logits=pixels, validate_args=False)
        else:
            scale = (0.5 * self.pixel_log_var).exp().expand_as(pixels)
            each = dist.Normal(pixels, scale, validate_args=False)
        frame = each.to_event(len(self.frame_shape))
        return (frame if mask is None else frame.mask(mask)).to_event(1)

    def decode(self, a: Tensor) -> Tensor:
        """Mean frames `(*batch, *frame)` of codes `(*batch, obs)`; probabilities if binary."""
        pixels = self._pixels(a)
        return pixels.sigmoid() if self.likelihood == "bernoulli" else pixels

    def _pixels(self, a: Tensor) -> Tensor:
        """What the decoder makes of the codes, of the right shape."""
        pixels = self.decoder(a)
        needed = (*a.shape[:-1], *self.frame_shape)
        if pixels.shape != needed:
            raise ValueError(
                "decoder must map codes (*batch, obs) to (*batch, *frame), "
                f"{tuple(a.shape)} to {needed}; got shape {tuple(pixels.shape)}"
            )
        return pixels

    @torch.no_grad()
    def generate(self, batch: int, time: int, controls: Tensor | None = None) -> Generated:
        """Draw new sequences from the model.

        Args:
            batch: Number of sequences.
            time: Number of frames.
            controls: u, `(batch, time, controls)`.

        Returns:
            Codes `(batch, time, obs)` and mean frames `(batch, time, *frame)`.

        Raises:
            ValueError: If a number is not positive, or the controls do not fit.
        """
        a = self.prior(batch, time, None, controls).sample()
        return Generated(a, self.decode(a))

    def check(self, x: Tensor, mask: Tensor | None, controls: Tensor | None) -> None:
        """Raise a ValueError that names the argument whose shape does not fit.

        Under Pyro's validation their values are looked at too.
        """
        if not isinstance(x, Tensor):
            raise TypeError(f"x must be a tensor; got {type(x).__name__}. Use torch.as_tensor(x)")
        if x.dim() != 2 + len(self.frame_shape) or x.shape[2:] != self.frame_shape:
            raise ValueError(
                f"x must be (batch, time, *frame) with frame = {self.frame_shape}; "
                f"got shape {tuple(x.shape)}"
            )
        dtype = self.dynamics.transition.dtype
        if x.dtype != dtype:
            raise TypeError(
                f"x must have the type of the model's parameters, {dtype}; got {x.dtype}. "
                f"Use x.to({dtype}), or model.double() and guide.double() for float64"
            )
        if mask is not None and (mask.dtype != torch.bool or mask.shape != x.shape[:2]):
            raise ValueError(
                f"mask must be bool (batch, time) = {tuple(x.shape[:2])}; "
                f"got {mask.dtype} of shape {tuple(mask.shape)}"
                + ("" if mask.dtype == torch.bool else ". Use mask.bool()")
            )
        self.check_controls(controls, *x.shape[:2])
        if is_validation_enabled():
            self._check_values(x, mask, controls)

    def check_controls(self, controls: Tensor | None, batch: int, time: int) -> None:
        """Raise a ValueError unless controls are those of so many sequences and steps."""
        size = self.dynamics.controls
        got = None if controls is None else tuple(controls.shape)
        if size == 0 and controls is not None:
            raise ValueError(
                f"controls must be None, since the model was built without; got shape {got}. "
                "Build it with controls=SIZE to use them"
            )
        if size > 0 and got != (batch, time, size):
            raise ValueError(
                f"controls must be (batch, time, {size}) = {(batch, time, size)}; got {got}. "
                f"The model was built with controls={size}"
            )

    def _check_values(self, x: Tensor, mask: Tensor | None, controls: Tensor | None) -> None:
        seen = hide(x, mask)
        if not torch.isfinite(seen).all():
            raise ValueError(
                "x must be finite where it is observed; got NaN or infinity. "
                "Set mask False for missing frames"
            )
        if self.likelihood == "bernoulli" and not ((seen == 0) | (seen == 1)).all():
            low, high = float(seen.min()), float(seen.max())
            raise ValueError(
                "x must hold zeros and ones for Bernoulli frames; got values between "
                f"{low:.3g} and {high:.3g}. Binarise the frames, or use likelihood='gaussian'"
            )
        if controls is not None and not torch.isfinite(controls).all():
            raise ValueError("controls must be finite; got NaN or infinity")


def options_without_name(argument: str) -> str:
    """What is wrong with the options of a part that is given as a module."""
    return (
        f"{argument}_options must be None when {argument} is a module; give them to the module, "
        f"or name it: {argument}='mlp'"
    )
