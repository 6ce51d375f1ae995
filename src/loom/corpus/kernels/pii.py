"""Paragraphs that may hold an address or a number: everything a pattern could match, and little more."""

from __future__ import annotations

import numpy as np

from loom.corpus.kernels.characters import DECIMAL, ascii_space, code_point, wide_space
from loom.native import kernel

EMAIL, PHONE, IP = 1, 2, 4


@kernel
def paragraphs(data, offsets, characters):  # type: ignore[no-untyped-def]
    """Candidates of every document: (row, first byte, end byte, first code point, kinds), int64[m, 5].

    A paragraph is a line with its newline, and not blank. Kinds are bits: EMAIL for an @ inside it, PHONE
    for digits in runs that can make 3 + 3 + 4, IP for four dotted numbers. `characters` is
    `character_table()`.
    """
    found = np.empty((1024, 5), np.int64)
    count = 0
    for row in range(offsets.size - 1):
        high = offsets[row + 1]
        at = offsets[row]
        code_points = 0
        while at < high:
            start = at
            first = code_points
            kinds = 0
            dots = digits = runs = 0
            blank = True
            while at < high:
                byte = data[at]
                here = at
                at += 1
                if (byte & 0xC0) == 0x80:
                    continue
                code_points += 1
                if byte == 10:
                    break
                digit = 48 <= byte <= 57
                if byte >= 0x80:
                    digit = characters[code_point(data, here)] & DECIMAL != 0
                    if blank and not wide_space(data, here):
                        blank = False
                elif blank and not ascii_space(byte):
                    blank = False
                if digit:
                    digits += 1
                    if digits == 3 or digits == 6 or digits == 10:
                        runs += 1
                    if dots >= 3:
                        kinds |= IP
                elif byte == 46:
                    dots = dots + 1 if digits > 0 else 0
                    digits = 0
                else:
                    if byte == 64 and here > start:
                        kinds |= EMAIL
                    dots = digits = 0
            if runs >= 3:
                kinds |= PHONE
            if kinds and not blank:
                if count == found.shape[0]:
                    grown = np.empty((2 * count, 5), np.int64)
                    grown[:count] = found
                    found = grown
                found[count, 0] = row
                found[count, 1] = start
                found[count, 2] = at
                found[count, 3] = first
                found[count, 4] = kinds
                count += 1
    return found[:count]


@kernel
def question_marks(data, offsets):  # type: ignore[no-untyped-def]
    """Question marks of every document, int64[n]."""
    out = np.zeros(offsets.size - 1, np.int64)
    for row in range(out.size):
        count = 0  # a local, so that the loop becomes vector instructions
        for at in range(offsets[row], offsets[row + 1]):
            count += data[at] == 63
        out[row] = count
    return out
