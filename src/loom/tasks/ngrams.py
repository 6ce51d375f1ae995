"""Words and n-grams, as held-out text is compared with training text."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence

NGRAM = 8  # words; the length at which OLMo-style decontamination calls text shared
_WORD = re.compile(r"\w+")


def words(text: str) -> list[str]:
    """Lower-cased runs of letters, digits and underscores; what lies between them does not count."""
    return _WORD.findall(text.lower())


def ngrams(text: str, n: int = NGRAM) -> set[tuple[str, ...]]:
    """Every run of `n` words of `text`; none if it has fewer."""
    found = words(text)
    return {tuple(found[i : i + n]) for i in range(len(found) - n + 1)}


def shares_ngram(text: str, held_out: Collection[tuple[str, ...]], n: int = NGRAM) -> bool:
    return any(gram in held_out for gram in ngrams(text, n))


def near_copies(texts: Sequence[str], threshold: float = 0.5, n: int = 3, common: int = 1000) -> list[bool]:
    """For each text, whether another one has a Jaccard similarity of `threshold` in word n-grams.

    Texts under `n` words are compared whole. Candidates are found through n-grams that at most
    `common` texts have; pairs that share only commoner ones are not compared.
    """
    shingles = [ngrams(text, n) or {tuple(words(text))} for text in texts]
    holders: dict[tuple[str, ...], list[int]] = {}
    for index, grams in enumerate(shingles):
        for gram in grams:
            holders.setdefault(gram, []).append(index)
    return [_has_copy(index, shingles, holders, threshold, common) for index in range(len(texts))]


def _has_copy(
    index: int,
    shingles: Sequence[set[tuple[str, ...]]],
    holders: dict[tuple[str, ...], list[int]],
    threshold: float,
    common: int,
) -> bool:
    mine = shingles[index]
    shared: Counter[int] = Counter()
    for gram in mine:
        if len(holders[gram]) <= common:
            shared.update(holders[gram])
    others: Iterable[int] = (other for other in shared if other != index)
    for other in others:
        both = len(mine & shingles[other])
        if both >= threshold * (len(mine) + len(shingles[other]) - both):
            return True
    return False
