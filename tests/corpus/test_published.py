"""Configurations of the shape that Dolma published, as they are, against an S3-compatible server.

They are imitations written for these tests, with the keys, addresses and forms of allenai/dolma's `configs` (documents
in the bucket `ai2-llm`, groups of taggers under one name, 188 processes, `${oc.env:HOME}`, misspelt attributes and all);
none is a published file, and what a published file asks of taggers that Loom lacks is not shown here.
"""

from __future__ import annotations

import gzip
import json
import subprocess
from pathlib import Path
from typing import Any

import orjson
import pytest
import zstandard

from loom.cli import main
from loom.corpus import documents
from tests.corpus.test_remote import fetch, names, upload

BUCKET = "ai2-llm"
CC = "pretraining-data/sources/common-crawl/v1-c4-cleaned"
PROSE = "The harbour was quiet that morning, and the boats that had come in with the tide lay side by side"


def text(number: int) -> str:
    """Words enough for Gopher's rules, no line like another's."""
    lines = [f"{PROSE} for the {number * 100 + line}th time of the year." for line in range(4)]
    return "\n".join(lines) + "\n"


SHARED = "This line of the harbour's log stands in more than one of the documents that were collected.\n"
EVALUATION = "Which of the boats that had come in with the tide lay nearest to the quiet harbour wall?"
DOCUMENTS = [
    {"id": "plain", "text": text(1) + SHARED},
    {"id": "short", "text": "Too short to be kept.\n"},
    {"id": "again", "text": text(2) + SHARED},
    {"id": "mail", "text": text(3) + "Write to harbour@example.org for more.\n"},
    {"id": "tested", "text": text(4) + EVALUATION + "\n"},
    {"id": "tag", "text": f"{text(5)}{'spam ham ' * 90}\n"},
    {"id": "copy", "text": text(1) + SHARED},
]


def rule(name: str, test: str) -> str:
    return f"$.attributes[?(@.{name} && @.{name}[0] && @.{name}[0][2] {test})]"


