"""Every quantity equals the dense joint Gaussian, and so does its gradient."""

from __future__ import annotations

from functools import lru_cache

import pytest
import torch
from torch import Tensor

from tests.distributions.setting import (
    ALGORITHMS,
    Answers,
    Setting,
    assert_same,
    dense_answers,
    library_answers,
    make_setting,
)
from tests.ops.cases import LAYOUTS, MASKS, random_leaves, random_mask

QUANTITIES = tuple(dense_answers(make_setting("one_step")))


@lru_cache
def expected(layout: str, mask: str) -> Answers:
    with torch.no_grad():
        return dense_answers(make_setting(layout, mask))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_values_equal_the_dense_joint(layout: str, mask: str, algorithm: str) -> None:
    with torch.no_grad():
        answers = library_answers(make_setting(layout, mask), algorithm)
    assert_same(answers, expected(layout, mask))


def gradients(answers: Answers, name: str, leaves: dict[str, Tensor]) -> Answers:
    """Gradient of a random linear readout of one quantity."""
    generator = torch.Generator().manual_seed(7)
    value = answers[name]
    weights = torch.randn(value.shape, generator=generator, dtype=value.dtype)
    found = torch.autograd.grad(
        (weights * value).sum(), list(leaves.values()), retain_graph=True, allow_unused=True
    )
    pairs = zip(leaves.items(), found, strict=True)
    return {key: torch.zeros_like(leaf) if g is None else g for (key, leaf), g in pairs}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize(
    ("layout", "mask"),
    [
        ("varying", "none"),
        ("varying", "coordinates"),
        ("kvae", "frames"),
        ("broadcast", "coordinates"),
        ("more_observed", "frames"),
        ("one_step", "frames"),
        ("two_steps", "only_last"),
        ("constant", "nothing"),
    ],
)
def test_gradients_equal_autograd_through_the_dense_joint(
    layout: str, mask: str, algorithm: str
) -> None:
    setting = make_setting(layout, mask)
    oracle, answers = dense_answers(setting), library_answers(setting, algorithm)
    for name in QUANTITIES:
        if not oracle[name].requires_grad or oracle[name].numel() == 0:
            continue
        found, right = (gradients(x, name, setting.leaves) for x in (answers, oracle))
        try:
            assert_same(found, right)
        except AssertionError as error:
            raise AssertionError(f"gradient of {name}: {error}") from None


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("mask", ["none", "coordinates"])
def test_gradcheck(mask: str, algorithm: str) -> None:
    setting = make_setting("three_steps", mask)
    names = [name for name in setting.leaves if name != "z"]

    def log_prob(*values: Tensor) -> Tensor:
        leaves = dict(zip(names, values, strict=True), z=setting.z)
        return (copy := setting._replace(leaves=leaves)).distribution(algorithm).log_prob(copy.a)

    assert torch.autograd.gradcheck(log_prob, [setting.leaves[name] for name in names])


@pytest.mark.parametrize("mask", ["none", "coordinates"])
def test_algorithms_agree_on_a_longer_sequence(mask: str) -> None:
    layout = LAYOUTS["kvae"]._replace(time=67, batch=(2,))
    leaves = random_leaves(layout, seed=3, scale=0.5)
    setting = Setting(leaves, random_mask(layout, mask), torch.Size(layout.batch), layout.time)
    one, other = (library_answers(setting, algorithm) for algorithm in ALGORITHMS)
    assert_same(one, other)
    for name in ("log_prob", "posterior cross", "posterior log_prob"):
        assert_same(*(gradients(x, name, leaves) for x in (one, other)), tolerance=1e-7)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_mask_of_ones_is_no_mask(algorithm: str) -> None:
    answers = [library_answers(make_setting("varying", m), algorithm) for m in ("none", "ones")]
    assert_same(answers[0], answers[1], tolerance=1e-12)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_nothing_observed_leaves_the_prior(algorithm: str) -> None:
    answers = library_answers(make_setting("varying", "nothing"), algorithm)
    for name in ("loc", "cov", "cross", "log_prob"):
        torch.testing.assert_close(answers[f"posterior {name}"], answers[f"prior {name}"])
    assert (answers["log_prob"].abs() < 1e-12).all()
