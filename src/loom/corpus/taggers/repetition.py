"""Runs of words that repeat with a short period: "a b a b a b"."""

from __future__ import annotations

from collections.abc import Mapping

from loom.corpus.attributes import Spans, whole
from loom.corpus.taggers import Tagger, Texts, tagger


@tagger("repetition_v1", spans="document", source="Loom")
def repetition_v1() -> Tagger:
    """`longest`: words in the longest run that repeats with a period of 1 to 13 words at least three times;
    `fraction`: words in such runs, of all words."""
    from loom.corpus.kernels.repetition import runs

    def tag(texts: Texts) -> Mapping[str, Spans]:
        values = runs(*texts.utf8)
        return {
            "longest": whole(texts.lengths, values[:, 0]),
            "fraction": whole(texts.lengths, values[:, 1]),
        }

    return tag