def put(client: Any, folder: Path, name: str, rows: list[dict[str, Any]], prefix: str = CC) -> None:
    """Two files of rows in a bucket's `documents/<name>`, gz JSON lines called .json.gz, as published ones are."""
    for part, some in enumerate((rows[: len(rows) // 2], rows[len(rows) // 2 :])):
        path = folder / "documents" / name / f"{name}-{part:04d}.json.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(b"".join(orjson.dumps(row) + b"\n" for row in rows and some), mtime=0))
    upload(client, folder, prefix, BUCKET)


def loom(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    """A command's closing object; it must succeed."""
    with pytest.raises(SystemExit) as ended:
        main([*words, "--json"])
    out = capsys.readouterr()
    assert ended.value.code == 0, out.err
    made: dict[str, Any] = json.loads(out.out.splitlines()[-1])
    return made


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What a command says that fails as it should: one paragraph, no defect of Loom's."""
    with pytest.raises(SystemExit) as ended:
        main(list(words))
    said = capsys.readouterr().err
    assert ended.value.code in (1, 2)
    assert "defect" not in said
    return " ".join(said.split())


def yaml(path: Path, content: str) -> str:
    path.write_text(content)
    return str(path)


def rows_of(client: Any, key: str, folder: Path) -> list[dict[str, Any]]:
    data = fetch(client, key, folder / "fetched" / key, BUCKET).read_bytes()
    plain = gzip.decompress(data) if key.endswith(".gz") else zstandard.decompress(data, 1 << 24)
    return [orjson.loads(line) for line in plain.splitlines()]


TAG = """
documents:
  - s3://ai2-llm/pretraining-data/sources/common-crawl/v1-c4-cleaned/documents/cc_en_head/*.json.gz
experiment: {experiment}
taggers:
  - {tagger}
processes: 188
work_dir:
  input: "${{oc.env:HOME}}/status/{experiment}/input"
  output: "${{oc.env:HOME}}/status/{experiment}/output"
"""
PARAGRAPHS = """
documents:
  - s3://ai2-llm/pretraining-data/sources/common-crawl/v1-c4-cleaned/documents/cc_en_head/*.json.gz

dedupe:
  name: {name}
  paragraphs:
    attribute_name: {attribute}
  skip_empty: true

bloom_filter:
  file: {file}
  read_only: {read_only}
  estimated_doc_count: 100_000
  desired_false_positive_rate: 1e-06

processes: 188
"""
EVAL = """
documents:
  - ${oc.env:HOME}/perplexity/option2/documents/*.gz
dedupe:
  name: perplexity_suite_v3_option2
  paragraphs:
    attribute_name: bff_duplicate_paragraph_spans_decontamination
  skip_empty: true
bloom_filter:
  file: s3://ai2-llm/bloom-filters/perplexity-suite-v3_option2.bin
  read_only: false
  estimated_doc_count: 488541
  size_in_bytes: 33554432
processes: 188
"""
GOPHER = "gopher_rules__gopher_v1__"
PII = "pii_detection__pii_regex_with_counts_fast_v2__"
DECONTAMINATION = "bff_duplicate_paragraph_spans_decontamination"
RULES = [
    rule(f"{GOPHER}word_count", "< 50"),
    rule(f"{GOPHER}word_count", "> 100000"),
    rule(f"{GOPHER}median_word_length", "< 3"),
    rule(f"{GOPHER}fraction_of_words_with_alpha_character", "< 0.8"),
    rule(f"{GOPHER}required_word_count", "< 2"),
    rule(f"{GOPHER}fraction_of_characters_in_most_common_2gram", "> 0.2"),  # misspelt, as it was published
    rule(f"{GOPHER}fraction_of_characters_in_duplicate_10grams", "> 0.95"),
    rule(DECONTAMINATION, ">= 1.0").replace("$.", "$@.", 1),
    rule(f"{PII}doc_count", "> 5"),
]
MIX = f"""
streams:

- name: cc_en_head
  documents:
  - s3://ai2-llm/{CC}/documents/cc_en_head/*.json.gz

  attributes:
  - perplexity_suite_v3_option2
  - dedupe_paragraphs
  - gopher_rules
  - pii_detection

  output:
    path: s3://ai2-llm/pretraining-data/sources/olmo-mix/v1_5/documents/cc_en_head
    max_size_in_bytes: 4294967296
    discard_fields:
    - attributes

  filter:
    include: []
    exclude:
{"".join(f'    - "{text}"' + chr(10) for text in RULES)}
  span_replacement:
  - span: "$.attributes.bff_duplicate_paragraph_spans"
    min_score: 0.5
    replacement: ''
  - span: "$.attributes.{PII}EMAIL_ADDRESS"
    min_score: 0.5
    replacement: " |||EMAIL_ADDRESS||| "

work_dir:
  input: "${{oc.env:HOME}}/olmo-mix-v1_5/input"
  output: "${{oc.env:HOME}}/olmo-mix-v1_5/output"
processes: 188
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


def test_common_crawl_s_head_from_tagging_to_the_mix(
    s3: Any, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(s3, tmp_path / "raw", "cc_en_head", DOCUMENTS)
    for experiment, tagger in (
        ("gopher_rules", "gopher_v1"),
        ("pii_detection", "pii_regex_with_counts_fast_v2"),
    ):
        config = yaml(tmp_path / "tag.yaml", TAG.format(experiment=experiment, tagger=tagger))
        made = loom(capsys, "tag", "-c", config)
        assert made["attributes"] == [f"s3://{BUCKET}/{CC}/attributes/{experiment}"]
        assert made["documents"] == len(DOCUMENTS)
    assert (home / "status" / "gopher_rules" / "output").is_dir()  # made in the file's work folder, then sent
    held = home / "perplexity" / "option2" / "documents" / "a.jsonl.gz"
    held.parent.mkdir(parents=True)
    held.write_bytes(gzip.compress(orjson.dumps({"id": "q", "text": EVALUATION}) + b"\n", mtime=0))
    assert loom(capsys, "dedupe", "-c", yaml(tmp_path / "eval.yaml", EVAL))["duplicates"] == 0
    found = PARAGRAPHS.format(
        name="perplexity_suite_v3_option2",
        attribute=DECONTAMINATION,
        file=f"s3://{BUCKET}/bloom-filters/perplexity-suite-v3_option2.bin",
        read_only="true",
    )
    assert loom(capsys, "dedupe", "-c", yaml(tmp_path / "decontaminate.yaml", found))["duplicates"] == 1
    twice = PARAGRAPHS.format(
        name="dedupe_paragraphs",
        attribute="bff_duplicate_paragraph_spans",
        file="${oc.env:HOME}/cc_en_head.bloom",
        read_only="false",
    )
    made = loom(capsys, "dedupe", "-c", yaml(tmp_path / "twice.yaml", twice))
    assert made["attributes"] == f"s3://{BUCKET}/{CC}/attributes/dedupe_paragraphs"
    assert made["duplicates"] == 6  # the line in "again", and all five of "copy"
    assert (home / "cc_en_head.bloom").is_file()
    mixing = yaml(tmp_path / "mix.yaml", MIX)
    counters = loom(capsys, "mix", "-c", mixing)["streams"]["cc_en_head"]
    assert {k: counters[k] for k in ("documents_in", "filtered", "documents_out")} == {
        "documents_in": 7,
        "filtered": 3,
        "documents_out": 4,
    }
    to = "pretraining-data/sources/olmo-mix/v1_5/documents/cc_en_head"
    rows = {row["id"]: row for row in rows_of(s3, f"{to}/cc_en_head-0000.json.gz", tmp_path)}
    assert rows.keys() == {"plain", "again", "mail", "copy"}  # the misspelt rule fires here
    assert rows["plain"]["text"] == DOCUMENTS[0]["text"]
    assert SHARED not in rows["again"]["text"]
    assert rows["copy"]["text"] == ""
    assert " |||EMAIL_ADDRESS||| " in rows["mail"]["text"]
    assert all("attributes" not in row for row in rows.values())
    assert f"{to}/manifest.json" in names(s3, BUCKET)
    assert loom(capsys, "mix", "-c", mixing)["streams"]["cc_en_head"] == counters  # and does nothing again
    counters = loom(capsys, "mix", "-c", mixing, "--compat", "dolma-1.2")["streams"]["cc_en_head"]
    rows = {row["id"]: row for row in rows_of(s3, f"{to}/cc_en_head-0000.json.gz", tmp_path)}
    assert rows.keys() == {
        "plain",
        "again",
        "mail",
        "tested",
        "tag",
        "copy",
    }  # "tag" is what the misspelling lets by


def test_a_pool_of_zstd_files_by_one_include(
    s3: Any, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """DCLM's pools: `.jsonl.zstd`, `compression`, no brackets around the test; jq, JSON and max_by as for news."""
    root = tmp_path / "pool"
    for kind, name in (("documents", ""), ("attributes/dclm", "dclm__dclm_oh_eli5__score")):
        lines = [
            orjson.dumps(
                {"id": str(n), "attributes": {name: [[0, 4, n / 10]], f"{name}_other": [[0, 4, 0.35]]}}
                if name
                else {"id": str(n), "text": f"text {n}", "source": "pool"}
            )
            for n in range(10)
        ]
        path = root / kind / "local-shard_0" / "a.jsonl.zstd"
        path.parent.mkdir(parents=True)
        path.write_bytes(zstandard.compress(b"\n".join(lines) + b"\n"))
    upload(s3, root, "pools/5shards", BUCKET)
    config = f"""
processes: 190
streams:
  - name: dclm_baseline
    attributes: [dclm]
    documents:
      - s3://{BUCKET}/pools/5shards/documents/*/*.jsonl.zstd
    filter:
      include:
        - $.attributes[?(@.dclm__dclm_oh_eli5__score[0][2] > 0.618112)]
    compression:
      input: zst
      output: zst
    output:
      max_size_in_bytes: 4294967296
      path: s3://{BUCKET}/pools/5shards/dclm_baseline
"""
    made = loom(capsys, "mix", "-c", yaml(tmp_path / "pool.yaml", config))["streams"]["dclm_baseline"]
    assert made["documents_out"] == 3
    kept = rows_of(s3, "pools/5shards/dclm_baseline/dclm_baseline-0000.json.zst", tmp_path)
    assert [row["id"] for row in kept] == ["7", "8", "9"]
    name = "dclm__dclm_oh_eli5__score"
    news = {
        "processes": 1,
        "streams": [
            {
                "name": f"news_{which}",
                "documents": [f"s3://{BUCKET}/pools/5shards/documents/*/*.jsonl.zstd"],
                "compression": {"input": "zst", "output": "zst"},
                "output": {"path": f"s3://{BUCKET}/news/documents/{which}", "max_size_in_bytes": 1000000000},
                "attributes": ["dclm"],
                "filter": {
                    "include": [
                        f"(.attributes.{name} != null) and (.attributes.{name}[0][-1] >= 0.1) and "
                        '((.attributes | to_entries | map(select(.key | startswith("dclm__"))) | '
                        f'max_by(.value) | .key) == "{key}")'
                    ],
                    "syntax": "jq",
                },
            }
            for which, key in (("one", name), ("other", f"{name}_other"))
        ],
    }
    made = loom(capsys, "mix", "-c", yaml(tmp_path / "news.json", json.dumps(news)))["streams"]
    assert {name: item["documents_out"] for name, item in made.items()} == {"news_one": 6, "news_other": 3}


def test_tagging_the_documents_of_several_sources(
    s3: Any, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sources = ("stack-dedup/v4-train", "c4/v0")
    for source in sources:
        put(s3, tmp_path / source, "train", DOCUMENTS[:4], f"pretraining-data/sources/{source}")
    config = yaml(
        tmp_path / "tag.yaml",
        "taggers:\n  - char_length_strip_ws_v1\n  - gopher_v1\ndocuments:\n"
        f"  - s3://{BUCKET}/pretraining-data/sources/stack-dedup/v4-train/documents/*/*.gz\n"
        f"  - s3://{BUCKET}/pretraining-data/sources/c4/v0/documents/train/*.gz\nprocesses: 188\n",
    )
    made = loom(capsys, "tag", "-c", config, "--compat", "dolma-1.2")
    assert made["documents"] == 8
    for source in sources:
        for tagger in ("char_length_strip_ws_v1", "gopher_v1"):
            key = f"pretraining-data/sources/{source}/attributes/{tagger}/train/train-0001.json.gz"
            assert [row["id"] for row in rows_of(s3, key, tmp_path)] == ["again", "mail"]


def test_keys_that_would_be_ignored_are_refused(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "c4" / "documents" / "a.jsonl.gz"
    path.parent.mkdir(parents=True)
    path.write_bytes(gzip.compress(orjson.dumps({"id": "1", "text": "x"}) + b"\n", mtime=0))
    dedupe = {
        "documents": ["c4/documents/*.gz"],
        "dedupe": {"name": "d", "documents": {"attribute_name": "d", "key": "$.text"}},
        "bloom_filter": {"file": "b", "read_only": False, "estimated_doc_count": 9},
    }
    stream = {
        "name": "m",
        "documents": ["c4/documents/*.gz"],
        "output": {"path": "out"},
        "filter": {"include": ["$.id"]},
    }

    def said(verb: str, value: Any, *more: str) -> str:
        return refused(capsys, verb, "-c", yaml(tmp_path / "c.yaml", json.dumps(value)), *more)

    assert "is_s3_volume" in said("dedupe", dedupe | {"is_s3_volume": True})
    parts = dedupe["dedupe"] | {"num_partitions": 4}  # type: ignore[operator]
    assert "num_partitions" in said("dedupe", dedupe | {"dedupe": parts})
    assert "compression.input is 'zst'" in said("dedupe", dedupe | {"compression": {"input": "zst"}})
    assert "compression.input is 'zst'" in said(
        "mix", {"streams": [stream | {"compression": {"input": "zst"}}]}
    )
    assert "'bz2'" in said("mix", {"streams": [stream | {"compression": {"output": "bz2"}}]})
    assert "profile.enable" in said(
        "tag", {"documents": ["c4/documents"], "taggers": ["gopher_v1"], "profile": {"enable": True}}
    )
    assert "bloom_filter" in said(
        "dedupe", {k: v for k, v in dedupe.items() if k != "bloom_filter"}, "--compat", "dolma-1.2"
    )
    assert "--by" in said("dedupe", dedupe, "--by", "paragraph")
    assert "--out" in said("mix", {"streams": [stream]}, "--out", "elsewhere")
    assert "Twice" in said("mix", {"streams": [stream, stream]})
    for verb, value in (("mix", {"streams": [stream]}), ("dedupe", dedupe)):
        config = yaml(tmp_path / "c.yaml", json.dumps(value | {"dryrun": True}))  # type: ignore[operator]
        assert loom(capsys, verb, "-c", config)["dryrun"]
    config = yaml(
        tmp_path / "c.yaml",
        json.dumps({"documents": ["c4/documents"], "taggers": ["gopher_v1"], "dryrun": True}),
    )
    assert loom(capsys, "tag", "-c", config)["roots"] == ["c4"]
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "c4" / "attributes").exists()


def test_streams_that_share_a_folder_share_its_manifest(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the published evaluation sets are joined, with YAML's anchors."""
    for name in ("v2", "v3"):
        path = tmp_path / "perplexity" / name / "documents" / "a.jsonl.gz"
        path.parent.mkdir(parents=True)
        path.write_bytes(gzip.compress(orjson.dumps({"id": name, "text": name}) + b"\n", mtime=0))
    config = """
streams:
  - name: v2
    documents: ["perplexity/v2/documents/*.gz"]
    output: &output
      path: perplexity/option2/documents
      max_size_in_bytes: 500000000
      discard_fields: [attributes]
    filter: &filter {include: ["$.id"]}
  - name: v3
    documents: ["perplexity/v3/documents/*.gz"]
    output: *output
    filter: *filter
"""
    for _ in range(2):
        made = loom(capsys, "mix", "-c", yaml(tmp_path / "mix.yaml", config))["streams"]
        assert [made[name]["documents_out"] for name in ("v2", "v3")] == [1, 1]
    manifest = json.loads((tmp_path / "perplexity/option2/documents/manifest.json").read_bytes())
    assert [item["path"] for item in manifest["outputs"]] == ["v2-0000.json.gz", "v3-0000.json.gz"]


def test_attribute_files_are_dolma_s_line_for_line(
    oracle: Any, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whose own folder below `attributes/` may lack a part of the path: one file of a glob goes by its last name."""
    dolma = oracle("dolma").with_name("dolma")
    odd = {"id": 'q"\\', "text": "İ { lorem ipsum } javascript\r\nno end\n# …\n10.1.2.3 é😀", "source": "s"}
    rows = [{**row, "source": "s"} for row in DOCUMENTS] + [odd, {"id": "é", "text": "", "source": "s"}]
    taggers = ["gopher_v1", "gopher_v2", "c4_v2", "pii_regex_with_counts_fast_v2", "char_length_v1"]
    for side in ("dolma", "loom"):
        documents.write(tmp_path / side / "documents" / "s" / "a.jsonl.gz", rows)
        config = {"documents": [f"{side}/documents/s/*.gz"], "taggers": taggers, "processes": 1}
        yaml(tmp_path / f"{side}.json", json.dumps(config))
    subprocess.run([str(dolma), "-c", "dolma.json", "tag"], check=True, capture_output=True, timeout=300)
    loom(capsys, "tag", "-c", "loom.json", "--compat", "dolma-1.2")
    for tagger in taggers:
        (theirs,) = (tmp_path / "dolma" / "attributes" / tagger).rglob("*.gz")
        ours = tmp_path / "loom" / "attributes" / tagger / "s" / "a.jsonl.gz"
        assert gzip.decompress(ours.read_bytes()) == gzip.decompress(theirs.read_bytes()), tagger


def test_what_is_there_is_made_anew_if_the_file_says_so(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    documents.write(tmp_path / "c4" / "documents" / "a.jsonl.gz", DOCUMENTS)
    config: dict[str, Any] = {"documents": ["c4/documents/*.gz"], "taggers": ["gopher_v2"], "debug": True}
    path = yaml(tmp_path / "tag.json", json.dumps(config))
    loom(capsys, "tag", "-c", path)
    made = tmp_path / "c4" / "attributes" / "gopher_v2" / "a.jsonl.gz"
    before = made.stat().st_mtime_ns, made.read_bytes()
    loom(capsys, "tag", "-c", path)
    assert made.stat().st_mtime_ns == before[0]
    loom(capsys, "tag", "-c", yaml(tmp_path / "again.json", json.dumps(config | {"ignore_existing": True})))
    assert made.stat().st_mtime_ns > before[0]
    assert made.read_bytes() == before[1]
