"""Drawing a mixture: so many tokens of each source, so many in all, then a shuffle.

Documents are taken in the order of the keyed hash of their ids, up to the last that still fits; so a draw
holds at most the tokens asked for, and less than one document fewer. A source that has too little is taken
whole as often as it fits, and in part once more; the copies are called `id#2`, `id#3`. Tokens are what
`loom tokenize` makes of a document, its end-of-text included; documents without text are left out.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from loom.artifact import MANIFEST, Artifact, Input, commit, digest_file, discard, finished, load
from loom.corpus import documents, ids, shuffle, tag
from loom.corpus.batch import as_rows
from loom.corpus.dedupe import exact
from loom.corpus.documents import write_lines
from loom.corpus.sampling import keyed_hash
from loom.corpus.tag import File
from loom.engine import Done, Engine, Finished, LocalEngine, Operation, Task, clear_work, sum_counters
from loom.errors import LoomError
from loom.recipe import to_plain
from loom.tokens.documents import Rejected

WORK = "work"
EVERY = 1 << 64  # above every hash


@dataclass(frozen=True)
class SampleSource:
    """A source's files (below the recipe's `documents` by default) and how much of it is wanted.

    At most one of: `tokens`, exactly so many; `weight`, a share of the recipe's tokens; `share`, of what is
    there (above 1 it repeats). With none, all of it; or, where the recipe says `tokens`, its part of what the
    others leave, in proportion to what is there.
    """

    documents: tuple[str, ...] = ()
    tokens: int | None = None
    weight: float | None = None
    share: float | None = None

    def __post_init__(self) -> None:
        given = [value for value in (self.tokens, self.weight, self.share) if value is not None]
        if len(given) > 1:
            raise ValueError("give one of tokens, weight and share")
        if given and given[0] <= 0:
            raise ValueError("tokens, weight and share must be above 0")


@dataclass(frozen=True)
class Sample:
    """A mixture: its sources, how many tokens in all, the tokenizer that counts them, whether to shuffle."""

    sources: Mapping[str, SampleSource]
    tokenizer: str
    documents: str = ""
    tokens: int | None = None
    shuffle: bool = True
    seed: int = 0
    file_mb: int = 256  # text a shuffled file holds, and what a worker keeps in memory to sort it
    most_copies: int = 10  # a source repeated more often is an error

    def __post_init__(self) -> None:
        if self.tokens is None and any(source.weight is not None for source in self.sources.values()):
            raise ValueError("a weight is a share of the recipe's tokens: set tokens")
        weights = sum(source.weight or 0 for source in self.sources.values())
        if weights > 1 + 1e-9:
            raise ValueError(f"the weights sum to {weights:g}, above 1")
        if self.file_mb < 1 or self.most_copies < 1:
            raise ValueError("file_mb and most_copies must be at least 1")


@dataclass(frozen=True)
class Cut:
    """How often a source is taken: `whole` times, and once more the documents whose hash is below `below`."""

    whole: int
    below: int

    def copies(self, hashed: int) -> int:
        return self.whole + (hashed < self.below)


def sample(recipe: Sample, out: Path, engine: Engine | None = None) -> Artifact:
    """Draw the mixture into `out/documents/`, with an index of every document's id in `out/ids/`.

    Raises `LoomError` for a source without text, or one that would be repeated too often.
    """
    started = time.monotonic()
    files = {name: _files(recipe, name) for name in recipe.sources}
    tokenizer = _tokenizer_file(recipe.tokenizer)
    inputs = [
        Input(str(tokenizer.resolve()), digest_file(tokenizer)),
        *tag.inputs_of(recipe.documents, [file for found in files.values() for file in found], out),
    ]
    plain = to_plain(recipe)
    if (before := finished(out, "documents", plain, inputs)) is not None:
        clear_work(out, WORK)
        return before
    discard(out, "documents")
    engine = engine or LocalEngine()
    owners = [name for name, found in files.items() for _ in found]
    flat = [file for found in files.values() for file in found]
    counted = _count(recipe, tokenizer, flat, out, engine)
    held = {
        name: [done for owner, done in zip(owners, counted, strict=True) if owner == name] for name in files
    }
    wanted = targets(recipe, {name: _sum(done, "tokens") for name, done in held.items()})
    cuts = {name: _cut(recipe, name, held[name], wanted[name], out) for name in files}
    drawn, made = _draw(recipe, owners, flat, counted, wanted, cuts, out, engine)
    index = ids.write(counted, sum(_sum(done, "documents") for done in held.values()), out, engine)
    counters = _counters(owners, held, drawn, wanted, cuts)
    if not counters["documents"]:
        raise LoomError(
            f"The mixture holds no document: {sum(wanted.values()):,} tokens are fewer than the first one has."
        )
    aside = [item for item in tag.kept(counted, out) if item.path.startswith(f"{tag.REJECTED}/")]
    artifact = commit(
        out,
        "documents",
        recipe=plain,
        inputs=inputs,
        outputs=[*aside, *(item for done in (*made, *index) for item in done.outputs)],
        counters=counters,
        started=started,
    )
    clear_work(out, WORK)
    return artifact


def input_files(recipe: Sample, at: Path) -> list[tuple[str, File]]:
    """The files of a finished mixture with their sources, in the order of its index.

    Where the tree has moved, the recorded input is looked for where the manifest says it lies.
    """
    if recipe.documents and not Path(recipe.documents).exists():
        moved = [at / item.path for item in load(at).inputs if (at / item.path / MANIFEST).exists()]
        recipe = replace(recipe, documents=os.path.normpath(moved[0])) if moved else recipe
    return [(name, file) for name in recipe.sources for file in _files(recipe, name)]


def _files(recipe: Sample, name: str) -> list[File]:
    chosen = recipe.sources[name].documents
    if not chosen and not recipe.documents:
        raise LoomError(f"The recipe names no documents for the source {name!r}: set `documents`.")
    root = Path(recipe.documents)
    found = tag.find(chosen or (str(root / "documents" / name),))
    known = tag.listed(root if recipe.documents else "")
    return tag.of_source(name, found, known)


def _tokenizer_file(path: str) -> Path:
    from loom.tokens.tokenizer import tokenizer_file

    return tokenizer_file(Path(path))


def _sum(done: Sequence[Finished], key: str) -> int:
    return sum(item.counters[key] for item in done)


def _count(
    recipe: Sample, tokenizer: Path, files: Sequence[File], out: Path, engine: Engine
) -> list[Finished]:
    tasks = [
        Task(
            (Input(str(file.path), file.digest),),
            (f"{WORK}/{n:06d}.counts", f"{tag.REJECTED}/{file.stem}.jsonl"),
            {"path": str(file.path)},
        )
        for n, file in enumerate(files)
    ]
    settings = {"tokenizer": digest_file(tokenizer), "seed": recipe.seed}
    operation = Operation("count tokens", 2, _Counter(str(tokenizer.resolve())), settings, threads=True)
    return engine.run(operation, tasks, out, "count tokens")


@lru_cache(maxsize=1)
def _load(path: str, digest: str) -> Any:
    from loom.tokens.tokenizer import Tokenizer

    return Tokenizer.load(path)


@dataclass(frozen=True)
class _Counter:
    """Counts a file's tokens, document by document, in the order of the hash that draws them."""

    tokenizer: str

    def __call__(self, settings: Mapping[str, Any], task: Task, out: Path) -> Done:
        tokenizer = _load(self.tokenizer, settings["tokenizer"])
        names: list[str] = []
        lengths = [np.zeros(0, np.int64)]
        size = 0
        rejected: list[Rejected] = []
        for batch in documents.read(Path(task.parameters["path"])):
            texts = [text.strip() for text in batch.texts()]
            counts = np.diff(tokenizer.encode_batch(texts).offsets)
            lengths.append(counts + np.array([bool(text) for text in texts], np.int64))
            names += batch.ids
            size += int(np.diff(batch.utf8()[1]).sum())
            rejected += batch.rejected
        tokens = np.concatenate(lengths)
        hashes = np.array([keyed_hash(name, settings["seed"]) for name in names], np.uint64)
        order = np.argsort(hashes, kind="stable")
        exact.save(
            out / task.outputs[0],
            hashes=hashes[order],
            cumulative=np.concatenate([[0], np.cumsum(tokens[order])]).astype(np.int64),
            tokens=tokens,
            **ids.table(names),
        )
        some = int((tokens > 0).sum())
        with write_lines(out / task.outputs[1]) as stream:
            stream.writelines(item.json() + b"\n" for item in rejected)
        counters = {"documents": len(names), "with_text": some, "tokens": int(tokens.sum()), "bytes": size}
        counters["rejected"] = len(rejected)
        return Done({task.outputs[0]: len(names), task.outputs[1]: len(rejected)}, counters)


