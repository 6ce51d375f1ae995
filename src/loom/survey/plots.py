"""What a survey's page draws: each analysis as bars or curves, one colour a corpus, from the JSON values alone.

A plot is plain values with places in percent, so that the template can lay it out at any width: text stays
text of its own size, on a phone too. A value that a corpus's list does not reach is left open rather than
drawn as nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Result = Mapping[str, Any]
ROWS = 12  # of a plot with bars
PEAKS = 3  # odd lengths marked on a corpus's line
KINDS = {"domains": "domain", "schemes": "scheme", "suffixes": "suffix", "extensions": "extension"}


@dataclass(frozen=True)
class Bar:
    """`width` of the plot's in percent; `text` stands behind it."""

    corpus: int
    width: float
    text: str


@dataclass(frozen=True)
class Bars:
    """Rows of bars, one a corpus."""

    title: str
    rows: tuple[tuple[str, tuple[Bar, ...]], ...]
    note: str = ""
    kind: str = "bars"


@dataclass(frozen=True)
class Line:
    """`points` in percent from the left and from the top, as SVG takes them."""

    corpus: int
    points: str


@dataclass(frozen=True)
class Curves:
    """Lines over an axis; ticks are (percent, text); marks (left, top, text, corpus) stand out from a line."""

    title: str
    lines: tuple[Line, ...]
    across: tuple[tuple[float, str], ...]
    up: tuple[tuple[float, str], ...]
    marks: tuple[tuple[float, float, str, int], ...] = ()
    note: str = ""
    kind: str = "curves"


@dataclass(frozen=True)
class Mood:
    """Shares of sentences to either side of the middle, in percent of a half."""

    corpus: int
    negative: float
    positive: float
    text: str


@dataclass(frozen=True)
class Moods:
    title: str
    rows: tuple[tuple[str, tuple[Mood, ...]], ...]
    note: str = ""
    kind: str = "moods"


@dataclass(frozen=True)
class Grid:
    """Shares of the row's corpus that the column's holds too: (percent, text) or None on the diagonal."""

    title: str
    names: tuple[str, ...]
    cells: tuple[tuple[tuple[float, str] | None, ...], ...]
    note: str = ""
    kind: str = "grid"


Plot = Bars | Curves | Moods | Grid


def short_names(names: Sequence[str]) -> list[str]:
    """The ends of the corpora's names, as much of each as tells them apart."""
    parts = [name.replace("\\", "/").rstrip("/").split("/") for name in names]
    for depth in range(1, max(map(len, parts), default=1) + 1):
        found = ["/".join(part[-depth:]) for part in parts]
        if len(set(found)) == len(found):
            return found
    return [f"{name} ({number})" for number, name in enumerate(names, 1)]


def amount(value: float) -> str:
    """A number in three figures: 1,234 as it is, 12.3 k, 4.56 M and so on."""
    for size, unit in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e4, " k")):
        if abs(value) >= size:
            return f"{value / (1e3 if unit == ' k' else size):.3g}{unit}"
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"


def percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def draw(name: str, results: Sequence[Result]) -> list[Plot]:
    """The plots of one analysis over the corpora's results; none where there is nothing to see."""
    found = [result.get(name, {}) for result in results]
    maker = MAKERS.get(name)
    return [plot for plot in maker(found, results) if _any(plot)] if maker else []


def _any(plot: Plot) -> bool:
    match plot:
        case Curves():
            return bool(plot.lines)
        case Grid():
            return len(plot.names) > 1
        case _:
            return bool(plot.rows)


def bars(
    title: str,
    rows: Iterable[tuple[str, Sequence[float | None]]],
    show: Callable[[float], str],
    note: str = "",
    each: bool = False,
) -> Bars:
    """Bars against the largest of all rows, or, with `each`, of their own row."""
    table = list(rows)
    most = max((value or 0 for _, values in table for value in values), default=0)
    made = []
    for label, values in table:
        top = max((value or 0 for value in values), default=0) if each else most
        made.append(
            (
                label,
                tuple(
                    Bar(corpus, 100 * (value / top) if top else 0.0, show(value))
                    for corpus, value in enumerate(values)
                    if value is not None
                ),
            )
        )
    return Bars(title, tuple(made), note)


