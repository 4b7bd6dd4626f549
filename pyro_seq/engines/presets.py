"""Ladders of the paper, tables 5 to 9, and small ones.

References:
    Prémont-Schwarz, Ilin, Hao, Rasmus, Boney, Valpola (2017), Recurrent ladder networks, D.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pyro_seq.engines.rladder import RLadder
from pyro_seq.engines.rows import (
    ConvLSTMRow,
    ConvRow,
    LinearRow,
    LSTMRow,
    PoolRow,
    Row,
    SoftMaxRow,
)
from pyro_seq.engines.rtagger import RTagger
from pyro_seq.nn.arguments import check_choice

__all__ = [
    "ABLATIONS",
    "Ablation",
    "grouped_shapes",
    "occluded_digits",
    "occluded_mnist",
    "polyphonic",
    "textured_mnist",
]

Rows = list[Row | SoftMaxRow]


class Ablation(NamedTuple):
    """A row of table 1: what it keeps of the network, and the tasks it learns.

    Attributes:
        options: Arguments of :func:`occluded_mnist` or :func:`occluded_digits`.
        classification: Whether it learns the classes.
        prediction: Whether it learns the next frame.
    """

    options: Mapping[str, Any]
    classification: bool
    prediction: bool


ABLATIONS: Mapping[str, Ablation] = {
    "rladder": Ablation({}, True, True),
    "static": Ablation({"encoder": "static"}, True, False),
    "baseline": Ablation({"encoder": "baseline"}, True, False),
    "hierarchical_rnn": Ablation({"decoder": False}, True, False),
    "no_prediction": Ablation({}, True, False),
    "no_d2e": Ablation({"d2e": "none"}, True, True),
    "no_classification": Ablation({}, False, True),
}


def occluded_mnist(
    encoder: str = "ladder",
    dropout: float = 0.0,
    **options: Any,  # noqa: ANN401
) -> RLadder:
    """Table 5, for Occluded Moving MNIST: frames of 1 x 32 x 32.

    Args:
        encoder: `ladder`; `baseline`, table 6, whose only recurrence is the LSTM at the top, or
            `static`, table 7, that has none and classifies reconstructions. The last two have no
            decoder.
        dropout: Probability that a unit is dropped before the classes, in training.
        **options: Of :class:`RLadder`, in place of the paper's.

    Raises:
        ValueError: For an unknown encoder.

    Example:
        >>> ladder = occluded_mnist()
        >>> sum(p.numel() for p in ladder.parameters())
        3996109
        >>> ladder.shapes[-3:]
        ((32, 8, 8), (32, 4, 4), (16,))
    """
    rows: Rows = [
        ConvLSTMRow(32, cell_kernel=9),
        *[ConvRow(32)] * 3,
        PoolRow(2, cell_kernel=6),
        ConvLSTMRow(32, cell_kernel=9),
        *[ConvRow(64)] * 3,
        PoolRow(2, cell_kernel=6),
        ConvRow(128),
        ConvRow(64, 1, cell_kernel=3),
        ConvRow(32, 1, cell_kernel=3),
        PoolRow(2, "mean", cell="g1"),
        LSTMRow(16),
        SoftMaxRow(10, dropout=dropout),
    ]
    paper = {"d2e": "all", "d2e_init": "random", "norm": "mixed"}
    return _ladder((1, 32, 32), rows, encoder, {**paper, **options})


def occluded_digits(
    encoder: str = "ladder",
    size: int = 16,
    dropout: float = 0.0,
    **options: Any,  # noqa: ANN401
) -> RLadder:
    """A small ladder for digits of 8 x 8 pixels on frames of 1 x 16 x 16, or for those of MNIST.

    Args:
        encoder: See :func:`occluded_mnist`.
        size: Height and width of a frame, 16 or 32. With 32 the first convolutional LSTM has a
            stride of 2 and twice the channels; all above it is as with 16.
        dropout: Probability that a unit is dropped before the classes, in training.
        **options: Of :class:`RLadder`.

    Raises:
        ValueError: For an unknown encoder, or another size.

    Example:
        >>> sum(p.numel() for p in occluded_digits().parameters())
        220805
        >>> occluded_digits(size=32).shapes[:4]
        ((1, 32, 32), (16, 16, 16), (8, 16, 16), (8, 8, 8))
    """
    if size not in (16, 32):
        raise ValueError(f"size must be 16 or 32; got {size}")
    first = ConvLSTMRow(8, cell_kernel=5)
    if size == 32:
        first = ConvLSTMRow(16, 4, 2, cell_kernel=6)
    rows: Rows = [
        first,
        ConvRow(8),
        PoolRow(2, cell_kernel=4),
        ConvLSTMRow(16, cell_kernel=5),
        ConvRow(16),
        PoolRow(2, cell_kernel=4),
        ConvRow(32),
        PoolRow(2, "mean", cell="g1"),
        LSTMRow(64),
        SoftMaxRow(10, dropout=dropout),
    ]
    if size == 32 and encoder != "ladder":
        rows[0] = ConvRow(16, 4, 2)
    return _ladder((1, size, size), rows, encoder, options)


def polyphonic(
    channels: Sequence[int] = (32, 64, 96, 128, 160),
    units: int = 96,
    counts: bool = False,
    **options: Any,  # noqa: ANN401
) -> RLadder:
    r"""Table 8, for music: frames of 1 x 88, the pitches.

    The prediction holds logits of the 88 notes of the next step.

    Args:
        channels: Of each convolutional LSTM; all but the first halve the pitch axis.
        units: Of the LSTM.
        counts: Whether there is a head of 19 classes, read as how many notes sound at the next
            step. The paper lists it and does not say what it is for.
        **options: Of :class:`RLadder`, in place of the paper's.

    Example:
        >>> polyphonic().shapes[1:]
        ((32, 88), (64, 44), (96, 22), (128, 11), (160, 6), (160, 3), (96,))
    """
    first, *others = channels
    rows: Rows = [
        ConvLSTMRow(first, cell="conv_g2"),
        *(ConvLSTMRow(width, stride=2, cell="conv_g2") for width in others),
        PoolRow(2, "mean", cell="g1"),
        LSTMRow(units),
        *([SoftMaxRow(19)] if counts else []),
    ]
    paper = {"d2e": "all", "d2e_init": "random"}
    return RLadder((1, 88), rows, **{**paper, **options})


def textured_mnist(groups: int = 3, **options: Any) -> RTagger:  # noqa: ANN401
    """Table 9, for textured MNIST: frames of 1 x 96 x 96.

    Args:
        groups: K.
        **options: Of :class:`RTagger`, in place of the paper's.

    Example:
        >>> textured_mnist().ladder.shapes[-3:]
        ((11, 6, 6), (11, 1, 1), (11,))
    """
    rows: Rows = []
    for width, kernel in ((96, 8), (192, 4), (192, 4)):
        rows.append(ConvLSTMRow(width, kernel, 2, cell="conv_g1"))
        rows += [ConvRow(width, 5, cell="conv_g1")] * 2
    rows += [
        ConvLSTMRow(11, 4, 2, cell="conv_g1"),
        PoolRow(6, "mean", cell="broadcast"),
        LinearRow(11, "linear"),
        SoftMaxRow(11, project=False),
    ]
    paper = {"d2e": "all", "d2e_init": "random", "readout_norm": True}
    return RTagger((1, 96, 96), rows, groups, **{**paper, **options})


def grouped_shapes(
    size: int = 12,
    units: Sequence[int] = (200, 100, 50),
    groups: int = 3,
    recurrent: bool = True,
    **options: Any,  # noqa: ANN401
) -> RTagger:
    """A dense tagger for small binary pictures of shapes, of 1 x size x size.

    Args:
        size: Of a picture.
        units: Of each layer; the last is an LSTM.
        groups: K.
        recurrent: False for the tagger without recurrence.
        **options: Of :class:`RTagger`.

    Example:
        >>> sum(p.numel() for p in grouped_shapes().parameters())
        314003
    """
    *dense, top = [LinearRow(width) for width in units]
    last = LSTMRow(units[-1], normalised=True) if recurrent else top
    found = {"pixels": "bernoulli", "mean": 0.2, "d2e": "all" if recurrent else "none"}
    return RTagger((1, size, size), [*dense, last], groups, **{**found, **options})


def _ladder(
    frame_shape: Sequence[int], rows: Rows, encoder: str, options: dict[str, Any]
) -> RLadder:
    """The ladder of the rows, or one with the rows of table 6 or 7."""
    check_choice("encoder", encoder, ("ladder", "baseline", "static"))
    if encoder == "ladder":
        return RLadder(frame_shape, rows, **options)
    dropped = (ConvLSTMRow,) if encoder == "baseline" else (ConvLSTMRow, LSTMRow)
    kept = [row for row in rows if not isinstance(row, dropped)]
    return RLadder(frame_shape, kept, **{**options, "decoder": False})
