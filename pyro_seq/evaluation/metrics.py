"""Errors of predicted frames."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pyro_seq.nn.arguments import check_choice

__all__ = ["ERRORS", "WrongPixels", "hamming", "mean_square", "pixel_error", "wrong_pixels"]

ERRORS = ("wrong_pixels", "square")


class WrongPixels(NamedTuple):
    """Wrong pixels and all pixels that were compared, per sequence, long `(sequences,)`."""

    wrong: Tensor
    compared: Tensor

    @property
    def mean(self) -> float:
        """Fraction that is wrong, over all sequences; NaN if nothing was compared."""
        total = int(self.compared.sum())
        return int(self.wrong.sum()) / total if total else float("nan")


def wrong_pixels(
    x: Tensor, x_hat: Tensor, mask: Tensor, known: Tensor | None = None
) -> WrongPixels:
    r"""Count the pixels of the hidden frames for which :math:`[x > .5] \ne [\hat x > .5]`.

    Args:
        x: True frames, `(batch, time, *frame)`.
        x_hat: Predicted frames of the same shape: probabilities, or 0 and 1.
        mask: bool `(batch, time)`, True where a frame was observed and is not compared.
        known: bool `(batch, time)`, False where the true frame is not known (padding).

    Returns:
        The counts of each sequence.

    Raises:
        ValueError: If shapes do not fit together, or a frame that is compared holds NaN.
    """
    hidden = _compared(x, x_hat, mask, known)
    differ = ((x > 0.5) != (x_hat > 0.5)).flatten(2).sum(-1)
    pixels = x[0, 0].numel()
    return WrongPixels(torch.where(hidden, differ, 0).sum(-1), hidden.sum(-1) * pixels)


def hamming(x: Tensor, x_hat: Tensor, mask: Tensor, known: Tensor | None = None) -> float:
    r"""Fraction of wrong pixels among those of the hidden frames, over all sequences.

    Args:
        x: True frames, `(batch, time, *frame)`.
        x_hat: Predicted frames of the same shape.
        mask: bool `(batch, time)`, True where a frame was observed and is not compared.
        known: bool `(batch, time)`, False where the true frame is not known (padding).

    Returns:
        The fraction; NaN if no frame was hidden.

    Raises:
        ValueError: If shapes do not fit together, or a frame that is compared holds NaN.

    Example:
        >>> x = torch.tensor([[[1.0, 0.0], [1.0, 1.0]]])
        >>> guess = torch.tensor([[[0.0, 1.0], [0.9, 0.2]]])
        >>> hamming(x, guess, torch.tensor([[True, False]]))
        0.5
    """
    return wrong_pixels(x, x_hat, mask, known).mean


def mean_square(x: Tensor, x_hat: Tensor, mask: Tensor, known: Tensor | None = None) -> float:
    r"""Mean of :math:`(x - \hat x)^2` over the pixels of the hidden frames.

    Args:
        x: True frames, `(batch, time, *frame)`.
        x_hat: Predicted frames of the same shape.
        mask: bool `(batch, time)`, True where a frame was observed and is not compared.
        known: bool `(batch, time)`, False where the true frame is not known (padding).

    Returns:
        The mean; NaN if no frame was hidden.

    Raises:
        ValueError: If shapes do not fit together, or a frame that is compared holds NaN.
    """
    hidden = _compared(x, x_hat, mask, known)
    return float(pixel_error(x[hidden], x_hat[hidden], "square").mean())


def pixel_error(x: Tensor, x_hat: Tensor, error: str) -> Tensor:
    r"""Error of each pixel, float64: :math:`[x > .5] \ne [\hat x > .5]` or :math:`(x - \hat x)^2`.

    Args:
        x: True pixels.
        x_hat: Predicted pixels of the same shape.
        error: `"wrong_pixels"` or `"square"`.

    Raises:
        ValueError: For an unknown error.
    """
    check_choice("error", error, ERRORS)
    if error == "wrong_pixels":
        return ((x > 0.5) != (x_hat > 0.5)).double()
    return (x.double() - x_hat.double()).square()


def _compared(x: Tensor, x_hat: Tensor, mask: Tensor, known: Tensor | None) -> Tensor:
    """Frames that are hidden and known, bool `(batch, time)`, or an error."""
    if x.shape != x_hat.shape or mask.shape != x.shape[:2]:
        raise ValueError(
            "x and x_hat must be (batch, time, *frame) and mask (batch, time); got shapes "
            f"{tuple(x.shape)}, {tuple(x_hat.shape)} and {tuple(mask.shape)}"
        )
    hidden = ~mask if known is None else ~mask & known
    for name, frames in (("x", x), ("x_hat", x_hat)):
        if frames[hidden].isnan().any():
            raise ValueError(
                f"{name} must be known in the frames that are compared; got NaN. Frames of x that "
                "nobody knows are left out by known, bool (batch, time), False there"
            )
    return hidden
