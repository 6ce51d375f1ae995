"""`loom mix -c` on rows that are none, sidecars that do not fit, and names that nobody wrote."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loom.artifact import Artifact
from loom.corpus import documents
from loom.corpus.dolma import config, names
from loom.corpus.dolma.mixing import mix
from loom.corpus.tag import Tag, tag
from loom.corpus.why import why
from loom.engine import LocalEngine
from loom.errors import LoomError
from loom.recipe import build

WORDS = "gopher_v2__gopher_v2__word_count"
BROKEN = {
    3: b'{"id": "cut',
    7: b'{"id": "none"}',
    8: b'{"text": "nobody"}',
    15: b"7",
    19: b'{"id": "n", "text": 4}',
}


def write(root: Path, rows: int = 30) -> Path:
    """Documents d0, d1, ... of growing length, with broken rows between them, and their attributes."""
    path = root / "documents" / "s" / "a.jsonl.gz"
    with documents.write_lines(path) as stream:
        number = 0
        for line in range(1, rows + len(BROKEN) + 1):
            if line not in BROKEN:
                row = {"id": f"d{number}", "text": "word " * (number + 1) + "me@x.org here", "source": "s"}
                number += 1
            stream.write(BROKEN.get(line, orjson.dumps(row)) + b"\n")
    return path


def mixer(root: Path, attributes: list[str], *, filter: str = "", by_rows: bool = False) -> config.Mixer:
    """A stream that goes by columns, or row by row where metadata is thrown away."""
    pii = "pii_regex_with_counts_fast_v2"
    stream: dict[str, Any] = {
        "name": "m",
        "documents": [str(root / "documents" / "*" / "*")],
        "attributes": attributes,
        "output": {
            "path": str(root / "out"),
            "discard_fields": ["attributes", *(["metadata"] if by_rows else [])],
        },
    }
    if pii in attributes:
        span = f"$.attributes.{pii}__{pii}__EMAIL_ADDRESS"
        stream["span_replacement"] = [{"span": span, "min_score": 0.5, "replacement": " M "}]
    if filter:
        stream["filter"] = {"exclude": [filter]}
    return build({"streams": [stream]}, config.Mixer, "x")


def mixed(root: Path, made: config.Mixer, compat: str = "") -> tuple[Artifact, list[dict[str, Any]]]:
    (artifact,) = mix(made, compat, LocalEngine(1))
    lines = [
        line for item in artifact.outputs if item.path.endswith(".gz") for line in _lines(root, item.path)
    ]
    return artifact, [orjson.loads(line) for line in lines]


def _lines(root: Path, name: str) -> list[bytes]:
    return list(documents.read_lines(root / "out" / name))


@pytest.mark.parametrize("by_rows", [False, True])
@pytest.mark.parametrize("small_blocks", [False, True])
@pytest.mark.parametrize("format", ["jsonl", "parquet"])
def test_rows_that_are_no_documents_are_set_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by_rows: bool, small_blocks: bool, format: str
) -> None:
    """Taggers wrote nothing for them: what follows still meets its own attributes, however rows are read."""
    write(tmp_path)
    if small_blocks:
        monkeypatch.setattr("loom.corpus.dolma.columns.BLOCK", 200)
        monkeypatch.setattr("loom.corpus.documents.BLOCK", 100)
    taggers = ["gopher_v2", "pii_regex_with_counts_fast_v2"]
    tag(Tag((str(tmp_path / "documents"),), tuple(taggers), format=format), None, LocalEngine(1))
    rule = f"$.attributes[?(@.{WORDS} && @.{WORDS}[0][2] > 20)]"
    artifact, rows = mixed(tmp_path, mixer(tmp_path, taggers, filter=rule, by_rows=by_rows))
    assert [row["id"] for row in rows] == [f"d{n}" for n in range(18)]
    assert [row["text"] for row in rows] == ["word " * n + "word M here" for n in range(18)]
    lines = [line for line in range(1, 36) if line not in BROKEN]
    assert [row["metadata"]["provenance"] for row in rows] == [f"a.jsonl.gz:{line}" for line in lines[:18]]
    counters = artifact.counters["streams"]["m"]
    assert {key: counters[key] for key in ("documents_in", "rejected", "filtered", "documents_out")} == {
        "documents_in": 30,
        "rejected": 5,
        "filtered": 12,
        "documents_out": 18,
    }
    aside = [
        orjson.loads(line) for line in documents.read_lines(tmp_path / "out" / "rejected" / "m-0000.jsonl")
    ]
    assert [(item["file"], item["line"]) for item in aside] == [("a.jsonl.gz", line) for line in BROKEN]
    assert [item["reason"] for item in aside[1:]] == [
        "no 'text'",
        "no 'id'",
        "not a JSON object",
        "'text' is not text",
    ]
    assert {item.path for item in artifact.outputs} == {"m-0000.json.gz", "rejected/m-0000.jsonl"}


def sidecar(root: Path, name: str, rows: list[bytes]) -> Path:
    path = root / "attributes" / name / "s" / "a.jsonl.gz"
    with documents.write_lines(path) as stream:
        stream.writelines(row + b"\n" for row in rows)
    return path


def plain(root: Path, count: int = 3) -> None:
    rows = [{"id": str(n), "text": "text"} for n in range(count)]
    documents.write(root / "documents" / "s" / "a.jsonl.gz", rows)


def row(number: int, **spans: Any) -> bytes:
    return orjson.dumps({"id": str(number), "attributes": {"n": [[0, 1, number]], **spans}})


@pytest.mark.parametrize("by_rows", [False, True])
@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([row(0), b"{broken", row(2)], "row 2, is no attribute row"),
        ([row(0), b"[1]", row(2)], "row 2, is no attribute row"),
        ([row(0), b'{"id": "1"}', row(2)], "row 2, is no attribute row"),
        ([row(0), b'{"id": "1", "attributes": 3}', row(2)], "row 2, is no attribute row"),
        ([row(0), row(2), row(1)], "holds '2' where .*row 2, has '1'"),
        ([row(0), row(1)], "fewer rows"),
        ([row(0), row(1), row(2), row(3)], "more rows"),
    ],
)
def test_sidecars_that_do_not_fit_are_named(
    tmp_path: Path, rows: list[bytes], said: str, by_rows: bool
) -> None:
    plain(tmp_path)
    sidecar(tmp_path, "x", rows)
    with pytest.raises(LoomError, match=said):
        mix(mixer(tmp_path, ["x"], filter="$.attributes[?(@.n)]", by_rows=by_rows), "", LocalEngine(1))
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_sidecar_that_was_cut_is_found_before_work_starts(tmp_path: Path) -> None:
    plain(tmp_path)
    tag(Tag((str(tmp_path / "documents"),), ("gopher_v2",)), None, LocalEngine(1))
    sidecar(tmp_path, "gopher_v2", [b'{"id": "0", "attributes": {}}'])
    with pytest.raises(LoomError, match="cut short or changed"):
        mix(mixer(tmp_path, ["gopher_v2"], filter=f"$.attributes[?(@.{WORDS})]"), "", LocalEngine(1))
    assert not (tmp_path / "out").exists()


FORMS = [
    (f"$.attributes[?(@.{WORDS}[0][2] < 2)]", "jsonpath"),
    (f"$.attributes[?(@['{WORDS}'])]", "jsonpath"),
    (f"$.attributes['{WORDS}']", "jsonpath"),
    (f"$.attributes.{WORDS}", "jsonpath"),
    (f"$@.attributes[?(@.{WORDS} && @.{WORDS}[0])]", "jsonpath"),
    (f".attributes.{WORDS} | length > 0", "jq"),
    (f'.attributes["{WORDS}"] != null', "jq"),
]


@pytest.mark.parametrize(("text", "syntax"), FORMS)
def test_every_form_of_a_name_is_seen(text: str, syntax: str) -> None:
    assert set(names.read_by(text, syntax)) == {WORDS}


@pytest.mark.parametrize("format", ["jsonl", "parquet"])
def test_a_name_must_be_written_by_the_stream_s_own_taggers(tmp_path: Path, format: str) -> None:
    """Dolma's own c4.yaml filters by what it does not load: the rule never fires, and nobody hears of it."""
    plain(tmp_path)
    tag(Tag((str(tmp_path / "documents"),), ("gopher_v2", "c4_v2"), format=format), None, LocalEngine(1))
    rule = f"$.attributes[?(@.{WORDS} && @.{WORDS}[0][2] < 0)]"
    with pytest.raises(LoomError, match=f"'{WORDS}', which nothing wrote"):
        mix(mixer(tmp_path, ["c4_v2"], filter=rule), "", LocalEngine(1))
    _, rows = mixed(tmp_path, mixer(tmp_path, ["c4_v2", "gopher_v2"], filter=rule))
    assert len(rows) == 3
    _, rows = mixed(tmp_path, mixer(tmp_path, ["c4_v2"], filter=rule), "dolma-1.2")
    assert len(rows) == 3  # Dolma's
    with pytest.raises(LoomError, match="Did you mean 'c4_v2__c4_v2__has_javascript'"):
        misspelt = "$.attributes[?(@.c4_v2__c4_v2__has_javascripts)]"
        mix(mixer(tmp_path, ["c4_v2"], filter=misspelt), "", LocalEngine(1))


