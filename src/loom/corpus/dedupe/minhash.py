"""Near-duplicates by MinHash: shingles of words, banded matches, connected components.

The defaults are FineWeb's: shingles of 5 words, 14 bands of 8 hashes, which find pairs of Jaccard similarity
0.8 with probability 0.92. The first document of a cluster in input order stays; the others are marked.
"""

from __future__ import annotations

import bisect
import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from loom.artifact import Artifact, Input, commit, digest_json, discard, finished
from loom.corpus import documents, remote, tag
from loom.corpus import ids as id_index
from loom.corpus.dedupe import exact
from loom.corpus.documents import write_lines
from loom.engine import Done, Engine, Finished, LocalEngine, Operation, Task, clear_work, sum_counters
from loom.recipe import to_plain
from loom.tokens.documents import Rejected

WORK = "work"


@dataclass(frozen=True)
class Near:
    """Shingle length in words, bands and hashes a band, the seed of the hash functions."""

    words: int = 5
    bands: int = 14
    rows: int = 8
    seed: int = 1

    def __post_init__(self) -> None:
        if min(self.words, self.bands, self.rows) < 1:
            raise ValueError("words, bands and rows must be at least 1")


@dataclass(frozen=True)
class MinHash:
    """What is compared, what the attributes are called, and how: `Near`'s numbers."""

    documents: tuple[str, ...]
    name: str = "near_duplicates"
    words: int = 5
    bands: int = 14
    rows: int = 8
    seed: int = 1

    def __post_init__(self) -> None:
        Near(self.words, self.bands, self.rows, self.seed)


def probability(similarity: float, bands: int, rows: int) -> float:
    """The chance that a pair of this Jaccard similarity meets in a band: 1 - (1 - s^r)^b."""
    return float(1.0 - (1.0 - similarity**rows) ** bands)


def hash_functions(seed: int, count: int) -> tuple[Any, Any]:
    """Odd factors and terms of `count` hash functions, the same for a seed everywhere."""
    generator = np.random.Generator(np.random.PCG64(seed))
    factors = generator.integers(0, 2**32, count, np.uint32) | np.uint32(1)
    return factors, generator.integers(0, 2**32, count, np.uint32)


def minhash(recipe: MinHash, engine: Engine | None = None, out: Path | None = None) -> Artifact:
    """Write `attributes/<name>/`: a span for every document but a cluster's first, and that one's id.

    An address gets what was made in a folder of the user's cache, uploaded once it is complete.
    """
    files = tag.find(recipe.documents)
    root = (out or tag.root_of(files)) / "attributes" / recipe.name
    if (to := remote.address(root)) is None:
        return _minhash(recipe, files, root, engine or LocalEngine())
    made = _minhash(recipe, files, remote.staging(to), engine or LocalEngine())
    remote.publish(made, to)
    return replace(made, path=Path(to))


def _minhash(recipe: MinHash, files: Sequence[tag.File], root: Path, engine: Engine) -> Artifact:
    started = time.monotonic()
    inputs = [Input(remote.place(file.path), file.digest) for file in files]
    plain = to_plain(recipe)
    if (before := finished(root, "attributes", plain, inputs)) is not None:
        clear_work(root, WORK)
        return before
    discard(root, "attributes")
    settings = {key: plain[key] for key in ("words", "bands", "rows", "seed")}
    signed = engine.run(
        Operation("minhash signatures", 4, _sign, settings, threads=True),
        [
            Task(
                (item,),
                (f"{WORK}/{n:06d}.bands", f"{tag.REJECTED}/{file.stem}.jsonl"),
                {"path": str(file.path)},
            )
            for n, (item, file) in enumerate(zip(inputs, files, strict=True))
        ],
        root,
        "signatures",
    )
    joined = clusters(recipe.bands, signed, root, engine)
    written = _write(recipe, files, signed, joined, root, engine)
    counters = sum_counters([done.counters for done in written])
    counters["clusters"] = joined.counters["clusters"]
    counters["rejected"] = sum(done.counters["rejected"] for done in signed)
    aside = [item for item in tag.kept(signed, root) if item.path.startswith(f"{tag.REJECTED}/")]
    artifact = commit(
        root,
        "attributes",
        recipe=plain,
        inputs=inputs,
        outputs=[*aside, *(item for done in written for item in done.outputs)],
        counters=counters,
        started=started,
    )
    clear_work(root, WORK)
    return artifact


def _sign(settings: Mapping[str, Any], task: Task, out: Path) -> Done:
    from loom.corpus.kernels import minhash as kernels
    from loom.corpus.kernels.characters import lengths

    functions = hash_functions(settings["seed"], settings["bands"] * settings["rows"])
    keys, sizes, names = [np.zeros((0, settings["bands"], 2), np.uint64)], [np.zeros(0, np.int64)], []
    rejected: list[Rejected] = []
    for batch in documents.read(Path(task.parameters["path"])):
        rejected += batch.rejected
        signature, counts = kernels.signatures(*batch.utf8(), settings["words"], *functions)
        keys.append(kernels.bands(signature, counts, settings["rows"]))
        sizes.append(lengths(*batch.utf8()))
        names += batch.ids
    tables = band_tables(np.concatenate(keys))
    exact.save(out / task.outputs[0], lengths=np.concatenate(sizes), **tables, **id_index.in_order(names))
    with write_lines(out / task.outputs[1]) as stream:
        stream.writelines(item.json() + b"\n" for item in rejected)
    counters = {"documents": len(names), "rejected": len(rejected)}
    return Done({task.outputs[1]: len(rejected)}, counters)


