r"""Guide of the Kalman variational auto-encoder.

.. math:: q(a, z \mid x) = p(z \mid a) \prod_t q(a_t \mid x_t)
"""

from __future__ import annotations

from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule
from torch import Tensor

from pyro_seq.distributions import LinearGaussianSSM
from pyro_seq.guides.online import OnlineFilter
from pyro_seq.guides.streams import check_streams
from pyro_seq.models.kvae import KVAE, options_without_name
from pyro_seq.models.step_handlers import hide
from pyro_seq.nn.arguments import check_choice
from pyro_seq.nn.dynamics import Conditioned, DynamicsState, Prediction
from pyro_seq.nn.encoders import ENCODERS, FrameEncoder
from pyro_seq.nn.naming import unique_name
from pyro_seq.ops.linalg import matvec
from pyro_seq.plugins import register

__all__ = ["KalmanGuide", "KalmanUpdate", "Trajectory"]


class Trajectory(NamedTuple):
    r"""Codes and states of a sequence, filtered or smoothed.

    Attributes:
        a: Mean code :math:`C_t E[z_t]`, `(batch, time, obs)`.
        loc: Mean state, `(batch, time, state)`.
        cov: Covariance of the state, `(batch, time, state, state)`.
        weights: :math:`\alpha_t`, `(batch, time, modes)`.
        encoded: Mean of :math:`q(a_t \mid x_t)`, `(batch, time, obs)`; NaN where the frame is
            missing.
    """

    a: Tensor
    loc: Tensor
    cov: Tensor
    weights: Tensor
    encoded: Tensor


class KalmanUpdate(NamedTuple):
    r"""What an online filter of a :class:`KalmanGuide` knows after a frame.

    Attributes:
        loc: Mean of :math:`p(z_t \mid a_{1:t})`, `(batch, state)`.
        cov: Its covariance, `(batch, state, state)`.
        a: Mean code :math:`C_t E[z_t]`, `(batch, obs)`.
        next_a: Mean code of the next frame, `(batch, obs)`.
        next_frame: Mean of the next frame, `(batch, *frame)`.
        log_likelihood: :math:`\log p(a_t \mid a_{1:t-1})` in nats, `(batch,)`.
    """

    loc: Tensor
    cov: Tensor
    a: Tensor
    next_a: Tensor
    next_frame: Tensor
    log_likelihood: Tensor