def union(
    lists: Sequence[Mapping[str, float]], whole: Sequence[bool], rows: int | None = None
) -> list[tuple[str, list[float | None]]]:
    """(label, a value a corpus) of the labels that stand highest in any list.

    A label missing from a list that is `whole` is 0 there, from another it is unknown.
    """
    best: dict[str, float] = {}
    for values in lists:
        for label, value in values.items():
            best[label] = max(best.get(label, 0.0), value)
    rows = rows or (ROWS if len(lists) == 1 else 2 * ROWS // 3)
    chosen = sorted(best, key=lambda label: (-best[label], label))[:rows]
    return [
        (label, [v.get(label, 0.0 if w and v else None) for v, w in zip(lists, whole, strict=True)])
        for label in chosen
    ]


def _counts(found: Sequence[Result], results: Sequence[Result]) -> list[Plot]:
    rows = [(title, [part.get(key) for part in found]) for key, title in (
        ("documents", "documents"), ("words", "words"), ("bytes", "bytes"),
        ("words_per_document", "words a document"),
    )]  # fmt: skip
    plots: list[Plot] = [bars("How much there is", rows, amount, "Each row on its own scale.", each=True)]
    sources = [{row["source"]: row["words"] for row in part.get("sources", [])} for part in found]
    if any(len(names) > 1 for names in sources):
        plots.append(bars("Words by source", union(sources, [True] * len(found)), amount))
    return plots


def _urls(name: str) -> Callable[[Sequence[Result], Sequence[Result]], list[Plot]]:
    def make(found: Sequence[Result], results: Sequence[Result]) -> list[Plot]:
        plots: list[Plot] = []
        for key, what in (("documents", "documents"), ("words", "words")):
            lists, whole = [], []
            for part in found:
                listed = part.get(f"by_{key}", [])
                total = (
                    part.get("documents", 0) if key == "documents" else sum(row["words"] for row in listed)
                )
                lists.append({row["name"]: row[key] / total for row in listed} if total else {})
                whole.append(len(listed) >= part.get("different", 0))
            if key == "words" and not all(whole):
                continue  # the total over all names is not in a list's head
            title = f"Share of {what} by {KINDS.get(name, 'country')}"
            plots.append(bars(title, union(lists, whole), percent, _named(found, results)))
        return plots

    return make


def _named(found: Sequence[Result], results: Sequence[Result]) -> str:
    """How many documents the shares are of."""
    names = short_names([str(result.get("corpus", "")) for result in results])
    said = [f"{part.get('documents', 0):,}" for part in found]
    if len(said) == 1:
        return f"Of the {said[0]} documents that name one."
    pairs = ", ".join(f"{number} in {name}" for number, name in zip(said, names, strict=True))
    return f"Of the documents that name one: {pairs}."


def _dates(found: Sequence[Result], results: Sequence[Result]) -> list[Plot]:
    years = sorted({row["date"] for part in found for row in part.get("years", [])})
    if len(years) < 3:
        months = sorted({row["date"] for part in found for row in part.get("months", [])})[-24:]
        tables = [{row["date"]: row["documents"] for row in part.get("months", [])} for part in found]
        totals = [sum(table.values()) for table in tables]
        rows = [
            (month, [t.get(month, 0) / n if n else None for t, n in zip(tables, totals, strict=True)])
            for month in months
        ]
        return [bars("Share of dated documents by month", rows, percent)]
    first, last = int(years[0]), int(years[-1])
    lines = []
    for part in found:
        table = {int(row["date"]): row["documents"] for row in part.get("years", [])}
        total = sum(table.values())
        lines.append([(year, table.get(year, 0) / total) for year in range(first, last + 1)] if total else [])
    ticks = [(float(year), str(year)) for year in _round_years(first, last)]
    return [curves("Share of dated documents by year", lines, ticks, first, last)]


def _round_years(first: int, last: int) -> list[int]:
    step = max(1, -(-(last - first) // 6))
    return list(range(first, last + 1, step))


def curves(
    title: str,
    lines: Sequence[Sequence[tuple[float, float]]],
    ticks: Sequence[tuple[float, str]],
    low: float,
    high: float,
    marks: Sequence[tuple[float, float, str, int]] = (),
    note: str = "",
) -> Curves:
    """Lines through (x, share) points between x = `low` and `high`; the y axis begins at 0."""
    most = max((y for line in lines for _, y in line), default=0.0)
    top = _round_up(max([most, *(y for _, y, _, _ in marks)], default=0.0)) or 1.0
    width = (high - low) or 1.0

    def at(x: float, y: float) -> tuple[float, float]:
        return round(100 * (x - low) / width, 2), round(100 - 100 * y / top, 2)

    drawn = [
        Line(corpus, " ".join(f"{a:g},{b:g}" for a, b in (at(x, y) for x, y in line)))
        for corpus, line in enumerate(lines)
        if line
    ]
    across = tuple((at(x, 0)[0], text) for x, text in ticks)
    up = tuple((at(low, top * part)[1], percent(top * part)) for part in (0.0, 0.5, 1.0))
    placed = tuple((*at(x, y), text, corpus) for x, y, text, corpus in marks)
    return Curves(title, tuple(drawn), across, up, placed, note)


def _round_up(value: float) -> float:
    """The next number of few figures, at least `value`."""
    if value <= 0:
        return 0.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(power * step for step in (1, 1.5, 2, 3, 4, 6, 8, 10) if power * step >= value * 0.999)


def _languages(found: Sequence[Result], results: Sequence[Result]) -> list[Plot]:
    lists = []
    for part in found:
        rows = part.get("languages", [])
        total = sum(row["documents"] for row in rows)
        lists.append({row["language"]: row["documents"] / total for row in rows})
    return [bars("Share of documents by language", union(lists, [True] * len(found)), percent)]


def _ngrams(found: Sequence[Result], results: Sequence[Result]) -> list[Plot]:
    words = [result.get("counts", {}).get("words") for result in results]
    known = all(words)
    plots: list[Plot] = []
    sizes = list(dict.fromkeys(n for part in found for n in part))
    for n in sizes:
        lists = []
        for part, total in zip(found, words, strict=True):
            scale = 1e6 / total if known and total else 1.0
            rows = part.get(n, {}).get("most_common", [])
            lists.append({row["text"]: row["count"] * scale for row in rows})
        per = "a million words" if known else "in all"
        title = f"Commonest {'words' if n == '1' else f'{n}-grams'}, times {per}"
        plots.append(bars(title, union(lists, [False] * len(found), 8), amount))
    once = [(f"n = {n}", [part.get(n, {}).get("share_seen_once") for part in found]) for n in sizes]
    note = "Little at n = 10 means text that says the same at length."
    return [*plots, bars("Of the different n-grams, the share that occurs once", once, percent, note)]


def _duplicates(found: Sequence[Result], results: Sequence[Result]) -> list[Plot]:
    rows = []
    for key, label in (("text", "by text"), ("url", "by URL")):
        values = [part.get(key, {}) for part in found]
        rows.append((label, [v["copies"] / v["documents"] if v.get("documents") else None for v in values]))
    return [bars("Share of documents that are copies of an earlier one", rows, percent)]


def _lengths(found: Sequence[Result], results: Sequence[Result]) -> list[Plot]:
    plots: list[Plot] = []
    for key in ("words", "characters"):
        bins = [part.get(key, {}).get("histogram", []) for part in found]
        totals = [sum(row["documents"] for row in rows) for rows in bins]
        filled = [row["from"] for rows in bins for row in rows if row["documents"]]
        if not filled:
            continue
        edges = [row["from"] for rows in bins[:1] for row in rows]
        starts = [edge for edge in edges if min(filled) <= edge <= max(filled)]
        lines, marks = [], []
        for corpus, (rows, total) in enumerate(zip(bins, totals, strict=True)):
            line: list[tuple[float, float]] = []
            for place, start in enumerate(starts):
                share = next(r["documents"] for r in rows if r["from"] == start) / total if total else 0.0
                line += [(place, share), (place + 1, share)]
            lines.append([(0.0, 0.0), *line, (float(len(starts)), 0.0)] if total else [])
            for peak in found[corpus].get(key, {}).get("peaks", [])[:PEAKS] if total else ():
                if starts[0] <= peak["length"]:
                    at = _between(peak["length"], edges, starts)
                    marks.append(
                        (at, line[2 * int(min(at, len(starts) - 1))][1], f"{peak['length']:,}", corpus)
                    )
        ticks = [(float(place), amount(start)) for place, start in enumerate(starts)]
        medians = [part.get(key, {}).get("quantiles", {}).get("0.5") for part in found]
        said = ", ".join(amount(median) for median in medians if median is not None)
        note = f"Median: {said}. Dots: lengths far commoner than the lengths beside them."
        plots.append(curves(f"Share of documents by {key}", lines, ticks, 0, len(starts), marks, note))
    return plots


def _between(length: int, edges: Sequence[int], starts: Sequence[int]) -> float:
    """A length's place among the bins that are drawn, even in the logarithm within one."""
    index = max(place for place, start in enumerate(starts) if start <= length)
    low = starts[index]
    above = edges.index(low) + 1
    high = edges[above] if above < len(edges) else low * 10
    inside = math.log((length + 1) / (low + 1)) / math.log((high + 1) / (low + 1))
    return index + min(1.0, inside)


def _contamination(found: Sequence[Result], results: Sequence[Result]) -> list[Plot]:
    names = list(dict.fromkeys(row["name"] for part in found for row in part.get("sets", [])))
    tables = [{row["name"]: row for row in part.get("sets", [])} for part in found]
    return [
        bars(
            title, [(name, [t[name][key] if name in t else None for t in tables]) for name in names], percent
        )
        for key, title in (
            ("share", "Share of questions that one document holds whole"),
            ("mean_overlap", "Mean share of a question's 8-grams that stand anywhere"),
        )
        if names
    ]


def _pii(found: Sequence[Result], results: Sequence[Result]) -> list[Plot]:
    kinds = list(dict.fromkeys(row["kind"] for part in found for row in part.get("kinds", [])))
    tables = [{r["kind"]: r["per_million_words"] for r in part.get("kinds", [])} for part in found]
    rows = [(kind.replace("_", " ").lower(), [t.get(kind) for t in tables]) for kind in kinds]
    return [bars("Times in a million words", rows, amount)]


def _toxicity(found: Sequence[Result], results: Sequence[Result]) -> list[Plot]:
    rows: list[tuple[str, list[float | None]]] = [
        ("documents with a listed word", [part.get("share_of_documents") for part in found])
    ]
    judged = [part["classifier"] for part in found if part.get("classifier")]
    if len(judged) == len(found):
        for key, of in (("toxic_sentences", "sentences"), ("toxic_documents", "documents")):
            rows.append(
                (f"toxic {of}, by the classifier", [j[key] / j[of] if j[of] else None for j in judged])
            )
    return [bars("Share with toxic language", rows, percent)]


def _moods(found: Sequence[Result], results: Sequence[Result]) -> list[Plot]:
    tables = [{row["term"]: row for row in part.get("terms", [])} for part in found]
    chosen = union(
        [{t: float(r["sentences"]) for t, r in table.items()} for table in tables], [True] * len(found)
    )
    rows = []
    for term, _ in chosen:
        moods = [
            Mood(
                corpus,
                100 * row["negative"] / row["sentences"],
                100 * row["positive"] / row["sentences"],
                f"{row['negative']:,} − · {row['positive']:,} + of {row['sentences']:,}",
            )
            for corpus, table in enumerate(tables)
            if (row := table.get(term))
        ]
        rows.append((term, tuple(moods)))
    note = "Left: sentences with more negative words, right: with more positive ones; the terms named most."
    return [Moods("Sentences that name a group, by their mood", tuple(rows), note)]


def _search(found: Sequence[Result], results: Sequence[Result]) -> list[Plot]:
    rows = []
    for number, query in enumerate(found[0].get("queries", [])):
        values = [part["queries"][number]["documents"] for part in found]
        rows.append((query["query"], values))
    return [bars("Documents that hold it", rows, amount)]


MAKERS: dict[str, Callable[[Sequence[Result], Sequence[Result]], list[Plot]]] = {
    "counts": _counts,
    **{name: _urls(name) for name in ("domains", "schemes", "suffixes", "extensions", "geography")},
    "dates": _dates,
    "language": _languages,
    "ngrams": _ngrams,
    "duplicates": _duplicates,
    "lengths": _lengths,
    "contamination": _contamination,
    "pii": _pii,
    "toxicity": _toxicity,
    "demographics": _moods,
    "search": _search,
}


def overlaps(names: Sequence[str], pairs: Sequence[Result], results: Sequence[Result]) -> list[Plot]:
    """What the corpora share with each other: of each one's documents the share that another holds too."""
    place = {result["corpus"]: number for number, result in enumerate(results)}
    plots: list[Plot] = []
    for key, title in (("text", "Documents whose text"), ("url", "Documents whose URL")):
        cells: list[list[tuple[float, str] | None]] = [[None] * len(names) for _ in names]
        for pair in pairs:
            here, there = (place[name] for name in pair["corpora"])
            for row, column, shared in zip((here, there), (there, here), pair[key]["documents"], strict=True):
                total = results[row].get("duplicates", {}).get(key, {}).get("documents", 0)
                share = min(1.0, shared / total) if total else 0.0
                cells[row][column] = (100 * share, percent(share))
        made = tuple(tuple(row) for row in cells)
        note = "Of the corpus named at the left, the share that the corpus named above holds too."
        plots.append(Grid(f"{title} stands in another corpus", tuple(names), made, note))
    return [plot for plot in plots if _any(plot)]
