"""WARC files to documents: equal to dolma's on a real file, whole on a broken one."""

from __future__ import annotations

import gzip
import io
import subprocess
from pathlib import Path
from typing import Any

import orjson
import pytest

from loom.corpus import documents
from loom.corpus.sources.warc import Warc, collect, decode, normalize
from loom.engine import LocalEngine
from loom.errors import LoomError

PAGE = "<html><head>{meta}</head><body><main><h1>{title}</h1><p>{text}</p></main></body></html>"
WORDS = "A paragraph long enough that it is taken for the page's content, naïve café and all. " * 4


def record(
    uri: str, body: bytes, kind: str = "response", content_type: str = "text/html", more: str = ""
) -> bytes:
    """One WARC record as a crawler writes it."""
    if kind == "response":
        head = (
            f"HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\nDate: Thu, 25 Apr 2024 16:24:44 GMT\r\n\r\n"
        )
        body, content_type = head.encode() + body, "application/http; msgtype=response"
    digest = f"WARC-Payload-Digest: sha1:{uri.rstrip('/').rsplit('/', 1)[-1].upper()}\r\n"
    headers = (
        f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Target-URI: {uri}\r\nWARC-Date: 2024-04-25T16:24:44Z\r\n{digest}"
        f"WARC-Record-ID: <urn:uuid:00000000-0000-4000-8000-00000000000{len(uri) % 10}>\r\n"
        f"Content-Type: {content_type}\r\nContent-Length: {len(body)}\r\n{more}\r\n"
    )
    return headers.encode() + body + b"\r\n\r\n"


def page(title: str, text: str = WORDS, charset: str = "utf-8", meta: str = "") -> bytes:
    return PAGE.format(meta=meta, title=title, text=text).encode(charset)


def pack(members: list[bytes]) -> bytes:
    return b"".join(gzip.compress(member, mtime=0) for member in members)


def run(
    tmp_path: Path, data: bytes, name: str = "a.warc.gz", **more: Any
) -> tuple[dict[str, Any], list[Any], list[Any]]:
    (tmp_path / name).write_bytes(data)
    out = tmp_path / "out"
    artifact = collect(Warc((str(tmp_path / name),), "cc", **more), out, LocalEngine(1))
    stem = name.split(".")[0]
    rows = [orjson.loads(line) for line in documents.read_lines(out / f"documents/cc/{stem}.jsonl.gz")]
    rejected = out / f"rejected/cc/{stem}.jsonl"
    aside = [orjson.loads(line) for line in documents.read_lines(rejected)] if rejected.exists() else []
    assert artifact.counters["documents"] == len(rows)
    assert artifact.counters["rejected"] == len(aside)
    return dict(artifact.counters["sources"]["cc"]), rows, aside


def test_pages_become_documents_with_dolma_s_metadata(tmp_path: Path) -> None:
    data = pack(
        [
            record("https://www.Example.org/one/", page("One")),
            record("https://example.org/picture", b"\x89PNG\r\n", content_type="image/png"),
            record(
                "https://example.org/plain",
                b"Plain text, as it is.",
                content_type="text/plain; charset=utf-8",
            ),
            record("https://example.org/empty", b"<html><body></body></html>"),
            record("https://example.org/kept", page("Kept"), kind="resource"),
            record("https://example.org/asked", b"", kind="request"),
        ]
    )
    counters, rows, aside = run(tmp_path, data)
    assert counters == {"records": 5, "documents": 3, "no_page": 1, "no_text": 1, "rejected": 0}
    assert aside == []
    assert [row["id"] for row in rows] == ["one", "plain", "kept"]
    assert rows[0]["metadata"] == {
        "warc_url": "https://www.Example.org/one/",
        "url": "example.org/one",
        "warc_date": "",
        "warc_filename": "a.warc.gz",
        "content_type": "text/html",
        "uncompressed_offset": 0,
    }
    assert rows[0]["created"] == "2024-04-25T16:24:44.000Z"
    assert (rows[0]["source"], rows[0]["version"]) == ("cc", "v0")
    assert "naïve café" in rows[0]["text"]
    assert rows[1]["text"] == "Plain text, as it is."


