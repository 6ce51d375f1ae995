"""Dolma's deduper: documents by a key or paragraphs, through a Bloom filter of its size.

Fingerprints are taken file by file by any number of workers; the filter then consumes them in the order of
the input, so the survivor never depends on scheduling (Dolma's does).
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa

from loom.artifact import (
    Artifact,
    Input,
    Output,
    atomic_write,
    commit,
    digest_json,
    discard,
    finished,
    since_start,
)
from loom.corpus import attributes, documents
from loom.corpus.dedupe import exact
from loom.corpus.documents import Batch, as_rows, find_files, write_lines
from loom.corpus.dolma import config
from loom.corpus.dolma.jsonpath import compile_path
from loom.corpus.dolma.mixing import identity
from loom.corpus.dolma.ngrams import paragraph_ngrams, scores
from loom.corpus.words import count_words
from loom.engine import Done, Engine, Finished, LocalEngine, Operation, Task, clear_receipts, sum_counters
from loom.errors import LoomError
from loom.recipe import to_plain

MAGIC = b"LOOMBLM3"  # its last byte counts the ways in which fingerprints and parts were laid
DOLMA_MAGIC = (0x81F0F117).to_bytes(4, "little")
HEAD = 16  # bytes before a filter's bits: the magic, the number of hash functions
PART = 1 << 30  # bytes of a filter that a worker holds
PARTS, SMALLEST = 8, 1 << 20  # a filter has so many parts at least, if they hold so many bytes each
BATCH = 1 << 23  # text taken up at a time: what stays in the processor's cache
WORK = "work"
FIRST, AGAIN, SKIPPED = 0, 1, 2


def dedupe(chosen: config.Deduper, compat: str = "", engine: Engine | None = None) -> Artifact:
    """Run a deduper configuration; attributes go beside the documents, as Dolma lays them.

    Raises `LoomError` for a key that no document has, a filter that is not Loom's or is empty though
    read-only, and a file outside a folder `documents`.
    """
    started = time.monotonic()
    rules = chosen.dedupe
    if (rules.num_partitions or 1) > 1:
        raise LoomError("dedupe.num_partitions: partitions are Loom's own affair; run the file without it.")
    engine = engine or LocalEngine(chosen.processes)
    files = find_files(chosen.documents)
    root, places = _places(files, rules)
    inputs = [Input(str(path.resolve()), identity(path)) for path in files]
    plain = {"dedupe": to_plain(rules), "bloom_filter": to_plain(chosen.bloom_filter), "compat": compat}
    if (before := finished(root, "attributes", plain, inputs)) is not None:
        return before
    discard(root, "attributes")
    settings = {"dedupe": to_plain(rules), "compat": compat, "since": _since(engine)}
    tasks = [
        Task((item,), (f"{WORK}/{index:06d}.prints",), {"path": str(path)})
        for index, (item, path) in enumerate(zip(inputs, files, strict=True))
    ]
    printed = engine.run(
        Operation("dolma fingerprints", 3, _print_task, settings, threads=True), tasks, root, "fingerprint"
    )
    if rules.documents is not None and not compat and not any(done.counters["keyed"] for done in printed):
        raise LoomError(
            f"No document has the key {rules.documents.key!r}, so nothing could ever be a duplicate."
        )
    before_it = _filter_at_the_start(chosen.bloom_filter, root, [plain, [item.digest for item in inputs]])
    judged = _consume(chosen, printed, before_it, root, engine)
    with ThreadPoolExecutor(1) as beside:
        kept = beside.submit(_keep, chosen.bloom_filter, root)
        done = _write(chosen, compat, files, places, printed, judged, root, engine)
        kept.result()
    artifact = commit(
        root,
        "attributes",
        recipe=plain,
        inputs=inputs,
        outputs=[Output(o.path, o.bytes, o.rows, o.digest) for result in done for o in result.outputs],
        counters=sum_counters([result.counters for result in done]),
        started=started,
    )
    clear_receipts(root)
    with ThreadPoolExecutor(engine.workers) as pool:
        list(pool.map(Path.unlink, (root / WORK).iterdir()))
    (root / WORK).rmdir()
    return artifact


def _places(files: Sequence[Path], rules: config.Dedupe) -> tuple[Path, list[str]]:
    """The attribute folder, and each file's name below it."""
    folder = f"/{rules.document_dir or 'documents'}/"
    roots, names = set(), []
    for path in files:
        head, found, tail = f"/{path}".rpartition(folder)
        if not found:
            raise LoomError(
                f"{path} does not lie below a folder {folder.strip('/')!r}; set dedupe.document_dir."
            )
        roots.add(head)
        names.append(tail.removesuffix(".parquet") + ".jsonl.gz" if tail.endswith(".parquet") else tail)
    if len(roots) > 1:
        raise LoomError(
            f"The documents lie below several roots ({', '.join(sorted(roots))}); dedupe one at a time."
        )
    head = roots.pop()[1:]
    return Path(head) / "attributes" / rules.name, names


