"""Published dumps as documents: Reddit, MediaWiki, Project Gutenberg, the Stack, C4, peS2o.

The rules are Dolma's: Reddit posts by length and score (atomic content, v5), articles of the main namespace
that are no redirects, books without their licence pages. What a rule leaves out is counted under its name;
an entry that cannot be read goes to `rejected/` with file, line and reason, and reading goes on.
"""

from __future__ import annotations

import bz2
import codecs
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import orjson
import xxhash

from loom.artifact import Artifact, Input
from loom.corpus import pieces, remote
from loom.corpus.batch import check_row
from loom.corpus.documents import DAMAGED, JSON_SUFFIXES, open_compressed, read_lines, write_lines
from loom.corpus.sources import collection
from loom.corpus.sources.wikitext import wikitext_to_text
from loom.engine import Done, Engine, Operation, Task
from loom.errors import LoomError
from loom.tokens.documents import Rejected

COMMENT_LENGTH, SUBMISSION_LENGTH = (500, 40_000), (400, 40_000)  # code points
LOWEST_SCORE = 2
GONE = {"[deleted]", "[removed]"}
SUBMISSION_FIELDS = (  # a submission that lacks one is left out
    "title", "author", "subreddit", "subreddit_id", "created_utc", "score", "over_18", "num_comments",
)  # fmt: skip
BOOK_START = re.compile(r"^\*\*\*\s*START OF (?:THE|THIS) PROJECT GUTENBERG.*$", re.M)
BOOK_END = re.compile(r"^\*\*\*\s*END OF (?:THE|THIS) PROJECT GUTENBERG.*$", re.M)
BOOK_CHARSET = re.compile(rb"^Character set encoding:\s*([\w-]+)", re.M | re.I)
Row = dict[str, Any]


@dataclass(frozen=True)
class Left:
    """An entry that a rule of its dump leaves out."""

    rule: str


@dataclass(frozen=True)
class Broken:
    """An entry that cannot be read."""

    reason: str


Entries = Iterator[tuple[int, Row | Left | Broken]]  # an entry's number in its file, from 1


@dataclass(frozen=True)
class Dump:
    """What a dump is, its files (globs, folders, addresses), and for Reddit a file of subreddits to leave out.

    The documents are of the source `source`, by default the name that the recipes know the kind by.
    """

    kind: str
    files: tuple[str, ...]
    blocklist: str = ""
    source: str = ""
    largest: int = pieces.LARGE

    def __post_init__(self) -> None:
        if self.kind not in READERS:
            raise ValueError(f"kind is {self.kind!r}; there are {', '.join(READERS)}")
        if "/" in self.source or self.source.startswith("."):
            raise ValueError(f"source is {self.source!r}; it names one folder below documents/")

    @property
    def name(self) -> str:
        return self.source or SOURCES.get(self.kind, self.kind)


def collect(dump: Dump, out: Path, engine: Engine | None = None) -> Artifact:
    """Write `documents/<source>/<file>.jsonl.zst` below `out`, beside what other collections put there.

    Raises `LoomError` where no file matches, for one that is cut short, and if nothing was a document.
    """
    files = collection.find(dump.files, SUFFIXES[dump.kind], f"file of {dump.kind}")
    also: tuple[Input, ...] = ()
    if dump.blocklist:
        (found,) = collection.find((dump.blocklist,), (".txt",), "blocklist")
        also = (Input(found.place, found.digest),)
    if dump.kind == "stack":
        for file in files:
            if remote.address(file.path) is None:
                with _stack_file(file.path):
                    pass
    recipe = {"kind": dump.kind, "blocklist": bool(dump.blocklist)}
    settings = {"kind": dump.kind, "blocklist": dump.blocklist, "source": dump.name}

    def nothing(counters: Any) -> str:
        left = ", ".join(f"{rule} {count:,}" for rule, count in counters["left_out"].items())
        return (
            f"None of the {counters['seen']:,} entries of these files is a document of kind {dump.kind!r}: "
            f"{counters['rejected']:,} cannot be read (see {out / 'rejected'}), left out were {left or 'none'}."
        )

    return collection.collect(
        collection.Collection(
            dump.name,
            tuple(files),
            recipe,
            Operation(f"collect {dump.kind}", 3, _task, settings),
            also,
            cut=dump.kind in IN_PIECES,
            largest=dump.largest,
        ),
        out,
        engine,
        nothing,
    )


