"""Recurrent ladders: the order of the equations, links, options, and the tables of the paper."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Size, Tensor

from pyro_seq.engines import (
    ConvLSTMRow,
    ConvRow,
    LinearRow,
    LSTMRow,
    PoolRow,
    RLadder,
    SoftMaxRow,
)
from pyro_seq.nn import estimate_statistics

ROWS = [
    ConvLSTMRow(3),
    ConvRow(4),
    PoolRow(2),
    ConvLSTMRow(4),
    LSTMRow(5),
    SoftMaxRow(3),
]


def drawn(**options: Any) -> RLadder:  # noqa: ANN401
    """A ladder with no parameter at a special value, in evaluation mode."""
    ladder = RLadder((1, 6, 6), ROWS, **options)
    with torch.no_grad():
        for parameter in ladder.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return ladder.eval()


def by_hand(ladder: RLadder, x: Tensor) -> list[tuple[list[Tensor], list[Tensor]]]:
    """e and d of each step: eq. 1 and 2 upwards, then eq. 3 downwards."""
    batch, levels = len(x), len(ladder.shapes)
    d = [torch.zeros(batch, *shape) for shape in ladder.shapes]
    states = [
        row.initial_state(Size([batch])) if row.recurrent else None for row in ladder.encoder
    ]
    found = []
    for t in range(x.shape[1]):
        count = torch.full((batch,), t)
        e = [x[:, t]]
        for level in range(1, levels):
            row = ladder.encoder[level - 1]
            link = d[level] if row.linked else None
            new, states[level - 1] = row(e[level - 1], link, states[level - 1], count)
            e.append(new)
        d = [*e]
        for level in range(levels - 2, -1, -1):
            d[level] = ladder.decoder[level](d[level + 1], e[level], count)
        found.append((e, d))
    return found


@pytest.mark.parametrize("d2e", ["all", "recurrent", "none"])
@pytest.mark.parametrize("start", ["zero", "random"])
def test_the_encoder_runs_first_and_the_decoder_mirrors_it(d2e: str, start: str) -> None:
    ladder, x = drawn(d2e=d2e, d2e_init=start), torch.rand(2, 3, 1, 6, 6)
    outputs, state = ladder(x)
    for t, (e, d) in enumerate(by_hand(ladder, x)):
        for found, expected in zip((*outputs.e, *outputs.d), (*e, *d), strict=True):
            torch.testing.assert_close(found[:, t], expected)
        torch.testing.assert_close(outputs.prediction[:, t], d[0])
        torch.testing.assert_close(outputs.logits[:, t], ladder.head(e[-1]))
    assert state.iteration.tolist() == [3, 3]
    linked = {"all": [3, 4, 4, 5], "recurrent": [3, 4], "none": []}[d2e]
    assert [part.shape[1] for part in state.d] == linked


def influence(ladder: RLadder) -> list[bool]:
    """Whether the encoder depends on the decoder's weights, at the first step and the second."""
    outputs, _ = ladder(torch.rand(2, 2, 1, 6, 6))
    found = []
    for t in range(2):
        said = torch.stack([(e[:, t] * torch.randn_like(e[:, t])).sum() for e in outputs.e[1:]])
        grads = torch.autograd.grad(
            said.sum(), [*ladder.decoder.parameters()], retain_graph=True, allow_unused=True
        )
        found.append(any(g is not None and bool((g != 0).any()) for g in grads))
    return found


@pytest.mark.parametrize("d2e", ["all", "recurrent", "none"])
def test_the_decoder_is_felt_one_step_later_through_links_alone(d2e: str) -> None:
    assert influence(drawn(d2e=d2e)) == [False, d2e != "none"]


def test_links_that_start_at_zero_start_as_without_links() -> None:
    linked, bare = (RLadder((1, 6, 6), ROWS, d2e=d2e).eval() for d2e in ("all", "none"))
    weights = {k: v for k, v in linked.state_dict().items() if "feedback" not in k}
    lstm = "encoder.4.cell.weight_ih"
    weights[lstm] = weights[lstm][:, : bare.state_dict()[lstm].shape[1]]
    bare.load_state_dict(weights)
    x = torch.rand(2, 4, 1, 6, 6)
    torch.testing.assert_close(linked(x)[0], bare(x)[0])
    assert not torch.allclose(drawn(d2e="all")(x)[0].e[-1], bare(x)[0].e[-1])


