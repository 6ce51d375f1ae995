"""Histograms of attributes: how many, how long, with which scores."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from loom.artifact import atomic_write
from loom.corpus import attributes, remote
from loom.corpus.documents import relative_name
from loom.corpus.tag import REJECTED
from loom.errors import LoomError

SIDECARS = (".gz", ".zst", ".zstd", ".parquet", ".jsonl")
BINS = 20
BARS = " ▁▂▃▄▅▆▇█"
QUANTILES = (0.01, 0.25, 0.5, 0.75, 0.99)


@dataclass(frozen=True)
class Histogram:
    """One key: documents, those that have it, spans, and its scores' spread over `BINS` equal bins."""

    key: str
    documents: int
    present: int
    spans: int
    mean: float
    quantiles: tuple[float, ...]
    edges: tuple[float, ...]
    counts: tuple[int, ...]

    @property
    def bars(self) -> str:
        """The histogram in one line of text."""
        top = max(self.counts, default=0) or 1
        return "".join(BARS[-(-count * (len(BARS) - 1) // top)] for count in self.counts)


def files_of(patterns: Sequence[str]) -> list[Path]:
    """Sidecars of globs, folders and addresses. A pattern that matches none is an error."""
    found: dict[Path, None] = {}
    for pattern in patterns:
        if (url := remote.address(pattern)) is not None:
            matches = [Path(name) for name in remote.find(url, SIDECARS)]
        elif os.path.isdir(pattern):
            matches = sorted(path for path in Path(pattern).rglob("*") if path.name.endswith(SIDECARS))
        else:
            matches = sorted(
                Path(name) for name in glob.glob(pattern, recursive=True) if os.path.isfile(name)
            )
        matches = [
            path
            for path in matches
            if path.name not in ("files.jsonl", "inputs.jsonl")
            and REJECTED not in relative_name(path, [pattern]).split("/")[:-1]
        ]
        if not matches:
            raise LoomError(
                f"No attribute file matches {pattern!r}. `loom tag` writes them below attributes/."
            )
        found.update(dict.fromkeys(matches))
    return list(found)


def histograms(files: Iterable[Path], like: str = "") -> list[Histogram]:
    """A histogram of every key that holds `like`, in the order in which keys appear."""
    scores: dict[str, list[Any]] = {}
    present: dict[str, int] = {}
    documents = 0
    for path in files:
        for ids, spans in attributes.read(path):
            documents += len(ids)
            for key, value in spans.items():
                if like in key:
                    scores.setdefault(key, []).append(value.scores)
                    present[key] = present.get(key, 0) + int((np.diff(value.offsets) > 0).sum())
    if not scores:
        raise LoomError(f"No attribute's name holds {like!r}." if like else "These files hold no attributes.")
    return [_histogram(key, np.concatenate(parts), present[key], documents) for key, parts in scores.items()]


def _histogram(key: str, scores: Any, present: int, documents: int) -> Histogram:
    counts, edges = np.histogram(scores, BINS) if scores.size else (np.zeros(BINS, int), np.zeros(BINS + 1))
    spread = np.quantile(scores, QUANTILES) if scores.size else np.full(len(QUANTILES), np.nan)
    return Histogram(
        key,
        documents,
        present,
        int(scores.size),
        float(scores.mean()) if scores.size else float("nan"),
        tuple(map(float, spread)),
        tuple(map(float, edges)),
        tuple(map(int, counts)),
    )


def write_page(found: Sequence[Histogram], path: Path) -> None:
    """One self-contained page with a bar chart a key, drawn as SVG."""
    charts = []
    for item in found:
        top = max(item.counts) or 1
        bars = "".join(
            f'<rect x="{20 * n}" y="{100 - 96 * count / top:.1f}" width="18" height="{96 * count / top:.1f}">'
            f"<title>{item.edges[n]:.5g} to {item.edges[n + 1]:.5g}: {count:,}</title></rect>"
            for n, count in enumerate(item.counts)
        )
        charts.append(
            f"<section><h2>{escape(item.key)}</h2><p>{item.present:,} of {item.documents:,} documents, "
            f"{item.spans:,} spans, mean {item.mean:.5g}</p>"
            f'<svg viewBox="0 0 {20 * BINS} 102" role="img" aria-label="histogram">{bars}</svg>'
            f"<p class=range><span>{item.edges[0]:.5g}</span><span>{item.edges[-1]:.5g}</span></p></section>"
        )
    style = (
        "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
        "body{color:#1d2530}"
        "section{margin:2rem 0}h2{font-size:1rem;overflow-wrap:anywhere;margin:0}"
        "p{margin:.2rem 0;color:#55606e}"
        "svg{width:100%;height:7rem}rect{fill:#2f6f8f}.range{display:flex;justify-content:space-between}"
        "@media(prefers-color-scheme:dark){body{background:#14181d;color:#e6e9ec}p{color:#9aa5b1}"
        "rect{fill:#6fb3d2}}"
    )
    page = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Attributes</title>'
        f"<style>{style}</style>"
        f"<h1>Attributes</h1>{''.join(charts)}</html>\n"
    )
    with atomic_write(path) as stream:
        stream.write(page.encode())
