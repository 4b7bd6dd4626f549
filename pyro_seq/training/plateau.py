"""A warning for training that learns nothing."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

from pyro_seq.training.callbacks import Callback, Context

__all__ = ["PlateauWarning", "WarnOnPlateau"]


class PlateauWarning(UserWarning):
    """Training sits where it learns nothing."""


class WarnOnPlateau(Callback):
    """Warns with ``PlateauWarning`` while a measure sits at a reference or has stopped improving.

    Smaller is better. One warning per epoch at which either holds, after the first ``patience``
    epochs.

    Args:
        metric: called with the context at the end of an epoch, returns a number; or the name of an
            entry of the record ("loss", "validation_loss", a measure of an earlier callback).
        reference: value that means nothing was learnt, for example the error of a blank frame.
        tolerance: relative distance from the reference that counts as sitting on it.
        patience: epochs that training may sit before it is warned of.
        message: what to say and do about it, added to the warning.
        name: name of the measure in the record and in the warning.
    """

    def __init__(
        self,
        metric: Callable[[Context], float] | str,
        reference: float | None = None,
        *,
        tolerance: float = 0.02,
        patience: int = 2,
        message: str = "",
        name: str | None = None,
    ) -> None:
        self.metric = metric
        self.reference = reference
        self.tolerance = tolerance
        self.patience = patience
        self.message = message
        self.name = name or (metric if isinstance(metric, str) else "plateau_metric")
        self.values: list[float] = []

    def on_epoch_end(self, context: Context) -> None:
        """Measures, and warns where the measure sits."""
        if isinstance(self.metric, str):
            value = float(context.record[self.metric])
        else:
            value = float(self.metric(context))
            context.record[self.name] = value
        self.values.append(value)
        reason = self._reason()
        if reason:
            text = f"epoch {context.epoch}: {self.name} = {value:.6g} {reason}. {self.message}"
            warnings.warn(text.strip(), PlateauWarning, stacklevel=2)

    def _reason(self) -> str:
        recent = self.values[-self.patience :]
        if len(recent) < self.patience:
            return ""
        reference = self.reference
        if reference is not None and all(
            abs(value - reference) <= self.tolerance * abs(reference) for value in recent
        ):
            return f"has sat at {reference:.6g}, where nothing is learnt, for {len(recent)} epochs"
        earlier = self.values[: -self.patience]
        if earlier and min(recent) >= min(earlier):
            return f"has not improved for {len(recent)} epochs (best {min(earlier):.6g})"
        return ""

    def state_dict(self) -> dict[str, Any]:
        """The values measured so far."""
        return {"values": list(self.values)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores them."""
        self.values = list(state["values"])
