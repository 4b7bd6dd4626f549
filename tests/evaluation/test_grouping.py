"""Scores of groups against counting, enumeration and scikit-learn."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import pytest
import torch
from torch import Tensor

from pyro_seq.data import moving_shapes
from pyro_seq.evaluation import (
    adjusted_mutual_information,
    adjusted_rand_index,
    score_baselines,
    score_groups,
)
from pyro_seq.evaluation.grouping_baselines import connected, halves, k_means, quadrants


def entropy(values: list[int]) -> float:
    counts = Counter(values).values()
    return -sum(c / len(values) * math.log(c / len(values)) for c in counts)


def information(one: list[int], other: list[int]) -> float:
    joint = [100 * a + b for a, b in zip(one, other, strict=True)]
    return entropy(one) + entropy(other) - entropy(joint)


def enumerated(one: list[int], other: list[int], average: str) -> float:
    """Adjusted mutual information with the mean over all permutations."""
    every = [information(one, list(p)) for p in itertools.permutations(other)]
    expected = sum(every) / len(every)
    both = entropy(one), entropy(other)
    most = max(both) if average == "max" else sum(both) / 2
    return (information(one, other) - expected) / (most - expected)


def pair_counted(one: list[int], other: list[int]) -> float:
    """Adjusted Rand index by the four kinds of pairs of pixels."""
    kinds = Counter(
        (one[i] == one[j], other[i] == other[j])
        for i, j in itertools.combinations(range(len(one)), 2)
    )
    tp, fn, fp, tn = (kinds[k] for k in itertools.product((True, False), repeat=2))
    return 2 * (tp * tn - fn * fp) / ((tp + fn) * (fn + tn) + (tp + fp) * (fp + tn))


def example(seed: int, frames: int = 12) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    segments = torch.randint(-1, 4, (frames, 3, 4), generator=g)
    groups = torch.randint(3, (frames, 3, 4), generator=g)
    agree = torch.rand(groups.shape, generator=g) < 0.6
    return segments, torch.where(agree & (segments > 0), segments - 1, groups)


def scored(segments: Tensor, groups: Tensor) -> tuple[list[int], list[int]]:
    known = segments > 0
    return segments[known].tolist(), groups[known].tolist()


@pytest.mark.parametrize("average", ["max", "arithmetic"])
def test_chance_is_the_mean_over_permutations(average: str) -> None:
    segments, groups = example(0, 40)
    came = adjusted_mutual_information(segments, groups, average)
    tried = 0
    for number in range(40):
        one, other = scored(segments[number], groups[number])
        if len(one) <= 7 and len(set(one)) > 1 and len(set(other)) > 1:
            assert came[number].item() == pytest.approx(enumerated(one, other, average), abs=1e-12)
            tried += 1
    assert tried > 8


def test_the_rand_index_counts_pairs() -> None:
    segments, groups = example(1)
    came = adjusted_rand_index(segments, groups)
    for number in range(len(segments)):
        one, other = scored(segments[number], groups[number])
        assert came[number].item() == pytest.approx(pair_counted(one, other), abs=1e-12)


@pytest.mark.parametrize("average", ["max", "arithmetic"])
def test_scores_are_those_of_scikit_learn(average: str) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    scenes = moving_shapes("shapes20", 30, time=2, seed=0)
    masks = torch.rand(30, 2, 4, 20, 20, generator=torch.Generator().manual_seed(1))
    masks[:, :, 1:] += 0.7 * torch.stack([scenes.segments == k for k in (1, 2, 3)], 2)
    came = score_groups(scenes.segments, masks, average)
    for index in itertools.product(range(30), range(2)):
        one, other = scored(scenes.segments[index], masks[index].argmax(0))
        ami = metrics.adjusted_mutual_info_score(one, other, average_method=average)
        assert came.ami[index].item() == pytest.approx(ami, abs=1e-9)
        ari = metrics.adjusted_rand_score(one, other)
        assert came.ari[index].item() == pytest.approx(ari, abs=1e-9)


def test_names_of_groups_do_not_matter() -> None:
    segments, groups = example(2)
    renamed = torch.tensor([5, 0, 3])[groups]
    for score in (adjusted_mutual_information, adjusted_rand_index):
        torch.testing.assert_close(score(segments, renamed), score(segments, groups))
        perfect = score(segments, (segments + 1).remainder(7))
        torch.testing.assert_close(perfect, torch.ones_like(perfect))


def test_groups_by_chance_have_no_score_on_average() -> None:
    segments, _ = example(3, 4000)
    groups = torch.randint(3, segments.shape, generator=torch.Generator().manual_seed(5))
    for score in (adjusted_mutual_information, adjusted_rand_index):
        values = score(segments, groups)
        values = values[values.isfinite()]
        assert abs(values.mean()) < 4 * values.std() / len(values) ** 0.5


def test_background_and_overlaps_do_not_count() -> None:
    segments, groups = example(4)
    other = torch.where(segments > 0, groups, 2 - groups)
    for score in (adjusted_mutual_information, adjusted_rand_index):
        assert torch.equal(score(segments, other), score(segments, groups))


def test_frames_of_one_object_have_no_score() -> None:
    segments = torch.tensor([[[1, 1], [0, -1]], [[0, 0], [0, 0]], [[1, 2], [0, 0]]])
    masks = torch.rand(3, 2, 2, 2)
    masks[2, 0, 0] = torch.tensor([2.0, 0.0])
    came = score_groups(segments, masks)
    assert came.ami.isnan().tolist() == came.ari.isnan().tolist() == [True, True, False]
    assert came.mean_ami.mean == 1 and came.mean_ari.mean == 1
    alone = score_groups(segments[1:2], masks[1:2])
    assert alone.ami.isnan().tolist() == alone.ari.isnan().tolist() == [True]


def test_one_group_for_all_says_nothing() -> None:
    segments, groups = example(5)
    for score in (adjusted_mutual_information, adjusted_rand_index):
        nothing = score(segments, torch.zeros_like(groups))
        torch.testing.assert_close(nothing, torch.zeros_like(nothing), atol=1e-12, rtol=0)


def test_large_frames_are_scored_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    from pyro_seq.evaluation import grouping

    segments, groups = example(6)
    whole = adjusted_mutual_information(segments, groups)
    monkeypatch.setattr(grouping, "CHUNK", 1)
    torch.testing.assert_close(adjusted_mutual_information(segments, groups), whole)


def flooded(ink: Tensor) -> list[set[tuple[int, int]]]:
    """Regions of a frame by depth-first search."""
    left = {tuple(place) for place in ink.nonzero().tolist()}
    regions = []
    while left:
        stack, region = [left.pop()], set()
        while stack:
            r, c = stack.pop()
            region.add((r, c))
            for near in ((r + 1, c), (r - 1, c), (r, c + 1), (r, c - 1)):
                if near in left:
                    left.remove(near)
                    stack.append(near)
        regions.append(region)
    return regions


def test_regions_are_found_by_flooding() -> None:
    segments = torch.randint(-1, 3, (8, 9, 7), generator=torch.Generator().manual_seed(0))
    came = connected(segments)
    assert torch.equal(came > 0, segments != 0)
    for number in range(8):
        regions = flooded(segments[number] != 0)
        assert len(came[number].unique()) == len(regions) + 1
        for region in regions:
            assert len({came[number][place].item() for place in region}) == 1


def test_clusters_have_their_means_as_centres() -> None:
    segments = moving_shapes("squares12", 6, seed=0).segments
    groups = k_means(segments, 2, steps=50)
    for number in range(6):
        places = (segments[number] != 0).nonzero().double()
        member = groups[number][segments[number] != 0]
        centres = torch.stack([places[member == k].mean(0) for k in (0, 1)])
        apart = (places[:, None] - centres).square().sum(-1)
        assert (apart.gather(1, member[:, None])[:, 0] <= apart.amin(1) + 1e-9).all()


def test_baselines_score_what_was_measured() -> None:
    segments = moving_shapes("squares12", 400, seed=2).segments
    came = {name: scores.mean_ami.mean for name, scores in score_baselines(segments).items()}
    measured = {"halves": 0.31, "quadrants": 0.35, "connected": 0.19, "k_means_3": 0.27}
    for name, value in measured.items():
        assert came[name] == pytest.approx(value, abs=0.08)
    assert 0.45 < came["k_means_2"] < 0.7
    assert halves(segments)[0, 0, 0].tolist() == [0] * 6 + [1] * 6
    assert quadrants(segments)[0, 0, ::11, ::11].flatten().tolist() == [0, 1, 2, 3]


def test_bad_input() -> None:
    segments, groups = example(7)
    with pytest.raises(ValueError, match="average must be one of max, arithmetic; got 'min'"):
        adjusted_mutual_information(segments, groups, "min")
    with pytest.raises(ValueError, match="groups must not be negative; got -1"):
        adjusted_rand_index(segments, groups - 1)
    with pytest.raises(ValueError, match=r"segments and groups must be.*\(12, 3, 4\) and"):
        adjusted_rand_index(segments, groups[:3])
    with pytest.raises(ValueError, match=r"masks must be.*\(12, 3, 4\); got shape \(12, 3, 4\)"):
        score_groups(segments, groups)
    masks = torch.rand(12, 2, 3, 4)
    with pytest.raises(ValueError, match="segments must be integers; got torch.float32"):
        score_groups(segments.float(), masks)
    with pytest.raises(ValueError, match="masks must be numbers; got NaN"):
        score_groups(segments, masks * math.nan)
    small = score_groups(segments.clamp(min=0).byte(), masks).ami
    torch.testing.assert_close(small, score_groups(segments, masks).ami, equal_nan=True)
