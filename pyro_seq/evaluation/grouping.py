r"""How well groups of pixels agree with objects, whatever the groups are called.

With the table :math:`n_{ij}` of the pixels of object i in group j, its sums :math:`a_i` and
:math:`b_j`, and N pixels in all,

.. math::
    \mathrm{AMI} = \frac{I - E[I]}{\max(H_a, H_b) - E[I]}, \qquad
    \mathrm{ARI} = \frac{S - S_a S_b / \binom{N}{2}}
        {\tfrac{1}{2} (S_a + S_b) - S_a S_b / \binom{N}{2}}

where I is the mutual information, H an entropy, E the mean over permutations of the pixels, and
:math:`S = \sum_{ij} \binom{n_{ij}}{2}`, :math:`S_a = \sum_i \binom{a_i}{2}`,
:math:`S_b = \sum_j \binom{b_j}{2}`.

References:
    Hubert, Arabie (1985), Comparing partitions.
    Vinh, Epps, Bailey (2010), Information theoretic measures for clusterings comparison.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_seq.evaluation.bound import Estimate, mean_of
from pyro_seq.nn.arguments import check_choice

__all__ = [
    "GroupScores",
    "adjusted_mutual_information",
    "adjusted_rand_index",
    "score_groups",
]

AVERAGES = ("max", "arithmetic")
CHUNK = 2**23


class GroupScores(NamedTuple):
    """Scores of the groups of each frame, float64 `(*batch)`, NaN where they are not defined.

    Attributes:
        ami: Adjusted mutual information.
        ari: Adjusted Rand index.
    """

    ami: Tensor
    ari: Tensor

    @property
    def mean_ami(self) -> Estimate:
        """Mean over the frames that have a score, with its standard error."""
        return mean_of(self.ami[~self.ami.isnan()])

    @property
    def mean_ari(self) -> Estimate:
        """Mean over the frames that have a score, with its standard error."""
        return mean_of(self.ari[~self.ari.isnan()])


def score_groups(segments: Tensor, masks: Tensor, average: str = "max") -> GroupScores:
    """Scores of masks, each pixel in the group whose mask is the largest there.

    Frames of one object or of none have no score.

    Args:
        segments: Whose pixel each is, long `(*batch, height, width)`; only positive ones count, so
            that background and overlaps do not.
        masks: Of each group, `(*batch, groups, height, width)`, or with a channel of one before
            height and width, as a tagger's m.
        average: See :func:`adjusted_mutual_information`.

    Raises:
        ValueError: When a shape does not fit, or a mask is NaN.

    Example:
        >>> segments = torch.tensor([[[0, 1, 1], [2, 2, -1]]])
        >>> masks = torch.rand(1, 4, 2, 3)
        >>> masks[:, 3, 0], masks[:, 1, 1] = 2.0, 2.0
        >>> score_groups(segments, masks)
        GroupScores(ami=tensor([1.], dtype=torch.float64), ari=tensor([1.], dtype=torch.float64))
    """
    if masks.dim() == segments.dim() + 2 and masks.shape[-3] == 1:
        masks = masks.squeeze(-3)
    if masks.dim() < 3 or (*masks.shape[:-3], *masks.shape[-2:]) != segments.shape:
        raise ValueError(
            "masks must be (*batch, groups, height, width) for segments (*batch, height, width) = "
            f"{tuple(segments.shape)}; got shape {tuple(masks.shape)}"
        )
    if masks.isnan().any():
        raise ValueError("masks must be numbers; got NaN")
    groups = masks.argmax(-3)
    known = adjusted_mutual_information(segments, groups, average)
    return GroupScores(known, adjusted_rand_index(segments, groups))


def adjusted_mutual_information(segments: Tensor, groups: Tensor, average: str = "max") -> Tensor:
    """Adjusted mutual information of each frame: 1 for the same groups, 0 on average by chance.

    Args:
        segments: Whose pixel each is, long `(*batch, height, width)`; only positive ones count.
        groups: The group of each pixel, long, of the same shape, none negative.
        average: What the information is compared with: the `"max"` of the two entropies, as in the
            papers of Tagger and RLadder, or their `"arithmetic"` mean, what scikit-learn takes
            since version 0.22.

    Returns:
        float64 `(*batch)`; NaN where fewer than two objects have a pixel.

    Raises:
        ValueError: When the shapes differ, a group is negative, or for an unknown average.
    """
    check_choice("average", average, AVERAGES)
    table = _table(segments, groups)
    batch, table = table.shape[:-2], table.flatten(0, -3)
    rows = max(CHUNK // (table[0].numel() * int(table.sum((-1, -2)).max() + 1)), 1)
    score = torch.cat([_information(part, average) for part in table.split(rows)])
    return _defined(score, table).reshape(batch)


def adjusted_rand_index(segments: Tensor, groups: Tensor) -> Tensor:
    """Adjusted Rand index of each frame: 1 for the same groups, 0 on average by chance.

    Args:
        segments: Whose pixel each is, long `(*batch, height, width)`; only positive ones count.
        groups: The group of each pixel, long, of the same shape, none negative.

    Returns:
        float64 `(*batch)`; NaN where fewer than two objects have a pixel.

    Raises:
        ValueError: When the shapes differ, or a group is negative.
    """
    table = _table(segments, groups)
    pairs = lambda n: n * (n - 1) / 2  # noqa: E731
    both = pairs(table).sum((-1, -2))
    one, other = pairs(table.sum(-1)).sum(-1), pairs(table.sum(-2)).sum(-1)
    chance = one * other / pairs(table.sum((-1, -2)))
    return _defined((both - chance) / (0.5 * (one + other) - chance), table)


def _table(segments: Tensor, groups: Tensor) -> Tensor:
    """Pixels of each object in each group, float64 `(*batch, objects, groups)`."""
    if segments.dim() < 2 or segments.shape != groups.shape:
        raise ValueError(
            "segments and groups must be (*batch, height, width), of one shape; got shapes "
            f"{tuple(segments.shape)} and {tuple(groups.shape)}"
        )
    for name, part in (("segments", segments), ("groups", groups)):
        if part.is_floating_point() or part.dtype == torch.bool:
            raise ValueError(f"{name} must be integers; got {part.dtype}")
    size = segments.shape[-2:].numel()
    flat = [part.long().flatten(-2).reshape(-1, size) for part in (segments, groups)]
    objects, groups = flat[0].clamp(min=0), flat[1]
    if groups.numel() and bool((groups < 0).any()):
        raise ValueError(f"groups must not be negative; got {int(groups.min())}")
    rows, columns = (int(part.max()) + 1 if part.numel() else 1 for part in (objects, groups))
    rows = max(rows, 2)
    table = torch.zeros(len(objects), rows * columns, dtype=torch.float64, device=objects.device)
    table.scatter_add_(1, objects * columns + groups, torch.ones_like(objects).double())
    return table.view(*segments.shape[:-2], rows, columns)[..., 1:, :]


def _defined(score: Tensor, table: Tensor) -> Tensor:
    """The score, 1 where groups and objects are the same, NaN where there is nothing to tell."""
    met = table > 0
    same = (met.sum(-1) <= 1).all(-1) & (met.sum(-2) <= 1).all(-1)
    score = torch.where(same, 1.0, torch.where(score.isnan(), 0.0, score))
    return torch.where(met.any(-1).sum(-1) > 1, score, math.nan)


def _information(table: Tensor, average: str) -> Tensor:
    """Adjusted mutual information of tables `(count, objects, groups)`."""
    total = table.sum((-1, -2), keepdim=True).clamp(min=1)
    one, other = table.sum(-1), table.sum(-2)
    expected = _expected_information(one, other, total)
    joint, by_chance = table / total, one.unsqueeze(-1) * other.unsqueeze(-2) / total**2
    mutual = torch.where(table > 0, joint * (joint / by_chance).log(), 0.0).sum((-1, -2))
    entropies = torch.stack([_entropy(part / total.squeeze(-1)) for part in (one, other)])
    most = entropies.amax(0) if average == "max" else entropies.mean(0)
    return (mutual - expected) / (most - expected)


def _entropy(shares: Tensor) -> Tensor:
    return -torch.where(shares > 0, shares * shares.log(), 0.0).sum(-1)


def _expected_information(one: Tensor, other: Tensor, total: Tensor) -> Tensor:
    r"""Mean of the mutual information over tables with these sums.

    .. math:: E[I] = \sum_{ij} \sum_n p(n)\, \frac{n}{N} \log \frac{N n}{a_i b_j}

    with the hypergeometric probability p(n) of n pixels of object i in group j.
    """
    a, b, size = one[:, :, None, None], other[:, None, :, None], total.unsqueeze(-1)
    n = torch.arange(1, int(one.max()) + 1, device=one.device, dtype=one.dtype)
    possible = (n <= a) & (n <= b) & (n >= a + b - size)
    inside = torch.where(possible, n, torch.minimum(a, b))
    log = lambda k: torch.lgamma(k.clamp(min=0) + 1)  # noqa: E731
    top = log(a) + log(b) + log(size - a) + log(size - b)
    low = log(size) + log(inside) + log(a - inside) + log(b - inside)
    chance = (top - low - log(size - a - b + inside)).exp()
    share = n / size * (size * n / (a * b)).log()
    return torch.where(possible, chance * share, 0.0).sum((1, 2, 3))
