"""One new token for each of many sequences through all layers, as one compiled function.

Threads share the work by taking numbered pieces of each phase; a phase begins when the last piece of
the one before is done, and a thread that comes late finds less to do. Every row is computed exactly as
it would be alone (`loom.serve.rows`), so answers do not depend on the batch.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from loom.serve.rows import clamp, exp, mix, normalize, plain, product, rotate, softmax, store
from loom.serve.vectors import fetch, fetch_add, give_way

PIECE = 1 << 16  # bytes of weights in one piece of a product
PHASES = 8  # of a layer; one more follows the last
QKV, OUT, GATE_UP, DOWN, ATTENTION_NORM, MLP_NORM, Q_NORM, K_NORM = range(8)  # columns of `Weights.layers`
_ONE = np.float32(1)


class Shape(NamedTuple):
    """What of the model's configuration a step needs. `clip` 0 is none."""

    layers: int
    d: int
    kv: int
    mlp: int
    heads: int
    kv_heads: int
    width: int
    vocabulary: int
    narrow: bool  # weights and caches are bfloat16
    rms: bool
    after: bool
    eps: Any  # float32
    clip: Any  # float32


class Weights(NamedTuple):
    """Addresses, and the angles of positions. A gain of address 0 is none."""

    layers: Any  # int64 [layers, 8]
    output: int
    gain: int
    cos: Any  # float32 [context, head width / 2]
    sin: Any


class Rows(NamedTuple):
    """The tokens of a step, n of them, and where what they leave behind goes."""

    position: Any  # int64 [n]
    cache: Any  # int64 [n]: address of the sequence's keys and values [2, layers, kv heads, room, width]
    room: Any  # int64 [n]
    x: Any  # float32 [n, d]: embeddings at first
    h: Any  # float32 [n, d]
    qkv: Any  # float32 [n, d + 2 kv]
    act: Any  # float32 [n, mlp]
    wanted: Any  # int64 [m]: rows whose logits are asked for
    logits: Any  # float32 [m, vocabulary]: the result