@pytest.mark.parametrize("kind", ["document", "url", "minhash", "decontaminate", "list", "paloma"])
def test_a_clean_corpus_may_be_filtered_by_what_marks_hits_only(tmp_path: Path, kind: str) -> None:
    """Where nothing was marked no row holds the name; who made the attributes says that it was looked for."""
    from loom.corpus.contamination import Decontaminate, run
    from loom.corpus.dedupe.minhash import MinHash, minhash
    from loom.corpus.dolma.deduping import dedupe

    texts = [" ".join(word * (n + 1) for word in "abcdefgh") for n in range(3)]
    rows = [
        {"id": str(n), "text": text, "metadata": {"url": f"http://{n}.org"}} for n, text in enumerate(texts)
    ]
    documents.write(tmp_path / "documents" / "s" / "a.jsonl.gz", rows)
    folder, held = (str(tmp_path / "documents"),), tmp_path / "held.txt"
    held.write_text(" ".join(f"other{n}" for n in range(20)) + "\n")
    name, key, engine = "d", "d", LocalEngine(1)
    if kind in ("document", "url"):
        rule = {"attribute_name": "d", "key": "$.text" if kind == "document" else "$.metadata.url"}
        rules = {"documents": list(folder), "dedupe": {"name": "d", "documents": rule}}
        dedupe(build(rules, config.Deduper, "x"), "", engine)
    elif kind == "minhash":
        minhash(MinHash(folder, "d"), engine)
    elif kind == "decontaminate":
        run(Decontaminate(folder, (str(held),), name="d"), engine=engine)
    else:
        name, short = ("url_hosts_v1", "url") if kind == "list" else ("paloma_paragraphs_v1", "paragraph")
        key = f"{name}__{name}__{short}"
        tag(Tag(folder, (name,), files={name: str(held)}), None, engine)
    _, found = mixed(tmp_path, mixer(tmp_path, [name], filter=f"$.attributes[?(@.{key} && @.{key}[0])]"))
    assert [row["id"] for row in found] == ["0", "1", "2"]
    with pytest.raises(LoomError, match="nothing wrote"):
        mix(mixer(tmp_path, [name], filter=f"$.attributes[?(@.{key}s)]"), "", engine)


