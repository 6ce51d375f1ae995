"""Run taggers over documents: attributes beside them, one pass over the text for all of them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loom.artifact import Artifact, Input, Output, commit, digest_json, discard, finished
from loom.corpus import attributes, documents, taggers
from loom.corpus.attributes import Spans, key_name
from loom.corpus.documents import Batch, Rejected, find_files, relative_name, write_lines
from loom.corpus.taggers import Tagger, Texts
from loom.engine import Done, Engine, Finished, LocalEngine, Operation, Task, clear_receipts, sum_counters
from loom.errors import LoomError

REJECTED = "rejected"


@dataclass(frozen=True)
class File:
    """A document file: where it is, what it is called below the documents' root, its identity."""

    path: Path
    name: str
    digest: str

    @property
    def stem(self) -> str:
        """The name without `.jsonl.zst` and the like."""
        for suffix in sorted(documents.SUFFIXES, key=len, reverse=True):
            if self.name.endswith(suffix):
                return self.name.removesuffix(suffix)
        return self.name


def find(patterns: Sequence[str]) -> list[File]:
    """The document files of globs, with a raw file's identity: path, size and time."""
    found = []
    for path in find_files(patterns):
        status = path.stat()
        name = relative_name(path, patterns)
        found.append(File(path, name, digest_json([name, status.st_size, status.st_mtime_ns])))
    double = {file.name for file in found}
    if len(double) < len(found):
        raise LoomError(
            "Two document files would have the same name below the output folder; give globs with one root."
        )
    return found


@dataclass(frozen=True)
class Tag:
    """Which taggers, the experiment they are written under (by default each its own), the format."""

    documents: tuple[str, ...]
    taggers: tuple[str, ...]
    experiment: str | None = None
    format: str = "jsonl"
    modules: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.format not in ("jsonl", "parquet"):
            raise ValueError(f"format is {self.format!r}; write jsonl or parquet")
        if not self.taggers:
            raise ValueError("no tagger was named; `loom list taggers` shows what there is")


def prepare(settings: Mapping[str, Any]) -> dict[str, Tagger]:
    """Make a worker's taggers, models loaded once."""
    taggers.load_families(settings["modules"])
    return {name: taggers.get(name) for name in settings["taggers"]}


def sidecar_name(file: File, format: str) -> str:
    """A sidecar's name below `attributes/<experiment>/`: the document file's, in its own format."""
    if format == "parquet":
        return f"{file.stem}.parquet"
    return file.name if file.name.endswith((".gz", ".zst")) else f"{file.stem}.jsonl.gz"


def tag_batches(
    batches: Iterator[Batch], made: Mapping[str, Tagger]
) -> Iterator[tuple[Batch, dict[str, Mapping[str, Spans]]]]:
    """Every batch with the spans of every tagger."""
    for batch in batches:
        texts = Texts(batch)
        yield batch, {name: tagger(texts) for name, tagger in made.items()}


def run_task(state: Mapping[str, Tagger], task: Task, out: Path) -> Done:
    """Tag one document file; `task.outputs` are one sidecar a tagger, then the rejected rows."""
    names = task.parameters["taggers"]
    rows = size = 0
    found: dict[str, list[Any]] = {name: [] for name in names}
    rejected: list[Rejected] = []
    for batch, spans in tag_batches(documents.read(Path(task.parameters["path"])), state):
        ids = batch.ids
        sources = batch.table.column("source").to_pylist()
        rejected += batch.rejected
        rows += len(batch)
        size += int(batch.utf8()[1][-1])
        for name in names:
            experiment = task.parameters["experiment"] or name
            keyed = {key_name(experiment, name, key): value for key, value in spans[name].items()}
            found[name].append((ids, sources, keyed))
    counts = {}
    for output, members in sidecars(task).items():
        counts[output] = _write(out / output, [found[name] for name in members])
    with write_lines(out / task.outputs[-1]) as stream:
        stream.writelines(item.json() + b"\n" for item in rejected)
    counts[task.outputs[-1]] = len(rejected)
    return Done(counts, {"documents": rows, "bytes": size, "rejected": len(rejected)})


def sidecars(task: Task) -> dict[str, list[str]]:
    """Sidecar by sidecar the taggers that share it: all of them under one experiment, else one each."""
    names = task.parameters["taggers"]
    if task.parameters["experiment"]:
        return {task.outputs[0]: list(names)}
    return {output: [name] for name, output in zip(names, task.outputs[:-1], strict=True)}


