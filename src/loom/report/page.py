"""`ReportData` -> one HTML file: no network, no font, no library; a phone and a dark room will do.

The only script is the page's own, admitted by its digest; text from the records cannot become markup
because every string is escaped where elements are made (`loom.report.html`).
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

from loom.artifact import atomic_write
from loom.report import ancestry, bars, compare, curves, flow, scores, thread
from loom.report.data import ReportData, Training
from loom.report.figures import count, duration, number, size
from loom.report.html import Html, el, join
from loom.report.significance import verdict, verdicts
from loom.version import VERSION


def write_report(path: Path, data: ReportData) -> None:
    """Write the page of `data` to `path`, whole or not at all."""
    with atomic_write(path) as stream:
        stream.write(render(data).encode())


def render(data: ReportData) -> str:
    """The whole page. Equal data gives equal bytes."""
    style, script = _asset("page.css"), _asset("page.js")
    made = [(name, anchor, make(data)) for name, anchor, make in SECTIONS]
    drawn = [(name, anchor, body) for name, anchor, body in made if body is not None]
    absent = [name.lower() for name, anchor, body in made if body is None and anchor not in OPTIONAL]
    policy = (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src '{_digest(script)}'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    head = el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", http_equiv="Content-Security-Policy", content=policy),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("meta", name="color-scheme", content="light dark"),
        el("title", data.title),
        el("style", Html(style)),
    )
    body = el(
        "main",
        _masthead(data, [(name, anchor) for name, anchor, _ in drawn]),
        *(el("section", body, id=anchor) for _, anchor, body in drawn),
        el(
            "footer",
            el("p", f"Drawn by Loom {VERSION} from the run's own records."),
            el("p", f"Not in these records: {', '.join(absent)}.") if absent else None,
            *(el("p", note) for note in data.notes),
        ),
    )
    page = el("html", head, el("body", body, el("script", Html(script))), lang="en")
    return f"<!doctype html>\n{page}\n"


def _asset(name: str) -> str:
    return files("loom.report").joinpath(name).read_text(encoding="utf-8")


def _digest(script: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _masthead(data: ReportData, anchors: list[tuple[str, str]]) -> Html:
    figures = [
        el("div", el("span", a), el("b", b), el("small", c), class_="figure") for a, b, c in _headline(data)
    ]
    return el(
        "header",
        el("p", "Loom run report", class_="eyebrow"),
        el("h1", data.title),
        el("p", data.subtitle, class_="lead") if data.subtitle else None,
        el("div", *figures, class_="figures") if figures else None,
        el("nav", *(el("a", name, href=f"#{anchor}") for name, anchor in anchors)),
    )


def _headline(data: ReportData) -> list[tuple[str, str, str]]:
    """The few numbers that matter: what, how much, beside what."""
    found = []
    if data.flow:
        raw, kept = flow.total(data.flow.raw), flow.total(data.flow.kept)
        share = f" ({100 * kept.bytes / raw.bytes:.0f} %)" if raw.bytes else ""
        found.append(
            ("documents kept", count(kept.documents), f"of {count(raw.documents)}; {size(kept.bytes)}{share}")
        )
    if data.tokens is not None:
        entries = f"vocabulary {count(data.vocabulary)}" if data.vocabulary else ""
        found.append(("tokens", count(data.tokens), entries))
    if data.parameters is not None:
        found.append(("parameters", count(data.parameters), ""))
    main = _main_run(data)
    if main and main.validation:
        last = main.validation[-1][1]
        beside = (
            f"bigram model {main.bigram_entropy:.3f}" if main.bigram_entropy is not None else "nats a token"
        )
        found.append(("validation loss", f"{last:.3f}", beside))
    if data.comparison and data.comparison.models and data.comparison.metrics:
        metric = data.comparison.metrics[0]
        first, last_row = data.comparison.models[0], data.comparison.models[-1]
        if metric.key in last_row.metrics:
            before = first.metrics.get(metric.key)
            beside = f"; {first.model} {number(before.value, metric.percent)}" if before else ""
            value = number(last_row.metrics[metric.key].value, metric.percent)
            found.append((metric.title, value, last_row.model + beside))
    if data.stages:
        whole = sum(stage.seconds for stage in data.stages)
        found.append(("time", duration(whole), f"{len(data.stages)} stages"))
    return found


def _main_run(data: ReportData) -> Training | None:
    return next((run for run in data.training if run.objective == "lm"), None)


def _data_flow(data: ReportData) -> Html | None:
    if data.flow is None:
        return None
    raw, kept = flow.total(data.flow.raw), flow.total(data.flow.kept)
    gone = raw - kept
    biggest = max(data.flow.rules, key=lambda rule: flow.total(rule.removed).bytes, default=None)
    most = (
        f" The rule that took most: {biggest.name}, {size(flow.total(biggest.removed).bytes)}."
        if biggest
        else ""
    )
    lead = (
        f"{count(raw.documents)} documents went in, {count(kept.documents)} came out: "
        f"{size(gone.bytes)} of {size(raw.bytes)} removed.{most}"
    )
    balanced = flow.balance(data.flow)
    rows = []
    for rule in balanced.rules:
        for source, amount in rule.removed.items():
            if amount.documents or amount.bytes:
                rows.append(
                    el(
                        "tr",
                        el("th", rule.name, scope="row"),
                        el("td", source),
                        el("td", f"{amount.documents:,}"),
                        el("td", f"{amount.bytes:,}"),
                    )
                )
    head = el(
        "tr", *(el("th", t, scope="col") for t in ("rule", "source", "documents removed", "bytes removed"))
    )
    table = el("table", el("thead", head), el("tbody", *rows), class_="numbers")
    return join(
        el("h2", "What went in, and what each rule removed"),
        el("p", lead, class_="lead"),
        flow.draw(data.flow),
        el("details", el("summary", "Exact numbers, by rule and source"), el("div", table, class_="wide")),
    )


def _training(data: ReportData) -> Html | None:
    if not data.training:
        return None
    return join(el("h2", "Training"), *(_run(run) for run in data.training))


def _run(run: Training) -> Html:
    levels = []
    if run.unigram_entropy is not None:
        levels.append(curves.Level("unigram", run.unigram_entropy))
    if run.bigram_entropy is not None:
        levels.append(curves.Level("bigram", run.bigram_entropy))
    unit = "nats a token" if run.objective != "dpo" else "nats a pair"
    main = curves.chart(
        f"{run.name}: loss",
        [
            curves.Line("training", run.loss, "c0", noisy=True),
            curves.Line("validation", run.validation, "c1", dots=True),
        ],
        levels,
        unit=unit,
        height=340 if run.objective == "lm" else 220,
        ceiling=_ceiling(run),
    )
    small = [
        curves.chart(
            "learning rate", [curves.Line("learning rate", run.learning_rate, "c2")], height=110, zero=True
        )
        if run.learning_rate
        else None,
        curves.chart(
            "gradient norm", [curves.Line("gradient norm", run.gradient_norm, "c3", noisy=True)], height=110
        )
        if run.gradient_norm
        else None,
        curves.chart(
            "tokens a second", [curves.Line("tokens/s", run.tokens_per_second, "c5")], height=110, zero=True
        )
        if run.tokens_per_second
        else None,
        *(
            curves.chart(name, [curves.Line(name, points, "c4", dots=True)], height=110)
            for name, points in run.more.items()
        ),
    ]
    return join(
        el("p", _finding(run), class_="lead"),
        el("p", run.note) if run.note else None,
        main,
        el("div", *(item for item in small if item), class_="trio"),
    )


def _ceiling(run: Training) -> float | None:
    """Where to cut a loss curve's top: a little above the unigram model, once the run is well below it."""
    if run.unigram_entropy is None or not run.loss:
        return None
    last = run.loss[-1][1]
    return run.unigram_entropy + 0.2 * (run.unigram_entropy - last) if last < run.unigram_entropy else None


