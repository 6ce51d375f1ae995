"""Published dumps: the entries that become documents, and their text, on small files written here."""

from __future__ import annotations

import bz2
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from loom.corpus.documents import as_rows, read
from loom.corpus.sources.dumps import Dump, collect
from loom.corpus.sources.wikitext import wikitext_to_text
from loom.engine import LocalEngine
from loom.errors import LoomError

ARTICLE = """{{Infobox|a={{b|c}}}}
'''Loom''' is a [[machine|device]] for [[weaving]].<ref>A book.</ref><ref name="x"/>
[[File:Loom.jpg|thumb|A [[hand]] loom]]
== History ==
* First [https://example.org looms] &amp; frames<br/>
{| class="wikitable"
| cell
|}
[[Category:Machines]]"""


def run(kind: str, path: Path, out: Path, **more: Any) -> list[dict[str, Any]]:
    collect(Dump(kind, (str(path),), **more), out, LocalEngine(1))
    (file,) = (out / "documents" / kind).iterdir()
    return [row for batch in read(file) for row in as_rows(batch)]


def test_wikitext() -> None:
    expected = "Loom is a device for weaving.\n\nHistory\n\nFirst looms & frames"
    assert wikitext_to_text(ARTICLE) == expected


def test_mediawiki(tmp_path: Path) -> None:
    def page(number: int, title: str, ns: int, text: str, redirect: str = "") -> str:
        return (
            f"<page><title>{title}</title><ns>{ns}</ns><id>{number}</id>{redirect}<revision><id>9</id>"
            f"<timestamp>2026-01-01T00:00:00Z</timestamp><text>{text}</text></revision></page>"
        )

    escaped = ARTICLE.replace("&", "&amp;").replace("<", "&lt;")
    pages = page(1, "Loom", 0, escaped) + page(2, "Talk:Loom", 1, "chatter")
    pages += page(3, "Weaver", 0, "#REDIRECT", '<redirect title="Loom" />')
    path = tmp_path / "wiki.xml.bz2"
    path.write_bytes(bz2.compress(f'<mediawiki xmlns="http://example.org/x">{pages}</mediawiki>'.encode()))
    (row,) = run("mediawiki", path, tmp_path / "out")
    assert (row["id"], row["metadata"], row["created"]) == (
        "wiki-1",
        {"title": "Loom"},
        "2026-01-01T00:00:00Z",
    )
    assert row["text"].startswith("Loom\n\nLoom is a device")
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(LoomError, match="cut short"):
        run("mediawiki", path, tmp_path / "cut")


def test_reddit(tmp_path: Path) -> None:
    long = "word " * 120
    posts = [
        {"id": "kept", "body": long, "score": 2, "subreddit": "weaving", "author": "a"},
        {"id": "score", "body": long, "score": 1, "subreddit": "weaving", "author": "a"},
        {"id": "short", "body": "word " * 90, "score": 5, "subreddit": "weaving", "author": "a"},
        {"id": "gone", "body": "[removed]", "score": 5, "subreddit": "weaving", "author": "a"},
        {"id": "blocked", "body": long, "score": 5, "subreddit": "Knots", "author": "a"},
        {
            "id": "post",
            "title": "A title",
            "selftext": "word " * 90,
            "score": 3,
            "subreddit": "weaving",
            "author": "b",
        },
        {
            "id": "adult",
            "title": "T",
            "selftext": long,
            "score": 3,
            "over_18": True,
            "subreddit": "w",
            "author": "b",
        },
    ]
    path = tmp_path / "RC.zst"
    path.write_bytes(zstandard.compress(b"".join(orjson.dumps(post) + b"\n" for post in posts)))
    (tmp_path / "blocked.txt").write_text("knots\n")
    rows = run("reddit", path, tmp_path / "out", blocklist=str(tmp_path / "blocked.txt"))
    assert [row["id"] for row in rows] == ["t1_kept", "t3_post"]
    assert rows[1]["text"].startswith("A title\n\nword")
    assert rows[1]["metadata"] == {"subreddit": "weaving", "score": 3, "type": "submission"}


def test_gutenberg(tmp_path: Path) -> None:
    book = (
        "\ufeffTitle: Weaving\r\nAuthor: Nobody\r\n\r\n*** START OF THE PROJECT GUTENBERG EBOOK WEAVING ***\r\n\r\n"
        "Chapter 1\r\n\r\nThreads.\r\n\r\n*** END OF THE PROJECT GUTENBERG EBOOK WEAVING ***\r\nLicence.\r\n"
    )
    (tmp_path / "123.txt").write_bytes(book.encode())
    (row,) = run("gutenberg", tmp_path / "123.txt", tmp_path / "out")
    assert (row["id"], row["text"]) == ("123", "Chapter 1\n\nThreads.\n")
    assert row["metadata"] == {"title": "Weaving", "author": "Nobody"}


def test_stack(tmp_path: Path) -> None:
    table = pa.table(
        {
            "content": ["print(1)\n", ""],
            "hexsha": ["a1", "b2"],
            "lang": ["Python", "C"],
            "max_stars_repo_licenses": [["MIT"], ["GPL"]],
        }
    )
    pq.write_table(table, tmp_path / "data.parquet")
    (row,) = run("stack", tmp_path / "data.parquet", tmp_path / "out")
    assert (row["id"], row["text"]) == ("a1", "print(1)\n")
    assert row["metadata"] == {"hexsha": "a1", "language": "Python", "licence": ["MIT"]}
    pq.write_table(pa.table({"text": ["x"]}), tmp_path / "other.parquet")
    with pytest.raises(LoomError, match="no column 'content'"):
        run("stack", tmp_path / "other.parquet", tmp_path / "wrong")


def test_c4_and_pes2o(tmp_path: Path) -> None:
    (tmp_path / "c4.json").write_bytes(
        orjson.dumps({"text": "A page.", "url": "http://a.org", "timestamp": "t"}) + b"\n"
    )
    (row,) = run("c4", tmp_path / "c4.json", tmp_path / "c4-out")
    assert (row["text"], row["created"], row["metadata"]) == ("A page.", "t", {"url": "http://a.org"})
    paper = {"id": "7", "text": "A paper.", "source": "s2", "added": "2026", "fields": ["x"]}
    (tmp_path / "papers.json").write_bytes(orjson.dumps(paper) + b"\n")
    (row,) = run("pes2o", tmp_path / "papers.json", tmp_path / "pes2o-out")
    assert (row["id"], row["source"], row["metadata"]) == ("7", "pes2o", {"fields": ["x"]})
