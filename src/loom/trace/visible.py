"""Text from documents, made harmless to look at: nothing in it can act on a terminal or a page."""

from __future__ import annotations

import re
from collections.abc import Sequence

# Control characters act on terminals, bidirectional ones hide what a line says.
_ACTING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")

_EMPTY_LINES = re.compile(r"\n(?:[^\S\n]*\n){2,}")


def visible(text: str) -> str:
    """`text` with every character that acts replaced by a picture of it; tabs and line ends stay."""
    return _ACTING.sub(_picture, text)


def _picture(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code < 0x20:
        return chr(0x2400 + code)
    return "\u2421" if code == 0x7F else f"⟨{code:04X}⟩"


def one_line(text: str, most: int) -> str:
    """`text` on one line of at most `most` code points, its spaces run together."""
    flat = " ".join(visible(text).split())
    return flat if len(flat) <= most else flat[: most - 1] + "…"


def squeezed(text: str) -> str:
    """`text` with runs of empty lines as one, so that a passage's match stays in sight."""
    return _EMPTY_LINES.sub("\n\n", text)


def around(before: str, after: str, lines: int = 5) -> tuple[str, str]:
    """The lines nearest to a match on either side, so that it is in sight without scrolling."""
    ahead, behind = squeezed(before).split("\n"), squeezed(after).split("\n")
    first = "…\n" if len(ahead) > lines else ""
    last = "\n…" if len(behind) > lines else ""
    return first + "\n".join(ahead[-lines:]), "\n".join(behind[:lines]) + last


def times(count: int) -> str:
    """How often: once, or so many times."""
    return "once" if count == 1 else f"{count:,} times"


def step_ranges(steps: Sequence[int], most: int = 12) -> str:
    """Steps as people read them: [3, 4, 5, 9] is "3–5, 9"; what is over `most` ranges is counted."""
    if not steps:
        return "none yet"
    ranges: list[list[int]] = []
    for step in steps:
        if ranges and step == ranges[-1][1] + 1:
            ranges[-1][1] = step
        else:
            ranges.append([step, step])
    shown = [f"{low:,}" if low == high else f"{low:,}–{high:,}" for low, high in ranges[:most]]
    rest = sum(high - low + 1 for low, high in ranges[most:])
    return ", ".join(shown) + (f" and {rest:,} more" if rest else "")
