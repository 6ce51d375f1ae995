"""Rows of evaluation data: which file, which split, and what is wrong with a row that cannot be used."""

from __future__ import annotations

import gzip
import io
import random
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, TypeVar, cast

import orjson
import zstandard

from loom.artifact import digest_file, digest_json
from loom.errors import LoomError
from loom.tasks.hub import shards
from loom.tasks.item import BadRow, Item, Task, item_of

SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet", ".arrow")
ORDER = ("validation", "val", "test", "dev", "train")  # what is taken where the protocol's split is absent
EXAMPLES = ("dev", "train")  # where worked examples are taken from
DAMAGED = (
    OSError,
    EOFError,
    zlib.error,
    zstandard.ZstdError,
)  # what a file that is cut short or overwritten gives
SEED = 1234  # of every sample of rows, as in Catwalk and OLMo's own evaluation
Drawn = TypeVar("Drawn")


class NotThere(LoomError):
    """Rows that nothing in the data folder holds."""


@dataclass(frozen=True)
class Found:
    """A task's file, or its shards in order: the split they hold ("" for files without one), their digests."""

    paths: tuple[Path, ...]
    split: str
    digests: tuple[str, ...]

    @property
    def path(self) -> Path:
        """The first file: what a message names."""
        return self.paths[0]

    @property
    def digest(self) -> str:
        return self.digests[0] if len(self.digests) == 1 else digest_json(list(self.digests))


Place = tuple[Path, str]
"""A folder, and the source whose layouts may be in it."""


@dataclass(frozen=True)
class Loaded:
    """A task's items. `bad` are the rows left out and why, by file and line; `rows` is the file's length."""

    items: list[Item]
    found: tuple[Found, ...]
    bad: Mapping[str, str]
    rows: int
    examples: tuple[Found, ...] = ()
    """The files of the worked examples that were shown."""


@dataclass(frozen=True)
class Part:
    """A task's rows, or a subject's, and where the worked examples lie: `places` are folders with the source whose
    layouts may be in them."""

    found: Found
    subject: str
    names: tuple[str, ...]
    places: tuple[Place, ...]


def find(
    folder: Path,
    names: Sequence[str],
    splits: Sequence[str],
    source: str = "",
    only: bool = False,
    also: Sequence[Place] = (),
    fetched: bool = True,
) -> Found:
    """The rows of the first split there is: `<name>.<split>.jsonl` (or .gz, .zst, Parquet, Arrow), or the Hub's
    own layouts of `source` (see `loom.tasks.hub`).

    The protocol's splits come first, then, unless `only` they will do, any other, then `<name>.jsonl`. `also` are more
    folders to look in, each with the source whose layouts may be there; `fetched` says whether --fetch can get the rows.
    Raises `NotThere` that names the file and where its rows come from.
    """
    for split in splits if only else [*splits, *(name for name in ORDER if name not in splits), ""]:
        if found := _first(names, split, ((folder, source), *also)):
            return found
    wanted = folder / (f"{names[0]}.{splits[0]}.jsonl" if splits else f"{names[0]}.jsonl")
    where = (
        f" It holds the rows of {source} on the Hugging Face Hub, one JSON object a line" if source else ""
    )
    gets = "; with a network, --fetch gets it" if fetched else "; --fetch does not get it"
    fetch = f"{where}{gets}." if source else ""
    raise NotThere(f"There is no {wanted} (.gz will do).{fetch} Name the folder that holds it with --data.")


def there(folder: Path, names: Sequence[str], split: str, source: str) -> list[Path]:
    """The files of one split, none if it is not there. Raises `LoomError` where a shard is missing."""
    for name in names:
        for suffix in SUFFIXES:
            path = folder / (f"{name}.{split}{suffix}" if split else f"{name}{suffix}")
            if path.is_file():
                return [path]
    return shards(folder, names, split, source) if split else []


