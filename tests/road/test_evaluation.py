"""Which held-out documents are measured in the loop."""

from __future__ import annotations

import json

import pytest

from loom.evals.perplexity import Document
from loom.road.evaluation import _some
from loom.tokens.tokenizer import Tokenizer
from tests.evals.conftest import byte_tokenizer


def test_a_source_of_long_documents_is_measured_too(capfd: pytest.CaptureFixture[str]) -> None:
    """And one of mixed lengths by its first documents, not by its short ones."""
    tokenizer = Tokenizer(json.dumps(byte_tokenizer()).encode(), "bytes")
    lengths = {"notes": (30, 40, 50, 5), "books": (400, 300), "web": (100, 1), "poems": (20,)}
    documents = [
        Document(
            f"{source} {i}", source, source, tokenizer.encode("é" * (size // 2) + "x" * (size % 2)), size
        )
        for source, sizes in lengths.items()
        for i, size in enumerate(sizes)
    ]
    assert [len(document.tokens) for document in documents] == [document.bytes for document in documents]
    kept = _some(documents, tokenizer, 100)
    expected = [("notes 0", 30), ("notes 1", 40), ("books 0", 100), ("web 0", 100), ("poems 0", 20)]
    assert [(document.id, len(document.tokens)) for document in kept] == expected
    assert [document.bytes for document in kept] == [size for _, size in expected]
    said = capfd.readouterr().err
    assert "books is measured on the first 100 tokens" in said and "web is" not in said
    assert _some(documents, tokenizer, None) == documents
