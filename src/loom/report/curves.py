"""Line charts: shapes in a stretching SVG, axis labels in HTML, so that text keeps its size on any width."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

from loom.report.data import Points
from loom.report.figures import Scale, smooth, thin, tick, ticks
from loom.report.html import Html, el, join

STEADY = "non-scaling-stroke"


@dataclass(frozen=True)
class Line:
    """One curve. `noisy` draws it pale with its moving average on top; `dots` marks every point."""

    name: str
    points: Points
    style: str  # a CSS class: c0..c7
    noisy: bool = False
    dots: bool = False


@dataclass(frozen=True)
class Level:
    """A horizontal reference."""

    name: str
    value: float


def chart(
    title: str,
    lines: Sequence[Line],
    levels: Sequence[Level] = (),
    *,
    height: int = 300,
    unit: str = "",
    zero: bool = False,
    ceiling: float | None = None,
) -> Html:
    """A chart of value against step. `ceiling` cuts the top (the first steps of a loss)."""
    lines = [line for line in lines if line.points]
    if not lines:
        return el("figure", el("figcaption", title), el("p", "not measured", class_="quiet"), class_="chart")
    steps = [step for line in lines for step, _ in line.points]
    values = [v for line in lines for _, v in line.points if math.isfinite(v)] + [lv.value for lv in levels]
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    if zero:
        low = min(low, 0.0)
    if ceiling is not None:
        high = min(high, ceiling)
    margin = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    cut = max((step for line in lines for step, v in line.points if v > high), default=0.0)
    low, high = (low if zero and low == 0 else low - margin), high if cut else high + margin
    x = Scale(min(steps), max(steps), 0, 1000)
    y = Scale(low, high, 1000, 0)
    shapes = [
        el("path", class_="grid", d=f"M0 {y(t):.1f}H1000", vector_effect=STEADY) for t in ticks(low, high, 5)
    ]
    shapes += [
        el("path", class_="level", d=f"M0 {y(lv.value):.1f}H1000", vector_effect=STEADY) for lv in levels
    ]
    for line in lines:
        shapes += _curve(line, x, y)
    picture = el(
        "svg", join(*shapes), viewBox="0 0 1000 1000", preserveAspectRatio="none", aria_hidden="true"
    )
    series = [
        {"name": line.name, "style": line.style, "points": _readable(thin(line.points))} for line in lines
    ]
    plot = el(
        "div",
        picture,
        *(el("span", tick(t), class_="tick y", style=f"top:{y(t) / 10:.2f}%") for t in ticks(low, high, 5)),
        *(
            el("span", tick(t), class_="tick x", style=f"left:{x(t) / 10:.2f}%")
            for t in ticks(x.low, x.high, 5)
        ),
        *(
            el(
                "span",
                f"{level.name} {level.value:.2f}",
                class_="level",
                style=f"top:{y(level.value) / 10:.2f}%",
            )
            for level in levels
        ),
        el("span", class_="cursor"),
        el("output", class_="readout"),
        class_="plot",
        style=f"height:{height}px",
        data_series=json.dumps(series, separators=(",", ":")),
        data_low=x.low,
        data_high=x.high,
    )
    keys = [el("span", el("i", class_=f"chip {line.style}"), line.name, class_="key") for line in lines]
    caption = el(
        "figcaption",
        el("b", title),
        el("span", unit, class_="unit") if unit else None,
        el("span", *keys, class_="keys") if len(lines) > 1 else None,
        el("span", f"the first {cut:,.0f} steps lie above the frame", class_="unit") if cut else None,
    )
    return el("figure", caption, plot, class_="chart")


def _readable(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    return [(int(step) if step == int(step) else step, float(f"{value:.5g}")) for step, value in points]


def _curve(line: Line, x: Scale, y: Scale) -> list[Html]:
    points = [p for p in line.points if math.isfinite(p[1])]
    if not points:
        return []
    shapes = []
    if line.noisy and len(points) >= 20:
        width = max(3, len(points) // 25) | 1
        average = list(zip([s for s, _ in points], smooth([v for _, v in points], width), strict=True))
        shapes.append(_path(thin(points), x, y, f"line pale {line.style}"))
        shapes.append(_path(thin(average), x, y, f"line {line.style}"))
    elif len(points) > 1:
        shapes.append(_path(thin(points), x, y, f"line {line.style}"))
    if (line.dots and len(points) <= 80) or len(points) == 1:
        dots = "".join(f"M{x(s):.1f} {y(v):.1f}h0" for s, v in points)
        shapes.append(el("path", class_=f"dots {line.style}", d=dots, vector_effect=STEADY))
    return shapes


def _path(points: Sequence[tuple[float, float]], x: Scale, y: Scale, style: str) -> Html:
    d = "M" + "L".join(f"{x(s):.1f} {y(v):.1f}" for s, v in points)
    return el("path", class_=style, d=d, vector_effect=STEADY)
