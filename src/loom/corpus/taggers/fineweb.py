"""Gopher's and C4's rules as datatrove 0.10 has them for FineWeb, FineWeb's own, and Gopher's as its paper has them.

datatrove's filters answer yes or no; here each of the values they compare is an attribute of its own, so
that thresholds stand in the recipe. Their words and sentences are spaCy's (an extra: `fineweb`), which
these names need to be exact; `gopher_paper_v1` splits at white space and needs nothing.
"""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np

from loom.corpus.attributes import Spans, from_lists, whole
from loom.corpus.taggers import Tagger, Texts, tagger
from loom.errors import LoomError

REQUIRED = frozenset(("the", "be", "to", "of", "and", "that", "have", "with"))
# Code points, in hexadecimal: what ends a sentence in any script, and what else datatrove calls punctuation.
TERMINAL = """
    21 2e 3f 589 61d-61f 6d4 700-702 7f9 837 839 83d-83e 964-965 104a-104b 1362 1367-1368 166e 1735-1736
    17d4-17d6 17d9-17da 1803 1809 1944-1945 1aa8-1aab 1b5a-1b5b 1b5e-1b5f 1b7d-1b7e 1c3b-1c3c 1c7e-1c7f
    203c-203d 2047-2049 2e2e 2e3c 2e53-2e54 3002 a4ff a60e-a60f a6f3 a6f7 a876-a877 a8ce-a8cf a92f a9c8-a9c9
    aa5d-aa5f aaf0-aaf1 abeb fe52 fe56-fe57 ff01 ff0e ff1f ff61 10a56-10a57 10f55-10f59 10f86-10f89
    11047-11048 110be-110c1 11141-11143 111c5-111c6 111cd 111de-111df 11238-11239 1123b-1123c 112a9
    1144b-1144c 115c2-115c3 115c9-115d7 11641-11642 1173c-1173e 11944 11946 11a42-11a43 11a9b-11a9c
    11c41-11c42 11ef7-11ef8 11f43-11f44 16a6e-16a6f 16af5 16b37-16b38 16b44 16e98 1bc9f 1da88
"""
OTHER_PUNCTUATION = """
    0-8 b-1f 22-2d 2f 3a-3e 40 5b-60 7b-9f ab b4 bb 2013-2014 2019 201c-201e 2026 2236 2501 25ba 3001
    3008-300d 3010-3011 ff05 ff08-ff09 ff0c ff11 ff1a-ff1b ff5e
"""
PARAGRAPHS, LINES = re.compile(r"\n{2,}"), re.compile(r"\n+")
CITATION = re.compile(r"\[\d*\]|\[edit\]|\[citation needed\]")
POLICY = (
    "terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies",
)  # fmt: skip
SENTENCE_END = (".", "?", "!", '"', "'")
LONGEST_WORD = 1000
SAMPLE = "A text that has every value, since it has enough words for every length of n-gram.\n"
SHORT_LINE = 30  # code points
Values = dict[str, float]


def _characters(ranges: str) -> frozenset[str]:
    found = set()
    for part in ranges.split():
        low, _, high = part.partition("-")
        found |= {chr(point) for point in range(int(low, 16), int(high or low, 16) + 1)}
    return frozenset(found)


@cache
def terminal() -> tuple[str, ...]:
    return tuple(sorted(_characters(TERMINAL)))


@cache
def punctuation() -> frozenset[str]:
    return _characters(TERMINAL) | _characters(OTHER_PUNCTUATION)


_own = threading.local()  # spaCy's string store belongs to one thread


def _spacy() -> Any:
    if not hasattr(_own, "language"):
        try:
            import spacy
        except ImportError:
            raise LoomError(
                "datatrove's words are spaCy's, which is not installed: pip install 'loom-lm[fineweb]'."
            ) from None
        _own.language = spacy.blank("en")
        _own.language.add_pipe("sentencizer")
    return _own.language


def _parsed(text: str) -> Any:
    made = _spacy()
    made.max_length = len(text) + 10
    try:
        return made(text)
    except Exception:
        if "IS_ALPHA" not in text:  # the one word that spaCy fails at, left out by datatrove too
            raise
        return made(text.replace("IS_ALPHA", ""))


def words(text: str) -> list[str]:
    """spaCy's English tokens, white space around them taken off, empty ones left out."""
    with _spacy().memory_zone():
        return [word for token in _parsed(text) if (word := token.text.strip())]


def count_sentences(text: str) -> int:
    """spaCy's sentences by punctuation."""
    with _spacy().memory_zone():
        return sum(1 for sentence in _parsed(text).sents if sentence.text.strip())


def _by_document(values: Callable[[str], Values]) -> Tagger:
    """A tagger of values of the whole text; a value that a text does not have is absent."""

    keys = tuple(values(SAMPLE))

    def tag(texts: Texts) -> Mapping[str, Spans]:
        rows = [values(text) for text in texts.strings]
        out = {}
        for key in keys:
            scores = np.array([row.get(key, np.nan) for row in rows], np.float64)
            out[key] = whole(texts.lengths, np.nan_to_num(scores), ~np.isnan(scores))
        return out

    return tag


