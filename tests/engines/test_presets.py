"""The tables of the paper: shapes of every level, sizes of the networks, and ablations."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pyro_seq.engines import RLadder
from pyro_seq.engines.presets import (
    ABLATIONS,
    grouped_shapes,
    occluded_digits,
    occluded_mnist,
    polyphonic,
    textured_mnist,
)

TABLE_5 = [
    (1, 32, 32), *[(32, 32, 32)] * 4, *[(32, 16, 16)] * 2, *[(64, 16, 16)] * 3, (64, 8, 8),
    (128, 8, 8), (64, 8, 8), (32, 8, 8), (32, 4, 4), (16,),
]  # fmt: skip
TABLE_8 = [(1, 88), (32, 88), (64, 44), (96, 22), (128, 11), (160, 6), (160, 3), (96,)]
TABLE_9 = [
    (4, 96, 96), *[(96, 48, 48)] * 3, *[(192, 24, 24)] * 3, *[(192, 12, 12)] * 3, (11, 6, 6),
    (11, 1, 1), (11,),
]  # fmt: skip


def size(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def levels(ladder: RLadder) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    """Shapes of encoder and decoder at each level, as they are computed."""
    state = ladder.initial_state(torch.Size([1]))
    with torch.no_grad():
        output, _ = ladder.eval().step(state, torch.zeros(1, *ladder.frame_shape))
    return [tuple(e.shape[1:]) for e in output.e], [tuple(d.shape[1:]) for d in output.d]


def test_table_5() -> None:
    ladder = occluded_mnist()
    assert levels(ladder) == (TABLE_5, TABLE_5)
    assert (size(ladder), size(ladder.encoder), size(ladder.decoder)) == (
        3_996_109, 717_824, 3_278_115,
    )  # fmt: skip


def test_tables_6_and_7() -> None:
    for encoder, dropped in (("baseline", (1, 6)), ("static", (1, 6, 15))):
        ladder = occluded_mnist(encoder)
        kept = [shape for level, shape in enumerate(TABLE_5) if level not in dropped]
        assert levels(ladder) == (kept, [])
        assert ladder.head is not None and ladder.head[-1].in_features == (
            16 if encoder == "baseline" else 512
        )


def test_table_8() -> None:
    assert levels(polyphonic()) == (TABLE_8, TABLE_8)
    ladder = polyphonic(counts=True)
    assert ladder.head is not None and ladder.head[-1].out_features == 19
    assert 3.2e6 < size(ladder) < 3.4e6


def test_table_9() -> None:
    tagger = textured_mnist(groups=2)
    assert levels(tagger.ladder) == (TABLE_9, TABLE_9[1:])
    state = tagger.initial_state(torch.Size([1]))
    with torch.no_grad():
        output, _ = tagger.eval().step(state, torch.zeros(1, 1, 96, 96))
    assert output.m.shape == output.z.shape == (1, 2, 1, 96, 96)
    assert output.class_log_probs is not None and output.class_log_probs.shape == (1, 10)
    assert 22e6 < size(tagger) < 25e6


@pytest.mark.parametrize("name", ABLATIONS)
def test_ablations(name: str) -> None:
    """Each row of table 1 is a network that can be trained on its own tasks."""
    options, classification, prediction = ABLATIONS[name]
    ladder = occluded_digits(**options)
    if name == "static":
        output, _ = ladder.iterate(torch.rand(2, 1, 16, 16), 1)
    else:
        output, _ = ladder(torch.rand(2, 3, 1, 16, 16))
    assert output.logits is not None and output.logits.shape[-1] == 10
    assert not prediction or output.prediction is not None
    assert classification or prediction
    recurrent = [row.recurrent for row in ladder.encoder]
    count = {"static": 0, "baseline": 1}.get(name, 3)
    assert sum(recurrent) == count
    assert (output.prediction is None) == (name in ("static", "baseline", "hierarchical_rnn"))


def test_ablations_of_links() -> None:
    paper, bare = occluded_mnist(), occluded_mnist(**ABLATIONS["no_d2e"].options)
    assert all(row.linked for row in paper.encoder if not hasattr(row, "pool"))
    assert not any(row.linked for row in bare.encoder)


def test_small_taggers() -> None:
    tagger, parent = grouped_shapes(), grouped_shapes(recurrent=False)
    assert 3.1e5 < size(tagger) < 3.2e5 and size(parent) < 2.4e5
    assert not parent.initial_state(torch.Size([1])).ladder.cells


def test_bad_names() -> None:
    with pytest.raises(ValueError, match="encoder must be one of ladder, baseline, static"):
        occluded_mnist("rnn")
