"""This machine's Python as a corpus: `loom collect python`.

Four sources of real text that need no network: `python-docs` (documentation of the standard library and
of the modules in `code`, read by `ast`), `packages` (long descriptions and licences of what is installed),
`code` (library source files) and `system-docs` (text and HTML below /usr/share/doc). Which documents are
taken is decided by a keyed hash of their id, so the choice does not depend on the order of a listing.

The folder is a snapshot: once it is finished it stays as it is, whatever is installed later.
"""

from __future__ import annotations

import gzip
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson

from loom.artifact import (
    MANIFEST,
    Artifact,
    Input,
    canonical_json,
    commit,
    describe,
    digest_bytes,
    digest_json,
    discard,
    load,
)
from loom.corpus.documents import read_lines, write_lines
from loom.corpus.sampling import keyed_hash
from loom.corpus.sources import machine
from loom.corpus.sources.collection import COLLECTED
from loom.corpus.sources.docstrings import document, topics
from loom.corpus.sources.html import html_to_text
from loom.corpus.sources.machine import Candidate
from loom.engine import Done, Engine, Finished, LocalEngine, Operation, Task, clear_receipts
from loom.errors import LoomError
from loom.recipe import to_plain

SOURCES = ("python-docs", "packages", "code", "system-docs")
CHUNK = 1_500_000  # bytes of files a task reads
PART = 4_000_000  # bytes of text in an output file
WORK = "work"


@dataclass(frozen=True)
class Collect:
    """What to take: megabytes a source and in all, the seed of the choice, where `system-docs` lies."""

    sources: tuple[str, ...] = SOURCES
    limit_mb: float = 15.0
    total_mb: float = 40.0
    seed: int = 0
    docs: str = str(machine.SYSTEM_DOCS)

    def __post_init__(self) -> None:
        unknown = [name for name in self.sources if name not in SOURCES]
        if unknown:
            raise ValueError(f"unknown source {unknown[0]!r}; there are {', '.join(SOURCES)}")
        if self.limit_mb <= 0 or self.total_mb <= 0:
            raise ValueError("limit_mb and total_mb must be above 0")


def collect(recipe: Collect, out: Path, engine: Engine | None = None) -> Artifact:
    """Write `documents/<source>/part-NNNN.jsonl.zst` and `functions.jsonl` below `out`.

    Raises `LoomError` if this Python has no documentation or a source holds nothing at all.
    """
    started = time.monotonic()
    if (finished := _finished(recipe, out)) is not None:
        return finished
    if (out / COLLECTED).is_dir():
        raise LoomError(
            f"{out} already holds what `loom collect dump` or `loom warc` made: name another folder."
        )
    discard(out, "documents")
    engine = engine or LocalEngine()
    rendered = _render(recipe, out, engine)
    sizes = {name: sum(done.counters["bytes"] for done in parts) for name, parts in rendered.items()}
    budgets = share_out(sizes, recipe.limit_mb * 1e6, recipe.total_mb * 1e6)
    tasks = [
        Task(
            tuple(Input(item.path, item.digest) for done in rendered[name] for item in done.outputs),
            (f"{WORK}/{name}.list",),
            {
                "source": name,
                "budget": int(budgets[name]),
                "parts": [done.task.outputs[0] for done in rendered[name]],
            },
        )
        for name in recipe.sources
    ]
    choose = Operation("choose documents", 1, _choose, {"seed": recipe.seed}, threads=True)
    chosen = engine.run(choose, tasks, out, "choosing documents")
    counters: dict[str, Any] = {"sources": {}}
    rows: dict[str, int] = {}
    names = []
    for name, done in zip(recipe.sources, chosen, strict=True):
        counters["sources"][name] = done.counters
        listed = orjson.loads((out / WORK / f"{name}.list").read_bytes())
        rows.update(listed)
        names += list(listed)
    counters["documents"] = sum(part["documents"] for part in counters["sources"].values())
    counters["bytes"] = sum(part["bytes"] for part in counters["sources"].values())
    rows["functions.jsonl"] = _write_functions(out, rendered.get("python-docs", []), names)
    counters["functions"] = rows["functions.jsonl"]
    if counters["documents"] == 0:
        raise LoomError("Nothing was found to collect; name other --sources, or install packages first.")
    inputs = _read_inputs(out, rendered)
    artifact = commit(
        out,
        "documents",
        recipe=to_plain(recipe),
        inputs=inputs,
        outputs=describe(out, [*names, "functions.jsonl"], rows),
        counters=counters,
        started=started,
    )
    clear_receipts(out)
    shutil.rmtree(out / WORK, ignore_errors=True)
    return artifact