@pytest.mark.parametrize("by_rows", [False, True])
def test_an_id_that_is_a_number_is_set_aside_by_all(tmp_path: Path, by_rows: bool) -> None:
    """By the tagger and the mixer alike, so that the next row still meets its own attributes."""
    path = tmp_path / "documents" / "s" / "a.jsonl.gz"
    rows = [{"id": "a", "text": "one"}, {"id": 7, "text": "a number"}, {"id": "b", "text": "two three"}]
    with documents.write_lines(path) as stream:
        stream.writelines(orjson.dumps(row) + b"\n" for row in rows)
    tag(Tag((str(tmp_path / "documents"),), ("gopher_v2",)), None, LocalEngine(1))
    rule = f"$.attributes[?(@.{WORDS}[0][2] < 2)]"
    artifact, found = mixed(tmp_path, mixer(tmp_path, ["gopher_v2"], filter=rule, by_rows=by_rows))
    assert [row["id"] for row in found] == ["b"]
    (aside,) = _lines(tmp_path, "rejected/m-0000.jsonl")
    assert orjson.loads(aside) == {"file": "a.jsonl.gz", "line": 2, "reason": "'id' is not text"}
    assert (why("a", artifact.path)["removed_by"], why("b", artifact.path)["kept"]) == (rule, True)
    with pytest.raises(LoomError, match="No document '7'"):
        why("7", artifact.path)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.dictionaries(
            st.sampled_from(["a", "date", "prov", "provenance", "provenances", "q", "url", "warc_url", "ü"]),
            st.one_of(
                st.text(max_size=3), st.integers(-9, 9), st.none(), st.lists(st.integers(0, 9), max_size=2)
            ),
            max_size=5,
        ),
        min_size=1,
        max_size=4,
    )
)
def test_metadata_is_kept_with_where_a_row_stood(metadata: list[dict[str, Any]]) -> None:
    """Whatever its keys, before or behind "provenance"."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        rows = [{"id": str(n), "text": "t", "metadata": each} for n, each in enumerate(metadata)]
        documents.write(root / "documents" / "s" / "a.jsonl.gz", rows)
        mix(mixer(root, []), "", LocalEngine(1))
        said = [{**each, "provenance": f"a.jsonl.gz:{n}"} for n, each in enumerate(metadata, 1)]
        expected = [
            orjson.dumps({**row, "metadata": each}, option=orjson.OPT_SORT_KEYS) + b"\n"
            for row, each in zip(rows, said, strict=True)
        ]
        assert _lines(root, "m-0000.json.gz") == expected


def test_two_files_of_one_name_are_not_written_over_each_other(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        documents.write(tmp_path / "documents" / folder / "x.jsonl.gz", [{"id": folder, "text": folder}])
    stream = {
        "name": "m",
        "documents": [str(tmp_path / "documents" / "*" / "*")],
        "output": {"path": str(tmp_path / "out")},
        "filter": {"include": ["$.id"]},
    }
    with pytest.raises(LoomError, match="Twice the same output"):
        mix(build({"streams": [stream], "shuffle": False}, config.Mixer, "x"), "", LocalEngine(1))
    (made,) = mix(build({"streams": [stream]}, config.Mixer, "x"), "", LocalEngine(1))
    assert made.counters["documents_out"] == 2


@pytest.mark.parametrize("by_rows", [False, True])
def test_the_first_rule_that_speaks_gets_the_count(tmp_path: Path, by_rows: bool) -> None:
    plain(tmp_path, 10)
    sidecar(tmp_path, "x", [row(n, **({"m": [[0, 1, 1.5]]} if n % 2 else {})) for n in range(10)])
    low, odd, has = (
        f"$.attributes[?({test})]" for test in ("@.n[0][2] < 3", "@.m && @.m[0]", "@.n[0][2] > 0")
    )
    made = mixer(tmp_path, ["x"], filter=low, by_rows=by_rows)
    stream = replace(made.streams[0], filter=config.Filter((has,), (low, odd)))
    artifact, rows = mixed(tmp_path, replace(made, streams=(stream,)))
    assert artifact.counters["filtered_by"] == {"no include matches": 1, low: 2, odd: 4}
    assert [row["id"] for row in rows] == ["4", "6", "8"]


@pytest.mark.parametrize("compat", ["", "dolma-1.2"])
def test_why_of_every_document_is_what_the_mixer_did(tmp_path: Path, compat: str) -> None:
    write(tmp_path)
    pii = "pii_regex_with_counts_fast_v2"
    tag(Tag((str(tmp_path / "documents"),), ("gopher_v2", pii)), None, LocalEngine(1))
    rule = f"$.attributes[?(@.{WORDS}[0][2] < 8)]"
    made = mixer(tmp_path, ["gopher_v2", pii], filter=rule)
    stream = made.streams[0]
    made = replace(made, streams=(replace(stream, output=replace(stream.output, min_text_length=60)),))
    artifact, rows = mixed(tmp_path, made, compat)
    kept = {row["id"]: row["text"] for row in rows}
    fates = {f"d{n}": why(f"d{n}", artifact.path) for n in range(30)}
    assert {name for name, fate in fates.items() if fate["kept"]} == set(kept)
    assert {fate["removed_by"] for fate in fates.values()} == {None, rule, "min_text_length"}
    for name, text in kept.items():
        fate = fates[name]
        (span,) = fate["spans"]
        assert (span["kind"], span["text"]) == ("replaced by ' M '", " me@x.org ")
        words = int(name[1:]) + 3
        assert text.count("word ") == words - 2
        assert fate["rules"] == [
            {"rule": "exclude", "expression": rule, "matched": False, "values": f"{WORDS} = {words}"}
        ]
    assert fates["d1"]["rules"][0]["matched"]
    assert fates["d0"]["row"] == 1
    with pytest.raises(LoomError, match="No document 'd30' went into"):
        why("d30", artifact.path)
    with (tmp_path / "documents" / "s" / "a.jsonl.gz").open("ab") as file:
        file.write(b" ")
    with pytest.raises(LoomError, match="changed since"):
        why("d1", artifact.path)