@pytest.mark.parametrize(
    ("payload", "header"),
    [
        (page("T", charset="iso-8859-1"), "iso-8859-1"),
        (page("T", charset="iso-8859-1", meta='<meta charset="iso-8859-1">'), None),
        (page("T", charset="iso-8859-1", meta='<meta charset="iso-8859-1">'), "utf-8"),
        (page("T", charset="iso-8859-1", meta='<meta charset="iso-8859-1">'), "no-such-charset"),
        (page("T"), None),
        (page("T", charset="utf-16"), None),
    ],
)
def test_charsets_by_header_then_meta_then_look(payload: bytes, header: str | None) -> None:
    text = decode(payload, header)
    assert text is not None
    assert "naïve café" in text


def test_a_page_without_any_charset_is_told_by_its_look() -> None:
    russian = PAGE.format(
        meta="", title="Заголовок", text="Съешь же ещё этих мягких французских булок, да выпей чаю. " * 9
    )
    assert decode(russian.encode("koi8-r"), None) == russian


def test_broken_records_are_set_aside_and_the_rest_is_read(tmp_path: Path) -> None:
    good = [record(f"https://example.org/p{i}", page(f"Page {i}")) for i in range(6)]
    members = [gzip.compress(member, mtime=0) for member in good]
    damaged = bytearray(members[2])
    damaged[60:90] = b"x" * 30
    nameless = good[4].replace(b"WARC-Payload-Digest", b"X-Digest")
    data = b"".join([members[0], members[1], bytes(damaged), members[3], pack([nameless]), members[5][:-40]])
    counters, rows, aside = run(tmp_path, data)
    assert [row["id"] for row in rows][:3] == ["p0", "p1", "p3"]
    assert {row["id"] for row in rows} <= {"p0", "p1", "p3", "p5"}
    reasons = [row["reason"] for row in aside]
    assert any("Payload-Digest" in reason for reason in reasons)
    assert sum("broken or cut short" in reason for reason in reasons) == 2
    assert all(row["file"] == "a.warc.gz" and row["offset"] >= 0 for row in aside)
    assert counters["rejected"] == len(aside) == 3


def test_plain_files_and_wrong_lengths(tmp_path: Path) -> None:
    good = [record(f"https://example.org/p{i}", page(f"Page {i}")) for i in range(4)]
    cut = good[1].replace(b"Content-Length: ", b"Content-Length: 9", 1)
    counters, rows, aside = run(tmp_path, b"".join([good[0], cut, good[2], good[3]]), "b.warc")
    assert rows[0]["id"] == "p0"
    assert {"p2", "p3"} <= {row["id"] for row in rows}
    assert counters["rejected"] == len(aside) >= 1


def test_workers_and_a_second_run_do_not_matter(tmp_path: Path) -> None:
    for part in range(3):
        members = [record(f"https://example.org/{part}p{i}", page(f"Page {i}")) for i in range(5)]
        (tmp_path / f"{part}.warc.gz").write_bytes(pack(members))
    recipe = Warc((str(tmp_path / "*.warc.gz"),), "cc")
    one = collect(recipe, tmp_path / "one", LocalEngine(1))
    two = collect(recipe, tmp_path / "two", LocalEngine(2))
    assert one.outputs == two.outputs
    before = (tmp_path / "one" / "run.json").stat().st_mtime_ns
    collect(recipe, tmp_path / "one", LocalEngine(1))
    assert (tmp_path / "one" / "run.json").stat().st_mtime_ns == before


