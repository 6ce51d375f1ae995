"""Dolma's deduper: documents by a key or paragraphs, exactly or through a Bloom filter of its size.

Fingerprints are taken file by file by any number of workers; then they are compared, or the filter consumes
them, in the order of the input, so the survivor never depends on scheduling (Dolma's does).
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from dataclasses import replace as changed
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa

from loom.artifact import (
    Artifact,
    Input,
    atomic_write,
    commit,
    digest_json,
    discard,
    finished,
    since_start,
)
from loom.corpus import attributes, remote, tag
from loom.corpus.dedupe import exact
from loom.corpus.documents import find_files, relative_name, write_lines
from loom.corpus.dolma import config, filters, places
from loom.corpus.dolma.entries import FIRST, SKIPPED, by_ngram, print_task
from loom.corpus.dolma.ngrams import scores
from loom.engine import (
    Done,
    Engine,
    Finished,
    LocalEngine,
    Operation,
    Task,
    clear_receipts,
    clear_work,
    sum_counters,
)
from loom.errors import LoomError
from loom.recipe import to_plain

WORK = "work"


@dataclass(frozen=True)
class Planned:
    """A configuration that was checked: its files, their names below the attribute folder, that folder."""

    chosen: config.Deduper
    files: Sequence[Path]
    names: Sequence[str]
    root: Path


def plan(chosen: config.Deduper, compat: str = "", out: Path | None = None) -> Planned:
    """What would be done. `out` is the root that gets `attributes/`, by default the documents' own.

    Raises `LoomError` for files that are not there, not packed as said or below no folder `documents`.
    """
    if compat and chosen.bloom_filter is None:
        raise LoomError("bloom_filter is missing: with --compat duplicates are found as Dolma finds them.")
    files = find_files(chosen.documents)
    places.agree(files, chosen.compression)
    root, names = _places(files, chosen, out)
    if (remote.address(root) or "").startswith("http"):
        raise LoomError(f"{files[0]} lies where nothing can be written: name a folder with --out.")
    return Planned(chosen, files, names, root / "attributes" / chosen.dedupe.name)


def dedupe(
    chosen: config.Deduper, compat: str = "", engine: Engine | None = None, out: Path | None = None
) -> Artifact:
    """Run a deduper configuration; attributes go beside the documents, as Dolma lays them, or below `out`.

    Raises what `plan` raises, and `LoomError` for a key that no document has, a filter that is not Loom's,
    is empty though read-only, or took too many entries.
    """
    planned = plan(chosen, compat, out)
    engine = engine or LocalEngine(places.workers(chosen.processes))
    to = remote.address(planned.root)
    folder = planned.root if to is None else places.staging(chosen.work_dir, to)
    if chosen.bloom_filter is None:
        made = _dedupe(planned, None, compat, folder, engine)
    else:
        with filters.at_hand(chosen.bloom_filter, folder.with_name(f"{folder.name}.filter")) as bloom:
            made = _dedupe(planned, bloom, compat, folder, engine)
    if to is None:
        return made
    remote.publish(made, to)
    return changed(made, path=Path(to))


def _dedupe(
    planned: Planned, bloom: config.Bloom | None, compat: str, root: Path, engine: Engine
) -> Artifact:
    started = time.monotonic()
    chosen, rules = planned.chosen, planned.chosen.dedupe
    inputs = places.as_inputs(planned.files)
    plain = {"dedupe": to_plain(rules), "bloom_filter": to_plain(chosen.bloom_filter), "compat": compat}
    plain["compression"] = to_plain(chosen.compression)
    if (before := finished(root, "attributes", plain, inputs)) is not None:
        clear_work(root, WORK)
        return before
    discard(root, "attributes")
    shutil.rmtree(root / tag.REJECTED, ignore_errors=True)
    settings = {"dedupe": to_plain(rules), "compat": compat, "since": _since(engine), "exact": bloom is None}
    tasks = [
        Task(
            (item,),
            (f"{WORK}/{index:06d}.prints", f"{tag.REJECTED}/{name.partition('.')[0]}.jsonl"),
            {"path": str(path)},
        )
        for index, (item, path, name) in enumerate(zip(inputs, planned.files, planned.names, strict=True))
    ]
    printed = engine.run(
        Operation("dolma fingerprints", 5, print_task, settings, threads=True), tasks, root, "fingerprint"
    )
    if rules.documents is not None and not compat and not any(done.counters["keyed"] for done in printed):
        raise LoomError(
            f"No document has the key {rules.documents.key!r}, so nothing could ever be a duplicate."
        )
    if bloom is None:
        judged = _compare(chosen, printed, root, engine)
    else:
        note = root / WORK / f"{digest_json([plain, [item.digest for item in inputs]])}.start"
        judged = _consume(bloom, rules, printed, filters.at_the_start(bloom, note), root, engine)
        if not bloom.read_only:
            counted = sum_counters([item.counters for item in (*judged, *printed)])
            new = counted["looked"] - counted["duplicates"]
            filters.refuse_full(bloom, new, counted["bits"], bool(compat))
    with ThreadPoolExecutor(1) as beside:
        parts = [root / item.task.outputs[1] for item in judged if len(item.task.outputs) > 1]
        kept = beside.submit(filters.keep, bloom, parts) if bloom is not None else None
        done = _write(chosen, planned.names, printed, judged, root, engine)
        if kept is not None:
            kept.result()
    aside = [
        item for result in printed for item in result.outputs if item.path.startswith(f"{tag.REJECTED}/")
    ]
    for item in aside:
        if not item.rows:
            (root / item.path).unlink(missing_ok=True)
    tag.remove_empty(root / tag.REJECTED)
    artifact = commit(
        root,
        "attributes",
        recipe=plain,
        inputs=inputs,
        outputs=[
            *(item for item in aside if item.rows),
            *(item for result in done for item in result.outputs),
        ],
        counters={
            **sum_counters([result.counters for result in done]),
            "rejected": sum(result.counters["rejected"] for result in printed),
        },
        started=started,
    )
    clear_receipts(root)
    with ThreadPoolExecutor(engine.workers) as pool:
        list(pool.map(Path.unlink, (root / WORK).iterdir()))
    (root / WORK).rmdir()
    return artifact


def _places(files: Sequence[Path], chosen: config.Deduper, out: Path | None) -> tuple[Path, list[str]]:
    """The folder that gets `attributes/`, and each file's name below its own folder there."""
    folder = f"/{chosen.dedupe.document_dir or 'documents'}/"
    roots, names = set(), []
    for path in files:
        head, found, tail = f"/{path}".rpartition(folder)
        if not found and out is None:
            raise LoomError(
                f"{path} does not lie below a folder {folder.strip('/')!r}; set dedupe.document_dir, or --out."
            )
        roots.add(head)
        name = tail if found else relative_name(path, chosen.documents)
        name = f"{name.removesuffix('.parquet')}.jsonl.gz" if name.endswith(".parquet") else name
        names.append(places.renamed(name, chosen.compression.output))
    if out is None and len(roots) > 1:
        raise LoomError(
            f"The documents lie below several roots ({', '.join(sorted(roots))}); dedupe one at a time, or "
            f"name one for the attributes with --out."
        )
    if len(set(names)) < len(names):
        raise LoomError("Two document files would get attributes of one name; dedupe them one at a time.")
    return out or Path(roots.pop()[1:]), names