def targets(recipe: Sample, available: Mapping[str, int]) -> dict[str, int]:
    """Tokens wanted of each source; what `tokens` leaves over is divided by largest remainders."""
    wanted: dict[str, int] = {}
    for name, source in recipe.sources.items():
        if not available[name]:
            raise LoomError(f"The source {name!r} holds no text, so nothing can be drawn from it.")
        if source.tokens is not None:
            wanted[name] = source.tokens
        elif source.weight is not None:
            wanted[name] = int(source.weight * (recipe.tokens or 0))
        elif source.share is not None:
            wanted[name] = int(source.share * available[name])
    rest = [name for name in recipe.sources if name not in wanted]
    if recipe.tokens is None:
        return {name: wanted.get(name, available[name]) for name in recipe.sources}
    left = recipe.tokens - sum(wanted.values())
    if left < 0 or (left and not rest and left > len(wanted)):
        raise LoomError(
            f"The sources are given {sum(wanted.values()):,} tokens, but the mixture is to hold "
            f"{recipe.tokens:,}. Change `tokens`, or leave one source without a number: it takes the rest."
        )
    every = sum(available[name] for name in rest)
    exactly = {name: left * available[name] for name in rest}
    wanted |= {name: value // every for name, value in exactly.items()}
    short = left - sum(wanted[name] for name in rest)
    for name in sorted(rest, key=lambda name: (-(exactly[name] % every), name))[:short]:
        wanted[name] += 1
    return {name: wanted[name] for name in recipe.sources}


def _cut(recipe: Sample, name: str, counted: Sequence[Finished], wanted: int, out: Path) -> Cut:
    available = _sum(counted, "tokens")
    whole, rest = divmod(wanted, available)
    if whole + (rest > 0) > recipe.most_copies:
        raise LoomError(
            f"{wanted:,} tokens of {name!r} would repeat its {available:,} tokens {wanted / available:.1f} "
            f"times, more than most_copies ({recipe.most_copies}). Ask for fewer, or raise most_copies."
        )
    tables = [exact.mapped(out / done.task.outputs[0]) for done in counted]
    return Cut(whole, cut_below(tables, rest))


def cut_below(tables: Sequence[Mapping[str, Any]], tokens: int) -> int:
    """The largest hash below which all documents together hold at most `tokens`, by bisection.

    A table is a file's `hashes`, sorted, and the `cumulative` tokens before each of them.
    """

    def below(limit: int) -> int:
        total = 0
        for table in tables:
            at = (
                table["hashes"].size
                if limit >= EVERY
                else int(np.searchsorted(table["hashes"], np.uint64(limit)))
            )
            total += int(table["cumulative"][at])
        return total

    if below(EVERY) <= tokens:
        return EVERY
    low, high = 0, EVERY
    while high - low > 1:
        middle = (low + high) // 2
        if below(middle) <= tokens:
            low = middle
        else:
            high = middle
    return low


def _draw(
    recipe: Sample,
    owners: Sequence[str],
    files: Sequence[File],
    counted: Sequence[Finished],
    wanted: Mapping[str, int],
    cuts: Mapping[str, Cut],
    out: Path,
    engine: Engine,
) -> tuple[list[Finished], list[Finished]]:
    """What was drawn of each file, and what wrote the documents."""
    text = {
        name: sum(
            done.counters["bytes"] for owner, done in zip(owners, counted, strict=True) if owner == name
        )
        for name in cuts
    }
    available = {
        name: sum(
            done.counters["tokens"] for owner, done in zip(owners, counted, strict=True) if owner == name
        )
        for name in cuts
    }
    size = sum(text[name] * wanted[name] // available[name] for name in cuts)
    partitions = max(1, -(-size // (recipe.file_mb << 20)))
    tasks = []
    for n, (owner, file, done) in enumerate(zip(owners, files, counted, strict=True)):
        cut = cuts[owner]
        outputs = (
            (f"{WORK}/{n:06d}.scatter", f"{WORK}/{n:06d}.scatter.frames")
            if recipe.shuffle
            else (f"documents/{file.stem}.jsonl.zst",)
        )
        parameters = {
            "path": str(file.path),
            "counts": done.task.outputs[0],
            "whole": cut.whole,
            "below": str(cut.below),
        }
        own = Input(done.outputs[0].path, done.outputs[0].digest)
        tasks.append(Task((Input(str(file.path), file.digest), own), outputs, parameters))
    settings = {"seed": recipe.seed, "partitions": partitions}
    drawn = engine.run(Operation("draw", 1, _draw_task, settings, threads=True), tasks, out, "draw")
    if not recipe.shuffle:
        return drawn, drawn
    return drawn, shuffle.gather(drawn, partitions, out, engine)


def _draw_task(settings: Mapping[str, Any], task: Task, out: Path) -> Done:
    cut = Cut(task.parameters["whole"], int(task.parameters["below"]))
    tokens = exact.mapped(out / task.parameters["counts"])["tokens"]
    counters = {"documents": 0, "taken": 0, "copies": 0, "tokens": 0, "bytes": 0}
    row = 0
    with _sink(task, settings, out) as write:
        for batch in documents.read(Path(task.parameters["path"])):
            for document in as_rows(batch):
                length = int(tokens[row])
                row += 1
                times = cut.copies(keyed_hash(document["id"], settings["seed"])) if length else 0
                counters["taken"] += times > 0
                for copy in range(times):
                    again = {"id": f"{document['id']}#{copy + 1}"} if copy else {}
                    write({**document, **again})
                counters["documents"] += times
                counters["copies"] += max(0, times - 1)
                counters["tokens"] += times * length
                counters["bytes"] += times * len(document["text"].encode())
    return Done({task.outputs[0]: counters["documents"]}, counters)


class _sink:
    """Where drawn documents go: scattered for the shuffle, or straight into a file."""

    def __init__(self, task: Task, settings: Mapping[str, Any], out: Path) -> None:
        path = out / task.outputs[0]
        self._scatter = len(task.outputs) == 2
        self._made: Any = (
            shuffle.Scatter(path, settings["partitions"], settings["seed"])
            if self._scatter
            else write_lines(path)
        )

    def __enter__(self) -> Any:
        entered = self._made.__enter__()
        if self._scatter:
            return entered.add
        return lambda document: entered.write(orjson.dumps(document) + b"\n")

    def __exit__(self, *error: Any) -> Any:
        return self._made.__exit__(*error)


def _counters(
    owners: Sequence[str],
    held: Mapping[str, Sequence[Finished]],
    drawn: Sequence[Finished],
    wanted: Mapping[str, int],
    cuts: Mapping[str, Cut],
) -> dict[str, Any]:
    sources: dict[str, Any] = {}
    for name, counted in held.items():
        mine = sum_counters([d.counters for o, d in zip(owners, drawn, strict=True) if o == name])
        sources[name] = {
            "available_documents": _sum(counted, "with_text"),
            "available_tokens": _sum(counted, "tokens"),
            "empty": _sum(counted, "documents") - _sum(counted, "with_text"),
            "rejected": _sum(counted, "rejected"),
            "wanted_tokens": wanted[name],
            **mine,
            "cut": {"whole": cuts[name].whole, "below": f"{cuts[name].below:x}"},
        }
    keys = ("documents", "copies", "tokens", "bytes", "rejected")
    return {**{key: sum(part[key] for part in sources.values()) for key in keys}, "sources": sources}
