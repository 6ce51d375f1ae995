"""Dolma's mixer and deduper configurations: byte for byte its own output under --compat, mended without."""

from __future__ import annotations

import gzip
import random
import shutil
import subprocess
from pathlib import Path
from typing import Any

import orjson
import pytest

from loom.corpus.dolma import config
from loom.corpus.dolma.deduping import dedupe
from loom.corpus.dolma.mixing import mix
from loom.engine import LocalEngine
from loom.errors import LoomError
from loom.recipe import build

ORACLE = Path(__file__).resolve().parents[1] / "oracles" / "dolma_run.py"
REPLACEMENTS = [
    {"span": "$.attributes.p", "min_score": 0.5, "replacement": "<P{}>", "syntax": "jsonpath"},
    {"span": "$.attributes.p2", "min_score": 0.5, "max_score": 0.95, "replacement": "", "syntax": "jsonpath"},
    {"span": "$.attributes.q", "min_score": 0.5, "replacement": "Q", "syntax": "jsonpath"},
]
FILTERS = [
    "$.attributes[?(@.n)]",
    "$.attributes[?(@.n && @.n[0] && @.n[0][2] < 50)]",
    "$.attributes[?(@.n[0][2] >= 50)]",
    "$.attributes[?(@.n[0][2] >= 60)]",  # which 60.0 is not, to Dolma
    "$.attributes[?(@.n && @.n[0] && @.n[0][2] <= 60.0)]",
    "$.attributes[?(@.n[0][2] != 60.0)]",
    "$.attributes[?(!(@.n))]",
    "$.attributes[?(@.n == null)]",
    "$.attributes[?(@.n.b == true)]",
    "$.attributes.n[?(@[2] > 65)]",
    "$.attributes.n[*][2]",
    "$.attributes[?(@.n[-1:])]",
    "$@.attributes[?(@.n && @.n[0])]",
    "$.attributes[?(@.nobody > 3)]",
    "$.metadata[?(@.length > 800 || @.length > 100 && @.length < 400)]",
    "$.metadata[?(@.l[2] in [3,4])]",
    "$..length",
    "$['attributes']['n']",
    "$[?(@.id == '3')]",
    "$.metadata.l[?(@ > 5)]",
]
JQ = [
    ".attributes.p[0][2]? > 0.5",
    ".attributes?.q? | length",
    '(.attributes | to_entries | map(select(.key | startswith("n"))) | length) > 0',
    "(([.attributes.p[] | .[1] - .[0]] | add) // 0) / ((.text | length) + 1) <= 0.3",
    ".metadata.length? > 500 and (.id | length) > 2",
    'if (.attributes.p | length) > 1 then .text | contains("a") else false end',
    ".nothing // false",
    ".attributes.p | map(.[2]) | any(. > 0.6)",
]
VALUES = [
    [[0, 5, 10.0]],
    [[0, 5, 60.0]],
    [],
    None,
    [[0, 5, 10.0], [5, 9, 70.0]],
    0.5,
    "text",
    {"b": True},
    False,
    0,
]


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(b"".join(orjson.dumps(row) + b"\n" for row in rows), mtime=0))


def corpus(root: Path, seed: int = 1) -> None:
    """Four files of documents and two sets of attributes with spans that overlap in every way."""
    choose = random.Random(seed)

    def spans() -> list[list[float]]:
        starts = [choose.randint(0, 40) for _ in range(choose.randint(0, 3))]
        return [[at, min(at + choose.randint(0, 9), 45), choose.choice([0.3, 0.5, 0.9, 1])] for at in starts]

    number = 0
    for part in range(4):
        documents, first, second = [], [], []
        for _ in range(50):
            number += 1
            text = "".join(choose.choice("abcdefghijé😀\n ") for _ in range(choose.randint(0, 40)))
            row: dict[str, Any] = {"id": str(number), "text": text, "source": "s"}
            if number % 3:
                row["metadata"] = {"length": number * 10, "l": [1, 2, number], "tiny": 1e-7, "name": "é"}
            if number % 6 == 1:
                row["metadata"] = {"length": number, "name": "é", "url": f"http://{number}.org", "warc": None}
            if number % 7 == 0:
                row["attributes"] = {"old": [[0, 1, 1]]}
            documents.append(row)
            named = {"n": VALUES[number % len(VALUES)]} if number % 5 else {}
            first.append({"id": str(number), "attributes": {"p": spans(), "q": spans(), **named}})
            second.append({"id": str(number), "attributes": {"p2": spans()} if number % 4 else {}})
        write(root / "documents" / "s" / f"d{part}.jsonl.gz", documents)
        write(root / "attributes" / "x" / "s" / f"d{part}.jsonl.gz", first)
        write(root / "attributes" / "y" / "s" / f"d{part}.jsonl.gz", second)