def _first(names: Sequence[str], split: str, places: Sequence[Place]) -> Found | None:
    """The rows of a split in the first of the places that has them."""
    for folder, source in places:
        if found := there(folder, names, split, source):
            return Found(tuple(found), split, tuple(map(digest_file, found)))
    return None


def load(
    task: Task,
    folder: Path,
    *,
    limit: int | None = None,
    sample: int | None = None,
    skip_bad: bool = False,
    split: str | None = None,
) -> Loaded:
    """A task's rows as items, in the order of the file.

    `sample` draws that many rows with a fixed seed (after the protocol's own sample), from all subjects together;
    `limit` keeps the first rows of what is left, per subject. Raises `LoomError` for rows that cannot be used, unless
    `skip_bad`: then they are left out and counted.
    """
    splits = (split,) if split else task.splits
    parts = parts_of(task, folder, splits, split is not None)
    items: list[Item] = []
    bad: dict[str, str] = {}
    files = [list(numbered(*part.found.paths)) for part in parts]
    for part, rows in zip(parts, files, strict=True):
        if not rows:
            raise LoomError(f"{part.found.path} has no rows. Fetch or make the file again, or take it away.")
    shown: list[Found] = []
    for part, rows, kept in zip(parts, files, _kept(task, list(map(len, files)), sample, limit), strict=True):
        header, examples = _header(task, part)
        shown += examples
        for index in kept:
            place, row = rows[index]
            try:
                items.append(_with_header(item_of(task, index, row), header, part.subject))
            except BadRow as error:
                bad[Path(place).relative_to(folder).as_posix()] = str(error)
    if bad and not skip_bad:
        first, why = next(iter(bad.items()))
        others = f" (and {len(bad) - 1:,} more rows like it)" if len(bad) > 1 else ""
        raise LoomError(
            f"{folder / first}: this row cannot be scored: {why}{others}. Mend the file, or leave such rows "
            f"out with --skip-bad; the results then say how many."
        )
    if not items:
        raise LoomError(f"{parts[0].found.path} has no rows that {task.name} can be evaluated on.")
    return Loaded(items, tuple(part.found for part in parts), bad, sum(map(len, files)), tuple(shown))


def parts_of(task: Task, folder: Path, splits: Sequence[str], only: bool) -> list[Part]:
    """The task's rows, or those of the subjects there are; if there is none, the error for the first."""
    if not task.subjects:
        found = find(folder, task.files, splits, task.source, only)
        return [Part(found, "", task.files, ((folder, task.source),))]
    where = {subject: places(task, folder, subject) for subject in task.subjects}

    def having(*some: str) -> list[str]:
        """The subjects of which one of these splits is there."""
        return [
            subject
            for subject in task.subjects
            if any(
                there(place, (subject,), split, source) for split in some for place, source in where[subject]
            )
        ]

    # Where some have the protocol's rows, the worked examples of the others are none.
    present = having(*splits) or ([] if only else having(*ORDER, ""))
    parts = []
    for subject in present or task.subjects[:1]:
        (own, source), *also = where[subject]
        found = find(own, (subject,), splits, source, only, also)
        parts.append(Part(found, subject, (subject,), where[subject]))
    return parts


def places(task: Task, folder: Path, subject: str) -> tuple[Place, ...]:
    """Where a subject's files may be: in the task's own folder, or in the Hub's caches beside it."""
    source = f"{task.source}:{subject}" if task.source else ""
    return (folder / task.files[0], task.source), (folder, source)


