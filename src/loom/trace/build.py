"""A token folder -> an index, in bounded memory and in tasks that resume.

Four kinds of tasks for each shard of the index: `lay` writes the text with separators and the
documents' lines; `sort` sorts the suffixes of one piece of the text; `merge` merges one range of the
order from all pieces; `join` puts the ranges together. A text of one piece is sorted straight into its
table. The folder is whole without the token folder.
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
import pyarrow.parquet as pq

from loom import artifact
from loom.artifact import MANIFEST, Artifact, Input, Output, atomic_write, refer
from loom.engine import Done, Engine, LocalEngine, Operation, Task, clear_receipts
from loom.errors import LoomError
from loom.tokens.shards import TokenFolder, open_tokens
from loom.trace import kernels
from loom.trace.layout import (
    METADATA,
    METADATA_OFFSETS,
    OFFSETS,
    TABLE,
    TOKENS,
    TYPES,
    UNIGRAM,
    separator,
)
from loom.trace.suffixes import LOOKAHEAD, merge_tasks, piece_tasks, run_join

TOKENIZER = "tokenizer.json"
WORK = "work"  # sorted pieces and ranges, kept until the manifest is written
ROWS = 1 << 16
SORT_BYTES = 11  # memory a uint16 token while a piece is sorted; twice that for uint32


@dataclass(frozen=True)
class IndexTokens:
    """`tokens`: the token folder. `shards`: of the index, one a node or a disk.

    `piece_tokens` are sorted at a time and `memory_gb` bounds how many pieces are in memory at once;
    neither changes the index.
    """

    tokens: Path
    shards: int = 1
    piece_tokens: int = 1 << 28
    memory_gb: float = 4.0
    lookahead: int = LOOKAHEAD

    def __post_init__(self) -> None:
        if self.shards < 1:
            raise ValueError(f"shards is {self.shards}; it must be at least 1")
        if not 1 <= self.piece_tokens <= 1 << 29:
            raise ValueError(f"piece_tokens is {self.piece_tokens}; it must lie between 1 and {1 << 29:,}")


def build_index(recipe: IndexTokens, out: Path, engine: Engine | None = None) -> Artifact:
    """Index the token folder `recipe.tokens` into `out`; what is already done there is not done again."""
    started = time.monotonic()
    engine = engine or LocalEngine()
    folder = open_tokens(recipe.tokens)
    source = artifact.load(recipe.tokens, "tokens")
    settings = {"shards": recipe.shards}
    inputs = [refer(source, out)]
    if (done := _already(out, settings, inputs)) is not None:
        return done
    artifact.refuse_other(out, "index")
    dtype = index_type(folder)
    groups = deal(folder, recipe.shards)
    out.mkdir(parents=True, exist_ok=True)
    lay = Operation(
        "lay index text", 1, _Layer(str(recipe.tokens.resolve())), {"dtype": dtype.str}, threads=True
    )
    tasks = [_lay_task(folder, number, group) for number, group in enumerate(groups)]
    laid = engine.run(lay, tasks, out, "laying out the text")
    outputs = [item for finished in laid for item in finished.outputs]
    texts = {item.path: item for item in outputs if item.path.startswith(f"{TOKENS}.")}
    sort, pieces = piece_tasks(texts, dtype, recipe.piece_tokens, recipe.lookahead, WORK)
    sorters = _sorters(engine, dtype, recipe)
    finished_pieces = sorters.run(sort, pieces, out, "sorting suffixes")
    outputs += [item for done_ in finished_pieces for item in done_.outputs if item.path.startswith(TABLE)]
    merge, ranges = merge_tasks(finished_pieces, texts, dtype, recipe.lookahead, out, WORK)
    finished_ranges = sorters.run(merge, ranges, out, "merging pieces")
    join, joins = _join_tasks(finished_ranges)
    outputs += [item for done_ in engine.run(join, joins, out, "joining") for item in done_.outputs]
    with atomic_write(out / TOKENIZER) as stream:
        stream.write(folder.tokenizer.read_bytes())
    outputs += artifact.describe(out, [TOKENIZER])
    finished = artifact.commit(
        out,
        "index",
        recipe=settings,
        inputs=inputs,
        outputs=outputs,
        counters={
            "tokens": folder.tokens,
            "documents": sum(item.counters["documents"] for item in laid),
            "bytes": sum(item.bytes for item in outputs),
        },
        facts={"index": _facts(folder, dtype, groups, source.digest)},
        started=started,
    )
    clear_receipts(out)
    shutil.rmtree(out / WORK, ignore_errors=True)
    return finished


def _already(out: Path, settings: Mapping[str, Any], inputs: Sequence[Input]) -> Artifact | None:
    if not (out / MANIFEST).exists():
        return None
    if (done := artifact.finished(out, "index", settings, inputs)) is not None:
        return done
    held = artifact.load(out)
    if held.kind != "index":
        raise LoomError(f"{out} already holds {held.kind!r}. Give the index a folder of its own with --out.")
    for item in held.outputs:
        (out / item.path).unlink(missing_ok=True)
    artifact.discard(out, "index")
    return None


def index_type(folder: TokenFolder) -> np.dtype[Any]:
    """The ids' type in the index: the folder's own, unless its largest id is the separator."""
    dtype = TYPES[folder.dtype]
    return dtype if folder.vocab_size <= separator(dtype) else TYPES["uint32"]


def deal(folder: TokenFolder, shards: int) -> list[list[int]]:
    """Token shards to index shards: consecutive ones, as even in tokens as they come."""
    if shards > len(folder.shards):
        raise LoomError(
            f"{folder.path} has {len(folder.shards)} token shards, too few for {shards} shards of an index: "
            f"give fewer --shards, or tokenize with fewer tokens a shard."
        )
    sizes = [shard.tokens for shard in folder.shards]
    groups: list[list[int]] = []
    at = 0
    for number in range(shards):
        left = shards - number
        share = sum(sizes[at:]) / left
        group = [at]
        at += 1
        while len(sizes) - at >= left and (
            left == 1 or sum(sizes[i] for i in group) + sizes[at] / 2 <= share
        ):
            group.append(at)
            at += 1
        groups.append(group)
    return groups


def _lay_task(folder: TokenFolder, number: int, group: Sequence[int]) -> Task:
    names = (TOKENS, OFFSETS, METADATA, METADATA_OFFSETS, UNIGRAM)
    inputs = tuple(Input(folder.shards[shard].path, folder.shards[shard].digest) for shard in group)
    parameters = {"shards": list(group), "vocab_size": folder.vocab_size}
    return Task(inputs, tuple(f"{name}.{number}" for name in names), parameters)


@dataclass(frozen=True)
class _Layer:
    """Writes one index shard's text and documents from the token folder."""

    tokens: str

    def __call__(self, settings: Mapping[str, Any], task: Task, out: Path) -> Done:
        folder = open_tokens(Path(self.tokens))
        dtype = np.dtype(settings["dtype"])
        text, offsets, metadata, metadata_offsets, unigram = (out / name for name in task.outputs)
        counts = np.zeros(folder.vocab_size, np.int64)
        laid = lines = documents = 0
        with (
            atomic_write(text) as text_out,
            atomic_write(offsets) as offset_out,
            atomic_write(metadata) as metadata_out,
            atomic_write(metadata_offsets) as line_out,
        ):
            for number in task.parameters["shards"]:
                tokens = folder.arrays[number]
                for rows in _document_rows(folder, number):
                    starts, ends = (rows[name].to_numpy() for name in ("start", "end"))
                    if len(ends) and int(ends.max()) > len(tokens):
                        raise LoomError(_foreign_rows(folder, number))
                    lengths = ends - starts + 1
                    block = np.empty(int(lengths.sum()), dtype)
                    alien = kernels.lay(tokens, starts, ends, dtype.type(separator(dtype)), block, counts)
                    if alien >= 0:
                        raise LoomError(
                            f"{folder.path / folder.shards[number].path} holds the id {alien}, outside its "
                            f"vocabulary of {folder.vocab_size:,}. Tokenize again."
                        )
                    text_out.write(memoryview(block))  # type: ignore[arg-type]
                    begins = (laid + np.cumsum(lengths) - lengths) * dtype.itemsize
                    offset_out.write(begins.astype("<u8").tobytes())
                    written = [_line(number, row) for row in zip(*_columns(rows), strict=True)]
                    sizes = np.array([len(line) for line in written], np.int64)
                    line_out.write((lines + np.cumsum(sizes) - sizes).astype("<u8").tobytes())
                    metadata_out.writelines(written)
                    laid += len(block)
                    lines += int(sizes.sum())
                    documents += len(written)
        with atomic_write(unigram) as stream:
            for token in np.flatnonzero(counts):
                stream.write(b"%d %d\n" % (token, counts[token]))
            stream.write(b"%d %d\n" % (separator(dtype), documents))
        return Done({task.outputs[0]: laid, task.outputs[1]: documents}, {"documents": documents})


