"""Documents that lie elsewhere: a real S3-compatible server and a real web server, both on loopback."""

from __future__ import annotations

import functools
import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from loom.artifact import lineage, load
from loom.cli import main
from loom.corpus import documents, remote
from loom.corpus.batch import as_rows
from loom.corpus.curate import curate
from loom.corpus.tag import Tag, tag
from loom.engine import LocalEngine
from loom.errors import LoomError
from tests.corpus.test_curate import corpus, recipe, texts, write
from tests.hub import hub

BUCKET = "corpora"


def upload(client: Any, folder: Path, prefix: str, bucket: str = BUCKET) -> None:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            client.upload_file(str(path), bucket, f"{prefix}/{path.relative_to(folder).as_posix()}")


def names(client: Any, bucket: str = BUCKET) -> list[str]:
    return [item["Key"] for item in client.list_objects_v2(Bucket=bucket).get("Contents", [])]


def fetch(client: Any, key: str, to: Path, bucket: str = BUCKET) -> Path:
    to.parent.mkdir(parents=True, exist_ok=True)
    client.download_file(bucket, key, str(to))
    return to


def test_addresses_survive_being_paths() -> None:
    assert remote.address(Path("s3://bucket/a/b.jsonl.gz")) == "s3://bucket/a/b.jsonl.gz"
    assert remote.address(str(Path("https://host/x"))) == "https://host/x"
    assert remote.address("data/s3:/x") is None
    assert remote.address(Path("/tmp/x")) is None


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet"])
def test_every_format_reads_from_s3(s3: Any, tmp_path: Path, suffix: str) -> None:
    rows = corpus()
    documents.write(tmp_path / "raw" / f"a{suffix}", rows[:20])
    documents.write(tmp_path / "raw" / f"b{suffix}", rows[20:])
    upload(s3, tmp_path / "raw", "raw/documents/s")
    found = documents.find_files([f"s3://{BUCKET}/raw/documents/*/*{suffix}"])
    assert [path.name for path in found] == [f"a{suffix}", f"b{suffix}"]
    assert found == documents.find_files([f"s3://{BUCKET}/raw/documents"])
    assert [row for path in found for batch in documents.read(path) for row in as_rows(batch)] == rows


def test_tag_reads_from_s3_and_writes_to_it(
    s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, s3_server: str
) -> None:
    raw = write(tmp_path / "raw", corpus(), 3)
    upload(s3, raw, "raw")
    monkeypatch.delenv(remote.ENDPOINT)
    monkeypatch.setenv(remote.ENDPOINT, "")  # given by the option; what it sets is undone with this
    with pytest.raises(SystemExit) as ended:
        main(
            f"tag --documents s3://{BUCKET}/raw/documents/s/*.gz --taggers gopher_v2,pii_v1 --endpoint {s3_server} "
            "--workers 2 --json".split()
        )
    assert ended.value.code == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["documents"] == 40
    (local, _) = tag(Tag((str(raw / "documents"),), ("gopher_v2", "pii_v1")), tmp_path / "here")
    for part in range(3):
        name = f"s/part-{part:02d}.jsonl.gz"
        there = fetch(s3, f"raw/attributes/gopher_v2/{name}", tmp_path / "there" / name)
        assert there.read_bytes() == (local.path / name).read_bytes()
    manifest = json.loads(fetch(s3, "raw/attributes/pii_v1/manifest.json", tmp_path / "m.json").read_bytes())
    assert manifest["kind"] == "attributes"
    assert manifest["inputs"][0]["path"] == f"s3://{BUCKET}/raw/documents/s/part-00.jsonl.gz"


def test_curate_from_s3_is_curate_from_disk(s3: Any, tmp_path: Path) -> None:
    raw = write(tmp_path / "raw", corpus(), 3)
    upload(s3, raw, "raw")
    here = curate(recipe(raw), tmp_path / "here", LocalEngine(1))
    remote_recipe = recipe(Path(f"s3://{BUCKET}/raw"))
    there = curate(remote_recipe, tmp_path / "there", LocalEngine(2))
    parents = lineage(tmp_path / "there").parents
    assert {(item.kind, item.stale) for item in parents} == {("address", False)}
    assert there.counters == here.counters
    assert texts(tmp_path / "there") == texts(tmp_path / "here")
    before = load(tmp_path / "there").digest
    curate(remote_recipe, tmp_path / "there", LocalEngine(1))
    assert load(tmp_path / "there").digest == before
    documents.write(raw / "documents" / "s" / "part-02.jsonl.gz", corpus()[:2])  # another object at that key
    upload(s3, raw, "raw")
    changed = curate(remote_recipe, tmp_path / "there", LocalEngine(1))
    assert changed.counters["documents_in"] < there.counters["documents_in"]