def mixer(root: Path, name: str, **stream: Any) -> dict[str, Any]:
    output = {"path": str(root / "out" / name), "max_size_in_bytes": 10**9, **stream.pop("output", {})}
    return {
        "streams": [
            {
                "name": name,
                "documents": [str(root / "documents" / "s" / "*.gz")],
                "attributes": ["x", "y"],
                "output": output,
                **stream,
            }
        ],
        "processes": 1,
        "shuffle": True,
        "work_dir": {"input": str(root / "wi"), "output": str(root / "wo")},
    }


def run_dolma(python: Path, jobs: list[dict[str, Any]]) -> None:
    data = b"".join(orjson.dumps(job) + b"\n" for job in jobs)
    subprocess.run([str(python), str(ORACLE)], input=data, check=True, capture_output=True, timeout=600)


def lines(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): gzip.decompress(path.read_bytes())
        for path in sorted(folder.rglob("*.gz"))
    }


@pytest.fixture(scope="module")
def dolma(oracle: Any) -> Path:
    python: Path = oracle("dolma")
    return python


def test_mixer_is_dolma_s_byte_for_byte(dolma: Path, tmp_path: Path) -> None:
    corpus(tmp_path)
    smallest = min(path.stat().st_size for path in tmp_path.rglob("documents/s/*.gz"))
    discard = {"discard_fields": ["attributes", "metadata"], "min_text_length": 5}
    configs = [
        mixer(tmp_path, "plain", filter={"include": [], "exclude": ["$.nothing"]}),
        mixer(tmp_path, "spans", span_replacement=REPLACEMENTS),
        mixer(tmp_path, "discard", span_replacement=REPLACEMENTS, output=discard),
        mixer(tmp_path, "split", span_replacement=REPLACEMENTS, output={"max_size_in_bytes": 3 * smallest}),
    ]
    for number, text in enumerate(FILTERS):
        configs.append(mixer(tmp_path, f"include{number}", filter={"include": [text], "exclude": []}))
        configs.append(mixer(tmp_path, f"exclude{number}", filter={"include": [], "exclude": [text]}))
    for number, text in enumerate(JQ):
        chosen = {"include": [text], "exclude": [], "syntax": "jq"}
        configs.append(mixer(tmp_path, f"jq{number}", filter=chosen))
    run_dolma(dolma, [{"verb": "mix", "config": item} for item in configs])
    theirs = {
        item["streams"][0]["name"]: lines(tmp_path / "out" / item["streams"][0]["name"]) for item in configs
    }
    shutil.rmtree(tmp_path / "out")
    for item in configs:
        name = item["streams"][0]["name"]
        mix(build(item, config.Mixer, name), "dolma-1.2", LocalEngine(1))
        assert lines(tmp_path / "out" / name) == theirs[name], item["streams"][0].get("filter")
    assert len({tuple(found.values()) for found in theirs.values()}) > 15  # the filters tell documents apart


DEDUPERS = [
    {"name": "p", "paragraphs": {"attribute_name": "bff"}, "skip_empty": True},
    {"name": "p_empty", "paragraphs": {"attribute_name": "bff"}, "skip_empty": False},
    {"name": "p_length", "paragraphs": {"attribute_name": "bff"}, "min_length": 9},
    {"name": "p_words", "paragraphs": {"attribute_name": "bff"}, "min_words": 2},
    {"name": "url", "documents": {"attribute_name": "dup", "key": "$.metadata.url"}},
    {"name": "text", "documents": {"attribute_name": "dup", "key": "$.text"}, "skip_empty": True},
    {"name": "text_length", "documents": {"attribute_name": "dup", "key": "$.text"}, "min_length": 12},
    {"name": "text_words", "documents": {"attribute_name": "dup", "key": "$.text"}, "min_words": 3},
    *(
        {
            "name": f"ngrams_{length}_{stride}_{threshold}_{skip}",
            "paragraphs": {
                "attribute_name": "bff",
                "by_ngram": {
                    "ngram_length": length,
                    "stride": stride,
                    "overlap_threshold": threshold,
                    "skip_short_paragraphs": skip,
                },
            },
            "skip_empty": True,
        }
        for length, stride, threshold, skip in ((2, 0, 0.3, False), (3, 2, 0.0, False), (2, 3, 0.5, True))
    ),
]


