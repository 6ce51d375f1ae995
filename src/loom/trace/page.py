"""A trace, or a step's batch, as one page: no network, no script, every text escaped and harmless."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any

import jinja2

from loom.artifact import atomic_write
from loom.trace.visible import around, step_ranges, times, visible
from loom.version import VERSION

SHADES = 4  # of relevance


def write_trace_page(
    path: Path, told: Mapping[str, Any], title: str = "Where this answer comes from"
) -> None:
    """Write what `trace` gave as a page, whole or not at all."""
    first: dict[str, int] = {}  # where the answer says the same twice, one section stands for both
    spans = [
        {
            **span,
            "number": first.setdefault(span["text"], number),
            "shade": _shade(span),
            "known": len(span["documents"]),
        }
        for number, span in enumerate(told["spans"])
    ]
    often = Counter(span["text"] for span in told["spans"])
    sections = [spans[number] | {"said": often[text]} for text, number in first.items()]
    cut = pieces(told["text"], spans)
    _write(path, "trace.html", title=title, told=told, spans=spans, sections=sections, pieces=cut)


def write_step_page(path: Path, found: Mapping[str, Any]) -> None:
    """Write what `inspect_step` gave, with its text, as a page; the document `found["sought"]` stands out."""
    _write(path, "step.html", title=f"Step {found['step']:,}", found=found)


def pieces(text: str, spans: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The text cut at every span's ends: [{"text", "span" or None, "shade"}]; of two, the later."""
    edges = sorted({0, len(text), *(span["start"] for span in spans), *(span["end"] for span in spans)})
    out = []
    for start, end in pairwise(edges):
        over = [span for span in spans if span["start"] <= start and end <= span["end"]]
        span = over[-1] if over else None
        out.append(
            {
                "text": text[start:end],
                "span": span["number"] if span else None,
                "shade": span["shade"] if span else 0,
            }
        )
    return out


def _shade(span: Mapping[str, Any]) -> int:
    """1 to `SHADES`: how relevant the best of a span's documents is."""
    best = max((document["relevance"] for document in span["documents"]), default=0.0)
    return min(SHADES, 1 + int(best * SHADES))


def _write(path: Path, template: str, **values: Any) -> None:
    environment = jinja2.Environment(
        autoescape=True, loader=jinja2.FunctionLoader(_asset), undefined=jinja2.StrictUndefined
    )
    environment.filters |= {
        "visible": visible,
        "around": around,
        "times": times,
        "steps": step_ranges,
        "thousands": lambda n: f"{n:,}",
        "plural": lambda n, name: f"{n:,} {name}" + ("" if n == 1 else "s"),
    }
    page = environment.get_template(template).render(version=VERSION, **values)
    with atomic_write(path) as stream:
        stream.write(page.encode())


def _asset(name: str) -> str:
    return files("loom.trace").joinpath(name).read_text(encoding="utf-8")
