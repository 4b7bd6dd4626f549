"""Every part that is found by name keeps the contracts of its kind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

import pyro_seq
from pyro_seq.engines import (
    ConvLSTMRow,
    ConvRow,
    LinearRow,
    LSTMRow,
    PoolRow,
    SoftMaxRow,
)
from pyro_seq.nn.mlp import FlatFrames
from pyro_seq.testing import (
    DISTRIBUTION_CONTRACTS,
    ENGINE_CONTRACTS,
    FILTER_CONTRACTS,
    GUIDE_CONTRACTS,
    MEMORY_CONTRACTS,
    MODEL_CONTRACTS,
    WEIGHT_CONTRACTS,
    DistributionCase,
    EngineCase,
    GuideCase,
    MemoryCase,
    ModelCase,
    WeightCase,
    example_mask,
)
from pyro_seq.testing.contracts import run_contracts

FRAME = (1, 6, 6)
BATCH, TIME = 3, 4


class Setting(NamedTuple):
    """One way to build a model, and the guides that fit it."""

    model: str
    guides: dict[str, dict[str, Any]]
    options: dict[str, Any]
    binary: bool = True

    def make(self) -> Any:  # noqa: ANN401
        return pyro_seq.get("models", self.model)(FRAME, **self.options)

    def data(self) -> tuple[Tensor, Tensor, Tensor | None]:
        x = torch.rand(BATCH, TIME, *FRAME)
        size = self.options.get("controls", 0)
        controls = torch.randn(BATCH, TIME, size) if size else None
        return (x > 0.5).float() if self.binary else x, example_mask(BATCH, TIME), controls


MLP_KVAE = {"decoder": "mlp", "obs": 2, "state": 4, "modes": 2}
KALMAN = {"kalman": {"encoder": "mlp"}}
STEP_GUIDES = {
    "avf": {"iterations": 2, "hidden": [8]},
    "bootstrap": {},
    "filter": {"hidden": 8},
    "ladder": {"units": 4, "hidden": 5},
    "smoother": {"units": 4, "hidden": 8, "residual": True},
    "vfem": {"iterations": 2},
}
FEW_GUIDES = {name: STEP_GUIDES[name] for name in ("filter", "ladder", "smoother")}
SMOOTHING_LADDER = {"ladder": STEP_GUIDES["ladder"] | {"backward": True}}
SMALL_LEVELS = {"latents": (3, 2), "hidden": 4, "decoder": (5,)}
SMALL_SRNN = {"latent": 2, "hidden": 4, "prior": [5], "decoder": [5]}
SMALL_VRNN = SMALL_SRNN | {"x_net": [5], "z_net": [3]}
SMALL_GTMM = {
    "latent": 2,
    "prior": [5],
    "decoder": [5],
    "memory_options": {"slots": 4, "heads": 1, "hidden": 4},
}
SMALL_GROUPS = {"groups": 2, "latent": 2, "decoder": [5]}
SMALL_SVG = {"latent": 2, "features": 4, "hidden": 4, "channels": (3, 4)}
SETTINGS = {
    "kvae": {
        "closed_form": Setting("kvae", KALMAN, MLP_KVAE),
        "joint": Setting("kvae", KALMAN, MLP_KVAE | {"estimator": "joint"}),
        "marginal": Setting("kvae", KALMAN, MLP_KVAE | {"estimator": "marginal"}),
        "mlp weights": Setting("kvae", KALMAN, MLP_KVAE | {"weights": "mlp"}),
        "static weights": Setting("kvae", KALMAN, MLP_KVAE | {"weights": "static"}),
        "controls": Setting("kvae", KALMAN, MLP_KVAE | {"controls": 2}),
        "learnt noise": Setting(
            "kvae",
            KALMAN,
            MLP_KVAE | {"dynamics_options": {"learn_noise": "diagonal", "offsets": True}},
        ),
        "gaussian": Setting("kvae", KALMAN, MLP_KVAE | {"likelihood": "gaussian"}, binary=False),
        "convolutions": Setting("kvae", {"kalman": {}}, {"modes": 2}),
    },
    "dmm": {
        "binary": Setting("dmm", STEP_GUIDES, {"latent": 2, "hidden": 5, "width": 5}),
        "controls": Setting("dmm", {"filter": {"hidden": 8}}, {"latent": 2, "controls": 2}),
    },
    "hierarchical": {
        "gated": Setting("hierarchical", STEP_GUIDES, SMALL_LEVELS),
        "linear, link": Setting(
            "hierarchical",
            SMOOTHING_LADDER,
            SMALL_LEVELS
            | {"transition": "linear", "link": (), "decoder": (), "emission": "normal"}
            | {"controls": 2},
            binary=False,
        ),
    },
    "srnn": {
        "binary": Setting("srnn", STEP_GUIDES, SMALL_SRNN),
        "controls": Setting(
            "srnn",
            {"filter": {"hidden": 8}, "smoother": {"units": 4, "embedding": True}},
            SMALL_SRNN | {"controls": 2},
        ),
        "normal": Setting(
            "srnn", {"filter": {"hidden": 8}}, SMALL_SRNN | {"emission": "normal"}, binary=False
        ),
    },
    "vrnn": {
        "binary": Setting("vrnn", FEW_GUIDES, SMALL_VRNN),
        "controls": Setting("vrnn", {"filter": {"hidden": 8}}, SMALL_VRNN | {"controls": 2}),
    },
    "gtmm": {
        "introspection": Setting("gtmm", {"avf": STEP_GUIDES["avf"]}, SMALL_GTMM),
        "ring": Setting(
            "gtmm",
            {"filter": {"hidden": 8}},
            SMALL_GTMM
            | {"memory": "icm", "memory_options": {"slots": 2, "heads": 1, "hidden": 4}},
        ),
        "controls": Setting(
            "gtmm", {"filter": {"hidden": 8}}, SMALL_GTMM | {"memory": "dnc", "controls": 2}
        ),
        "lstm": Setting(
            "gtmm",
            {"filter": {"hidden": 8}},
            SMALL_GTMM
            | {
                "memory": "lstm",
                "memory_options": {"frame_features": 36, "hidden": 4},
                "encoder": FlatFrames(),
            },
        ),
    },
    "group_mixture": {
        "binary": Setting(
            "group_mixture",
            {"filter": {"hidden": 8}, "tagger": {"units": [8, 4]}},
            SMALL_GROUPS,
        ),
        "gaussian": Setting(
            "group_mixture",
            {"tagger": {"units": [6], "iterations": 2}},
            SMALL_GROUPS | {"pixels": "gaussian", "transition": "gated", "hidden": 4},
            binary=False,
        ),
    },
    "svg": {
        "normal": Setting("svg", FEW_GUIDES, SMALL_SVG, binary=False),
        "skips": Setting(
            "svg",
            {"filter": {"hidden": 8}},
            SMALL_SVG | {"skip_frames": 2, "controls": 2, "emission": "bernoulli"},
        ),
    },
}


def ours(kind: str) -> list[str]:
    """Names of the parts of a kind that this package brings."""
    return [
        name
        for name in pyro_seq.available(kind)
        if pyro_seq.get(kind, name).__module__.startswith("pyro_seq.")
    ]


def settings() -> Iterator[Any]:
    for model in ours("models"):
        for name, setting in SETTINGS[model].items():
            yield pytest.param(setting, id=f"{model}, {name}")


@pytest.mark.parametrize("contract", MODEL_CONTRACTS, ids=lambda c: c.__name__)
@pytest.mark.parametrize("setting", list(settings()))
def test_models(setting: Setting, contract: Callable[[ModelCase], None]) -> None:
    run_contracts([contract], ModelCase(setting.make, *setting.data()), "The model")


def pairs(setting: Setting) -> Iterator[tuple[str, GuideCase]]:
    """A model and each of the guides that fit it."""
    case = ModelCase(setting.make, *setting.data())
    for name, options in setting.guides.items():
        guide = pyro_seq.get("guides", name)
        yield name, GuideCase(case, lambda model, g=guide, o=options: g(model, **o))


def test_every_guide_is_tried() -> None:
    tried = {g for group in SETTINGS.values() for s in group.values() for g in s.guides}
    assert set(ours("guides")) <= tried


@pytest.mark.parametrize("contract", GUIDE_CONTRACTS, ids=lambda c: c.__name__)
@pytest.mark.parametrize("setting", list(settings()))
def test_guides(setting: Setting, contract: Callable[[GuideCase], None]) -> None:
    for name, pair in pairs(setting):
        run_contracts([contract], pair, f"The guide {name!r}")


@pytest.mark.parametrize("contract", FILTER_CONTRACTS, ids=lambda c: c.__name__)
@pytest.mark.parametrize("setting", [s for s in settings() if not s.id.startswith("kvae")])
def test_filters(setting: Setting, contract: Callable[[GuideCase], None]) -> None:
    for name, pair in pairs(setting):
        run_contracts([contract], pair, f"The guide {name!r}")


def covariance(*shape: int) -> Tensor:
    root = torch.randn(*shape, shape[-1])
    return root @ root.mT + torch.eye(shape[-1])


@pytest.mark.parametrize("contract", DISTRIBUTION_CONTRACTS, ids=lambda c: c.__name__)
@pytest.mark.parametrize("algorithm", ["information", "sequential"])
@pytest.mark.parametrize("which", ["observations", "states"])
def test_linear_gaussian(
    which: str, algorithm: str, contract: Callable[[DistributionCase], None]
) -> None:
    from pyro_seq.distributions import LinearGaussianSSM

    time, state, obs = 3, 2, 1
    mask = torch.tensor([[True, True, True], [False, True, True]])

    def make(*parameters: Tensor) -> Any:  # noqa: ANN401
        ssm = LinearGaussianSSM(
            *parameters[:7], mask=mask if which == "states" else None, algorithm=algorithm
        )
        return ssm.posterior(parameters[7]) if which == "states" else ssm

    parameters = [
        torch.randn(2, state),
        covariance(state),
        0.5 * torch.randn(2, time, state, state),
        covariance(time, state),
        torch.randn(2, 1, obs, state),
        covariance(1, obs),
        torch.randn(time, state),
    ]
    if which == "states":
        parameters.append(torch.randn(2, time, obs))
    case = DistributionCase(make, tuple(p.double() for p in parameters))
    run_contracts([contract], case, "The distribution")


@pytest.mark.parametrize("contract", WEIGHT_CONTRACTS, ids=lambda c: c.__name__)
@pytest.mark.parametrize("name", ours("dynamics"))
def test_weight_networks(name: str, contract: Callable[[WeightCase], None]) -> None:
    case = WeightCase(pyro_seq.get("dynamics", name), 2, 3)
    run_contracts([contract], case, f"The weight network {name!r}")


SMALL_MEMORY = {"slots": 5, "heads": 2, "hidden": 6}
CUED = {"write_previous": True, "tied_query": True, "controls": 2}
MEMORIES: dict[str, dict[str, dict[str, Any]]] = {
    "introspection": {
        "append": {"controls": 2},
        "shift": {"order": "shift", "attention": "softmax", "context_includes_state": True},
        "learnt gates": {"learnt_gates": True},
    },
    "ntm": {
        "tag": {},
        "pairs": CUED,
        "tanh": {"write": "tanh", "word": 4},
        "write first": {"read_before_write": False, "write": "latent_add"},
    },
    "lru": {
        "tag": {},
        "pairs": CUED,
        "paper": {"write": "key", "write_heads": 2, "key_strength": False},
    },
    "dnc": {
        "tag": {},
        "pairs": CUED,
        "linear": {"write": "linear", "detach_usage": False, "context_includes_state": False},
        "erase": {"erase_freed": True},
    },
    "icm": {
        "dense": {"controls": 2},
        "no positions": {"positions": False, "key": 4, "context_includes_state": False},
        "top 2": {"top_k": 2},
        "top 2 of places": {"top_k": 2, "controls": 2, "phases": 3},
        "no places": {"controls": 2, "phases": 0},
    },
    "lstm": {"frames": {"frame_features": 3, "controls": 2}, "latents": {"frame_features": 0}},
}


def memories() -> Iterator[Any]:
    for name in ours("memories"):
        for label, options in MEMORIES[name].items():
            sizes = {"hidden": 6} if name == "lstm" else SMALL_MEMORY
            yield pytest.param(name, sizes | options, id=f"{name}, {label}")


@pytest.mark.parametrize("contract", MEMORY_CONTRACTS, ids=lambda c: c.__name__)
@pytest.mark.parametrize(("name", "options"), list(memories()))
def test_memories(
    name: str, options: dict[str, Any], contract: Callable[[MemoryCase], None]
) -> None:
    case = MemoryCase(lambda: pyro_seq.get("memories", name)(3, **options))
    run_contracts([contract], case, f"The memory {name!r}")


MAPS = [ConvLSTMRow(3), ConvRow(4), PoolRow(2), ConvLSTMRow(4, 4, 2, cell="conv_g1"), LSTMRow(5)]
PITCHES = [
    ConvLSTMRow(3, cell="conv_g2"),
    ConvLSTMRow(4, stride=2, cell="conv_g2"),
    PoolRow(2, "mean", cell="g1"),
    LSTMRow(3),
]
PAPER = {"d2e": "all", "d2e_init": "random"}
UNITS = [LinearRow(8), LSTMRow(6, normalised=True)]
ENGINES: dict[str, dict[str, dict[str, Any]]] = {
    "rladder": {
        "maps": {"frame_shape": (1, 8, 8), "rows": [*MAPS, SoftMaxRow(3)]},
        "maps, paper": {"frame_shape": (1, 8, 8), "rows": [*MAPS, SoftMaxRow(3)]} | PAPER,
        "maps, mixed": {"frame_shape": (2, 8, 8), "rows": MAPS, "norm": "mixed"} | PAPER,
        "maps, batch": {"frame_shape": (1, 8, 8), "rows": MAPS, "norm": "batch", "d2e": "all"},
        "pitches": {"frame_shape": (1, 22), "rows": PITCHES} | PAPER,
        "units": {"frame_shape": (7,), "rows": UNITS, "d2e": "all", "stable": True},
        "encoder alone": {"frame_shape": (1, 8, 8), "rows": MAPS, "decoder": False},
    },
    "rtagger": {
        "gaussian": {
            "frame_shape": (2, 8, 8),
            "rows": [*MAPS[:-1], LinearRow(4), SoftMaxRow(4)],
            "groups": 2,
        },
        "bernoulli": {
            "frame_shape": (1, 4, 4),
            "rows": UNITS,
            "groups": 3,
            "pixels": "bernoulli",
            "norm": "layer",
            "readout_norm": True,
        },
        "pitches": {"frame_shape": (1, 22), "rows": PITCHES, "groups": 2, "readout_norm": True},
    },
    "tagger": {
        "bernoulli": {
            "frame_shape": (1, 4, 4),
            "rows": UNITS,
            "groups": 3,
            "pixels": "bernoulli",
        },
    },
}


def engines() -> Iterator[Any]:
    for name in ours("engines"):
        for label, options in ENGINES[name].items():
            yield pytest.param(name, options, id=f"{name}, {label}")


@pytest.mark.parametrize("contract", ENGINE_CONTRACTS, ids=lambda c: c.__name__)
@pytest.mark.parametrize(("name", "options"), list(engines()))
def test_engines(
    name: str, options: dict[str, Any], contract: Callable[[EngineCase], None]
) -> None:
    case = EngineCase(lambda: pyro_seq.get("engines", name)(**options))
    run_contracts([contract], case, f"The engine {name!r}")


@pytest.mark.parametrize("name", ours("datasets"))
def test_data_sets(name: str) -> None:
    """A data set has the length that it is asked for, and its seed decides what it holds."""
    if name in ("occluded_digits", "textured_digits"):
        pytest.importorskip("sklearn")
    make = pyro_seq.get("datasets", name)
    first, again, other = (make(2, time=5, seed=seed).frames for seed in (0, 0, 1))
    assert first.shape[:2] == (2, 5)
    assert (first == again).all() and (first != other).any()