def _document_rows(folder: TokenFolder, number: int) -> Any:
    path = folder.path / folder.shards[number].path.replace(".npy", ".docs.parquet")
    if not path.is_file():
        raise LoomError(f"{path} is missing: without it no one knows whose tokens these are. Tokenize again.")
    columns = ["start", "end", "id", "source", "origin"]
    for batch in pq.ParquetFile(path).iter_batches(batch_size=ROWS, columns=columns):
        yield {name: batch.column(name) for name in columns}


def _columns(rows: Mapping[str, Any]) -> list[list[Any]]:
    return [rows[name].to_pylist() for name in ("start", "id", "source", "origin")]


def _line(shard: int, row: tuple[int, str, str, str]) -> bytes:
    start, identity, source, origin = row
    path, _, line = origin.rpartition(":")
    value = {
        "path": path,
        "linenum": int(line) - 1,
        "metadata": {"id": identity, "source": source, "shard": shard, "start": start},
    }
    return orjson.dumps(value) + b"\n"


def _foreign_rows(folder: TokenFolder, number: int) -> str:
    shard = folder.shards[number]
    return (
        f"{folder.path / shard.path} has {shard.tokens:,} tokens, fewer than the documents beside it claim: "
        f"the two do not belong together. Tokenize again."
    )


