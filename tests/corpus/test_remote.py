"""Documents that lie elsewhere: a real S3-compatible server and a real web server, both on loopback."""

from __future__ import annotations

import functools
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from loom.artifact import load
from loom.cli import main
from loom.corpus import documents, remote
from loom.corpus.curate import curate
from loom.corpus.tag import Tag, tag
from loom.engine import LocalEngine
from loom.errors import LoomError
from tests.corpus.test_curate import corpus, recipe, texts, write

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
    assert [
        row for path in found for batch in documents.read(path) for row in documents.as_rows(batch)
    ] == rows


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