@register("guides", "kalman")
class KalmanGuide(PyroModule):
    r"""Amortised codes, and the exact posterior of the states by Kalman smoothing (equation 5).

    .. math:: q(a, z \mid x) = \prod_t N(a_t; \mu(x_t), \mathrm{diag}\,\sigma^2(x_t))\; p(z \mid a)

    Site `"a"` always; site `"z"` when the model's estimator draws it. Codes of missing frames are
    not scored; what stands there is the encoding of an empty frame, which nothing reads.

    Args:
        model: A :class:`~pyro_seq.models.kvae.KVAE`.
        encoder: `"conv"` (the paper's), `"mlp"`, or a
            :class:`~pyro_seq.nn.encoders.FrameEncoder`.
        encoder_options: Keyword arguments of the encoder.

    Raises:
        TypeError: When the model is no KVAE.
        ValueError: For an unknown encoder.

    Example:
        >>> model = KVAE((1, 8, 8), decoder="mlp")
        >>> guide = KalmanGuide(model, "mlp")
        >>> x = torch.zeros(2, 5, 1, 8, 8)
        >>> guide(x)["a"].shape, guide.smooth(x).loc.shape
        (torch.Size([2, 5, 2]), torch.Size([2, 5, 4]))
    """

    def __init__(
        self,
        model: KVAE,
        encoder: str | FrameEncoder = "conv",
        encoder_options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(unique_name("kalman_guide"))
        if not isinstance(model, KVAE):
            raise TypeError(f"model must be a KVAE; got {type(model).__name__}")
        if isinstance(encoder, str):
            check_choice("encoder", encoder, ENCODERS)
            encoder = ENCODERS[encoder](
                model.frame_shape, model.dynamics.obs, **(encoder_options or {})
            )
        elif encoder_options:
            raise ValueError(options_without_name("encoder"))
        self._model = (model,)
        self.encoder = encoder

    @property
    def model(self) -> KVAE:
        """The model; not a submodule, so that its parameters have one owner."""
        return self._model[0]

    def forward(
        self, x: Tensor, mask: Tensor | None = None, controls: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Draw the latent sites.

        Args:
            x: Frames `(batch, time, *frame)`; missing ones may be NaN.
            mask: bool `(batch, time)`, True where observed.
            controls: u, `(batch, time, controls)`.

        Returns:
            Values of the sites, `a (batch, time, obs)` and perhaps `z (batch, time, state)`.
        """
        model = self.model
        model.check(x, mask, controls)
        with pyro.plate("sequences", x.shape[0], dim=-1):
            sites = {"a": pyro.sample("a", self.codes(x, mask))}
            if model.estimator != "closed_form":
                given = model.dynamics.condition(sites["a"], mask, controls)
                posterior = LinearGaussianSSM.from_model(
                    given.model, time=x.shape[1], mask=mask
                ).posterior(sites["a"])
                joint = model.estimator == "joint"
                sites["z"] = pyro.sample("z", posterior if joint else posterior.marginals())
        return sites

    def codes(self, x: Tensor, mask: Tensor | None = None) -> dist.Independent:
        r""":math:`\prod_t q(a_t \mid x_t)` over the observed frames."""
        loc, scale = self.encoder(hide(x, mask))
        step = dist.Normal(loc, scale, validate_args=False).to_event(1)
        return (step if mask is None else step.mask(mask)).to_event(1)

    def median(
        self, x: Tensor, mask: Tensor | None = None, controls: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Smoothed means of the sites: the codes and the states."""
        smoothed = self.smooth(x, mask, controls)
        return {"a": smoothed.a, "z": smoothed.loc}

    @torch.no_grad()
    def encode(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        r"""Mean of every :math:`q(a_t \mid x_t)`, `(batch, time, obs)`, without gradients.

        The code of a frame depends on that frame alone: one call serves :meth:`filter` and
        :meth:`smooth` under any mask that hides more of the same frames.

        Args:
            x: Frames `(batch, time, *frame)`; missing ones may be NaN.
            mask: bool `(batch, time)`, True where observed; the code of a missing frame is that of
                an empty one.
        """
        return self.encoder(hide(x, mask))[0]

    @torch.no_grad()
    def filter(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        controls: Tensor | None = None,
        encoded: Tensor | None = None,
    ) -> Trajectory:
        r"""What is known of each step from the frames up to it, :math:`p(z_t \mid a_{1:t})`.

        Args:
            x: Frames `(batch, time, *frame)`; missing ones may be NaN.
            mask: bool `(batch, time)`, True where observed.
            controls: u, `(batch, time, controls)`.
            encoded: What :meth:`encode` returned for these frames, when it is known already; what
                stands at missing frames is not read.
        """
        a = self._codes_of(x, mask, controls, encoded)
        seen = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if mask is None else mask
        given = self.model.dynamics.condition(a, seen, controls)
        if given.filtered is None:
            raise RuntimeError("the filter did not run")
        return _trajectory(given, given.filtered.loc, given.filtered.cov, a, seen)

    @torch.no_grad()
    def smooth(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        controls: Tensor | None = None,
        encoded: Tensor | None = None,
    ) -> Trajectory:
        r"""What is known of each step from all frames, :math:`p(z_t \mid a)`.

        Args:
            x: Frames `(batch, time, *frame)`; missing ones may be NaN.
            mask: bool `(batch, time)`, True where observed.
            controls: u, `(batch, time, controls)`.
            encoded: As for :meth:`filter`.
        """
        a = self._codes_of(x, mask, controls, encoded)
        given = self.model.dynamics.condition(a, mask, controls)
        smoothed = (
            LinearGaussianSSM.from_model(given.model, time=x.shape[1], mask=mask)
            .posterior(a)
            .smoothed
        )
        return _trajectory(given, smoothed.loc, smoothed.cov, a, mask)

    def online(self, batch: int = 1) -> OnlineFilter:
        """A filter that takes one frame at a time from each of `batch` streams."""
        return OnlineFilter(self.model, self, batch)

    def start_online(self, batch: int) -> DynamicsState:
        """The belief of `batch` streams before the first frame."""
        return self.model.dynamics.initial_state(batch)

    def update_online(
        self,
        state: DynamicsState,
        x: Tensor,
        mask: Tensor | None = None,
        control: Tensor | None = None,
        next_control: Tensor | None = None,
    ) -> tuple[KalmanUpdate, DynamicsState]:
        r"""One step of the Kalman filter; arguments as in :meth:`OnlineFilter.update`.

        The control is not used at the first frame.
        """
        model, dynamics = self.model, self.model.dynamics
        shape, controls = model.frame_shape, dynamics.controls
        check_streams(state.loc.shape[0], shape, controls, x, mask, control, next_control)
        seen, here = (None if part is None else part.unsqueeze(1) for part in (mask, control))
        model.check(x.unsqueeze(1), seen, here)
        a, _ = self.encoder(hide(x.unsqueeze(1), seen).squeeze(1))
        now = dynamics.predict(state, control)
        state, nats = dynamics.update(state, now, a, mask)
        next_a, _ = self._ahead(state, next_control)
        loc, cov = state.loc.to(a.dtype), state.cov.to(a.dtype)
        code = matvec(now.emission, state.loc).to(a.dtype)
        update = KalmanUpdate(loc, cov, code, next_a, model.decode(next_a), nats.to(a.dtype))
        return update, state

    def forecast_online(
        self, state: DynamicsState, steps: int, controls: Tensor | None = None
    ) -> Tensor:
        """The mean path, `(batch, steps, *frame)`."""
        self.model.check_controls(controls, state.previous.shape[0], steps)
        codes = []
        for number in range(steps):
            a, ahead = self._ahead(state, None if controls is None else controls[:, number])
            missing = torch.zeros(a.shape[0], dtype=torch.bool, device=a.device)
            state, _ = self.model.dynamics.update(state, ahead, a, missing)
            codes.append(a)
        return self.model.decode(torch.stack(codes, 1))

    def _ahead(self, state: DynamicsState, control: Tensor | None) -> tuple[Tensor, Prediction]:
        """Mean code of the next frame, `(batch, obs)`, and the prediction that it is of."""
        dynamics = self.model.dynamics
        like = state.previous
        if control is None and dynamics.controls:
            control = like.new_zeros(like.shape[0], dynamics.controls)
        ahead = dynamics.predict(state, control)
        return matvec(ahead.emission, ahead.loc).to(like.dtype), ahead

    @torch.no_grad()
    def start_from(self, frames: Tensor, start: str = "moments", spread: float = 5.0) -> None:
        """Begin encoder and decoder from some frames `(count, *frame)`; see their `start_from`.

        A decoder without such a method is left as it is.
        """
        self.encoder.start_from(frames, start, spread)
        decoder_start = getattr(self.model.decoder, "start_from", None)
        if decoder_start is not None:
            decoder_start(frames, self.model.likelihood)

    def _codes_of(
        self, x: Tensor, mask: Tensor | None, controls: Tensor | None, encoded: Tensor | None
    ) -> Tensor:
        """Mean codes, computed unless they are given, of arguments that fit."""
        self.model.check(x, mask, controls)
        if encoded is None:
            return self.encode(x, mask)
        needed = (*x.shape[:2], self.model.dynamics.obs)
        if encoded.shape != needed:
            raise ValueError(
                f"encoded must be (batch, time, obs) = {needed}, as from encode(x, mask); "
                f"got shape {tuple(encoded.shape)}"
            )
        return encoded


def _trajectory(
    given: Conditioned, loc: Tensor, cov: Tensor, a: Tensor, mask: Tensor | None
) -> Trajectory:
    """Moments of the states in the type of the codes, and the mean codes that they imply."""
    loc, cov, emission = (t.to(a.dtype) for t in (loc, cov, given.model.emission))
    encoded = a if mask is None else torch.where(mask.unsqueeze(-1), a, torch.nan)
    return Trajectory(matvec(emission, loc), loc, cov, given.weights, encoded)