def _finished(recipe: Collect, out: Path) -> Artifact | None:
    if not (out / MANIFEST).exists():
        return None
    artifact = load(out)
    if artifact.kind != "documents" or canonical_json(artifact.recipe) != canonical_json(to_plain(recipe)):
        return None
    artifact.verify()
    return artifact


def share_out(sizes: Mapping[str, float], limit: float, total: float) -> dict[str, float]:
    """Bytes a source may keep: its own size, at most `limit`, the largest cut level until all fit `total`."""
    capped = {name: min(size, limit) for name, size in sizes.items()}
    level, left = total, total
    for index, size in enumerate(sorted(capped.values())):
        level = left / (len(capped) - index)
        if size > level:
            break
        left -= size
        level = limit
    return {name: min(size, level) for name, size in capped.items()}


def _take(candidates: Sequence[Candidate], budget: float, seed: int) -> list[Candidate]:
    """Candidates in the order of their keyed hash until the budget is full, then sorted by id."""
    taken, size = [], 0
    for item in sorted(candidates, key=lambda item: keyed_hash(item.id, seed)):
        if size + item.size <= budget:
            taken.append(item)
            size += item.size
    return sorted(taken, key=lambda item: item.id)


def _render(recipe: Collect, out: Path, engine: Engine) -> dict[str, list[Finished]]:
    budget, seed = recipe.limit_mb * 1e6, recipe.seed
    library = machine.standard_library()
    installed = machine.distributions()
    work: dict[str, list[Candidate]] = {}
    modules = [module for item in installed for module in item.modules]
    code = _take([*library, *modules], budget, seed)
    work["code"] = code
    chosen = {item.id for item in library}
    work["python-docs"] = [*library, *(item for item in code if item.id not in chosen)]
    described = [item.description for item in installed if item.description is not None]
    work["packages"] = [*described, *(licence for item in installed for licence in item.licences)]
    if "system-docs" in recipe.sources:
        work["system-docs"] = _take(machine.system_docs(Path(recipe.docs)), budget, seed)
        if not work["system-docs"] and Path(recipe.docs) != machine.SYSTEM_DOCS:
            raise LoomError(f"{recipe.docs} holds no text or HTML files. Name another folder after --docs.")
    tasks, owners = [], []
    for name in recipe.sources:
        for number, chunk in enumerate(_chunks(work[name])):
            stem = f"{WORK}/{name}-{number:04d}"
            tasks.append(
                Task(
                    tuple(Input(str(item.path), _identity(item)) for item in chunk),
                    (f"{stem}.jsonl", f"{stem}.functions", f"{stem}.inputs"),
                    {"source": name, "files": [_plain(item) for item in chunk]},
                )
            )
            owners.append(name)
    finished = engine.run(Operation("render documents", 2, _render_task), tasks, out, "reading")
    rendered: dict[str, list[Finished]] = {name: [] for name in recipe.sources}
    for name, done in zip(owners, finished, strict=True):
        rendered[name].append(done)
    return rendered


def _chunks(candidates: Sequence[Candidate]) -> Iterator[list[Candidate]]:
    chunk: list[Candidate] = []
    size = 0
    for item in candidates:
        chunk.append(item)
        size += item.size
        if size >= CHUNK:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _plain(item: Candidate) -> dict[str, Any]:
    return {**asdict(item), "path": str(item.path)}


def _identity(item: Candidate) -> str:
    """A raw file by path, size and time; its content is digested when it is read."""
    try:
        status = item.path.stat()
    except OSError:
        return digest_json([str(item.path), "missing"])
    return digest_json([str(item.path), status.st_size, status.st_mtime_ns])


def _render_task(settings: Any, task: Task, out: Path) -> Done:
    source = task.parameters["source"]
    documents = size = unreadable = 0
    with (
        write_lines(out / task.outputs[0]) as pages,
        write_lines(out / task.outputs[1]) as functions,
        write_lines(out / task.outputs[2]) as inputs,
    ):
        for item in task.parameters["files"]:
            candidate = Candidate(**{**item, "path": Path(item["path"])})
            try:
                raw = candidate.path.read_bytes()
                text = _decode(candidate.path, raw)
            except (OSError, EOFError, UnicodeDecodeError):
                unreadable += 1
                continue
            inputs.write(canonical_json([str(candidate.path), digest_bytes(raw)]) + b"\n")
            for row in _rows(source, candidate, text, functions):
                documents += 1
                size += len(row["text"].encode())
                pages.write(orjson.dumps(row) + b"\n")
    return Done(counters={"documents": documents, "bytes": size, "unreadable": unreadable})