def _compare(
    chosen: config.Deduper, printed: Sequence[Finished], root: Path, engine: Engine
) -> list[Finished]:
    """Which entries stood before, exactly: a task a partition by hash, each in the order of the input."""
    entries = sum(done.counters["looked"] for done in printed)
    partitions = exact.partitions_for(entries)
    together = Input("prints", digest_json([item.digest for done in printed for item in done.outputs]))
    tasks = [
        Task((together,), (f"{WORK}/duplicates-{p:04d}",), {"partition": p, "partitions": partitions})
        for p in range(partitions)
    ]
    settings = {
        "prints": [done.task.outputs[0] for done in printed],
        "documents": chosen.dedupe.documents is not None,
    }
    memory = exact.memory_for(entries)
    operation = Operation("exact duplicates", 1, _compare_task, settings, threads=True, memory=memory)
    return engine.run(operation, tasks, root, "compare")


def _compare_task(settings: Mapping[str, Any], task: Task, out: Path) -> Done:
    parts, places_of = [], []
    for name in settings["prints"]:
        held = exact.mapped(out / name)
        prints, rows = exact.share(
            held, "prints", task.parameters["partition"], task.parameters["partitions"]
        )
        look = held["skipped"][rows] == FIRST if settings["documents"] else np.ones(rows.size, bool)
        parts.append(np.ascontiguousarray(prints[look]))
        places_of.append(rows[look])
    tables = {}
    count = 0
    for index, table in enumerate(exact.duplicates(parts)):
        tables[f"{index:08d}"] = places_of[index][table[:, 0]].astype(np.uint32)
        count += table.shape[0]
        if settings["documents"]:
            pairs = zip(table[:, 1].tolist(), table[:, 2].tolist(), strict=True)
            survivors = [(file, int(places_of[file][place])) for file, place in pairs]
            tables[f"{index:08d}-of"] = np.array(survivors, np.int64).reshape(-1, 2)
    exact.save(out / task.outputs[0], **tables)
    return Done(counters={"duplicates": count})