@plain
def step(s: Any, w: Any, rows: Any, taken: Any, done: Any) -> None:
    """Extend each row's cache by its token and give the logits after it. Called by each thread at once.

    `taken` and `done` count the pieces of each phase, int64 [layers * PHASES + 1], zero at the start.
    """
    n = rows.position.shape[0]
    # This thread's own: the normalised rows, results of a product before they are added, scores.
    normed = np.empty((n, s.d), np.float32)
    most = max(_size(s.d, s), _size(s.mlp, s))
    part, other = np.empty(n * most, np.float32), np.empty(n * most, np.float32)
    longest = 0
    for r in range(n):
        longest = max(longest, rows.position[r])
    scores = np.empty(longest + 1, np.float32)

    for layer in range(s.layers):
        phase = layer * PHASES
        many = _size(s.d, s)
        pieces = _count(s.d + 2 * s.kv, many)
        if fetch(taken, phase) < pieces:
            _enter(s, rows.x, w.layers[layer, ATTENTION_NORM], normed)
        piece = fetch_add(taken, phase)
        while piece < pieces:
            first = piece * many
            last = min(s.d + 2 * s.kv, first + many)
            into = _address(rows.qkv) + first * 4
            product(
                w.layers[layer, QKV], s.narrow, first, last, s.d, _address(normed), n, into, s.d + 2 * s.kv
            )
            fetch_add(done, phase)
            piece = fetch_add(taken, phase)
        _wait(done, phase, pieces)

        phase += 1
        piece = fetch_add(taken, phase)
        while piece < n:
            _place(s, w, rows, layer, piece)
            fetch_add(done, phase)
            piece = fetch_add(taken, phase)
        _wait(done, phase, n)

        phase += 1
        piece = fetch_add(taken, phase)
        while piece < n * s.heads:
            _attend(s, rows, layer, piece // s.heads, piece % s.heads, scores)
            fetch_add(done, phase)
            piece = fetch_add(taken, phase)
        _wait(done, phase, n * s.heads)

        phase += 1
        _add_product(s, rows, w.layers[layer, OUT], rows.h, s.d, part, taken, done, phase)
        phase += 1
        _add_norm(s, rows, w.layers[layer, ATTENTION_NORM], normed, taken, done, phase)

        phase += 1
        many = _size(s.d, s)
        pieces = _count(s.mlp, many)
        if fetch(taken, phase) < pieces:
            _enter(s, rows.x, w.layers[layer, MLP_NORM], normed)
        piece = fetch_add(taken, phase)
        while piece < pieces:
            first = piece * many
            last = min(s.mlp, first + many)
            up = w.layers[layer, GATE_UP] + s.mlp * s.d * (2 if s.narrow else 4)
            product(
                w.layers[layer, GATE_UP],
                s.narrow,
                first,
                last,
                s.d,
                _address(normed),
                n,
                _address(part),
                many,
            )
            product(up, s.narrow, first, last, s.d, _address(normed), n, _address(other), many)
            for r in range(n):
                _swiglu(part, other, r * many, last - first, rows.act[r], first)
            fetch_add(done, phase)
            piece = fetch_add(taken, phase)
        _wait(done, phase, pieces)

        phase += 1
        _add_product(s, rows, w.layers[layer, DOWN], rows.act, s.mlp, part, taken, done, phase)
        phase += 1
        _add_norm(s, rows, w.layers[layer, MLP_NORM], normed, taken, done, phase)

    phase = s.layers * PHASES
    many = _size(s.d, s)
    pieces = _count(s.vocabulary, many)
    if fetch(taken, phase) < pieces:
        for r in range(rows.wanted.shape[0]):
            normalize(rows.x[rows.wanted[r]], 0, s.d, w.gain, s.rms, s.eps, normed[r])
    piece = fetch_add(taken, phase)
    while piece < pieces:
        first = piece * many
        last = min(s.vocabulary, first + many)
        into = _address(rows.logits) + first * 4
        m = rows.wanted.shape[0]
        product(w.output, s.narrow, first, last, s.d, _address(normed), m, into, s.vocabulary)
        fetch_add(done, phase)
        piece = fetch_add(taken, phase)
    _wait(done, phase, pieces)


@plain
def _address(array: Any) -> Any:
    return np.int64(array.ctypes.data)


@plain
def _size(width: int, s: Any) -> int:
    """Weight rows of `width` in a piece, a multiple of 8."""
    return max(8, (PIECE // (width * (2 if s.narrow else 4))) & ~7)


@plain
def _count(rows: int, size: int) -> int:
    return (rows + size - 1) // size


@plain
def _wait(done: Any, phase: int, pieces: int) -> None:
    """Until all pieces of a phase are done."""
    turns = 0
    while fetch(done, phase) < pieces:
        turns += 1
        if turns > 4000:
            give_way()


@plain
def _enter(s: Any, x: Any, gain: int, out: Any) -> None:
    """What a half of a block begins with: the rows normalised, or as they are where the norm comes after."""
    for r in range(x.shape[0]):
        if s.after:
            for i in range(s.d):
                out[r, i] = x[r, i]
        else:
            normalize(x[r], 0, s.d, gain, s.rms, s.eps, out[r])


@plain
def _place(s: Any, w: Any, rows: Any, layer: int, r: int) -> None:
    """Norms, bounds and rotation of a row's q and k; its k and v go into the cache."""
    x, position = rows.qkv[r], rows.position[r]
    if w.layers[layer, Q_NORM] != 0:
        normalize(x, 0, s.d, w.layers[layer, Q_NORM], True, s.eps, x[: s.d])
        normalize(x, s.d, s.kv, w.layers[layer, K_NORM], True, s.eps, x[s.d : s.d + s.kv])
    if s.clip > 0:
        clamp(x, s.clip)
    for head in range(s.heads + s.kv_heads):
        rotate(x, head * s.width, w.cos[position], w.sin[position], s.width // 2)
    size = 2 if s.narrow else 4
    for head in range(s.kv_heads):
        start = s.d + head * s.width
        for kind in range(2):
            plane = (kind * s.layers + layer) * s.kv_heads + head
            at = rows.cache[r] + (plane * rows.room[r] + position) * s.width * size
            store(x, start + kind * s.kv, s.width, at, s.narrow)


@plain
def _attend(s: Any, rows: Any, layer: int, r: int, head: int, scores: Any) -> None:
    """One head of one row over its sequence so far."""
    size, count = (2 if s.narrow else 4), rows.position[r] + 1
    plane = layer * s.kv_heads + head // (s.heads // s.kv_heads)
    keys = rows.cache[r] + plane * rows.room[r] * s.width * size
    values = keys + s.layers * s.kv_heads * rows.room[r] * s.width * size
    q = _address(rows.qkv) + (r * (s.d + 2 * s.kv) + head * s.width) * 4
    product(keys, s.narrow, 0, count, s.width, q, 1, _address(scores), count)
    scale = _ONE / np.sqrt(np.float32(s.width))
    for i in range(count):
        scores[i] *= scale
    softmax(scores, count)
    mix(scores, count, values, s.narrow, s.width, rows.h[r], head * s.width)


@plain
def _swiglu(gate: Any, up: Any, start: int, count: int, out: Any, first: int) -> None:
    for i in range(count):
        g = gate[start + i]
        out[first + i] = g / (_ONE + exp(-g)) * up[start + i]


@plain
def _add_product(
    s: Any, rows: Any, weights: int, source: Any, width: int, part: Any, taken: Any, done: Any, phase: int
) -> None:
    """Add the product of `source` [n, width] to x; where a norm comes between, it goes to `qkv`'s head."""
    n, many = rows.x.shape[0], _size(width, s)
    pieces = _count(s.d, many)
    piece = fetch_add(taken, phase)
    while piece < pieces:
        first = piece * many
        last = min(s.d, first + many)
        product(weights, s.narrow, first, last, width, _address(source), n, _address(part), many)
        for r in range(n):
            for i in range(last - first):
                if s.after:
                    rows.qkv[r, first + i] = part[r * many + i]
                else:
                    rows.x[r, first + i] += part[r * many + i]
        fetch_add(done, phase)
        piece = fetch_add(taken, phase)
    _wait(done, phase, pieces)


@plain
def _add_norm(s: Any, rows: Any, gain: int, normed: Any, taken: Any, done: Any, phase: int) -> None:
    """Where the norm comes after: add the normalised product to x."""
    if not s.after:
        return
    n = rows.x.shape[0]
    r = fetch_add(taken, phase)
    while r < n:
        normalize(rows.qkv[r], 0, s.d, gain, s.rms, s.eps, normed[r])
        for i in range(s.d):
            rows.x[r, i] += normed[r, i]
        fetch_add(done, phase)
        r = fetch_add(taken, phase)
    _wait(done, phase, n)
