"""A root that several collections fill, one after another: `documents/<source>/`, each from its raw files.

What became of a raw file is a line of `collected/<source>.jsonl`, and the root's manifest is put together
from all of them: a second collection adds to it, a changed raw file is made anew alone, and whoever reads
the root notices either.
"""

from __future__ import annotations

import glob
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson

from loom.artifact import (
    MANIFEST,
    Artifact,
    Input,
    Output,
    canonical_json,
    commit,
    describe,
    digest_json,
    discard,
    load,
    refuse_other,
)
from loom.corpus import pieces, remote
from loom.corpus.documents import relative_name, write_lines
from loom.corpus.tag import REJECTED, remove_empty
from loom.engine import Engine, Finished, LocalEngine, Operation, Task, clear_receipts, sum_counters
from loom.errors import LoomError

COLLECTED = "collected"
PACKED = (".gz", ".zst", ".zstd", ".bz2")


@dataclass(frozen=True)
class Raw:
    """A raw file: where it is, what its documents' file is called, its identity, its bytes."""

    path: Path
    name: str
    digest: str
    bytes: int

    @property
    def place(self) -> str:
        return remote.place(self.path)


@dataclass(frozen=True)
class Record:
    """What one raw file became, and by which recipe."""

    name: str
    input: Input
    also: tuple[Input, ...]
    recipe: Mapping[str, Any]
    outputs: tuple[Output, ...]
    counters: Mapping[str, Any]

    def whole(self, out: Path) -> bool:
        """Whether every output is in place with its size."""
        for item in self.outputs:
            try:
                if (out / item.path).stat().st_size != item.bytes:
                    return False
            except OSError:
                return False
        return True


@dataclass(frozen=True)
class Collection:
    """Raw files, the source they become, the recipe they are made by, and the operation that makes them.

    `also` are other files the work depends on. Files above `largest` bytes are read in pieces, where `cut`
    says that a kind can be; a task has the parameter `path` and writes documents, then rejected rows.
    """

    source: str
    files: tuple[Raw, ...]
    recipe: Mapping[str, Any]
    operation: Operation
    also: tuple[Input, ...] = ()
    suffix: str = ".jsonl.zst"
    cut: bool = False
    largest: int = pieces.LARGE


def find(patterns: Sequence[str], suffixes: tuple[str, ...], what: str) -> list[Raw]:
    """The raw files of globs, folders and addresses, in order; below a folder those with one of `suffixes`.

    A file is called what it is below its glob's fixed prefix; files that this does not tell apart, what they
    are below the folder they share. Raises `LoomError` where nothing matches.
    """
    found: dict[Path, str] = {}
    for pattern in patterns:
        if (url := remote.address(pattern)) is not None:
            names = remote.find(url, suffixes)
        elif os.path.isdir(pattern):
            names = sorted(
                str(path)
                for path in Path(pattern).rglob("*")
                if path.name.endswith(suffixes) and not path.name.startswith(".") and path.is_file()
            )
        else:
            names = sorted(name for name in glob.glob(pattern, recursive=True) if os.path.isfile(name))
        if not names:
            raise LoomError(
                f"No {what} ({', '.join(suffixes)}) matches {pattern!r}. Check the path and its glob."
            )
        for path in map(Path, names):
            alone = url or pattern
            found.setdefault(path, path.name if names == [alone] else relative_name(path, [pattern]))
    if not found:
        raise LoomError(f"No {what} was named: give at least one file, folder, glob or address.")
    paths = list(found)
    names = [stem(name, suffixes) for name in found.values()]
    if len(set(names)) < len(names):
        shared = os.path.commonpath([path.parent for path in paths])
        names = [stem(path.relative_to(shared).as_posix(), suffixes) for path in paths]
    if len(set(names)) < len(names):
        double = next(name for name in names if names.count(name) > 1)
        raise LoomError(f"Two files would both become {double!r}; give them different names.")
    for path, name in zip(paths, names, strict=True):
        if name.rpartition("/")[2].startswith("."):
            raise LoomError(f"{path} is a hidden file, and so would be its documents: give it another name.")
    return [Raw(path, name, *_identity(path)) for path, name in zip(paths, names, strict=True)]


def stem(name: str, suffixes: tuple[str, ...]) -> str:
    """A raw file's name without what says how it is packed and what is in it."""
    for suffix in sorted(suffixes, key=len, reverse=True):
        if name.endswith(suffix):
            return name.removesuffix(suffix)
    packed = next((suffix for suffix in PACKED if name.endswith(suffix)), "")
    return name.removesuffix(packed)


def _identity(path: Path) -> tuple[str, int]:
    if (url := remote.address(path)) is not None:
        size, digest = remote.identity(url)
        return digest, size
    status = path.stat()
    return digest_json([path.name, status.st_size, status.st_mtime_ns]), status.st_size