def test_curate_to_s3_uploads_the_manifest_last_and_goes_on(
    s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = write(tmp_path / "raw", corpus(), 3)
    to = f"s3://{BUCKET}/curated"
    fs = remote.filesystem(to)
    put, sent = fs.put_file, []

    def failing(path: str, url: str, **more: Any) -> None:
        if "removed" in url:
            raise ConnectionError("the line is cut")
        sent.append(url)
        put(path, url, **more)

    monkeypatch.setattr(fs, "put_file", failing)
    with pytest.raises(LoomError, match="cannot be reached"):
        curate(recipe(raw), Path(to), LocalEngine(1))
    assert "curated/manifest.json" not in names(s3)
    first = list(sent)

    def noting(path: str, url: str, **more: Any) -> None:
        sent.append(url)
        put(path, url, **more)

    monkeypatch.setattr(fs, "put_file", noting)
    made = curate(recipe(raw), Path(to), LocalEngine(1))
    assert sent[-1].endswith("curated/manifest.json")
    assert len(sent) == len(set(sent))  # what had arrived was not sent again
    assert first == sent[: len(first)]
    local = curate(recipe(raw), tmp_path / "here", LocalEngine(1))
    assert made.outputs == local.outputs
    for item in local.outputs:
        there = fetch(s3, f"curated/{item.path}", tmp_path / "there" / item.path)
        assert there.read_bytes() == (local.path / item.path).read_bytes()
    rows = [
        row
        for path in documents.find_files([f"{to}/documents"])
        for b in documents.read(path)
        for row in b.ids
    ]
    assert len(rows) == local.counters["documents_out"]


def test_mistakes_with_addresses_are_named(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LoomError, match="No file matches|There is no s3://"):
        documents.find_files([f"s3://{BUCKET}/nothing/*.gz"])
    with pytest.raises(LoomError, match="s3://no-such-bucket"):
        documents.find_files(["s3://no-such-bucket/a.jsonl.gz"])
    monkeypatch.setenv(remote.ENDPOINT, "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(LoomError, match="cannot be reached"):
        documents.find_files([f"s3://{BUCKET}/nothing/*.gz"])


@pytest.fixture
def web(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    folder = tmp_path / "web"
    folder.mkdir()
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    handler.func.log_message = lambda *_: None  # type: ignore[attr-defined]
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", folder
    server.shutdown()


def test_documents_of_a_web_server(web: tuple[str, Path], tmp_path: Path) -> None:
    base, folder = web
    documents.write(folder / "a.jsonl.gz", corpus()[:10])
    documents.write(folder / "b.parquet", corpus()[10:20])
    (path,) = documents.find_files([f"{base}/a.jsonl.gz"])
    assert [identity for batch in documents.read(path) for identity in batch.ids] == [
        r["id"] for r in corpus()[:10]
    ]
    (artifact,) = tag(
        Tag((f"{base}/a.jsonl.gz", f"{base}/b.parquet"), ("char_length_v1",)),
        tmp_path / "out",
        LocalEngine(1),
    )
    rows = [orjson.loads(line) for line in documents.read_lines(artifact.path / "b.jsonl.gz")]
    assert [row["id"] for row in rows] == [row["id"] for row in corpus()[10:20]]
    with pytest.raises(LoomError, match="There is no http"):
        list(documents.read(Path(f"{base}/c.jsonl.gz")))
    with pytest.raises(LoomError, match="There is no http"):
        tag(Tag((f"{base}/c.jsonl.gz",), ("char_length_v1",)), tmp_path / "out2", LocalEngine(1))


def test_dumps_are_collected_from_s3(s3: Any, tmp_path: Path) -> None:
    """By globs, folders and single addresses, whatever they are packed in; a changed object is made anew."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from loom.corpus.sources.dumps import Dump, collect
    from tests.corpus.test_dumps import c4_row, page, rows_of, wiki

    raw = tmp_path / "raw"
    raw.mkdir()
    for number in range(2):
        (raw / f"c4-train.{number:05d}.json").write_bytes(c4_row(f"http://{number}.org"))
    wiki(raw / "enwiki.xml.bz2", page(7, "Loom", "A device."), "enwiki")
    table = pa.table({"content": [f"x = {i}\n" for i in range(40)], "hexsha": [str(i) for i in range(40)]})
    pq.write_table(table, raw / "train.parquet", row_group_size=10)
    upload(s3, raw, "dumps")
    (raw / "1.txt").write_text("A book.\n")
    for kind, pattern, more in (
        ("c4", "c4-*.json", {}), ("mediawiki", "enwiki.xml.bz2", {}), ("stack", "", {"largest": 100}),
    ):  # fmt: skip
        here = Dump(kind, (str(raw / pattern),), **more)
        there = Dump(kind, (f"s3://{BUCKET}/dumps/{pattern}",), **more)
        collect(here, tmp_path / "here", LocalEngine(1))
        made = collect(there, tmp_path / "there", LocalEngine(1))
    assert rows_of(tmp_path / "there" / "documents") == rows_of(tmp_path / "here" / "documents")
    assert made.counters == load(tmp_path / "here").counters
    assert f"s3://{BUCKET}/dumps/enwiki.xml.bz2" in {item.path for item in made.inputs}
    (raw / "c4-train.00001.json").write_bytes(c4_row("http://1.org", "Another page, and longer."))
    upload(s3, raw, "dumps")
    collect(Dump("c4", (f"s3://{BUCKET}/dumps/c4-*.json",)), tmp_path / "there", LocalEngine(1))
    found = {row["text"] for row in rows_of(tmp_path / "there" / "documents" / "c4")}
    assert found == {"A page.", "Another page, and longer."}


def test_tokenize_and_stat_read_from_s3(s3: Any, tmp_path: Path) -> None:
    from loom.corpus.statistics import files_of, histograms
    from loom.tokens.tokenize import Tokenize, tokenize
    from tests.corpus.test_sample import bytes_tokenizer

    rows = corpus()
    raw = tmp_path / "raw"
    for number, suffix in enumerate((".jsonl.gz", ".jsonl.zst", ".jsonl", ".parquet")):
        documents.write(raw / "documents" / "s" / f"{number}{suffix}", rows[number * 10 : number * 10 + 10])
    upload(s3, raw, "raw")
    tokenizer = bytes_tokenizer(tmp_path / "tokenizer.json")
    made = {}
    for name, place in (("here", str(raw)), ("there", f"s3://{BUCKET}/raw")):
        chosen = Tokenize((place,), tokenizer, held_out=0.2)
        made[name] = tokenize(chosen, tmp_path / name, LocalEngine(2))
        assert tokenize(chosen, tmp_path / name, LocalEngine(1)).digest == made[name].digest
    assert made["there"].outputs == made["here"].outputs
    assert made["there"].counters == made["here"].counters
    assert f"s3://{BUCKET}/raw/documents/s/3.parquet" in {item.path for item in made["there"].inputs}

    for format in ("jsonl", "parquet"):
        recipe = Tag((str(raw),), ("char_length_v1",), format=format, experiment=format)
        tag(recipe, tmp_path / "tagged", LocalEngine(1))
    upload(s3, tmp_path / "tagged" / "attributes", "attributes")
    for folder in ("jsonl", "parquet"):
        (there,) = histograms(files_of([f"s3://{BUCKET}/attributes/{folder}"]))
        (here,) = histograms(files_of([str(tmp_path / "tagged" / "attributes" / folder)]))
        assert there == here
        assert there.documents == 40


def test_duplicates_of_documents_elsewhere(
    s3: Any, web: tuple[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From a bucket and back to it, by every way; from a web server to a folder, which has to be named."""
    from loom.corpus.dedupe.minhash import MinHash, minhash

    rows = corpus()
    documents.write(tmp_path / "raw" / "documents" / "s" / "a.jsonl.gz", rows)
    upload(s3, tmp_path / "raw", "raw")
    base, folder = web
    documents.write(folder / "a.jsonl.gz", rows)
    command = ["dedupe", "--workers", "1", "--json"]
    there = f"s3://{BUCKET}/raw/documents"

    def run(*words: str) -> dict[str, Any]:
        with pytest.raises(SystemExit) as ended:
            main([*command, *words])
        assert ended.value.code == 0
        made: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
        return made

    made = run("--documents", there, "--name", "same", "--bloom", f"s3://{BUCKET}/filters/f.bloom")
    assert made["attributes"] == f"s3://{BUCKET}/raw/attributes/same"
    assert made["duplicates"] == 1
    assert "filters/f.bloom" in names(s3)
    again = run("--documents", there, "--name", "again", "--bloom", f"s3://{BUCKET}/filters/f.bloom")
    assert again["duplicates"] == 39  # all but the empty one: each was in the filter that was sent
    assert run("--documents", there, "--by", "minhash", "--name", "near")["duplicates"] == 1
    local = minhash(MinHash((str(tmp_path / "raw" / "documents"),), "near"), LocalEngine(1))
    fetched = fetch(s3, "raw/attributes/near/s/a.jsonl.gz", tmp_path / "near.gz")
    assert fetched.read_bytes() == (local.path / "s" / "a.jsonl.gz").read_bytes()
    made = run("--documents", f"{base}/a.jsonl.gz", "--out", str(tmp_path / "here"))
    assert (tmp_path / "here" / "attributes" / "duplicates" / "a.jsonl.gz").is_file()
    assert made["duplicates"] == 1
    with pytest.raises(SystemExit):
        main(["dedupe", "--documents", f"{base}/a.jsonl.gz"])
    assert "--out" in capsys.readouterr().err


def test_decontamination_reads_both_sides_from_s3(s3: Any, tmp_path: Path) -> None:
    from loom.corpus.contamination import Decontaminate, run

    raw = write(tmp_path / "raw", corpus(), 2)
    held = tmp_path / "eval" / "held.jsonl"
    documents.write(held, [{"id": "q", "text": corpus()[4]["text"].split("\n\n")[1]}])
    upload(s3, raw, "raw")
    upload(s3, held.parent, "eval")
    made = []
    for name, root in (("here", str(tmp_path)), ("there", f"s3://{BUCKET}")):
        chosen = Decontaminate((f"{root}/raw/documents",), (f"{root}/eval/held.jsonl",), most_removed=0.5)
        made.append(run(chosen, tmp_path / name, LocalEngine(1)))
    assert made[0].outputs == made[1].outputs
    assert made[1].counters["contaminated"] > 0
    assert f"s3://{BUCKET}/eval/held.jsonl" in {item.path for item in made[1].inputs}
    with pytest.raises(LoomError, match="is an address"):
        run(Decontaminate((f"s3://{BUCKET}/raw/documents",), (str(held),), most_removed=0.5))


@pytest.fixture
def on_the_hub(tmp_path: Path) -> Iterator[tuple[Path, Callable[..., subprocess.CompletedProcess[str]]]]:
    """A data set of four files in every format, here and on a server with the Hub's protocol; and `loom` as a
    process of its own, because the Hub's client reads HF_ENDPOINT when it is imported."""
    raw = tmp_path / "raw"
    for number, suffix in enumerate((".jsonl.gz", ".jsonl.zst", ".jsonl", ".parquet")):
        documents.write(
            raw / "documents" / "s" / f"{number}{suffix}", corpus()[number * 10 : number * 10 + 10]
        )
    files = {
        ("me/corpus", path.relative_to(raw).as_posix()): path.read_bytes()
        for path in raw.rglob("*")
        if path.is_file()
    }
    with hub(files) as address:

        def loom(*words: str) -> subprocess.CompletedProcess[str]:
            kept = {key: value for key, value in os.environ.items() if "PROXY" not in key.upper()}
            kept |= {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0"}
            command = [sys.executable, "-m", "loom", *words]
            return subprocess.run(command, capture_output=True, text=True, env=kept)

        yield raw, loom


def test_documents_of_a_data_set_on_the_hub(on_the_hub: Any, tmp_path: Path) -> None:
    """By folder and by glob, read ahead and by ranges, the same as from a folder here; then mistakes."""
    raw, loom = on_the_hub
    for name, place in (("here", str(raw)), ("there", "hf://datasets/me/corpus")):
        made = loom("tag", "--documents", place, "--taggers", "gopher_v2", "--out", str(tmp_path / name))
        assert made.returncode == 0, made.stderr
    for number, suffix in enumerate((".jsonl.gz", ".jsonl.zst", ".jsonl", ".parquet")):
        written = [
            next((tmp_path / name / "attributes").rglob(f"{number}.*")).read_bytes()
            for name in ("here", "there")
        ]
        assert written[0] == written[1], suffix
        assert written[0]
    manifest = next((tmp_path / "there").rglob("manifest.json"))
    assert "hf://datasets/me/corpus/documents/s/3.parquet" in {i.path for i in load(manifest.parent).inputs}
    chosen = "hf://datasets/me/corpus/documents/s/*.parquet"
    made = loom(
        "tag", "--documents", chosen, "--taggers", "gopher_v2", "--out", str(tmp_path / "one"), "--json"
    )
    assert json.loads(made.stdout.splitlines()[-1])["documents"] == 10
    for place, said in (
        ("hf://datasets/me/nothing", "hf://datasets/me/nothing"),
        ("hf://datasets/me/corpus/*.warc", "No file matches"),
        ("hf://datasets/me/corpus@v2/documents", "hf://datasets/me/corpus@v2"),
    ):
        made = loom("tag", "--documents", place, "--taggers", "gopher_v2", "--out", str(tmp_path / "bad"))
        assert made.returncode == 1, place
        assert said in made.stderr.replace("\n", " "), made.stderr
        assert "Traceback" not in made.stderr