def _consume(
    bloom: config.Bloom,
    rules: config.Dedupe,
    printed: Sequence[Finished],
    before_it: tuple[Input, ...],
    root: Path,
    engine: Engine,
) -> list[Finished]:
    inputs = [Input(item.path, item.digest) for done in printed for item in done.outputs]
    inputs += before_it
    partitions = filters.partitions_for(filters.filter_size(bloom))
    keep = bool(bloom.file) and not bloom.read_only
    tasks = [
        Task(
            tuple(inputs),
            (f"{WORK}/duplicates-{p:04d}", *([f"{WORK}/filter-{p:04d}"] if keep else [])),
            {"prints": [done.task.outputs[0] for done in printed], "partition": p, "partitions": partitions},
        )
        for p in range(partitions)
    ]
    settings = {"bloom": to_plain(bloom), "documents": rules.documents is not None}
    memory = filters.filter_size(bloom) // partitions
    operation = Operation("dolma bloom", 5, _consume_task, settings, threads=True, memory=memory)
    return engine.run(operation, tasks, root, "filter")


def _since(engine: Engine) -> str:
    """What vouches for fingerprints that were not flushed to disk, where they are all of this machine.

    Made again they are what they were. What the filter said is flushed: asked again, it would know its entries.
    """
    return since_start() if isinstance(engine, LocalEngine) else ""


def _consume_task(settings: Mapping[str, Any], task: Task, out: Path) -> Done:
    from loom.corpus.kernels.bloom import consume

    bloom = config.Bloom(**settings["bloom"])
    partition, partitions = task.parameters["partition"], task.parameters["partitions"]
    bits, hashes = filters.open_filter(bloom, partition, partitions)
    tables = {}
    count = 0
    for index, name in enumerate(task.parameters["prints"]):
        prints = exact.one(out / name, "prints")
        assert prints is not None
        if settings["documents"]:
            skipped = exact.one(out / name, "skipped")
            look = np.flatnonzero(skipped == FIRST)
            prints = prints[look]
        found = np.flatnonzero(
            consume(np.ascontiguousarray(prints), bits, hashes, bloom.read_only, partition, partitions)
        )
        if settings["documents"]:
            found = look[found]
        count += found.size
        tables[f"{index:08d}"] = found.astype(np.uint32)
    exact.save(out / task.outputs[0], **tables)
    if len(task.outputs) > 1:
        with atomic_write(out / task.outputs[1]) as stream:
            stream.write(bits.data)
    bits_set = int(np.bitwise_count(bits).sum(dtype=np.int64)) if not bloom.read_only else 0
    return Done(counters={"duplicates": count, "bits": bits_set})


def _write(
    chosen: config.Deduper,
    names: Sequence[str],
    printed: Sequence[Finished],
    judged: Sequence[Finished],
    root: Path,
    engine: Engine,
) -> list[Finished]:
    rules = chosen.dedupe
    tasks = [
        Task(
            tuple(Input(item.path, item.digest) for result in (done, *judged) for item in result.outputs),
            (name,),
            {"index": index, "prints": done.task.outputs[0]},
        )
        for index, (name, done) in enumerate(zip(names, printed, strict=True))
    ]
    chosen_ngrams = by_ngram(rules)
    survivors = chosen.bloom_filter is None and rules.documents is not None
    settings = {
        "attribute": (rules.documents or rules.paragraphs).attribute_name,  # type: ignore[union-attr]
        "documents": rules.documents is not None,
        "found": [done.task.outputs[0] for done in judged],
        "threshold": chosen_ngrams.overlap_threshold if chosen_ngrams else None,
        "prints": [done.task.outputs[0] for done in printed] if survivors else [],
    }
    return engine.run(
        Operation("dolma duplicates", 4, _write_task, settings, threads=True), tasks, root, "write"
    )


