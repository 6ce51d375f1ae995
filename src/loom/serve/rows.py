"""What one row goes through in a step: products, norm, rotation, softmax, in float32.

Each function computes a row in an order of its own that does not change with what is computed beside it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from loom.serve.vectors import LANES, as_float, as_word, dots, end_dots, floats_at, halves_at, part_dots

_F = np.float32
_ZERO, _ONE, _HALF_ONE, _LOWEST = _F(0), _F(1), _F(0.5), _F(-3e38)
_LOG2E, _LN2_HIGH, _LN2_LOW = _F(1.44269504), _F(0.693359375), _F(-2.12194440e-4)
_FLOOR, _CEILING = _F(-87.0), _F(88.0)
# Cephes' expf: a minimax polynomial of (exp(r) - 1 - r) / r² on [-ln 2 / 2, ln 2 / 2].
_P0, _P1, _P2 = _F(1.9875691500e-4), _F(1.3981999507e-3), _F(8.3334519073e-3)
_P3, _P4, _P5 = _F(4.1665795894e-2), _F(1.6666665459e-1), _F(5.0000001201e-1)

_wide_81, _wide_11 = dots(8, 1, False), dots(1, 1, False)
_narrow_81, _narrow_11 = dots(8, 1, True), dots(1, 1, True)
_wide_first, _wide_part, _wide_end = (
    part_dots(4, 4, False, True),
    part_dots(4, 4, False, False),
    end_dots(4, 4, False),
)
_narrow_first, _narrow_part, _narrow_end = (
    part_dots(4, 4, True, True),
    part_dots(4, 4, True, False),
    end_dots(4, 4, True),
)
SPAN = 256  # elements of a row that are gone through for all activation rows: these stay in the first cache
_row = njit(nogil=True, cache=True, fastmath={"reassoc", "contract", "nsz", "nnan", "ninf"})
plain = njit(nogil=True, cache=True, fastmath={"contract"})


@plain
def exp(x: Any) -> Any:
    """e to the x in float32, to 2 units in the last place; x is held within [-87, 88]."""
    x = max(_FLOOR, min(_CEILING, x))
    whole = np.floor(x * _LOG2E + _HALF_ONE)
    r = x - whole * _LN2_HIGH - whole * _LN2_LOW
    p = ((((_P0 * r + _P1) * r + _P2) * r + _P3) * r + _P4) * r + _P5
    return (p * r * r + r + _ONE) * as_float((np.int32(whole) + np.int32(127)) << np.int32(23))


@plain
def widen(half: Any) -> Any:
    return as_float(np.int32(half) << np.int32(16))


@plain
def narrowed(value: Any) -> Any:
    """The upper half of a float32, rounded to the nearest, ties to even."""
    word = as_word(value)
    return np.uint16((word + np.int32(0x7FFF) + ((word >> np.int32(16)) & np.int32(1))) >> np.int32(16))


@plain
def _tiles(w: int, narrow: bool, width: int, x: int, columns: int, out: int, step: int, sums: Any) -> None:
    """Four weight rows and all activation rows, a multiple of four."""
    whole = width & ~(LANES - 1)
    held = np.int64(sums.ctypes.data)
    for i in range(columns * 4 * LANES):
        sums[i] = _ZERO
    for start in range(0, whole, SPAN):
        stop = min(whole, start + SPAN)
        for c in range(0, columns, 4):
            given, place = x + c * width * 4, held + c * 4 * LANES * 4
            if narrow and c == 0:
                _narrow_first(w, width, given, width, start, stop, place)
            elif narrow:
                _narrow_part(w, width, given, width, start, stop, place)
            elif c == 0:
                _wide_first(w, width, given, width, start, stop, place)
            else:
                _wide_part(w, width, given, width, start, stop, place)
    for c in range(0, columns, 4):
        given, place, result = x + c * width * 4, held + c * 4 * LANES * 4, out + c * step * 4
        if narrow:
            _narrow_end(w, width, given, width, width, place, result, step)
        else:
            _wide_end(w, width, given, width, width, place, result, step)


@plain
def product(
    w: int, narrow: bool, first: int, last: int, width: int, x: int, columns: int, out: int, step: int
) -> None:
    """out[c, r - first] = w[r] · x[c] for weight rows first <= r < last and all activation rows c."""
    size = 2 if narrow else 4
    fours = columns & ~3
    sums = np.empty(fours * 4 * LANES, np.float32)
    r = first
    while r < last:
        rows = 8 if r + 8 <= last else 1
        at, into = w + r * width * size, out + (r - first) * 4
        if rows == 8 and fours:
            for part in range(0, 8, 4):
                _tiles(at + part * width * size, narrow, width, x, fours, into + part * 4, step, sums)
        for c in range(fours if rows == 8 else 0, columns):
            given, result = x + c * width * 4, into + c * step * 4
            if rows == 8 and narrow:
                _narrow_81(at, width, given, width, width, result, step)
            elif rows == 8:
                _wide_81(at, width, given, width, width, result, step)
            elif narrow:
                _narrow_11(at, width, given, width, width, result, step)
            else:
                _wide_11(at, width, given, width, width, result, step)
        r += rows


@_row
def normalize(x: Any, start: int, width: int, gain: int, rms: bool, eps: Any, out: Any) -> None:
    """out[:width] = the norm of x[start : start + width]; a gain of address 0 is none."""
    mean = _ZERO
    if not rms:
        for i in range(width):
            mean += x[start + i]
        mean /= _F(width)
    square = _ZERO
    for i in range(width):
        square += (x[start + i] - mean) * (x[start + i] - mean)
    scale = _ONE / np.sqrt(square / _F(width) + eps)
    if gain == 0:
        for i in range(width):
            out[i] = (x[start + i] - mean) * scale
    else:
        gains = floats_at(gain)
        for i in range(width):
            out[i] = gains[i] * ((x[start + i] - mean) * scale)


@plain
def rotate(x: Any, start: int, cos: Any, sin: Any, half: int) -> None:
    """Turn dimension pairs (i, i + half) of one head."""
    for i in range(half):
        first, second = x[start + i], x[start + half + i]
        x[start + i] = first * cos[i] - second * sin[i]
        x[start + half + i] = second * cos[i] + first * sin[i]


@plain
def clamp(x: Any, bound: Any) -> None:
    for i in range(x.shape[0]):
        x[i] = max(-bound, min(bound, x[i]))


@plain
def store(x: Any, start: int, width: int, address: int, narrow: bool) -> None:
    if narrow:
        halves = halves_at(address)
        for i in range(width):
            halves[i] = narrowed(x[start + i])
    else:
        floats = floats_at(address)
        for i in range(width):
            floats[i] = x[start + i]


@_row
def softmax(scores: Any, count: int) -> None:
    highest = _LOWEST
    for i in range(count):
        highest = max(highest, scores[i])
    total = _ZERO
    for i in range(count):
        scores[i] = exp(scores[i] - highest)
        total += scores[i]
    for i in range(count):
        scores[i] /= total


@plain
def mix(scores: Any, count: int, values: int, narrow: bool, width: int, out: Any, start: int) -> None:
    """out[start : start + width] = the mean of the `count` values [width] weighted by scores."""
    for i in range(width):
        out[start + i] = _ZERO
    if narrow:
        halves = halves_at(values)
        for p in range(count):
            for i in range(width):
                out[start + i] += scores[p] * widen(halves[p * width + i])
    else:
        floats = floats_at(values)
        for p in range(count):
            for i in range(width):
                out[start + i] += scores[p] * floats[p * width + i]


@_row
def log_sum(x: Any, start: int, width: int) -> Any:
    """The logarithm of the sum of the exponentials of x[start : start + width]."""
    highest = _LOWEST
    for i in range(width):
        highest = max(highest, x[start + i])
    total = _ZERO
    for i in range(width):
        total += exp(x[start + i] - highest)
    return highest + np.log(total)
