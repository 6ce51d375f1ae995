"""One answer followed back: its words in the training documents, and the steps in which they were read."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from loom.report.data import Echo, Origin, ReportData, Traced
from loom.report.html import Html, el, join
from loom.trace.visible import around, step_ranges, times, visible

SHOWN = 4  # echoes with their documents, the longest first
COLOURS = 8


def draw(data: ReportData) -> Html | None:
    """The section of `data.traced`; None where no answer was traced."""
    traced = data.traced
    if traced is None:
        return None
    shown = sorted(_chosen(traced), key=lambda echo: echo.start)
    return join(
        el("h2", "Where an answer comes from"),
        el("p", _finding(traced), class_="lead"),
        el("p", f"Asked: {visible(traced.question)}", class_="asked"),
        el("div", *_highlighted(traced.answer, shown), class_="answer"),
        *(_echo(number, traced, echo) for number, echo in enumerate(shown)),
        _onward(traced, len(shown)),
    )


def _chosen(traced: Traced) -> list[Echo]:
    """The longest echoes, of those that say the same the first."""
    said: dict[str, Echo] = {}
    for echo in sorted(traced.echoes, key=lambda echo: (-echo.tokens, echo.start)):
        said.setdefault(traced.answer[echo.start : echo.end], echo)
    return list(said.values())[:SHOWN]


def _finding(traced: Traced) -> str:
    if not traced.echoes:
        return "No run of whole words of this answer stands in the training tokens."
    longest = max(traced.echoes, key=lambda echo: echo.tokens)
    said = f"“{_short(traced.answer[longest.start : longest.end])}” stands "
    said += f"{times(longest.count)} word for word in the training tokens"
    if longest.documents:
        first = longest.documents[0]
        said += f", for one in {visible(first.id)}"
        steps = first.passage_steps
        said += f", read in step {steps[0]:,}" if steps else ", which the model had not read there yet"
    return said + "."


def _short(text: str, most: int = 90) -> str:
    flat = " ".join(visible(text).split())
    return flat if len(flat) <= most else flat[: most - 1] + "…"


def _highlighted(text: str, echoes: Sequence[Echo]) -> list[str]:
    """The answer cut at the echoes' ends; what several hold belongs to the later one."""
    edges = sorted({0, len(text), *(e.start for e in echoes), *(e.end for e in echoes)})
    parts: list[str] = []
    for start, end in pairwise(edges):
        over = [n for n, echo in enumerate(echoes) if echo.start <= start and end <= echo.end]
        piece = visible(text[start:end])
        if not over:
            parts.append(piece)
            continue
        number = over[-1]
        last = echoes[number].end == end
        parts.append(
            el(
                "a",
                piece,
                el("sup", str(number + 1)) if last else None,
                href=f"#echo-{number + 1}",
                class_=f"span c{number % COLOURS}",
            )
        )
    return parts


def _echo(number: int, traced: Traced, echo: Echo) -> Html:
    text = visible(traced.answer[echo.start : echo.end])
    first = echo.documents[0] if echo.documents else None
    which = "the document closest to the whole answer"
    if first and first.passage_steps:
        which = "of the passages the model has read, the closest to the whole answer"
    return el(
        "article",
        el("h3", el("span", str(number + 1)), f"“{text}”"),
        el("p", f"{times(echo.count)} in the training tokens; {which}:", class_="quiet"),
        _origin(traced, first) if first else None,
        class_=f"echo c{number % COLOURS}",
        id=f"echo-{number + 1}",
    )


def _origin(traced: Traced, origin: Origin) -> Html:
    facts = [("document", visible(origin.id)), ("source", f"{origin.source}, {visible(origin.place)}")]
    facts += [(visible(key), visible(value)) for key, value in origin.metadata.items()]
    facts.append(("rules", visible(", ".join(origin.rules)) or "none touched it"))
    facts.append(("read in steps", step_ranges(origin.steps)))
    pairs = [join(el("dt", name), el("dd", value)) for name, value in facts]
    here: str = step_ranges(origin.passage_steps)
    if traced.step is not None and traced.step in origin.passage_steps and traced.step_page:
        here = join(here, "; ", el("a", f"the batch of step {traced.step:,}", href=traced.step_page))
    pairs.append(join(el("dt", "this passage"), el("dd", here)))
    before, after = around(visible(origin.before), visible(origin.after))
    passage = el(
        "div",
        before,
        el("mark", visible(origin.match)),
        after,
        class_="passage",
        tabindex="0",
    )
    return join(passage, el("dl", *pairs))


def _onward(traced: Traced, shown: int) -> Html | None:
    if not traced.page:
        return None
    rest = len(traced.echoes) - shown
    more = f", with {rest} more span{'s' if rest != 1 else ''}" if rest > 0 else ""
    return el(
        "p",
        el("a", "The whole trace", href=traced.page),
        f"{more} and every document found. Steps are those up to {traced.steps_read:,}. A span says that "
        "these words stand in the training data, not that the model took them from there.",
        class_="quiet",
    )
