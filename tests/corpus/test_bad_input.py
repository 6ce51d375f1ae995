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


def test_a_mixture_sets_rows_aside(tmp_path: Path) -> None:
    from loom.corpus.sample import Sample, SampleSource, sample
    from tests.corpus.test_sample import bytes_tokenizer

    rows = [orjson.dumps(row) for row in corpus()]
    (tmp_path / "documents").mkdir()
    (tmp_path / "documents" / "a.jsonl").write_bytes(b"\n".join([rows[0], b'{"id": 1}', *rows[1:]]))
    sources = {"s": SampleSource((str(tmp_path),))}
    made = sample(
        Sample(sources, str(bytes_tokenizer(tmp_path / "t.json"))), tmp_path / "out", LocalEngine(1)
    )
    with_text = sum(bool(row["text"].strip()) for row in corpus())
    assert (made.counters["documents"], made.counters["rejected"]) == (with_text, 1)
    (row,) = map(orjson.loads, documents.read_lines(tmp_path / "out" / "rejected" / "s" / "a.jsonl"))
    assert row == {"file": "a.jsonl", "line": 2, "reason": "'id' is not text"}
    assert "rejected/s/a.jsonl" in {item.path for item in made.outputs}


@pytest.mark.parametrize("stage", ["minhash", "decontaminate"])
def test_stages_that_read_documents_set_rows_aside(tmp_path: Path, stage: str) -> None:
    """With file, line and reason, counted; the sidecar has a row a document, and `loom stat` reads it alone."""
    from loom.artifact import Artifact
    from loom.corpus.contamination import Decontaminate, run
    from loom.corpus.dedupe.minhash import MinHash, minhash
    from loom.corpus.statistics import files_of, histograms

    folder = tmp_path / "documents" / "s"
    folder.mkdir(parents=True)
    rows = [orjson.dumps({"id": str(i), "text": prose(i // 2, 40)}) for i in range(6)]
    (folder / "a.jsonl.gz").write_bytes(gzip.compress(b"\n".join([rows[0], b"{", *rows[1:], b'{"id": "x"}'])))
    (folder / "b.jsonl").write_bytes(b"\n".join(rows[:1]).replace(b'"0"', b'"b"'))
    (tmp_path / "held.jsonl").write_bytes(orjson.dumps({"text": prose(1, 40)}) + b"\n")

    def work(workers: int) -> Artifact:
        engine = LocalEngine(workers)
        if stage == "minhash":
            return minhash(MinHash((str(tmp_path / "documents"),), "marked"), engine)
        held = (str(tmp_path / "held.jsonl"),)
        chosen = Decontaminate((str(tmp_path),), held, name="marked", most_removed=1.0)
        return run(chosen, engine=engine)

    made = work(2)
    assert (made.counters["documents"], made.counters["rejected"]) == (7, 2)
    (aside,) = (made.path / "rejected").rglob("*.jsonl")
    assert f"rejected/{aside.relative_to(made.path / 'rejected')}" in {item.path for item in made.outputs}
    found = [orjson.loads(line) for line in documents.read_lines(aside)]
    assert [(row["file"], row["line"]) for row in found] == [("a.jsonl.gz", 2), ("a.jsonl.gz", 8)]
    assert "not JSON" in found[0]["reason"]
    assert found[1]["reason"] == "no 'text'"
    assert work(1).digest == made.digest
    (histogram,) = histograms(files_of([str(tmp_path / "attributes")]))
    assert (histogram.key, histogram.documents) == ("marked", 7)


def test_a_folder_of_documents_is_not_what_lies_beside_them(tmp_path: Path) -> None:
    documents.write(tmp_path / "documents" / "a.jsonl", corpus())
    (made,) = tag(Tag((str(tmp_path),), ("char_length_v1",)), tmp_path, LocalEngine(1))
    (again,) = tag(Tag((str(tmp_path),), ("bytes_length_v1",)), tmp_path, LocalEngine(1))
    assert [item.path for item in made.outputs] == [item.path for item in again.outputs] == ["a.jsonl.gz"]


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
