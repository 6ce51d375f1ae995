"""Near-duplicates by MinHash: shingles of words, banded matches, connected components.

The defaults are FineWeb's: shingles of 5 words, 14 bands of 8 hashes, which find pairs of Jaccard similarity
0.8 with probability 0.92. The first document of a cluster in input order stays; the others are marked.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from loom.artifact import Artifact, Input, commit, discard, finished
from loom.corpus import documents, tag
from loom.corpus.dedupe import exact
from loom.corpus.documents import read_lines, write_lines
from loom.engine import Done, Engine, Finished, LocalEngine, Operation, Task, clear_receipts, sum_counters
from loom.recipe import to_plain

WORK = "work"


@dataclass(frozen=True)
class MinHash:
    """Shingle length in words, bands and hashes a band, the seed of the hash functions."""

    documents: tuple[str, ...]
    name: str = "near_duplicates"
    words: int = 5
    bands: int = 14
    rows: int = 8
    seed: int = 1

    def __post_init__(self) -> None:
        if min(self.words, self.bands, self.rows) < 1:
            raise ValueError("words, bands and rows must be at least 1")


def probability(similarity: float, bands: int, rows: int) -> float:
    """The chance that a pair of this Jaccard similarity meets in a band: 1 - (1 - s^r)^b."""
    return float(1.0 - (1.0 - similarity**rows) ** bands)


def hash_functions(seed: int, count: int) -> tuple[Any, Any]:
    """Odd factors and terms of `count` hash functions, the same for a seed everywhere."""
    generator = np.random.Generator(np.random.PCG64(seed))
    factors = generator.integers(0, 2**32, count, np.uint32) | np.uint32(1)
    return factors, generator.integers(0, 2**32, count, np.uint32)


def minhash(recipe: MinHash, engine: Engine | None = None, out: Path | None = None) -> Artifact:
    """Write `attributes/<name>/`: a span for every document but a cluster's first, and that one's id."""
    started = time.monotonic()
    files = tag.find(recipe.documents)
    root = (out or tag.root_of(files)) / "attributes" / recipe.name
    inputs = [Input(str(file.path.resolve()), file.digest) for file in files]
    plain = to_plain(recipe)
    if (before := finished(root, "attributes", plain, inputs)) is not None:
        return before
    discard(root)
    engine = engine or LocalEngine()
    settings = {key: plain[key] for key in ("words", "bands", "rows", "seed")}
    signed = engine.run(
        Operation("minhash signatures", 2, _sign, settings, threads=True),
        [
            Task((item,), (f"{WORK}/{n:06d}.bands", f"{WORK}/{n:06d}.ids"), {"path": str(file.path)})
            for n, (item, file) in enumerate(zip(inputs, files, strict=True))
        ],
        root,
        "signatures",
    )
    matched = _match(recipe, signed, root, engine)
    joined = _join(signed, matched, root, engine)
    written = _write(recipe, files, signed, joined, root, engine)
    counters = sum_counters([done.counters for done in written])
    counters["clusters"] = joined.counters["clusters"]
    artifact = commit(
        root,
        "attributes",
        recipe=plain,
        inputs=inputs,
        outputs=[item for done in written for item in done.outputs],
        counters=counters,
        started=started,
    )
    clear_receipts(root)
    shutil.rmtree(root / WORK, ignore_errors=True)
    return artifact


def _sign(settings: Mapping[str, Any], task: Task, out: Path) -> Done:
    from loom.corpus.kernels import minhash as kernels
    from loom.corpus.kernels.characters import lengths

    functions = hash_functions(settings["seed"], settings["bands"] * settings["rows"])
    keys, sizes = [], []
    with write_lines(out / task.outputs[1]) as stream:
        for batch in documents.read(Path(task.parameters["path"])):
            signature, counts = kernels.signatures(*batch.utf8(), settings["words"], *functions)
            keys.append(kernels.bands(signature, counts, settings["rows"]))
            sizes.append(lengths(*batch.utf8()))
            stream.writelines(orjson.dumps(name) + b"\n" for name in batch.ids)
    count = sum(part.size for part in sizes)
    shape = (0, settings["bands"], 2)
    exact.save(
        out / task.outputs[0],
        keys=np.concatenate([np.zeros(shape, np.uint64), *keys]),
        lengths=np.concatenate([np.zeros(0, np.int64), *sizes]),
    )
    return Done(counters={"documents": count})


def _inputs(results: Sequence[Finished]) -> tuple[Input, ...]:
    return tuple(Input(item.path, item.digest) for done in results for item in done.outputs)


def _match(recipe: MinHash, signed: Sequence[Finished], root: Path, engine: Engine) -> list[Finished]:
    """A task a band: every document with the first in input order that has the same key."""
    tasks = [
        Task(
            _inputs(signed),
            (f"{WORK}/band-{band:04d}",),
            {"band": band, "keys": [done.task.outputs[0] for done in signed]},
        )
        for band in range(recipe.bands)
    ]
    return engine.run(Operation("minhash band", 1, _match_task, threads=True), tasks, root, "bands")


def _match_task(settings: Any, task: Task, out: Path) -> Done:
    from loom.corpus.kernels.fingerprints import first_of

    band = task.parameters["band"]
    keys = np.concatenate([exact.load(out / name)["keys"][:, band] for name in task.parameters["keys"]])
    some = np.flatnonzero(keys[:, 1])
    first = some[first_of(np.ascontiguousarray(keys[some]))]
    again = first != some
    exact.save(out / task.outputs[0], pairs=np.stack([first[again], some[again]], axis=1))
    return Done(counters={"pairs": int(again.sum())})


def _join(signed: Sequence[Finished], matched: Sequence[Finished], root: Path, engine: Engine) -> Finished:
    task = Task(
        _inputs(matched),
        (f"{WORK}/clusters",),
        {
            "bands": [done.task.outputs[0] for done in matched],
            "documents": sum(done.counters["documents"] for done in signed),
        },
    )
    return engine.run(Operation("minhash clusters", 1, _join_task, threads=True), [task], root, "clusters")[0]


def _join_task(settings: Any, task: Task, out: Path) -> Done:
    from loom.corpus.kernels.minhash import clusters

    pairs = np.concatenate([exact.load(out / name)["pairs"] for name in task.parameters["bands"]])
    first = clusters(pairs, task.parameters["documents"])
    exact.save(out / task.outputs[0], first=first)
    again = first != np.arange(first.size)
    return Done(counters={"clusters": int(np.unique(first[again]).size)})


def _write(
    recipe: MinHash,
    files: Sequence[tag.File],
    signed: Sequence[Finished],
    joined: Finished,
    root: Path,
    engine: Engine,
) -> list[Finished]:
    tasks = []
    start = 0
    names = [done.task.outputs[1] for done in signed]
    for file, done in zip(files, signed, strict=True):
        count = done.counters["documents"]
        tasks.append(
            Task(
                _inputs([done, joined]),
                (tag.sidecar_name(file, "jsonl"),),
                {"start": start, "count": count, "own": done.task.outputs, "ids": names, "name": recipe.name},
            )
        )
        start += count
    return engine.run(Operation("minhash write", 1, _write_task, threads=True), tasks, root, "write")


def _write_task(settings: Any, task: Task, out: Path) -> Done:
    parameters = task.parameters
    start, count, name = parameters["start"], parameters["count"], parameters["name"]
    first = exact.load(out / WORK / "clusters")["first"][start : start + count].tolist()
    lengths = exact.load(out / parameters["own"][0])["lengths"].tolist()
    wanted = {other for row, other in enumerate(first) if other != start + row}
    survivors = _ids(out, parameters["ids"], wanted)
    marked = 0
    with write_lines(out / task.outputs[0]) as stream:
        for row, line in enumerate(read_lines(out / parameters["own"][1])):
            attributes: dict[str, Any] = {}
            if first[row] != start + row:
                attributes = {name: [[0, lengths[row], 1.0]], f"{name}_of": survivors[first[row]]}
                marked += 1
            stream.write(orjson.dumps({"attributes": attributes, "id": orjson.loads(line)}) + b"\n")
    return Done({task.outputs[0]: count}, {"documents": count, "duplicates": marked})


def _ids(out: Path, names: Sequence[str], wanted: set[int]) -> dict[int, str]:
    found: dict[int, str] = {}
    number = 0
    for name in names if wanted else ():
        for line in read_lines(out / name):
            if number in wanted:
                found[number] = orjson.loads(line)
            number += 1
    return found