def _print_task(settings: Mapping[str, Any], task: Task, out: Path) -> Done:
    from loom.recipe import build

    rules = build(settings["dedupe"], config.Dedupe, "dedupe")
    compat = bool(settings["compat"])
    made: dict[str, list[Any]] = {
        "prints": [np.zeros((0, 2), np.uint64)],
        "spans": [np.zeros((0, 2), np.int32)],
        "owners": [np.zeros((0, 2), np.int64)],
        "skipped": [np.zeros(0, np.int8)],
        "per_row": [np.zeros(0, np.int64)],
        "id_bytes": [np.zeros(0, np.uint8)],
        "id_sizes": [np.zeros(0, np.int64)],
    }
    keyed = rows = paragraphs = 0
    for batch in documents.read(Path(task.parameters["path"]), BATCH):
        every = np.arange(len(batch))
        skipped = np.diff(batch.utf8()[1]) == 0
        if rules.documents is not None:
            prints, lengths, skipped = _document_prints(batch, rules, compat)
            keyed += int((skipped == FIRST).sum())
            spans = np.stack([every, np.zeros(len(batch), int), lengths], axis=1)
        elif by_ngram(rules):
            prints, owners, spans = paragraph_ngrams(batch, rules, compat)
            owners[:, 0] += paragraphs
            paragraphs += spans.shape[0]
            made["owners"].append(owners)
        else:
            prints, spans = _paragraph_prints(batch, rules, compat)
        made["prints"].append(prints)
        made["spans"].append(spans[:, 1:].astype(np.int32))
        made["per_row"].append(np.bincount(spans[:, 0], minlength=len(batch)))
        made["skipped"].append(skipped.astype(np.int8))
        data, offsets = attributes.text_of(batch.table.column("id"))
        made["id_bytes"].append(data[offsets[0] : offsets[-1]])
        made["id_sizes"].append(np.diff(offsets))
        rows += len(batch)
    held = {name: np.concatenate(parts) for name, parts in made.items()}
    for name, sizes in (("firsts", "per_row"), ("id_offsets", "id_sizes")):
        held[name] = np.concatenate([[0], np.cumsum(held.pop(sizes))]).astype(np.int64)
    exact.save_arrays(out / task.outputs[0], held, durable=not settings["since"])
    return Done({task.outputs[0]: rows}, {"documents": rows, "keyed": keyed})


def by_ngram(rules: config.Dedupe) -> config.Ngrams | None:
    """The n-gram rule, where there is one."""
    chosen = rules.paragraphs.by_ngram if rules.paragraphs is not None else None
    return chosen if chosen is not None and chosen.ngram_length else None


def _document_prints(batch: Batch, rules: config.Dedupe, compat: bool) -> tuple[Any, Any, Any]:
    from loom.corpus.kernels import fingerprints

    assert rules.documents is not None
    keys: list[str | None] = (
        list(batch.texts())
        if rules.documents.key == "$.text"
        else [_key(row, rules.documents.key) for row in as_rows(batch)]
    )
    column = pa.chunked_array([pa.array([key or "" for key in keys], pa.large_string())])
    prints = fingerprints.documents(*documents.utf8(column))
    lengths = [len((key or "").encode()) if compat else len(key or "") for key in keys]
    state = np.array([_state(key, rules, compat) for key in keys], np.int8)
    return prints, np.array(lengths, np.int64), state


def _key(row: dict[str, Any], path: str) -> str | None:
    found = compile_path(path).find(row)
    return found[0] if found and isinstance(found[0], str) else None


