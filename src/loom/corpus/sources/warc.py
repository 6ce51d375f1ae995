"""WARC files as documents: what a crawl fetched, as text, with Dolma's metadata.

One WARC file in is one file of documents out. A record that is broken, cannot be decoded or lacks what a
document needs goes to `rejected/` with its offset and the reason; what is no page (images, scripts) is
counted. `added` is left out, so that equal work is equal bytes; `loom warc --added` writes one.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from functools import cache
from pathlib import Path
from typing import IO, Any

import orjson

from loom.artifact import Artifact
from loom.corpus import remote
from loom.corpus.documents import write_lines
from loom.corpus.sources import collection
from loom.engine import Done, Engine, Operation, Task
from loom.errors import LoomError
from loom.recipe import to_plain

SUFFIXES = (".warc.gz", ".warc", ".warc.zst")
HTML = {"text/html", "application/xhtml+xml"}
PLAIN = {"text/plain"}
GZIP_MEMBER = b"\x1f\x8b\x08"
RESYNC = 1 << 20  # bytes looked through at a time for the next record after a broken one
RECORD_START = re.compile(rb"\x1f\x8b\x08|\nWARC/1\.")
QUOTED = re.compile(r"(^['\"<]+)|([/'\">]+$)")
WWW = re.compile(r"(^(www\d*\.))|(/+$)", re.IGNORECASE)


@dataclass(frozen=True)
class Warc:
    """WARC files (globs, addresses), the source's name, what turns HTML into text.

    `added` is written into every document if given, as `YYYY-MM-DDTHH:MM:SS.mmmZ`; `html` keeps the page
    in the metadata.
    """

    files: tuple[str, ...]
    source: str
    linearizer: str = "resiliparse"
    added: str = ""
    html: bool = False

    def __post_init__(self) -> None:
        if self.linearizer not in LINEARIZERS:
            raise ValueError(f"linearizer is {self.linearizer!r}; there are {', '.join(LINEARIZERS)}")


def collect(recipe: Warc, out: Path, engine: Engine | None = None) -> Artifact:
    """Write `documents/<source>/<file>.jsonl.gz` below `out`, beside what other collections put there.

    Raises `LoomError` where no file matches, or where none of the records became a document.
    """
    LINEARIZERS[recipe.linearizer]()
    files = collection.find(recipe.files, SUFFIXES, "WARC file")
    plain = {key: value for key, value in to_plain(recipe).items() if key != "files"}

    def nothing(counters: Any) -> str:
        return (
            f"None of the {counters['records']:,} records became a document: {counters['rejected']:,} were set aside "
            f"(see {out / 'rejected'}), {counters['no_page']:,} are no pages, {counters['no_text']:,} have no text."
        )

    made = collection.Collection(
        recipe.source, tuple(files), plain, Operation("warc", 1, _task, plain), suffix=".jsonl.gz"
    )
    return collection.collect(made, out, engine, nothing)


def _task(settings: Any, task: Task, out: Path) -> Done:
    recipe = Warc((), **settings)
    to_text = LINEARIZERS[recipe.linearizer]()
    counters = {"records": 0, "documents": 0, "no_page": 0, "no_text": 0, "rejected": 0}
    path = Path(task.parameters["path"])
    info: dict[str, str] = {"warc_date": "", "warc_filename": path.name}
    with (
        write_lines(out / task.outputs[0]) as documents,
        write_lines(out / task.outputs[1]) as rejected,
        remote.open_raw(path) as stream,
    ):
        for record in records(_seekable(stream)):
            if isinstance(record, Broken):
                outcome: str | dict[str, Any] = record.reason
                offset = record.offset
            elif record.kind == "warcinfo":
                info["warc_date"] = _timestamp(record.headers.get("WARC-Date", ""))
                info["warc_filename"] = record.headers.get("WARC-Filename", path.name)
                continue
            else:
                offset = record.offset
                outcome = document(record, info, recipe, to_text)
            counters["records"] += 1
            if isinstance(outcome, dict):
                documents.write(orjson.dumps(outcome) + b"\n")
                counters["documents"] += 1
            elif outcome in ("no_page", "no_text"):
                counters[outcome] += 1
            else:
                row = {"file": path.name, "offset": offset, "reason": outcome}
                rejected.write(orjson.dumps(row) + b"\n")
                counters["rejected"] += 1
    return Done({task.outputs[0]: counters["documents"], task.outputs[1]: counters["rejected"]}, counters)


def _seekable(stream: IO[bytes]) -> IO[bytes]:
    return stream if stream.seekable() else io.BytesIO(stream.read())


@dataclass(frozen=True)
class Record:
    """A response or resource (or the file's warcinfo): its headers, its payload, where it starts."""

    kind: str
    headers: dict[str, str]
    content_type: str
    charset: str | None
    date: str
    payload: bytes
    offset: int


@dataclass(frozen=True)
class Broken:
    """What stands at `offset` and is no record."""

    offset: int
    reason: str


def records(stream: IO[bytes]) -> Iterator[Record | Broken]:
    """The records that matter, in order. After a broken one reading goes on at the next that starts whole."""
    from fastwarc.warc import ArchiveIterator, WarcRecordType

    wanted = {
        int(WarcRecordType.response): "response",
        int(WarcRecordType.resource): "resource",
        int(WarcRecordType.warcinfo): "warcinfo",
    }
    start: int | None = 0
    while start is not None:
        stream.seek(start)
        seen = start
        try:
            for record in ArchiveIterator(stream, parse_http=False):
                seen = start + record.stream_pos
                declared = int(record.headers.get("Content-Length") or -1)
                record.freeze()
                if record.content_length < declared or declared < 0:
                    raise EOFError(f"{declared - record.content_length:,} bytes of its content are missing")
                kind = wanted.get(int(record.record_type))
                if kind is not None:
                    yield _record(record, kind, seen)
        except (OSError, EOFError, ValueError, KeyError) as error:
            yield Broken(seen, f"broken or cut short: {error}")
            start = _next_start(stream, seen + 1)
        else:
            if (cut := _cut_member(stream, seen)) is not None:
                yield Broken(cut, "broken or cut short: the file ends in mid-record")
            start = None


def _record(record: Any, kind: str, offset: int) -> Record | Broken:
    headers = dict(record.headers)
    content_type, charset, date = headers.get("Content-Type", ""), None, headers.get("WARC-Date", "")
    if record.is_http:
        try:
            record.parse_http(auto_decode="all")
            payload = record.reader.read()
        except (OSError, ValueError) as error:
            return Broken(offset, f"its HTTP part cannot be read: {error}")
        http = dict(record.http_headers)
        content_type = http.get("Content-Type", "")
        charset, date = record.http_charset, http.get("Date", "") or date
    else:
        payload = record.reader.read()
    return Record(kind, headers, content_type.split(";")[0].strip().lower(), charset, date, payload, offset)


def _next_start(stream: IO[bytes], at: int) -> int | None:
    """Where the next record starts at or after `at`: a gzip member that holds one, or `WARC/` on a new line."""
    import zlib

    stream.seek(at)
    held, base = b"", at
    while chunk := stream.read(RESYNC):
        held += chunk
        for match in RECORD_START.finditer(held):
            if match.group() == GZIP_MEMBER:
                try:
                    if not zlib.decompressobj(31).decompress(held[match.start() :], 64).startswith(b"WARC/"):
                        continue
                except zlib.error:
                    continue
                return base + match.start()
            return base + match.end() - len(b"WARC/1.")
        base, held = base + max(len(held) - 64, 0), held[-64:]
    return None


def _cut_member(stream: IO[bytes], last: int) -> int | None:
    """Where the gzip member lies in which the file ends before its time, None if the file ends as it should."""
    import zlib

    stream.seek(last)
    data, at = stream.read(), last
    while data.startswith(GZIP_MEMBER[:2]):
        unpacker = zlib.decompressobj(31)
        unpacker.decompress(data)
        if not unpacker.eof:
            return at
        at, data = at + len(data) - len(unpacker.unused_data), unpacker.unused_data
    return None


def document(
    record: Record, info: dict[str, str], recipe: Warc, to_text: Callable[[str], str]
) -> dict[str, Any] | str:
    """A record as a document in Dolma's schema, or why it is none: `no_page`, `no_text`, or what is wrong."""
    if record.content_type not in HTML | PLAIN:
        return "no_page"
    digest = record.headers.get("WARC-Payload-Digest", "")
    address = record.headers.get("WARC-Target-URI", "")
    if ":" not in digest:
        return "no WARC-Payload-Digest, which is the document's id"
    if not address:
        return "no WARC-Target-URI"
    page = decode(record.payload, record.charset)
    if page is None:
        return "its characters cannot be decoded"
    text = page if record.content_type in PLAIN else to_text(page)
    if not text.strip():
        return "no_text"
    metadata = {
        "warc_url": address,
        "url": normalize(address),
        **({"html": page} if recipe.html else {}),
        **info,
        "content_type": record.content_type,
        "uncompressed_offset": record.offset,
    }
    row = {"id": digest.split(":")[1].lower(), "text": text, "source": recipe.source, "version": "v0"}
    row |= {"added": recipe.added} if recipe.added else {}
    created = _timestamp(record.date)
    return {**row, **({"created": created} if created else {}), "metadata": metadata}


def decode(payload: bytes, charset: str | None) -> str | None:
    """A page as text: by the charset of its header, else of its `<meta>`, else as it looks (uchardet).

    None where none of them decodes it, or where it looks like no text at all.
    """
    from resiliparse.parse.encoding import detect_encoding, map_encoding_to_html5

    if charset:
        try:
            return payload.decode(charset).strip()
        except (UnicodeDecodeError, LookupError):
            pass
    for meta in (True, False):
        found = detect_encoding(payload, from_html_meta=meta)
        for name in (found, map_encoding_to_html5(found) if found else None):
            if name:
                try:
                    return payload.decode(name).strip()
                except (UnicodeDecodeError, LookupError):
                    continue
    return None


def _timestamp(text: str) -> str:
    """A WARC or HTTP date as Dolma writes dates, empty if it is none."""
    for parse in (datetime.fromisoformat, parsedate_to_datetime):
        try:
            return parse(text).strftime("%Y-%m-%dT%H:%M:%S.%f")[:23] + "Z"
        except (ValueError, TypeError):
            continue
    return ""


@cache
def _normalizers() -> tuple[Callable[[str], str], Callable[[str], Any]]:
    from url_normalize import url_normalize
    from w3lib.url import canonicalize_url

    return canonicalize_url, url_normalize


def normalize(address: str) -> str:
    """An address as Dolma compares them: canonical, without scheme, `www.` and trailing slashes."""
    canonicalize, standard = _normalizers()
    try:
        url = str(standard(canonicalize(QUOTED.sub("", address))))
    except ValueError:
        return address
    return WWW.sub("", url.split("://", 1)[-1])


def resiliparse() -> Callable[[str], str]:
    """Main content by resiliparse, formatted as Dolma asks for it."""
    from resiliparse.extract.html2text import extract_plain_text
    from resiliparse.parse.html import HTMLTree

    def to_text(page: str) -> str:
        text: str = extract_plain_text(
            HTMLTree.parse(page),
            preserve_formatting=True,
            main_content=True,
            list_bullets=True,
            alt_texts=False,
            links=False,
            form_fields=False,
            noscript=False,
            comments=True,
        )
        return text

    return to_text


def trafilatura() -> Callable[[str], str]:
    """Main content by trafilatura: slower, stricter about what is boilerplate."""
    try:
        from trafilatura import extract
    except ImportError:
        raise LoomError("trafilatura is not installed: pip install 'loom-lm[trafilatura]'.") from None

    def to_text(page: str) -> str:
        return extract(page, output_format="txt", include_comments=False, include_tables=False) or ""

    return to_text


LINEARIZERS: dict[str, Callable[[], Callable[[str], str]]] = {
    "resiliparse": resiliparse,
    "trafilatura": trafilatura,
}