def _finding(run: Training) -> str:
    """What the curves say, in a sentence."""
    parts = []
    if run.loss:
        (_, first), (steps, last) = run.loss[0], run.loss[-1]
        parts.append(f"{run.name}: {count(steps)} steps, training loss {first:.3f} to {last:.3f}")
    if run.validation:
        last = run.validation[-1][1]
        said = f"validation loss {last:.3f}"
        if run.bigram_entropy is not None:
            distance = last - run.bigram_entropy
            way = "below" if distance < 0 else "above"
            said += f", {abs(distance):.3f} {way} the bigram model's {run.bigram_entropy:.3f}"
        parts.append(said)
    return "; ".join(parts) + "." if parts else f"{run.name}: no steps were recorded."


def _beside(data: ReportData) -> Html | None:
    if len(data.beside) < 2:
        return None
    first = data.beside[0]
    lines = [curves.Line(run.name, run.loss, f"c{i % 8}", noisy=True) for i, run in enumerate(data.beside)]
    held = [
        curves.Line(run.name, run.validation, f"c{i % 8}", dots=True)
        for i, run in enumerate(data.beside)
        if run.validation
    ]
    gaps = [
        curves.Line(run.name, tuple(compare.paired(first.loss, run.loss)), f"c{i % 8}", noisy=True)
        for i, run in enumerate(data.beside[1:], start=1)
    ]
    verdicts_of = []
    for run in data.beside[1:]:
        found = compare.difference(first.loss, run.loss)
        said = found.sentence if found else "Too few common steps to say."
        verdicts_of.append(el("li", el("b", f"{run.name} against {first.name}: "), said))
    speeds = [curves.Line(r.name, r.tokens_per_second, f"c{i % 8}") for i, r in enumerate(data.beside)]
    return join(
        el("h2", "Side by side"),
        _outcomes(data),
        el("ul", *verdicts_of, class_="verdicts"),
        curves.chart("training loss", lines, unit="nats a token", height=320),
        curves.chart("validation loss", held, unit="nats a token", height=220) if held else None,
        curves.chart(f"training loss minus {first.name}'s", gaps, unit="nats a token", height=180),
        curves.chart("tokens a second", speeds, height=130, zero=True),
        el(
            "p",
            "Differences are paired by step over the last half of the common steps; standard errors from "
            "means of blocks, because neighbouring steps go together.",
            class_="quiet",
        ),
    )


