"""ArviZ: export of a pair's posterior, and comparison of pairs. Works with arviz 0.23 and 1.x."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from pyro_seq.data import Batch
from pyro_seq.evaluation.bound import Bound
from pyro_seq.evaluation.context import as_batch
from pyro_seq.evaluation.draws import Draws, posterior_draws
from pyro_seq.evaluation.elbo import elbo, fivo, iwae
from pyro_seq.nn.arguments import check_choice
from pyro_seq.ops.trees import where

if TYPE_CHECKING:
    import pandas as pd  # type: ignore[import-untyped]
    from matplotlib.axes import Axes

__all__ = ["compare", "plot_compare", "to_arviz"]

BOUNDS = ("elbo", "iwae", "fivo")


def to_arviz(
    model: nn.Module,
    guide: nn.Module,
    batch: Tensor | tuple[Tensor, Tensor | None, Tensor | None],
    *,
    samples: int = 50,
    iwae_samples: int = 50,
    frames: bool = True,
    seed: int | None = None,
    chunk: int = 64,
) -> Any:  # noqa: ANN401 - InferenceData or DataTree
    r"""Export draws from a guide, with coordinates sequence and time.

    Groups: `posterior` (latent sites; for a Kalman guide codes `a` and states `z`, those of
    missing frames drawn too), `posterior_predictive` (mean frames given each draw),
    `observed_data` (frames, NaN where missing), `constant_data` (the mask and the controls), and
    `log_likelihood`. There is one chain, and its draws are independent.

    The terms of `log_likelihood` are estimates of :math:`\log p(x_i)` of whole sequences, the
    importance-weighted bound with `iwae_samples` draws: latents are integrated out, so there is
    one value a sequence and not one a draw. ArviZ's `loo`, which reweights draws, does not apply
    to them; :func:`compare` does.

    Args:
        model: Generative model.
        guide: Its guide.
        batch: A :class:`~pyro_seq.data.Batch`, or x alone, `(sequences, time, *frame)`.
        samples: Draws of each sequence.
        iwae_samples: k of the bound.
        frames: Whether to export frames. They take `samples` times the memory of x.
        seed: Seed of the draws; None goes on with torch's present state.
        chunk: Sequences times samples that are in memory at once.

    Returns:
        `arviz.InferenceData` with arviz 0.23, `xarray.DataTree` with arviz 1.x.

    Raises:
        ValueError: When the guide draws no latent site.
    """
    whole = as_batch(batch)
    draws = posterior_draws(model, guide, whole, samples=samples, seed=seed, chunk=chunk)
    if not draws.sites:
        raise ValueError(
            f"guide must draw latent sites, which are what is exported; {type(guide).__name__} "
            "has none. Without latents there are elbo and compare"
        )
    bound = iwae(model, guide, whole, samples=iwae_samples, seed=seed, chunk=chunk)
    groups: dict[str, dict[str, Any]] = {
        "posterior": {name: _numpy(value)[None] for name, value in draws.sites.items()},
        "log_likelihood": {"x": bound.per_sequence.numpy()[None, None]},
        "constant_data": _constants(whole),
    }
    if frames:
        groups["posterior_predictive"] = {k: _numpy(v)[None] for k, v in draws.frames.items()}
        groups["observed_data"] = {"x": _observed(whole)}
    coords = {"sequence": np.arange(whole.x.shape[0]), "time": np.arange(whole.x.shape[1])}
    attributes = {
        "log_likelihood_terms": "log p(x_i) per sequence, latents integrated out by importance "
        "sampling; nats of the observed frames",
        "bound": bound.name,
        "bound_samples": bound.samples,
    }
    return _container(groups, coords, _dims(draws, whole), attributes)


def compare(
    pairs: Mapping[str, tuple[nn.Module, nn.Module] | Bound],
    batch: Tensor | tuple[Tensor, Tensor | None, Tensor | None] | None = None,
    *,
    bound: str = "elbo",
    samples: int | None = None,
    seed: int | None = 0,
    method: str = "stacking",
    chunk: int = 64,
) -> pd.DataFrame:
    r"""Rank pairs by a bound on the log evidence of held-out sequences, through `arviz.compare`.

    The pointwise terms are the bounds :math:`\mathcal{L}(x_i) \le \log p(x_i)` of whole sequences:
    they are exchangeable, frames within a sequence are not. What is compared is bounds, not
    evidences: a pair may come first because its guide is tighter. `bound="iwae"` with many
    samples, or `"fivo"` for step models, closes most of that gap. Nothing was left out, so there
    is no effective number of parameters.

    Args:
        pairs: `(model, guide)` by name, or a :class:`~pyro_seq.evaluation.Bound` that was computed
            already, of the same sequences in the same order.
        batch: The sequences; not needed if all values are bounds.
        bound: `"elbo"`, `"iwae"` or `"fivo"`.
        samples: Draws of each sequence, 1 for `"elbo"` when None; k of the importance-weighted
            bound, particles of the filter, to be given for these.
        seed: Seed of the draws, the same for each pair.
        method: How `arviz.compare` weights the pairs: `"stacking"`, `"BB-pseudo-BMA"` or
            `"pseudo-BMA"`.
        chunk: As in :func:`~pyro_seq.evaluation.elbo`.

    Returns:
        A row per pair, the best first, in nats: `rank`, the bound under its name (a sum over
        sequences) with its standard error `se`, `BOUND_diff` (that of the best minus this one)
        with its standard error `dse` from the paired differences, `weight`, `BOUND_per_sequence`,
        `BOUND_per_frame`. The attribute `attrs` says which bound it is.

    Raises:
        ValueError: For an unknown bound, no pairs, a missing batch or number of samples, or bounds
            that differ in kind or sequences.
    """
    check_choice("bound", bound, BOUNDS)
    bounds = {}
    for name, pair in pairs.items():
        if not isinstance(pair, Bound):
            if batch is None:
                raise ValueError(f"batch is needed to compute the {bound} of {name!r}; got None")
            if samples is None and bound != "elbo":
                raise ValueError(
                    f"samples must be given for bound={bound!r}, of which it is the number; with "
                    "one it would be the ELBO. Got None"
                )
            number = 1 if samples is None else samples
            compute = {
                "elbo": partial(elbo, particles=number),
                "iwae": partial(iwae, samples=number),
                "fivo": partial(fivo, particles=number),
            }[bound]
            pair = compute(*pair, batch, seed=seed, chunk=chunk)
        bounds[name] = pair
    _check_comparable(bounds)
    return _table(bounds, _arviz_compare(bounds, method))


def plot_compare(table: pd.DataFrame, **options: Any) -> Axes:  # noqa: ANN401
    """Plot a comparison through `arviz.plot_compare`.

    Args:
        table: From :func:`compare`.
        **options: Keyword arguments of `arviz.plot_compare`, which differ between its versions.

    Returns:
        The matplotlib axes. The scale is labelled with the bound's name.
    """
    arviz = _arviz()
    name, count = table.attrs["bound"].upper(), table.attrs["sequences"]
    native = _native(table, arviz)
    if _major(arviz) == 0:
        with _quiet():
            axes = arviz.plot_compare(native, **{"show": False, "plot_ic_diff": True, **options})
        axes.set_xlabel(f"{name}, sum over {count} sequences (nats)")
        return axes
    collection = arviz.plot_compare(native, **{"backend": "matplotlib", **options})
    axes = collection.viz["plot"].item()
    axes.figure.set_layout_engine("constrained")
    difference = " difference" if options.get("relative_scale", True) else ""
    axes.set_xlabel(f"{name}{difference}, sum over {count} sequences (nats)")
    return axes


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without arviz 0.23's notice about 1.0 and its use of what pandas is about to drop."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


def _arviz() -> ModuleType:
    """Import arviz when it is needed."""
    with _quiet():
        import arviz
    return arviz


def _major(arviz: ModuleType) -> int:
    return int(arviz.__version__.split(".")[0])


def _numpy(value: Tensor) -> np.ndarray:
    return value.detach().cpu().numpy()


def _observed(batch: Batch) -> np.ndarray:
    """Frames as floats, NaN where missing."""
    x = batch.x if batch.x.is_floating_point() else batch.x.float()
    if batch.mask is not None:
        x = where(batch.mask, x, torch.nan)
    return _numpy(x)


def _constants(batch: Batch) -> dict[str, np.ndarray]:
    """Mask and controls, for every frame."""
    mask = torch.ones(batch.x.shape[:2], dtype=torch.bool) if batch.mask is None else batch.mask
    controls = {} if batch.controls is None else {"controls": _numpy(batch.controls)}
    return {"mask": _numpy(mask), **controls}


def _dims(draws: Draws, batch: Batch) -> dict[str, list[str]]:
    """Names of the dimensions of each variable after chain and draw."""
    shapes = {name: value.shape[1:] for name, value in (draws.sites | draws.frames).items()}
    shapes |= {"x": batch.x.shape, "mask": batch.x.shape[:2]}
    if batch.controls is not None:
        shapes["controls"] = batch.controls.shape
    return {name: _dim_names(name, shape, batch.x.shape[1]) for name, shape in shapes.items()}


def _dim_names(name: str, shape: Sequence[int], time: int) -> list[str]:
    leading = ["sequence", "time"] if len(shape) > 1 and shape[1] == time else ["sequence"]
    return leading + [f"{name}_dim_{i}" for i in range(len(shape) - len(leading))]


def _container(
    groups: dict[str, dict[str, Any]],
    coords: dict[str, np.ndarray],
    dims: dict[str, list[str]],
    attributes: dict[str, Any],
) -> Any:  # noqa: ANN401
    """What `arviz.from_dict` makes of groups of arrays; the terms per sequence have no time."""
    arviz = _arviz()
    terms = {"log_likelihood": groups.pop("log_likelihood")}
    of_terms: dict[str, Any] = {
        "coords": {"sequence": coords["sequence"]},
        "dims": dict.fromkeys(terms["log_likelihood"], ["sequence"]),
    }
    if _major(arviz) == 0:
        data = arviz.from_dict(**groups, coords=coords, dims=dims)
        data.extend(arviz.from_dict(**terms, **of_terms))
    else:
        data = arviz.from_dict(groups, coords=coords, dims=dims)
        data["log_likelihood"] = arviz.from_dict(terms, **of_terms)["log_likelihood"]
    data.attrs.update(attributes)
    data["log_likelihood"].attrs.update(attributes)
    return data


def _check_comparable(bounds: Mapping[str, Bound]) -> None:
    if not bounds:
        raise ValueError("pairs must hold at least one pair; got none")
    first, reference = next(iter(bounds.items()))
    for name, other in bounds.items():
        kind = (other.name, None if other.name == "elbo" else other.samples)
        wanted = (reference.name, None if reference.name == "elbo" else reference.samples)
        if kind != wanted or not torch.equal(other.steps, reference.steps):
            raise ValueError(
                f"bounds of {first!r} and {name!r} must be of one kind and of the same sequences; "
                f"got {wanted} of {len(reference.steps)} and {kind} of {len(other.steps)} of them"
            )


def _arviz_compare(bounds: Mapping[str, Bound], method: str) -> pd.DataFrame:
    """Differences and weights from `arviz.compare`, the first model of the table its best.

    Terms are shifted by the best of each sequence, which changes neither differences nor weights:
    stacking takes their exponential, and that of thousands of nats is zero.
    """
    arviz = _arviz()
    best = torch.stack([bound.per_sequence for bound in bounds.values()]).amax(0)
    make = _series_elpd if _major(arviz) == 0 else _dataclass_elpd
    terms = {name: make(bound, bound.per_sequence - best) for name, bound in bounds.items()}
    known = inspect.signature(arviz.compare).parameters
    options = {"ic": "loo", "scale": "log", "round_to": "none"}
    with _quiet():
        return arviz.compare(
            terms, method=method, **{key: value for key, value in options.items() if key in known}
        )


def _total_error(values: Tensor) -> float:
    """Standard error of a sum over sequences."""
    return float((len(values) * values.var()).sqrt()) if len(values) > 1 else float("nan")


def _series_elpd(bound: Bound, pointwise: Tensor) -> Any:  # noqa: ANN401
    """The container of arviz 0.23, whose names can only be those of loo or waic."""
    import xarray
    from arviz.stats.stats_utils import ELPDData

    count = len(pointwise)
    entries = {
        "elpd_loo": float(bound.per_sequence.sum()),
        "se": _total_error(bound.per_sequence),
        "p_loo": float("nan"),
        "n_samples": bound.samples,
        "n_data_points": count,
        "warning": False,
        "loo_i": xarray.DataArray(pointwise.numpy(), dims="sequence"),
        "scale": "log",
    }
    return ELPDData(data=list(entries.values()), index=list(entries))


def _dataclass_elpd(bound: Bound, pointwise: Tensor) -> Any:  # noqa: ANN401
    """The container of arviz 1.x."""
    import xarray
    from arviz_stats.utils import ELPDData

    entries = {
        "kind": "loo",
        "elpd": float(bound.per_sequence.sum()),
        "se": _total_error(bound.per_sequence),
        "p": float("nan"),
        "n_samples": bound.samples,
        "n_data_points": len(pointwise),
        "scale": "log",
        "warning": False,
        "good_k": None,
        "elpd_i": xarray.DataArray(pointwise.numpy(), dims="sequence"),
    }
    known = {field.name for field in dataclasses.fields(ELPDData) if field.init}
    return ELPDData(**{name: entry for name, entry in entries.items() if name in known})


def _table(bounds: Mapping[str, Bound], compared: pd.DataFrame) -> pd.DataFrame:
    """One form for both versions, without what only leave-one-out estimates have."""
    import pandas as pd

    ordered = [bounds[name] for name in compared.index]
    kind = ordered[0].name
    table = pd.DataFrame(
        {
            "rank": range(len(ordered)),
            kind: [float(bound.per_sequence.sum()) for bound in ordered],
            "se": [_total_error(bound.per_sequence) for bound in ordered],
            f"{kind}_diff": compared["elpd_diff"].astype(float).abs(),
            "dse": compared["dse"].astype(float),
            "weight": compared["weight"].astype(float),
            f"{kind}_per_sequence": [bound.mean for bound in ordered],
            f"{kind}_per_frame": [bound.per_step for bound in ordered],
        },
        index=compared.index.rename("pair"),
    )
    table.attrs = {
        "bound": kind,
        "samples": ordered[0].samples,
        "sequences": len(ordered[0].steps),
        "scale": "log",
        "unit": "nats",
    }
    return table


def _native(table: pd.DataFrame, arviz: ModuleType) -> pd.DataFrame:
    """The table in the form that this arviz plots."""
    kind = table.attrs["bound"]
    if _major(arviz) == 0:
        renamed = table.rename(columns={kind: "elpd_loo", f"{kind}_diff": "elpd_diff"})
        return renamed.assign(p_loo=float("nan"), warning=False, scale="log")
    renamed = table.rename(columns={kind: "elpd", f"{kind}_diff": "elpd_diff"})
    return renamed.assign(elpd_diff=-renamed["elpd_diff"], p=float("nan"))
