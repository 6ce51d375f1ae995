"""Gopher's document statistics, as Dolma 1.2 computes them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from loom.corpus.attributes import Spans, whole
from loom.corpus.taggers import Tagger, Texts, tagger


def _make(merge_newlines: bool) -> Tagger:
    from loom.corpus.kernels.characters import character_table
    from loom.corpus.kernels.gopher import KEYS, gopher

    characters = character_table()

    def tag(texts: Texts) -> Mapping[str, Spans]:
        values = gopher(*texts.utf8, characters, merge_newlines)
        lengths = values[:, 9].astype(np.int64)
        return {
            key: whole(lengths, values[:, column], ~np.isnan(values[:, column]))
            if column < 9
            else whole(lengths, values[:, column])
            for column, key in enumerate(KEYS)
        }

    return tag


@tagger("gopher_v1", spans="document", source="Dolma 1.2")
def gopher_v1() -> Tagger:
    """Lines are split at every newline."""
    return _make(merge_newlines=False)


@tagger("gopher_v2", spans="document", source="Dolma 1.2")
def gopher_v2() -> Tagger:
    """Lines are split at runs of newlines, so that empty lines are no duplicates."""
    return _make(merge_newlines=True)