def _state(key: str | None, rules: config.Dedupe, compat: bool) -> int:
    """FIRST for a key to look at, SKIPPED for one that is left out (Dolma writes an empty list)."""
    if key is None:
        return SKIPPED
    if rules.min_words:
        few = count_words(key) < rules.min_words
        return SKIPPED if few else (AGAIN if compat else FIRST)  # Dolma forgets to look at the others
    if len(key.encode()) < (rules.min_length or 0) or (rules.skip_empty and not key.strip()):
        return SKIPPED
    return FIRST


def _paragraph_prints(batch: Batch, rules: config.Dedupe, compat: bool) -> tuple[Any, Any]:
    from loom.corpus.kernels.bloom import dolma_lines
    from loom.corpus.kernels.fingerprints import ranges

    assert rules.paragraphs is not None
    if rules.paragraphs.paragraph_separator not in (None, "\n"):
        raise LoomError("dedupe.paragraphs.paragraph_separator: only the newline is to be had.")
    data, offsets = batch.utf8()
    spans, where = dolma_lines(data, offsets, bool(rules.skip_empty), rules.min_length or 0, compat)
    if rules.min_words:
        enough = [
            count_words(data[low:high].tobytes().decode()) >= rules.min_words and not compat
            for low, high in where.tolist()
        ]
        spans, where = spans[enough], where[enough]
    return ranges(data, where), spans


def _filter_at_the_start(bloom: config.Bloom, root: Path, work: Any) -> tuple[Input, ...]:
    """The filter's file as this work first found it, kept until the work is done.

    The file is replaced once every entry is in; a run that was stopped after that must not take its own
    entries for those of an earlier one.
    """
    held = Path(bloom.file)
    there = bool(bloom.file) and held.exists()
    if bloom.read_only and not there:
        raise LoomError(f"The Bloom filter {held} is read-only but not there, so nothing could ever match.")
    refuse_empty(bloom)
    note = root / WORK / f"{digest_json(work)}.start"
    if not note.exists():
        with atomic_write(note) as stream:
            stream.write(identity(held).encode() if there else b"")
    found = note.read_bytes().decode()
    return (Input(str(held), found),) if found else ()


def _consume(
    chosen: config.Deduper,
    printed: Sequence[Finished],
    before_it: tuple[Input, ...],
    root: Path,
    engine: Engine,
) -> list[Finished]:
    bloom = chosen.bloom_filter
    keyed = chosen.dedupe.documents is not None
    inputs = [Input(item.path, item.digest) for done in printed for item in done.outputs]
    inputs += before_it
    partitions = partitions_for(filter_size(bloom))
    keep = bool(bloom.file) and not bloom.read_only
    tasks = [
        Task(
            tuple(inputs),
            (f"{WORK}/duplicates-{p:04d}", *([f"{WORK}/filter-{p:04d}"] if keep else [])),
            {"prints": [done.task.outputs[0] for done in printed], "partition": p, "partitions": partitions},
        )
        for p in range(partitions)
    ]
    settings = {"bloom": to_plain(bloom), "documents": keyed}
    memory = filter_size(bloom) // partitions
    operation = Operation("dolma bloom", 4, _consume_task, settings, threads=True, memory=memory)
    return engine.run(operation, tasks, root, "filter")


def _keep(bloom: config.Bloom, root: Path) -> None:
    """Write the filter's file, if it is to be kept, from its parts."""
    if not bloom.file or bloom.read_only:
        return
    with atomic_write(Path(bloom.file)) as stream:
        stream.write(MAGIC + hash_functions(bloom).to_bytes(8, "little"))
        for p in range(partitions_for(filter_size(bloom))):
            with open(root / WORK / f"filter-{p:04d}", "rb") as source:
                shutil.copyfileobj(source, stream, 1 << 22)


def _since(engine: Engine) -> str:
    """What vouches for fingerprints that were not flushed to disk, where they are all of this machine.

    Made again they are what they were. What the filter said is flushed: asked again, it would know its entries.
    """
    return since_start() if isinstance(engine, LocalEngine) else ""


def _consume_task(settings: Mapping[str, Any], task: Task, out: Path) -> Done:
    from loom.corpus.kernels.bloom import consume

    bloom = config.Bloom(**settings["bloom"])
    partition, partitions = task.parameters["partition"], task.parameters["partitions"]
    bits, hashes = open_filter(bloom, partition, partitions)
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
    return Done(counters={"duplicates": count})


