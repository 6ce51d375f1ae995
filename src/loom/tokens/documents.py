"""Documents as tokenization reads them: text, id, source, and the place they came from.

JSON lines (plain, gz, zst) and Parquet, in Dolma's schema: `id` and `text`, `source` if there is one.
Curation, above, has readers of its own that keep metadata. A row that is not a document is set aside with
its file, line and reason.
"""

from __future__ import annotations

import glob
import gzip
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any

import orjson
from isal import igzip, isal_zlib

from loom.artifact import MANIFEST, RUN, Artifact, Input, digest_file, digest_json, load, refer, relative
from loom.console import console
from loom.errors import LoomError
from loom.tokens import remote

DAMAGED: tuple[Any, ...] = (EOFError, zlib.error, isal_zlib.error, gzip.BadGzipFile)
BLOCK = 1 << 22  # bytes of JSON lines, or rows of Parquet by estimate, read at a time
PARQUET_ROWS = 2048
NOT_UTF8 = b"\xff"  # stands for a text of Parquet that cannot be decoded
REJECTED = "rejected.jsonl"
NAMED = 5  # of the rows set aside, those that the warning names
WINDOW = 1 << 31  # zstd --long=31, as published dumps are packed; the library refuses more than 2^27 unasked
ZSTD = (".zst", ".zstd")  # the second as DCLM's files are called
JSON_SUFFIXES = tuple(
    f"{lines}{packed}" for lines in (".jsonl", ".json", ".ndjson") for packed in ("", ".gz", *ZSTD)
)
SUFFIXES = (*JSON_SUFFIXES, ".parquet")


@dataclass(frozen=True)
class File:
    """A file of documents. `name` is its path below the documents' root, with forward slashes."""

    path: Path
    name: str
    digest: str  # of its content where a manifest states it, else of (name, size, time)

    @property
    def source(self) -> str:
        """The source of documents that do not name theirs: the file's folder, else its stem."""
        folder = self.name.rpartition("/")[0]
        return folder.split("/")[0] if folder else self.path.name.split(".")[0]


@dataclass(frozen=True)
class Rejected:
    """A row that was set aside. `line` counts rows of the file from 1."""

    file: str
    line: int
    reason: str

    def json(self) -> bytes:
        return orjson.dumps({"file": self.file, "line": self.line, "reason": self.reason})


def tell_of(path: Path, count: int) -> None:
    """Say that `count` rows were set aside in `path`, the first of them by name."""
    with path.open("rb") as stream:
        first = [orjson.loads(line) for line in islice(stream, NAMED)]
    named = "; ".join(f"{row['file']}:{row['line']}: {row['reason']}" for row in first)
    more = f"; and {count - len(first):,} more" if count > len(first) else ""
    console.warn(f"{count:,} rows are no documents and are set aside in {path}: {named}{more}")


@dataclass(frozen=True)
class Rows:
    """Some rows of a file, as they are, with their numbers in it from 1."""

    numbers: list[int]
    ids: list[str]
    texts: list[str]
    sources: list[str]


def find(patterns: Sequence[str], at: Path) -> tuple[list[File], list[Input]]:
    """The files that globs match, in order of name, and what they are as inputs of an artifact at `at`.

    A folder stands for every file of documents below it, and patterns may be addresses. Files that an
    artifact's manifest lists make that artifact the input; others are inputs themselves. Raises
    `LoomError` for a pattern that matches nothing.
    """
    artifacts: dict[Path, Artifact] = {}
    used: dict[Path, Artifact] = {}
    listed: dict[Path, dict[str, str]] = {}
    files: dict[Path, File] = {}
    inputs: dict[str, Input] = {}
    for pattern in patterns:
        matched, root = _matches(pattern)
        if not matched:
            raise LoomError(
                f"No documents match {pattern!r}. Documents are files ending in {', '.join(SUFFIXES)}; quote "
                f"globs, and use ** for folders below folders."
            )
        for path in matched:
            if (url := remote.address(path)) is not None:
                _, digest = remote.identity(url)
                inputs[url] = Input(url, digest)
                files.setdefault(path, File(path, _below_documents(path, root), digest))
                continue
            owner = _owner(path, artifacts, listed)
            if owner is not None:
                used[owner.path] = owner
                item = refer(owner, at)
                digest = listed[owner.path][path.resolve().relative_to(owner.path.resolve()).as_posix()]
            else:
                name, stat = path.relative_to(root).as_posix(), path.stat()
                digest = digest_json([name, stat.st_size, stat.st_mtime_ns])
                item = Input(relative(path, at), "")
            inputs[item.path] = item
            files.setdefault(path.resolve(), File(path, _below_documents(path, root), digest))
    for artifact in used.values():
        artifact.verify()
    return sorted(files.values(), key=lambda file: (file.name, str(file.path))), sorted(
        inputs.values(), key=lambda item: item.path
    )