def collect(
    collection: Collection,
    out: Path,
    engine: Engine | None,
    nothing: Callable[[Mapping[str, Any]], str],
) -> Artifact:
    """Make `documents/<source>/` of the files that are not yet there, and write the root's manifest anew.

    Raises `LoomError` where `out` holds something else, where a file of the same name was made from another
    raw file, and with `nothing(counters)` where no document came of these files.
    """
    started = time.monotonic()
    refuse_other(out, "documents")
    if (out / MANIFEST).exists() and not (out / COLLECTED).is_dir():
        raise LoomError(
            f"{out} already holds documents of another making (`loom collect python`, `loom curate`): name another "
            f"folder. A recipe's sources may name `documents` of several."
        )
    held = read_records(out)
    mine = held.setdefault(collection.source, {})
    _refuse_clash(collection, mine, out)
    waiting = [file for file in collection.files if not _is_made(collection, mine.get(file.place), file)]
    if any(file.place in mine for file in waiting):
        discard(out, "documents")  # what it says of them is about to be wrong
    made = _make(collection, waiting, out, engine or LocalEngine())
    counters = sum_counters(
        [made[f.place].counters if f.place in made else mine[f.place].counters for f in collection.files]
    )
    if not counters["documents"]:
        raise LoomError(nothing(counters))
    for place, record in made.items():
        for item in mine[place].outputs if place in mine else ():
            if item.path not in {kept.path for kept in record.outputs}:
                (out / item.path).unlink(missing_ok=True)
        mine[place] = record
    artifact = _commit(held, out, collection.source if made else None, started)
    clear_receipts(out)
    remove_empty(out / REJECTED)
    return artifact


def _refuse_clash(collection: Collection, mine: Mapping[str, Record], out: Path) -> None:
    others = {record.name: place for place, record in mine.items()}
    for file in collection.files:
        if others.get(file.name, file.place) != file.place:
            raise LoomError(
                f"{out / 'documents' / collection.source / file.name}{collection.suffix} was made from "
                f"{others[file.name]}, and {file.place} would take its place. Give both in one command, name another "
                f"--source, or remove the file first."
            )


def _is_made(collection: Collection, record: Record | None, file: Raw) -> bool:
    return (
        record is not None
        and record.input.digest == file.digest
        and record.also == collection.also
        and canonical_json(record.recipe) == canonical_json(collection.recipe)
    )


def _make(collection: Collection, files: Sequence[Raw], out: Path, engine: Engine) -> dict[str, Record]:
    tasks, owners = [], []
    for file in files:
        parts = pieces.split(file.path, file.bytes, collection.largest) if collection.cut else [file.path]
        for number, part in enumerate(parts):
            name = f"{collection.source}/{file.name}" + (f".{number:04d}" if len(parts) > 1 else "")
            digest = digest_json([file.digest, part.name]) if len(parts) > 1 else file.digest
            tasks.append(
                Task(
                    (Input(remote.place(part), digest), *collection.also),
                    (f"documents/{name}{collection.suffix}", f"{REJECTED}/{name}.jsonl"),
                    {"path": str(part)},
                )
            )
            owners.append(file)
    done = engine.run(collection.operation, tasks, out, collection.operation.name)
    by_file: dict[str, list[Finished]] = {}
    for file, item in zip(owners, done, strict=True):
        by_file.setdefault(file.place, []).append(item)
    return {
        file.place: Record(
            file.name,
            Input(file.place, file.digest),
            collection.also,
            collection.recipe,
            tuple(item for part in by_file[file.place] for item in _kept(part, out)),
            sum_counters([part.counters for part in by_file[file.place]]),
        )
        for file in files
    }


def _kept(done: Finished, out: Path) -> list[Output]:
    """A task's outputs without a file of rejected rows that holds none."""
    kept = []
    for item in done.outputs:
        if item.rows or item.path.startswith("documents/"):
            kept.append(item)
        else:
            (out / item.path).unlink(missing_ok=True)
    return kept


def read_records(out: Path) -> dict[str, dict[str, Record]]:
    """Source by source what each raw file became, by the raw file's place; without what is no longer whole."""
    found: dict[str, dict[str, Record]] = {}
    for path in sorted((out / COLLECTED).glob("*.jsonl")):
        records = found.setdefault(path.name.removesuffix(".jsonl"), {})
        for line in path.read_bytes().splitlines():
            row = orjson.loads(line)
            record = Record(
                row["name"],
                Input(**row["input"]),
                tuple(Input(**item) for item in row["also"]),
                row["recipe"],
                tuple(Output(**item) for item in row["outputs"]),
                row["counters"],
            )
            if record.whole(out):
                records[record.input.path] = record
    return found


def _commit(
    held: Mapping[str, Mapping[str, Record]], out: Path, changed: str | None, started: float
) -> Artifact:
    """Write the changed source's records, then the manifest of all; what is already there is left alone."""
    if changed is not None:
        with write_lines(out / COLLECTED / f"{changed}.jsonl") as stream:
            for record in sorted(held[changed].values(), key=lambda record: record.name):
                stream.write(canonical_json(asdict(record)) + b"\n")
    held = {source: records for source, records in sorted(held.items()) if records}
    every = [record for records in held.values() for record in records.values()]
    counters: dict[str, Any] = sum_counters([record.counters for record in every])
    counters["sources"] = {
        source: sum_counters([record.counters for record in records.values()])
        for source, records in held.items()
    }
    recipes = {
        source: [orjson.loads(text) for text in sorted({canonical_json(r.recipe) for r in records.values()})]
        for source, records in held.items()
    }
    inputs = {item.path: item for record in every for item in (record.input, *record.also)}
    names = [f"{COLLECTED}/{source}.jsonl" for source in held]
    rows = {name: len(records) for name, records in zip(names, held.values(), strict=True)}
    outputs = [item for record in every for item in record.outputs] + list(describe(out, names, rows))
    recipe = {"collected": recipes}
    if changed is None and (out / MANIFEST).exists():
        before = load(out)
        same = sorted(before.outputs, key=lambda item: item.path) == sorted(outputs, key=lambda i: i.path)
        if same and canonical_json(before.recipe) == canonical_json(recipe):
            return before
    discard(out, "documents")  # `run.json` names the manifest, and is written before it
    return commit(
        out,
        "documents",
        recipe=recipe,
        inputs=list(inputs.values()),
        outputs=outputs,
        counters=counters,
        started=started,
    )
