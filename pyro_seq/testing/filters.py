"""The contracts of a filtering guide, checked on the pair of a step model and its guide."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import torch
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from pyro.nn import PyroModule
from pyro.optim import ClippedAdam
from torch import Tensor

from pyro_seq.guides import FilteringGuide, OnlineFilter
from pyro_seq.inference import FilteringELBO
from pyro_seq.inference.filtering import filter_sequences
from pyro_seq.models import StepModel
from pyro_seq.ops.trees import leaves
from pyro_seq.testing.contracts import (
    assert_close,
    assert_finite,
    isolated,
    require,
    run_contracts,
)
from pyro_seq.testing.guides import GUIDE_CONTRACTS, GuideCase, Pair
from pyro_seq.testing.models import (
    FILLS,
    ModelCase,
    compare_fills,
    filled,
    gradients,
    model_case,
)

__all__ = ["FILTER_CONTRACTS", "check_filtering_guide"]

TRAINING_STEPS = 25


def check_filtering_guide(
    make_model: Callable[[], PyroModule],
    make_guide: Callable[[PyroModule], PyroModule],
    x: Tensor,
    mask: Tensor | None = None,
    controls: Tensor | None = None,
) -> None:
    """Check that a filtering guide keeps :data:`GUIDE_CONTRACTS` and :data:`FILTER_CONTRACTS`.

    Args:
        make_model: Returns a new step model each time.
        make_guide: Returns a new :class:`~pyro_seq.guides.FilteringGuide` of the model that it is
            given.
        x: (batch, time, *frame), small, two or more sequences of two or more steps.
        mask: (batch, time) bool, True where observed; one with holes when None or all True.
        controls: (batch, time, control), if the model takes them.

    Raises:
        ContractError: At the first contract that is broken; the message names it.
        ValueError: If x has fewer than two sequences or steps.

    Example:
        >>> import torch
        >>> from pyro_seq.guides import NeuralFilter
        >>> from pyro_seq.models import DMM
        >>> from pyro_seq.testing import check_filtering_guide
        >>> check_filtering_guide(
        ...     lambda: DMM(3, latent=2), lambda model: NeuralFilter(model), torch.ones(2, 3, 3)
        ... )
    """
    case = GuideCase(model_case(make_model, x, mask, controls), make_guide)
    run_contracts((*GUIDE_CONTRACTS, *FILTER_CONTRACTS), case, "The guide")


class FilteringPair(Pair):
    """A step model and its filtering guide."""

    model: StepModel
    guide: FilteringGuide


def filtering_pair(case: GuideCase) -> FilteringPair:
    """A new pair, whose guide is a filtering guide of its model."""
    pair = FilteringPair(case)
    require(
        isinstance(pair.guide, FilteringGuide),
        f"expected a pyro_seq.guides.FilteringGuide, got {type(pair.guide).__name__}.",
    )
    require(pair.guide.model is pair.model, "guide.model is not the model it was made for.")
    return pair


def masks(case: ModelCase) -> Iterator[tuple[str, Tensor | None]]:
    """No mask, one that pads sequences of different length, and the mask of the case."""
    batch, time = case.x.shape[:2]
    lengths = time - torch.arange(batch, device=case.x.device) % time
    yield "without a mask", None
    yield "with padding", torch.arange(time, device=case.x.device) < lengths.unsqueeze(1)
    yield "with gaps", case.mask


def terms(
    pair: FilteringPair, case: ModelCase, mask: Tensor | None, seed: int = 0
) -> dict[str, Tensor]:
    """Log likelihood and divergence of each step, `(time, batch)`, without gradients."""
    torch.manual_seed(seed)
    with torch.no_grad():
        filtered = filter_sequences(pair.guide, case.x, mask, case.controls)
    return {"log likelihood": filtered.log_likelihood, "divergence": filtered.divergence}


def loss_of(pair: FilteringPair, case: ModelCase, mask: Tensor | None) -> Tensor:
    """The objective of training, with its gradient."""
    torch.manual_seed(0)
    return FilteringELBO()(pair.model, pair.guide)(case.x, mask, case.controls)


def double(pair: FilteringPair, case: ModelCase) -> tuple[FilteringPair, ModelCase]:
    """Pair and data in float64."""
    controls = None if case.controls is None else case.controls.double()
    return pair.double(), case._replace(x=case.x.double(), controls=controls)


def each_step_has_finite_terms(case: GuideCase) -> None:
    """Every step of every sequence has a finite free energy, with no likelihood where missing."""
    pair = filtering_pair(case).eval()
    for which, mask in masks(case.model):
        seen = torch.ones_like(case.model.mask) if mask is None else mask
        for name, value in terms(pair, case.model, mask).items():
            require(
                value.shape == seen.T.shape,
                f"the {name} {which} has shape {tuple(value.shape)}; expected (time, batch) = "
                f"{tuple(seen.T.shape)}.",
            )
            assert_finite(value, f"the {name} {which}")
            blank = ~(seen if name == "log likelihood" else pair.guide.informed(seen)).T
            require(
                bool((value[blank] == 0).all()),
                f"the {name} {which} is not zero where nothing was observed.",
            )


def float64_terms_stay_float64(case: GuideCase) -> None:
    """A pair and data in float64 give terms in float64."""
    pair, data = double(filtering_pair(case), case.model)
    for which, mask in masks(data):
        for name, value in terms(pair, data, mask).items():
            require(value.dtype == torch.float64, f"the {name} {which} is {value.dtype}.")


def one_pass_equals_stock_objectives(case: GuideCase) -> None:
    """``FilteringELBO`` has the value of ``Trace_ELBO`` and ``TraceMeanField_ELBO``."""
    pair, data = double(filtering_pair(case).eval(), case.model)
    for which, mask in masks(data):
        for stock, analytic in ((Trace_ELBO, False), (TraceMeanField_ELBO, True)):
            losses = []
            for elbo in (FilteringELBO(analytic=analytic), stock()):
                torch.manual_seed(0)
                arguments = data.x, mask, data.controls
                losses.append(torch.tensor(elbo.loss(pair.model, pair.guide, *arguments)))
            what = f"the free energy {which} beside that of {stock.__name__}"
            assert_close(losses[0], losses[1], what, 1e-6)


def masked_frames_change_no_term(case: GuideCase) -> None:
    """What lies under the mask, also NaN, changes no term of one pass and no gradient."""
    pair = filtering_pair(case).eval()
    for _, mask in masks(case.model):
        if mask is None:
            continue
        results = []
        for fill in FILLS:
            data = filled(case.model._replace(mask=mask), fill)
            grads = gradients(loss_of(pair, data, mask), pair)
            results.append((fill, terms(pair, data, mask), grads))
        compare_fills(results)


def gradients_reach_both(case: GuideCase) -> None:
    """The one-pass bound gives every parameter a finite gradient, not all of them zero."""
    pair = filtering_pair(case)
    for which, mask in masks(case.model):
        grads = gradients(loss_of(pair, case.model, mask), pair)
        for part in ("model", "guide"):
            wanted = getattr(pair, part).named_parameters()
            names = [f"{part}.{name}" for name, p in wanted if p.requires_grad]
            for name in names:
                require(name in grads, f"{name!r} gets no gradient {which}.")
                assert_finite(grads[name], f"the gradient of {name!r} {which}")
            require(
                not names or any(bool((grads[name] != 0).any()) for name in names),
                f"all gradients of the {part} are zero {which}.",
            )


def training_lowers_the_free_energy(case: GuideCase) -> None:
    """A few steps of Adam on the one-pass bound lower the free energy."""
    pair = filtering_pair(case)
    parameters = [p for p in pair.parameters() if p.requires_grad]
    if not parameters:
        return
    before = _typical_free_energy(pair, case.model)
    optimizer = torch.optim.Adam(parameters, lr=3e-3)
    bound = FilteringELBO()(pair.model, pair.guide)
    for _ in range(TRAINING_STEPS):
        optimizer.zero_grad()
        bound(case.model.x, case.model.mask, case.model.controls).backward()
        optimizer.step()
    after = _typical_free_energy(pair, case.model)
    require(after < before, f"it was {before:.4g} nats, and is {after:.4g} after training.")


def _typical_free_energy(pair: FilteringPair, case: ModelCase) -> float:
    """Median over draws, which a few draws far out do not move."""
    pair.eval()
    torch.manual_seed(1)
    with torch.no_grad():
        filtered = filter_sequences(pair.guide, case.x, case.mask, case.controls, particles=20)
    pair.train()
    return float(filtered.free_energy.sum((0, -1)).median())


def svi_trains_with_one_pass(case: GuideCase) -> None:
    """``pyro.infer.SVI`` with ``FilteringELBO`` trains; the parameter store changes no value."""
    values = {}
    for local in (True, False):
        with isolated(local=local):
            pair = filtering_pair(case)
            values[local] = loss_of(pair, case.model, case.model.mask).detach()
            if local:
                continue
            grads = gradients(loss_of(pair, case.model, case.model.mask), pair)
            learning = {name for name, slope in grads.items() if (slope != 0).any()}
            svi = SVI(pair.model, pair.guide, ClippedAdam({"lr": 1e-2}), FilteringELBO())
            before = copy.deepcopy(pair.state_dict())
            torch.manual_seed(0)
            svi.step(case.model.x, case.model.mask, case.model.controls)
            now = pair.named_parameters()
            moved = {name for name, p in now if not torch.equal(p.detach(), before[name])}
            require(
                moved == learning,
                f"an SVI step moves {sorted(moved)}; the gradients of {sorted(learning)} are "
                "not zero.",
            )
    assert_close(values[False], values[True], "the loss with the global parameter store")


def a_step_leaves_no_trace(case: GuideCase) -> None:
    """A step changes nothing on model and guide, and nothing in the state that it is given."""
    pair, data = filtering_pair(case).eval(), case.model
    shape = data.x.shape[:1]
    state = pair.guide.initial(shape)
    (frame, *_), _ = pair.guide.frames(data.x, data.mask, data.controls, state, shape, defer=False)
    kept = [leaf.clone() for leaf in leaves(state)]
    held = [vars(part).copy() for part in pair.modules()]
    values = []
    for _ in range(2):
        torch.manual_seed(0)
        with torch.no_grad():
            values.append([s.value for s in pair.guide.advance(state, frame, shape).sites])
    for one, other in zip(*values, strict=True):
        assert_close(other, one, "the draw of a step that is run again")
    for one, other in zip(leaves(state), kept, strict=True):
        assert_close(one, other, "the state that a step was given")
    for part, before in zip(pair.modules(), held, strict=True):
        changed = [n for n, v in vars(part).items() if n not in before or v is not before[n]]
        require(not changed, f"a step sets {changed} on {type(part).__name__}; return a state.")


def online_equals_the_whole_sequence(case: GuideCase) -> None:
    """Frame by frame, and resumed from saved states, it has the terms of the whole sequence."""
    pair, data = double(filtering_pair(case).eval(), case.model)
    if not pair.guide.online:
        return
    for which, mask in masks(data):
        expected = terms(pair, data, mask)
        online = _stream(pair, data)
        size = sum(leaf.numel() for leaf in leaves(online.state))
        torch.manual_seed(0)
        for t in range(data.x.shape[1]):
            seen, control = (p if p is None else p[:, t] for p in (mask, data.controls))
            update = online.update(data.x[:, t], seen, control)
            found = {"log likelihood": update.log_likelihood, "divergence": update.divergence}
            for name, value in found.items():
                what = f"the {name} of step {t + 1} online {which}"
                assert_close(value, expected[name][t], what, 1e-8)
            grown = sum(leaf.numel() for leaf in leaves(online.state))
            require(grown == size, f"the state grew from {size} to {grown} numbers.")
            resumed = _stream(pair, data)
            resumed.load_state_dict(online.state_dict())
            online = resumed


def _stream(pair: FilteringPair, case: ModelCase) -> OnlineFilter:
    return OnlineFilter(pair.model, pair.guide, case.x.shape[0], predict=False)


FILTER_CONTRACTS: tuple[Callable[[GuideCase], None], ...] = (
    each_step_has_finite_terms,
    float64_terms_stay_float64,
    one_pass_equals_stock_objectives,
    masked_frames_change_no_term,
    gradients_reach_both,
    training_lowers_the_free_energy,
    svi_trains_with_one_pass,
    a_step_leaves_no_trace,
    online_equals_the_whole_sequence,
)
