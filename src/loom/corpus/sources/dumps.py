"""Published dumps as documents: Reddit, MediaWiki, Project Gutenberg, the Stack, C4.

One file in is one file out. The rules are Dolma's: Reddit posts by length and score (atomic content, v5),
articles of the main namespace that are no redirects, books without their licence pages.
"""

from __future__ import annotations

import bz2
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import orjson
import xxhash

from loom.artifact import Artifact, Input, commit, discard, finished
from loom.corpus.documents import open_compressed, read_lines, write_lines
from loom.corpus.sources.wikitext import wikitext_to_text
from loom.engine import Done, Engine, LocalEngine, Operation, Task, clear_receipts, sum_counters
from loom.errors import LoomError
from loom.recipe import to_plain

COMMENT_LENGTH, SUBMISSION_LENGTH = (500, 40_000), (400, 40_000)  # code points
LOWEST_SCORE = 2
GONE = {"[deleted]", "[removed]", ""}
BOOK_START = re.compile(r"^\*\*\*\s*START OF (?:THE|THIS) PROJECT GUTENBERG.*$", re.M)
BOOK_END = re.compile(r"^\*\*\*\s*END OF (?:THE|THIS) PROJECT GUTENBERG.*$", re.M)
Row = dict[str, Any]


@dataclass(frozen=True)
class Dump:
    """What a dump is, its files, and for Reddit a file of subreddits to leave out, one a line."""

    kind: str
    files: tuple[str, ...]
    blocklist: str = ""

    def __post_init__(self) -> None:
        if self.kind not in READERS:
            raise ValueError(f"kind is {self.kind!r}; there are {', '.join(READERS)}")


def collect(dump: Dump, out: Path, engine: Engine | None = None) -> Artifact:
    """Write `documents/<kind>/<file>.jsonl.zst` below `out`.

    Raises `LoomError` for a file that is not there or cannot be read, and if nothing was a document.
    """
    started = time.monotonic()
    paths = [Path(name) for name in dump.files]
    for path in paths:
        if not path.is_file():
            raise LoomError(f"There is no file {path}.")
    stems = [path.name.split(".")[0] for path in paths]
    if len(set(stems)) < len(stems):
        raise LoomError("Two input files have the same name; give them different ones.")
    if dump.blocklist and not Path(dump.blocklist).is_file():
        raise LoomError(f"There is no blocklist {dump.blocklist}.")
    inputs = [Input(str(path.resolve()), _identity(path)) for path in paths]
    inputs += (
        [Input(str(Path(dump.blocklist).resolve()), _identity(Path(dump.blocklist)))]
        if dump.blocklist
        else []
    )
    plain = to_plain(dump)
    if (before := finished(out, "documents", plain, inputs)) is not None:
        return before
    discard(out, "documents")
    tasks = [
        Task((item, *inputs[len(paths) :]), (f"documents/{dump.kind}/{stem}.jsonl.zst",), {"path": str(path)})
        for item, stem, path in zip(inputs, stems, paths, strict=False)
    ]
    settings = {"kind": dump.kind, "blocklist": dump.blocklist}
    done = (engine or LocalEngine()).run(Operation("dump", 1, _task, settings), tasks, out, dump.kind)
    counters = sum_counters([item.counters for item in done])
    if not counters["documents"]:
        raise LoomError(
            f"None of the {counters['seen']:,} entries of these files is a document of kind {dump.kind!r}."
        )
    artifact = commit(
        out,
        "documents",
        recipe=plain,
        inputs=inputs,
        outputs=[item for result in done for item in result.outputs],
        counters=counters,
        started=started,
    )
    clear_receipts(out)
    return artifact


def _identity(path: Path) -> str:
    status = path.stat()
    return xxhash.xxh3_128_hexdigest(f"{path.resolve()} {status.st_size} {status.st_mtime_ns}".encode())


def _task(settings: Any, task: Task, out: Path) -> Done:
    path = Path(task.parameters["path"])
    blocked: frozenset[str] = frozenset()
    if settings["blocklist"]:
        names = Path(settings["blocklist"]).read_text("utf-8").split()
        blocked = frozenset(name.lower() for name in names)
    counters = {"seen": 0, "documents": 0}
    with write_lines(out / task.outputs[0]) as stream:
        for row in READERS[settings["kind"]](path, blocked):
            counters["seen"] += 1
            if row is not None:
                counters["documents"] += 1
                stream.write(orjson.dumps({**row, "source": settings["kind"]}) + b"\n")
    return Done({task.outputs[0]: counters["documents"]}, counters)


def reddit(path: Path, blocked: frozenset[str]) -> Iterator[Row | None]:
    """Comments and submissions of a dump (one JSON object a line), None for each that is left out."""
    for number, line in enumerate(read_lines(path), 1):
        try:
            post = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            raise LoomError(f"{path}, row {number:,}, is not JSON ({error}).") from None
        yield _post(post, blocked)


def _post(post: Row, blocked: frozenset[str]) -> Row | None:
    comment = "body" in post
    body = str(post.get("body" if comment else "selftext") or "").strip()
    text = body if comment else f"{str(post.get('title') or '').strip()}\n\n{body}".strip()
    low, high = COMMENT_LENGTH if comment else SUBMISSION_LENGTH
    subreddit = str(post.get("subreddit") or "")
    left_out = (
        (body in GONE and (comment or body != ""))
        or str(post.get("author")) in GONE
        or not low <= len(text) <= high
        or int(post.get("score") or 0) < LOWEST_SCORE
        or bool(post.get("over_18"))
        or subreddit.lower() in blocked
    )
    if left_out:
        return None
    metadata = {
        "subreddit": subreddit,
        "score": post.get("score"),
        "type": "comment" if comment else "submission",
    }
    return {
        "id": f"{'t1' if comment else 't3'}_{post['id']}",  # Reddit's own full names: each kind numbers its own
        "text": text,
        "created": str(post.get("created_utc", "")),
        "metadata": metadata,
    }


