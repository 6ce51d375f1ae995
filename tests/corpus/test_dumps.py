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

from loom.artifact import load
from loom.corpus.batch import as_rows
from loom.corpus.documents import find_files, read
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
    dump = Dump(kind, (str(path),), **more)
    collect(dump, out, LocalEngine(1))
    return rows_of(out / "documents" / dump.name)


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [row for path in find_files([folder]) for batch in read(path) for row in as_rows(batch)]


def aside(out: Path) -> list[dict[str, Any]]:
    found = sorted((out / "rejected").rglob("*.jsonl"))
    return [orjson.loads(line) for path in found for line in path.read_bytes().splitlines()]


def c4_row(url: str, text: str = "A page.") -> bytes:
    return orjson.dumps({"text": text, "url": url, "timestamp": "t"}) + b"\n"


def test_wikitext() -> None:
    expected = "Loom is a device for weaving.\n\nHistory\n\nFirst looms & frames"
    assert wikitext_to_text(ARTICLE) == expected


def page(number: int | str, title: str, text: str, ns: str = "<ns>0</ns>", more: str = "") -> str:
    return (
        f"<page><title>{title}</title>{ns}<id>{number}</id>{more}<revision><id>9</id>"
        f"<timestamp>2026-01-01T00:00:00Z</timestamp><text>{text}</text></revision></page>"
    )


def wiki(path: Path, pages: str, name: str = "") -> Path:
    info = f"<siteinfo><dbname>{name}</dbname></siteinfo>" if name else ""
    path.write_bytes(
        bz2.compress(f'<mediawiki xmlns="http://example.org/x">{info}{pages}</mediawiki>'.encode())
    )
    return path


def test_mediawiki(tmp_path: Path) -> None:
    escaped = ARTICLE.replace("&", "&amp;").replace("<", "&lt;")
    pages = page(1, "Loom", escaped) + page(2, "Talk:Loom", "chatter", "<ns>1</ns>")
    pages += page(3, "Weaver", "#REDIRECT", more='<redirect title="Loom" />') + page("", "Nobody", "No id.")
    pages += page(4, "Nothing", "{{stub}}")
    path = wiki(tmp_path / "wiki.xml.bz2", pages)
    (row,) = run("mediawiki", path, tmp_path / "out")
    assert (row["id"], row["metadata"], row["created"]) == (
        "wiki-1",
        {"title": "Loom"},
        "2026-01-01T00:00:00Z",
    )
    assert row["text"].startswith("Loom\n\nLoom is a device")
    assert row["source"] == "wiki"  # as the recipes call it
    counters = load(tmp_path / "out").counters["sources"]["wiki"]
    left_out = {"namespace": 1, "redirect": 1, "empty": 1}
    assert counters == {"seen": 5, "documents": 1, "rejected": 1, "left_out": left_out}
    assert aside(tmp_path / "out") == [{"file": "wiki.xml.bz2", "line": 4, "reason": "no 'id'"}]
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(LoomError, match="cut short"):
        run("mediawiki", path, tmp_path / "cut")


def test_every_wiki_numbers_its_own_pages(tmp_path: Path) -> None:
    """Of several wikis no page is a duplicate of another's; a dump of the first years has no namespaces."""
    wiki(tmp_path / "enwiki-20240101-articles1.xml-p1p9.bz2", page(7, "Loom", "A device."), "enwiki")
    wiki(tmp_path / "enwiki-20240101-articles1.xml-p10p19.bz2", page(17, "Warp", "A thread.", ""), "enwiki")
    wiki(tmp_path / "books.xml.bz2", page(7, "Weaving", "A chapter."), "enwikibooks")
    wiki(tmp_path / "simplewiki-latest.xml.bz2", page(7, "Loom", "A thing."))
    collect(Dump("mediawiki", (str(tmp_path / "*.bz2"),)), tmp_path / "out", LocalEngine(2))
    found = [row["id"] for row in rows_of(tmp_path / "out" / "documents" / "wiki")]
    assert sorted(found) == ["enwiki-17", "enwiki-7", "enwikibooks-7", "simplewiki-7"]


