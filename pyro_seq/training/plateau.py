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
    """Warns while a measure is no better than a reference, or stands still.

    Smaller is better. There is one ``PlateauWarning`` for every epoch at whose end either holds.

    Args:
        metric: called with the context at the end of an epoch, returns a number; or the name of an
            entry of the record ("loss", "validation_loss", a measure of an earlier callback).
        reference: value that means nothing was learnt, for example the error of a blank frame.
        tolerance: part of the reference by which the measure must lie below it.
        patience: epochs that the measure may be no better than the reference.
        stall: epochs that the measure may go without a new best value; None for any number.
        message: what it means and what to do, added to the warning.
        name: name of the measure in the record and in the warning.

    Raises:
        ValueError: neither ``reference`` nor ``stall`` is given.
    """

    def __init__(
        self,
        metric: Callable[[Context], float] | str,
        reference: float | None = None,
        *,
        tolerance: float = 0.02,
        patience: int = 2,
        stall: int | None = None,
        message: str = "",
        name: str | None = None,
    ) -> None:
        if reference is None and stall is None:
            raise ValueError("WarnOnPlateau: give a reference, or stall, or both")
        self.metric = metric
        self.reference = reference
        self.tolerance = tolerance
        self.patience = patience
        self.stall = stall
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
        if self.reference is not None and len(self.values) >= self.patience:
            bound = self.reference - self.tolerance * abs(self.reference)
            if min(self.values[-self.patience :]) >= bound:
                return (
                    f"has been no better than {self.reference:.6g}, where nothing is learnt, "
                    f"for {self.patience} epochs"
                )
        if self.stall is not None and len(self.values) > self.stall:
            best = min(self.values[: -self.stall])
            if min(self.values[-self.stall :]) >= best:
                return f"has not been below its best value {best:.6g} for {self.stall} epochs"
        return ""

    def state_dict(self) -> dict[str, Any]:
        """The values measured so far."""
        return {"values": list(self.values)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores them."""
        self.values = list(state["values"])
