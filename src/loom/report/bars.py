"""Small charts in rows: figures with whiskers, stages on a time line."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from loom.report.data import Comparison, Measure, Metric, Stage
from loom.report.figures import count, duration, number
from loom.report.html import Html, el
from loom.report.significance import BEYOND, Verdict, verdict


def by_source(measures: Mapping[str, Measure], colours: Mapping[str, int]) -> Html:
    """One bar a source, from zero, with two standard errors as a whisker."""
    top = max(m.value + BEYOND * (m.stderr or 0) for m in measures.values()) or 1.0
    rows = []
    for i, (source, measure) in enumerate(measures.items()):
        width = 100 * measure.value / top
        rows.append(
            el(
                "div",
                el("span", source, class_="name"),
                el(
                    "span",
                    el("i", class_=f"bar c{colours.get(source, i) % 8}", style=f"width:{width:.2f}%"),
                    _whisker(measure, 0, top),
                    class_="track",
                ),
                el("span", el("b", number(measure.value)), _error(measure), class_="value"),
                class_="row",
            )
        )
    return el("div", *rows, class_="rows")


def _whisker(measure: Measure, low: float, high: float) -> Html | None:
    if not measure.stderr:
        return None
    start = 100 * (measure.value - BEYOND * measure.stderr - low) / (high - low)
    end = 100 * (measure.value + BEYOND * measure.stderr - low) / (high - low)
    start, end = max(0.0, start), min(100.0, end)
    return el("i", class_="whisker", style=f"left:{start:.2f}%;width:{end - start:.2f}%")


def _error(measure: Measure, percent: bool = False) -> Html | None:
    if measure.stderr is None:
        return None
    return el("small", f" ± {number(measure.stderr, percent).replace(' %', '')}")


def panel(comparison: Comparison, metric: Metric) -> Html:
    """One metric: a dot and whisker a model, its figure, and what it changed from the model before."""
    found = [(row.model, row.metrics[metric.key]) for row in comparison.models if metric.key in row.metrics]
    if not found:
        return el("div", el("h3", metric.title), el("p", "not measured", class_="quiet"), class_="panel")
    ends = [m.value - BEYOND * (m.stderr or 0) for _, m in found] + [
        m.value + BEYOND * (m.stderr or 0) for _, m in found
    ]
    if metric.chance is not None:
        ends.append(metric.chance)
    low, high = min(ends), max(ends)
    margin = (high - low) * 0.08 or abs(high) * 0.05 or 1.0
    low, high = low - margin, high + margin
    rows = []
    previous: str | None = None
    for model, measure in found:
        item = verdict(comparison, metric, model, previous) if previous else None
        at = 100 * (measure.value - low) / (high - low)
        chance = None
        if metric.chance is not None:
            place = 100 * (metric.chance - low) / (high - low)
            chance = el("i", class_="chance", style=f"left:{place:.2f}%")
        rows.append(
            el(
                "div",
                el("span", model, class_="name"),
                el(
                    "span",
                    chance,
                    _whisker(measure, low, high),
                    el("i", class_="dot", style=f"left:{at:.2f}%"),
                    class_="track line",
                ),
                el(
                    "span",
                    el("b", number(measure.value, metric.percent)),
                    _error(measure, metric.percent),
                    _mark(item),
                    class_="value",
                ),
                class_="row",
            )
        )
        previous = model
    items = {m.n for _, m in found if m.n}
    notes = [f"{metric.better} is better"]
    if metric.chance is not None:
        notes.append(f"dashed: chance, {number(metric.chance, metric.percent)}")
    if len(items) == 1:
        notes.append(f"{count(items.pop())} items")
    if metric.note:
        notes.append(metric.note)
    return el(
        "div",
        el("h3", metric.title),
        el("div", *rows, class_="rows"),
        el("p", "; ".join(notes), class_="quiet"),
        class_="panel",
    )


MARKS = {"better": "▲", "worse": "▼", "none": "≈", "unknown": "?"}


def _mark(item: Verdict | None) -> Html:
    if item is None:
        return el("em", class_="mark")
    return el("em", MARKS[item.kind], class_=f"mark {item.kind}", title=item.sentence)


def timeline(stages: Sequence[Stage]) -> Html:
    """Each stage where it lies in the whole time."""
    whole = math.fsum(stage.seconds for stage in stages) or 1.0
    rows, start = [], 0.0
    for stage in stages:
        left, width = 100 * start / whole, 100 * stage.seconds / whole
        rows.append(
            el(
                "div",
                el("span", stage.name, class_="name"),
                el(
                    "span",
                    el("i", class_="bar c0", style=f"left:{left:.2f}%;width:{max(width, 0.3):.2f}%"),
                    class_="track time",
                ),
                el(
                    "span",
                    el("b", duration(stage.seconds)),
                    el("small", f" {width:.0f} %" if width >= 0.5 else " < 1 %"),
                    class_="value",
                ),
                class_="row",
                title=stage.note or None,
            )
        )
        start += stage.seconds
    return el("div", *rows, class_="rows")
