"""The contracts of a generative model of sequences."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from pyro import poutine
from pyro.infer import Predictive
from pyro.nn import PyroModule
from pyro.poutine import Trace
from torch import Tensor

from pyro_seq.testing.contracts import (
    ContractError,
    assert_close,
    assert_finite,
    example_mask,
    isolated,
    latents,
    log_probs,
    require,
    run_contracts,
)

__all__ = ["MODEL_CONTRACTS", "ModelCase", "check_model"]

FILLS = (0.0, 1e3, float("nan"))


class ModelCase(NamedTuple):
    """A model and the data to try it on.

    Attributes:
        make: Returns a new model, ``forward(x, mask=None, controls=None)``.
        x: (batch, time, *frame), batch at least 2.
        mask: (batch, time) bool, True where observed, False somewhere.
        controls: (batch, time, control), or None.
    """

    make: Callable[[], PyroModule]
    x: Tensor
    mask: Tensor
    controls: Tensor | None


def check_model(
    make: Callable[[], PyroModule],
    x: Tensor,
    mask: Tensor | None = None,
    controls: Tensor | None = None,
) -> None:
    """Check that a model keeps every contract of :data:`MODEL_CONTRACTS`.

    Args:
        make: Returns a new model each time, ``forward(x, mask=None, controls=None)``.
        x: (batch, time, *frame), small, two or more sequences of two or more steps.
        mask: (batch, time) bool, True where observed; one with holes when None or all True.
        controls: (batch, time, control), if the model takes them.

    Raises:
        ContractError: At the first contract that is broken; the message names it.
        ValueError: If x has fewer than two sequences or steps.

    Example:
        >>> import torch
        >>> from pyro_seq.models import KVAE
        >>> from pyro_seq.testing import check_model
        >>> check_model(lambda: KVAE((1, 8, 8)), torch.ones(2, 3, 1, 8, 8))
    """
    run_contracts(MODEL_CONTRACTS, model_case(make, x, mask, controls), "The model")


def model_case(
    make: Callable[[], PyroModule], x: Tensor, mask: Tensor | None, controls: Tensor | None
) -> ModelCase:
    """Return a case whose mask leaves something out."""
    if x.dim() < 2 or x.shape[0] < 2 or x.shape[1] < 2:
        raise ValueError(
            f"x: expected at least two sequences of at least two steps, (batch, time, *frame), "
            f"got shape {tuple(x.shape)}."
        )
    if mask is None or mask.all():
        mask = example_mask(x.shape[0], x.shape[1]).to(x.device)
    return ModelCase(make, x, mask, controls)


def traced(
    module: Callable[..., object], case: ModelCase, mask: Tensor | None, seed: int = 0
) -> Trace:
    """Return the trace of one seeded run on the data of a case."""
    torch.manual_seed(seed)
    return poutine.trace(module).get_trace(case.x, mask, case.controls)


def filled(case: ModelCase, fill: float) -> ModelCase:
    """Return the case with the frames under its mask overwritten."""
    seen = case.mask.reshape(case.mask.shape + (1,) * (case.x.dim() - 2))
    return case._replace(x=torch.where(seen, case.x, fill))


def gradients(total: Tensor, module: torch.nn.Module) -> dict[str, Tensor]:
    """Return the gradient of a scalar for each parameter that it depends on, by name."""
    named = {name: p for name, p in module.named_parameters() if p.requires_grad}
    if not named or not total.requires_grad:
        return {}
    grads = torch.autograd.grad(total, list(named.values()), allow_unused=True)
    return {name: g for name, g in zip(named, grads, strict=True) if g is not None}


def log_density_of_each_sequence(case: ModelCase) -> None:
    """Each site has one finite log density per sequence, with a mask and without."""
    model = case.make()
    for mask in (None, case.mask):
        trace = traced(model, case, mask)
        for name, value in log_probs(trace).items():
            require(
                value.shape == case.x.shape[:1],
                f"log density of site {name!r}: expected one per sequence, shape "
                f"{tuple(case.x.shape[:1])}, got {tuple(value.shape)}; sample inside "
                "pyro.plate('sequences', batch, dim=-1) and use .to_event.",
            )
            assert_finite(value, f"log density of site {name!r}")
        require(bool(trace.observation_nodes), "no site is observed; pass obs=x to pyro.sample.")


def sequences_are_independent(case: ModelCase) -> None:
    """A sequence alone has the log density that it has in its batch (batch size 1 works)."""
    model = case.make().eval()
    trace = traced(model, case, case.mask)
    expected = log_probs(trace)
    for i in range(case.x.shape[0]):
        data = {name: value[i : i + 1] for name, value in latents(trace).items()}
        single = traced(poutine.condition(model, data), row(case, i), case.mask[i : i + 1])
        for name, value in log_probs(single).items():
            assert_close(value, expected[name][i : i + 1], f"log density of site {name!r}", 1e-4)


def row(case: ModelCase, i: int) -> ModelCase:
    """Return the case with sequence i alone."""
    controls = None if case.controls is None else case.controls[i : i + 1]
    return case._replace(x=case.x[i : i + 1], mask=case.mask[i : i + 1], controls=controls)


def masked_frames_change_nothing(case: ModelCase) -> None:
    """What lies under the mask, also NaN, changes no sample, log density or gradient."""
    model = case.make().eval()
    results = []
    for fill in FILLS:
        trace = traced(model, filled(case, fill), case.mask)
        terms = log_probs(trace)
        total = torch.stack([value.sum() for value in terms.values()]).sum()
        results.append((fill, {**terms, **latents(trace)}, gradients(total, model)))
    compare_fills(results)


def compare_fills(results: list[tuple[float, dict[str, Tensor], dict[str, Tensor]]]) -> None:
    """Compare values and gradients that were computed with different frames under the mask."""
    _, values, grads = results[0]
    for fill, other_values, other_grads in results[1:]:
        for kind, base, other in (
            ("value of", values, other_values),
            ("gradient of", grads, other_grads),
        ):
            require(base.keys() == other.keys(), f"{fill} under the mask changes the sites.")
            for name in base:
                assert_close(
                    other[name], base[name], f"{kind} {name!r} with {fill} under the mask"
                )


def missing_frames_have_no_likelihood(case: ModelCase) -> None:
    """Where every frame is missing, the observed sites have log density zero."""
    trace = traced(case.make().eval(), case, torch.zeros_like(case.mask))
    terms = log_probs(trace)
    for name in trace.observation_nodes:
        require(
            bool((terms[name] == 0).all()),
            f"site {name!r} scores frames that are missing: {terms[name].tolist()}.",
        )


def a_full_mask_changes_nothing(case: ModelCase) -> None:
    """A mask that is True everywhere gives the log density that no mask gives."""
    model = case.make().eval()
    trace = traced(model, case, None)
    full = torch.ones_like(case.mask)
    again = log_probs(traced(poutine.condition(model, latents(trace)), case, full))
    for name, value in log_probs(trace).items():
        assert_close(again[name], value, f"log density of site {name!r} with a full mask", 1e-4)


def no_parameter_is_0_dimensional(case: ModelCase) -> None:
    """Every parameter has at least one dimension, which sharded training needs."""
    for name, value in case.make().named_parameters():
        require(value.dim() > 0, f"parameter {name!r} is 0-dimensional; give it the shape (1,).")


def two_models_share_no_parameter(case: ModelCase) -> None:
    """Two models of one class under Pyro's global store use their own parameters each."""
    with isolated(local=False):
        for model in (case.make(), case.make()):
            own = {id(p) for p in model.parameters()}
            with poutine.trace(param_only=True) as recorder:
                model(case.x, case.mask, case.controls)
            for name, site in recorder.trace.nodes.items():
                value: Any = site["value"]
                if site["type"] == "param" and id(value.unconstrained()) not in own:
                    raise ContractError(
                        f"parameter {name!r} belongs to another model in this process, so this "
                        "one would silently not train; give each root PyroModule a unique name: "
                        "super().__init__(name)."
                    )


