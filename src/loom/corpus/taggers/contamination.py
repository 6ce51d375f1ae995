"""Paragraphs of evaluation sets in a document, as Paloma looks for them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from loom.corpus.attributes import Spans
from loom.corpus.taggers import Tagger, Texts, tagger


@tagger(
    "paloma_paragraphs_v1",
    spans="paragraphs",
    source="Paloma (Magnusson et al. 2023)",
    needs="evaluation texts (.txt, or JSON lines with `text`)",
    keys=("paragraph",),
)
def paloma_paragraphs_v1(*paths: Path) -> Tagger:
    """`paragraph`: lines of 13 words or more that an evaluation text has too (Bloom filter, 1e-15)."""
    from loom.corpus import contamination

    recipe = contamination.Decontaminate(("",), tuple(map(str, paths)))
    held, _ = contamination.search_terms(
        {
            "mode": "paloma",
            "files": recipe.against,
            "field": recipe.field,
            "ngram": recipe.ngram,
            "shortest": recipe.shortest,
            "false_positives": recipe.false_positives,
        }
    )

    def tag(texts: Texts) -> Mapping[str, Spans]:
        return {"paragraph": contamination.find_paragraphs(held, *texts.utf8)}

    return tag
