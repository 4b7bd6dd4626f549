"""What engines are trained to do besides the likelihood of frames."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["classification_cost"]


def classification_cost(log_probs: Tensor, labels: Tensor) -> Tensor:
    r"""The cost of each label in nats, :math:`-\log p(y)`; zero where there is no label.

    Args:
        log_probs: Of the classes, `(*batch, classes)`; logits need `log_softmax` first.
        labels: int64 `(*batch,)`, and -1 where there is none.

    Returns:
        `(*batch,)`. The mean over a batch that is partly labelled is its sum divided by the number
        of labels.

    Raises:
        ValueError: When the labels have another shape or dtype, or, on the CPU, lie outside the
            classes.

    Example:
        >>> import torch
        >>> log_probs = torch.tensor([[0.5, 0.5], [0.9, 0.1]]).log()
        >>> classification_cost(log_probs, torch.tensor([1, -1]))
        tensor([0.6931, 0.0000])
    """
    classes = log_probs.shape[-1]
    if labels.shape != log_probs.shape[:-1]:
        raise ValueError(
            f"labels must be of shape {tuple(log_probs.shape[:-1])}; got {tuple(labels.shape)}"
        )
    if labels.dtype != torch.int64:
        raise ValueError(f"labels must be int64; got {labels.dtype}. Use labels.long()")
    if labels.device.type == "cpu" and ((labels < -1) | (labels >= classes)).any():
        raise ValueError(
            f"labels must be from 0 to {classes - 1}, or -1 for none; "
            f"got from {int(labels.min())} to {int(labels.max())}"
        )
    flat = functional.nll_loss(
        log_probs.reshape(-1, classes), labels.reshape(-1), ignore_index=-1, reduction="none"
    )
    return flat.reshape(labels.shape)
