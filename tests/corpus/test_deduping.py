"""`loom dedupe`: exact duplicates are brute force's, with survivors; a filter that took too much says so."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loom.cli import main
from loom.corpus import documents
from loom.corpus.dolma import config
from loom.corpus.dolma.deduping import dedupe
from loom.engine import LocalEngine
from loom.errors import LoomError
from loom.recipe import build


def write(root: Path, texts: Sequence[str], parts: int) -> None:
    for part in range(parts):
        rows = [
            {"id": f"d{n}", "text": text, "metadata": {"url": f"u{n % 7}"}}
            for n, text in enumerate(texts)
            if n * parts // max(len(texts), 1) == part
        ]
        documents.write(root / "documents" / "s" / f"{part}.jsonl.gz", rows)


def chosen(root: Path, rules: dict[str, Any], bloom: dict[str, Any] | None = None) -> config.Deduper:
    values: dict[str, Any] = {"documents": [str(root / "documents")], "dedupe": {"name": "d", **rules}}
    return build(values | ({"bloom_filter": bloom} if bloom else {}), config.Deduper, "x")


def rows(root: Path) -> dict[str, dict[str, Any]]:
    found = {}
    for path in sorted((root / "attributes" / "d" / "s").glob("*.gz")):
        for line in documents.read_lines(path):
            row = orjson.loads(line)
            found[row["id"]] = row["attributes"]
    return found


TEXTS = st.lists(
    st.sampled_from(["a", "b", "", " ", "a\nb", "b\na\nb", "c\n\nc", "é😀\né"]), min_size=1, max_size=14
)
BY_TEXT = {"documents": {"attribute_name": "d", "key": "$.text"}, "skip_empty": True}


@settings(max_examples=25, deadline=None)
@given(texts=TEXTS, parts=st.integers(1, 4), workers=st.integers(1, 3))
def test_exact_documents_are_those_of_brute_force(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], parts: int, workers: int
) -> None:
    root = tmp_path_factory.mktemp("exact")
    write(root, texts, parts)
    dedupe(chosen(root, BY_TEXT), "", LocalEngine(workers))
    first: dict[str, str] = {}
    expected: dict[str, Any] = {}
    for n, text in enumerate(texts):
        if not text.strip():
            expected[f"d{n}"] = {"d": []}
        elif text in first:
            expected[f"d{n}"] = {"d": [[0, len(text), 1]], "d_of": first[text]}
        else:
            first[text] = f"d{n}"
            expected[f"d{n}"] = {}
    assert rows(root) == expected


@settings(max_examples=25, deadline=None)
@given(texts=TEXTS, parts=st.integers(1, 4))
def test_exact_paragraphs_are_those_of_brute_force(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], parts: int
) -> None:
    root = tmp_path_factory.mktemp("exact")
    write(root, texts, parts)
    dedupe(chosen(root, {"paragraphs": {"attribute_name": "d"}, "skip_empty": True}), "", LocalEngine(2))
    seen: set[str] = set()
    expected: dict[str, Any] = {}
    for n, text in enumerate(texts):
        spans, at = [], 0
        for line in text.splitlines(keepends=True):
            start, at = at, at + len(line)
            if line.strip() and line.rstrip("\n") in seen:
                spans.append([start, at, 1])
            if line.strip():
                seen.add(line.rstrip("\n"))
        expected[f"d{n}"] = {"d": spans} if text else {}
    assert rows(root) == expected


def test_exact_and_a_filter_of_ample_size_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from loom.corpus.dedupe import exact

    choose = random.Random(1)
    texts = ["\n".join(f"line {choose.randrange(300)}" for _ in range(5)) for _ in range(200)]
    by_ngram = {"ngram_length": 2, "stride": 0, "overlap_threshold": 0.5}
    monkeypatch.setattr(exact, "ENTRIES", 256)  # several partitions
    for number, rules in enumerate(
        (
            {"paragraphs": {"attribute_name": "d"}},
            {"paragraphs": {"attribute_name": "d", "by_ngram": by_ngram}},
            {"documents": {"attribute_name": "d", "key": "$.metadata.url"}},
        )
    ):
        found = []
        for kind, bloom in (
            ("exact", None),
            ("bloom", {"file": "", "read_only": False, "estimated_doc_count": 10**6}),
        ):
            root = tmp_path / f"{kind}-{number}"
            write(root, texts, 3)
            made = dedupe(chosen(root, rules, bloom), "", LocalEngine(2))
            assert made.counters["duplicates"] > 50
            found.append({name: value.get("d") for name, value in rows(root).items()})
        assert found[0] == found[1]


def test_a_filter_that_took_too_much_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = [f"{n}\n{n} and more" for n in range(40_000)]
    write(tmp_path, texts, 1)
    rules = {"paragraphs": {"attribute_name": "d"}}
    small = {
        "file": str(tmp_path / "f"),
        "read_only": False,
        "size_in_bytes": 8192,
        "estimated_doc_count": 1000,
    }
    with pytest.raises(LoomError, match=r"entries, sized for 1,000.*--expected"):
        dedupe(chosen(tmp_path, rules, small), "", LocalEngine(1))
    assert not (tmp_path / "attributes" / "d" / "manifest.json").exists()
    assert not (tmp_path / "f").exists()
    dedupe(chosen(tmp_path, rules, small), "dolma-1.2", LocalEngine(1))  # Dolma goes on
    assert "takes" in capsys.readouterr().err
    ample = small | {"file": "", "size_in_bytes": 1 << 20, "estimated_doc_count": 79_999}
    dedupe(chosen(tmp_path, rules, ample), "", LocalEngine(1))
    assert "took 80,000 entries" in capsys.readouterr().err  # one more than it was sized for
    dedupe(chosen(tmp_path, rules, ample | {"estimated_doc_count": 80_000}), "", LocalEngine(1))
    assert capsys.readouterr().err == ""


def test_rows_that_are_no_documents_are_set_aside_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "documents" / "s" / "0.jsonl.gz"
    write(tmp_path, ["one", "two", "one"], 1)
    lines = [*documents.read_lines(path)]
    with documents.write_lines(path) as stream:
        stream.writelines([lines[0], b"{broken\n", lines[1], b'{"id": "x"}\n', lines[2]])
    made = dedupe(chosen(tmp_path, BY_TEXT), "", LocalEngine(1))
    assert (made.counters["documents"], made.counters["rejected"]) == (3, 2)
    aside = [orjson.loads(line) for line in documents.read_lines(made.path / "rejected" / "s" / "0.jsonl")]
    assert [(item["file"], item["line"]) for item in aside] == [("0.jsonl.gz", 2), ("0.jsonl.gz", 4)]
    assert rows(tmp_path)["d2"]["d_of"] == "d0"


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(list(words))
    said = capsys.readouterr()
    return int(ended.value.code or 0), said.out, " ".join(said.err.split())


def test_the_command_is_exact_and_refuses_flags_that_say_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, ["one two three", "two", "one two three"], 2)
    files = ["dedupe", "--documents", str(tmp_path / "documents"), "--name", "d"]
    code, out, _ = run(capsys, *files, "--json")
    assert code == 0
    assert json.loads(out.splitlines()[-1])["duplicates"] == 1
    assert rows(tmp_path)["d2"] == {"d": [[0, 13, 1]], "d_of": "d0"}
    for words, flag in (
        (("--by", "minhash", "--expected", "9"), "--expected"),
        (("--by", "minhash", "--skip-empty"), "--skip-empty"),
        (("--by", "paragraph", "--bands", "9"), "--bands"),
        (("--by", "document", "--ngram", "3"), "--ngram"),
        (("--by", "paragraph", "--overlap", "0.3"), "--overlap"),
        (("--compat", "dolma-1.2"), "--compat"),
    ):
        code, _, said = run(capsys, *files, *words)
        assert code == 1
        assert flag in said
    code, out, _ = run(
        capsys,
        *files,
        "--by",
        "minhash",
        "--words",
        "1",
        "--bands",
        "20",
        "--rows",
        "2",
        "--seed",
        "7",
        "--json",
    )
    assert code == 0
    recipe = json.loads((tmp_path / "attributes" / "d" / "manifest.json").read_bytes())["recipe"]
    assert {key: recipe[key] for key in ("words", "bands", "rows", "seed")} == {
        "words": 1,
        "bands": 20,
        "rows": 2,
        "seed": 7,
    }
    assert rows(tmp_path)["d2"]["d_of"] == "d0"