def _task(settings: Any, task: Task, out: Path) -> Done:
    path = Path(task.parameters["path"])
    blocked: frozenset[str] = frozenset()
    if settings["blocklist"]:
        names = Path(settings["blocklist"]).read_text("utf-8").split()
        blocked = frozenset(name.lower() for name in names)
    seen = written = broken = 0
    left_out: dict[str, int] = {}
    with write_lines(out / task.outputs[0]) as stream, write_lines(out / task.outputs[1]) as aside:
        for number, entry in READERS[settings["kind"]](path, blocked):
            seen += 1
            if isinstance(entry, dict) and (reason := check_row(entry)) is not None:
                entry = Broken(reason)
            match entry:
                case Left(rule):
                    left_out[rule] = left_out.get(rule, 0) + 1
                case Broken(reason):
                    broken += 1
                    aside.write(Rejected(path.name, number, reason).json() + b"\n")
                case _:
                    written += 1
                    stream.write(orjson.dumps({**entry, "source": settings["source"]}) + b"\n")
    counters = {"seen": seen, "documents": written, "rejected": broken, "left_out": left_out}
    return Done({task.outputs[0]: written, task.outputs[1]: broken}, counters)


def _json_rows(path: Path) -> Iterator[tuple[int, Row | Broken]]:
    """The lines of a dump of JSON lines; what is no object is broken, a blank line is none."""
    for number, line in enumerate(read_lines(path), 1):
        if not line.strip():
            continue
        try:
            row = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            yield number, Broken(f"not JSON: {error}")
            continue
        yield number, row if isinstance(row, dict) else Broken("not a JSON object")


def reddit(path: Path, blocked: frozenset[str]) -> Entries:
    """Comments and submissions of a dump, one JSON object a line."""
    for number, post in _json_rows(path):
        yield number, post if isinstance(post, Broken) else _post(post, blocked)


def _post(post: Row, blocked: frozenset[str]) -> Row | Left | Broken:
    """A comment or a submission. The body alone is measured; what Dolma asks of submissions only, is asked of them."""
    comment = "body" in post
    raw = str(post.get("body" if comment else "selftext") or "")
    body = raw.strip()
    low, high = COMMENT_LENGTH if comment else SUBMISSION_LENGTH
    subreddit = str(post.get("subreddit") or "").strip()
    try:
        score = int(post.get("score") or 0)
    except (TypeError, ValueError):
        return Broken("'score' is not a number")
    if "id" not in post:
        return Broken("no 'id'")
    rules = {
        "incomplete": not comment and any(post.get(name) is None for name in SUBMISSION_FIELDS),
        "deleted": bool(GONE & {body, subreddit, "" if comment else str(post.get("author") or "").strip()}),
        "length": len(body) < low or len(raw) > high,
        "score": score < LOWEST_SCORE,
        "over_18": not comment and bool(post.get("over_18")),
        "blocklist": subreddit.lower() in blocked,
    }
    if (rule := next((name for name, speaks in rules.items() if speaks), None)) is not None:
        return Left(rule)
    metadata = {
        "subreddit": subreddit,
        "score": post.get("score"),
        "type": "comment" if comment else "submission",
    }
    return {
        "id": f"{'t1' if comment else 't3'}_{post['id']}",  # Reddit's own full names: each kind numbers its own
        "text": body if comment else f"{str(post['title']).strip()}\n\n{body}".strip(),
        "created": str(post.get("created_utc", "")),
        "metadata": metadata,
    }


