"""The equations of each memory once more, slowly: one sequence, plain numbers, loops.

A reference is given the memory's parameters and the latents of one sequence, and returns the
features and read weights of each step. No code of the library is used but the parameters.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

Vector = list[float]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def softmax(scores: Vector) -> Vector:
    powers = [math.exp(s - max(scores)) for s in scores]
    return [p / sum(powers) for p in powers]


def dot(a: Vector, b: Vector) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def unit(a: Vector) -> Vector:
    return [x / math.sqrt(dot(a, a) + 1e-6) for x in a]


def content(query: Vector, rows: list[Vector], strength: float) -> Vector:
    return softmax([strength * dot(unit(query), unit(row)) for row in rows])


def read(weights: Vector, rows: list[Vector]) -> Vector:
    return [
        sum(w * row[i] for w, row in zip(weights, rows, strict=True)) for i in range(len(rows[0]))
    ]


def dense(layer: nn.Module, x: Vector) -> Vector:
    bias = getattr(layer, "bias", None)
    out = [dot(row, x) for row in layer.weight.tolist()]
    return out if bias is None else [o + b for o, b in zip(out, bias.tolist(), strict=True)]


class Controller:
    """An LSTM cell."""

    def __init__(self, cell: nn.LSTMCell) -> None:
        self.w, self.v = cell.weight_ih.tolist(), cell.weight_hh.tolist()
        self.b = (cell.bias_ih + cell.bias_hh).tolist()
        self.h = [0.0] * cell.hidden_size
        self.c = [0.0] * cell.hidden_size

    def __call__(self, x: Vector) -> Vector:
        n = len(self.h)
        a = [
            dot(w, x) + dot(v, self.h) + b for w, v, b in zip(self.w, self.v, self.b, strict=True)
        ]
        gates = [(sigmoid(a[j]), sigmoid(a[n + j]), math.tanh(a[2 * n + j]), sigmoid(a[3 * n + j]))
                 for j in range(n)]  # fmt: skip
        self.c = [f * c + i * g for (i, f, g, _), c in zip(gates, self.c, strict=True)]
        self.h = [o * math.tanh(c) for (_, _, _, o), c in zip(gates, self.c, strict=True)]
        return self.h


class Parts:
    """What an interface says for one h, by name, as nested lists."""

    def __init__(self, interface: Any, h: Vector) -> None:  # noqa: ANN401
        out, at = dense(interface.layer, h), 0
        for name, shape in interface.parts.items():
            size = math.prod(shape)
            part = torch.tensor(out[at : at + size], dtype=torch.float64)
            setattr(self, name, part.reshape(shape).tolist())
            at += size

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        raise AttributeError(name)


def row_of(memory: Any, z: Vector, parameters: Vector, before: Vector) -> Vector:  # noqa: ANN401
    write = memory.writer.write
    if write == "linear":
        return parameters
    if write == "latent_add":
        return [a + b for a, b in zip(z, parameters, strict=True)]
    tag = [math.tanh(p) for p in parameters]
    if write == "tanh":
        return tag
    if memory.writer.previous:
        pair = dense(memory.writer.pair, before)
        tag = [a + b for a, b in zip(pair, tag, strict=True)]
    return z + tag


def query_of(memory: Any, query: Vector, z: Vector) -> Vector:  # noqa: ANN401
    if not memory.writer.tied:
        return query
    if memory.writer.previous:
        cue = [0.0] * len(z) + dense(memory.writer.pair, z)
    else:
        cue = z + [0.0] * (memory.word - len(z))
    return [a + b for a, b in zip(query, cue, strict=True)]


def erased(rows: list[Vector], w: Vector, erase: Vector, add: Vector) -> list[Vector]:
    return [[m * (1 - x * e) + x * a for m, e, a in zip(row, erase, add, strict=True)]
            for row, x in zip(rows, w, strict=True)]  # fmt: skip


def flat(parts: list[Vector]) -> Vector:
    return [x for part in parts for x in part]


def move(parts: Parts, head: int, query: Vector, before: Vector, rows: list[Vector]) -> Vector:
    """One head of an NTM."""
    n = len(rows)
    found = content(query, rows, softplus(parts.strengths[head]))
    gate, shifts = sigmoid(parts.gates[head]), softmax(parts.shifts[head])
    gated = [gate * a + (1 - gate) * b for a, b in zip(found, before, strict=True)]
    moved = [sum(shifts[by + 1] * gated[(i - by) % n] for by in (-1, 0, 1)) for i in range(n)]
    powers = [x ** (1 + softplus(parts.powers[head])) for x in moved]
    return [p / sum(powers) for p in powers]


def ntm(memory: Any, latents: list[Vector]) -> list[tuple[Vector, list[Vector]]]:  # noqa: ANN401
    control, heads = Controller(memory.cell), range(memory.heads)
    rows = [[1e-6] * memory.word for _ in range(memory.slots)]
    weights = [softmax(row) for row in memory.first_weights.tolist()]
    reads = [math.tanh(x) for x in memory.first_reads.tolist()]
    before, steps = [0.0] * memory.latent, []
    for z in latents:
        h = control(z + reads)
        parts = Parts(memory.interface, h)
        write = move(parts, memory.heads, parts.write_query[0], weights[-1], rows)
        row = row_of(memory, z, parts.row[0], before)
        after = erased(rows, write, [sigmoid(e) for e in parts.erase], row)
        seen = rows if memory.read_before_write else after
        queries = [query_of(memory, q, z) for q in parts.queries]
        weights = [move(parts, r, queries[r], weights[r], seen) for r in heads]
        reads = flat([read(w, seen) for w in weights])
        steps.append((reads + h, weights))
        weights, rows, before = [*weights, write], after, z
    return steps


def lru(memory: Any, latents: list[Vector]) -> list[tuple[Vector, list[Vector]]]:  # noqa: ANN401
    control, slots = Controller(memory.cell), range(memory.slots)
    rows = [[0.0] * memory.word for _ in slots]
    weights = [[0.0] * memory.slots for _ in range(memory.heads)]
    usage, reads = [0.0] * memory.slots, [0.0] * memory.reads
    before, steps = [0.0] * memory.latent, []
    for z in latents:
        h = control(z + reads)
        parts = Parts(memory.interface, h)
        queries = [query_of(memory, q, z) for q in parts.queries]
        free = sorted(slots, key=lambda n: usage[n])[: memory.write_heads]
        writes = []
        for r, slot in enumerate(free):
            gate = sigmoid(parts.gates[r][0])
            writes.append([gate * weights[r][n] + (1 - gate) * (n == slot) for n in slots])
        rows = [[0.0] * memory.word if n in free else rows[n] for n in slots]
        for r, write in enumerate(writes):
            add = queries[r] if memory.writes_key else row_of(memory, z, parts.row[r], before)
            rows = [[m + write[n] * a for m, a in zip(rows[n], add, strict=True)] for n in slots]
        strengths = getattr(parts, "strengths", None)
        weights = [
            content(q, rows, 1 if strengths is None else 1 + softplus(strengths[r]))
            for r, q in enumerate(queries)
        ]
        usage = [0.95 * usage[n] + sum(w[n] for w in weights + writes) for n in slots]
        reads = flat([read(w, rows) for w in weights])
        steps.append((reads + h, weights))
        before = z
    return steps


def allocation(usage: Vector) -> Vector:
    found, product = [0.0] * len(usage), 1.0
    for n in sorted(range(len(usage)), key=lambda n: usage[n]):
        found[n] = (1 - usage[n]) * product
        product *= usage[n]
    return found


def dnc(memory: Any, latents: list[Vector]) -> list[tuple[Vector, list[Vector]]]:  # noqa: ANN401
    control, slots = Controller(memory.cell), range(memory.slots)
    rows = [[0.0] * memory.word for _ in slots]
    usage, last, write = ([0.0] * memory.slots for _ in range(3))
    links = [[0.0] * memory.slots for _ in slots]
    weights = [[0.0] * memory.slots for _ in range(memory.heads)]
    reads, before, steps = [0.0] * memory.reads, [0.0] * memory.latent, []
    for z in latents:
        h = control(z + reads)
        parts = Parts(memory.interface, h)
        free = [sigmoid(f) for f in parts.free]
        kept = [math.prod(1 - f * w[n] for f, w in zip(free, weights, strict=True)) for n in slots]
        usage = [(usage[n] + write[n] - usage[n] * write[n]) * kept[n] for n in slots]
        found = content(parts.write_query[0], rows, 1 + softplus(parts.strengths[-1]))
        allocating, writing = (sigmoid(g) for g in parts.gates)
        new = allocation(usage)
        write = [writing * (allocating * new[n] + (1 - allocating) * found[n]) for n in slots]
        if memory.erase_freed:
            rows = [[kept[n] * m for m in rows[n]] for n in slots]
        row = row_of(memory, z, parts.row[0], before)
        rows = erased(rows, write, [sigmoid(e) for e in parts.erase], row)
        links = [
            [(1 - write[i] - write[j]) * links[i][j] + write[i] * last[j] if i != j else 0.0
             for j in slots]
            for i in slots
        ]  # fmt: skip
        last = [(1 - sum(write)) * last[n] + write[n] for n in slots]
        after = []
        for r, w in enumerate(weights):
            backward = [sum(links[i][n] * w[i] for i in slots) for n in slots]
            forward = [sum(links[n][j] * w[j] for j in slots) for n in slots]
            query = query_of(memory, parts.queries[r], z)
            like = content(query, rows, 1 + softplus(parts.strengths[r]))
            modes = softmax(parts.modes[r])
            after.append([modes[0] * backward[n] + modes[1] * like[n] + modes[2] * forward[n]
                          for n in slots])  # fmt: skip
        weights = after
        reads = flat([read(w, rows) for w in weights])
        steps.append((reads + h if memory.context_includes_state else reads, weights))
        before = z
    return steps


def attend(scores: Vector) -> Vector:
    positive = [softplus(s) + 1e-6 for s in scores]
    return [p / sum(positive) for p in positive]


def places(memory: Any, hidden: Vector) -> list[Vector]:  # noqa: ANN401
    scores = dense(memory.places, [math.tanh(x) for x in hidden])
    return [scores[r * memory.slots : (r + 1) * memory.slots] for r in range(memory.heads)]


def introspection(memory: Any, latents: list[Vector]) -> list[tuple[Vector, list[Vector]]]:  # noqa: ANN401
    control, past, steps = Controller(memory.cell), [], []
    for z in latents:
        h = control(z)
        past = [*past, z]
        rows = [[0.0] * memory.latent for _ in range(memory.slots)]
        for t, latent in enumerate(past):
            lag = len(past) - 1 - t
            if memory.order == "append":
                rows[t % memory.slots] = latent
            elif lag < memory.slots:
                rows[lag] = latent
        parts = Parts(memory.interface, h)
        scores = places(memory, parts.attention)
        weights = [attend(s) if memory.attention == "softplus" else softmax(s) for s in scores]
        gates = parts.gates if memory.gates is None else memory.gates.tolist()
        reads = flat([
            [x * sigmoid(g) for x, g in zip(read(w, rows), gate, strict=True)]
            for w, gate in zip(weights, gates, strict=True)
        ])  # fmt: skip
        steps.append((reads + h if memory.context_includes_state else reads, weights))
    return steps


def icm(
    memory: Any,  # noqa: ANN401
    latents: list[Vector],
    controls: list[Vector] | None = None,
) -> list[tuple[Vector, list[Vector]]]:
    """By times instead of slots: the weight of each past latent, which may still be stored."""
    control, slots = Controller(memory.cell), memory.slots
    past: list[tuple[Vector, Vector]] = []
    before: list[dict[int, float]] = [{} for _ in range(memory.heads)]
    null, steps = unit(memory.null.tolist()), []
    phases = [[0.0] * memory.phases]  # before each step, and so those of the latent stored
    for now, z in enumerate(latents):
        u = controls[now] if controls else []
        turns = dense(memory.turn, u) if memory.phases else []
        phases.append([a + b for a, b in zip(phases[-1], turns, strict=True)])
        key = dense(memory.content, z)
        around = dense(memory.surroundings, control.h)
        past.append((z, unit([a + b for a, b in zip(key, around, strict=True)])))
        h = control(z + u)
        parts = Parts(memory.interface, h)
        stored = range(max(0, now + 1 - slots), now + 1)
        scores = places(memory, parts.positions) if "positions" in memory.interface.parts else None
        likeness, reads, weights, after = [], [], [], []
        for r in range(memory.heads):
            query = unit([a + b for a, b in zip(key, parts.queries[r], strict=True)])
            strength = 1 + softplus(parts.strengths[r])
            alike = [strength * dot(query, past[t][1]) for t in stored if t < now]
            nothing = strength * dot(query, null)
            if memory.phases:
                by_place = 1 + softplus(parts.phase_strengths[r])
                for number, t in enumerate(stored[:-1]):
                    if t == 0:
                        continue  # the zeros before the first step are nowhere
                    apart = zip(phases[now + 1], phases[t], strict=True)
                    near = sum(math.cos(a - b) for a, b in apart) / memory.phases
                    alike[number] += by_place * near
                nothing += by_place * memory.null_phase.item()
            *like, _ = softmax([*alike, nothing])
            ways, total = softmax(parts.ways[r]), dict.fromkeys(stored, 0.0)

            def add(t: int, weight: float, total: dict[int, float] = total) -> None:
                if t in total:
                    total[t] += weight

            for t, w in zip(stored, like, strict=False):
                add(t, ways[0] * w)
                add(t + 1, ways[1] * w)
            for t, w in before[r].items():
                add(t + 1, ways[2] * w)
                add(t, ways[3] * w)
            if scores is not None:
                position = attend(scores[r])
                for t in stored:
                    add(t, ways[4] * position[t % slots])
            gate = [sigmoid(g) for g in parts.gates[r]]
            found = [
                sum(w * past[t][0][i] for t, w in total.items()) for i in range(memory.latent)
            ]
            reads.append([g * x for g, x in zip(gate, found, strict=True)])
            likeness.append(max(like, default=0.0))
            row = [0.0] * slots
            for t, w in total.items():
                row[t % slots] = w
            weights.append(row)
            after.append(total)
        before = after
        state = h if memory.context_includes_state else []
        steps.append((flat(reads) + state + likeness, weights))
    return steps


def lstm(memory: Any, latents: list[Vector]) -> list[tuple[Vector, list[Vector]]]:  # noqa: ANN401
    control = Controller(memory.cell)
    return [(control(z), []) for z in latents]


REFERENCES = {
    "dnc": dnc,
    "icm": icm,
    "introspection": introspection,
    "lru": lru,
    "lstm": lstm,
    "ntm": ntm,
}


def replay(
    name: str,
    memory: Any,  # noqa: ANN401
    z: Tensor,
    controls: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Features and read weights of latents `(batch, time, latent)`, by the slow reference."""
    given = [z.tolist()] if controls is None else [z.tolist(), controls.tolist()]
    runs = [REFERENCES[name](memory, *one) for one in zip(*given, strict=True)]
    features = [[step[0] for step in run] for run in runs]
    weights = [[step[1] for step in run] for run in runs]
    return torch.tensor(features, dtype=z.dtype), torch.tensor(weights, dtype=z.dtype)