def _write(path: Path, parts: Sequence[Sequence[tuple[Any, Any, Mapping[str, Spans]]]]) -> int:
    batches = []
    for together in zip(*parts, strict=True):
        merged: dict[str, Spans] = {}
        for _, _, keyed in together:
            merged.update(keyed)
        batches.append((together[0][0], together[0][1], merged))
    if path.name.endswith(".parquet"):
        return attributes.write_parquet(path, ((ids, spans) for ids, _, spans in batches))
    return attributes.write_jsonl(path, batches)


def operation(names: Sequence[str], modules: Sequence[str] = ()) -> Operation:
    return Operation(
        "tag", 1, run_task, {"taggers": list(names), "modules": list(modules)}, prepare, threads=True
    )


def task_of(file: File, names: Sequence[str], format: str, experiment: str | None = None) -> Task:
    folders = [experiment] if experiment else names
    outputs = [f"attributes/{folder}/{sidecar_name(file, format)}" for folder in folders]
    outputs.append(f"{REJECTED}/{file.stem}.jsonl")
    return Task(
        (Input(str(file.path), file.digest),),
        tuple(outputs),
        {"path": str(file.path), "taggers": list(names), "experiment": experiment},
    )


def tag(recipe: Tag, out: Path | None = None, engine: Engine | None = None) -> list[Artifact]:
    """Write `attributes/<experiment>/` below `out` (by default the documents' root), an artifact each.

    Raises `LoomError` for a tagger that is not there, or where no file matches.
    """
    started = time.monotonic()
    taggers.load_families(recipe.modules)
    for name in recipe.taggers:
        taggers.get(name)
    files = find(recipe.documents)
    root = out or root_of(files)
    inputs = [Input(str(file.path.resolve()), file.digest) for file in files]
    groups = {recipe.experiment: recipe.taggers} if recipe.experiment else {n: (n,) for n in recipe.taggers}
    artifacts: dict[str, Artifact] = {}
    for name, members in groups.items():
        done = finished(root / "attributes" / name, "attributes", _plain(recipe, members), inputs)
        if done is not None:
            artifacts[name] = done
    missing = [member for name, members in groups.items() if name not in artifacts for member in members]
    if missing:
        for name in groups:
            if name not in artifacts:
                discard(root / "attributes" / name)
        made = _run(recipe, missing, files, root, engine or LocalEngine())
        for name in groups:
            if name not in artifacts:
                prefix = f"attributes/{name}/"
                outputs = [
                    Output(item.path.removeprefix(prefix), item.bytes, item.rows, item.digest)
                    for done in made
                    for item in done.outputs
                    if item.path.startswith(prefix)
                ]
                artifacts[name] = commit(
                    root / "attributes" / name,
                    "attributes",
                    recipe=_plain(recipe, groups[name]),
                    inputs=inputs,
                    outputs=outputs,
                    counters=sum_counters([done.counters for done in made]),
                    started=started,
                )
        clear_receipts(root)
    return list(artifacts.values())


def _plain(recipe: Tag, members: Sequence[str]) -> dict[str, Any]:
    return {"taggers": list(members), "experiment": recipe.experiment, "format": recipe.format}


def _run(
    recipe: Tag, names: Sequence[str], files: Sequence[File], root: Path, engine: Engine
) -> list[Finished]:
    tasks = [task_of(file, names, recipe.format, recipe.experiment) for file in files]
    made = engine.run(operation(names, recipe.modules), tasks, root, f"tag ({', '.join(names)})")
    for done in made:
        for item in done.outputs:
            if item.path.startswith(f"{REJECTED}/") and item.rows == 0:
                (root / item.path).unlink(missing_ok=True)
    remove_empty(root / REJECTED)
    return made


def root_of(files: Sequence[File]) -> Path:
    """The folder that holds `documents/`, or where the files' relative names begin."""
    path, name = files[0].path, files[0].name
    root = Path(*path.parts[: len(path.parts) - len(Path(name).parts)])
    return root.parent if root.name == "documents" else root


def remove_empty(folder: Path) -> None:
    """Remove folders that hold nothing, from the leaves up to `folder` itself."""
    if folder.is_dir():
        for path in sorted(folder.rglob("*"), reverse=True):
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()
        if not any(folder.iterdir()):
            folder.rmdir()