def filter_size(bloom: config.Bloom) -> int:
    """Bytes of a filter: what its file holds, else Dolma's for so many entries.

    Raises `LoomError` for a file that is no filter of Loom's.
    """
    from loom.corpus.kernels.bloom import size_for

    path = Path(bloom.file)
    if bloom.file and path.exists():
        with open(path, "rb") as stream:
            head = stream.read(len(MAGIC))
        if head != MAGIC:
            whose = "Dolma's own" if head.startswith(DOLMA_MAGIC) else "no Bloom filter of this Loom's"
            raise LoomError(f"{path} is {whose}, so it cannot be read. Name a new file; Loom builds it anew.")
        return path.stat().st_size - HEAD
    entries = bloom.estimated_doc_count or 1
    size = bloom.size_in_bytes or size_for(entries, bloom.desired_false_positive_rate or 1e-6)
    return -(-size // 8) * 8


def hash_functions(bloom: config.Bloom) -> int:
    """How many bits an entry sets."""
    from loom.corpus.kernels.bloom import fewest_hashes

    path = Path(bloom.file)
    if bloom.file and path.exists():
        with open(path, "rb") as stream:
            return int.from_bytes(stream.read(HEAD)[len(MAGIC) :], "little")
    if not bloom.estimated_doc_count:
        return 8
    rate = bloom.desired_false_positive_rate or 1e-6
    return fewest_hashes(filter_size(bloom), bloom.estimated_doc_count, rate)


def partitions_for(size: int) -> int:
    """How many parts, a power of two, a filter of `size` bytes is held in: each at most `PART` bytes, and small
    enough that several workers share the work, each with a part that stays in the processor's cache.

    An entry belongs to one part by its hash, and each part takes its entries in the order of the input: the
    survivor never depends on scheduling, and the whole filter is never in one place.
    """
    count = 1
    while size // 8 % (2 * count) == 0 and (
        size > count * PART or (count < PARTS and size >= 2 * count * SMALLEST)
    ):
        count *= 2
    return count


def open_filter(bloom: config.Bloom, partition: int, partitions: int) -> tuple[Any, int]:
    """One part's bits, uint64[words], and the number of hash functions: from the file, or empty."""
    words = filter_size(bloom) // 8 // partitions
    hashes = hash_functions(bloom)
    path = Path(bloom.file)
    if not (bloom.file and path.exists()):
        return np.zeros(words, np.uint64), hashes
    bits = np.fromfile(path, np.uint64, words, offset=HEAD + partition * words * 8)
    return bits, hashes


def refuse_empty(bloom: config.Bloom) -> None:
    """Raise `LoomError` for a filter that is only read and holds nothing."""
    path = Path(bloom.file)
    if not (bloom.read_only and bloom.file and path.exists()):
        return
    with open(path, "rb") as stream:
        stream.seek(HEAD)
        while block := stream.read(1 << 24):
            if any(block):
                return
    raise LoomError(f"The Bloom filter {path} is empty, so nothing could ever match.")


def _write(
    chosen: config.Deduper,
    compat: str,
    files: Sequence[Path],
    places: Sequence[str],
    printed: Sequence[Finished],
    judged: Sequence[Finished],
    root: Path,
    engine: Engine,
) -> list[Finished]:
    rules = chosen.dedupe
    name = (rules.documents or rules.paragraphs).attribute_name  # type: ignore[union-attr]
    tasks = [
        Task(
            tuple(Input(item.path, item.digest) for result in (done, *judged) for item in result.outputs),
            (place,),
            {"index": index, "prints": done.task.outputs[0]},
        )
        for index, (place, done) in enumerate(zip(places, printed, strict=True))
    ]
    chosen_ngrams = by_ngram(rules)
    settings = {
        "attribute": name,
        "documents": rules.documents is not None,
        "found": [done.task.outputs[0] for done in judged],
        "threshold": chosen_ngrams.overlap_threshold if chosen_ngrams else None,
    }
    return engine.run(
        Operation("dolma duplicates", 3, _write_task, settings, threads=True), tasks, root, "write"
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
    with attributes.writer(out / task.outputs[0], as_deduper=True) as write:
        write(ids, pa.nulls(len(ids), pa.large_string()), {settings["attribute"]: spans})
    counts = {
        "documents": len(ids),
        "duplicates": int(found.size),
        "documents_with_duplicates": int(marked.sum()),
    }
    return Done({task.outputs[0]: len(ids)}, counts)


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