def submission(identity: str, **more: Any) -> dict[str, Any]:
    """A submission that is long enough, with everything that Dolma asks to be there."""
    said = {"title": "T", "author": "b", "subreddit": "weaving", "subreddit_id": "t5_1", "created_utc": 1}
    said |= {"score": 3, "over_18": False, "num_comments": 0, "selftext": "word " * 90}
    return {"id": identity, **said, **more}


def test_reddit(tmp_path: Path) -> None:
    long = "word " * 120
    posts = [
        {"id": "kept", "body": long, "score": 2, "subreddit": "weaving", "author": "a"},
        {"id": "score", "body": long, "score": 1, "subreddit": "weaving", "author": "a"},
        {"id": "short", "body": "word " * 90, "score": 5, "subreddit": "weaving", "author": "a"},
        {"id": "gone", "body": "[removed]", "score": 5, "subreddit": "weaving", "author": "a"},
        {"id": "blocked", "body": long, "score": 5, "subreddit": "Knots", "author": "a"},
        submission("post", title=" A title"),
        submission("adult", over_18=True),
    ]
    path = tmp_path / "RC.zst"
    path.write_bytes(zstandard.compress(b"".join(orjson.dumps(post) + b"\n" for post in posts)))
    (tmp_path / "blocked.txt").write_text("knots\n")
    rows = run("reddit", path, tmp_path / "out", blocklist=str(tmp_path / "blocked.txt"))
    assert [row["id"] for row in rows] == ["t1_kept", "t3_post"]
    assert rows[1]["text"].startswith("A title\n\nword")
    left_out = {"score": 1, "length": 1, "deleted": 1, "blocklist": 1, "over_18": 1}
    assert load(tmp_path / "out").counters["left_out"] == left_out
    assert rows[1]["metadata"] == {"subreddit": "weaving", "score": 3, "type": "submission"}


def test_the_rules_of_reddit_are_dolmas(tmp_path: Path) -> None:
    """The body alone is measured; a comment's author and age rating are nobody's business, a submission's are."""
    comment = {"body": "word " * 120, "score": 2, "subreddit": "weaving", "author": "a"}
    without = [submission(f"no {name}") for name in ("title", "subreddit_id", "num_comments")]
    for post in without:
        del post[post["id"].removeprefix("no ")]
    posts = [
        submission("399", title="word " * 90, selftext="x" * 399),
        submission("400", title="word " * 90, selftext="x" * 400),
        submission("40000", selftext=f" {'x' * 39_999}"),
        submission("40001", selftext=f" {'x' * 40_000}"),
        {**comment, "id": "nobody's", "author": "[deleted]", "over_18": True},
        {**comment, "id": "gone", "subreddit": "[deleted]"},
        submission("gone", author="[deleted]"),
        submission("gone too", subreddit="[removed]"),
        submission("untitled", title=None),
        *without,
    ]
    (tmp_path / "R.jsonl").write_bytes(b"".join(orjson.dumps(post) + b"\n" for post in posts))
    rows = run("reddit", tmp_path / "R.jsonl", tmp_path / "out")
    assert [row["id"] for row in rows] == ["t3_400", "t3_40000", "t1_nobody's"]
    left_out = {"length": 2, "deleted": 3, "incomplete": 4}
    assert load(tmp_path / "out").counters["left_out"] == left_out


def test_a_comment_and_a_submission_of_one_number_are_two(tmp_path: Path) -> None:
    posts = [
        {"id": "x", "body": "word " * 120, "score": 2},
        submission("x"),
    ]
    (tmp_path / "R.jsonl").write_bytes(b"".join(orjson.dumps(post) + b"\n" for post in posts))
    assert [row["id"] for row in run("reddit", tmp_path / "R.jsonl", tmp_path / "out")] == ["t1_x", "t3_x"]


