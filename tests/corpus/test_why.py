"""`loom why`, `loom stat`, `loom curate --plan` and `--check` on the corpus of the curation tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from loom.corpus import documents
from loom.corpus.curate import curate
from loom.corpus.plan import check, plan
from loom.corpus.sample import Sample, SampleSource, sample
from loom.corpus.statistics import files_of, histograms, write_page
from loom.corpus.why import why
from loom.engine import LocalEngine
from loom.errors import LoomError
from loom.recipe import build
from loom.tokens.lookup import find_document
from loom.tokens.tokenize import Tokenize, tokenize
from tests.corpus.test_curate import corpus, recipe, texts, write
from tests.corpus.test_sample import bytes_tokenizer


@pytest.fixture(scope="module")
def curated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("why")
    raw = write(root / "raw", corpus(), 3)
    curate(recipe(raw), root / "out", LocalEngine(1))
    return root / "out"


def test_why_names_the_rule_and_its_values(curated: Path) -> None:
    found = why("short", curated)
    assert (found["kept"], found["removed_by"]) == (False, "short")
    assert found["rules"] == [
        {
            "rule": "short",
            "expression": "gopher_v2.word_count < 5",
            "matched": True,
            "values": "word_count = 2",
        }
    ]


def test_why_names_the_survivor_and_the_masks(curated: Path) -> None:
    assert why("copy of p2", curated)["survivor"] == "p2"
    found = why("p3", curated)
    assert found["kept"]
    assert {item["text"] for item in found["spans"]} == {"someone@example.org", "10.1.2.3"}
    assert why("p0", curated)["spans"] == []
    assert [item["kind"] for item in why("p9", curated)["spans"]] == ["cut: duplicate or held-out text"]


def test_why_of_an_id_that_stands_more_than_once(tmp_path: Path) -> None:
    """In one file, in two of a source, in two sources: the one that stayed is told of, and all the others."""
    rows = corpus()
    rows[1] = {**rows[21], "id": "p2"}
    rows[7] = {**rows[7], "id": "p2"}
    raw = write(tmp_path, rows[:20], 2)
    documents.write(raw / "documents" / "b" / "x.jsonl", [{**rows[30], "id": "p2"}, {**rows[31], "id": "p4"}])
    documents.write(raw / "documents" / "s" / "part-02.jsonl", [{**rows[30], "id": "p2"}])
    made = recipe(raw, sources={"s": {"rules": "r"}, "b": {"rules": "r"}})
    curate(made, tmp_path / "out", LocalEngine(1))
    found = why("p2", tmp_path / "out")
    assert (found["kept"], found["removed_by"], found["source"], found["row"]) == (True, None, "s", 3)
    said = [line.rpartition("/")[2] for line in found["later"]]
    assert said == [
        "x.jsonl row 1: Kept as it is.",
        "part-00.jsonl.gz row 2: Removed by the rule 'short'.",
        "part-00.jsonl.gz row 8: Removed by the rule 'duplicate_id'; the copy that stayed is p2.",
        "part-02.jsonl row 1: Removed by the rule 'duplicate_id'; the copy that stayed is p2.",
    ]
    assert [why("p4", tmp_path / "out")[key] for key in ("source", "row")] == ["s", 5]
    assert len(why("p4", tmp_path / "out")["later"]) == 1
    assert why("p3", tmp_path / "out")["later"] == []


def test_why_of_nobody(curated: Path) -> None:
    with pytest.raises(LoomError, match="No document 'p99'"):
        why("p99", curated)


def test_histograms_count_every_document(curated: Path, tmp_path: Path) -> None:
    (found,) = histograms(files_of([str(curated / "attributes" / "gopher_v2")]), "gopher_v2__word_count")
    assert (found.documents, found.present, sum(found.counts)) == (40, 40, 40)
    assert found.edges[0] == 0.0
    write_page([found], tmp_path / "page.html")
    assert "word_count" in (tmp_path / "page.html").read_text()
    with pytest.raises(LoomError, match="No attribute's name"):
        histograms(files_of([str(curated / "attributes" / "gopher_v2")]), "nothing")


def test_plan_and_check(tmp_path: Path) -> None:
    raw = write(tmp_path / "raw", corpus(), 3)
    assert plan(recipe(raw))["sources"]["s"]["files"] == 3
    assert check(recipe(raw))["s"] == {"files": 3, "documents": 40, "rejected": 0, "matched": {"short": 2}}
    wrong = {"r": {"taggers": ["pii_v1"], "replace": {"pii_v1.EMAIL": "x"}}}
    with pytest.raises(LoomError, match=r"pii_v1\.EMAIL_ADDRESS"):
        check(recipe(raw, rules=wrong))


def test_why_goes_back_from_tokens_through_the_mixture_to_the_rule(curated: Path, tmp_path: Path) -> None:
    tokenizer = bytes_tokenizer(tmp_path / "tokenizer.json")
    mixture = Sample(
        {"s": build({"share": 0.5}, SampleSource, "test")}, str(tokenizer), str(curated), shuffle=True
    )
    made = sample(mixture, tmp_path / "mixture", LocalEngine(1))
    shards = Tokenize((str(made.path),), tokenizer, held_out=0.2, shard_tokens=2_000)
    tokens = tokenize(shards, tmp_path / "tokens", LocalEngine(1))
    assert len(tokens.facts["tokens"]["shards"]) > 2
    drawn = texts(made.path)
    assert 0 < len(drawn) < 37
    for row in corpus():
        if row["id"] in ("short", "blank", "copy of p2"):
            continue
        found = why(row["id"], tokens.path)
        assert found["kept"] and len(found["later"]) == 2
        assert ("Drawn into" in found["later"][0]) == (row["id"] in drawn)
        assert ("shard-" in found["later"][1]) == (row["id"] in drawn)
    assert why("short", tokens.path)["removed_by"] == "short"
    place = find_document(tokens, next(iter(drawn)))[0]
    assert place.end - place.start == len(drawn[next(iter(drawn))]["text"].strip().encode()) + 1


def test_why_opens_no_other_file(curated: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from loom.corpus import documents

    opened = []
    read = documents.read

    def noting(path: Path, *arguments: Any) -> Any:
        opened.append(path.name)
        return read(path, *arguments)

    monkeypatch.setattr(documents, "read", noting)
    why("p30", curated)
    assert set(opened) == {"part-02.jsonl.gz"}