def predictive_draws_samples(case: ModelCase) -> None:
    """``pyro.infer.Predictive`` returns samples of every latent site."""
    model = case.make()
    draws = Predictive(model, num_samples=2, parallel=False)(case.x, case.mask, case.controls)
    for name, value in latents(traced(model, case, case.mask)).items():
        require(name in draws, f"Predictive returns no samples of site {name!r}.")
        require(
            draws[name].shape == (2, *value.shape),
            f"samples of site {name!r}: expected shape {(2, *value.shape)}, "
            f"got {tuple(draws[name].shape)}.",
        )


def float64_stays_float64(case: ModelCase) -> None:
    """A model and data in float64 give log densities in float64."""
    model = case.make().double()
    controls = None if case.controls is None else case.controls.double()
    case = case._replace(x=case.x.double(), controls=controls)
    for name, value in log_probs(traced(model, case, case.mask)).items():
        require(value.dtype == torch.float64, f"site {name!r} has dtype {value.dtype}.")


def copies_agree(case: ModelCase) -> None:
    """A deep copy, and a new model with the state_dict of the first, have its log density."""
    model = case.make().eval()
    trace = traced(model, case, case.mask)
    expected, data = log_probs(trace), latents(trace)
    restored = case.make().eval()
    restored.load_state_dict(model.state_dict())
    for kind, other in (("deep copy", copy.deepcopy(model)), ("restored model", restored)):
        again = traced(poutine.condition(other, data), case, case.mask)
        for name, value in log_probs(again).items():
            assert_close(value, expected[name], f"log density of site {name!r} of the {kind}")


MODEL_CONTRACTS: tuple[Callable[[ModelCase], None], ...] = (
    log_density_of_each_sequence,
    sequences_are_independent,
    masked_frames_change_nothing,
    missing_frames_have_no_likelihood,
    a_full_mask_changes_nothing,
    no_parameter_is_0_dimensional,
    two_models_share_no_parameter,
    predictive_draws_samples,
    float64_stays_float64,
    copies_agree,
)