def test_an_encoder_alone_has_no_decoder_and_no_links() -> None:
    ladder = drawn(decoder=False, d2e="all")
    outputs, state = ladder(torch.rand(2, 3, 1, 6, 6))
    assert outputs.d == () and outputs.prediction is None and state.d == ()
    assert not any(
        "decoder" in name or "feedback" in name for name, _ in ladder.named_parameters()
    )


def test_the_decoder_of_one_row_without_a_cell_is_its_output() -> None:
    ladder = RLadder((7,), [LinearRow(5, cell="none")], d2e="all")
    output, state = ladder(torch.randn(2, 3, 7))
    assert torch.equal(output.d[0], output.e[1]) and output.prediction is None
    assert torch.equal(state.d[0], output.e[1][:, -1])


def test_a_ladder_can_end_above_the_frame_and_without_classes() -> None:
    ladder = RLadder((7,), [LinearRow(5, cell="none"), LSTMRow(3)])
    outputs, _ = ladder(torch.rand(2, 4, 7))
    assert [d.shape for d in outputs.d] == [(2, 4, 5), (2, 4, 3)]
    assert outputs.prediction is None and outputs.logits is None


@pytest.mark.parametrize("norm", ["layer", "batch", "mixed"])
def test_training_reaches_every_parameter_and_statistics_can_be_estimated(norm: str) -> None:
    ladder, x = RLadder((1, 6, 6), ROWS, norm=norm, d2e="all"), torch.rand(8, 3, 1, 6, 6)
    optimizer = torch.optim.Adam(ladder.parameters(), 1e-3)
    before = {name: p.clone() for name, p in ladder.named_parameters()}
    for _ in range(3):  # what starts at zero hides its weights from the first gradient
        outputs, _ = ladder(x)
        (outputs.logits.square().mean() + (outputs.prediction - x).square().mean()).backward()
        optimizer.step()
    assert all((p != before[name]).any() for name, p in ladder.named_parameters())
    trained = ladder(x)[0].prediction
    with estimate_statistics(ladder):
        ladder(x)
    evaluated = ladder.eval()(x)[0].prediction
    torch.testing.assert_close(evaluated, trained, rtol=0, atol=0.2)
    if norm != "layer":
        with pytest.raises(ValueError, match="needs a batch of 2 or more; got a batch of 1"):
            ladder.train()(x[:1])


def test_a_masked_batch_has_statistics_of_each_iteration() -> None:
    ladder, x = drawn(norm="batch"), torch.rand(4, 3, 1, 6, 6)
    mask = torch.ones(4, 3, dtype=torch.bool)
    mask[0, 0] = False
    _, state = ladder.train()(x, mask)
    assert state.iteration.tolist() == [2, 3, 3, 3]
    whole, _ = ladder.eval()(x, mask)
    late, _ = ladder(x[:1, 1:])
    torch.testing.assert_close(whole.prediction[:1, 1:], late.prediction)