def _outcomes(data: ReportData) -> Html | None:
    """What the runs differ in and how they ended; runs that differ in their seed alone share a row."""
    if not data.outcomes:
        return None
    titles, *rows = data.outcomes
    head = el("thead", el("tr", *(el("th", title, scope="col") for title in titles)))
    body = el("tbody", *(el("tr", *(el("td", cell) for cell in row)) for row in rows))
    said = "Only keys that differ are shown; ± is the standard error over seeds."
    tested = el("ul", *(el("li", sentence) for sentence in data.noise)) if data.noise else None
    return join(el("div", el("table", head, body), class_="wide"), el("p", said, class_="quiet"), tested)


def _bits(data: ReportData) -> Html | None:
    if not data.bits_per_byte:
        return None
    order = {source: i for i, source in enumerate(data.flow.raw)} if data.flow else {}
    best = min(data.bits_per_byte, key=lambda source: data.bits_per_byte[source].value)
    worst = max(data.bits_per_byte, key=lambda source: data.bits_per_byte[source].value)
    lead = f"Bits the pretrained model needs for a byte of held-out text: least for {best}, most for {worst}."
    errors = any(m.stderr for m in data.bits_per_byte.values())
    return join(
        el("h2", "Bits per byte, by source"),
        el("p", lead, class_="lead"),
        bars.by_source(data.bits_per_byte, order),
        el("p", "Lower is better." + (" Whiskers: two standard errors." if errors else ""), class_="quiet"),
    )


def _tuning(data: ReportData) -> Html | None:
    comparison = data.comparison
    if comparison is None or not comparison.models:
        return None
    found = verdicts(comparison)
    moved = [item for item in found if item.kind in ("better", "worse")]
    lead = (
        "No change between these models is beyond two standard errors."
        if found and not moved
        else f"{len(moved)} of {len(found)} changes are beyond two standard errors."
    )
    items = [
        el(
            "li",
            el("em", bars.MARKS[item.kind], class_=f"mark {item.kind}"),
            el("b", f"{item.metric.title}: "),
            item.sentence,
        )
        for item in found
    ]
    paired = {item.paired for item in found}
    how = {
        frozenset({True}): "Standard errors of differences are paired: the same items under both models.",
        frozenset(
            {False}
        ): "Standard errors of differences are those of independent samples, which overstates them.",
    }.get(frozenset(paired), "Differences are paired where the records hold both models' items.")
    return join(
        el("h2", "Before and after tuning"),
        el("p", lead, class_="lead") if found else None,
        el("div", *(bars.panel(comparison, metric) for metric in comparison.metrics), class_="panels"),
        el("ul", *items, class_="verdicts") if items else None,
        el(
            "p",
            "▲ better and ▼ worse than the model before it by more than two standard errors; ≈ no "
            f"significant change. {how} Whiskers: two standard errors.",
            class_="quiet",
        ),
        el("details", el("summary", "The same as a table"), el("div", _table(data), class_="wide")),
    )


