"""Run taggers over documents: attributes beside them, one pass over the text for all of them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from loom.artifact import (
    MANIFEST,
    Artifact,
    Input,
    Output,
    commit,
    digest_file,
    digest_json,
    discard,
    finished,
    load,
    refer,
    sweep,
)
from loom.console import console
from loom.corpus import attributes, documents, pieces, remote, taggers
from loom.corpus.attributes import Spans, key_name
from loom.corpus.batch import Batch
from loom.corpus.documents import find_files, relative_name, write_lines
from loom.corpus.taggers import Tagger, Texts
from loom.engine import Done, Engine, Finished, LocalEngine, Operation, Task, clear_work, sum_counters
from loom.errors import LoomError

REJECTED = "rejected"
PIECES = "pieces"  # work of large files, until their pieces are joined


@dataclass(frozen=True)
class File:
    """A document file: where it is, what it is called below the documents' root, its identity, its size."""

    path: Path
    name: str
    digest: str
    bytes: int = 0

    @property
    def stem(self) -> str:
        """The name without `.jsonl.zst` and the like."""
        for suffix in sorted(documents.SUFFIXES, key=len, reverse=True):
            if self.name.endswith(suffix):
                return self.name.removesuffix(suffix)
        return self.name


def find(patterns: Sequence[str]) -> list[File]:
    """The document files of globs, with a raw file's identity: path, size and time (or ETag)."""
    found = []
    for path in find_files(patterns):
        name = relative_name(path, patterns)
        if (url := remote.address(path)) is not None:
            size, digest = remote.identity(url)
        else:
            status = path.stat()
            size, digest = status.st_size, digest_json([name, status.st_size, status.st_mtime_ns])
        found.append(File(path, name, digest, size))
    double = {file.name for file in found}
    if len(double) < len(found):
        raise LoomError(
            "Two document files would have the same name below the output folder; give globs with one root."
        )
    return found


def of_source(source: str, files: Sequence[File], known: Mapping[Path, str]) -> list[File]:
    """Files called `<source>/<file>`; where that would not tell them apart, what they are below the source.

    A file that `known` lists has the digest it says. Raises `LoomError` for two of one name even so.
    """
    names = [file.path.name for file in files]
    if len(set(names)) < len(names):
        names = [file.name.removeprefix(f"{source}/") for file in files]
    if len(set(names)) < len(names):
        raise LoomError(f"The source {source!r} has two files of one name; give them different names.")
    return [
        replace(file, name=f"{source}/{name}", digest=known.get(file.path, file.digest))
        for file, name in zip(files, names, strict=True)
    ]


def listed(root: str | Path) -> dict[Path, str]:
    """The files that a folder of documents says are in it, with their digests; none without a manifest."""
    if not root or remote.address(root) is not None or not (Path(root) / MANIFEST).exists():
        return {}
    return {Path(root) / item.path: item.digest for item in load(Path(root), "documents").outputs}


def inputs_of(root: str | Path, files: Sequence[File], out: Path) -> list[Input]:
    """What an artifact at `out` is made from: the folder of documents `root`, and the files it does not list.

    Raises `LoomError` where a file that the folder lists is missing or not of its size.
    """
    known = listed(root)
    raw = [_raw(file) for file in files if _whole(file.path) not in known]
    if not known:
        return raw
    artifact = load(Path(root))
    artifact.verify()
    return [refer(artifact, out), *raw]


def _whole(path: Path) -> Path:
    piece = pieces.parse(path)
    return piece.path if piece else path


def _raw(file: File) -> Input:
    """A raw file as an input: by its content here, by the store's own version elsewhere and for a piece."""
    here = remote.address(file.path) is None and pieces.parse(file.path) is None
    return Input(remote.place(file.path), digest_file(file.path) if here else file.digest)


def in_pieces(file: File, largest: int) -> list[File]:
    """A file of more than `largest` bytes in pieces that can be read one by one, else itself alone."""
    cut = pieces.split(file.path, file.bytes, largest)
    if len(cut) == 1:
        if file.bytes > largest and not file.name.endswith(".parquet"):
            console.say(f"{file.name} cannot be cut (one zstd frame, or no zstd): one worker reads it")
        return [file]
    suffix = file.name.removeprefix(file.stem)
    return [
        File(path, f"{file.stem}.{index:04d}{suffix}", digest_json([file.digest, path.name]), file.bytes)
        for index, path in enumerate(cut)
    ]


@dataclass(frozen=True)
class Tag:
    """Which taggers, the experiment they are written under (by default each its own), the format.

    Files of more than `largest` bytes are read in pieces, by several workers where there are several.
    """

    documents: tuple[str, ...]
    taggers: tuple[str, ...]
    experiment: str | None = None
    format: str = "jsonl"
    modules: tuple[str, ...] = ()
    files: Mapping[str, str | tuple[str, ...]] = field(default_factory=dict)
    largest: int = pieces.LARGE

    def __post_init__(self) -> None:
        if self.format not in ("jsonl", "parquet"):
            raise ValueError(f"format is {self.format!r}; write jsonl or parquet")
        if not self.taggers:
            raise ValueError("no tagger was named; `loom list taggers` shows what there is")


