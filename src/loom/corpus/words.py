"""Words as Unicode parts them (UAX 29), near enough to count them.

Letters and digits run together, also across an apostrophe, a dot or a colon between letters and a dot or a
comma between digits; ideographs and kana of Hiragana stand alone; Katakana runs; so does every other
character that is no space. Emoji sequences and flags are not joined as the standard would.
"""

from __future__ import annotations

import re
import unicodedata
from functools import cache

ALONE = "\u3041-\u3096\u309d-\u309f\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003fffd\u0e00-\u0eff"
KATAKANA = "\u30a1-\u30fa\u30fc-\u30ff\uff66-\uff9d\u3031-\u3035\u309b\u309c"


@cache
def pattern() -> re.Pattern[str]:
    marks = _ranges(
        [p for p in range(0x300, 0x20000) if unicodedata.category(chr(p)) in ("Mn", "Mc", "Me", "Cf")]
    )
    extend = f"[{marks}]*"
    letter = f"(?:[^\\W\\d_{ALONE}{KATAKANA}]{extend})"
    digit = f"(?:\\d{extend})"
    joined = f"(?:{letter}|{digit}|_)"
    between = f"(?:(?<=[^\\W\\d_])[.':·․‧︓﹒﹕＇．：’‘](?={letter})|(?<=\\d)[.,;'’‘٬؍﹐﹔，．；](?=\\d))"
    return re.compile(
        f"{joined}(?:{joined}|{between})*|[{KATAKANA}]+{extend}|\\r\\n|[^\\S\\r\\n]|\\S{extend}|[\\r\\n]"
    )


def _ranges(points: list[int]) -> str:
    out = []
    start = previous = points[0]
    for point in [*points[1:], -1]:
        if point != previous + 1:
            out.append(f"\\U{start:08x}-\\U{previous:08x}")
            start = point
        previous = point
    return "".join(out)


def count_words(text: str) -> int:
    """Words and marks of `text`, spaces not counted."""
    return sum(1 for match in pattern().finditer(text) if not match.group().isspace())