def _table(data: ReportData) -> Html:
    assert data.comparison is not None
    comparison = data.comparison
    head = el(
        "tr", el("th", "model", scope="col"), *(el("th", m.title, scope="col") for m in comparison.metrics)
    )
    rows = []
    before: str | None = None
    for row in comparison.models:
        cells = []
        for metric in comparison.metrics:
            measure = row.metrics.get(metric.key)
            if measure is None:
                cells.append(el("td", "not measured"))
                continue
            item = verdict(comparison, metric, row.model, before) if before else None
            mark = f" {bars.MARKS[item.kind]}" if item else ""
            error = f" ± {number(measure.stderr, metric.percent)}" if measure.stderr is not None else ""
            cells.append(el("td", f"{number(measure.value, metric.percent)}{error}{mark}"))
        rows.append(el("tr", el("th", row.model, scope="row"), *cells))
        before = row.model
    return el("table", el("thead", head), el("tbody", *rows), class_="numbers")


def _samples(data: ReportData) -> Html | None:
    if not data.samples:
        return None
    cards = []
    for sample in data.samples:
        pairs = [
            join(el("dt", model), el("dd", answer or "(nothing)")) for model, answer in sample.answers.items()
        ]
        if sample.expected is not None:
            pairs.append(join(el("dt", "documentation"), el("dd", sample.expected, class_="expected")))
        if sample.trace:
            pairs.append(
                join(
                    el("dt", "training data"),
                    el("dd", el("a", "where its words come from", href=sample.trace)),
                )
            )
        cards.append(el("article", el("h3", sample.question), el("dl", *pairs), class_="sample"))
    return join(
        el("h2", "What it says"),
        el("p", "Greedy answers, as they came out; none was chosen.", class_="lead"),
        *cards,
    )


def _time(data: ReportData) -> Html | None:
    if not data.stages:
        return None
    whole = sum(stage.seconds for stage in data.stages)
    longest = max(data.stages, key=lambda stage: stage.seconds)
    share = f"{100 * longest.seconds / whole:.0f} %" if whole else "all"
    return join(
        el("h2", "Where the time went"),
        el("p", f"{duration(whole)} in all; {longest.name} took {share} of it.", class_="lead"),
        bars.timeline(data.stages),
    )


def _lineage(data: ReportData) -> Html | None:
    if not data.lineage:
        return None
    return join(
        el("h2", "From raw files to model"),
        el(
            "p",
            "Each box is an artifact with its manifest's digest; a line leads down to what was made from it.",
            class_="lead",
        ),
        ancestry.draw(data.lineage),
    )


def _energy(data: ReportData) -> Html | None:
    energy = data.energy
    if energy is None:
        return None
    kind = "measured" if energy.measured else "estimated"
    formula = (
        f"{energy.kwh:.4g} kWh × PUE {energy.pue:g} × {energy.carbon_intensity:g} kg CO₂eq a kWh"
        f" = {energy.kg_co2:.3g} kg CO₂eq"
    )
    return join(
        el("h2", "Energy and carbon"),
        el("p", f"{energy.kwh:.3g} kWh ({kind}), {energy.kg_co2:.3g} kg CO₂eq.", class_="lead"),
        el("p", formula),
        el("p", f"{energy.how}. Grid: {energy.source}.", class_="quiet"),
    )


def _environment(data: ReportData) -> Html | None:
    if not data.environment:
        return None
    rows = [el("tr", el("th", key, scope="row"), el("td", value)) for key, value in data.environment.items()]
    return join(
        el("h2", "Environment"), el("div", el("table", el("tbody", *rows), class_="facts"), class_="wide")
    )


OPTIONAL = ("side-by-side", "evaluation", "thread")  # not missed where a page has none
Section = tuple[str, str, Callable[[ReportData], Html | None]]
SECTIONS: tuple[Section, ...] = (
    ("Data", "data", _data_flow),
    ("Side by side", "side-by-side", _beside),
    ("Training", "training", _training),
    ("Bits per byte", "bits-per-byte", _bits),
    ("Tuning", "tuning", _tuning),
    ("Evaluation", "evaluation", scores.draw),
    ("Samples", "samples", _samples),
    ("Thread", "thread", thread.draw),
    ("Time", "time", _time),
    ("Lineage", "lineage", _lineage),
    ("Energy", "energy", _energy),
    ("Environment", "environment", _environment),
)
