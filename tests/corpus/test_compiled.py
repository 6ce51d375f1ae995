"""Compiled readers and writers equal the plain Python they stand for, on any text."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loom.corpus import attributes, documents, fasttext
from loom.corpus.attributes import Spans, from_lists
from loom.corpus.batch import as_rows
from loom.corpus.dolma import columns, config, mixing
from loom.corpus.json_lines import parse, parse_compiled
from loom.corpus.taggers import language
from loom.engine import LocalEngine

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**6), 10**6) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
ROW = st.fixed_dictionaries(
    {"id": TEXT, "text": TEXT},
    optional={"source": TEXT | st.none(), "added": TEXT, "metadata": JSON, "other": JSON, "version": JSON},
)
NOISE = st.binary(max_size=30) | st.sampled_from(
    [b"", b"  ", b"[]", b'{"id":"1","text":"\xff"}', b'{"id":"1"}']
)


def spaced(row: Any) -> bytes:
    import json

    return json.dumps(row, ensure_ascii=True).encode()


LINE = ROW.map(orjson.dumps) | ROW.map(spaced) | NOISE


@settings(max_examples=150, deadline=None)
@given(lines=st.lists(LINE, max_size=6))
def test_reading_is_that_of_the_plain_reader(lines: list[bytes]) -> None:
    block = b"\n".join(line.replace(b"\n", b" ") for line in lines)
    ours, plain = parse_compiled(block, 5, "f"), parse(block, 5, "f")
    assert ours.rejected == plain.rejected
    assert ours.lines.tolist() == plain.lines.tolist()
    assert list(as_rows(ours)) == list(as_rows(plain))
    ours.table.validate(full=True)


SPAN = st.tuples(
    st.integers(0, 10**9), st.integers(0, 10**9), st.floats(-1e6, 1e10, allow_nan=False) | st.integers(0, 3)
)
VALUES = st.none() | st.lists(SPAN, max_size=4)


@settings(max_examples=100, deadline=None)
@given(rows=st.lists(st.tuples(TEXT, TEXT, VALUES, VALUES), min_size=1, max_size=5), short=st.booleans())
def test_attribute_rows_are_the_plain_writer_s(rows: list[Any], short: bool) -> None:
    ids, sources, *values = (list(column) for column in zip(*rows, strict=True))
    spans: dict[str, Spans] = {f'k"{index}': from_lists(column) for index, column in enumerate(values)}
    names, origins = pa.array(ids, pa.large_string()), pa.array(sources, pa.large_string())
    compiled = bytes(attributes._lines_compiled(names, origins, spans, short))
    plain = attributes._lines(names, origins, spans, short)
    assert [orjson.loads(line) for line in compiled.splitlines()] == [
        orjson.loads(line) for line in plain.splitlines()
    ]


def places(text: str) -> st.SearchStrategy[list[Any]]:
    size = max(len(text), 1)
    scores = st.sampled_from([0, 0.25, 0.5, 1, 1.0, 1e-05, 2.5e-7])
    span = st.tuples(st.integers(0, size), st.integers(0, size + 1), scores)
    return st.lists(span.map(list), max_size=4)


@st.composite
def marked(draw: Callable[..., Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    row = {**draw(ROW), "source": draw(TEXT)}
    keys = draw(st.lists(st.sampled_from(["bff", "pii", "other"]), unique=True, max_size=3))
    return row, {key: draw(places(row["text"])) for key in keys}


FILTERS: list[dict[str, list[str]]] = [
    {"exclude": ["$.metadata[?(@.a == 1)]"]},
    {
        "include": ["$.attributes[?(@.bff)]", "$.attributes[?(@.other && @.other[0])]"],
        "exclude": [
            "$.attributes[?(@.pii && @.pii[0] && @.pii[0][2] > 0.3)]",
            "$@.attributes[?(@.pii[0][2])]",
        ],
    },
    {"exclude": ["$.attributes[?(@.bff[0][2] < 1e-4 )]", "$.attributes[?(@.other[0][2] < 0.00002)]"]},
    {"exclude": ["$.attributes[?(@.bff[0][2] >= 1)]", "$.attributes[?(@.other[0][2] == 0.5)]"]},
    {"include": ["$.attributes[?(@.bff[0][2] <= 1.0)]"]},
]


@pytest.mark.parametrize("compat", ["", "dolma-1.2"])
@settings(max_examples=100, deadline=None)
@given(
    rows=st.lists(marked(), min_size=1, max_size=5),
    least=st.sampled_from([0, 1, 5]),
    chosen=st.sampled_from(FILTERS),
)
def test_mixing_by_columns_is_mixing_by_rows(
    compat: str, rows: list[Any], least: int, chosen: dict[str, list[str]]
) -> None:
    rows = [({**row, "id": f"{index}-{row['id']}"}, values) for index, (row, values) in enumerate(rows)]
    outputs = []
    original = columns.eligible
    for plain in (False, True):
        with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
            root = Path(folder)
            documents.write(root / "documents" / "a.jsonl.gz", (row for row, _ in rows))
            with documents.write_lines(root / "attributes" / "x" / "a.jsonl.gz") as out:
                for row, values in rows:
                    out.write(orjson.dumps({"id": row["id"], "attributes": values}) + b"\n")
            stream = {
                "name": "s",
                "documents": [str(root / "documents" / "*.gz")],
                "attributes": ["x"],
                "output": {
                    "path": str(root / "out"),
                    "discard_fields": ["attributes"],
                    "min_text_length": least,
                },
                "filter": chosen,
                "span_replacement": [
                    {"span": "$.attributes.bff", "min_score": 0.5, "replacement": ""},
                    {
                        "span": "$.attributes.pii",
                        "min_score": 0.2,
                        "max_score": 1,
                        "replacement": " |||Ü||| ",
                    },
                ],
            }
            path = root / "mix.json"
            path.write_bytes(orjson.dumps({"streams": [stream], "processes": 1}))
            patch.setattr(mixing.names, "check", lambda *_: None)  # a run in which nothing has a key
            if plain:
                patch.setattr(columns, "eligible", lambda *_: False)
            else:
                assert original(config.load(path, config.Mixer).streams[0], ["a.jsonl.gz"])
            (made,) = mixing.mix(config.load(path, config.Mixer), compat, LocalEngine(1))
            lines = [
                line for file in sorted((root / "out").glob("*.gz")) for line in documents.read_lines(file)
            ]
            outputs.append((lines, made.counters))
    assert outputs[0] == outputs[1]


@settings(max_examples=60, deadline=None)
@given(texts=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=80), min_size=1, max_size=4))
def test_scores_are_fasttext_s(texts: list[str]) -> None:
    model = fasttext.load(language.model_path())
    texts = [language._prepared(text) for text in [*texts, "The quick brown fox </s> sprang", "", "ein Wort"]]
    scores = model.scores(*fasttext.utf8(texts))
    for text, row in zip(texts, scores, strict=True):
        labels, values = language.model().predict(text, k=-1)
        theirs = np.zeros(len(model.labels))
        theirs[[model.labels.index(label) for label in labels]] = values
        np.testing.assert_allclose(row, theirs, atol=2e-5)
