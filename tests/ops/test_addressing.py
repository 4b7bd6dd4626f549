"""Addressing against loops over slots, its laws, and its gradients."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pyro_seq.ops import addressing
from pyro_seq.ops.addressing import Sparse

BATCH, HEADS, SLOTS, WORD = (2, 3), 2, 5, 4


@pytest.fixture(autouse=True)
def double() -> None:
    torch.set_default_dtype(torch.float64)


def weights(*shape: int) -> Tensor:
    """Weights that add up to less than 1."""
    return torch.rand(*shape, 1) * torch.randn(*shape, SLOTS).softmax(-1)


def each(*tensors: Tensor) -> list[tuple[list, ...]]:
    """The tensors of each element of the batch, as lists."""
    flat = [t.reshape(-1, *t.shape[len(BATCH) :]).tolist() for t in tensors]
    return list(zip(*flat, strict=True))


def agree(found: Tensor, expected: list) -> None:
    expected = torch.tensor(expected, dtype=found.dtype)
    torch.testing.assert_close(found.reshape(expected.shape), expected)


def cosine(a: list[float], b: list[float]) -> float:
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(x * x for x in a) + 1e-6) / math.sqrt(sum(x * x for x in b) + 1e-6)


def softmax(scores: list[float]) -> list[float]:
    most = max(scores)
    powers = [math.exp(s - most) for s in scores]
    return [p / sum(powers) for p in powers]


def test_content_weights_against_a_loop() -> None:
    queries, rows = torch.randn(*BATCH, HEADS, WORD), torch.randn(*BATCH, SLOTS, WORD)
    strengths = 5 * torch.rand(*BATCH, HEADS)
    expected = [
        [softmax([b * cosine(k, m) for m in ms]) for k, b in zip(ks, bs, strict=True)]
        for ks, ms, bs in each(queries, rows, strengths)
    ]
    agree(addressing.content_weights(queries, rows, strengths), expected)
    without = addressing.content_weights(queries, rows, torch.ones(*BATCH, HEADS))
    torch.testing.assert_close(addressing.content_weights(queries, rows), without)


def test_a_row_of_zeros_has_a_bounded_gradient() -> None:
    """In float32, of which a root without a constant makes NaN, and one outside millions."""
    rows = torch.zeros(1, 3, 32, dtype=torch.float32, requires_grad=True)
    queries = torch.randn(1, 1, 32, dtype=torch.float32, requires_grad=True)
    (addressing.content_weights(queries, rows)[..., 0].sum() * 3).backward()
    for grad in (rows.grad, queries.grad):
        assert grad is not None and grad.isfinite().all() and grad.abs().max() < 1e3
    plain = rows.detach().clone().requires_grad_()
    torch.nn.functional.cosine_similarity(queries, plain, -1)[0, 0].backward()
    assert plain.grad is not None and plain.grad.abs().max() > 1e5


def test_candidate_weights() -> None:
    scores = torch.randn(*BATCH, HEADS, SLOTS)
    null = torch.randn(*BATCH, HEADS)
    candidates = torch.rand(*BATCH, 1, SLOTS) > 0.5
    candidates[0, 0] = False
    found = addressing.candidate_weights(scores, candidates, null)
    for got, s, n, c in each(found, scores, null, candidates):
        for head in range(HEADS):
            allowed = [i for i in range(SLOTS) if c[0][i]]
            wanted = softmax([s[head][i] for i in allowed] + [n[head]])
            assert got[head] == pytest.approx(
                [wanted[allowed.index(i)] if i in allowed else 0 for i in range(SLOTS)]
            )


def test_positive_weights() -> None:
    scores = torch.randn(*BATCH, HEADS, SLOTS)
    found = addressing.positive_weights(scores)
    positive = (1 + scores.exp()).log()
    torch.testing.assert_close(found, positive / positive.sum(-1, keepdim=True), rtol=0, atol=1e-5)
    for extreme in (-1e4, 1e4):
        equal = addressing.positive_weights(torch.full((SLOTS,), extreme, dtype=torch.float32))
        torch.testing.assert_close(equal, torch.full_like(equal, 1 / SLOTS))


@pytest.mark.parametrize("reach", [0, 1, 2, 4])
def test_shift_against_a_loop(reach: int) -> None:
    """Also where the shifts reach round all slots."""
    before = torch.randn(*BATCH, HEADS, SLOTS).softmax(-1)
    shifts = torch.randn(*BATCH, HEADS, 2 * reach + 1).softmax(-1)
    expected = []
    for ws, ss in each(before, shifts):
        heads = [[0.0] * SLOTS for _ in range(HEADS)]
        for r in range(HEADS):
            for i in range(SLOTS):
                for by in range(-reach, reach + 1):
                    heads[r][i] += ws[r][(i - by) % SLOTS] * ss[r][by + reach]
        expected.append(heads)
    found = addressing.circular_shift(before, shifts)
    agree(found, expected)
    torch.testing.assert_close(found.sum(-1), torch.ones(*BATCH, HEADS))


def test_shift_goes_round() -> None:
    one = torch.eye(SLOTS).unsqueeze(1)
    forward, backward = (torch.eye(3)[i].expand(SLOTS, 1, 3) for i in (2, 0))
    after = addressing.circular_shift(one, forward).squeeze(1).argmax(-1)
    assert after.tolist() == [1, 2, 3, 4, 0]
    before = addressing.circular_shift(one, backward).squeeze(1).argmax(-1)
    assert before.tolist() == [4, 0, 1, 2, 3]


def test_an_even_number_of_shifts_is_refused() -> None:
    with pytest.raises(ValueError, match=r"shifts must be .* odd number .* got shape \(1, 2\)"):
        addressing.circular_shift(torch.ones(1, 5), torch.ones(1, 2))


def test_sharpening() -> None:
    before = torch.rand(*BATCH, HEADS, SLOTS).softmax(-1)
    power = 1 + 3 * torch.rand(*BATCH, HEADS)
    wanted = before ** power.unsqueeze(-1)
    torch.testing.assert_close(
        addressing.sharpen(before, power), wanted / wanted.sum(-1, keepdim=True)
    )


def test_sharpening_survives_what_powers_do_not() -> None:
    even = torch.full((1, 25), 1 / 25, dtype=torch.float32, requires_grad=True)
    power = torch.full((1,), 80.0, dtype=torch.float32)
    assert (even**80.0).sum() == 0
    found = addressing.sharpen(even, power)
    torch.testing.assert_close(found.sum(-1), torch.ones(1, dtype=torch.float32))
    found[0, 0].backward()
    assert even.grad is not None and even.grad.isfinite().all()
    one = torch.eye(25, dtype=torch.float32)[:1].requires_grad_()
    sharp = addressing.sharpen(one, power)
    torch.testing.assert_close(sharp, one)
    assert torch.autograd.grad(sharp[0, 0], one)[0].isfinite().all()


def test_erase_and_add_against_a_loop() -> None:
    rows, write = torch.randn(*BATCH, SLOTS, WORD), weights(*BATCH)
    erase, add = torch.rand(*BATCH, WORD), torch.randn(*BATCH, WORD)
    expected = [
        [[m * (1 - w * x) + w * y for m, x, y in zip(row, e, a, strict=True)]
         for row, w in zip(ms, ws, strict=True)]
        for ms, ws, e, a in each(rows, write, erase, add)
    ]  # fmt: skip
    agree(addressing.erase_and_add(rows, write, erase, add), expected)


def test_write_row() -> None:
    rows, row = torch.randn(*BATCH, SLOTS, WORD), torch.randn(*BATCH, WORD)
    slot = torch.randint(SLOTS, BATCH)
    found = addressing.write_row(rows, slot, row)
    for got, before, new, at in each(found, rows, row, slot):
        before[at] = new
        assert got == before


def test_recent_usage_and_least_used() -> None:
    usage, reads, writes = torch.rand(*BATCH, SLOTS), weights(*BATCH, 2), weights(*BATCH, 1)
    found = addressing.recent_usage(usage, reads, writes)
    expected = [
        [0.95 * u[n] + r[0][n] + r[1][n] + w[0][n] for n in range(SLOTS)]
        for u, r, w in each(usage, reads, writes)
    ]
    agree(found, expected)
    least = addressing.least_used(found, 3)
    for got, u in each(least, found):
        order = sorted(range(SLOTS), key=lambda n: u[n])
        assert got == [[float(n == at) for n in range(SLOTS)] for at in order[:3]]


def test_of_slots_used_equally_the_first_are_taken() -> None:
    least = addressing.least_used(torch.tensor([[1.0, 0, 0, 1, 0], [0] * 5]), 3)
    assert least.argmax(-1).tolist() == [[1, 2, 4], [0, 1, 2]]
    torch.testing.assert_close(least.sum(-1), torch.ones(2, 3))


def usage_of(u: list, w: list, reads: list, free: list) -> list:
    found = []
    for n in range(SLOTS):
        kept = 1.0
        for r, f in zip(reads, free, strict=True):
            kept *= 1 - f * r[n]
        found.append((u[n] + w[n] - u[n] * w[n]) * kept)
    return found


def test_usage_against_a_loop() -> None:
    usage, write, reads = torch.rand(*BATCH, SLOTS), weights(*BATCH), weights(*BATCH, HEADS)
    free = torch.rand(*BATCH, HEADS)
    found = addressing.retained_usage(usage, write, reads, free)
    expected = [usage_of(*parts) for parts in each(usage, write, reads, free)]
    torch.testing.assert_close(
        found.usage, torch.tensor(expected).reshape(*BATCH, SLOTS), rtol=0, atol=1e-12
    )
    assert (found.usage >= 0).all() and (found.usage <= 1).all()


def test_what_is_freed_wholly_has_a_gradient() -> None:
    reads = torch.eye(SLOTS, dtype=torch.float32)[None, :1].requires_grad_()
    free = torch.ones(1, 1, dtype=torch.float32, requires_grad=True)
    ones = torch.ones(1, SLOTS, dtype=torch.float32)
    found = addressing.retained_usage(ones, 0 * ones, reads, free)
    assert found.usage[0, 0] < 1e-5 and (found.usage[0, 1:] == 1).all()
    grads = torch.autograd.grad(found.usage.sum(), [reads, free])
    assert all(g.isfinite().all() for g in grads) and grads[0][0, 0, 0] < -0.9


def allocation_of(usage: list[float]) -> list[float]:
    found, product = [0.0] * len(usage), 1.0
    for n in sorted(range(len(usage)), key=lambda n: usage[n]):
        found[n] = (1 - usage[n]) * product
        product *= usage[n]
    return found


def test_allocation_against_a_loop() -> None:
    usage = torch.rand(*BATCH, SLOTS).round(decimals=1)
    found = addressing.allocation(usage)
    agree(found, [allocation_of(u) for (u,) in each(usage)])
    assert (found >= 0).all() and (found.sum(-1) <= 1).all()


@pytest.mark.parametrize(
    ("usage", "expected"),
    [([0.0] * 4, [1, 0, 0, 0]), ([1, 1, 0, 1], [0, 0, 1, 0]), ([1.0] * 4, [0] * 4)],
)
def test_allocation_of_extremes(usage: list[float], expected: list[float]) -> None:
    """Also of a new memory, whose first slot is allocated, and of a full one."""
    u = torch.tensor([usage], dtype=torch.float32, requires_grad=True)
    found = addressing.allocation(u)
    wanted = torch.tensor([expected], dtype=torch.float32)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)
    assert torch.autograd.grad(found[0, 0], u)[0].isfinite().all()


def test_links_against_a_loop() -> None:
    """Over many steps, with the laws of links and precedence at each."""
    count = math.prod(BATCH)
    links, precedence = torch.zeros(*BATCH, SLOTS, SLOTS), torch.zeros(*BATCH, SLOTS)
    slow = [[[0.0] * SLOTS for _ in range(SLOTS)] for _ in range(count)]
    last = [[0.0] * SLOTS for _ in range(count)]
    for _ in range(40):
        write = weights(*BATCH)
        links, precedence = addressing.temporal_links(links, precedence, write)
        for b, (w,) in enumerate(each(write)):
            slow[b] = [
                [(1 - w[i] - w[j]) * slow[b][i][j] + w[i] * last[b][j] if i != j else 0.0
                 for j in range(SLOTS)]
                for i in range(SLOTS)
            ]  # fmt: skip
            last[b] = [(1 - sum(w)) * p + x for p, x in zip(last[b], w, strict=True)]
        agree(links, slow)
        agree(precedence, last)
        for total in (links.sum(-1), links.sum(-2), precedence.sum(-1)):
            assert (total <= 1 + 1e-12).all()
        assert (links >= 0).all() and (links.diagonal(dim1=-2, dim2=-1) == 0).all()


def test_links_of_hard_writes() -> None:
    links, precedence = torch.zeros(SLOTS, SLOTS), torch.zeros(SLOTS)
    for slot in (2, 0, 4):
        links, precedence = addressing.temporal_links(links, precedence, torch.eye(SLOTS)[slot])
    assert links.nonzero().tolist() == [[0, 2], [4, 0]]
    assert torch.equal(precedence, torch.eye(SLOTS)[4])
    backward, forward = addressing.follow_links(links, torch.eye(SLOTS)[[2, 0]])
    assert forward.argmax(-1).tolist() == [0, 4]
    assert backward[0].sum() == 0 and backward[1].argmax() == 2


def test_follow_links_against_a_loop() -> None:
    links, at = torch.rand(*BATCH, SLOTS, SLOTS), weights(*BATCH, HEADS)
    backward, forward = addressing.follow_links(links, at)
    slots = range(SLOTS)
    pairs = each(links, at)
    agree(forward, [[[sum(m[i][j] * w[j] for j in slots) for i in slots] for w in ws]
                    for m, ws in pairs])  # fmt: skip
    agree(backward, [[[sum(m[i][j] * w[i] for i in slots) for j in slots] for w in ws]
                     for m, ws in pairs])  # fmt: skip


def test_gather_rows() -> None:
    rows, index = torch.randn(*BATCH, SLOTS, WORD), torch.randint(SLOTS, (*BATCH, HEADS, 3))
    found = addressing.gather_rows(rows, index)
    for got, m, heads in each(found, rows, index):
        assert got == [[m[i] for i in head] for head in heads]


def test_largest_adds_what_belongs_together() -> None:
    slots = torch.randint(SLOTS, (*BATCH, HEADS, 9))
    sparse = Sparse(slots, torch.rand(*BATCH, HEADS, 9))
    found = addressing.largest(sparse, 3)
    for got, value, at, weight in each(*found, *sparse):
        for r in range(HEADS):
            total = [0.0] * SLOTS
            for slot, w in zip(at[r], weight[r], strict=True):
                total[slot] += w
            best = sorted(range(SLOTS), key=lambda n: -total[n])[:3]
            best = [n for n in best if total[n]]
            assert got[r][: len(best)] == best
            wanted = [total[n] for n in best] + [0.0] * (3 - len(best))
            assert value[r] == pytest.approx(wanted)


@pytest.mark.parametrize("count", [1, 2, SLOTS])
def test_top_candidates_against_all(count: int) -> None:
    queries = torch.randn(*BATCH, HEADS, WORD)
    keys = torch.randn(*BATCH, SLOTS, WORD, requires_grad=True)
    candidates, null = torch.rand(*BATCH, SLOTS) > 0.3, torch.randn(*BATCH, HEADS)
    candidates[0, 0], candidates[0, 1] = False, True
    sparse = addressing.top_candidates(queries, keys, candidates, null, count)
    found = torch.zeros(*BATCH, HEADS, SLOTS).scatter_add(-1, *sparse)
    scores = queries @ keys.mT
    among = candidates.unsqueeze(-2).expand_as(scores)
    cut = torch.where(among, scores, -torch.inf).topk(count, -1).values[..., -1:]
    dense = addressing.candidate_weights(scores, among & (scores >= cut), null)
    torch.testing.assert_close(found, dense)
    head = found[..., 0, :].square().sum()
    (gradient,) = torch.autograd.grad(head, keys, retain_graph=True)
    (wanted,) = torch.autograd.grad(dense[..., 0, :].square().sum(), keys)
    torch.testing.assert_close(gradient, wanted)
    unread = torch.ones(*BATCH, SLOTS, dtype=torch.bool).scatter(
        -1, sparse.slots[..., 0, :], False
    )
    assert (gradient[unread] == 0).all()


SMALL = (2, 4)
CASES: dict[str, tuple[Callable[..., Tensor], tuple[Callable[[], Tensor], ...]]] = {
    "oneplus": (addressing.oneplus, (lambda: torch.randn(3),)),
    "unit": (addressing.unit, (lambda: torch.randn(2, 3),)),
    "content": (
        addressing.content_weights,
        (lambda: torch.randn(2, 2, 3), lambda: torch.randn(2, 4, 3), lambda: torch.rand(2, 2)),
    ),
    "likeness": (
        lambda *parts: addressing.likeness(addressing.unit(parts[0], parts[1]), parts[2]),
        (lambda: torch.randn(2, 2, 3), lambda: torch.rand(2, 2), lambda: torch.randn(2, 4, 3)),
    ),
    "candidates": (
        lambda s, n: addressing.candidate_weights(s, torch.tensor([True, False, True, True]), n),
        (lambda: torch.randn(2, 4), lambda: torch.randn(2)),
    ),
    "top candidates": (
        lambda q, k, n: (
            addressing.top_candidates(q, k, torch.ones(4, dtype=torch.bool), n, 2).weights
        ),
        (lambda: torch.randn(2, 3), lambda: torch.randn(4, 3), lambda: torch.randn(2)),
    ),
    "positive": (addressing.positive_weights, (lambda: torch.randn(2, 4),)),
    "shift": (
        addressing.circular_shift,
        (lambda: torch.rand(2, 4), lambda: torch.rand(2, 3)),
    ),
    "sharpen": (addressing.sharpen, (lambda: torch.rand(2, 4), lambda: 1 + torch.rand(2))),
    "erase and add": (
        addressing.erase_and_add,
        (
            lambda: torch.randn(2, 4, 3),
            lambda: torch.rand(*SMALL),
            lambda: torch.rand(2, 3),
            lambda: torch.randn(2, 3),
        ),
    ),
    "write row": (
        lambda m, r: addressing.write_row(m, torch.tensor([2, 0]), r),
        (lambda: torch.randn(2, 4, 3), lambda: torch.randn(2, 3)),
    ),
    "recent usage": (
        addressing.recent_usage,
        (lambda: torch.rand(4), lambda: torch.rand(2, 4), lambda: torch.rand(1, 4)),
    ),
    "retained usage": (
        lambda *parts: torch.cat(addressing.retained_usage(*parts)),
        (
            lambda: torch.rand(*SMALL),
            lambda: torch.rand(*SMALL),
            lambda: torch.rand(2, 3, 4),
            lambda: torch.rand(2, 3),
        ),
    ),
    "allocation": (addressing.allocation, (lambda: 0.1 + 0.8 * torch.rand(*SMALL),)),
    "links": (
        lambda *parts: torch.cat([p.flatten() for p in addressing.temporal_links(*parts)]),
        (lambda: torch.rand(4, 4), lambda: torch.rand(4), lambda: torch.rand(4)),
    ),
    "follow": (
        lambda *parts: torch.cat(addressing.follow_links(*parts)),
        (lambda: torch.rand(4, 4), lambda: torch.rand(2, 4)),
    ),
    "gather": (
        lambda m: addressing.gather_rows(m, torch.tensor([[0, 2], [2, 2]])),
        (lambda: torch.randn(4, 3),),
    ),
    "largest": (
        lambda w: addressing.largest(Sparse(torch.tensor([[0, 2, 0]]), w), 2).weights,
        (lambda: torch.rand(1, 3),),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_gradients(name: str) -> None:
    function, makers = CASES[name]
    inputs = tuple(make().requires_grad_() for make in makers)
    assert torch.autograd.gradcheck(function, inputs)


def test_every_function_is_checked() -> None:
    """What gives no gradient and what is a type apart."""
    apart = {"Links", "Sparse", "Usage", "least_used"}
    assert len(CASES) == len(set(addressing.__all__) - apart)