def duplicates(items: Sequence[str]) -> tuple[int, int]:
    """Items that stood before, and their code points."""
    seen: set[str] = set()
    count = size = 0
    for item in items:
        if item in seen:
            count += 1
            size += len(item)
        seen.add(item)
    return count, size


@tagger("gopher_quality_datatrove_v1", spans="document", source="datatrove 0.10")
def gopher_quality_datatrove_v1() -> Tagger:
    """Gopher's quality rules by spaCy's words: counts of words that are no punctuation, mean length, ratios."""
    return _by_document(gopher_quality)


def gopher_quality(text: str) -> Values:
    """What datatrove's GopherQualityFilter compares."""
    tokens = words(text)
    if not tokens:
        return {"word_count": 0.0}
    marks = punctuation()
    spoken = [word for word in tokens if not marks.issuperset(word)]
    lines = text.splitlines()
    out: Values = {"word_count": float(len(spoken))}
    if spoken:
        out["mean_word_length"] = sum(map(len, spoken)) / len(spoken)
    return out | {
        "hash_to_word_ratio": text.count("#") / len(tokens),
        "ellipsis_to_word_ratio": (text.count("...") + text.count("…")) / len(tokens),
        "fraction_of_lines_starting_with_bullet_point": sum(
            line.lstrip().startswith(("•", "-")) for line in lines
        )
        / len(lines),
        "fraction_of_lines_ending_with_ellipsis": sum(line.rstrip().endswith(("...", "…")) for line in lines)
        / len(lines),
        "fraction_of_words_with_alpha_character": sum(any(map(str.isalpha, word)) for word in tokens)
        / len(tokens),
        "distinct_required_words": float(len(REQUIRED.intersection(tokens))),
    }


@tagger("gopher_repetition_datatrove_v1", spans="document", source="datatrove 0.10")
def gopher_repetition_datatrove_v1() -> Tagger:
    """Gopher's repetition rules by spaCy's words: lines and paragraphs that stood before, common n-grams."""
    return _by_document(gopher_repetition)


def gopher_repetition(text: str) -> Values:
    """What datatrove's GopherRepetitionFilter compares."""
    if not text:
        return {}
    paragraphs, lines = PARAGRAPHS.split(text.strip()), LINES.split(text)
    paragraph_count, paragraph_size = duplicates(paragraphs)
    line_count, line_size = duplicates(lines)
    out = {
        "fraction_of_duplicate_paragraphs": paragraph_count / len(paragraphs),
        "fraction_of_characters_in_duplicate_paragraphs": paragraph_size / len(text),
        "fraction_of_duplicate_lines": line_count / len(lines),
        "fraction_of_characters_in_duplicate_lines": line_size / len(text),
    }
    tokens = words(text)
    for n in (2, 3, 4):
        grams = Counter(" ".join(tokens[at : at + n]) for at in range(len(tokens) - n + 1))
        if grams:
            top, count = grams.most_common(1)[0]
            out[f"fraction_of_characters_in_most_common_{n}grams"] = len(top) * count / len(text)
    for n in range(5, 11):
        out[f"fraction_of_characters_in_duplicate_{n}grams"] = _repeated(tokens, n) / len(text)
    return out


def _repeated(tokens: Sequence[str], n: int) -> int:
    """Code points of n-grams that stood before, none counted twice: after each, the next n words on."""
    seen: set[str] = set()
    size = at = 0
    while at < len(tokens) - n + 1:
        gram = "".join(tokens[at : at + n])
        if gram in seen:
            size += len(gram)
            at += n
        else:
            seen.add(gram)
            at += 1
    return size


@tagger("fineweb_quality_v1", spans="document", source="datatrove 0.10")
def fineweb_quality_v1() -> Tagger:
    """FineWeb's own rules: lines that end a sentence, short lines, characters in duplicate lines, newlines."""
    return _by_document(fineweb_quality)


def fineweb_quality(text: str) -> Values:
    """What datatrove's FineWebQualityFilter compares; nothing for a text without a line."""
    lines = [line for line in text.split("\n") if line.strip()]
    if not lines:
        return {}
    return {
        "lines_ending_a_sentence": sum(line.endswith(terminal()) for line in lines) / len(lines),
        "short_lines": sum(len(line) <= SHORT_LINE for line in lines) / len(lines),
        "characters_in_duplicate_lines": duplicates(lines)[1] / len(text.replace("\n", "")),
        "newlines_to_words": text.count("\n") / max(len(words(text)), 1),
    }


@tagger("c4_datatrove_v1", spans="lines, spans, document", source="datatrove 0.10")
def c4_datatrove_v1() -> Tagger:
    """C4's rules with citations, policy lines and sentences: what to cut, and what is left, counted by spaCy.

    Cut `removed_lines` (with their newline) and `citations`; `sentences` are those of the lines that stay;
    `has_lorem_ipsum` and `has_curly_brace` are of the first line that says so.
    """

    return _c4(any_ending=False)


