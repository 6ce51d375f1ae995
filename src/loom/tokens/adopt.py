"""Take over token data that OLMo or Dolma wrote: raw `.npy` files, with or without Dolma's `.csv.gz`.

Documents are what the csv says, each ending in an end-of-text id (there may be more of them inside: Dolma encodes
a text that spells the token out as the id), or what lies between end-of-text ids. Either way the end-of-text id is
checked by counting, because published configurations name a tokenizer whose id is another: data that
never holds the tokenizer's id is refused. Files are linked where the disk allows, else copied.
"""

from __future__ import annotations

import gzip
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
from numpy.typing import NDArray

from loom import artifact
from loom.artifact import Artifact, Input, Output, atomic_write, digest_file, relative
from loom.console import console
from loom.errors import LoomError
from loom.tokens.parts import BASE_SCHEMA, token_type, write_table
from loom.tokens.tokenize import already, tokenizer_input
from loom.tokens.tokenizer import TOKENIZER_FILE, Tokenizer

NUMPY_MAGIC = b"\x93NUMPY"
BLOCK = 1 << 26  # ids looked at together


@dataclass(frozen=True)
class Adopt:
    folder: Path
    tokenizer: Path


def adopt(recipe: Adopt, out: Path) -> Artifact:
    """Make the token folder `out` of the `.npy` files below `recipe.folder`, in order of their paths.

    Raises `LoomError` for a file that is not whole ids, holds ids past the vocabulary, never holds the
    tokenizer's end-of-text id, or whose csv does not cover it.
    """
    started = time.monotonic()
    tokenizer = Tokenizer.load(recipe.tokenizer)
    files = sorted(recipe.folder.rglob("*.npy"))
    if not files:
        raise LoomError(f"{recipe.folder} holds no .npy files to take over.")
    inputs = [Input(relative(path, out), "") for path in files]
    inputs.append(tokenizer_input(recipe.tokenizer, out))
    settings = {"adopt": True}
    if (done := already(out, settings, inputs)) is not None:
        return done
    dtype = token_type(tokenizer.vocab_size)
    shards, outputs, taken = [], [], []
    sources: dict[str, dict[str, int]] = {}
    counters = {"documents": 0, "tokens": 0, "without_eos": 0, "eos_inside": 0}
    with console.progress("taking over shards", total=len(files)) as progress:
        for number, path in enumerate(files):
            name = path.relative_to(recipe.folder).as_posix()
            ends = _document_ends(path, dtype, tokenizer)
            table = _documents(path, name, ends)
            shard = f"shard-{number:05d}"
            _place(path, out / f"{shard}.npy")
            write_table(out / f"{shard}.docs.parquet", table)
            tokens = path.stat().st_size // dtype.itemsize
            digest = digest_file(path)
            taken.append(Input(relative(path, out), digest))
            outputs.append(Output(f"{shard}.npy", path.stat().st_size, tokens, digest))
            outputs += artifact.describe(
                out, [f"{shard}.docs.parquet"], {f"{shard}.docs.parquet": len(table)}
            )
            entry = {"path": f"{shard}.npy", "tokens": tokens, "documents": len(table), "digest": digest}
            shards.append(entry)
            _count(table, sources)
            counters["documents"] += len(table)
            counters["tokens"] += tokens
            counters["without_eos"] += int(ends.finished is False)
            counters["eos_inside"] += len(ends.offsets) - len(table)
            progress.advance()
    if counters["without_eos"]:
        console.warn(f"{counters['without_eos']} files end in the middle of a document.")
    if counters["eos_inside"]:
        console.warn(
            f"{counters['eos_inside']:,} end-of-text ids stand inside documents, whose ends the .csv.gz tell: Dolma "
            f"writes one where a text spells {tokenizer.eos_token!r} out."
        )
    with atomic_write(out / TOKENIZER_FILE) as stream:
        stream.write(tokenizer.data)
    outputs += artifact.describe(out, [TOKENIZER_FILE])
    facts: dict[str, Any] = {
        "dtype": dtype.name,
        **tokenizer.facts(),
        "tokenizer": {"path": TOKENIZER_FILE, "digest": tokenizer.digest},
        "shards": shards,
        "sources": {name: sources[name] for name in sorted(sources)},
    }
    return artifact.commit(
        out,
        "tokens",
        recipe=settings,
        inputs=[*taken, inputs[-1]],
        outputs=outputs,
        counters=counters,
        facts={"tokens": facts},
        started=started,
    )


@dataclass(frozen=True)
class Ends:
    """Offsets just after each end-of-text id, and a last one at the file's end if it lacks the id."""

    offsets: NDArray[np.int64]
    finished: bool