def paragraphs(root: Path) -> None:
    choose = random.Random(3)
    pieces = ["alpha", "béta", "", "  ", "gamma 😀 delta", "one two three", "x", "日本語"]
    pieces += ["one two three four, five six 7", "the one two three and two three four", "a a a a a a a"]
    for part in range(3):
        rows = []
        for number in range(80):
            text = "\n".join(
                choose.choice(pieces) + (str(choose.randint(0, 30)) if choose.random() < 0.6 else "")
                for _ in range(choose.randint(0, 6))
            )
            metadata = {"url": f"u{choose.randint(0, 100)}é"}
            rows.append({"id": f"{part}-{number}", "text": text, "source": "s", "metadata": metadata})
        write(root / "documents" / "s" / f"d{part}.jsonl.gz", rows)


def deduper(root: Path, rules: dict[str, Any], filter_name: str = "filter") -> dict[str, Any]:
    return {
        "documents": [str(root / "documents" / "s" / "*.gz")],
        "dedupe": rules,
        "bloom_filter": {
            "file": str(root / f"{rules['name']}.{filter_name}"),
            "read_only": False,
            "size_in_bytes": 0,
            "estimated_doc_count": 100_000,
            "desired_false_positive_rate": 1e-8,
        },
        "work_dir": {"input": str(root / "wi"), "output": str(root / "wo")},
        "processes": 1,
    }


def test_deduper_is_dolma_s_byte_for_byte(dolma: Path, tmp_path: Path) -> None:
    paragraphs(tmp_path)
    run_dolma(dolma, [{"verb": "dedupe", "config": deduper(tmp_path, rules)} for rules in DEDUPERS])
    for rules in DEDUPERS:
        folder = tmp_path / "attributes" / rules["name"]
        theirs = lines(folder)
        shutil.rmtree(folder)
        chosen = build(deduper(tmp_path, rules, "ours"), config.Deduper, rules["name"])
        dedupe(chosen, "dolma-1.2", LocalEngine(2))
        assert lines(folder) == theirs, rules


@pytest.mark.parametrize("rules", [DEDUPERS[0], DEDUPERS[4], DEDUPERS[-1]], ids=lambda rules: rules["name"])
def test_a_filter_in_parts_says_the_same_and_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rules: dict[str, Any]
) -> None:
    from loom.corpus.dolma import filters

    paragraphs(tmp_path)
    folder = tmp_path / "attributes" / rules["name"]
    chosen = build(deduper(tmp_path, rules, "whole"), config.Deduper, "x")
    first = dedupe(chosen, "", LocalEngine(1))
    whole = lines(folder)
    assert first.counters["duplicates"] > 0
    shutil.rmtree(folder)
    monkeypatch.setattr(filters, "PART", 1 << 18)
    parts = build(deduper(tmp_path, rules, "parts"), config.Deduper, "x")
    assert parts.bloom_filter is not None
    assert filters.partitions_for(filters.filter_size(parts.bloom_filter)) > 1
    dedupe(parts, "", LocalEngine(3))
    assert lines(folder) == whole
    shutil.rmtree(folder)
    again = deduper(tmp_path, rules, "parts")
    again["bloom_filter"]["read_only"] = True
    second = dedupe(build(again, config.Deduper, "x"), "", LocalEngine(2))
    assert second.counters["duplicates"] > first.counters["duplicates"]  # now the first copies match too


def test_a_run_stopped_after_the_filter_was_written_does_not_meet_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from loom.corpus.dolma import deduping

    paragraphs(tmp_path)
    folder = tmp_path / "attributes" / "p"
    dedupe(build(deduper(tmp_path, DEDUPERS[0], "one"), config.Deduper, "x"), "", LocalEngine(1))
    expected = lines(folder)
    shutil.rmtree(folder)

    def stop(*arguments: Any) -> Any:
        raise KeyboardInterrupt

    chosen = build(deduper(tmp_path, DEDUPERS[0], "two"), config.Deduper, "x")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(deduping, "_write", stop)
        dedupe(chosen, "", LocalEngine(1))
    assert chosen.bloom_filter is not None
    assert Path(chosen.bloom_filter.file).exists()
    dedupe(chosen, "", LocalEngine(1))
    assert lines(folder) == expected


def test_dolma_s_own_filter_is_refused(dolma: Path, tmp_path: Path) -> None:
    paragraphs(tmp_path)
    run_dolma(dolma, [{"verb": "dedupe", "config": deduper(tmp_path, DEDUPERS[0])}])
    shutil.rmtree(tmp_path / "attributes")
    with pytest.raises(LoomError, match="Dolma's own"):
        dedupe(build(deduper(tmp_path, DEDUPERS[0]), config.Deduper, "x"), "", LocalEngine(1))