def _header(task: Task, part: Part) -> tuple[str, list[Found]]:
    """What stands before every question of a subject: the description and the worked examples; and the file that they
    are from."""
    description = task.description(part.subject) if task.description else ""
    if not task.shots:
        return description, []
    found = part.found
    candidates = (_first(part.names, split, part.places) for split in EXAMPLES)
    other = next((one for one in candidates if one is not None and one.paths != found.paths), None)
    rows = list(numbered(*other.paths)) if other else []
    if other is None or len(rows) < task.shots:
        what = f"{other.path} has {len(rows)} rows" if other else f"there is no {part.names[0]}.dev.jsonl"
        raise LoomError(f"{task.name} shows {task.shots} examples, but beside {found.path} {what}.")
    examples = []
    for index, (place, row) in enumerate(rows[: task.shots]):
        try:
            examples.append(item_of(task, index, row))
        except BadRow as error:
            raise LoomError(
                f"{place}: this worked example cannot be shown: {error}. Mend the file: it stands before every "
                f"question of {task.name}."
            ) from None
    shown = "".join("".join(item.pairs[item.golds[0]]) + "\n\n" for item in examples)
    return description + shown, [other]


def _with_header(item: Item, header: str, subject: str) -> Item:
    if not header and not subject:
        return item
    pairs = tuple((header + context, continuation) for context, continuation in item.pairs)
    return replace(item, pairs=pairs, header=header, group=subject)


def _kept(task: Task, sizes: Sequence[int], sample: int | None, limit: int | None) -> list[list[int]]:
    """By file, the indices of the rows that are kept, ascending: the protocol's own sample from each file, `sample`
    of those of all files together, the first `limit` of what each has left.

    `random.Random(1234).sample` of the rows is Catwalk's choice of documents.
    """
    own = [_drawn(list(range(size)), task.sample if size > task.sample_above else None) for size in sizes]
    chosen = _drawn([(file, index) for file, kept in enumerate(own) for index in kept], sample)
    of: list[list[int]] = [[] for _ in sizes]
    for file, index in chosen:
        of[file].append(index)
    return [kept[:limit] for kept in of]


def _drawn(rows: list[Drawn], size: int | None) -> list[Drawn]:
    """`size` of the rows in their order, with a fixed seed; all of them where there are no more."""
    if size is None or size >= len(rows):
        return rows
    return [rows[place] for place in sorted(random.Random(SEED).sample(range(len(rows)), size))]


def read_rows(*paths: Path) -> Iterator[dict[str, Any]]:
    """Rows of JSON lines (gz, zst), Parquet or Arrow, file after file. Raises `LoomError` naming file and line."""
    return (row for _, row in numbered(*paths))


def numbered(*paths: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The same with each row's place, file:line (or row) from 1."""
    for path in paths:
        columns = path.suffix in (".parquet", ".arrow")
        for number, row in enumerate(_columns(path), 1) if columns else _lines(path):
            yield f"{path}:{number}", row


def _columns(path: Path) -> list[dict[str, Any]]:
    """Rows of a Parquet or Arrow file (a stream, as `datasets` caches it, or a file)."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if path.suffix == ".parquet":
            table = pq.read_table(path)
        else:
            with pa.memory_map(str(path)) as source:
                stream = source.read(6) != b"ARROW1"
                source.seek(0)
                table = (pa.ipc.open_stream if stream else pa.ipc.open_file)(source).read_all()
        return cast(list[dict[str, Any]], table.to_pylist())
    except (OSError, ValueError, pa.ArrowException) as error:
        raise LoomError(f"{path} cannot be read: {error}. Fetch or make the file again.") from None


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    number = 1
    try:
        with open_lines(path) as stream:
            for line in stream:
                if line.strip():
                    row = orjson.loads(line)
                    if not isinstance(row, dict):
                        raise ValueError("not a JSON object")
                    yield number, row
                number += 1
    except (*DAMAGED, ValueError) as error:
        raise LoomError(f"{path}:{number} cannot be read: {error}. Fetch or make the file again.") from None


def open_lines(path: Path) -> IO[bytes]:
    """A file of lines, decompressed if its name says gz or zst."""
    if path.suffix == ".gz":
        return cast(IO[bytes], gzip.open(path, "rb"))
    if path.suffix == ".zst":
        return io.BufferedReader(zstandard.open(path, "rb"))
    return open(path, "rb")