def place(path: Path, at: Path) -> str:
    """`path` as an artifact at `at` names it among its inputs: the address, or the relative path."""
    return remote.address(path) or relative(path, at)


def placed(name: str, at: Path) -> Path:
    """The path that `place` gave a name to."""
    return Path(name) if remote.address(name) is not None else at / name


def settle(inputs: Sequence[Input], at: Path) -> list[Input]:
    """Give raw files among `inputs` the digest of their content."""
    return [item if item.digest else Input(item.path, digest_file(at / item.path)) for item in inputs]


def _matches(pattern: str) -> tuple[list[Path], Path]:
    path = Path(pattern)
    if (url := remote.address(pattern)) is not None:
        found = remote.find(url, SUFFIXES)
        below = f"{url.rstrip('/')}/documents/"
        found = [name for name in found if name.startswith(below)] or found
        root = path.parent if found == [url] else Path(*_fixed_prefix((*path.parts, "")))
        return list(map(Path, found)), root
    if path.is_dir():
        folder = path / "documents" if (path / "documents").is_dir() else path
        names = sorted(
            item
            for item in folder.rglob("*")
            if item.name.endswith(SUFFIXES) and item.name not in (MANIFEST, RUN) and item.is_file()
        )
        return [item for item in names if not _inside_hidden(item, folder)], folder
    if path.is_file():
        return [path], path.parent
    fixed = Path(*_fixed_prefix(path.parts)) if path.parts else Path()
    names = sorted(Path(item) for item in glob.glob(pattern, recursive=True))
    return [item for item in names if item.is_file() and item.name.endswith(SUFFIXES)], fixed


def _fixed_prefix(parts: Sequence[str]) -> list[str]:
    prefix: list[str] = []
    for part in parts[:-1]:
        if glob.has_magic(part):
            break
        prefix.append(part)
    return prefix


def _inside_hidden(path: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(root).parts)


def _below_documents(path: Path, root: Path) -> str:
    parts = path.parts
    if "documents" in parts[:-1]:
        at = len(parts) - 1 - parts[::-1].index("documents")
        return "/".join(parts[at + 1 :])
    return path.relative_to(root).as_posix()


def _owner(
    path: Path, artifacts: dict[Path, Artifact], listed: dict[Path, dict[str, str]]
) -> Artifact | None:
    resolved = path.resolve()
    for folder in resolved.parents:
        if folder not in listed:
            listed[folder] = {}
            if _is_loom(folder / MANIFEST):
                artifact = load(folder)
                artifacts[folder] = artifact
                listed[folder] = {item.path: item.digest for item in artifact.outputs}
        if resolved.relative_to(folder).as_posix() in listed[folder]:
            return artifacts[folder]
    return None


def _is_loom(manifest: Path) -> bool:
    """Whether a manifest.json above a file of documents is one of Loom's (other programs write some too)."""
    try:
        body = orjson.loads(manifest.read_bytes())
    except FileNotFoundError:
        return False
    except (OSError, ValueError):
        return (manifest.parent / RUN).exists()
    return isinstance(body, dict) and "kind" in body and "outputs" in body


def read(file: File, aside: list[Rejected]) -> Iterator[Rows]:
    """The documents of a file, some megabytes at a time.

    What is not a document (broken JSON, a missing or empty `id`, a `text` that is not a string) is added to
    `aside`. Raises `LoomError` for a file that was cut short.
    """
    try:
        if file.path.name.endswith(".parquet"):
            yield from _read_parquet(file, aside)
        else:
            yield from _read_lines(file, aside)
    except FileNotFoundError:
        raise LoomError(f"{file.path} is gone since the files were listed.") from None


def lines(file: File) -> Iterator[tuple[int, bytes]]:
    """The lines of a file of JSON lines that hold anything, with their numbers from 1.

    Raises `LoomError` if the file was cut short or is damaged.
    """
    row = 1
    for block in _blocks(file.path):
        for line in block.split(b"\n"):
            if line and not line.isspace():
                yield row, line
            row += 1


def _read_lines(file: File, aside: list[Rejected]) -> Iterator[Rows]:
    rows = Rows([], [], [], [])
    size = 0
    for row, line in lines(file):
        try:
            value = orjson.loads(line)
            _add(rows, row, value.get("id"), value.get("text"), value.get("source"), file)
        except (ValueError, AttributeError) as error:
            aside.append(Rejected(file.name, row, f"it is not a JSON object ({error})"))
        except _NoDocument as error:
            aside.append(Rejected(file.name, row, str(error)))
        size += len(line)
        if size >= BLOCK:
            yield rows
            rows, size = Rows([], [], [], []), 0
    if rows.ids:
        yield rows


