"""The contracts of a guide, checked on the pair of a model and its guide."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from pyro import poutine
from pyro.infer import SVI, Predictive, Trace_ELBO
from pyro.nn import PyroModule
from pyro.optim import ClippedAdam
from torch import Tensor, nn

from pyro_seq.testing.contracts import (
    assert_close,
    assert_finite,
    isolated,
    latents,
    log_probs,
    require,
    run_contracts,
)
from pyro_seq.testing.models import (
    FILLS,
    ModelCase,
    compare_fills,
    filled,
    gradients,
    model_case,
    row,
    traced,
)

__all__ = ["GUIDE_CONTRACTS", "GuideCase", "check_guide"]


class GuideCase(NamedTuple):
    """A model, a guide of it and the data to try them on.

    Attributes:
        model: Factory and data of the model.
        make_guide: Returns a new guide of the model that it is given.
    """

    model: ModelCase
    make_guide: Callable[[PyroModule], PyroModule]


class Pair(nn.Module):
    """A model and its guide as one module, so that parameters both hold count once."""

    def __init__(self, case: GuideCase) -> None:
        super().__init__()
        self.model = case.model.make()
        self.guide = case.make_guide(self.model)


def check_guide(
    make_model: Callable[[], PyroModule],
    make_guide: Callable[[PyroModule], PyroModule],
    x: Tensor,
    mask: Tensor | None = None,
    controls: Tensor | None = None,
) -> None:
    """Check that a guide keeps every contract of :data:`GUIDE_CONTRACTS`.

    Args:
        make_model: Returns a new model each time, ``forward(x, mask=None, controls=None)``.
        make_guide: Returns a new guide of the model that it is given, same arguments.
        x: (batch, time, *frame), small, two or more sequences of two or more steps.
        mask: (batch, time) bool, True where observed; one with holes when None or all True.
        controls: (batch, time, control), if the model takes them.

    Raises:
        ContractError: At the first contract that is broken; the message names it.
        ValueError: If x has fewer than two sequences or steps.

    Example:
        >>> import torch
        >>> from pyro_seq.guides import KalmanGuide
        >>> from pyro_seq.models import KVAE
        >>> from pyro_seq.testing import check_guide
        >>> check_guide(lambda: KVAE((1, 8, 8)), KalmanGuide, torch.ones(2, 3, 1, 8, 8))
    """
    case = GuideCase(model_case(make_model, x, mask, controls), make_guide)
    run_contracts(GUIDE_CONTRACTS, case, "The guide")


def elbo_of_each_sequence(
    pair: Pair, case: ModelCase, mask: Tensor | None, seed: int = 0
) -> Tensor:
    """Return a one-sample estimate of the ELBO of each sequence, in nats."""
    guide_trace = traced(pair.guide, case, mask, seed)
    model_trace = traced(poutine.replay(pair.model, trace=guide_trace), case, mask, seed)
    terms = [*log_probs(model_trace).values(), *(-v for v in log_probs(guide_trace).values())]
    return torch.stack(terms).sum(0)


def returns_its_samples_by_site(case: GuideCase) -> None:
    """The guide returns a dict with the sample of every latent site of the model."""
    pair = Pair(case)
    expected = latents(traced(pair.model, case.model, case.model.mask))
    for mask in (None, case.model.mask):
        trace = traced(pair.guide, case.model, mask)
        returned: Any = trace.nodes["_RETURN"]["value"]
        require(
            isinstance(returned, dict) and returned.keys() == expected.keys(),
            f"the guide returns {_describe(returned)}; expected a dict with the keys "
            f"{sorted(expected)}.",
        )
        sampled = latents(trace)
        for name, value in expected.items():
            require(name in sampled, f"the guide does not sample site {name!r}.")
            require(
                sampled[name].shape == value.shape,
                f"site {name!r}: the model's sample has shape {tuple(value.shape)}, the guide's "
                f"{tuple(sampled[name].shape)}.",
            )
            assert_close(returned[name], sampled[name], f"returned value of site {name!r}")


def _describe(value: object) -> str:
    return f"a dict with the keys {sorted(value)}" if isinstance(value, dict) else str(type(value))


def same_seed_same_sample(case: GuideCase) -> None:
    """The same seed gives the same samples; nothing is remembered from call to call."""
    pair = Pair(case).eval()
    first = latents(traced(pair.guide, case.model, case.model.mask))
    traced(pair.guide, row(case.model, 0), case.model.mask[:1], seed=1)
    again = latents(traced(pair.guide, case.model, case.model.mask))
    for name, value in first.items():
        assert_close(again[name], value, f"second sample of site {name!r} from one seed")


def elbo_is_finite_per_sequence(case: GuideCase) -> None:
    """The ELBO is finite, one number per sequence, and Trace_ELBO agrees with their sum."""
    pair = Pair(case)
    for mask in (None, case.model.mask):
        terms = elbo_of_each_sequence(pair, case.model, mask)
        require(
            terms.shape == case.model.x.shape[:1],
            f"the ELBO has shape {tuple(terms.shape)}; expected one number per sequence.",
        )
        assert_finite(terms, "the ELBO")
        torch.manual_seed(0)
        loss = Trace_ELBO().loss(pair.model, pair.guide, case.model.x, mask, case.model.controls)
        assert_close(torch.tensor(-loss), terms.detach().sum().cpu(), "Trace_ELBO's value", 1e-4)


def sequences_are_independent(case: GuideCase) -> None:
    """The guide of a sequence alone is that in its batch (batch size 1 works)."""
    pair, data = Pair(case).eval(), case.model
    if data.x.is_floating_point():
        data = data._replace(x=data.x.clone().requires_grad_())
    trace = traced(pair.guide, data, data.mask)
    expected, drawn = log_probs(trace), latents(trace)
    alone = [
        [_alone(pair, data, drawn, i, seed) for seed in (0, 1, 2)] for i in range(len(data.x))
    ]
    if any(_differ(*found) for found in alone):  # q depends on numbers that the guide draws
        _require_no_gradient_from_others(pair, data, drawn)
        return
    for i, (found, *_) in enumerate(alone):
        for name, value in found.items():
            assert_close(value, expected[name][i : i + 1], f"log q of site {name!r}", 1e-4)


def _alone(
    pair: Pair, data: ModelCase, drawn: dict[str, Tensor], i: int, seed: int
) -> dict[str, Tensor]:
    """Log q of the values of sequence i, which the guide is given by itself."""
    guide = poutine.condition(pair.guide, {name: v[i : i + 1] for name, v in drawn.items()})
    return log_probs(traced(guide, row(data, i), data.mask[i : i + 1], seed))


def _differ(*found: dict[str, Tensor]) -> bool:
    return any(not torch.equal(one[name], found[0][name]) for one in found for name in one)


def _require_no_gradient_from_others(
    pair: Pair, data: ModelCase, drawn: dict[str, Tensor]
) -> None:
    """Raise if log q of the first sequence's values has a gradient in another's frames."""
    values = {name: value.detach() for name, value in drawn.items()}
    for name, log_q in log_probs(
        traced(poutine.condition(pair.guide, values), data, data.mask)
    ).items():
        if not (log_q.requires_grad and data.x.requires_grad):
            continue
        (slope,) = torch.autograd.grad(log_q[0], data.x, retain_graph=True, allow_unused=True)
        require(
            slope is None or bool((slope[1:] == 0).all()),
            f"log q of site {name!r} of a sequence depends on the other sequences.",
        )


def masked_frames_change_nothing(case: GuideCase) -> None:
    """What lies under the mask, also NaN, changes no sample, no ELBO and no gradient."""
    pair = Pair(case).eval()
    results = []
    for fill in FILLS:
        data = filled(case.model, fill)
        terms = elbo_of_each_sequence(pair, data, data.mask)
        values = {"ELBO": terms, **latents(traced(pair.guide, data, data.mask))}
        results.append((fill, values, gradients(terms.sum(), pair)))
    compare_fills(results)


def every_parameter_gets_a_gradient(case: GuideCase) -> None:
    """``Trace_ELBO()(model, guide)`` gives every parameter a finite gradient, as DDP needs."""
    pair = Pair(case)
    elbo = Trace_ELBO()(pair.model, pair.guide)
    elbo(case.model.x, case.model.mask, case.model.controls).backward()
    for name, parameter in pair.named_parameters():
        require(parameter.dim() > 0, f"{name!r} is 0-dimensional; give it the shape (1,).")
        if parameter.requires_grad:
            require(parameter.grad is not None, f"{name!r} gets no gradient.")
            assert_finite(torch.as_tensor(parameter.grad), f"the gradient of {name!r}")


def svi_trains_two_pairs_independently(case: GuideCase) -> None:
    """``pyro.infer.SVI`` with the global parameter store moves each of two pairs, and it alone."""
    with isolated(local=False):
        first, second = Pair(case), Pair(case)
        second.load_state_dict(first.state_dict())
        moved, _ = _moved_by(first, case.model, first, second)
        for part in ("model", "guide"):
            names = {f"{part}.{name}" for name, _ in getattr(first, part).named_parameters()}
            own = {n for n, p in first.named_parameters() if p.requires_grad} & names
            require(not own or bool(own & moved), f"an SVI step moves no parameter of the {part}.")
        unmoved, moved_second = _moved_by(second, case.model, first, second)
        require(not unmoved, f"training a second pair moves the first one's {sorted(unmoved)}.")
        require(
            moved == moved_second,
            f"of a second pair of the same classes, SVI does not train "
            f"{sorted(moved ^ moved_second)}; give each root PyroModule a unique name: "
            "super().__init__(name).",
        )


def _moved_by(trained: Pair, case: ModelCase, *pairs: Pair) -> list[set[str]]:
    """Which parameters of the pairs a seeded step of SVI on one of them moves."""
    before = [copy.deepcopy(pair.state_dict()) for pair in pairs]
    svi = SVI(trained.model, trained.guide, ClippedAdam({"lr": 1e-2}), Trace_ELBO())
    torch.manual_seed(0)
    svi.step(case.x, case.mask, case.controls)
    return [
        {n for n, p in pair.named_parameters() if not torch.equal(p.detach(), old[n])}
        for pair, old in zip(pairs, before, strict=True)
    ]


def predictive_uses_the_guide(case: GuideCase) -> None:
    """``pyro.infer.Predictive`` draws the latents of the model from the guide."""
    pair, data = Pair(case), case.model
    predictive = Predictive(pair.model, guide=pair.guide, num_samples=2)
    draws = predictive(data.x, data.mask, data.controls)
    for name, value in latents(traced(pair.guide, data, data.mask)).items():
        require(
            name in draws and draws[name].shape == (2, *value.shape),
            f"Predictive returns no samples of site {name!r} of shape {(2, *value.shape)}.",
        )


def copies_agree(case: GuideCase) -> None:
    """A deep copy, and a new pair with the state_dict of the first, have its ELBO."""
    pair = Pair(case).eval()
    expected = elbo_of_each_sequence(pair, case.model, case.model.mask)
    restored = Pair(case).eval()
    restored.load_state_dict(pair.state_dict())
    for kind, other in (("deep copy", copy.deepcopy(pair)), ("restored pair", restored)):
        found = elbo_of_each_sequence(other, case.model, case.model.mask)
        assert_close(found, expected, f"ELBO of the {kind}")


GUIDE_CONTRACTS: tuple[Callable[[GuideCase], None], ...] = (
    returns_its_samples_by_site,
    same_seed_same_sample,
    elbo_is_finite_per_sequence,
    sequences_are_independent,
    masked_frames_change_nothing,
    every_parameter_gets_a_gradient,
    svi_trains_two_pairs_independently,
    predictive_uses_the_guide,
    copies_agree,
)
