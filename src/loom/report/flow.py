"""The flow picture: a corpus as warp threads, one a source, that thin out rule by rule.

Everything runs downwards. A thread's width is its share of the raw corpus; what a rule removes leaves
to the right and ends in a bar beside the rule's name. The drawing stretches with the page while its
labels do not: shapes are SVG without text, labels are HTML rows of the same heights.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce

from loom.report.data import Amount, Flow, Rule
from loom.report.figures import count, size
from loom.report.html import Html, el, join

HEAD, ROW, FOOT, TEXT = 44, 54, 60, 24  # px; TEXT is the line of text above the threads
SPINE, END, GAP = 380.0, 485.0, 4.0  # of 1000: width of all threads, right edge of the bars, between threads

Widths = Mapping[str, float]


def total(amounts: Mapping[str, Amount]) -> Amount:
    return reduce(Amount.__add__, amounts.values(), Amount())


def balance(flow: Flow) -> Flow:
    """`flow` with a closing row for what the rules do not account for, if anything.

    Replacing spans and trimming white space changes bytes and drops no document; a difference in
    documents is a fault in the records, and the page says so.
    """
    rest = {}
    for source, raw in flow.raw.items():
        gone = total({str(i): rule.removed.get(source, Amount()) for i, rule in enumerate(flow.rules)})
        rest[source] = raw - gone - flow.kept.get(source, Amount())
    missing = total(rest)
    if missing.documents:
        return Flow(flow.raw, (*flow.rules, Rule("not accounted for in the records", rest)), flow.kept)
    if any(amount.bytes for amount in rest.values()):
        note = "replaced spans and trimmed white space"
        return Flow(flow.raw, (*flow.rules, Rule("change in length", rest, note=note)), flow.kept)
    return flow


def draw(flow: Flow) -> Html:
    """The picture twice, by bytes and by documents, with a switch that needs no script."""
    flow = balance(flow)
    return el(
        "div",
        el("input", type="radio", name="flow-unit", id="flow-bytes", checked=True, class_="flow-by-bytes"),
        el("label", "by bytes", for_="flow-bytes"),
        el("input", type="radio", name="flow-unit", id="flow-documents", class_="flow-by-documents"),
        el("label", "by documents", for_="flow-documents"),
        legend(flow),
        _picture(flow, "bytes"),
        _picture(flow, "documents"),
        class_="flow switch",
    )


def legend(flow: Flow) -> Html:
    """A row a source: its thread's colour, what went in, what came out."""
    rows = []
    for i, (source, raw) in enumerate(flow.raw.items()):
        kept = flow.kept.get(source, Amount())
        share = kept.bytes / raw.bytes if raw.bytes else 0.0
        rows.append(
            el(
                "tr",
                el("th", el("i", class_=f"chip c{i % 8}"), source, scope="row"),
                el("td", count(raw.documents), class_="more"),
                el("td", size(raw.bytes)),
                el("td", count(kept.documents), class_="more"),
                el("td", size(kept.bytes)),
                el("td", f"{100 * share:.0f} %"),
            )
        )
    head = el(
        "tr",
        el("th", "source", scope="col"),
        el("th", "documents in", scope="col", class_="more"),
        el("th", "text in", scope="col"),
        el("th", "documents kept", scope="col", class_="more"),
        el("th", "text kept", scope="col"),
        el("th", "share", scope="col"),
    )
    return el("div", el("table", el("thead", head), el("tbody", *rows), class_="numbers"), class_="wide")


def _picture(flow: Flow, unit: str) -> Html:
    def of(amounts: Mapping[str, Amount]) -> dict[str, float]:
        return {source: max(0, getattr(amounts.get(source, Amount()), unit)) for source in flow.raw}

    raw = of(flow.raw)
    everything = sum(raw.values()) or 1.0
    unit_width = (SPINE - GAP * (len(raw) - 1)) / everything
    left = {source: amount * unit_width for source, amount in raw.items()}
    shapes: list[Html] = []
    spine: list[Html] = []
    y = float(HEAD)
    spine += _straight(left, TEXT, y, "raw")
    for rule in flow.rules:
        removed = {
            source: min(left[source], amount * unit_width) for source, amount in of(rule.removed).items()
        }
        after = {source: left[source] - removed[source] for source in left}
        shapes += _peel(left, removed, y, rule)
        spine += _narrow(left, after, y)
        if rule.masked or rule.cut:
            edge = max(start + width for start, width in _places(left).values())
            spine.append(
                el(
                    "path",
                    class_="mask",
                    d=f"M0 {y + ROW / 2:.1f}H{edge:.1f}",
                    vector_effect="non-scaling-stroke",
                )
            )
        left, y = after, y + ROW
    spine += _straight(left, y, y + FOOT - 26, "kept")
    height = y + FOOT
    picture = el(
        "svg",
        _fades(),
        join(*shapes, *spine),
        viewBox=f"0 0 1000 {height:.0f}",
        preserveAspectRatio="none",
        aria_hidden="true",
    )
    rows = [_label(rule, unit, everything) for rule in flow.rules]
    start, end = total(flow.raw), total(flow.kept)
    share = 100 * getattr(end, unit) / everything
    return el(
        "div",
        picture,
        el("div", el("b", "raw"), f" {count(start.documents)} documents, {size(start.bytes)}", class_="head"),
        *rows,
        el(
            "div",
            el("b", "kept"),
            f" {count(end.documents)} documents, {size(end.bytes)} ({share:.0f} %)",
            class_="foot",
        ),
        class_=f"threads {unit}",
        style=f"height:{height:.0f}px",
    )