def mediawiki(path: Path, blocked: frozenset[str]) -> Iterator[Row | None]:
    """Articles of an XML dump (plain, .bz2, .gz, .zst): main namespace, no redirects.

    An id is the wiki's name and the page's number in it: every wiki numbers its own.
    """
    wiki = path.name.split("-")[0].split(".")[0]
    with _open_dump(path) as stream:
        try:
            root: ElementTree.Element | None = None
            for event, element in ElementTree.iterparse(stream, ("start", "end")):
                root = element if root is None else root
                name = element.tag.rsplit("}", 1)[-1]
                if event == "end" and name == "dbname":
                    wiki = element.text or wiki
                elif event == "end" and name == "page":
                    yield _page({child.tag.rsplit("}", 1)[-1]: child for child in element}, wiki)
                    root.clear()  # else it would keep every page, emptied
        except (ElementTree.ParseError, EOFError, OSError) as error:
            raise LoomError(
                f"{path} is no MediaWiki dump, or is cut short ({error}). Fetch it again."
            ) from None


@contextmanager
def _open_dump(path: Path) -> Iterator[Any]:
    if path.suffix == ".bz2":
        with bz2.open(path) as stream:
            yield stream
    else:
        with open_compressed(path) as plain:
            yield plain


def _page(fields: dict[str, ElementTree.Element], wiki: str) -> Row | None:
    if "id" not in fields or "redirect" in fields or "revision" not in fields:
        return None
    if "ns" in fields and fields["ns"].text != "0":  # dumps of the first years have no namespaces
        return None
    revision = {child.tag.rsplit("}", 1)[-1]: child.text for child in fields["revision"]}
    text = wikitext_to_text(revision.get("text") or "")
    if not text:
        return None
    title = (fields["title"].text or "") if "title" in fields else ""
    row = {"id": f"{wiki}-{fields['id'].text}", "text": f"{title}\n\n{text}\n", "metadata": {"title": title}}
    return {**row, "created": revision["timestamp"]} if revision.get("timestamp") else row


def gutenberg(path: Path, blocked: frozenset[str]) -> Iterator[Row | None]:
    """One book: what stands between its licence pages; None if that is nothing."""
    with open_compressed(path) as stream:
        text = stream.read().decode("utf-8-sig").replace("\r\n", "\n")
    start, end = BOOK_START.search(text), BOOK_END.search(text)
    head = text[: start.start()] if start else ""
    body = text[start.end() if start else 0 : end.start() if end else len(text)].strip()
    metadata = {
        key.lower(): match[1].strip()
        for key in ("Title", "Author", "Language")
        if (match := re.search(rf"^{key}:\s*(.+)$", head, re.M))
    }
    yield {"id": path.name.split(".")[0], "text": f"{body}\n", "metadata": metadata} if body else None


def stack(path: Path, blocked: frozenset[str]) -> Iterator[Row | None]:
    """Source files of a Parquet file of the Stack, with language and licences; None for an empty one."""
    import pyarrow.parquet as pq

    file = pq.ParquetFile(path)
    names = set(file.schema_arrow.names)
    if "content" not in names:
        raise LoomError(
            f"{path} has no column 'content': it is no file of the Stack ({', '.join(sorted(names))})."
        )
    wanted = [name for name in STACK_COLUMNS if name in names]
    for batch in file.iter_batches(batch_size=1024, columns=["content", *wanted]):
        for row in batch.to_pylist():
            content = row.pop("content")
            identity = (
                row.get("hexsha") or row.get("blob_id") or xxhash.xxh3_128_hexdigest((content or "").encode())
            )
            metadata = {STACK_COLUMNS[name]: value for name, value in row.items() if value is not None}
            yield {"id": identity, "text": content, "metadata": metadata} if content else None


STACK_COLUMNS = {
    "hexsha": "hexsha", "blob_id": "blob_id", "lang": "language", "language": "language", "ext": "extension",
    "path": "path", "max_stars_repo_path": "path", "max_stars_repo_name": "repository", "repo_name": "repository",
    "max_stars_repo_licenses": "licence", "detected_licenses": "licence", "max_stars_count": "stars",
}  # fmt: skip


def c4(path: Path, blocked: frozenset[str]) -> Iterator[Row | None]:
    """C4's own rows (`text`, `url`, `timestamp`); the id is a hash of the address."""
    for line in read_lines(path):
        row = orjson.loads(line)
        url = str(row.get("url", ""))
        identity = xxhash.xxh3_128_hexdigest(url.encode() or row["text"].encode())
        created = {"created": row["timestamp"]} if row.get("timestamp") else {}
        yield (
            {"id": identity, "text": row["text"], "metadata": {"url": url}, **created}
            if row["text"]
            else None
        )


def pes2o(path: Path, blocked: frozenset[str]) -> Iterator[Row | None]:
    """Papers as peS2o publishes them, already in Dolma's schema; what is no field of it goes into metadata."""
    fields = {"id", "text", "added", "created", "version", "metadata"}
    for line in read_lines(path):
        row = orjson.loads(line)
        extra = {key: value for key, value in row.items() if key not in fields and key != "source"}
        kept = {key: row[key] for key in fields if key in row}
        yield {**kept, "metadata": {**(row.get("metadata") or {}), **extra}} if row.get("text") else None


READERS: dict[str, Callable[[Path, frozenset[str]], Iterator[Row | None]]] = {
    "reddit": reddit,
    "mediawiki": mediawiki,
    "gutenberg": gutenberg,
    "stack": stack,
    "c4": c4,
    "pes2o": pes2o,
}
