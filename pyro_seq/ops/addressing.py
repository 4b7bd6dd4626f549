r"""Where a memory is read and written: weights over its slots.

Weights of read or write heads are `(*batch, heads, slots)`, the rows of a memory
`(*batch, slots, word)`. All functions take any batch dimensions, are differentiable, and stay
finite in float32 for a memory of zeros and for extreme arguments: a constant stands inside each
root, powers are taken in log space, and products of usages are sums of logarithms.

References:
    Graves, Wayne, Danihelka (2014), Neural Turing machines.
    Santoro, Bartunov, Botvinick, Wierstra, Lillicrap (2016), One-shot learning with
    memory-augmented neural networks.
    Graves, Wayne, Reynolds et al. (2016), Hybrid computing using a neural network with dynamic
    external memory.
    Rae, Hunt, Danihelka et al. (2016), Scaling memory-augmented neural networks with sparse reads
    and writes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

__all__ = [
    "Links",
    "Sparse",
    "Usage",
    "allocation",
    "candidate_weights",
    "circular_shift",
    "content_weights",
    "erase_and_add",
    "follow_links",
    "gather_rows",
    "largest",
    "least_used",
    "likeness",
    "oneplus",
    "positive_weights",
    "recent_usage",
    "retained_usage",
    "sharpen",
    "temporal_links",
    "top_candidates",
    "unit",
    "write_row",
]

_ROOT = 1e-6
_LOG = 1e-12
_POSITIVE = 1e-6
_TINY = 1e-20


class Usage(NamedTuple):
    """How much each slot is in use.

    Attributes:
        usage: u, `(*batch, slots)`, in [0, 1].
        retention: Share of each row that no head has freed, `(*batch, slots)`.
    """

    usage: Tensor
    retention: Tensor


class Links(NamedTuple):
    """In which order slots were written.

    Attributes:
        links: `(*batch, slots, slots)`; entry (i, j) is the degree to which i was written next
            after j.
        precedence: Degree to which each slot was written last, `(*batch, slots)`.
    """

    links: Tensor
    precedence: Tensor


class Sparse(NamedTuple):
    """Weights of a few slots.

    Attributes:
        slots: int64 `(*batch, heads, count)`.
        weights: Their weights, `(*batch, heads, count)`.
    """

    slots: Tensor
    weights: Tensor


def oneplus(x: Tensor) -> Tensor:
    r""":math:`1 + \log(1 + e^x)`, a strength of one or more."""
    return 1 + functional.softplus(x)


def unit(vectors: Tensor, lengths: Tensor | None = None) -> Tensor:
    r""":math:`l\, v / \sqrt{|v|^2 + \epsilon}`, finite with its gradient at zero.

    Args:
        vectors: v, `(*batch, size)`.
        lengths: l, `(*batch,)`; None for one.
    """
    factors = (vectors.square().sum(-1) + _ROOT).rsqrt()
    if lengths is not None:
        factors = factors * lengths
    return vectors * factors.unsqueeze(-1)


def content_weights(queries: Tensor, rows: Tensor, strengths: Tensor | None = None) -> Tensor:
    r"""Weights by likeness.

    .. math:: w_n = \mathrm{softmax}_n \, \beta \, \frac{k^\top m_n}
        {\sqrt{|k|^2 + \epsilon}\, \sqrt{|m_n|^2 + \epsilon}}

    Args:
        queries: k, `(*batch, heads, word)`.
        rows: m, `(*batch, slots, word)`.
        strengths: :math:`\beta`, `(*batch, heads)`; None for one.

    Returns:
        `(*batch, heads, slots)`, each head's weights adding up to 1.
    """
    return likeness(unit(queries, strengths), rows)


def likeness(queries: Tensor, rows: Tensor) -> Tensor:
    """:func:`content_weights` of queries that are as long as their strengths, see :func:`unit`.

    Args:
        queries: `(*batch, heads, word)`.
        rows: `(*batch, slots, word)`.
    """
    lengths = (rows.square().sum(-1) + _ROOT).rsqrt().unsqueeze(-2)
    return ((queries @ rows.mT) * lengths).softmax(-1)


def candidate_weights(scores: Tensor, candidates: Tensor, null: Tensor) -> Tensor:
    """Softmax over candidates and one further choice, to take none of them.

    Args:
        scores: `(*batch, heads, slots)`.
        candidates: bool, broadcasts with `scores`; False for slots that get no weight.
        null: Score of taking none, `(*batch, heads)`.

    Returns:
        `(*batch, heads, slots)`; what is missing to 1 is the weight of taking none.
    """
    scores = torch.where(candidates, scores, -torch.inf)
    return torch.cat([scores, null.unsqueeze(-1)], -1).softmax(-1)[..., :-1]


def top_candidates(
    queries: Tensor, keys: Tensor, candidates: Tensor, null: Tensor, count: int
) -> Sparse:
    """:func:`candidate_weights` of the candidates with the highest scores alone.

    The slots are found without recording gradients; the scores of those found are then computed
    anew. Time and memory of the gradient depend on the count, not on the number of slots, except
    for the zeros that are the gradient of all others.

    Args:
        queries: `(*batch, heads, word)`; a score is the product of a query and a key.
        keys: `(*batch, slots, word)`.
        candidates: bool, `(*batch, slots)`.
        null: Score of taking none, `(*batch, heads)`.
        count: How many, at most the number of slots.
    """
    with torch.no_grad():
        scores = torch.where(candidates.unsqueeze(-2), queries @ keys.mT, -torch.inf)
        best, index = scores.topk(count, -1)
    scores = (gather_rows(keys, index) @ queries.unsqueeze(-1)).squeeze(-1)
    return Sparse(index, candidate_weights(scores, best > -torch.inf, null))


def positive_weights(scores: Tensor) -> Tensor:
    r"""Weights in proportion to softplus, over the last dimension.

    .. math:: w_n = \mathrm{softplus}(s_n) \Big/ \sum_i \mathrm{softplus}(s_i)

    Args:
        scores: s, `(*batch, heads, slots)`; where all are extremely negative, all are equal.
    """
    positive = functional.softplus(scores) + _POSITIVE
    return positive / positive.sum(-1, keepdim=True)


def circular_shift(weights: Tensor, shifts: Tensor) -> Tensor:
    r"""Moves weights round the slots: circular convolution.

    .. math:: \tilde w(i) = \sum_j w(j)\, s((i - j) \bmod N)

    Args:
        weights: w, `(*batch, heads, slots)`.
        shifts: s, weights of the shifts :math:`-m \dots m`, `(*batch, heads, 2 m + 1)`; the last
            moves weight from slot i to slot i + m.

    Raises:
        ValueError: For an even number of shifts.
    """
    reach, even = divmod(shifts.shape[-1] - 1, 2)
    if even:
        raise ValueError(
            "shifts must be weights of an odd number of shifts, -m ... m, in the last dimension; "
            f"got shape {tuple(shifts.shape)}"
        )
    moved = [weights.roll(by, -1) for by in range(-reach, reach + 1)]
    return (shifts.unsqueeze(-2) @ torch.stack(moved, -2)).squeeze(-2)


def sharpen(weights: Tensor, power: Tensor) -> Tensor:
    r""":math:`w_n^\gamma / \sum_i w_i^\gamma`, in log space.

    Args:
        weights: `(*batch, heads, slots)`.
        power: :math:`\gamma \geq 1`, `(*batch, heads)`.
    """
    return (power.unsqueeze(-1) * (weights + _LOG).log()).softmax(-1)


def erase_and_add(rows: Tensor, weights: Tensor, erase: Tensor, add: Tensor) -> Tensor:
    r""":math:`M \circ (1 - w e^\top) + w a^\top`.

    Args:
        rows: M, `(*batch, slots, word)`.
        weights: w of one head, `(*batch, slots)`.
        erase: e, in [0, 1], `(*batch, word)`.
        add: a, `(*batch, word)`.
    """
    change = add.unsqueeze(-2) - erase.unsqueeze(-2) * rows
    return rows + weights.unsqueeze(-1) * change


def write_row(rows: Tensor, slot: Tensor, row: Tensor) -> Tensor:
    """The rows with one of them replaced.

    Args:
        rows: `(*batch, slots, word)`.
        slot: Which one, int64 `(*batch,)`.
        row: `(*batch, word)`.
    """
    row = row.unsqueeze(-2)
    return rows.scatter(-2, slot[..., None, None].expand(row.shape), row)


def recent_usage(usage: Tensor, reads: Tensor, writes: Tensor, decay: float = 0.95) -> Tensor:
    r""":math:`u_t = \lambda u_{t-1} + \sum_r w^r_t + \sum_r v^r_t`: how recently slots were used.

    Args:
        usage: `(*batch, slots)`.
        reads: Weights of the read heads, `(*batch, heads, slots)`.
        writes: Weights of the write heads, `(*batch, heads, slots)`.
        decay: :math:`\lambda`.
    """
    return decay * usage + reads.sum(-2) + writes.sum(-2)


def least_used(usage: Tensor, count: int) -> Tensor:
    """The slots used least, the least used first, and of equals the one of lower number first.

    Args:
        usage: `(*batch, slots)`.
        count: How many.

    Returns:
        One-hot weights `(*batch, count, slots)`, without gradient.
    """
    index = usage.detach().argsort(dim=-1, stable=True)[..., :count].unsqueeze(-1)
    slots = torch.arange(usage.shape[-1], device=usage.device)
    return (index == slots).to(usage.dtype)


def retained_usage(usage: Tensor, write: Tensor, reads: Tensor, free: Tensor) -> Usage:
    r"""Usage rises where was written and falls where heads free what they have read.

    .. math:: \psi = \prod_r (1 - f^r w^r), \qquad
        u_t = (1 - (1 - u_{t-1}) (1 - w^w)) \circ \psi

    Args:
        usage: :math:`u_{t-1}`, `(*batch, slots)`.
        write: Write weights of the step before, `(*batch, slots)`.
        reads: Read weights of the step before, `(*batch, heads, slots)`.
        free: Free gates, `(*batch, heads)`.
    """
    kept = 1 - free.unsqueeze(-1) * reads
    retention = (kept + _TINY).log().sum(-2).exp()
    return Usage((1 - (1 - usage) * (1 - write)) * retention, retention)


def allocation(usage: Tensor) -> Tensor:
    r"""Weights of free slots, the free-est first.

    .. math:: a_{\phi_j} = (1 - u_{\phi_j}) \prod_{i < j} u_{\phi_i}

    with :math:`\phi` the slots in the order of rising usage, those of equal usage by number. The
    order is a constant for the gradient.

    Args:
        usage: u, `(*batch, slots)`, in [0, 1].

    Returns:
        `(*batch, slots)`, adding up to 1 at most.
    """
    rising, order = usage.sort(dim=-1, stable=True)
    logs = (rising + _TINY).log()
    before = (logs.cumsum(-1) - logs).exp()
    return torch.zeros_like(usage).scatter(-1, order, (1 - rising) * before)


def temporal_links(links: Tensor, precedence: Tensor, write: Tensor) -> Links:
    r"""Links from each slot to the one written next.

    .. math:: L_t[i, j] = (1 - w_i - w_j)\, L_{t-1}[i, j] + w_i\, p_{t-1}[j], \quad
        L_t[i, i] = 0, \qquad p_t = \Bigl(1 - \sum_i w_i\Bigr) p_{t-1} + w

    Args:
        links: `(*batch, slots, slots)`.
        precedence: `(*batch, slots)`.
        write: w, `(*batch, slots)`, adding up to 1 at most.
    """
    to, after = write.unsqueeze(-1), precedence.unsqueeze(-2)
    half = 0.5 - write
    links = (half.unsqueeze(-1) + half.unsqueeze(-2)) * links + to * after
    itself = torch.eye(write.shape[-1], dtype=torch.bool, device=write.device)
    left = 1 - write.sum(-1, keepdim=True)
    return Links(links.masked_fill(itself, 0), write + left * precedence)


def follow_links(links: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    r"""Weights of the slots written before and after those of given weights.

    .. math:: b = L^\top w, \qquad f = L w

    Args:
        links: `(*batch, slots, slots)`.
        weights: `(*batch, heads, slots)`.

    Returns:
        Backward and forward weights, `(*batch, heads, slots)` each.
    """
    return weights @ links, weights @ links.mT


def gather_rows(rows: Tensor, index: Tensor) -> Tensor:
    """Rows by number.

    Args:
        rows: `(*batch, slots, word)`.
        index: int64 `(*batch, heads, count)`.

    Returns:
        `(*batch, heads, count, word)`.
    """
    batch, (slots, word) = rows.shape[:-2], rows.shape[-2:]
    first = slots * torch.arange(batch.numel(), device=rows.device).view(*batch, 1, 1)
    flat = (index + first).flatten()
    return rows.reshape(-1, word).index_select(0, flat).view(*index.shape, word)


def largest(sparse: Sparse, count: int) -> Sparse:
    """The slots of largest weight, once the weights of each slot are added.

    Args:
        sparse: Weights of slots, of which some may occur more than once.
        count: How many to keep.

    Returns:
        `count` slots; where there are fewer, further ones of weight 0, which may repeat others.
    """
    same = sparse.slots.unsqueeze(-1) == sparse.slots.unsqueeze(-2)
    again = same.tril(-1).any(-1)
    total = torch.where(same, sparse.weights.unsqueeze(-2), 0).sum(-1)
    total = torch.where(again, 0, total)
    weights, place = total.topk(min(count, total.shape[-1]), -1)
    return Sparse(sparse.slots.gather(-1, place), weights)
