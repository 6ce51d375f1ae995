"""Near-duplicates within a curation: of the documents that nothing else removed, the first of a cluster stays.

The comparing is `loom dedupe --by minhash`'s; here documents are numbered among those that are left, and what
is found goes where the exact duplicates go.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from loom.artifact import Input
from loom.corpus import documents
from loom.corpus.batch import utf8
from loom.corpus.dedupe import exact, minhash
from loom.corpus.dedupe.minhash import Near
from loom.corpus.mix import NEAR_DUPLICATE, dead_rows
from loom.corpus.tag import File
from loom.engine import Done, Engine, Finished, Operation, Task
from loom.recipe import to_plain


def near_duplicates(
    near: Near,
    wanted: Sequence[bool],
    files: Sequence[File],
    judged: Sequence[Finished],
    before: Sequence[Finished],
    out: Path,
    engine: Engine,
) -> Finished:
    """What of `files` repeats an earlier document nearly: a table a file, int64[d, 3], as `dead_rows` reads it.

    `judged` are the files' verdicts, `before` the duplicates found already, `wanted` whether a file is looked at.
    """
    dead = [done.task.outputs[0] for done in before]
    found = tuple(Input(item.path, item.digest) for done in before for item in done.outputs)
    signed = engine.run(
        Operation("near signatures", 1, _sign, {"dead": dead, **to_plain(near)}, threads=True),
        [
            Task(
                (
                    Input(str(file.path), file.digest),
                    *(Input(item.path, item.digest) for item in done.outputs),
                    *found,
                ),
                (f"{minhash.WORK}/{file.stem}.near",),
                {
                    "path": str(file.path),
                    "index": index,
                    "judged": done.task.outputs[0],
                    "wanted": wanted[index],
                },
            )
            for index, (file, done) in enumerate(zip(files, judged, strict=True))
        ],
        out,
        "signatures",
    )
    joined = minhash.clusters(near.bands, signed, out, engine)
    names = [done.task.outputs[0] for done in signed]
    settings = {"signed": names, "starts": minhash.starts_of(signed), "clusters": joined.task.outputs[0]}
    inputs = tuple(Input(item.path, item.digest) for done in (*signed, joined) for item in done.outputs)
    task = Task(inputs, (f"{minhash.WORK}/{NEAR_DUPLICATE}",), {})
    operation = Operation("near duplicates", 1, _tables, settings, threads=True)
    return engine.run(operation, [task], out, "near duplicates")[0]


def _sign(settings: Mapping[str, Any], task: Task, out: Path) -> Done:
    """Save the bands of the documents that are left, and their rows."""
    from loom.corpus.kernels import minhash as kernels

    verdict = exact.one(out / task.parameters["judged"], "verdict")
    assert verdict is not None
    alive = (np.asarray(verdict) < 0) & task.parameters["wanted"]
    alive[dead_rows(out, settings["dead"], task.parameters["index"])[:, 0]] = False
    functions = minhash.hash_functions(settings["seed"], settings["bands"] * settings["rows"])
    keys = [np.zeros((0, settings["bands"], 2), np.uint64)]
    first = 0
    for batch in documents.read(Path(task.parameters["path"])) if alive.any() else ():
        mine = alive[first : first + len(batch)]
        first += len(batch)
        if mine.any():
            texts = utf8(batch.table.column("text").filter(pa.array(mine)))
            keys.append(
                kernels.bands(*kernels.signatures(*texts, settings["words"], *functions), settings["rows"])
            )
    tables = minhash.band_tables(np.concatenate(keys))
    exact.save(out / task.outputs[0], alive=np.flatnonzero(alive), **tables)
    return Done(counters={"documents": int(alive.sum())})


def _tables(settings: Mapping[str, Any], task: Task, out: Path) -> Done:
    starts = np.array(settings["starts"])
    first = exact.mapped(out / settings["clusters"])["first"]
    rows = [np.asarray(exact.one(out / name, "alive")) for name in settings["signed"]]
    tables = {}
    for index, own in enumerate(rows):
        mine = first[starts[index] : starts[index + 1]]
        again = np.flatnonzero(mine != np.arange(starts[index], starts[index + 1]))
        files = np.searchsorted(starts, mine[again], "right") - 1
        places = zip(files.tolist(), (mine[again] - starts[files]).tolist(), strict=True)
        survivors = np.array([rows[file][place] for file, place in places], np.int64)
        if again.size:
            tables[f"{index:08d}"] = np.stack([own[again], files, survivors], axis=1)
    exact.save(out / task.outputs[0], **tables)
    return Done(counters={"duplicates": sum(table.shape[0] for table in tables.values())})