def test_gutenberg(tmp_path: Path) -> None:
    book = (
        "\ufeffTitle: Weaving\r\nAuthor: Nobody\r\n\r\n*** START OF THE PROJECT GUTENBERG EBOOK WEAVING ***\r\n\r\n"
        "Chapter 1\r\n\r\nThreads.\r\n\r\n*** END OF THE PROJECT GUTENBERG EBOOK WEAVING ***\r\nLicence.\r\n"
    )
    (tmp_path / "123.txt").write_bytes(book.encode())
    (row,) = run("gutenberg", tmp_path / "123.txt", tmp_path / "out")
    assert (row["id"], row["text"]) == ("123", "Chapter 1\n\nThreads.\n")
    assert row["metadata"] == {"title": "Weaving", "author": "Nobody"}
    old = "Title: Das Weben\nCharacter set encoding: ISO-8859-1\n*** START OF THE PROJECT GUTENBERG EBOOK X ***\nFäden\n"
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "9.txt").write_bytes(old.encode("latin-1"))
    (tmp_path / "old" / "10.txt").write_bytes(old.replace("ISO-8859-1", "UTF-8").encode("latin-1"))
    (row,) = run("gutenberg", tmp_path / "old", tmp_path / "older")
    assert (row["id"], row["text"]) == ("9", "Fäden\n")
    (broken,) = aside(tmp_path / "older")
    assert broken["file"] == "10.txt"
    assert "cannot be decoded" in broken["reason"]


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
    (tmp_path / "other.parquet").write_bytes((tmp_path / "data.parquet").read_bytes()[:-9])
    with pytest.raises(LoomError, match=r"other\.parquet cannot be read as Parquet"):
        run("stack", tmp_path / "other.parquet", tmp_path / "wrong")


def test_a_large_file_of_the_stack_is_cut_by_row_groups(tmp_path: Path) -> None:
    table = pa.table(
        {"content": [f"x = {i}\n" * 9 for i in range(90)], "hexsha": [str(i) for i in range(90)]}
    )
    pq.write_table(table, tmp_path / "data.parquet", row_group_size=20)
    whole = run("stack", tmp_path / "data.parquet", tmp_path / "whole")
    assert run("stack", tmp_path / "data.parquet", tmp_path / "cut", largest=100) == whole
    assert len(list((tmp_path / "cut" / "documents" / "stack").iterdir())) == 5
    assert load(tmp_path / "cut").counters == load(tmp_path / "whole").counters


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


