r"""Tasks of recall: sequences whose end can only be predicted from a memory of their beginning.

A sequence is :math:`l` frames :math:`s_0, \dots, s_{l-1}` drawn independently from a bank, with
labels :math:`y`, and then :math:`k` frames (all counted from 0, :math:`j < k`):

============= ==================================================================================
task          frame :math:`l + j`
============= ==================================================================================
perfect       :math:`s_j`
one_shot      :math:`s_j`; the name of the perfect task on Omniglot, tested on new characters
parity        a new picture of a 0 or a 1, whose class is the parity of :math:`y_j`
dynamic       :math:`s_i`, i the label of the frame before, which a recalled frame has too
cued          :math:`s_{r+j}`, r uniform on 0, ..., l - k - 1
============= ==================================================================================

The paper's pseudocode leaves some of it open. In "dynamic" it does not append the label of a
recalled frame, without which the second one has no address. In "cued" r is at least 1 and at most
l - k, counted from 1, so the last window is never asked for. In "parity" the text and a caption
disagree on which class stands for odd digits.

References:
    M. Gemici, C.-C. Hung, A. Santoro, G. Wayne, S. Mohamed, D. J. Rezende, D. Amos, T. Lillicrap
    (2017). Generative Temporal Models with Memory. https://arxiv.org/abs/1702.04649
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from pyro_seq.data.arguments import check_numbers
from pyro_seq.data.batch import Batch
from pyro_seq.data.pictures import Pictures, Vectors, check_bank, seeded

__all__ = ["RECALL_TASKS", "Recall", "RecallTask", "recall"]

RecallTask = Literal["perfect", "one_shot", "parity", "dynamic", "cued"]
RECALL_TASKS: tuple[RecallTask, ...] = get_args(RecallTask)


class Recall(NamedTuple):
    """A batch of sequences, and what is known of them.

    Attributes:
        batch: The sequences, in the order of the arguments of every model.
        source: The first step that showed the very same frame, long (batch, time); -1 where the
            frame is new.
        labels: The class of each frame, long (batch, time); -1 where it has none.
        recalled: True where a perfect memory could predict the frame, bool (batch, time).
        before: True where none could, bool (batch, time): the steps to compare with.
        info: What else the task knows of its sequences, by name.

    Example:
        >>> sequences = recall("perfect", Vectors(8), 4, length=6, recalled=2, seed=0)
        >>> sequences.batch.x.shape, sequences.source[0].tolist()
        (torch.Size([4, 8, 8]), [-1, -1, -1, -1, -1, -1, 0, 1])
        >>> per_step = sequences.source.double()  # in place of a KL divergence (batch, time)
        >>> per_step[sequences.recalled].mean() / per_step[sequences.before].mean()
        tensor(-0.5000, dtype=torch.float64)
    """

    batch: Batch
    source: Tensor
    labels: Tensor
    recalled: Tensor
    before: Tensor
    info: dict[str, Tensor]

    @property
    def frames(self) -> Tensor:
        """The frames, (batch, time, *frame)."""
        return self.batch.x

    def to(self, device: torch.device | str) -> Recall:
        """Return all tensors on another device."""
        source, labels, recalled, before = (part.to(device) for part in self[1:5])
        info = {name: part.to(device) for name, part in self.info.items()}
        return Recall(self.batch.to(device), source, labels, recalled, before, info)


class _Drawn(NamedTuple):
    """The first frames, rows (batch, length) of a bank, and what is to follow."""

    bank: Pictures
    rows: Tensor
    recalled: int
    generator: torch.Generator
    odd: int


def recall(
    task: RecallTask,
    bank: Pictures | Vectors,
    batch: int,
    *,
    length: int,
    recalled: int,
    seed: int | torch.Generator,
    odd: Literal[0, 1] = 1,
) -> Recall:
    """Draw sequences of a task of recall; the module says what each task is.

    Only numbers of pictures are drawn, for the whole batch at once; the frames are gathered from
    the bank, on its device.

    In the "cued" task the first of the repeated frames, the cue, can be predicted by no model, so
    it counts as neither recalled nor before. In the "parity" task a recalled frame is new, its
    source is -1, but its class is known. ``before`` leaves out the first frames, as many as are
    recalled: a model that knows that they will be asked for stores them at a higher cost.

    Args:
        task: "perfect", "one_shot", "parity", "dynamic" or "cued".
        bank: Where frames come from. Training and test need banks of different pictures.
        batch: The number of sequences.
        length: The number of first frames, l.
        recalled: The number of frames that follow, k, smaller than l.
        seed: The seed of the random numbers, or a generator on the CPU.
        odd: In the "parity" task, the class that stands for odd digits.

    Returns:
        The sequences of l + k frames. ``info["start"]``, long (batch,), is the step that the cue
        repeats, in the "cued" task; ``info["rows"]``, long (batch, time), holds the numbers of the
        pictures in the bank, unless it is of vectors.

    Raises:
        TypeError: If the bank, a number or the seed is none.
        ValueError: If the task is unknown, a number is out of its range, the bank lacks the
            labels that the task needs, or its frames and labels do not fit.

    Example:
        >>> test = recall("cued", Vectors(8), 100, length=20, recalled=5, seed=1)
        >>> test.recalled[0].nonzero().flatten().tolist()
        [21, 22, 23, 24]
        >>> test.info["start"].max() < 15
        tensor(True)
    """
    _check(task, bank, batch, length, recalled, odd)
    generator = seeded(seed)
    pictures, rows = bank.sample((batch, length), generator)
    drawn = _Drawn(pictures, rows, recalled, generator, odd)
    info: dict[str, Tensor] = {}
    if task == "parity":
        rows = torch.cat([rows, _answer_parity(drawn)], 1)
        repeated = torch.full((batch, recalled), -1)
    else:
        repeated, info = _choose(task, drawn)
        rows = torch.cat([rows, rows.gather(1, repeated)], 1)
    source = torch.cat([torch.full((batch, length), -1), repeated], 1)
    steps = torch.arange(length + recalled).expand(batch, -1)
    if isinstance(bank, Pictures):
        info["rows"] = rows
    sequences = Recall(
        Batch(pictures.take(rows)),
        source,
        torch.full_like(rows, -1) if pictures.labels is None else pictures.labels[rows],
        steps >= (length + 1 if task == "cued" else length),
        (steps >= recalled) & (steps < length),
        info,
    )
    return sequences.to(pictures.frames.device)


def _choose(task: RecallTask, drawn: _Drawn) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the steps that are repeated, (batch, recalled), and where a cue was taken from."""
    batch, length = drawn.rows.shape
    steps = torch.arange(drawn.recalled)
    if task == "dynamic":
        return _follow_labels(drawn), {}
    if task == "cued":
        start = torch.randint(length - drawn.recalled, (batch,), generator=drawn.generator)
        return start[:, None] + steps, {"start": start}
    return steps.repeat(batch, 1), {}


