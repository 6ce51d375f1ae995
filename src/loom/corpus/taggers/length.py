"""Lengths of documents and paragraphs."""

from __future__ import annotations

import numpy as np

from loom.corpus.attributes import Spans, whole
from loom.corpus.taggers import Tagger, Texts, tagger


@tagger("bytes_length_v1", spans="document", source="Dolma 1.2")
def bytes_length_v1() -> Tagger:
    """`bytes`: the length in UTF-8."""

    def tag(texts: Texts) -> dict[str, Spans]:
        _, offsets = texts.utf8
        return {"bytes": whole(texts.lengths, np.diff(offsets))}

    return tag


@tagger("doc_count_v1", spans="document", source="Dolma 1.2")
def doc_count_v1() -> Tagger:
    """`docs`: one for every document."""
    return lambda texts: {"docs": whole(texts.lengths, 1.0)}


@tagger("char_length_v1", spans="document", source="Dolma 1.2")
def char_length_v1() -> Tagger:
    """`length`: code points."""
    return lambda texts: {"length": whole(texts.lengths, texts.lengths)}


@tagger("char_length_strip_ws_v1", spans="document", source="Dolma 1.2")
def char_length_strip_ws_v1() -> Tagger:
    """`length_no_ws`: code points without the whitespace around the text."""

    def tag(texts: Texts) -> dict[str, Spans]:
        stripped = np.array([len(text.strip()) for text in texts.strings], np.int64)
        return {"length_no_ws": whole(texts.lengths, stripped)}

    return tag