def _document_ends(path: Path, dtype: np.dtype[Any], tokenizer: Tokenizer) -> Ends:
    size = path.stat().st_size
    with open(path, "rb") as stream:
        if stream.read(len(NUMPY_MAGIC)) == NUMPY_MAGIC:
            raise LoomError(
                f"{path} was written by numpy.save and has a header; OLMo's and Dolma's files are raw ids. "
                f"Write the array with .tofile() instead."
            )
    if size == 0 or size % dtype.itemsize:
        raise LoomError(
            f"{path} has {size:,} bytes, which is not a number of whole {dtype.name} ids: it was cut short, "
            f"or its ids are of another size than the tokenizer's {tokenizer.vocab_size:,} entries need."
        )
    ids = np.memmap(path, dtype=dtype, mode="r")
    found, largest = [], 0
    for start in range(0, len(ids), BLOCK):
        block = ids[start : start + BLOCK]
        largest = max(largest, int(block.max()))
        found.append(np.flatnonzero(block == tokenizer.eos_id) + start + 1)
    if largest >= tokenizer.vocab_size:
        raise LoomError(
            f"{path} holds id {largest:,}, but the tokenizer {tokenizer.name} has {tokenizer.vocab_size:,} "
            f"entries. Name the tokenizer that the data was made with."
        )
    offsets = np.concatenate(found)
    if not len(offsets):
        last = int(ids[-1])
        raise LoomError(
            f"{path} never holds id {tokenizer.eos_id}, which is {tokenizer.eos_token!r} in "
            f"{tokenizer.name}; its last id is {last} ({tokenizer.decode([last])!r} there). The data was "
            f"made with another tokenizer: name that one."
        )
    finished = bool(offsets[-1] == len(ids))
    return Ends(offsets if finished else np.append(offsets, len(ids)), finished)


def _documents(path: Path, name: str, ends: Ends) -> pa.Table:
    listing = path.with_suffix(".csv.gz")
    if not listing.is_file():
        starts = np.concatenate([[0], ends.offsets[:-1]])
        rows = range(1, len(starts) + 1)
        columns: dict[str, Any] = {
            "start": starts,
            "end": ends.offsets,
            "id": [f"{name}:{row}" for row in rows],
            "source": [Path(name).parent.name or path.stem] * len(starts),
            "origin": [f"{name}:{row}" for row in rows],
        }
        return pa.table(columns, schema=BASE_SCHEMA)
    names = ["start", "end", "id", "src", "loc"]
    try:
        with gzip.open(listing) as stream:
            table = pa.csv.read_csv(
                stream,
                read_options=pa.csv.ReadOptions(column_names=names),
                parse_options=pa.csv.ParseOptions(newlines_in_values=True),
                convert_options=pa.csv.ConvertOptions(
                    column_types={
                        "start": pa.int64(),
                        "end": pa.int64(),
                        "id": pa.string(),
                        "src": pa.string(),
                        "loc": pa.int64(),
                    }
                ),
            )
    except (OSError, EOFError, pa.ArrowInvalid) as error:
        raise LoomError(f"{listing} cannot be read as Dolma's list of documents: {error}.") from None
    starts, stops = table.column("start").to_numpy(), table.column("end").to_numpy()
    covers = len(starts) > 0 and starts[0] == 0 and bool((starts[1:] == stops[:-1]).all())
    at_ends = covers and stops[-1] == ends.offsets[-1] and bool(np.isin(stops, ends.offsets).all())
    if not at_ends:
        raise LoomError(
            f"{listing} lists {len(starts):,} documents, but {path.name} holds {len(ends.offsets):,} end-of-text "
            f"ids, some of the documents' ends not among them. One of the two belongs to other data."
        )
    paths = table.column("src").to_pylist()
    columns = {
        "start": starts,
        "end": stops,
        "id": table.column("id"),
        "source": [_source(item) for item in paths],
        "origin": [f"{item}:{row}" for item, row in zip(paths, table.column("loc").to_pylist(), strict=True)],
    }
    return pa.table(columns, schema=BASE_SCHEMA)


def _source(path: str) -> str:
    """The folder after `documents/` if there is one, else the folder the file lies in."""
    parts = path.split("/")
    if "documents" in parts[:-2]:
        return parts[parts.index("documents") + 1]
    return parts[-2] if len(parts) > 1 else parts[-1].split(".")[0]


def _place(path: Path, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    to.unlink(missing_ok=True)
    try:
        os.link(path, to)
    except OSError:
        temporary = to.with_name(f".{to.name}.tmp")
        shutil.copyfile(path, temporary)
        os.replace(temporary, to)


def _count(table: pa.Table, sources: dict[str, dict[str, int]]) -> None:
    lengths = table.column("end").to_numpy() - table.column("start").to_numpy()
    for source, length in zip(table.column("source").to_pylist(), lengths.tolist(), strict=True):
        entry = sources.setdefault(source, {"documents": 0, "tokens": 0, "bytes": 0})
        entry["documents"] += 1
        entry["tokens"] += length