def test_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(LoomError, match="No WARC file"):
        collect(Warc((str(tmp_path / "*.warc.gz"),), "cc"), tmp_path / "out")
    with pytest.raises(ValueError, match="linearizer"):
        Warc(("x",), "cc", linearizer="lynx")
    (tmp_path / "a.warc.gz").write_bytes(b"")
    with pytest.raises(LoomError, match="None of the"):
        collect(Warc((str(tmp_path / "a.warc.gz"),), "cc"), tmp_path / "out", LocalEngine(1))


def test_trafilatura_is_an_option(tmp_path: Path) -> None:
    _, rows, _ = run(
        tmp_path, pack([record("https://example.org/p0", page("One"))]), linearizer="trafilatura"
    )
    assert "taken for the page's content" in rows[0]["text"]


def test_a_real_file(shared_data: Path, tmp_path: Path) -> None:
    data = (shared_data / "text" / "sample-0000.warc.gz").read_bytes()
    counters, rows, aside = run(tmp_path, data)
    assert counters == {"records": 24, "documents": 22, "no_page": 0, "no_text": 0, "rejected": 2}
    assert all("no WARC-Payload-Digest" in row["reason"] for row in aside)
    assert len({row["id"] for row in rows}) > 1
    cut = run_cut(tmp_path, data[: len(data) // 2])
    assert 0 < cut["documents"] < 22
    assert cut["rejected"] >= 1


def run_cut(tmp_path: Path, data: bytes) -> dict[str, Any]:
    (tmp_path / "cut").mkdir()
    return run(tmp_path / "cut", data)[0]


DOLMA = """
import json, sys
from dolma.warc.utils import UrlNormalizer
normal = UrlNormalizer()
for line in sys.stdin:
    print(json.dumps(normal(json.loads(line))))
"""
ADDRESSES = [
    "https://www.Example.org/one/", "http://www2.example.org/a/../b?z=1&a=2#frag", "<https://example.org/x>",
    "https://example.org:443/%7Euser/?q=a+b", "http://EXAMPLE.org", "https://müller.example/straße",
]  # fmt: skip


def test_addresses_are_normalized_as_dolma_does(oracle: Any) -> None:
    data = b"".join(orjson.dumps(address) + b"\n" for address in ADDRESSES)
    done = subprocess.run([str(oracle("dolma")), "-c", DOLMA], input=data, capture_output=True, check=True)
    assert [normalize(address) for address in ADDRESSES] == [
        orjson.loads(x) for x in done.stdout.splitlines()
    ]


def test_documents_are_dolma_s(oracle: Any, shared_data: Path, tmp_path: Path) -> None:
    """Same pages, ids, texts and metadata as `dolma warc` writes.

    Of a page that came in chunks dolma takes the chunks' lengths for text; Loom undoes the encoding.
    """
    code = (
        "import queue, sys; from dolma.warc.processor import WarcProcessor as W;"
        "W.increment_progressbar = classmethod(lambda *a, **k: {});"
        "W.process_single(sys.argv[1], sys.argv[2], queue.Queue(), source_name='cc')"
    )
    theirs = tmp_path / "dolma.jsonl.gz"
    source = shared_data / "text" / "sample-0000.warc.gz"
    subprocess.run(
        [str(oracle("dolma")), "-c", code, str(source), str(theirs)], check=True, capture_output=True
    )
    _, rows, _ = run(tmp_path, source.read_bytes())
    other = [orjson.loads(line) for line in io.BytesIO(gzip.decompress(theirs.read_bytes()))]
    assert [row["id"] for row in rows] == [row["id"] for row in other]
    differ = 0
    for mine, dolma in zip(rows, other, strict=True):
        differ += mine["text"] != dolma["text"]
        if mine["text"] != dolma["text"]:
            assert dolma["text"].startswith("925 ") and dolma["text"].endswith("\n0")
        assert mine["created"] == dolma["created"]
        for key in ("warc_url", "url", "content_type", "warc_date"):
            assert mine["metadata"][key] == dolma["metadata"][key], key
        assert mine["metadata"].keys() == dolma["metadata"].keys()
    assert differ == 1
