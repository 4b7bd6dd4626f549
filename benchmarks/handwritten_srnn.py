"""A stochastic recurrent network and its two filters in plain torch, as one would write them once.

The sizes are those of the polyphonic music experiment of amortized variational filtering.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

NOTES, RECURRENT, LATENT, HIDDEN, ITERATIVE = 88, 300, 100, 500, 1024
LOWEST, HIGHEST = -7.0, 2.0  # of a log scale

Gaussian = tuple[Tensor, Tensor]  # location and log scale


class HandwrittenSRNN(nn.Module):
    r"""All losses of one model.

    .. math::
        h_t = \mathrm{LSTM}(x_{<t}), \quad z_t \sim N(f(h_t, z_{t-1})), \quad
        x_t \sim \mathrm{Bernoulli}(g(h_t, z_t))

    Everything that does not wait for z_{t-1} runs over all frames at once: the LSTM, every
    product with h_t or x_t, the decoder of the loss, and the KL divergences.
    """

    def __init__(self) -> None:
        super().__init__()
        self.first_state = nn.Parameter(torch.zeros(2, 1, RECURRENT))
        self.recurrent = nn.LSTM(NOTES, RECURRENT)
        self.prior_history = nn.Linear(RECURRENT, HIDDEN)
        self.prior_latent = nn.Linear(LATENT, HIDDEN, bias=False)
        self.prior_out = nn.Linear(HIDDEN, 2 * LATENT)
        self.decoder_history = nn.Linear(RECURRENT, HIDDEN)
        self.decoder_latent = nn.Linear(LATENT, HIDDEN, bias=False)
        self.decoder_middle = nn.Linear(HIDDEN, HIDDEN)
        self.decoder_out = nn.Linear(HIDDEN, NOTES)
        self.filter = nn.Sequential(
            nn.Linear(NOTES + RECURRENT, HIDDEN), nn.ELU(), nn.Linear(HIDDEN, 2 * LATENT)
        )
        self.filter_latent = nn.Linear(LATENT, HIDDEN, bias=False)
        self.update = HighwayUpdate()

    def history(self, x: Tensor) -> Tensor:
        """h_1 ... h_T, (T, B, recurrent): h_t has seen x_1 ... x_{t-1}, (T, B, notes)."""
        first = self.first_state.expand(2, x.shape[1], RECURRENT)
        hidden, cell = first.unsqueeze(1).contiguous()
        later, _ = self.recurrent(x[:-1], (hidden, cell))
        return torch.cat([hidden, later])

    def prior(self, history: Tensor, previous: Tensor) -> Gaussian:
        """p(z_t | h_t, z_{t-1}); `history` is the product with h_t."""
        hidden = functional.elu(history + self.prior_latent(previous))
        return gaussian(self.prior_out(hidden))

    def reconstruction(self, history: Tensor, z: Tensor, x: Tensor) -> Tensor:
        """-log p(x_t | h_t, z_t) summed over everything; `history` is the product with h_t."""
        hidden = functional.elu(history + self.decoder_latent(z))
        logits = self.decoder_out(functional.elu(self.decoder_middle(hidden)))
        return functional.binary_cross_entropy_with_logits(logits, x, reduction="sum")

    def filter_loss(self, x: Tensor) -> Tensor:
        """Free energy of q(z_t | x_t, h_t), (B, T, notes) -> nats per frame.

        This filter does not look at z_{t-1}, so that nothing at all is sequential.
        """
        x = x.transpose(0, 1)
        history = self.history(x)
        q = gaussian(self.filter(torch.cat([x, history], dim=-1)))
        z = sample(q)
        previous = functional.pad(z[:-1], (0, 0, 0, 0, 1, 0))
        p = self.prior(self.prior_history(history), previous)
        total = self.reconstruction(self.decoder_history(history), z, x) + kl_divergence(q, p)
        return total / x[..., 0].numel()

    def latent_filter_loss(self, x: Tensor) -> Tensor:
        """Free energy of q(z_t | x_t, h_t, z_{t-1}), (B, T, notes) -> nats per frame.

        The posteriors wait for each other, the rest still runs over all frames at once.
        """
        x = x.transpose(0, 1)
        history = self.history(x)
        z = x.new_zeros(x.shape[1], LATENT)
        locations, log_scales, samples = [], [], []
        for known in self.filter[0](torch.cat([x, history], dim=-1)):
            hidden = functional.elu(known + self.filter_latent(z))
            q = gaussian(self.filter[2](hidden))
            z = sample(q)
            locations.append(q[0])
            log_scales.append(q[1])
            samples.append(z)
        latent, q = torch.stack(samples), (torch.stack(locations), torch.stack(log_scales))
        previous = functional.pad(latent[:-1], (0, 0, 0, 0, 1, 0))
        p = self.prior(self.prior_history(history), previous)
        nats = self.reconstruction(self.decoder_history(history), latent, x)
        return (nats + kl_divergence(q, p)) / x[..., 0].numel()

    def avf_loss(self, x: Tensor, iterations: int = 1) -> Tensor:
        """Free energy after amortized steps from the prior, (B, T, notes) -> nats per frame.

        The network of the update learns from each frame alone, the model from samples held
        fixed: no gradient crosses a frame or reaches the model through z. One backward pass
        serves both, since q depends on the network of the update alone. With several iterations
        the network learns from the mean of the free energies after each.
        """
        x = x.transpose(0, 1)
        history = self.history(x)
        for_prior, for_decoder = self.prior_history(history), self.decoder_history(history)
        z = x.new_zeros(x.shape[1], LATENT)
        locations, log_scales, samples, gains = [], [], [], []
        for frame, prior_term, decoder_term in zip(
            x, for_prior.detach(), for_decoder.detach(), strict=True
        ):
            with torch.no_grad():
                start = self.prior(prior_term, z)
            q = self.update(start, self.gradient(start, decoder_term, frame))
            for _ in range(iterations - 1):
                slope = self.gradient(q, decoder_term, frame, start)
                gains.append((slope[0] * q[0]).sum() + (slope[1] * q[1]).sum())
                q = self.update(q, slope)
            if iterations > 1:
                q = shared(q[0], iterations), shared(q[1], iterations)
            attached = sample(q)
            z = attached.detach()
            locations.append(q[0])
            log_scales.append(q[1])
            samples.append(attached)
        latent, q = torch.stack(samples), (torch.stack(locations), torch.stack(log_scales))
        previous = functional.pad(latent[:-1].detach(), (0, 0, 0, 0, 1, 0))
        p = self.prior(for_prior, previous)
        total = self.reconstruction(for_decoder, latent, x) + kl_divergence(q, p)
        if gains:
            gain = torch.stack(gains).sum() / iterations
            total = total + gain - gain.detach()
        return total / x[..., 0].numel()

    def gradient(
        self, q: Gaussian, history: Tensor, x: Tensor, prior: Gaussian | None = None
    ) -> Gaussian:
        """Of one frame's free energy; without a prior at the prior, where the KL's is zero."""
        leaves = (q[0].detach().requires_grad_(), q[1].detach().requires_grad_())
        energy = self.reconstruction(history, sample(leaves), x)
        if prior is not None:
            energy = energy + kl_divergence(leaves, prior)
        location, log_scale = torch.autograd.grad(energy, leaves)
        return location, log_scale


class HighwayUpdate(nn.Module):
    """Two highway layers on normalised gradient and estimate, and a gated step."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4 * LATENT, 3 * ITERATIVE)
        self.second = nn.Linear(ITERATIVE, 2 * ITERATIVE)
        self.out = nn.Linear(ITERATIVE, 4 * LATENT)

    def forward(self, estimate: Gaussian, gradient: Gaussian) -> Gaussian:
        """The next estimate; both arguments count as constants."""
        terms = [value.detach() for value in (*gradient, *estimate)]
        normalised = torch.cat(
            [functional.layer_norm(term, (LATENT,), eps=1e-14) for term in terms], -1
        )
        linear, new, gate = self.first(normalised).chunk(3, dim=-1)
        hidden = torch.lerp(functional.elu(new), linear, gate.sigmoid())
        new, gate = self.second(hidden).chunk(2, dim=-1)
        hidden = torch.lerp(functional.elu(new), hidden, gate.sigmoid())
        loc, log_scale, loc_gate, scale_gate = self.out(hidden).chunk(4, dim=-1)
        return (
            torch.lerp(loc, terms[2], loc_gate.sigmoid()),
            torch.lerp(log_scale, terms[3], scale_gate.sigmoid()).clamp(LOWEST, HIGHEST),
        )


def normalise(term: Tensor) -> Tensor:
    """Zero mean and unit deviation over the latents."""
    return functional.layer_norm(term, (LATENT,), eps=1e-14)


def shared(value: Tensor, iterations: int) -> Tensor:
    """The value, with its gradient divided by the number of iterations."""
    return torch.lerp(value.detach(), value, 1 / iterations)


def gaussian(output: Tensor) -> Gaussian:
    """Location and clamped log scale from a network's output."""
    loc, log_scale = output.chunk(2, dim=-1)
    return loc, log_scale.clamp(LOWEST, HIGHEST)


def sample(q: Gaussian) -> Tensor:
    """One reparametrised draw."""
    return torch.addcmul(q[0], q[1].exp(), torch.randn_like(q[0]))


def kl_divergence(q: Gaussian, p: Gaussian) -> Tensor:
    """KL(q || p) of diagonal Gaussians, summed over everything."""
    difference = q[1] - p[1]
    squared = (2 * difference).exp() + (q[0] - p[0]).square() * (-2 * p[1]).exp()
    return (0.5 * (squared - 1) - difference).sum()