BROKEN = {
    "c4": [b"{", b"[1]", b'{"url": "u"}', b'{"text": 7}', b"\xff\xfe"],
    "pes2o": [b"{", b"[1]", b'{"id": "u"}', b'{"id": 7, "text": "t"}', b'{"id": "x", "text": "t", "metadata": 3}'],
    "reddit": [b"{", b"[1]", b'{"body": "x", "score": 2}', b'{"id": "x", "score": "many"}'],
}  # fmt: skip
GOOD = {
    "c4": c4_row("http://a.org").strip(),
    "pes2o": b'{"id": "a", "text": "A paper."}',
    "reddit": orjson.dumps({"id": "a", "body": "word " * 120, "score": 2}),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_cannot_be_read_is_set_aside_with_its_line(tmp_path: Path, kind: str) -> None:
    lines = [GOOD[kind], *BROKEN[kind], b"", GOOD[kind]]
    (tmp_path / "dump.jsonl").write_bytes(b"\n".join(lines))
    assert len(run(kind, tmp_path / "dump.jsonl", tmp_path / "out")) == 2
    found = aside(tmp_path / "out")
    assert [row["line"] for row in found] == list(range(2, 2 + len(BROKEN[kind])))
    assert all(row["file"] == "dump.jsonl" and row["reason"] for row in found)
    made = load(tmp_path / "out")
    assert made.counters["rejected"] == len(found)
    assert f"rejected/{kind}/dump.jsonl" in {item.path for item in made.outputs}
    (tmp_path / "dump.jsonl").write_bytes(b"\n".join(BROKEN[kind]))
    with pytest.raises(LoomError, match=f"None of the {len(found)} entries"):
        run(kind, tmp_path / "dump.jsonl", tmp_path / "nothing")


def test_names_as_they_are_published(tmp_path: Path) -> None:
    """C4's parts differ behind the first dot, the Stack's by their folders alone; globs and folders name many."""
    for number in range(3):
        (tmp_path / f"c4-train.{number:05d}-of-01024.json").write_bytes(c4_row(f"http://{number}.org"))
    collect(Dump("c4", (str(tmp_path / "c4-train.*"),)), tmp_path / "c4", LocalEngine(1))
    names = sorted(path.name for path in (tmp_path / "c4" / "documents" / "c4").iterdir())
    assert names == [f"c4-train.{number:05d}-of-01024.jsonl.zst" for number in range(3)]
    paths = []
    for language in ("java", "python"):
        folder = tmp_path / "stack" / "data" / language
        folder.mkdir(parents=True)
        table = pa.table({"content": [language], "hexsha": [language]})
        pq.write_table(table, folder / "train-00000-of-00206.parquet")
        paths.append(str(folder / "train-00000-of-00206.parquet"))
    named = (
        tuple(paths),
        (str(tmp_path / "stack" / "data" / "*" / "*.parquet"),),
        (str(tmp_path / "stack"),),
    )
    for number, files in enumerate(named):
        out = tmp_path / f"stack-{number}"
        collect(Dump("stack", files), out, LocalEngine(1))
        assert sorted(row["id"] for row in rows_of(out / "documents" / "stack")) == ["java", "python"]
        assert len(list((out / "documents" / "stack").rglob("python/train-00000-of-00206.jsonl.zst"))) == 1
    with pytest.raises(LoomError, match=r"No file of c4 .* matches"):
        collect(Dump("c4", (str(tmp_path / "c4-valid.*"),)), tmp_path / "none")


def test_several_collections_share_a_root(tmp_path: Path) -> None:
    """The manifest tells of all of them in any order; only what changed is made anew; a name is taken once."""
    out, other = tmp_path / "out", tmp_path / "other"
    (tmp_path / "a.json").write_bytes(c4_row("http://a.org"))
    (tmp_path / "b.json").write_bytes(c4_row("http://b.org"))
    (tmp_path / "1.txt").write_text("A book.\n")
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "a.json").write_bytes(c4_row("http://c.org"))
    a, b = (Dump("c4", (str(tmp_path / name),)) for name in ("a.json", "b.json"))
    book = Dump("gutenberg", (str(tmp_path / "1.txt"),))
    for dump in (a, book, b):
        collect(dump, out, LocalEngine(1))
    for dump in (book, Dump("c4", (str(tmp_path / "?.json"),))):
        made = collect(dump, other, LocalEngine(2))
    assert load(out).outputs == made.outputs
    assert load(out).digest == made.digest
    assert made.counters["documents"] == 3
    assert {name: part["documents"] for name, part in made.counters["sources"].items()} == {
        "c4": 2, "gutenberg": 1,
    }  # fmt: skip
    assert len(made.inputs) == 3

    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    for dump in (a, book, b):
        assert collect(dump, out, LocalEngine(1)).digest == made.digest
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}

    (tmp_path / "b.json").write_bytes(c4_row("http://b.org", "Another page."))
    changed = collect(b, out, LocalEngine(1))
    assert changed.digest != made.digest
    kept = out / "documents" / "c4" / "a.jsonl.zst"
    assert kept.stat().st_mtime_ns == before[kept]
    assert sorted(row["text"] for row in rows_of(out / "documents" / "c4")) == ["A page.", "Another page."]
    with pytest.raises(LoomError, match="would take its place"):
        collect(Dump("c4", (str(tmp_path / "more" / "a.json"),)), out, LocalEngine(1))
    assert load(out).digest == changed.digest


