"""Mixing: what becomes of a document's text once every rule has spoken.

Spans that overlap are merged before anything is replaced, so masked text never survives in part; the
merged span is replaced by what its first span asks for.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Edit:
    """Replace `text[start:end]` (code points) by `replacement`; `kind` is what it is counted under."""

    start: int
    end: int
    replacement: str
    kind: str


def merge(edits: Iterable[Edit]) -> list[Edit]:
    """Edits by start, overlapping ones joined; of equal starts the longest speaks, then the first named."""
    merged: list[Edit] = []
    for edit in sorted(edits, key=lambda item: (item.start, -item.end)):
        if edit.end <= edit.start:
            continue
        if merged and edit.start < merged[-1].end:
            last = merged[-1]
            merged[-1] = Edit(last.start, max(last.end, edit.end), last.replacement, last.kind)
        else:
            merged.append(edit)
    return merged


def apply(text: str, merged: Sequence[Edit]) -> str:
    """`text` with every merged edit made."""
    parts = []
    at = 0
    for edit in merged:
        parts += [text[at : edit.start], edit.replacement]
        at = edit.end
    parts.append(text[at:])
    return "".join(parts)
