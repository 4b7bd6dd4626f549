r"""Smoothing with a network that runs backward over the sequence, as in the paper of the SRNN.

.. math:: a_t = \mathrm{GRU}(a_{t+1}, [d_t, x_t]), \quad
    q(z_t \mid z_{t-1}, a_t), \quad \text{residual: } \mu_q = \mu_p + f_\mu(z_{t-1}, a_t)

References:
    Fraccaro, Sonderby, Paquet, Winther (2016), Sequential neural models with stochastic layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Size, Tensor, nn

from pyro_seq.guides.context import StepContext
from pyro_seq.guides.filtering import FilteringGuide, Inference
from pyro_seq.guides.neural_filter import NeuralFilter
from pyro_seq.guides.prototype import flat, prototype
from pyro_seq.models.step_model import SplitStepModel, StepModel
from pyro_seq.nn.mlp import encoder_and_size
from pyro_seq.plugins import register

__all__ = ["BackwardSmoother"]


@register("guides", "smoother")
class BackwardSmoother(FilteringGuide):
    r"""A network from what is left of the sequence and the model's state to the parameters of q.

    A recurrent network reads the frames backward, so that :math:`a_t` holds what was observed at
    step t and after it; its state stays as it is where a frame is missing. From
    :math:`a_t` on this is :class:`~pyro_seq.guides.NeuralFilter`. q is the prior where nothing is
    observed any more.

    It needs the whole sequence, and cannot filter online. A sequence that is given in stretches is
    smoothed within each of them.

    Args:
        model: Any :class:`~pyro_seq.models.StepModel` with reparametrised latents.
        units: Units of the recurrent network, the size of a.
        hidden: Units of each hidden layer after it, or of the only one.
        residual: Whether locations are those of the prior plus the network's output.
        reads: Names of the fields of the model's state that the network reads beside a, such as
            `["z"]`; all when None.
        embedding: Whether the recurrent network also reads d, what a model in parts makes of the
            frames before t (:meth:`~pyro_seq.models.SplitStepModel.embed`), or the names of the
            fields of it, such as `["h"]`. Where a frame is missing d is made with zeros for it.
        encoder: Module from frames `(batch, time, *frame)` to `(batch, time, features)`; by
            default the frame itself. It may be one that the model has too.
        features: Size of its output, when there is one.
        activation: Makes the nonlinearity of the layers.
        dropout: Probability that a unit is dropped in training.

    Raises:
        TypeError: When the model is no step model.
        ValueError: When a latent has no reparametrised prior, a field is unknown, or the model
            embeds no frames.

    Example:
        >>> from pyro_seq.models import SRNN
        >>> model = SRNN(88, latent=4, hidden=8, prior=[8], decoder=[8])
        >>> guide = BackwardSmoother(model, units=8, hidden=8, residual=True, reads=["z"])
        >>> guide(torch.ones(2, 3, 88))["z_3"].shape
        torch.Size([2, 4])
    """

    online = False

    def __init__(
        self,
        model: StepModel,
        *,
        units: int = 64,
        hidden: int | Sequence[int] = 64,
        residual: bool = False,
        reads: Sequence[str] | None = None,
        embedding: bool | Sequence[str] = False,
        encoder: nn.Module | None = None,
        features: int | None = None,
        activation: Callable[[], nn.Module] = nn.ELU,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(model)
        known = prototype(model)
        self.frame_shape = known.frame_shape
        self.encoder, size = encoder_and_size(encoder, features, known.frame_shape.numel())
        self.embedding = embedding if isinstance(embedding, bool) else tuple(embedding)
        inputs = size + known.controls
        if embedding:
            inputs += self._embedding_size(known.frame_shape)
        self.backward_network = nn.GRU(inputs, units, batch_first=True)
        self.posterior = NeuralFilter(
            model,
            hidden=hidden,
            residual=residual,
            reads=reads,
            encoder=nn.Identity(),
            features=units,
            activation=activation,
            dropout=dropout,
        )
        self.parallel = self.posterior.parallel
        self.reads_priors = self.posterior.reads_priors

    def informed(self, mask: Tensor) -> Tensor:
        """Where some frame at the step or after it was observed, bool `(batch, time)`."""
        return mask.flip(1).cumsum(1).flip(1) > 0

    def encode(self, x: Tensor, mask: Tensor | None, controls: Tensor | None) -> Tensor | None:
        """What the posterior's network makes of :math:`a_t`, `(batch, time, ...)`."""
        parts = [self.encoder(x)] if controls is None else [self.encoder(x), controls]
        if self.embedding:
            past = self._embedded(x)
            parts.append(torch.cat([torch.zeros_like(past[:, :1]), past[:, :-1]], 1))
        a = self._backward(torch.cat(parts, -1), mask)
        return self.posterior.encode(a, mask, controls)

    def infer(self, context: StepContext, state: Any) -> Inference:  # noqa: ANN401
        """One pass of the posterior's network for each site."""
        return self.posterior.infer(context, state)

    def _backward(self, inputs: Tensor, mask: Tensor | None) -> Tensor:
        r""":math:`a_t`, `(batch, time, units)`.

        The observed steps are moved together, last one first, and run through the network at once;
        each step then takes the state after as many of them as were observed from it on.
        """
        inputs = inputs.flip(1)
        if mask is None:
            return self.backward_network(inputs)[0].flip(1)
        seen = mask.flip(1)
        order = torch.argsort(~seen, dim=1, stable=True)
        states = self.backward_network(_take(inputs, order))[0]
        states = torch.cat([torch.zeros_like(states[:, :1]), states], 1)
        return _take(states, seen.cumsum(1)).flip(1)

    def _embedded(self, x: Tensor) -> Tensor:
        """What the model makes of the frames up to each, `(batch, time, size)`."""
        model = self.model
        if not isinstance(model, SplitStepModel) or not model.reads_frames:
            raise ValueError(
                "embedding needs a model in parts that reads frames; got "
                f"{type(model).__name__}. Use embedding=False"
            )
        made, _ = model.embed(x, model.initial_memory(x.shape[0]))
        if not isinstance(self.embedding, bool):
            unknown = [name for name in self.embedding if not hasattr(made, name)]
            if unknown:
                known = getattr(made, "_fields", "none")
                raise ValueError(
                    f"embedding must name fields of the model's, {known}; got {unknown}"
                )
            made = [getattr(made, name) for name in self.embedding]
        return flat(made, Size(x.shape[:2]))

    def _embedding_size(self, frame_shape: Size) -> int:
        with torch.no_grad():
            like = next(self.model.parameters())
            return self._embedded(like.new_zeros(1, 1, *frame_shape)).shape[-1]


def _take(values: Tensor, steps: Tensor) -> Tensor:
    """The values `(batch, time, size)` at the steps `(batch, time)`."""
    return values.gather(1, steps.unsqueeze(-1).expand(-1, -1, values.shape[-1]))