def test_two_ladders_train_independently() -> None:
    one, other = drawn(), drawn()
    kept = other(torch.ones(1, 2, 1, 6, 6))[0].prediction
    one(torch.ones(1, 2, 1, 6, 6))[0].prediction.sum().backward()
    torch.optim.SGD(one.parameters(), 0.1).step()
    assert (other(torch.ones(1, 2, 1, 6, 6))[0].prediction == kept).all()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([LinearRow(3), ConvRow(4)], r"row 2, ConvRow.* needs maps below, not units\n.*so far:\n"
         r"  0. frame: \(1, 6, 6\)\n  1. LinearRow.*: \(3,\)$"),
        ([PoolRow(2), PoolRow(4)], r"row 2, PoolRow.*a pool of 4 does not fit maps of \(3, 3\)"),
        ([ConvRow(3, 4)], "row 1, .*a kernel at stride 1 odd; got kernel=4"),
        ([ConvRow(0)], "channels must be at least 1; got 0"),
        ([ConvRow(3, cell="g4")], "cell must be one of g1, .*; got 'g4'"),
        ([ConvRow(3, activation="elu")], "activation must be one of relu, linear; got 'elu'"),
        ([PoolRow(2, "sum")], "kind must be one of max, mean; got 'sum'"),
        ([ConvRow(3), ConvRow(3, cell="none")], "cell may be 'none' in the first row alone"),
        ([ConvRow(3), LSTMRow(4, cell="conv_g3")], r"row 2, LSTMRow.*must lead from \(3, 6, 6\)"),
        ([ConvRow(3, cell_kernel=4)], "row 1, .*a kernel at stride 1 odd; got kernel=4"),
        ([SoftMaxRow(3), ConvRow(3)], "expected a row of .*; a SoftMaxRow comes last"),
        ([SoftMaxRow(3)], "rows must have one row or more below the head"),
        ([LinearRow(4), SoftMaxRow(1)], "classes must be at least 2; got 1"),
        ([LinearRow(4), SoftMaxRow(3, project=False)], "classes must be the 4 units below"),
    ],
)  # fmt: skip
def test_rows_that_do_not_fit(rows: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"(?s){message}"):
        RLadder((1, 6, 6), rows)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"d2e": "some"}, "d2e must be one of all, recurrent, none; got 'some'"),
        ({"d2e_init": "one"}, "d2e_init must be one of zero, random; got 'one'"),
        ({"norm": "group"}, "norm must be one of layer, batch, mixed; got 'group'"),
        ({"norm": "batch", "iterations": 0}, "iterations must be at least 1; got 0"),
        ({"frame_shape": (1, 0)}, r"frame_shape must be .* all positive; got \(1, 0\)"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RLadder(**{"frame_shape": (1, 6, 6), "rows": ROWS, **options})


def test_a_state_of_another_batch_is_refused() -> None:
    ladder = RLadder((1, 6, 6), ROWS)
    x = torch.rand(3, 2, 1, 6, 6)
    _, state = ladder(x[:1])
    with pytest.raises(ValueError, match=r"state must .* batch of x, \(3,\); got .* \(1, .*\)"):
        ladder(x, state=state)
    with pytest.raises(TypeError, match="state must be the named tuple .*; got int"):
        ladder.iterate(x[:, 0], 2, 1)
    with pytest.raises(TypeError, match="without its outputs; got tuple"):
        ladder(x, state=ladder(x))


def test_arguments_of_another_type_are_named() -> None:
    ladder = RLadder((1, 6, 6), ROWS)
    with pytest.raises(TypeError, match="mask must be a bool tensor, or None; got list"):
        ladder(torch.rand(1, 2, 1, 6, 6), [[True, False]])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="rows must be a sequence of rows; got ConvRow"):
        RLadder((1, 6, 6), ConvRow(4))  # type: ignore[arg-type]
    for row, name in (
        (ConvRow("4"), "channels"),  # type: ignore[arg-type]
        (ConvLSTMRow(4, 3.0), "kernel"),  # type: ignore[arg-type]
        (PoolRow("max"), "size"),  # type: ignore[arg-type]
        (LSTMRow(2.5), "units"),  # type: ignore[arg-type]
        (ConvRow(4, cell_kernel=3.0), "cell_kernel"),  # type: ignore[arg-type]
    ):
        with pytest.raises(TypeError, match=f"(?s)row 1, .* {name} must be an int; got .*Shapes"):
            RLadder((1, 6, 6), [row])


def test_cells_that_read_the_level_above_alone() -> None:
    """The prediction is a function of the level at the top; dense rows get the dense cell."""
    rows = [ConvLSTMRow(3, cell="top"), PoolRow(2, cell="top"), LinearRow(4, cell="top")]
    ladder = RLadder((1, 6, 6), rows, d2e="all")
    assert [type(cell).__name__ for cell in ladder.decoder] == ["ConvG1", "ConvG1", "G1"]
    state = ladder.initial_state(Size([2]))
    found, _ = ladder.step(state, torch.rand(2, 1, 6, 6))
    y, nothing = found.e[-1], torch.full([1], torch.nan)
    for cell, shape in zip(reversed(ladder.decoder), reversed(ladder.shapes[:-1]), strict=True):
        y = cell(y, nothing.expand(2, *shape), torch.zeros(2, dtype=torch.long))
    torch.testing.assert_close(found.prediction, y)


@pytest.mark.parametrize("cell", ["conv_g1", "conv_g2", "conv_g3", "top"])
def test_ladders_run_under_autocast(cell: str) -> None:
    ladder = RLadder((1, 6, 6), [ConvRow(3), ConvRow(3, cell=cell), LSTMRow(4)])
    x = torch.rand(2, 3, 1, 6, 6)
    with torch.autocast("cpu", torch.bfloat16):
        outputs, _ = ladder(x)
        outputs.prediction.float().square().sum().backward()
    wanted, _ = ladder(x)
    torch.testing.assert_close(outputs.prediction.float(), wanted.prediction, atol=0.1, rtol=0.1)