def _decode(path: Path, raw: bytes) -> str:
    data = gzip.decompress(raw) if path.suffix == ".gz" else raw
    text = data.decode("utf-8")
    if "\0" in text:
        raise UnicodeDecodeError("utf-8", b"\0", 0, 1, "binary")
    if Path(path.name.removesuffix(".gz")).suffix.lower() in (".html", ".htm"):
        return html_to_text(text)
    return text.replace("\r\n", "\n")


def _rows(source: str, item: Candidate, text: str, functions: Any) -> Iterator[dict[str, Any]]:
    metadata = {"path": str(item.path), "package": item.package, "licence": item.licence}
    if item.module:
        metadata["module"] = item.module
    if source == "python-docs":
        yield from _documentation(item, text, metadata, functions)
    elif source == "packages" and item.id.endswith("/description"):
        body = text.partition("\n\n")[2].strip()
        if body:
            yield _row(item.id, body + "\n", source, metadata)
    elif text.strip():
        identity = f"code/{item.id}" if source == "code" else item.id
        yield _row(identity, text, source, metadata)


def _documentation(
    item: Candidate, text: str, metadata: dict[str, Any], functions: Any
) -> Iterator[dict[str, Any]]:
    prefix = f"python-docs/{item.package}"
    if item.module == "pydoc_data.topics":
        for page in topics(text):
            yield _row(f"python-docs/topics/{page.name}", page.text, "python-docs", metadata)
        return
    found = document(text, item.module)
    for page in found.pages:
        yield _row(f"{prefix}/{page.name}", page.text, "python-docs", metadata)
    private = any(part.startswith("_") for part in item.module.split("."))
    for function in () if private else found.functions:
        line = {
            "name": f"{item.module}.{function.qualname}",
            "module": item.module,
            "qualname": function.qualname,
            "summary": function.summary,
            "package": item.package,
            "document": f"{prefix}/{function.page}",
        }
        functions.write(orjson.dumps(line) + b"\n")


def _row(identity: str, text: str, source: str, metadata: Mapping[str, Any]) -> dict[str, Any]:
    return {"id": identity, "text": text, "source": source, "metadata": dict(metadata)}


def _choose(settings: Mapping[str, Any], task: Task, out: Path) -> Done:
    """Keep documents in the order of their keyed hash up to the budget; write them in the order of ids."""
    found: dict[str, tuple[int, bytes]] = {}
    for part in task.parameters["parts"]:
        for line in read_lines(out / part):
            row = orjson.loads(line)
            found.setdefault(row["id"], (len(row["text"].encode()), line))
    kept, size, budget = [], 0, task.parameters["budget"]
    for identity in sorted(found, key=lambda name: keyed_hash(name, settings["seed"])):
        if size + found[identity][0] <= budget:
            kept.append(identity)
            size += found[identity][0]
    kept.sort()
    listed: dict[str, int] = {}
    start = 0
    while start < len(kept):
        end, part_size = start, 0
        while end < len(kept) and part_size < PART:
            part_size += found[kept[end]][0]
            end += 1
        name = f"documents/{task.parameters['source']}/part-{len(listed):04d}.jsonl.zst"
        with write_lines(out / name) as stream:
            stream.writelines(found[identity][1] for identity in kept[start:end])
        listed[name] = end - start
        start = end
    with write_lines(out / task.outputs[0]) as stream:
        stream.write(canonical_json(listed))
    return Done(counters={"documents": len(kept), "bytes": size, "found": len(found)})


def _write_functions(out: Path, rendered: Sequence[Finished], names: Sequence[str]) -> int:
    """Functions of the standard library, then those of packages whose page was taken; unique by name."""
    taken: set[str] = set()
    for name in names:
        if name.startswith("documents/python-docs/"):
            taken.update(orjson.loads(line)["id"] for line in read_lines(out / name))
    found: dict[str, dict[str, Any]] = {}
    for done in rendered:
        for line in read_lines(out / done.task.outputs[1]):
            row = orjson.loads(line)
            if row["package"] == "stdlib" or row["document"] in taken:
                found.setdefault(row["name"], row)
    ordered = sorted(found.values(), key=lambda row: (row["package"] != "stdlib", row["name"]))
    with write_lines(out / "functions.jsonl") as stream:
        stream.writelines(orjson.dumps(row) + b"\n" for row in ordered)
    return len(ordered)


def _read_inputs(out: Path, rendered: Mapping[str, Sequence[Finished]]) -> list[Input]:
    found: dict[str, str] = {}
    for parts in rendered.values():
        for done in parts:
            for line in read_lines(out / done.task.outputs[2]):
                path, digest = orjson.loads(line)
                found[path] = digest
    return [Input(path, digest) for path, digest in sorted(found.items())]