def prepare(settings: Mapping[str, Any]) -> dict[str, Tagger]:
    """Make a worker's taggers, models loaded once."""
    taggers.load_families(settings["modules"])
    return {name: taggers.get(name, settings.get("files")) for name in settings["taggers"]}


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
    """Tag one document file; `task.outputs` are one sidecar a tagger, then files of the rows set aside."""
    experiment = task.parameters["experiment"]
    shared = sidecars(task)
    rows = size = rejected = 0
    with ExitStack() as stack:
        writers = [
            (stack.enter_context(attributes.writer(out / output)), members)
            for output, members in shared.items()
        ]
        asides = [stack.enter_context(write_lines(out / name)) for name in task.outputs if name not in shared]
        for batch, spans in tag_batches(documents.read(Path(task.parameters["path"])), state):
            for write, members in writers:
                keyed = {
                    key_name(experiment or name, name, key): value
                    for name in members
                    for key, value in spans[name].items()
                }
                write(batch.table.column("id"), batch.table.column("source"), keyed)
            for aside in asides:
                aside.writelines(item.json() + b"\n" for item in batch.rejected)
            rows += len(batch)
            size += int(batch.utf8()[1][-1])
            rejected += len(batch.rejected)
    counts = {**dict.fromkeys(task.outputs, rejected), **dict.fromkeys(shared, rows)}
    return Done(counts, {"documents": rows, "bytes": size, "rejected": rejected})


def sidecars(task: Task) -> dict[str, list[str]]:
    """Sidecar by sidecar the taggers that share it: all of them under one experiment, else one each."""
    names = task.parameters["taggers"]
    if task.parameters["experiment"]:
        return {task.outputs[0]: list(names)}
    return {output: [name] for name, output in zip(names, task.outputs, strict=False)}


def operation(
    names: Sequence[str], modules: Sequence[str] = (), files: taggers.Files | None = None
) -> Operation:
    """Tagging by `names`, from modules of one's own too, with the files (models, lists) that they read."""
    taggers.load_families(modules)
    settings: dict[str, Any] = {"taggers": list(names), "modules": list(modules)}
    settings |= {"module_digests": taggers.module_digests(modules)} if modules else {}
    if digests := taggers.digests(names, files or {}):
        settings |= {"files": {name: files[name] for name in digests}, "digests": digests}  # type: ignore[index]
    return Operation("tag", 1, run_task, settings, prepare, threads=True)


def task_of(
    file: File, names: Sequence[str], format: str, experiment: str | None = None, *, beside: bool = False
) -> Task:
    """What `run_task` does with a file; rows set aside lie in `rejected/`, or `beside` each of the sidecars."""
    folders = [f"attributes/{name}" for name in ([experiment] if experiment else names)]
    outputs = [f"{folder}/{sidecar_name(file, format)}" for folder in folders]
    aside = [f"{folder}/{REJECTED}" for folder in folders] if beside else [REJECTED]
    outputs += [f"{folder}/{file.stem}.jsonl" for folder in aside]
    return Task(
        (Input(str(file.path), file.digest),),
        tuple(outputs),
        {"path": str(file.path), "taggers": list(names), "experiment": experiment},
    )


