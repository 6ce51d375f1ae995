"""Mail addresses, telephone numbers and IP addresses by pattern."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from loom.corpus.attributes import Spans, gathered, whole
from loom.corpus.taggers import Tagger, Texts, tagger

KINDS = ("EMAIL_ADDRESS", "PHONE_NUMBER", "IP_ADDRESS")
MANY_QUESTIONS = 10_000  # Dolma leaves documents with more question marks alone

# Dolma 1.2's patterns, as they are: the white space around a match belongs to it.
EMAIL = re.compile(r"[.\s@,?!;:)(]*([^\s@]+@[^\s@,?!;:)(]+?)[.\s@,?!;:)(]?[\s\n\r]")
PHONE = re.compile(r"\s+\(?(\d{3})\)?[-\. ]*(\d{3})[-. ]?(\d{4})")
_OCTET = r"(?:25[0-5]|2[0-4][0-9]|[01]?[0-9][0-9]?)"
IP = re.compile(rf"(?:{_OCTET}\.){{3}}{_OCTET}")

# The mended rules: a match is the address itself, wherever it stands, and versions or ISBNs are left alone.
ADDRESS = re.compile(r"(?<![\w.+-])[A-Za-z0-9_.+-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.)+[A-Za-z]{2,24}(?![\w-])")
NUMBER = re.compile(
    r"(?<![\w.+/-])(?:\+1[-. ]?)?(?:\([2-9]\d{2}\) ?|[2-9]\d{2}[-. ])[2-9]\d{2}[-. ]\d{4}(?![\w/-]|\.\d)"
)
QUAD = re.compile(rf"(?<![\w.-])(?:{_OCTET}\.){{3}}{_OCTET}(?![\w-]|\.\d)")
NOT_A_NUMBER = ("isbn", "doi", "version", " v.", "oid")
WINDOW = 100  # code points around a match that can tell that it is no number of a person

Match = Callable[[str, int], Iterator[tuple[str, int, int]]]


def dolma_matches(paragraph: str, kinds: int) -> Iterator[tuple[str, int, int]]:
    """(kind, start, end) of Dolma's fast tagger in one paragraph, in its order."""
    if kinds & 1:
        for match in EMAIL.finditer(paragraph):
            addressee, domain = match.group(1).split("@", 1)
            if addressee.strip() != "(" and "." in domain:
                yield "EMAIL_ADDRESS", match.start(), match.end()
    if kinds & 2:
        for match in PHONE.finditer(paragraph):
            yield "PHONE_NUMBER", match.start(), match.end()
    if kinds & 4:
        for match in IP.finditer(paragraph):
            yield "IP_ADDRESS", match.start(), match.end()


def mended_matches(paragraph: str, kinds: int) -> Iterator[tuple[str, int, int]]:
    """(kind, start, end) of the mended rules in one paragraph."""
    if kinds & 1:
        for match in ADDRESS.finditer(paragraph):
            yield "EMAIL_ADDRESS", match.start(), match.end()
    for bit, kind, pattern in ((2, "PHONE_NUMBER", NUMBER), (4, "IP_ADDRESS", QUAD)):
        for match in pattern.finditer(paragraph) if kinds & bit else ():
            around = paragraph[max(0, match.start() - WINDOW) : match.end() + WINDOW].lower()
            if any(word in around for word in NOT_A_NUMBER):
                continue
            if kind == "IP_ADDRESS" and match.group().startswith(("127.", "0.", "255.")):
                continue  # loopback, unspecified, masks: nobody's address
            yield kind, match.start(), match.end()


def _make(matches: Match, skip_many_questions: bool, sum_of_count: bool, as_dolma: bool) -> Tagger:
    from loom.corpus.kernels.characters import character_table
    from loom.corpus.kernels.pii import paragraphs, question_marks

    characters = character_table()

    def tag(texts: Texts) -> Mapping[str, Spans]:
        data, offsets = texts.utf8
        found: dict[str, list[tuple[int, int, int]]] = {kind: [] for kind in KINDS}
        counts = np.zeros(len(texts), np.float64)
        covered = np.zeros(len(texts), np.float64)
        skipped = question_marks(data, offsets) > MANY_QUESTIONS if skip_many_questions else None
        for row, start, end, first, kinds in paragraphs(data, offsets, characters, as_dolma).tolist():
            if skipped is not None and skipped[row]:
                continue
            for kind, low, high in matches(data[start:end].tobytes().decode(), kinds):
                found[kind].append((row, first + low, first + high))
                counts[row] += 1
                covered[row] += high - low
        out: dict[str, Spans] = {}
        for kind in KINDS:
            columns = np.array(found[kind], np.int64).reshape(-1, 3)
            out[kind] = gathered(len(texts), columns[:, 0], columns[:, 1], columns[:, 2])
        lengths = texts.lengths
        total = covered + lengths if sum_of_count else covered
        share = np.divide(total, lengths, out=np.full(len(texts), -1.0), where=lengths > 0)
        out["doc_count"] = whole(lengths, counts)
        out["doc_frac"] = whole(lengths, share)
        return out

    return tag


@tagger("pii_regex_with_counts_fast_v2", spans="spans, document", source="Dolma 1.2")
def pii_regex_with_counts_fast_v2() -> Tagger:
    """Dolma's rules with their defects: `doc_frac` counts the `doc_count` span in and is 1 or more."""
    return _make(dolma_matches, skip_many_questions=True, sum_of_count=True, as_dolma=True)


@tagger("pii_v1", spans="spans, document", source="Loom")
def pii_v1() -> Tagger:
    """Mended: the span is the address, also at the end of a text; versions and ISBNs are no numbers."""
    return _make(mended_matches, skip_many_questions=False, sum_of_count=False, as_dolma=False)