def _write_task(settings: Mapping[str, Any], task: Task, out: Path) -> Done:
    from loom.corpus.kernels.bloom import chosen

    part = exact.mapped(out / task.parameters["prints"])
    own = f"{task.parameters['index']:08d}"
    tables = [exact.one(out / name, own) for name in settings["found"]]
    found = np.sort(np.concatenate([table for table in tables if table is not None]).astype(np.int64))
    ids = attributes.text_from(part["id_bytes"], part["id_offsets"])
    if settings["threshold"] is not None:
        return _write_ngrams(settings, task, out, part, ids, found)
    offsets, starts, ends = chosen(part["firsts"], part["spans"], found)
    marked = np.diff(offsets) > 0
    present = marked | (part["skipped"] == (SKIPPED if settings["documents"] else FIRST))
    spans = attributes.Spans(offsets, starts, ends, np.ones(found.size), present)
    if settings["prints"]:
        _write_survivors(settings, task, out, ids, spans)
    else:
        with attributes.writer(out / task.outputs[0], as_deduper=True) as write:
            write(ids, pa.nulls(len(ids), pa.large_string()), {settings["attribute"]: spans})
    counts = {
        "documents": len(ids),
        "duplicates": int(found.size),
        "documents_with_duplicates": int(marked.sum()),
    }
    return Done({task.outputs[0]: len(ids)}, counts)


def _write_survivors(
    settings: Mapping[str, Any], task: Task, out: Path, ids: pa.Array, spans: attributes.Spans
) -> None:
    """The rows of a file's documents; a marked one says which document it is a copy of."""
    name, own = settings["attribute"], f"{task.parameters['index']:08d}"
    tables = [(exact.one(out / path, own), exact.one(out / path, f"{own}-of")) for path in settings["found"]]
    survivor = {
        row: place
        for rows, places_of in tables
        if rows is not None and places_of is not None
        for row, place in zip(rows.tolist(), places_of.tolist(), strict=True)
    }
    files: dict[int, pa.Array] = {}
    with write_lines(out / task.outputs[0]) as stream:
        for row, identity in enumerate(ids.to_pylist()):
            found = spans.of(row)
            held: dict[str, Any] = {} if found is None else {name: [[a, b, int(c)] for a, b, c in found]}
            if row in survivor:
                file, at = survivor[row]
                if file not in files:
                    other = exact.mapped(out / settings["prints"][file])
                    files[file] = attributes.text_from(other["id_bytes"], other["id_offsets"])
                held[f"{name}_of"] = files[file][at].as_py()
            stream.write(orjson.dumps({"attributes": held, "id": identity}) + b"\n")


def _write_ngrams(
    settings: Mapping[str, Any], task: Task, out: Path, part: Any, ids: pa.Array, found: Any
) -> Done:
    """The paragraphs whose share of known n-grams reaches the threshold, with that share as the score."""
    firsts, spans = part["firsts"], part["spans"]
    share = scores(part["owners"][:, 0], part["owners"][:, 1], found, spans.shape[0])
    marked = np.flatnonzero(share >= np.float32(settings["threshold"]))
    rows = np.searchsorted(firsts, marked, "right") - 1
    by_row: dict[int, list[list[float]]] = {}
    for row, (start, end), score in zip(
        rows.tolist(), spans[marked].tolist(), share[marked].tolist(), strict=True
    ):
        by_row.setdefault(row, []).append([start, end, score])
    skipped = part["skipped"].tolist()
    with write_lines(out / task.outputs[0]) as stream:
        for row, identity_ in enumerate(ids.to_pylist()):
            held = {} if skipped[row] else {settings["attribute"]: by_row.get(row, [])}
            stream.write(orjson.dumps({"attributes": held, "id": identity_}) + b"\n")
    counts = {
        "documents": len(skipped),
        "duplicates": int(marked.size),
        "documents_with_duplicates": len(by_row),
    }
    return Done({task.outputs[0]: len(skipped)}, counts)