def tag(recipe: Tag, out: Path | None = None, engine: Engine | None = None) -> list[Artifact]:
    """Write `attributes/<experiment>/` below `out` (by default the documents' root), an artifact each.

    An address as `out` gets what was made in a folder of the user's cache, uploaded once it is complete.
    Raises `LoomError` for a tagger that is not there, or where no file matches.
    """
    started = time.monotonic()
    taggers.load_families(recipe.modules)
    for name in recipe.taggers:
        taggers.get(name, recipe.files)
    files = find(recipe.documents)
    root = out or root_of(files)
    if (to := remote.address(root)) is not None:
        published = tag(recipe, remote.staging(to), engine)
        for artifact in published:
            remote.publish(artifact, f"{to}/attributes/{artifact.path.name}")
        return published
    inputs = [Input(remote.place(file.path), file.digest) for file in files]
    groups = {recipe.experiment: recipe.taggers} if recipe.experiment else {n: (n,) for n in recipe.taggers}
    artifacts: dict[str, Artifact] = {}
    for name, members in groups.items():
        done = finished(root / "attributes" / name, "attributes", _plain(recipe, members), inputs)
        if done is not None:
            artifacts[name] = done
    missing = [member for name, members in groups.items() if name not in artifacts for member in members]
    if missing:
        _refuse_taken(root, recipe, missing, files)
        for name in groups:
            if name not in artifacts:
                discard(root / "attributes" / name, "attributes")
        made = run_files(files, missing, recipe.format, root, engine or LocalEngine(), recipe)
        for name in groups:
            if name not in artifacts:
                prefix = f"attributes/{name}/"
                outputs = [
                    replace(item, path=item.path.removeprefix(prefix))
                    for item in kept(made, root, f"{prefix}{REJECTED}")
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
    clear_work(root, PIECES)
    return list(artifacts.values())


def _refuse_taken(root: Path, recipe: Tag, names: Sequence[str], files: Sequence[File]) -> None:
    """Raise `LoomError` where a file that would be written belongs to the finished folder `root`."""
    try:
        taken = {item.path for item in load(root).outputs}
    except LoomError:
        return  # no finished folder of Loom's
    for file in files:
        for name in task_of(file, names, recipe.format, recipe.experiment, beside=True).outputs:
            if name in taken:
                raise LoomError(
                    f"{root / name} is a part of {root}, which is finished: writing it again would spoil it. "
                    f"Give another --experiment, or another folder with --out."
                )


def _plain(recipe: Tag, members: Sequence[str]) -> dict[str, Any]:
    plain = {"taggers": list(members), "experiment": recipe.experiment, "format": recipe.format}
    if recipe.modules:
        plain |= {"modules": list(recipe.modules), "module_digests": taggers.module_digests(recipe.modules)}
    digests = taggers.digests(members, recipe.files)
    return plain | ({"files": digests} if digests else {})


def run_files(
    files: Sequence[File], names: Sequence[str], format: str, root: Path, engine: Engine, recipe: Tag
) -> list[Finished]:
    """Tag files; the sidecars of a large file's pieces are joined in order, so that each file has one."""
    cut = [in_pieces(file, recipe.largest) for file in files]
    tasks = []
    for file, parts in zip(files, cut, strict=True):
        if len(parts) == 1:
            tasks.append(task_of(file, names, format, recipe.experiment, beside=True))
            continue
        for part in parts:
            task = task_of(part, names, format, recipe.experiment, beside=True)
            tasks.append(replace(task, outputs=tuple(f"{PIECES}/{name}" for name in task.outputs)))
    done = iter(
        engine.run(operation(names, recipe.modules, recipe.files), tasks, root, f"tag ({', '.join(names)})")
    )
    results = [[next(done) for _ in parts] for parts in cut]
    joins = []
    for file, done_parts in zip(files, results, strict=True):
        if len(done_parts) > 1:
            outputs = task_of(file, names, format, recipe.experiment, beside=True).outputs
            inputs = tuple(Input(item.path, item.digest) for part in done_parts for item in part.outputs)
            counters = sum_counters([part.counters for part in done_parts])
            sources = [[part.task.outputs[index] for part in done_parts] for index in range(len(outputs))]
            joins.append(Task(inputs, outputs, {"pieces": sources, "counters": counters}))
    joined = iter(
        engine.run(Operation("join pieces", 1, _join, threads=True), joins, root, "join") if joins else []
    )
    found = [next(joined) if len(each) > 1 else each[0] for each in results]
    return found


def _join(settings: Any, task: Task, out: Path) -> Done:
    rows = {}
    for output, parts in zip(task.outputs, task.parameters["pieces"], strict=True):
        if output.endswith(".parquet"):
            batches = (batch for part in parts for batch in attributes.read(out / part))
            rows[output] = attributes.write_parquet(out / output, batches)
            continue
        rows[output] = 0
        with write_lines(out / output, level=1 if output.endswith(".gz") else None) as stream:
            for part in parts:
                for line in documents.read_lines(out / part):
                    stream.write(line)
                    rows[output] += 1
    return Done(rows, task.parameters["counters"])


def root_of(files: Sequence[File]) -> Path:
    """The folder that holds `documents/`, or where the files' relative names begin."""
    path, name = files[0].path, files[0].name
    root = Path(*path.parts[: len(path.parts) - len(Path(name).parts)])
    return root.parent if root.name == "documents" else root


def kept(done: Sequence[Finished], root: Path, aside: str = REJECTED) -> list[Output]:
    """The outputs of tasks; files of rejected rows, below `aside`, that hold none are removed and left out."""
    found = []
    for item in (item for result in done for item in result.outputs):
        if item.rows or not item.path.startswith(f"{aside}/"):
            found.append(item)
        else:
            (root / item.path).unlink(missing_ok=True)
    sweep(root / aside)
    remove_empty(root / aside)
    return found


def remove_empty(folder: Path) -> None:
    """Remove folders that hold nothing, from the leaves up to `folder` itself."""
    if folder.is_dir():
        for path in sorted(folder.rglob("*"), reverse=True):
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()
        if not any(folder.iterdir()):
            folder.rmdir()
