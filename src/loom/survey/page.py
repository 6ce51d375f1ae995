"""A survey as one page: plots that lay several corpora over each other, the numbers below, no script."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2

from loom.artifact import atomic_write
from loom.survey import plots
from loom.survey.analysis import Analysis
from loom.version import VERSION

ROWS = 15  # of a list that are shown
OPEN = ("duplicates", "search")  # whose lists say more than their plots
LABELS = (
    "name",
    "date",
    "language",
    "source",
    "text",
    "term",
    "kind",
    "word",
    "query",
    "id",
    "length",
    "row",
)


def write_page(path: Path, body: Mapping[str, Any], analyses: Sequence[Analysis]) -> None:
    """Write the page of a survey's results, whole or not at all."""
    corpora = [body, *body["against"].values()]
    names = plots.short_names([corpus["corpus"] for corpus in corpora])
    sections = [
        {
            "name": analysis.name,
            "title": analysis.title,
            "plots": (drawn := plots.draw(analysis.name, corpora)),
            "open": not drawn or analysis.name in OPEN,
            "columns": [_blocks(corpus.get(analysis.name, {})) for corpus in corpora],
        }
        for analysis in analyses
    ]
    environment = jinja2.Environment(
        autoescape=True, loader=jinja2.FunctionLoader(_asset), undefined=jinja2.StrictUndefined
    )
    environment.filters |= {"plain": plain}
    page = environment.get_template("page.html").render(
        version=VERSION,
        names=names,
        full=[corpus["corpus"] for corpus in corpora],
        sections=sections,
        overlap=body.get("overlap", []),
        shared=plots.overlaps(names, body.get("overlap", []), corpora),
    )
    with atomic_write(path) as stream:
        stream.write(page.encode())


def _asset(name: str) -> str:
    return files("loom.survey").joinpath(name).read_text(encoding="utf-8")


def plain(value: Any) -> str:
    """A value as people read it; characters that act on a page or a terminal become pictures."""
    match value:
        case None:
            return "–"
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
        case float():
            return f"{value:,.1f}" if abs(value) >= 1000 else f"{value:.4g}"
        case list() | dict():
            return ", ".join(plain(item) for item in (value.values() if isinstance(value, dict) else value))
        case _:
            return "".join(c if c.isprintable() or c == " " else "␣" for c in str(value))


def _blocks(result: Mapping[str, Any], title: str = "") -> list[dict[str, Any]]:
    """A result as blocks: single values together, then every list as a table with bars, nested ones below."""
    values, blocks = [], []
    for key, value in result.items():
        name = key.replace("_", " ")
        if isinstance(value, list) and value and isinstance(value[0], dict):
            blocks.append(_table(f"{title}{name}", value))
        elif isinstance(value, Mapping) and any(isinstance(item, list | Mapping) for item in value.values()):
            blocks += _blocks(value, f"{title}{name}: ")
        elif not isinstance(value, list):
            values.append((name, value))
    head = [{"title": title.rstrip(": "), "values": values, "columns": [], "rows": []}] if values else []
    return head + blocks


def _table(title: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    columns = list(dict.fromkeys(key for row in rows[:ROWS] for key in row))
    columns.sort(key=lambda key: (key not in LABELS, key not in LABELS or LABELS.index(key)))
    number = next(
        (key for key in columns if key not in LABELS and isinstance(rows[0].get(key), int | float)), None
    )
    most = max((abs(row.get(number) or 0) for row in rows[:ROWS]), default=0) if number else 0
    shown = [
        {
            "cells": [row.get(key) for key in columns],
            "bar": round(100 * abs(row.get(number) or 0) / most) if number and most else 0,
        }
        for row in rows[:ROWS]
    ]
    return {
        "title": title,
        "values": [],
        "columns": [column.replace("_", " ") for column in columns],
        "rows": shown,
        "more": len(rows) - len(shown),
    }
