"""BM25: which of the documents found have most to do with the whole answer.

(Robertson and Zaragoza 2009, "The Probabilistic Relevance Framework", equation 3.15, with Lucene's
idf, which is never negative.) The collection is the documents found, as OLMoTrace ranks them.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

WORD = re.compile(r"\w+")
K1 = 1.2
B = 0.75


def words(text: str) -> list[str]:
    """Lower-cased runs of letters, digits and underscores."""
    return WORD.findall(text.lower())


def bm25(query: str, texts: Sequence[str]) -> list[float]:
    """A score for each text; words the query repeats count as often."""
    wanted = Counter(words(query))
    bags = [Counter(words(text)) for text in texts]
    lengths = [sum(bag.values()) for bag in bags]
    mean = sum(lengths) / len(lengths) if any(lengths) else 1.0
    total = len(texts)
    idf = {}
    for word in wanted:
        holding = sum(word in bag for bag in bags)
        idf[word] = math.log(1 + (total - holding + 0.5) / (holding + 0.5))
    scores = []
    for bag, length in zip(bags, lengths, strict=True):
        norm = K1 * (1 - B + B * length / mean)
        scores.append(
            sum(
                times * idf[word] * bag[word] * (K1 + 1) / (bag[word] + norm)
                for word, times in wanted.items()
                if word in bag
            )
        )
    return scores