def _read_parquet(file: File, aside: list[Rejected]) -> Iterator[Rows]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    row = 1
    try:
        with remote.open_raw(file.path, whole=False) as stream:
            table = pq.ParquetFile(stream)
            names = table.schema_arrow.names
            for name in ("id", "text"):
                if name not in names:
                    raise LoomError(f"{file.path} has no column {name!r}; it has {', '.join(names)}.")
            columns = [name for name in ("id", "text", "source") if name in names]
            for batch in table.iter_batches(PARQUET_ROWS, columns=columns):
                rows = Rows([], [], [], [])
                ids, texts = _values(batch.column("id")), _values(batch.column("text"))
                sources = _values(batch.column("source")) if "source" in columns else [None] * len(ids)
                for number, values in enumerate(zip(ids, texts, sources, strict=True), start=row):
                    try:
                        _add(rows, number, *values, file)
                    except _NoDocument as error:
                        aside.append(Rejected(file.name, number, str(error)))
                row += len(ids)
                yield rows
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError) as error:
        raise LoomError(f"{file.path} is not a whole Parquet file: {error}.") from None


def _values(column: Any) -> list[Any]:
    """An Arrow column's values; `NOT_UTF8` for what should be text and is not UTF-8."""
    try:
        return list(column.to_pylist())
    except UnicodeDecodeError:
        return [_value(scalar) for scalar in column]


def _value(scalar: Any) -> Any:
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        return NOT_UTF8


class _NoDocument(Exception):
    """Why a row is not one."""


def _add(rows: Rows, number: int, identity: Any, text: Any, source: Any, file: File) -> None:
    if isinstance(identity, int) and not isinstance(identity, bool):
        identity = str(identity)
    if not isinstance(identity, str) or not identity:
        raise _NoDocument(f"its id is {identity!r}, where text is expected")
    if isinstance(text, bytes):
        try:
            text = text.decode()
        except UnicodeDecodeError:
            raise _NoDocument("its text is not UTF-8") from None
    if not isinstance(text, str):
        raise _NoDocument(f"its text is {type(text).__name__}, where a string is expected")
    rows.numbers.append(number)
    rows.ids.append(identity)
    rows.texts.append(text)
    rows.sources.append(source if isinstance(source, str) and source else file.source)


def _blocks(path: Path) -> Iterator[bytes]:
    """Whole lines of a file, decompressed by its ending, about `BLOCK` bytes at a time."""
    rest: list[bytes] = []
    with remote.open_raw(path) as stream:
        for chunk in _decompressed(path, stream):
            cut = chunk.rfind(b"\n")
            if cut < 0:
                rest.append(chunk)
                continue
            yield b"".join([*rest, chunk[:cut]])
            rest = [chunk[cut + 1 :]] if cut + 1 < len(chunk) else []
    if rest:
        yield b"".join(rest)


def _decompressed(path: Path, stream: IO[bytes]) -> Iterator[bytes]:
    try:
        if path.name.endswith(".gz"):
            with igzip.open(stream) as plain:  # type: ignore[no-untyped-call]
                while chunk := plain.read(BLOCK):
                    yield chunk
        elif path.name.endswith(ZSTD):
            yield from _zstandard(stream)
        else:
            while chunk := stream.read(BLOCK):
                yield chunk
    except DAMAGED as error:
        raise LoomError(
            f"{path} was cut short or is damaged ({error}). Get it again from where it came."
        ) from None


def _zstandard(stream: IO[bytes]) -> Iterator[bytes]:
    """Frame after frame; unlike the library's reader, a frame that does not end is an error."""
    import zstandard

    held: list[bytes] = []
    size = 0
    frame: Any = None
    try:
        while chunk := stream.read(1 << 20):
            while chunk:
                frame = frame or zstandard.ZstdDecompressor(max_window_size=WINDOW).decompressobj()
                plain = frame.decompress(chunk)
                held.append(plain)
                size += len(plain)
                chunk = b""
                if frame.eof:
                    chunk, frame = frame.unused_data, None
                if size >= BLOCK:
                    yield b"".join(held)
                    held, size = [], 0
    except zstandard.ZstdError as error:
        raise EOFError(str(error)) from None
    if held:
        yield b"".join(held)
    if frame is not None:
        raise EOFError("it ends in the middle of a zstandard frame")