def mediawiki(path: Path, blocked: frozenset[str]) -> Entries:
    """Articles of an XML dump (plain, .bz2, .gz, .zst): main namespace, no redirects.

    An id is the wiki's name and the page's number in it: every wiki numbers its own.
    """
    wiki = path.name.split("-")[0].split(".")[0]
    number = 0
    with _open_dump(path) as stream:
        try:
            root: ElementTree.Element | None = None
            for event, element in ElementTree.iterparse(stream, ("start", "end")):
                root = element if root is None else root
                name = element.tag.rsplit("}", 1)[-1]
                if event == "end" and name == "dbname":
                    wiki = element.text or wiki
                elif event == "end" and name == "page":
                    number += 1
                    yield number, _page({child.tag.rsplit("}", 1)[-1]: child for child in element}, wiki)
                    root.clear()  # else it would keep every page, emptied
        except (ElementTree.ParseError, OSError, *DAMAGED) as error:
            raise LoomError(
                f"{path} is no MediaWiki dump, or is cut short after page {number:,} ({error}). Fetch it again."
            ) from None


@contextmanager
def _open_dump(path: Path) -> Iterator[Any]:
    if path.suffix == ".bz2":
        with remote.open_raw(path) as raw, bz2.open(raw) as stream:
            yield stream
    else:
        with open_compressed(path) as plain:
            yield plain


def _page(fields: dict[str, ElementTree.Element], wiki: str) -> Row | Left | Broken:
    if "id" not in fields or not fields["id"].text:
        return Broken("no 'id'")
    if "redirect" in fields:
        return Left("redirect")
    if "ns" in fields and fields["ns"].text != "0":  # dumps of the first years have no namespaces
        return Left("namespace")
    if "revision" not in fields:
        return Broken("no 'revision'")
    revision = {child.tag.rsplit("}", 1)[-1]: child.text for child in fields["revision"]}
    text = wikitext_to_text(revision.get("text") or "")
    if not text:
        return Left("empty")
    title = (fields["title"].text or "") if "title" in fields else ""
    row = {"id": f"{wiki}-{fields['id'].text}", "text": f"{title}\n\n{text}\n", "metadata": {"title": title}}
    return {**row, "created": revision["timestamp"]} if revision.get("timestamp") else row


def gutenberg(path: Path, blocked: frozenset[str]) -> Entries:
    """One book: what stands between its licence pages, in UTF-8 or the character set it says."""
    try:
        with open_compressed(path) as stream:
            data = stream.read()
    except DAMAGED as error:
        raise LoomError(f"{path} is cut short or damaged ({error}). Fetch it again.") from None
    try:
        text = _decode(data).replace("\r\n", "\n")
    except (UnicodeDecodeError, LookupError) as error:
        yield 1, Broken(f"cannot be decoded: {error}")
        return
    start, end = BOOK_START.search(text), BOOK_END.search(text)
    head = text[: start.start()] if start else ""
    body = text[start.end() if start else 0 : end.start() if end else len(text)].strip()
    metadata = {
        key.lower(): match[1].strip()
        for key in ("Title", "Author", "Language")
        if (match := re.search(rf"^{key}:\s*(.+)$", head, re.M))
    }
    book = {"id": path.name.split(".")[0], "text": f"{body}\n", "metadata": metadata}
    yield 1, book if body else Left("empty")


