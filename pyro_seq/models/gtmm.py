r"""Generative temporal model with memory.

.. math::
    \Psi_{t-1} = \mathrm{memory}(z_{<t}, u_{\leq t}), \quad
    z_t \sim N(\mu(\Psi_{t-1}) + A \phi_{t-1}, \sigma^2(\Psi_{t-1})), \quad
    x_t \sim p(x_t \mid z_t)

References:
    Gemici, Hung, Santoro, Wayne, Mohamed, Rezende, Amos, Lillicrap (2017), Generative temporal
    models with memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from inspect import signature
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from torch import Size, Tensor, nn

from pyro_seq.memory import Context, Memory
from pyro_seq.models.step_model import SplitState, SplitStepModel
from pyro_seq.nn.heads import NormalHead, emission_head
from pyro_seq.nn.mlp import mlp
from pyro_seq.nn.repeated import RepeatedLinear
from pyro_seq.plugins import get, register

__all__ = ["GTMM"]

LOG_SCALES = (-6.0, 3.0)


@register("models", "gtmm")
class GTMM(SplitStepModel):
    r"""A model whose prior reads a memory of the latents.

    Prior and posterior share what the memory makes of the past, :math:`\Psi`; it is read once per
    step. The filter of the paper is a network of the frame's features and :math:`\Psi`,
    ``NeuralFilter(model, encoder=..., features=...)``. Frames enter the memory through their
    latents alone, so that generating needs no frame. The LSTM reads features of the last frame
    too, which makes the VRNN of it.

    Args:
        frame: Size or shape of a frame.
        latent: Size of z.
        memory: Name in the registry, or a :class:`~pyro_seq.memory.Memory`.
        memory_options: Further arguments of a memory by name, such as `slots` and `heads`.
        prior: Units of each hidden layer of the prior network.
        decoder: Units of each hidden layer of the emission network, or a module from
            `(count, size)` to what an emission module reads, `size` being that of z, and of
            :math:`\Psi` with `decoder_context`.
        emission: `"bernoulli"`, `"normal"`, `"window"`, or a module from the decoder's
            output to a distribution of the frame.
        emission_options: Keyword arguments of a named emission.
        controls: Size of u, which the memory's controller reads, or 0.
        encoder: Module from frames `(batch, time, *frame)` to `(batch, time, features)`, for a
            memory that reads frames.
        copy: Whether the prior's location has what was read added, through a matrix A.
        decoder_context: Whether the emission reads :math:`\Psi` too. The divergence then measures
            no longer what the memory predicts.
        log_scales: Bounds of :math:`\log \sigma` of the prior.
        activation: Makes the nonlinearity of the dense layers.

    Attributes:
        memory: The memory.

    Raises:
        TypeError: If the memory is none.
        ValueError: For an unknown emission, options for a memory or an emission that is given,
            options that a memory by name lacks, a memory of other latents or controls, or an
            encoder that is missing or that nothing reads.

    Example:
        >>> model = GTMM(6, latent=4, memory="dnc", memory_options={"slots": 5, "hidden": 8})
        >>> model.generate(batch=2, time=5).shape
        torch.Size([2, 5, 6])
    """

    class State(NamedTuple):
        r"""Before a step.

        Attributes:
            z: The last latent, `(*batch, latent)`.
            g: Features of the last frame, `(*batch, features)`, or of size 0.
            memory: State of the memory.
            context: What it made of the past, once the step is prepared.
        """

        z: Tensor
        g: Tensor
        memory: Any
        context: Context

    class Visible(NamedTuple):
        r"""What a guide reads: :math:`\Psi`."""

        context: Tensor

    class Latents(NamedTuple):
        r"""What the emission reads: z and, with `decoder_context`, :math:`\Psi`."""

        z: Tensor
        context: Tensor | None

    def __init__(
        self,
        frame: int | Sequence[int],
        *,
        latent: int = 32,
        memory: str | Memory = "introspection",
        memory_options: Mapping[str, Any] | None = None,
        prior: Sequence[int] = (128,),
        decoder: Sequence[int] | nn.Module = (200,),
        emission: str | nn.Module = "bernoulli",
        emission_options: Mapping[str, Any] | None = None,
        controls: int = 0,
        encoder: nn.Module | None = None,
        copy: bool = True,
        decoder_context: bool = False,
        log_scales: tuple[float, float] = LOG_SCALES,
        activation: Callable[[], nn.Module] = nn.ELU,
    ) -> None:
        super().__init__()
        self.controls, self.decoder_context = controls, decoder_context
        self.memory = _made(memory, memory_options, latent, controls)
        self.reads_frames = self.memory.frame_features > 0
        if self.reads_frames and not callable(encoder):
            raise ValueError(
                "encoder must make features of the frames, of size "
                f"{self.memory.frame_features}, for a memory that reads them; got {encoder!r}"
            )
        if encoder is not None and not self.reads_frames:
            raise ValueError(
                "encoder must be None for a memory that reads no frames; got "
                f"{type(encoder).__name__}. That of a guide is its own"
            )
        self.encoder = encoder
        context = self.memory.context
        self.prior = mlp(context, prior, activation)
        self.prior_head = NormalHead((context, *prior)[-1], latent, log_scales)
        with torch.no_grad():  # to begin with, close to a standard normal distribution
            self.prior_head.parameters_of.weight.mul_(0.1)
            self.prior_head.parameters_of.bias.zero_()
        reads = self.memory.reads if copy else 0
        self.copy = RepeatedLinear(reads, latent, bias=False) if reads else None
        size = latent + context * decoder_context
        if isinstance(decoder, nn.Module):
            if isinstance(emission, str):
                raise ValueError(f"emission must be a module beside a decoder; got {emission!r}")
            self.decoder = decoder
        else:
            self.decoder = mlp(size, decoder, activation)
            size = (size, *decoder)[-1]
        if isinstance(emission, str):
            emission = emission_head(emission, size, frame, **(emission_options or {}))
        elif emission_options or not isinstance(emission, nn.Module):
            raise ValueError(
                "emission must be a name, or a module without emission_options; got "
                f"{type(emission).__name__} and {emission_options}"
            )
        self.emit = emission

    def check_steps(self, steps: int) -> None:
        """That the memory has room for as many."""
        self.memory.check_steps(steps)

    def begin(self, batch_shape: Size) -> State:
        """Zeros, and the memory as it begins."""
        memory = self.memory
        zeros = next(self.prior_head.parameters()).new_zeros
        sizes = (memory.context,), (memory.reads,), (memory.heads, memory.slots)
        return self.State(
            zeros(*batch_shape, memory.latent),
            zeros(*batch_shape, memory.frame_features),
            memory.initial_state(batch_shape),
            Context(*(zeros(*batch_shape, *size) for size in sizes)),
        )

    def visible(self, state: SplitState) -> Visible:
        """What the memory made of the past."""
        return self.Visible(state.state.context.features)

    def embed(self, x: Tensor, memory: None) -> tuple[Tensor, None]:
        """Features of each frame, `(batch, time, features)`."""
        assert self.encoder is not None
        features, expected = self.encoder(x), (*x.shape[:2], self.memory.frame_features)
        if features.shape != expected:
            raise ValueError(
                f"encoder must make features (batch, time, features) = {expected} of frames "
                f"{tuple(x.shape)}; got shape {tuple(features.shape)}"
            )
        return features, memory

    def prepare(self, state: State, u_t: Tensor | None) -> State:
        """Takes the last latent into the memory, and reads it."""
        features = state.g if self.reads_frames else None
        context, memory = self.memory.step(state.memory, state.z, u_t, features)
        return state._replace(memory=memory, context=context)

    def latents(self, state: State, u_t: Tensor | None) -> Latents:
        r"""Draws :math:`z_t \sim p(z_t \mid \Psi_{t-1})`."""
        features, reads, _ = state.context
        loc, scale = self.prior_head.moments(self.prior(features))
        if self.copy is not None:
            loc = loc + self.copy(reads)
        z = pyro.sample("z", dist.Normal(loc, scale, validate_args=False).to_event(1))
        return self.Latents(z, features if self.decoder_context else None)

    def emission(self, latents: Latents) -> Any:  # noqa: ANN401
        r""":math:`p(x_t \mid z_t)`."""
        inputs = latents.z
        if latents.context is not None:
            inputs = torch.cat([inputs, latents.context], -1)
        output = self.decoder(inputs.reshape(-1, inputs.shape[-1]))
        return self.emit(output.reshape(*inputs.shape[:-1], *output.shape[1:]))

    def transition(
        self, state: State, latents: Latents, embedding: Tensor | None, u_t: Tensor | None
    ) -> State:
        """The latent, and the features of the frame, for the next step to take in."""
        g = state.g if embedding is None else embedding
        return state._replace(z=latents.z, g=g)


def _made(
    memory: str | Memory, options: Mapping[str, Any] | None, latent: int, controls: int
) -> Memory:
    """The memory, of the sizes that the model has."""
    if not isinstance(memory, str | Memory):
        raise TypeError(f"memory must be a name or a Memory; got {memory!r}")
    if isinstance(memory, str):
        memory = _by_name(memory, options or {}, latent=latent, controls=controls)
    elif options:
        raise ValueError(f"memory_options are for a memory by name; got {dict(options)}")
    for name, size in (("latent", latent), ("controls", controls)):
        if getattr(memory, name) != size:
            raise ValueError(
                f"memory must have {name}={size}, as the model has; got {getattr(memory, name)}"
            )
    return memory


def _by_name(name: str, options: Mapping[str, Any], **sizes: int) -> Memory:
    """The memory of that name, or an error that says which options it lacks."""
    make, given = get("memories", name), {**sizes, **options}
    missing = [
        option
        for option, parameter in signature(make).parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        and option not in given
    ]
    if missing:
        raise ValueError(
            f"memory_options must hold {', '.join(missing)} for the memory {name!r}; "
            f"got {dict(options)}"
        )
    return make(**given)