def test_a_filter_that_cannot_match_is_an_error(tmp_path: Path) -> None:
    from loom.corpus.dolma import filters

    paragraphs(tmp_path)
    read_only = deduper(tmp_path, DEDUPERS[0])
    read_only["bloom_filter"]["read_only"] = True
    with pytest.raises(LoomError, match="not there"):
        dedupe(build(read_only, config.Deduper, "x"), "", LocalEngine(1))
    for size in (1 << 20, 1 << 23):
        empty = Path(read_only["bloom_filter"]["file"])
        empty.write_bytes(filters.MAGIC + (8).to_bytes(8, "little") + bytes(size))
        chosen = build(read_only, config.Deduper, "x")
        assert filters.partitions_for(filters.filter_size(chosen.bloom_filter)) == max(1, size >> 20)
        with pytest.raises(LoomError, match="is empty"):
            dedupe(chosen, "", LocalEngine(1))
    with open(empty, "r+b") as stream:  # one entry in the last part, and it is a filter
        stream.seek(-1, 2)
        stream.write(b"\x01")
    assert dedupe(chosen, "", LocalEngine(1)).counters["duplicates"] == 0
    rules = {"name": "k", "documents": {"attribute_name": "d", "key": "$.metadata.link"}}
    with pytest.raises(LoomError, match="No document has the key"):
        dedupe(build(deduper(tmp_path, rules), config.Deduper, "x"), "", LocalEngine(1))


def test_without_compat_masked_text_never_survives(tmp_path: Path) -> None:
    rows = [{"id": "1", "text": "0123456789abc", "source": "s"}, {"id": "2", "text": "plain", "source": "s"}]
    write(tmp_path / "documents" / "s" / "a.jsonl.gz", rows)
    spans = {"p": [[2, 6, 1.0]], "p2": [[4, 10, 0.9]]}
    found = [{"id": "1", "attributes": spans}, {"id": "2", "attributes": {}}]
    write(tmp_path / "attributes" / "x" / "s" / "a.jsonl.gz", found)
    write(
        tmp_path / "attributes" / "y" / "s" / "a.jsonl.gz", [{"id": i, "attributes": {"q": []}} for i in "12"]
    )
    item = mixer(tmp_path, "mended", span_replacement=REPLACEMENTS)
    (artifact,) = mix(build(item, config.Mixer, "x"), "", LocalEngine(1))
    (text,) = lines(tmp_path / "out" / "mended").values()
    assert [orjson.loads(line)["text"] for line in text.splitlines()] == ["01<P2345>abc", "plain"]
    assert artifact.counters["unlike_dolma"] == 1


def test_mistakes_are_named_and_nothing_is_published(tmp_path: Path) -> None:
    corpus(tmp_path)
    wrong = mixer(tmp_path, "a", filter={"include": [], "exclude": ["$.attributes[?(@.nn > 3)]"]})
    with pytest.raises(LoomError, match="'nn'.*nothing wrote"):
        mix(build(wrong, config.Mixer, "x"), "", LocalEngine(1))
    missing = mixer(tmp_path, "b", filter={"include": ["$.id"]})
    missing["streams"][0]["attributes"] = ["z"]
    with pytest.raises(LoomError, match="attributes 'z'"):
        mix(build(missing, config.Mixer, "x"), "", LocalEngine(1))
    assert not (tmp_path / "out").exists()  # these two before work starts
    short = tmp_path / "attributes" / "y" / "s" / "d3.jsonl.gz"
    write(short, [{"id": "151", "attributes": {}}])
    cut = mixer(tmp_path, "c", filter={"include": ["$.id"]})
    with pytest.raises(LoomError, match="fewer rows"):
        mix(build(cut, config.Mixer, "x"), "", LocalEngine(1))
    assert not list((tmp_path / "out").rglob("*.gz"))
    assert not list((tmp_path / "out").rglob("manifest.json"))


def test_published_misspellings_are_mended(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key = "gopher_v1__gopher_v1__fraction_of_characters_in_most_common_2grams"
    write(tmp_path / "documents" / "s" / "a.jsonl.gz", [{"id": i, "text": "t", "source": "s"} for i in "12"])
    for name in "xy":
        rows = [
            {"id": "1", "attributes": {key: [[0, 1, 0.9]]}},
            {"id": "2", "attributes": {key: [[0, 1, 0.1]]}},
        ]
        write(tmp_path / "attributes" / name / "s" / "a.jsonl.gz", rows)
    misspelt = key.removesuffix("s")
    item = mixer(
        tmp_path, "m", filter={"exclude": [f"$.attributes[?(@.{misspelt} && @.{misspelt}[0][2] > 0.2)]"]}
    )
    (artifact,) = mix(build(item, config.Mixer, "x"), "", LocalEngine(1))
    assert (artifact.counters["documents_out"], artifact.counters["unlike_dolma"]) == (1, 1)
    assert "misspelt" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "out")
    (artifact,) = mix(build(item, config.Mixer, "x"), "dolma-1.2", LocalEngine(1))
    assert artifact.counters["documents_out"] == 2
