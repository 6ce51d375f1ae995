"""Text to ids, and which code points of the text each id stands for.

A byte-level tokenizer's ids spell out the text's bytes, so offsets are sums of lengths. Where the
tokenizer normalises first (GPT-NeoX's: NFC), the normalised text is laid against the original in
segments that normalisation does not cross; an id inside such a segment stands for the whole of it.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from loom.errors import LoomError
from loom.tokens.tokenizer import Tokenizer


@dataclass(frozen=True)
class Encoded:
    """A text's ids [n]; id i stands for `text[starts[i]:ends[i]]`, code points."""

    text: str
    ids: NDArray[np.uint32]
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]


def encode(tokenizer: Tokenizer, text: str) -> Encoded:
    """Raises `LoomError` for a tokenizer whose ids do not spell the text, nor its NFC."""
    ids = tokenizer.encode(text)
    pieces = [tokenizer.token_bytes(index) for index in ids.tolist()]
    spelt = b"".join(pieces)
    ends = np.cumsum([len(piece) for piece in pieces], dtype=np.int64)
    starts = np.concatenate((ends[:0], [0], ends[:-1]))[: len(ends)].astype(np.int64)
    if spelt == text.encode():
        low, high = _code_points(text)
    else:
        normal, low_of, high_of = _normalised(text)
        if spelt != normal.encode():
            raise LoomError(
                f"The tokenizer {tokenizer.name} changes text in a way that is not known here, so no place "
                f"in the text can be given. Byte-level BPE, plain or with NFC, can be traced."
            )
        low, high = _code_points(normal)
        low, high = low_of[low], high_of[high]
    return Encoded(text, ids, low[starts], high[ends])


def _code_points(text: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For each byte offset 0..n: the code point it lies in, as a start; the first one after it, as an end."""
    data = np.frombuffer(text.encode(), np.uint8)
    heads = (data & 0xC0) != 0x80
    begun = np.concatenate(([0], np.cumsum(heads)))  # code points begun before this byte
    at_head = np.append(heads, True)
    return np.where(at_head, begun, begun - 1), begun


def _joins(character: str) -> bool:
    """Whether normalisation may merge a character with the one before it: marks and Hangul vowels, tails."""
    return unicodedata.category(character)[0] == "M" or "\u1160" <= character <= "\u11ff"


def _normalised(text: str) -> tuple[str, NDArray[np.int64], NDArray[np.int64]]:
    """NFC of a text; for each place 0..n in it, where its segment starts, and where the one before ends."""
    parts: list[str] = []
    low: list[int] = []
    high: list[int] = [0]
    start = 0
    for end in range(1, len(text) + 1):
        if end < len(text) and _joins(text[end]):
            continue
        normal = unicodedata.normalize("NFC", text[start:end])
        parts.append(normal)
        low += [start] * len(normal)
        high += [end] * len(normal)
        start = end
    return "".join(parts), np.array([*low, len(text)], np.int64), np.array(high, np.int64)