def test_what_others_made_is_left_alone(tmp_path: Path) -> None:
    from loom.artifact import commit

    (tmp_path / "a.json").write_bytes(c4_row("http://a.org"))
    commit(tmp_path / "curated", "documents", recipe={}, inputs=[], outputs=[], counters={})
    with pytest.raises(LoomError, match="of another making"):
        run("c4", tmp_path / "a.json", tmp_path / "curated")
    assert load(tmp_path / "curated").recipe == {}


def test_a_curation_notices_a_change_of_any_kind(tmp_path: Path) -> None:
    """Of what one collection made, of what another did, and of what lies beside them by hand."""
    from loom.corpus.curate import curate
    from loom.corpus.sample import Sample, SampleSource, sample
    from tests.corpus.test_curate import recipe, texts
    from tests.corpus.test_sample import bytes_tokenizer

    root = tmp_path / "root"
    for name in ("java", "python"):
        (tmp_path / "stack" / name).mkdir(parents=True)
        table = pa.table({"content": [f"A file of {name}."], "hexsha": [name]})
        pq.write_table(table, tmp_path / "stack" / name / "train-0.parquet")
    (tmp_path / "c4.json").write_bytes(c4_row("http://a.org", "The first page."))
    stack, c4 = Dump("stack", (str(tmp_path / "stack"),)), Dump("c4", (str(tmp_path / "c4.json"),))
    for dump in (stack, c4):
        collect(dump, root, LocalEngine(1))
    (root / "documents" / "notes").mkdir()
    note = root / "documents" / "notes" / "n.jsonl"
    note.write_bytes(orjson.dumps({"id": "n", "text": "A note of mine."}) + b"\n")
    rules = {"r": {"taggers": ["char_length_v1"]}}
    chosen = recipe(root, sources={name: {"rules": "r"} for name in ("stack", "c4", "notes")}, rules=rules)
    tokenizer = bytes_tokenizer(tmp_path / "tokenizer.json")
    mixture = Sample(
        {name: SampleSource() for name in ("stack", "c4", "notes")}, str(tokenizer), str(root), shuffle=False
    )

    def again() -> set[str]:
        curate(chosen, tmp_path / "curated", LocalEngine(1))
        found = {row["text"] for row in texts(tmp_path / "curated").values()}
        sample(mixture, tmp_path / "mixture", LocalEngine(1))
        assert {row["text"] for row in rows_of(tmp_path / "mixture" / "documents")} == found
        return found

    held = {"A file of java.", "A file of python.", "The first page.", "A note of mine."}
    assert again() == held
    (tmp_path / "c4.json").write_bytes(c4_row("http://a.org", "Another page."))
    collect(c4, root, LocalEngine(1))
    assert again() == held - {"The first page."} | {"Another page."}
    note.write_bytes(orjson.dumps({"id": "n", "text": "Another note."}) + b"\n")
    assert again() == held - {"The first page.", "A note of mine."} | {"Another page.", "Another note."}
    next((root / "documents" / "stack").rglob("*.zst")).write_bytes(b"")
    with pytest.raises(LoomError, match="cut short or changed"):
        again()


def test_the_command_tells_what_was_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from loom.cli import main

    posts = [{"id": "a", "body": "word " * 120, "score": 2}, {"id": "b", "body": "short", "score": 2}]
    (tmp_path / "RC.jsonl").write_bytes(b"\n".join([*map(orjson.dumps, posts), b"{"]))
    with pytest.raises(SystemExit) as ended:
        main(f"collect dump reddit --input {tmp_path}/R* --source talk --out {tmp_path}/out --json".split())
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert orjson.loads(said.splitlines()[-1]) == {
        "out": f"{tmp_path}/out", "source": "talk", "seen": 3, "documents": 1, "rejected": 1, "left_out": {"length": 1},
    }  # fmt: skip
    assert [row["source"] for row in rows_of(tmp_path / "out" / "documents" / "talk")] == ["talk"]