@tagger("c4_fineweb_v1", spans="lines, spans, document", source="datatrove 0.10")
def c4_fineweb_v1() -> Tagger:
    """The same as FineWeb asks for it: a line may end in anything."""
    return _c4(any_ending=True)


def _c4(any_ending: bool) -> Tagger:
    def tag(texts: Texts) -> Mapping[str, Spans]:
        rows = [c4_lines(text, any_ending) for text in texts.strings]
        flags = {
            key: whole(texts.lengths, 1.0, np.array([row[2] == key for row in rows], bool))
            for key in ("has_lorem_ipsum", "has_curly_brace")
        }
        return {
            "removed_lines": from_lists([row[0] or None for row in rows]),
            "citations": from_lists([row[1] or None for row in rows]),
            "sentences": whole(texts.lengths, np.array([row[3] for row in rows], np.float64)),
            **flags,
        }

    return tag


Span = tuple[int, int, float]


def c4_lines(text: str, any_ending: bool = False) -> tuple[list[Span], list[Span], str, int]:
    """(lines to cut, citations in those that stay, why the document goes, sentences) by datatrove's C4 filter."""
    removed: list[Span] = []
    citations: list[Span] = []
    why, sentences, start = "", 0, 0
    for raw in text.splitlines(keepends=True):
        end = start + len(raw)
        stripped = raw.strip()
        tokens = stripped.split()
        line = CITATION.sub("", stripped)
        lower = line.lower()
        keep = (
            all(len(word) <= LONGEST_WORD for word in tokens)
            and (any_ending or (line.endswith(SENTENCE_END) and not line.endswith("...")))
            and len(tokens) >= 3
        )
        if keep and "lorem ipsum" in lower:
            return removed, citations, "has_lorem_ipsum", sentences
        keep = keep and "javascript" not in lower
        if keep and "{" in line:
            return removed, citations, "has_curly_brace", sentences
        if keep and not any(phrase in lower for phrase in POLICY):
            sentences += count_sentences(line)
            citations += [(start + m.start(), start + m.end(), 1.0) for m in CITATION.finditer(raw)]
        else:
            removed.append((start, end, 1.0))
        start = end
    return removed, citations, why, sentences


@tagger("gopher_paper_v1", spans="document", source="Rae et al. 2021, arXiv:2112.11446")
def gopher_paper_v1() -> Tagger:
    """Gopher's rules as the paper has them, on words between spaces: mean length, distinct words, table A1."""
    return _by_document(gopher_paper)


def gopher_paper(text: str) -> Values:
    """Table A1 and section A.1.1: an n-gram's characters are counted once where n-grams overlap."""
    tokens = text.split()
    if not tokens:
        return {"word_count": 0.0}
    lines = [line for line in LINES.split(text) if line.strip()]
    paragraphs = PARAGRAPHS.split(text.strip())
    size = sum(map(len, tokens))
    out = {
        "word_count": float(len(tokens)),
        "mean_word_length": size / len(tokens),
        "hash_to_word_ratio": text.count("#") / len(tokens),
        "ellipsis_to_word_ratio": (text.count("...") + text.count("…")) / len(tokens),
        "fraction_of_lines_starting_with_bullet_point": sum(
            line.lstrip().startswith(("•", "*", "-")) for line in lines
        )
        / len(lines),
        "fraction_of_lines_ending_with_ellipsis": sum(line.rstrip().endswith(("...", "…")) for line in lines)
        / len(lines),
        "fraction_of_words_with_alpha_character": sum(any(map(str.isalpha, word)) for word in tokens)
        / len(tokens),
        "distinct_required_words": float(len(REQUIRED.intersection(tokens))),
    }
    for name, items in (("lines", lines), ("paragraphs", paragraphs)):
        count, characters = duplicates(items)
        out[f"fraction_of_duplicate_{name}"] = count / len(items)
        out[f"fraction_of_characters_in_duplicate_{name}"] = characters / len(text)
    for n in (2, 3, 4):
        grams = Counter(tuple(tokens[at : at + n]) for at in range(len(tokens) - n + 1))
        if grams:
            top, count = grams.most_common(1)[0]
            share = sum(map(len, top)) * count / size if count > 1 else 0.0
            out[f"fraction_of_characters_in_most_common_{n}grams"] = min(share, 1.0)
    for n in range(5, 11):
        out[f"fraction_of_characters_in_duplicate_{n}grams"] = _covered(tokens, n) / size
    return out


def _covered(tokens: Sequence[str], n: int) -> int:
    """Code points of the words that stand in an n-gram which comes more than once."""
    grams = [tuple(tokens[at : at + n]) for at in range(len(tokens) - n + 1)]
    counts = Counter(grams)
    inside = np.zeros(len(tokens), bool)
    for at, gram in enumerate(grams):
        if counts[gram] > 1:
            inside[at : at + n] = True
    return sum(len(tokens[at]) for at in np.flatnonzero(inside).tolist())
