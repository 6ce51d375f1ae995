"""Numbers as a page writes them, and the scales of its charts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


def count(value: float) -> str:
    """16_940_000 is '16.9 M'; up to 99,999 in full."""
    if abs(value) < 100_000:
        return f"{value:,.0f}"
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{_three(value / size)} {unit}"
    return f"{value:,.0f}"


def size(value: float) -> str:
    """Bytes in decimal units, three digits."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(value) < 999.5 or unit == "TB":
            return f"{value:.0f} {unit}" if unit == "B" else f"{_three(value)} {unit}"
        value /= 1000
    raise AssertionError("unreachable")


def _three(value: float) -> str:
    """Three significant digits, zeros kept; whole numbers from 100 on."""
    return f"{value:#.3g}".rstrip(".") if abs(value) < 999.5 else f"{value:,.0f}"


def duration(seconds: float) -> str:
    """'8.4 s', '3 min 20 s', '2 h 05 min'."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"


def number(value: float, percent: bool = False) -> str:
    """A measured figure: per cent with one decimal, else three digits after the point."""
    if not math.isfinite(value):
        return "not finite"
    if percent:
        return f"{100 * value:.1f} %"
    return f"{value:.3f}" if abs(value) < 100 else f"{value:,.1f}"


def tick(value: float) -> str:
    """An axis label."""
    if value == 0:
        return "0"
    if abs(value) >= 10_000:
        return count(value).replace(" ", "")
    if abs(value) < 0.001:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:,.10g}"


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers in [low, high]: steps of 1, 2 or 5 times a power of ten, at most `most` of them."""
    if not (math.isfinite(low) and math.isfinite(high)) or high <= low:
        return [low]
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


@dataclass(frozen=True)
class Scale:
    """Maps [low, high] to [start, end] in drawing units."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        span = self.high - self.low
        return self.start + (self.end - self.start) * ((value - self.low) / span if span else 0.5)


def smooth(values: Sequence[float], width: int) -> list[float]:
    """Centred moving average over `width` values, shrinking at both ends."""
    half = width // 2
    if half == 0:
        return list(values)
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    out = []
    for i in range(len(values)):
        reach = min(half, i, len(values) - 1 - i)
        a, b = i - reach, i + reach + 1
        out.append((sums[b] - sums[a]) / (b - a))
    return out


def thin(points: Sequence[tuple[float, float]], most: int = 600) -> list[tuple[float, float]]:
    """At most about `most` points that keep every bucket's lowest and highest value, in order."""
    finite = [p for p in points if math.isfinite(p[1])]
    if len(finite) <= most:
        return finite
    buckets = most // 2
    kept: list[tuple[float, float]] = [finite[0]]
    for b in range(buckets):
        part = finite[b * len(finite) // buckets : (b + 1) * len(finite) // buckets]
        low, high = min(part, key=lambda p: p[1]), max(part, key=lambda p: p[1])
        kept += sorted({low, high})
    kept.append(finite[-1])
    return sorted(set(kept))
