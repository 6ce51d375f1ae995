"""Dolma 1.2's span replacement, as its mixer does it character by character.

The earliest start wins; a span that begins before another has ended is dropped whole, so its tail survives.
A span of no length swallows one character, stops every later replacement, and its own replacement goes to
the end of the text.
"""

from __future__ import annotations

from collections.abc import Sequence

Span = tuple[int, int, str]


def replace(text: str, spans: Sequence[Span]) -> str:
    """`text` with (start, end, replacement) spans replaced; `{}` in a replacement is what it replaces."""
    ordered = sorted(spans, key=lambda span: span[0])
    if all(0 <= start < end and start < len(text) for start, end, _ in ordered):
        return join(text, ordered)
    return _by_character(text, ordered)


def disjoint(ordered: Sequence[Span], length: int) -> bool:
    """Whether spans, sorted by start, have a length each, begin in the text and do not overlap."""
    at = 0
    for start, end, _ in ordered:
        if not at <= start < end or start >= length:
            return False
        at = end
    return True


def join(text: str, ordered: Sequence[Span]) -> str:
    """`text` with spans replaced, sorted by start; one that begins in another is dropped whole."""
    out: list[str] = []
    at = 0
    for start, end, replacement in ordered:
        if start >= at:
            out.append(text[at:start])
            if replacement:
                out.append(replacement.replace("{}", text[start:end]))
            at = end
    out.append(text[at:])
    return "".join(out)


def _by_character(text: str, ordered: Sequence[Span]) -> str:
    out: list[str] = []
    current = 0
    began = 0
    for at, character in enumerate(text):
        if current >= len(ordered):
            out.append(text[at:])
            break
        start, end, replacement = ordered[current]
        if at == start:
            began = at
        if start <= at < end:
            continue
        if at == end:
            out.append(replacement.replace("{}", text[began:at]))
            while current < len(ordered) and ordered[current][0] < at:
                current += 1
        if current < len(ordered) and ordered[current][0] == at:
            began = at
        else:
            out.append(character)
    if current < len(ordered):
        out.append(ordered[current][2].replace("{}", text[began:]))
    return "".join(out)
