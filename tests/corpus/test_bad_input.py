"""Bad input: what can be set aside is, and is counted; the rest is an error before work starts."""

from __future__ import annotations

import gzip
from pathlib import Path

import orjson
import pytest

from loom.corpus import documents
from loom.corpus.curate import curate
from loom.corpus.tag import Tag, tag
from loom.engine import LocalEngine
from loom.errors import LoomError
from tests.corpus.test_curate import corpus, prose, recipe, texts, write


def test_the_first_of_an_id_stays(tmp_path: Path) -> None:
    """In input order, in each source by itself; the others are removed by name and counted."""
    rows = corpus()
    rows[7] = {**rows[7], "id": "p2"}
    rows[30] = {**rows[30], "id": "p2"}
    made = {}
    for parts, workers in ((1, 1), (4, 3)):
        raw = write(tmp_path / f"raw{parts}", rows, parts)
        artifact = curate(recipe(raw), tmp_path / f"out{parts}", LocalEngine(workers))
        assert artifact.counters["sources"]["s"]["removed"]["duplicate_id"] == 2
        made[parts] = texts(tmp_path / f"out{parts}")
        lines = [
            orjson.loads(line)
            for path in documents.find_files([tmp_path / f"out{parts}" / "removed"])
            for line in documents.read_lines(path)
        ]
        twice = [row for row in lines if row["removed"]["rule"] == "duplicate_id"]
        assert [row["removed"]["survivor"] for row in twice] == ["p2", "p2"]
        assert [row["text"] for row in twice] == [rows[7]["text"], rows[30]["text"]]
    assert made[1] == made[4]
    assert made[1]["p2"]["text"] == rows[2]["text"]


def test_one_id_in_two_sources_is_two_documents(tmp_path: Path) -> None:
    for source in ("a", "b"):
        row = {"id": "1", "text": prose(1 if source == "a" else 2)}
        documents.write(tmp_path / "documents" / source / "part.jsonl.gz", [row])
    artifact = curate(
        recipe(tmp_path, sources={"a": {"rules": "r"}, "b": {"rules": "r"}}), tmp_path / "out", LocalEngine(1)
    )
    assert artifact.counters["documents_out"] == 2


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"id": "x", "text": "no end', "not JSON"),
        (b'{"id": "x", "text": "\xff\xfe"}', "not JSON"),
        (b'{"text": "nobody"}', "no 'id'"),
        (b'{"id": "x"}', "no 'text'"),
        (b'{"id": 7, "text": "a number"}', "'id' is not text"),
        (b'["id", "text"]', "not a JSON object"),
    ],
)
def test_rows_that_are_no_documents(tmp_path: Path, line: bytes, reason: str) -> None:
    folder = tmp_path / "documents"
    folder.mkdir()
    good = orjson.dumps({"id": "good", "text": prose(3)})
    (folder / "a.jsonl.gz").write_bytes(
        gzip.compress(good + b"\n" + line + b"\n" + good.replace(b"good", b"fine"))
    )
    (artifact,) = tag(Tag((str(folder),), ("char_length_v1",)), tmp_path, LocalEngine(1))
    assert artifact.counters["documents"] == 2
    assert artifact.counters["rejected"] == 1
    (row,) = map(orjson.loads, documents.read_lines(tmp_path / "rejected" / "a.jsonl"))
    assert (row["file"], row["line"]) == ("a.jsonl.gz", 2)
    assert reason in row["reason"]


def test_a_gz_cut_short_stops_the_run_and_is_named(tmp_path: Path) -> None:
    raw = write(tmp_path / "raw", corpus(), 2)
    path = raw / "documents" / "s" / "part-01.jsonl.gz"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(LoomError, match=r"part-01\.jsonl\.gz is cut short"):
        curate(recipe(raw), tmp_path / "out", LocalEngine(1))
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_no_file_and_no_such_tagger_are_errors_before_work(tmp_path: Path) -> None:
    with pytest.raises(LoomError, match="No file matches"):
        tag(Tag((str(tmp_path / "*.jsonl"),), ("char_length_v1",)), tmp_path / "out")
    documents.write(tmp_path / "documents" / "a.jsonl", corpus())
    with pytest.raises(LoomError, match="no tagger 'char_lenght_v1'. Did you mean"):
        tag(Tag((str(tmp_path / "documents"),), ("char_lenght_v1",)), tmp_path / "out")
    assert not (tmp_path / "out").exists()
