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
    (row,) = map(orjson.loads, documents.read_lines(artifact.path / "rejected" / "a.jsonl"))
    assert (row["file"], row["line"]) == ("a.jsonl.gz", 2)
    assert reason in row["reason"]
    assert {item.path for item in artifact.outputs} == {"a.jsonl.gz", "rejected/a.jsonl"}


def test_tagging_leaves_a_finished_folder_whole(tmp_path: Path) -> None:
    """What a collection set aside stays; files that a curation made are not written over."""
    from loom.corpus.sources.dumps import Dump, collect

    raw = [orjson.dumps({"text": prose(n), "url": f"http://{n}.org"}) for n in range(8)]
    (tmp_path / "a.json").write_bytes(b"\n".join([*raw, b"{"]) + b"\n")
    root = tmp_path / "corpus"
    collected = collect(Dump("c4", (str(tmp_path / "a.json"),)), root, LocalEngine(1))
    assert "rejected/c4/a.jsonl" in {item.path for item in collected.outputs}
    for taggers, experiment in ((("char_length_v1", "bytes_length_v1"), None), (("doc_count_v1",), "mine")):
        tag(Tag((str(root),), taggers, experiment), None, LocalEngine(2))
        collected.verify(data=True)
    values = {"sources": {"c4": {"rules": "r"}}}
    curated = curate(recipe(root, **values), tmp_path / "out", LocalEngine(1))
    chosen = Tag((str(curated.path),), ("gopher_v2",), format="parquet")
    with pytest.raises(LoomError, match=r"gopher_v2/c4/a\.parquet is a part of .*--out"):
        tag(chosen, None, LocalEngine(1))
    curated.verify(data=True)
    tag(chosen, tmp_path / "elsewhere", LocalEngine(1))
    tag(Tag((str(curated.path),), ("gopher_v2",)), None, LocalEngine(1))
    curated.verify(data=True)


def test_rows_of_parquet_that_are_not_utf8_are_set_aside(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from loom.tokens.documents import File, Rejected, read

    def column(*values: bytes) -> pa.Array:
        return pa.Array.from_buffers(pa.string(), len(values), pa.array(values, pa.binary()).buffers())

    table = {
        "id": column(b"0", b"1", b"\xff", b"3", b"4"),
        "text": column(b"fine", b"\xff\xfe", b"fine", "fïne".encode(), b"fine"),
        "created": column(b"now", b"now", b"now", b"now", b"\xfe"),
        "metadata": pa.array([{"n": 1}] * 5),
    }
    path = tmp_path / "documents" / "a.parquet"
    path.parent.mkdir()
    pq.write_table(pa.table(table), path)
    (batch,) = documents.read(path)
    assert (batch.ids, batch.texts(), batch.lines.tolist()) == (["0", "3"], ["fine", "fïne"], [1, 4])
    assert [(item.line, item.reason) for item in batch.rejected] == [
        (2, "'text' is not UTF-8"),
        (3, "'id' is not UTF-8"),
        (5, "'created' is not UTF-8"),
    ]
    (artifact,) = tag(Tag((str(path),), ("char_length_v1",)), tmp_path, LocalEngine(1))
    assert (artifact.counters["documents"], artifact.counters["rejected"]) == (2, 3)
    aside: list[Rejected] = []
    (found,) = read(File(path, "a.parquet", ""), aside)
    assert found.ids == ["0", "3", "4"]
    assert [item.line for item in aside] == [2, 3]


def test_a_damaged_page_of_parquet_is_named(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from loom.tokens.documents import File, read

    path = tmp_path / "documents" / "a.parquet"
    path.parent.mkdir()
    rows = {"id": [str(n) for n in range(500)], "text": [prose(n) for n in range(500)]}
    pq.write_table(pa.table(rows), path, compression="zstd")
    data = bytearray(path.read_bytes())
    data[len(data) // 4 : len(data) // 2] = bytes(len(data) // 2 - len(data) // 4)  # the footer stays whole
    path.write_bytes(data)
    with pytest.raises(LoomError, match=r"a\.parquet is damaged"):
        tag(Tag((str(path),), ("char_length_v1",)), tmp_path, LocalEngine(1))
    with pytest.raises(LoomError, match=r"a\.parquet is not a whole Parquet file"):
        list(read(File(path, "a.parquet", ""), []))


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
