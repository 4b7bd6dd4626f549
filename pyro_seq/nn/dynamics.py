r"""Locally linear dynamics: K linear-Gaussian modes, mixed at every step by a network of the past.

References:
    Fraccaro, Kamronn, Paquet, Winther (2017), section 3.3.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pyro_seq.nn.weights import WeightNetwork
from pyro_seq.ops import kalman
from pyro_seq.ops.kalman import Filtered, LinearGaussian
from pyro_seq.ops.linalg import cholesky, matvec, no_autocast

__all__ = [
    "Conditioned",
    "DynamicsState",
    "MixtureDynamics",
    "Prediction",
]


class DynamicsState(NamedTuple):
    """What online filtering remembers: the belief, the last encoding and the network's state.

    Shapes: `loc (batch, state)`, `cov (batch, state, state)`, `previous (batch, obs)`; `step`
    counts frames.
    """

    step: int
    loc: Tensor
    cov: Tensor
    previous: Tensor
    network: Any


class Prediction(NamedTuple):
    """Belief about one step before its observation, and the network's next state.

    Shapes: `loc (batch, state)`, `cov (batch, state, state)`, `emission (batch, obs, state)`,
    `weights (batch, modes)`, `transition (batch, state, state)`, `offset (batch, state)`.
    """

    loc: Tensor
    cov: Tensor
    emission: Tensor
    weights: Tensor
    transition: Tensor
    offset: Tensor
    network: Any


class Conditioned(NamedTuple):
    """The linear-Gaussian model that a sequence of encodings implies.

    `weights (*sample, batch, time, modes)`; `filtered` is there when it had to be computed on the
    way, which is when a mask was given.
    """

    model: LinearGaussian
    weights: Tensor
    filtered: Filtered | None


class MixtureDynamics(nn.Module):
    r"""K linear-Gaussian state space models, mixed by :math:`\alpha_t(a_{0:t-1})` (equation 9).

    .. math::
        A_t = \sum_k \alpha_t^{(k)} A^{(k)},\quad B_t = \sum_k \alpha_t^{(k)} B^{(k)},\quad
        C_t = \sum_k \alpha_t^{(k)} C^{(k)},\quad z_1 \sim N(0, \sigma_1^2 I)

    Where a frame is missing, the network is fed with the predicted mean :math:`C_t m_{t|t-1}`.
    The code before the first, :math:`a_0`, is learnt, unless the network reads no codes.

    Args:
        network: :math:`\alpha`, built for `modes` and `obs`.
        obs: Size of a.
        state: Size of z.
        modes: K.
        controls: Size of u, or 0.
        transition_var: Variance Q of every coordinate of z.
        emission_var: Variance R of every coordinate of a.
        initial_var: Variance of the first state.
        learn_noise: None keeps these three variances as they are, the authors' choice;
            `"isotropic"` learns one number for each, `"diagonal"` one for each coordinate.
        offsets: Give every mode a learnt offset too, as a control that is always 1 would.
        start: `"identity"` (:math:`A^{(k)} = I`, C random, the authors' start), or
            `"local_linear_trend"`: z holds positions and velocities, C reads the positions.
        jitter: Standard deviation of the noise by which the modes differ at the start.

    Raises:
        ValueError: For an unknown `start` or `learn_noise`, a size or variance that is not
            positive, and a state too small for `"local_linear_trend"`.
        TypeError: When the network is no :class:`~pyro_seq.nn.weights.WeightNetwork`.
    """

    first_code: Tensor
    transition_log_var: Tensor
    emission_log_var: Tensor
    initial_log_var: Tensor

    def __init__(
        self,
        network: WeightNetwork,
        obs: int,
        state: int,
        modes: int,
        *,
        controls: int = 0,
        transition_var: float = 0.08,
        emission_var: float = 0.03,
        initial_var: float = 20.0,
        learn_noise: str | None = None,
        offsets: bool = False,
        start: str = "identity",
        jitter: float = 0.05,
    ) -> None:
        super().__init__()
        if not isinstance(network, WeightNetwork):
            raise TypeError(
                f"network must be a WeightNetwork, built for obs = {obs} and modes = {modes}; got "
                f"{network.__name__ if isinstance(network, type) else type(network).__name__}"
            )
        _check_positive(obs=obs, state=state, modes=modes)
        _check_positive(
            transition_var=transition_var, emission_var=emission_var, initial_var=initial_var
        )
        self.network = network
        self.obs, self.state, self.modes, self.controls = obs, state, modes, controls
        transition, emission = _start(start, obs, state, modes, jitter)
        self.transition, self.emission = nn.Parameter(transition), nn.Parameter(emission)
        self.control = (
            nn.Parameter(0.05 * torch.randn(modes, state, controls)) if controls else None
        )
        self.offset = nn.Parameter(0.05 * torch.randn(modes, state)) if offsets else None
        _register(self, "first_code", torch.zeros(obs), learnt=network.reads_codes)
        if learn_noise not in (None, "isotropic", "diagonal"):
            raise ValueError(
                f"learn_noise must be None, 'isotropic' or 'diagonal'; got {learn_noise!r}"
            )
        for name, value, size in (
            ("transition_log_var", transition_var, state),
            ("emission_log_var", emission_var, obs),
            ("initial_log_var", initial_var, state),
        ):
            log_var = torch.full((size if learn_noise == "diagonal" else 1,), value).log()
            _register(self, name, log_var, learnt=learn_noise is not None)

    def mix(self, weights: Tensor, controls: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        r"""The matrices of every step, mixed: A, b and C.

        Args:
            weights: :math:`\alpha`, `(*, modes)`.
            controls: u, `(*, controls)`.

        Returns:
            A `(*, state, state)`, b with the effect :math:`B u` in it `(*, state)`, and
            C `(*, obs, state)`.

        Raises:
            ValueError: If the weights are of another number of modes.
        """
        if weights.shape[-1] != self.modes:
            raise ValueError(
                f"network must give weights (*, modes) = (*, {self.modes}); "
                f"got shape {tuple(weights.shape)}"
            )
        shape = weights.shape[:-1]
        transition = (weights @ self.transition.flatten(1)).view(*shape, self.state, self.state)
        emission = (weights @ self.emission.flatten(1)).view(*shape, self.obs, self.state)
        offset = weights.new_zeros(*shape, self.state)
        if self.offset is not None:
            offset = weights @ self.offset
        if self.control is not None and controls is not None:
            control = (weights @ self.control.flatten(1)).view(*shape, self.state, self.controls)
            offset = offset + matvec(control, controls)
        return transition, offset, emission

    def noise(self) -> tuple[Tensor, Tensor, Tensor]:
        r""":math:`P_1 (n, n)`, :math:`Q (n, n)` and :math:`R (obs, obs)` in float64."""
        sizes = (self.state, self.state, self.obs)
        log_vars = (self.initial_log_var, self.transition_log_var, self.emission_log_var)
        initial, transition, emission = (
            torch.diag_embed(log_var.double().exp().expand(size))
            for log_var, size in zip(log_vars, sizes, strict=True)
        )
        return initial, transition, emission

    def _model(self, transition: Tensor, offset: Tensor, emission: Tensor) -> LinearGaussian:
        initial, process, measurement = self.noise()
        loc = torch.zeros(self.state, device=initial.device, dtype=torch.float64)
        return LinearGaussian(
            loc,
            initial,
            transition.double(),
            offset.double(),
            process.unsqueeze(0),
            emission.double(),
            measurement.unsqueeze(0),
        )

    def condition(
        self, a: Tensor, mask: Tensor | None = None, controls: Tensor | None = None
    ) -> Conditioned:
        r"""The state space model of a sequence of encodings.

        Args:
            a: `(*sample, batch, time, obs)`; what stands at missing frames is not read.
            mask: bool `(batch, time)`, or None when every frame is there.
            controls: u, `(batch, time, controls)`.

        Returns:
            The model in float64, the weights, and the filtered moments if the filter had to run.
        """
        many = a.shape[:-2]
        if len(many) > 1:
            flat = (_flatten(tensor, many) for tensor in (a, mask, controls))
            return _unflatten(self.condition(*flat), many)  # type: ignore[arg-type]
        with no_autocast(a.device):
            if mask is not None:
                return self._condition_by_step(a, mask, controls)
            first = self.first_code.expand(a.shape[0], 1, -1)
            weights = self.network.unroll(torch.cat([first, a[:, :-1]], 1))
            return Conditioned(self._model(*self.mix(weights, controls)), weights, None)

    def _condition_by_step(self, a: Tensor, mask: Tensor, controls: Tensor | None) -> Conditioned:
        """Filter on the way, since the network reads predictions where frames are missing."""
        state = self.initial_state(a.shape[0])
        predictions, rows = [], []
        for t in range(a.shape[1]):
            ahead = self.predict(state, None if controls is None else controls[:, t])
            state, nats = self.update(state, ahead, a[:, t], mask[:, t])
            predictions.append(ahead)
            rows.append((state.loc, state.cov, ahead.loc, ahead.cov, nats))
        filtered = Filtered(*(torch.stack(column, 1) for column in zip(*rows, strict=True)))
        transition, offset, emission, weights = (
            torch.stack([getattr(ahead, name) for ahead in predictions], 1)
            for name in ("transition", "offset", "emission", "weights")
        )
        return Conditioned(self._model(transition, offset, emission), weights, filtered)

    def initial_state(self, batch: int) -> DynamicsState:
        """The state before the first frame."""
        initial = self.noise()[0]
        loc = torch.zeros(batch, self.state, device=initial.device, dtype=torch.float64)
        previous = self.first_code.expand(batch, -1)
        cov = initial.expand(batch, -1, -1)
        return DynamicsState(0, loc, cov, previous, self.network.initial_state(batch))

    def predict(self, state: DynamicsState, control: Tensor | None = None) -> Prediction:
        r"""Belief :math:`p(z_t \mid a_{1:t-1})` and the matrices of step t.

        Args:
            state: After step t - 1.
            control: :math:`u_t`, `(batch, controls)`.
        """
        with no_autocast(state.loc.device):
            weights, network = self.network.step(state.previous, state.network)
            transition, offset, emission = (m.double() for m in self.mix(weights, control))
            loc, cov = state.loc, state.cov
            if state.step > 0:
                loc, cov = kalman.predict(loc, cov, transition, offset, self.noise()[1])
            return Prediction(loc, cov, emission, weights, transition, offset, network)

    def update(
        self, state: DynamicsState, ahead: Prediction, a: Tensor, mask: Tensor | None = None
    ) -> tuple[DynamicsState, Tensor]:
        r"""Condition on :math:`a_t`.

        Args:
            state: After step t - 1.
            ahead: The prediction of step t.
            a: :math:`a_t`, `(batch, obs)`.
            mask: Which sequences have this frame, bool `(batch,)`.

        Returns:
            The next state and :math:`\log p(a_t \mid a_{1:t-1})` in nats, `(batch,)`.
        """
        with no_autocast(a.device):
            observed = None if mask is None else mask.unsqueeze(-1).expand(a.shape)
            done = kalman.update(
                ahead.loc, ahead.cov, ahead.emission, self.noise()[2], a.double(), observed
            )
            read = a
            if observed is not None:
                read = torch.where(observed, a, matvec(ahead.emission, ahead.loc).to(a.dtype))
        after = DynamicsState(state.step + 1, done.loc, done.cov, read, ahead.network)
        return after, done.log_likelihood

    def draw(
        self, state: DynamicsState, control: Tensor | None = None
    ) -> tuple[DynamicsState, Tensor]:
        r"""Continue a trajectory by one step: draw :math:`z_t` and then :math:`a_t`.

        Args:
            state: After step t - 1, its belief a mean and a covariance (zero once z is drawn).
            control: :math:`u_t`, `(batch, controls)`.

        Returns:
            The next state, certain of the drawn :math:`z_t`, and :math:`a_t (batch, obs)`.
        """
        ahead = self.predict(state, control)
        with no_autocast(ahead.loc.device):
            factor = cholesky(ahead.cov, "predicted covariance", per_step=False)
            z = ahead.loc + matvec(factor, torch.randn_like(ahead.loc))
            mean = matvec(ahead.emission, z)
            spread = self.noise()[2].diagonal().sqrt()
            a = (mean + spread * torch.randn_like(mean)).to(state.previous.dtype)
        return DynamicsState(state.step + 1, z, torch.zeros_like(ahead.cov), a, ahead.network), a


def _check_positive(**numbers: float) -> None:
    for name, number in numbers.items():
        if not number > 0:
            raise ValueError(f"{name} must be positive; got {number}")


def _register(module: nn.Module, name: str, value: Tensor, *, learnt: bool) -> None:
    """Make a tensor a parameter of the module, or a buffer."""
    if learnt:
        module.register_parameter(name, nn.Parameter(value))
    else:
        module.register_buffer(name, value)


def _flatten(tensor: Tensor | None, many: torch.Size) -> Tensor | None:
    """`(..., batch, time, *)` with all dimensions before time made one, those of `many`."""
    if tensor is None:
        return None
    own = tensor.shape[1:] if tensor.dim() <= 3 else tensor.shape[len(many) :]
    return tensor.expand(*many, *own).reshape(-1, *own)


def _unflatten(given: Conditioned, many: torch.Size) -> Conditioned:
    """The inverse of :func:`_flatten` for everything that varies over the batch."""
    model = given.model
    transition, offset, emission, weights = (
        tensor.unflatten(0, many)
        for tensor in (model.transition, model.offset, model.emission, given.weights)
    )
    filtered = given.filtered
    if filtered is not None:
        filtered = Filtered(*(tensor.unflatten(0, many) for tensor in filtered))
    model = model._replace(transition=transition, offset=offset, emission=emission)
    return Conditioned(model, weights, filtered)


def _start(start: str, obs: int, state: int, modes: int, jitter: float) -> tuple[Tensor, Tensor]:
    """Transition `(modes, state, state)` and emission `(modes, obs, state)` to begin with."""
    eye = torch.eye(state).expand(modes, -1, -1)
    if start == "identity":
        return eye.clone(), jitter * torch.randn(modes, obs, state)
    if start != "local_linear_trend":
        raise ValueError(f"start must be 'identity' or 'local_linear_trend'; got {start!r}")
    if state < 2 * obs:
        raise ValueError(
            f"start 'local_linear_trend' needs state >= 2 * obs = {2 * obs}; got state = {state}"
        )
    trend = torch.eye(state)
    trend[:obs, obs : 2 * obs] = torch.eye(obs)
    emission = torch.zeros(obs, state)
    emission[:, :obs] = torch.eye(obs)
    transition = trend + jitter * torch.randn(modes, state, state)
    return transition, emission.expand(modes, -1, -1).clone()
