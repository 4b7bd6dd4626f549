"""Every registered filtering guide on a model that nobody thought of; and bad input."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest

import pyro_seq
from pyro_seq.guides import FilteringGuide
from pyro_seq.testing import FILTER_CONTRACTS, GUIDE_CONTRACTS, GuideCase, ModelCase
from pyro_seq.testing.contracts import run_contracts
from tests.guides.unseen_model import Traffic, traffic

SMALL: dict[str, dict[str, Any]] = {
    "avf": {"iterations": 2, "hidden": [8, 8]},
    "filter": {"hidden": 8},
    "ladder": {"units": 6, "hidden": 8},
    "smoother": {"units": 6, "hidden": 8},
    "vfem": {"iterations": 3},
}
ALL_ENCODED = ("parameters", "gradients", "observation", "errors", "state")
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "avf, through time": ("avf", {"iterations": 1, "hidden": [8], "stop_gradients": False}),
    "avf, reads all": ("avf", {"hidden": [8], "encodes": ALL_ENCODED, "normalise": "log"}),
    "avf, learnt descent": ("avf", {"hidden": [8], "update": "sgd", "gradient_scale": 1e-3}),
    "ladder, backward": ("ladder", {"units": 4, "hidden": 6, "backward": True}),
    "ladder, precision": ("ladder", {"units": 4, "hidden": 6, "combine": "precision"}),
    "filter, residual": ("filter", {"hidden": 8, "residual": True}),
}


def filtering_guides() -> dict[str, Callable[..., FilteringGuide]]:
    """All registered filtering guides but those of one model alone, and variants of some."""
    names = set(pyro_seq.available("guides")) - {"tagger"}
    classes = {name: pyro_seq.get("guides", name) for name in sorted(names)}
    found = {
        name: lambda model, make=make, name=name: make(model, **SMALL.get(name, {}))
        for name, make in classes.items()
        if isinstance(make, type) and issubclass(make, FilteringGuide)
    }
    for variant, (name, options) in VARIANTS.items():
        found[variant] = lambda model, name=name, o=options: classes[name](model, **o)
    return found


GUIDES = filtering_guides()


def test_the_registry_has_filtering_guides() -> None:
    assert {"avf", "bootstrap", "filter", "ladder", "smoother", "vfem"} <= set(GUIDES)


@pytest.mark.parametrize("contract", GUIDE_CONTRACTS + FILTER_CONTRACTS, ids=lambda c: c.__name__)
@pytest.mark.parametrize("name", GUIDES)
def test_an_unseen_model(name: str, contract: Callable[[GuideCase], None]) -> None:
    x, mask, controls = traffic()
    case = GuideCase(ModelCase(Traffic, x, mask, controls), GUIDES[name])
    with warnings.catch_warnings():
        # TraceMeanField_ELBO cannot see that the guide has the structure of the model
        warnings.filterwarnings("ignore", "Failed to verify mean field restriction")
        run_contracts([contract], case, f"The guide {name!r}")
