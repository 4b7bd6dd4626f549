r"""Filtering with a network, as in the papers of the VRNN and the SRNN.

.. math:: q(z_t \mid \cdot) = q(z_t; f(x_t, s_{t-1}, u_t))
    \quad\text{or, residual,}\quad \mu_q = \mu_p + f_\mu(x_t, s_{t-1}, u_t)

References:
    Chung, Kastner, Dinh, Goel, Courville, Bengio (2015), A recurrent latent variable model for
    sequential data.
    Fraccaro, Sonderby, Paquet, Winther (2016), Sequential neural models with stochastic layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Size, Tensor, nn

from pyro_seq.distributions.parameters import (
    free_parameters,
    is_location,
    is_unbounded,
    with_parameters,
)
from pyro_seq.guides.context import StepContext
from pyro_seq.guides.filtering import FilteringGuide, Inference
from pyro_seq.guides.prototype import flat, prototype
from pyro_seq.guides.sites import LatentSite, check_names
from pyro_seq.models.step_model import StepModel
from pyro_seq.nn.mlp import JointMLP, encoder_and_size
from pyro_seq.nn.recurrent import lstm_step
from pyro_seq.nn.repeated import RepeatedLinear
from pyro_seq.ops.trees import where
from pyro_seq.plugins import register

__all__ = ["NeuralFilter"]

LIMIT = 7.5


@register("guides", "filter")
class NeuralFilter(FilteringGuide):
    r"""A network from the frame and the model's state to the parameters of q.

    q has the family of the prior, its parameters are the network's output in their unconstrained
    form. A site that comes after others in the step is given their values too.

    Args:
        model: Any :class:`~pyro_seq.models.StepModel` with reparametrised latents.
        hidden: Units of each hidden layer, or of the only one; none when empty. The papers have
            500 and more, which want a lower learning rate: a step of Adam moves the output by its
            rate times the units.
        residual: Whether locations are those of the prior plus the network's output.
        reads: Names of the fields of the model's state that the network reads, such as
            `["h"]`; all when None, none of them when empty.
        recurrent: Units of an LSTM between the frames and the layers, whose state is the guide's
            own: q then depends on all frames up to t by itself, as in the filter of the SVG. It
            skips missing frames.
        encoder: Module from frames `(batch, time, *frame)` to `(batch, time, features)`; by
            default the frame itself. It may be one that the model has too.
        features: Size of its output, when there is one.
        activation: Makes the nonlinearity of the layers.
        dropout: Probability that a unit is dropped in training.
        head_gain: Factor on the first weights of the last layer, behind hidden ones. None for
            0.1 when residual, so that q begins close to the prior, and for 1 otherwise: what comes
            before a small layer grows, and with it the noise that draws of z send into whatever
            the network reads.

    Raises:
        TypeError: When the model is no step model.
        ValueError: When a latent has no reparametrised prior, or a field is unknown.

    Example:
        >>> from pyro_seq.models import SRNN
        >>> model = SRNN(88, latent=4, hidden=8, prior=[8], decoder=[8])
        >>> guide = NeuralFilter(model, hidden=8, residual=True)
        >>> guide(torch.ones(2, 3, 88))["z_3"].shape
        torch.Size([2, 4])
    """

    def __init__(
        self,
        model: StepModel,
        *,
        hidden: int | Sequence[int] = 64,
        residual: bool = False,
        reads: Sequence[str] | None = None,
        recurrent: int | None = None,
        encoder: nn.Module | None = None,
        features: int | None = None,
        activation: Callable[[], nn.Module] = nn.ELU,
        dropout: float = 0.0,
        head_gain: float | None = None,
    ) -> None:
        super().__init__(model)
        if head_gain is None:
            head_gain = 0.1 if residual else 1.0
        known = prototype(model)
        self.frame_shape = known.frame_shape
        self.residual = self.reads_priors = residual
        self.reads = None if reads is None else tuple(reads)
        self.encoder, frame = encoder_and_size(encoder, features, known.frame_shape.numel())
        state = known.state if self.reads is None else self._read_size(model)
        others = state + known.controls
        self.recurrent = None if recurrent is None else nn.LSTMCell(frame, recurrent)
        frames_alone = self.reads is not None and set(self.reads) <= set(model.observed)
        self.parallel = frames_alone and not residual and recurrent is None
        frame = frame if recurrent is None else recurrent
        layers = [hidden] if isinstance(hidden, int) else list(hidden)
        self.networks, self.heads = nn.ModuleDict(), nn.ModuleDict()
        self.sizes = known.sizes
        for name, sizes in known.sizes.items():
            inputs, outputs = [frame, others] if others else [frame], sum(sizes.values())
            if layers:
                self.networks[name] = JointMLP(inputs, layers, activation, dropout)
                self.heads[name] = head = RepeatedLinear(layers[-1], outputs)
                with torch.no_grad():
                    head.weight.mul_(head_gain)
            else:
                self.networks[name] = JointMLP(inputs, [outputs], nn.Identity)
                self.heads[name] = nn.Identity()
            others += known.values[name]

    def _read_size(self, model: StepModel) -> int:
        with torch.no_grad():
            state = model.visible(model.initial_state(Size((1,))))
        missing = [name for name in self.reads or () if not hasattr(state, name)]
        if missing:
            raise ValueError(
                f"reads must name fields of the model's state, {type(state)._fields}; "
                f"got {missing}"
            )
        return self._state(state, Size((1,))).shape[-1] if self.reads else 0

    def _state(self, state: Any, batch_shape: Size) -> Tensor:  # noqa: ANN401
        if self.reads is not None:
            state = [getattr(state, name) for name in self.reads]
        return flat(state, batch_shape)

    def initial_state(self, batch_shape: Size) -> tuple[Tensor, Tensor] | None:
        """Output and cell of the LSTM if there is one, `(*batch_shape, recurrent)` each, zeros."""
        if self.recurrent is None:
            return None
        units = self.recurrent.hidden_size
        zeros = self.recurrent.weight_hh.new_zeros(*batch_shape, units)
        return zeros, zeros

    def encode(self, x: Tensor, mask: Tensor | None, controls: Tensor | None) -> Tensor:
        """The frames' shares of each site's network, or what the LSTM reads."""
        features = self.encoder(x)
        if self.recurrent is not None:
            return features
        shares = [self._network(name).share(0, features) for name in self.sizes]
        return torch.cat(shares, -1) if len(shares) > 1 else shares[0]

    def infer(self, context: StepContext, state: Any) -> Inference:  # noqa: ANN401
        """One pass of the network for each site."""
        inputs = []
        if self.reads is None or self.reads:
            inputs.append(self._state(context.visible, context.batch_shape))
        if context.frame.control is not None:
            inputs.append(context.frame.control)
        shares, state = self._shares(context, state)
        frame = dict(zip(self.sizes, shares, strict=True))

        def choose(site: LatentSite) -> Any:  # noqa: ANN401
            if site.name not in self.sizes:
                check_names(self.sizes, [*site.earlier, site.name])
            earlier = [v.reshape(*context.batch_shape, -1) for v in site.earlier.values()]
            network, sizes = self._network(site.name), self.sizes[site.name]
            total = frame[site.name]
            parts = [part for part in (*inputs, *earlier) if part.shape[-1]]
            if parts:
                others = torch.cat(parts, -1) if len(parts) > 1 else parts[0]
                total = total + network.share(1, others)
            output = self.heads[site.name](network(total))
            free = dict(zip(sizes, output.split([*sizes.values()], -1), strict=True))
            return with_parameters(site.prior, self._from_prior(site, free))

        return Inference(choose, state)

    def _shares(self, context: StepContext, state: Any) -> tuple[Sequence[Tensor], Any]:  # noqa: ANN401
        """What the frames up to this one add to each site's network, and the LSTM's state."""
        encoding, seen = context.frame.encoding, context.frame.seen
        if self.recurrent is None:
            return encoding.chunk(len(self.sizes), -1), state
        h, c = lstm_step(self.recurrent, encoding, *state)
        if seen is not None:
            h, c = where(seen, (h, c), state)
        return [self._network(name).share(0, h) for name in self.sizes], (h, c)

    def _network(self, site: str) -> JointMLP:
        return cast(JointMLP, self.networks[site])

    def _from_prior(self, site: LatentSite, free: dict[str, Tensor]) -> dict[str, Tensor]:
        """The free parameters: bounded, and with the prior's locations added if residual."""
        start = free_parameters(site.prior) if self.residual else {}
        result = {}
        for name, value in free.items():
            if not is_unbounded(site.prior, name):
                value = value.clamp(-LIMIT, LIMIT)
            shifted = self.residual and is_location(site.prior, name)
            result[name] = value + start[name] if shifted else value
        return result
