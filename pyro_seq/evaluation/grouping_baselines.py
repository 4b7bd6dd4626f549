"""Groups of pixels that take no learning, to be reported beside those that do.

A split of the plane alone has an adjusted mutual information near 0.3 to 0.5 with two objects, and
objects that do not touch are found by flooding. A score says something only beside these.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from pyro_seq.evaluation.grouping import GroupScores, adjusted_mutual_information
from pyro_seq.evaluation.grouping import adjusted_rand_index as rand_index

__all__ = ["GROUPING_BASELINES", "connected", "halves", "k_means", "quadrants", "score_baselines"]


def halves(segments: Tensor) -> Tensor:
    """Left and right half of the frame, long `(*batch, height, width)`."""
    width = segments.shape[-1]
    return (torch.arange(width, device=segments.device) >= width / 2).long().expand_as(segments)


def quadrants(segments: Tensor) -> Tensor:
    """The four quarters of the frame, long `(*batch, height, width)`."""
    return halves(segments) + 2 * halves(segments.mT).mT


def connected(segments: Tensor) -> Tensor:
    """Regions of inked pixels that touch along an edge, long `(*batch, height, width)`.

    Args:
        segments: Whose pixel each is; all but zeros have ink.
    """
    ink = (segments != 0).reshape(-1, 1, *segments.shape[-2:])
    number = torch.arange(1, ink[0].numel() + 1, device=ink.device).view(ink.shape[1:])
    region = torch.where(ink, number, 0).double()
    cross = ((3, 1), (1, 0)), ((1, 3), (0, 1))
    before = torch.zeros_like(region)
    while not torch.equal(before, region):
        before = region
        for kernel, padding in cross:
            spread = torch.nn.functional.max_pool2d(region, kernel, 1, padding)
            region = torch.where(ink, torch.maximum(region, spread), 0.0)
    return region.long().reshape(segments.shape)


def k_means(segments: Tensor, groups: int, *, starts: int = 4, steps: int = 15) -> Tensor:
    """Groups of inked pixels by where they are, long `(*batch, height, width)`.

    Lloyd's algorithm on the coordinates of all pixels that are not background, from several starts
    drawn with a fixed seed; the one with the least sum of squares is taken.

    Args:
        segments: Whose pixel each is; all but zeros have ink.
        groups: The number of groups.
        starts: How many first places of the centres are tried.
        steps: Steps of the algorithm.
    """
    ink = (segments != 0).reshape(-1, segments.shape[-2:].numel())
    rows, columns = (torch.arange(n, dtype=torch.float64) for n in segments.shape[-2:])
    places = torch.cartesian_prod(rows, columns).to(segments.device)
    weights = ink.double()
    generator = torch.Generator().manual_seed(0)
    chance = torch.rand(starts, *ink.shape, generator=generator, dtype=torch.float64)
    first = torch.where(ink, chance.to(ink.device), -1.0).topk(groups).indices
    centres = places[first]
    for _ in range(steps):
        nearest = torch.cdist(places, centres).argmin(-1)
        members = torch.nn.functional.one_hot(nearest, groups) * weights.unsqueeze(-1)
        count = members.sum(-2).unsqueeze(-1)
        means = members.mT @ places / count.clamp(min=1)
        centres = torch.where(count > 0, means, centres)
    apart, nearest = torch.cdist(places, centres).min(-1)
    best = (apart.square() * weights).sum(-1).argmin(0)
    return nearest[best, torch.arange(len(ink))].reshape(segments.shape)


GROUPING_BASELINES: Mapping[str, Callable[[Tensor], Tensor]] = {
    "halves": halves,
    "quadrants": quadrants,
    "connected": connected,
    "k_means_2": partial(k_means, groups=2),
    "k_means_3": partial(k_means, groups=3),
}
"""From segments to groups, by name."""


def score_baselines(segments: Tensor, average: str = "max") -> dict[str, GroupScores]:
    """The scores of all baselines.

    They are told which pixels have ink, which is more than a network is.

    Args:
        segments: Whose pixel each is, long `(*batch, height, width)`.
        average: See :func:`~pyro_seq.evaluation.grouping.adjusted_mutual_information`.

    Example:
        >>> from pyro_seq.data import moving_shapes
        >>> scenes = moving_shapes("squares12", 100, seed=2)
        >>> sorted(score_baselines(scenes.segments))
        ['connected', 'halves', 'k_means_2', 'k_means_3', 'quadrants']
    """
    made = {name: make(segments) for name, make in GROUPING_BASELINES.items()}
    return {
        name: GroupScores(
            adjusted_mutual_information(segments, groups, average), rand_index(segments, groups)
        )
        for name, groups in made.items()
    }
