"""Paragraphs without a letter or a digit of ASCII that are nothing but punctuation, symbols and spaces."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from functools import cache

from loom.corpus.attributes import Spans, from_lists
from loom.corpus.taggers import Tagger, Texts, tagger
from loom.corpus.taggers.length import CIRCLED, paragraphs

ALPHANUMERIC = re.compile(r"[a-zA-Z0-9]")
EMOJI = ((0x1F300, 0x1F64F), (0x1F680, 0x1F6FF), (0x2600, 0x27BF))  # whether or not a character is there
SEPARATORS = "\x1c\x1d\x1e\x1f"  # spaces to Python, not to Unicode


@cache
def _is_mark(character: str) -> bool:
    """Whether it is punctuation (as POSIX sees it: symbols too, but no letters in circles), a space or an emoji."""
    code = ord(character)
    if character.isspace():
        return character not in SEPARATORS
    if unicodedata.category(character)[0] in "PS":
        return code not in CIRCLED
    return any(low <= code <= high for low, high in EMOJI)


@tagger("not_alphanum_paragraph_v1", spans="paragraphs", source="Dolma 1.2")
def not_alphanum_paragraph_v1() -> Tagger:
    """`all_punct`: paragraphs of punctuation alone, else 0 for the document (characters of this Python's Unicode)."""

    def tag(texts: Texts) -> Mapping[str, Spans]:
        found: list[list[tuple[int, int, float]]] = []
        for text in texts.strings:
            marked = [
                (start, end, 1.0)
                for start, end in paragraphs(text)
                if not ALPHANUMERIC.search(text, start, end) and all(map(_is_mark, set(text[start:end])))
            ]
            found.append(marked or [(0, len(text), 0.0)])
        return {"all_punct": from_lists(found)}

    return tag