def band_tables(keys: Any) -> dict[str, Any]:
    """Keys uint64[n, bands, 2] as arrays to be saved, one a band, so that a partition is a range of them."""
    tables: dict[str, Any] = {}
    for band in range(keys.shape[1]):
        tables |= exact.spread(f"band-{band:04d}", keys[:, band])
    return tables


def _inputs(results: Sequence[Finished]) -> tuple[Input, ...]:
    return tuple(Input(item.path, item.digest) for done in results for item in done.outputs)


def starts_of(signed: Sequence[Finished]) -> list[int]:
    """The number of each file's first document; the last entry is the number of documents."""
    counts: list[int] = [done.counters["documents"] for done in signed]
    return [0, *itertools.accumulate(counts)]


def clusters(bands: int, signed: Sequence[Finished], root: Path, engine: Engine) -> Finished:
    """The clusters of documents that meet in a band, joined: `first`, each document's first in input order.

    The first outputs of `signed` hold `band_tables`, their counters how many `documents`.
    """
    return _join(signed, _match(bands, signed, root, engine), root, engine)


def _match(bands: int, signed: Sequence[Finished], root: Path, engine: Engine) -> list[Finished]:
    """A task a band and partition: every document with the first in input order that has the same key."""
    starts = starts_of(signed)
    partitions = exact.partitions_for(starts[-1])
    together = Input("signatures", digest_json([item.digest for done in signed for item in done.outputs]))
    tasks = [
        Task(
            (together,),
            (f"{WORK}/band-{band:04d}-{p:04d}",),
            {"band": band, "partition": p, "partitions": partitions},
        )
        for band in range(bands)
        for p in range(partitions)
    ]
    settings = {"signed": [done.task.outputs[0] for done in signed], "starts": starts}
    operation = Operation(
        "minhash band", 2, _match_task, settings, threads=True, memory=exact.memory_for(starts[-1])
    )
    return engine.run(operation, tasks, root, "bands")


def _match_task(settings: Mapping[str, Any], task: Task, out: Path) -> Done:
    from loom.corpus.kernels.fingerprints import first_of

    band, partition, partitions = (task.parameters[key] for key in ("band", "partition", "partitions"))
    keys, numbers = [np.zeros((0, 2), np.uint64)], [np.zeros(0, np.int64)]
    for name, start in zip(settings["signed"], settings["starts"], strict=False):
        mine, rows = exact.share(exact.mapped(out / name), f"band-{band:04d}", partition, partitions)
        some = mine[:, 1] != 0  # texts without shingles match nothing
        keys.append(mine[some])
        numbers.append(rows[some] + start)
    number = np.concatenate(numbers)
    first = number[first_of(np.ascontiguousarray(np.concatenate(keys)))]
    again = first != number
    exact.save(out / task.outputs[0], pairs=np.stack([first[again], number[again]], axis=1))
    return Done(counters={"pairs": int(again.sum())})


def _join(signed: Sequence[Finished], matched: Sequence[Finished], root: Path, engine: Engine) -> Finished:
    total = starts_of(signed)[-1]
    task = Task(
        _inputs(matched),
        (f"{WORK}/clusters",),
        {"bands": [done.task.outputs[0] for done in matched], "documents": total},
    )
    operation = Operation("minhash clusters", 2, _join_task, threads=True, memory=16 * total)
    return engine.run(operation, [task], root, "clusters")[0]


def _join_task(settings: Any, task: Task, out: Path) -> Done:
    from loom.corpus.kernels.minhash import join, resolve

    parent = np.arange(task.parameters["documents"])
    for name in task.parameters["bands"]:
        join(exact.load(out / name)["pairs"], parent)
    clusters = resolve(parent)
    exact.save(out / task.outputs[0], first=parent)
    return Done(counters={"clusters": int(clusters)})


def _write(
    recipe: MinHash,
    files: Sequence[tag.File],
    signed: Sequence[Finished],
    joined: Finished,
    root: Path,
    engine: Engine,
) -> list[Finished]:
    settings = {
        "name": recipe.name,
        "signed": [done.task.outputs[0] for done in signed],
        "starts": starts_of(signed),
    }
    tasks = [
        Task(_inputs([done, joined]), (tag.sidecar_name(file, "jsonl"),), {"file": number})
        for number, (file, done) in enumerate(zip(files, signed, strict=True))
    ]
    operation = Operation("minhash write", 2, _write_task, settings, threads=True)
    return engine.run(operation, tasks, root, "write")


def _write_task(settings: Mapping[str, Any], task: Task, out: Path) -> Done:
    signed, starts, name = settings["signed"], settings["starts"], settings["name"]
    file = task.parameters["file"]
    start, end = starts[file], starts[file + 1]
    first = exact.mapped(out / WORK / "clusters")["first"][start:end].tolist()
    own = out / signed[file]
    lengths = exact.mapped(own)["lengths"].tolist()
    survivors = id_index.Rows(out, signed)
    marked = 0
    with write_lines(out / task.outputs[0]) as stream:
        for row, identity in enumerate(id_index.every(own)):
            attributes: dict[str, Any] = {}
            if first[row] != start + row:
                other = bisect.bisect_right(starts, first[row]) - 1
                survivor = survivors.at(other, first[row] - starts[other])
                attributes = {name: [[0, lengths[row], 1.0]], f"{name}_of": survivor}
                marked += 1
            stream.write(orjson.dumps({"attributes": attributes, "id": identity}) + b"\n")
    return Done({task.outputs[0]: end - start}, {"documents": end - start, "duplicates": marked})