def _decode(data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        said = BOOK_CHARSET.search(data)
        if said is None or codecs.lookup(said[1].decode()).name in ("utf-8", "ascii"):
            raise
        return data.decode(said[1].decode())


@contextmanager
def _stack_file(path: Path) -> Iterator[Any]:
    """A Parquet file of the Stack, or a piece of one, open. Raises `LoomError` for another."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    piece = pieces.parse(path)
    try:
        with remote.open_raw(piece.path if piece else path, whole=False) as stream:
            file = pq.ParquetFile(stream)
            names = set(file.schema_arrow.names)
            if "content" not in names:
                raise LoomError(
                    f"{path} has no column 'content': it is no file of the Stack ({', '.join(sorted(names))})."
                )
            yield file
    except (pa.ArrowException, OSError) as error:
        raise LoomError(f"{path} cannot be read as Parquet ({error}). Fetch it again.") from None


def stack(path: Path, blocked: frozenset[str]) -> Entries:
    """Source files of a Parquet file of the Stack, with language and licences."""
    piece = pieces.parse(path)
    with _stack_file(path) as file:
        wanted = [name for name in STACK_COLUMNS if name in file.schema_arrow.names]
        first, last = (piece.start, piece.end) if piece else (0, file.num_row_groups)
        number = sum(file.metadata.row_group(group).num_rows for group in range(first))
        groups = list(range(first, last))
        for batch in file.iter_batches(batch_size=1024, row_groups=groups, columns=["content", *wanted]):
            for row in _rows_of(batch):
                number += 1
                yield number, row if isinstance(row, Broken) else _source_file(row)


def _rows_of(batch: Any) -> list[Row | Broken]:
    """A batch's rows; one with a text that is not UTF-8 is broken."""
    try:
        return list(batch.to_pylist())
    except UnicodeDecodeError:
        if batch.num_rows == 1:
            return [Broken("not UTF-8")]
        return [row for at in range(batch.num_rows) for row in _rows_of(batch.slice(at, 1))]


def _source_file(row: Row) -> Row | Left | Broken:
    content = row.pop("content")
    if not content:
        return Left("empty")
    if not isinstance(content, str):
        return Broken("'content' is not text")
    identity = row.get("hexsha") or row.get("blob_id") or xxhash.xxh3_128_hexdigest(content.encode())
    metadata = {STACK_COLUMNS[name]: value for name, value in row.items() if value is not None}
    return {"id": identity, "text": content, "metadata": metadata}


STACK_COLUMNS = {
    "hexsha": "hexsha", "blob_id": "blob_id", "lang": "language", "language": "language", "ext": "extension",
    "path": "path", "max_stars_repo_path": "path", "max_stars_repo_name": "repository", "repo_name": "repository",
    "max_stars_repo_licenses": "licence", "detected_licenses": "licence", "max_stars_count": "stars",
}  # fmt: skip


def c4(path: Path, blocked: frozenset[str]) -> Entries:
    """C4's own rows (`text`, `url`, `timestamp`); the id is a hash of the address."""
    for number, row in _json_rows(path):
        if isinstance(row, Broken) or not isinstance(row.get("text"), str):
            yield number, row if isinstance(row, Broken) else Broken("no 'text'")
            continue
        url = str(row.get("url") or "")
        identity = xxhash.xxh3_128_hexdigest(url.encode() or row["text"].encode())
        created = {"created": row["timestamp"]} if row.get("timestamp") else {}
        document = {"id": identity, "text": row["text"], "metadata": {"url": url}, **created}
        yield number, document if row["text"] else Left("empty")


def pes2o(path: Path, blocked: frozenset[str]) -> Entries:
    """Papers as peS2o publishes them, already in Dolma's schema; what is no field of it goes into metadata."""
    fields = ("id", "text", "added", "created", "version", "metadata")
    for number, row in _json_rows(path):
        if isinstance(row, Broken) or not isinstance(row.get("metadata") or {}, dict):
            yield number, row if isinstance(row, Broken) else Broken("'metadata' is not an object")
            continue
        extra = {key: value for key, value in row.items() if key not in fields and key != "source"}
        kept = {key: row[key] for key in fields if key in row}
        document = {**kept, "metadata": {**(row.get("metadata") or {}), **extra}}
        yield number, Left("empty") if row.get("text") == "" else document


READERS: dict[str, Callable[[Path, frozenset[str]], Entries]] = {
    "reddit": reddit,
    "mediawiki": mediawiki,
    "gutenberg": gutenberg,
    "stack": stack,
    "c4": c4,
    "pes2o": pes2o,
}
SOURCES = {"mediawiki": "wiki"}  # what Dolma calls a source, where it is not the kind
SUFFIXES = {
    "reddit": (*JSON_SUFFIXES, ".zst", ".gz"),
    "mediawiki": (".xml", ".xml.bz2", ".xml.gz", ".xml.zst", ".bz2"),
    "gutenberg": (".txt", ".txt.gz", ".txt.zst"),
    "stack": (".parquet",),
    "c4": JSON_SUFFIXES,
    "pes2o": JSON_SUFFIXES,
}
IN_PIECES = ("reddit", "stack", "c4", "pes2o")