def _places(widths: Widths) -> dict[str, tuple[float, float]]:
    """Where each thread lies: left edge and width. A thread that has ended takes no room."""
    places, x = {}, 0.0
    for source, width in widths.items():
        places[source] = (x, width)
        x += width + (GAP if width > 0 else 0.0)
    return places


def _fades() -> Html:
    """What leaves a thread pales on its way: one gradient a colour."""
    stops = [
        el(
            "linearGradient",
            el("stop", offset="0", stop_color=f"var(--c{i})", stop_opacity="0.86"),
            el("stop", offset="0.45", stop_color=f"var(--c{i})", stop_opacity="0.4"),
            el("stop", offset="1", stop_color=f"var(--c{i})", stop_opacity="0.6"),
            id=f"fade{i}",
            x1="0",
            y1="0",
            x2="0",
            y2="1",
        )
        for i in range(8)
    ]
    return el("defs", *stops)


def _straight(widths: Widths, top: float, bottom: float, what: str) -> list[Html]:
    return [
        el(
            "path",
            el("title", f"{source}: {what}"),
            class_=f"thread c{i % 8}",
            d=f"M{x:.2f} {top:.1f}H{x + width:.2f}V{bottom:.1f}H{x:.2f}Z",
        )
        for i, (source, (x, width)) in enumerate(_places(widths).items())
        if width > 0
    ]


def _narrow(before: Widths, after: Widths, y: float) -> list[Html]:
    old, new = _places(before), _places(after)
    return [
        _ribbon(old[source][0], new[source][0], after[source], y, y + ROW, f"thread c{i % 8}", source)
        for i, source in enumerate(before)
        if after[source] > 0
    ]


def _peel(before: Widths, removed: Widths, y: float, rule: Rule) -> list[Html]:
    old = _places(before)
    x = END - sum(removed.values())
    shapes = []
    for i, source in enumerate(before):
        width = removed[source]
        if width <= 0:
            continue
        start = old[source][0] + before[source] - width
        amount = rule.removed[source]
        title = f"{rule.name}: {source}, {count(amount.documents)} documents, {size(amount.bytes)}"
        bottom = y + ROW - 12
        shapes.append(_ribbon(start, x, width, y, bottom, f"peel c{i % 8}", title))
        bar = max(width, 1.2)
        shapes.append(
            el(
                "path",
                el("title", title),
                class_=f"end c{i % 8}",
                d=f"M{x:.2f} {bottom:.1f}H{x + bar:.2f}V{bottom + 5:.1f}H{x:.2f}Z",
            )
        )
        x += width
    return shapes


def _ribbon(x0: float, x1: float, width: float, y0: float, y1: float, style: str, title: str) -> Html:
    middle, right0, right1 = (y0 + y1) / 2, x0 + width, x1 + width
    path = (
        f"M{x0:.2f} {y0:.1f}C{x0:.2f} {middle:.1f} {x1:.2f} {middle:.1f} {x1:.2f} {y1:.1f}"
        f"H{right1:.2f}C{right1:.2f} {middle:.1f} {right0:.2f} {middle:.1f} {right0:.2f} {y0:.1f}Z"
    )
    return el("path", el("title", title), class_=style, d=path)


def _label(rule: Rule, unit: str, everything: float) -> Html:
    gone = total(rule.removed)
    parts = []
    if gone.documents or gone.bytes:
        share = 100 * getattr(gone, unit) / everything
        documents = f"{count(gone.documents)} documents, " if gone.documents else ""
        sign = "−" if gone.bytes >= 0 else "+"
        amount = f"{sign}{documents}{size(abs(gone.bytes))}"
        parts.append(f"{amount} ({share:.1f} %)" if share >= 0.05 else amount)
    if rule.cut:
        parts.append(f"{count(rule.cut)} spans cut out")
    if rule.masked:
        where = f" in {count(rule.touched)} documents" if rule.touched else ""
        parts.append(f"{count(rule.masked)} spans masked{where}")
    elif rule.touched:
        parts.append(f"{count(rule.touched)} documents shortened")
    quiet = "" if parts else " none"
    return el(
        "div",
        el("b", rule.name),
        el("span", "; ".join(parts) or "nothing", title=rule.note or None),
        class_=f"rule{quiet}",
        title=rule.note or None,
    )
