"""Rows of evaluation data: which file, which split, and what is wrong with a row that cannot be used."""

from __future__ import annotations

import gzip
import io
import random
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, cast

import orjson
import zstandard

from loom.artifact import digest_file, digest_json
from loom.errors import LoomError
from loom.tasks.hub import shards
from loom.tasks.item import BadRow, Item, Task, check

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


@dataclass(frozen=True)
class Loaded:
    """A task's items. `bad` are the rows left out and why, by row index; `rows` is the file's length."""

    items: list[Item]
    found: tuple[Found, ...]
    bad: Mapping[str, str]
    rows: int


def find(
    folder: Path, names: Sequence[str], splits: Sequence[str], source: str = "", only: bool = False
) -> Found:
    """The rows of the first split there is: `<name>.<split>.jsonl` (or .gz, .zst, Parquet, Arrow), or the Hub's
    own layouts of `source` (see `loom.tasks.hub`).

    The protocol's splits come first, then, unless `only` they will do, any other, then `<name>.jsonl`. Raises
    `LoomError` that names the file and where its rows come from.
    """
    for split in splits if only else [*splits, *(name for name in ORDER if name not in splits), ""]:
        if found := there(folder, names, split, source):
            return Found(tuple(found), split, tuple(map(digest_file, found)))
    wanted = folder / (f"{names[0]}.{splits[0]}.jsonl" if splits else f"{names[0]}.jsonl")
    where = (
        f" It holds the rows of {source} on the Hugging Face Hub, one JSON object a line" if source else ""
    )
    fetch = f"{where}; with a network, --fetch gets it." if source else ""
    raise LoomError(f"There is no {wanted} (.gz will do).{fetch} Name the folder that holds it with --data.")


def there(folder: Path, names: Sequence[str], split: str, source: str) -> list[Path]:
    """The files of one split, none if it is not there. Raises `LoomError` where a shard is missing."""
    for name in names:
        for suffix in SUFFIXES:
            path = folder / (f"{name}.{split}{suffix}" if split else f"{name}{suffix}")
            if path.is_file():
                return [path]
    return shards(folder, names, split, source) if split else []


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

    `sample` draws that many rows with a fixed seed (after the protocol's own sample), `limit` keeps the
    first rows of what is left, per subject. Raises `LoomError` for rows that cannot be used, unless
    `skip_bad`: then they are left out and counted.
    """
    splits = (split,) if split else task.splits
    if not task.subjects:
        parts = [(find(folder, task.files, splits, task.source, split is not None), "")]
    else:
        parts = list(_subjects(task, folder / task.files[0], splits, split is not None))
    items: list[Item] = []
    bad: dict[str, str] = {}
    total = 0
    for found, subject in parts:
        rows = list(read_rows(*found.paths))
        total += len(rows)
        header = _header(task, folder, found, subject)
        own = task.sample if len(rows) > task.sample_above else None
        for index in _keep(len(rows), (own, sample), limit):
            try:
                items.append(_with_header(check(task.render(index, rows[index])), header, subject))
            except (BadRow, KeyError, ValueError, TypeError, IndexError, AttributeError) as error:
                bad[f"{found.path.name}:{index + 1}"] = _why(error)
    where = parts[0][0].path.parent
    if bad and not skip_bad:
        first, why = next(iter(bad.items()))
        others = f" (and {len(bad) - 1:,} more rows like it)" if len(bad) > 1 else ""
        raise LoomError(
            f"{where / first}: this row cannot be scored: {why}{others}. Mend the file, or leave such rows "
            f"out with --skip-bad; the results then say how many."
        )
    if not items:
        raise LoomError(f"{parts[0][0].path} has no rows that {task.name} can be evaluated on.")
    return Loaded(items, tuple(found for found, _ in parts), bad, total)


def _subjects(task: Task, folder: Path, splits: Sequence[str], only: bool) -> Iterator[tuple[Found, str]]:
    """The files of the subjects there are; if there is none, the error for the first."""
    there = {entry.name.split(".")[0] for entry in folder.iterdir()} if folder.is_dir() else set()
    for subject in [name for name in task.subjects if name in there] or task.subjects[:1]:
        yield find(folder, (subject,), splits, task.source, only), subject


def _header(task: Task, folder: Path, found: Found, subject: str) -> str:
    """What stands before every question of a subject: the description and the worked examples."""
    description = task.description(subject) if task.description else ""
    if not task.shots:
        return description
    names = (subject,) if subject else task.files
    root = folder / task.files[0] if subject else folder
    other = next(
        (other for name in EXAMPLES if (other := _other(root, names, name, task.source, found))), None
    )
    rows = list(read_rows(*other.paths)) if other else []
    if len(rows) < task.shots:
        what = f"{other.path} has {len(rows)} rows" if other else f"there is no {names[0]}.dev.jsonl"
        raise LoomError(f"{task.name} shows {task.shots} examples, but beside {found.path} {what}.")
    examples = [check(task.render(index, row)) for index, row in enumerate(rows[: task.shots])]
    return description + "".join("".join(item.pairs[item.golds[0]]) + "\n\n" for item in examples)


def _other(root: Path, names: Sequence[str], split: str, source: str, found: Found) -> Found | None:
    paths = there(root, names, split, source)
    if not paths or tuple(paths) == found.paths:
        return None
    return Found(tuple(paths), split, tuple(map(digest_file, paths)))


def _with_header(item: Item, header: str, subject: str) -> Item:
    if not header and not subject:
        return item
    pairs = tuple((header + context, continuation) for context, continuation in item.pairs)
    return replace(item, pairs=pairs, header=header, group=subject)


def _keep(count: int, sizes: Sequence[int | None], limit: int | None) -> list[int]:
    """Row indices that are kept, ascending: the first size drawn from all, the next from those.

    `random.Random(1234).sample` of the rows is Catwalk's choice of documents.
    """
    kept = list(range(count))
    for size in sizes:
        if size is not None and size < len(kept):
            kept = sorted(random.Random(SEED).sample(kept, size))
    return kept[:limit]


def _why(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"it has no field {error}"
    return str(error) or type(error).__name__


def read_rows(*paths: Path) -> Iterator[dict[str, Any]]:
    """Rows of JSON lines (gz, zst), Parquet or Arrow, file after file. Raises `LoomError` naming file and line."""
    for path in paths:
        if path.suffix in (".parquet", ".arrow"):
            yield from _columns(path)
        else:
            yield from _lines(path)


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


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    number = 1
    try:
        with open_lines(path) as stream:
            for line in stream:
                if line.strip():
                    row = orjson.loads(line)
                    if not isinstance(row, dict):
                        raise ValueError("not a JSON object")
                    yield row
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
