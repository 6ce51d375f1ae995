"""Documents: any text survives any format; what is no document is set aside or named."""

from __future__ import annotations

import gzip
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from loom.corpus import attributes, documents
from loom.corpus.batch import as_rows, make_batch
from loom.corpus.kernels.characters import lengths
from loom.errors import LoomError

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
ROWS = st.lists(
    st.fixed_dictionaries(
        {"id": TEXT, "text": TEXT, "source": TEXT},
        optional={"metadata": st.dictionaries(TEXT, TEXT, max_size=2)},
    ),
    max_size=6,
)


def read_all(path: Path) -> list[dict[str, Any]]:
    return [row for batch in documents.read(path) for row in as_rows(batch)]


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet"])
@settings(max_examples=30, deadline=None)
@given(rows=ROWS)
def test_round_trip(suffix: str, rows: list[dict[str, Any]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"part{suffix}")
        assert documents.write(path, rows) == len(rows)
        assert read_all(path) == rows
        first = path.read_bytes()
        documents.write(path, rows)
        assert path.read_bytes() == first


@settings(max_examples=60, deadline=None)
@given(texts=st.lists(TEXT, min_size=1, max_size=5))
def test_buffers_are_the_texts(texts: list[str]) -> None:
    batch = make_batch([{"id": "x", "text": text} for text in texts], range(1, len(texts) + 1))
    data, offsets = batch.utf8()
    assert [bytes(data[offsets[i] : offsets[i + 1]]).decode() for i in range(len(texts))] == texts
    assert lengths(data, offsets).tolist() == [len(text) for text in texts]


def test_rows_that_are_no_documents_are_set_aside(tmp_path: Path) -> None:
    good = orjson.dumps({"id": "1", "text": "fine"})
    lines = [good, b"{broken", b'{"text": "no id"}', b'{"id": "2"}', b'{"id": 3, "text": "number"}', b"[]"]
    lines += [b'{"id": "4", "text": "\xff"}', b"", orjson.dumps({"id": "5", "text": "also fine"})]
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join(lines) + b"\n")
    (batch,) = documents.read(path)
    assert batch.ids == ["1", "5"]
    assert batch.lines.tolist() == [1, 9]
    assert [item.line for item in batch.rejected] == [2, 3, 4, 5, 6, 7]
    assert "no 'id'" in batch.rejected[1].reason


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_file_cut_short_is_named(tmp_path: Path, suffix: str) -> None:
    data = b"".join(orjson.dumps({"id": str(i), "text": f"text {i * i}" * 50}) + b"\n" for i in range(2000))
    packed = gzip.compress(data, mtime=0) if suffix == ".gz" else zstandard.compress(data)
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(packed[: len(packed) // 2])
    with pytest.raises(LoomError, match=r"a\.jsonl.*cut short"):
        list(documents.read(path))


def test_several_zstd_frames_are_one_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(b"".join(zstandard.compress(orjson.dumps({"id": i, "text": i}) + b"\n") for i in "abc"))
    assert [row["id"] for row in read_all(path)] == ["a", "b", "c"]


def test_no_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "documents").mkdir()
    with pytest.raises(LoomError, match="documents"):
        documents.find_files([tmp_path / "document"])
    with pytest.raises(LoomError, match="No file matches"):
        documents.find_files([str(tmp_path / "documents" / "*.jsonl")])


def test_relative_names_follow_documents_or_the_fixed_prefix(tmp_path: Path) -> None:
    assert documents.relative_name(Path("a/documents/b/c.jsonl"), []) == "b/c.jsonl"
    assert documents.relative_name(Path("a/b/c.jsonl"), ["a/*/c.jsonl"]) == "b/c.jsonl"


SPANS = st.lists(
    st.one_of(
        st.none(),
        st.lists(st.tuples(st.integers(0, 99), st.integers(0, 99), st.floats(-10, 10)), max_size=3),
    ),
    max_size=6,
)


@settings(max_examples=60, deadline=None)
@given(values=SPANS)
def test_sidecars_round_trip(values: list[Any]) -> None:
    """Parquet and JSON lines hold the same; absent is not empty; scores have five decimals as `round` has."""
    expected = [
        None if row is None else [(start, end, round(score, 5)) for start, end, score in row]
        for row in values
    ]
    ids = [str(index) for index in range(len(values))]
    spans = attributes.from_lists(values)
    with tempfile.TemporaryDirectory() as folder:
        for name in ("a.parquet", "a.jsonl.gz"):
            path = Path(folder, name)
            if name.endswith(".parquet"):
                attributes.write_parquet(path, [(ids, {"t__t__k": spans})])
            else:
                attributes.write_jsonl(path, [(ids, [""] * len(ids), {"t__t__k": spans})])
            found = list(attributes.read(path))
            assert [name for names, _ in found for name in names] == ids
            if values and any(row is not None for row in values):
                back = attributes.concatenate([part["t__t__k"] for _, part in found])
                assert [back.of(row) for row in range(len(values))] == expected


@given(score=st.floats(0, 1e6))
def test_rounding_is_python_s(score: float) -> None:
    assert attributes.rounded(np.array([score]))[0] == round(score, 5)