def _follow_labels(drawn: _Drawn) -> Tensor:
    """Return the steps that are repeated, each the label of the frame before it."""
    assert drawn.bank.labels is not None
    labels = drawn.bank.labels[drawn.rows]
    step, steps = labels[:, -1:], []
    for _ in range(drawn.recalled):
        steps.append(step)
        step = labels.gather(1, step)
    return torch.cat(steps, 1)


def _answer_parity(drawn: _Drawn) -> Tensor:
    """Return new pictures, rows (batch, recalled), of the classes that tell the parity."""
    labels = drawn.bank.labels
    assert labels is not None
    zeros, ones = ((labels == kind).nonzero()[:, 0] for kind in (0, 1))
    if 0 in (len(zeros), len(ones)):
        raise ValueError("bank: expected pictures of the labels 0 and 1 in the task 'parity'.")
    odd = labels[drawn.rows[:, : drawn.recalled]] % 2
    wanted = odd if drawn.odd == 1 else 1 - odd
    chance = torch.rand(wanted.shape, generator=drawn.generator, dtype=torch.float64)
    return torch.where(
        wanted == 1, ones[(chance * len(ones)).long()], zeros[(chance * len(zeros)).long()]
    )


def _check(
    task: str, bank: Pictures | Vectors, batch: int, length: int, recalled: int, odd: int
) -> None:
    if task not in RECALL_TASKS:
        raise ValueError(f"task: expected one of {', '.join(RECALL_TASKS)}, got {task!r}.")
    check_numbers(batch=batch, length=length, recalled=recalled)
    check_bank(bank)
    least = 2 if task == "cued" else 1
    if not least <= recalled < length:
        raise ValueError(
            f"recalled: expected from {least} frames to less than length = {length} in the task "
            f"{task!r}, got {recalled}."
        )
    if odd not in (0, 1):
        raise ValueError(f"odd: expected the class 0 or 1, got {odd}.")
    if task in ("parity", "dynamic"):
        _check_labels(task, bank, length)


def _check_labels(task: str, bank: Pictures | Vectors, length: int) -> None:
    if isinstance(bank, Vectors):
        classes = bank.classes
        if task == "parity":
            raise ValueError("bank: expected pictures in the task 'parity', got vectors.")
    else:
        classes = 0 if bank.labels is None else int(bank.labels.max()) + 1
        if bank.labels is not None and bool((bank.labels < 0).any()):
            raise ValueError(f"bank: expected labels from 0 on in the task {task!r}, got less.")
    if classes == 0:
        raise ValueError(f"bank: expected one with labels in the task {task!r}, got none.")
    if task == "dynamic" and classes > length:
        raise ValueError(
            f"length: expected at least {classes} frames in the task 'dynamic', one for every "
            f"label of the bank, which is an address, got {length}."
        )