def _sorters(engine: Engine, dtype: np.dtype[Any], recipe: IndexTokens) -> Engine:
    if not isinstance(engine, LocalEngine):
        return engine
    need = recipe.piece_tokens * SORT_BYTES * dtype.itemsize / 2
    return LocalEngine(max(1, min(engine.workers, int(recipe.memory_gb * 1e9 / need))))


def _join_tasks(ranges: Sequence[Any]) -> tuple[Operation, list[Task]]:
    by_shard: dict[int, list[Output]] = {}
    for finished in ranges:
        by_shard.setdefault(finished.task.parameters["shard"], []).extend(finished.outputs)
    tasks = [
        Task(
            tuple(Input(item.path, item.digest) for item in parts),
            (f"{TABLE}.{number}",),
            {"rows": sum(item.rows for item in parts)},
        )
        for number, parts in sorted(by_shard.items())
    ]
    return Operation("join ranges", 1, run_join, threads=True), tasks


def _facts(
    folder: TokenFolder, dtype: np.dtype[Any], groups: Sequence[Sequence[int]], digest: str
) -> dict[str, Any]:
    return {
        "dtype": dtype.name,
        "vocab_size": folder.vocab_size,
        "eos": {"id": folder.eos.id, "token": folder.eos.token},
        "tokenizer": {"path": TOKENIZER, "digest": folder.tokenizer_digest},
        "tokens": digest,
        "shards": [
            {
                "token_shards": [
                    {"path": folder.shards[i].path, "digest": folder.shards[i].digest} for i in group
                ]
            }
            for group in groups
        ],
    }
