"""Documents to token shards.

Two passes over content-addressed tasks: each file of documents is encoded into a part, then each shard
is gathered from the parts in the order of the keyed hash (`parts.py`). Text is stripped; what is empty
then is skipped and counted; a row that is no document is set aside in `rejected.jsonl` with its file and
line; every document ends with the end-of-text id. Documents held out go to `heldout/`, an artifact of its
own with the same layout.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from loom import artifact
from loom.artifact import (
    MANIFEST,
    Artifact,
    Input,
    Output,
    atomic_write,
    canonical_json,
    digest_json,
    refer,
    relative,
    since_start,
)
from loom.engine import (
    Done,
    Engine,
    Finished,
    LocalEngine,
    Operation,
    Task,
    clear_receipts,
    give_back,
    sum_counters,
)
from loom.errors import LoomError
from loom.recipe import to_plain
from loom.tokens.documents import (
    REJECTED,
    File,
    Rejected,
    Rows,
    find,
    place,
    placed,
    read,
    settle,
    tell_of,
)
from loom.tokens.parts import (
    PartWriter,
    is_held_out,
    order_hash,
    shard_operation,
    shard_tasks,
    token_type,
    write_table,
)
from loom.tokens.tokenizer import TOKENIZER_FILE, Batch, Tokenizer, tokenizer_file

HELD_OUT = "heldout"
PARTS = "parts"  # encoded files, kept until the manifest is written
PLAN = "plan.json"


@dataclass(frozen=True)
class Tokenize:
    """`documents`: globs, files or folders; `held_out`: the share of documents kept out of training."""

    documents: tuple[str, ...]
    tokenizer: Path
    held_out: float = 0.0
    shard_tokens: int = 500_000_000
    csv: bool = False  # Dolma's list of documents beside each shard, for readers of its pairs

    def __post_init__(self) -> None:
        if not 0 <= self.held_out < 1:
            raise ValueError(
                f"held_out is {self.held_out}; it is a share of the documents, from 0 to below 1"
            )
        if self.shard_tokens < 1:
            raise ValueError(f"shard_tokens is {self.shard_tokens}; it must be at least 1")


def tokenize(recipe: Tokenize, out: Path, engine: Engine | None = None) -> Artifact:
    """Encode `recipe.documents` into the token folder `out`; what is already done there is not done again.

    The output depends on the documents, the tokenizer and the recipe, not on the number of workers.
    """
    started = time.monotonic()
    engine = engine or LocalEngine()
    file = tokenizer_file(recipe.tokenizer)
    tokenizer = Tokenizer.load(recipe.tokenizer)
    spare(str(file.resolve()), tokenizer)
    files, inputs = find(recipe.documents, out)
    inputs.append(tokenizer_input(recipe.tokenizer, out))
    settings = {k: v for k, v in to_plain(recipe).items() if k not in ("documents", "tokenizer")}
    if (done := already(out, settings, inputs)) is not None:
        return done
    dtype = token_type(tokenizer.vocab_size)
    begin(out, [settings, tokenizer.digest, [(file.name, file.digest) for file in files]])
    encoding = {"tokenizer": tokenizer.digest, "dtype": dtype.str, "held_out": recipe.held_out}
    tasks = [_encode_task(file, encoding, out) for file in files]
    worker = Encoder(str(file.resolve()), str(out.resolve()), len(tasks) < engine.workers)
    since = since_start() if isinstance(engine, LocalEngine) else ""  # vouches for parts not flushed to disk
    encode = Operation("encode documents", 1, worker, {**encoding, "since": since}, threads=True)
    parts = engine.run(encode, tasks, out, "encoding")
    aside = gather_lines(parts, f".{REJECTED}", out, REJECTED)
    if aside:
        tell_of(out / REJECTED, aside[0].rows)
    return finish(
        out,
        engine,
        tokenizer,
        parts,
        recipe.shard_tokens,
        settings=settings,
        inputs=settle(inputs, out),
        started=started,
        more_outputs={False: aside},
    )


def _encode_task(file: File, encoding: Mapping[str, Any], out: Path) -> Task:
    stem = f"{PARTS}/{digest_json([encoding, file.name, file.digest])}"
    source = Input(place(file.path, out), file.digest)
    outputs = (f"{stem}.ids", f"{stem}.parquet", f"{stem}.{REJECTED}")
    return Task((source,), outputs, {"name": file.name})


_own = threading.local()  # the thread's tokenizer, under `at`: (path, digest) and it
_spare: dict[tuple[str, str], list[Tokenizer]] = {}


def load_once(path: str, digest: str) -> Tokenizer:
    """The tokenizer at `path`, loaded once a thread; its digest tells apart what lay there at other times.

    Threads that share one wait for each other at its cache. One that `spare` was given is taken first.
    """
    key = (path, digest)
    at: tuple[tuple[str, str], Tokenizer] | None = getattr(_own, "at", None)
    if at is None or at[0] != key:
        try:
            tokenizer = _spare.get(key, []).pop()
        except IndexError:
            tokenizer = Tokenizer.load(path)
        if tokenizer.digest != digest:
            raise LoomError(f"{path} changed while it was in use. Run the same command again.")
        _own.at = at = (key, tokenizer)
    return at[1]


def spare(path: str, tokenizer: Tokenizer) -> None:
    """Leave a loaded tokenizer to the next thread that asks for it; only its facts may be read here then."""
    _spare.clear()
    _spare[path, tokenizer.digest] = [tokenizer]


@dataclass(frozen=True)
class Encoder:
    """Encodes one file of documents into a part. `parallel`: all cores on one file, where files are few."""

    tokenizer: str
    out: str
    parallel: bool

    def __call__(self, settings: Mapping[str, Any], task: Task, out: Path) -> Done:
        tokenizer = load_once(self.tokenizer, settings["tokenizer"])
        file = File(
            placed(task.inputs[0].path, Path(self.out)), task.parameters["name"], task.inputs[0].digest
        )
        counters = {"documents_in": 0, "empty": 0, "bytes": 0, "tokens": 0, "held_out_tokens": 0}
        aside: list[Rejected] = []
        with ExitStack() as stack:
            ids = stack.enter_context(atomic_write(out / task.outputs[0], not settings["since"]))
            writer = PartWriter(ids, np.dtype(settings["dtype"]))
            for rows in read(file, aside):
                batch, columns = self._encode(tokenizer, rows, file, settings["held_out"])
                writer.add(batch, columns)
                lengths = np.diff(batch.offsets)
                held = np.asarray(columns["held_out"], dtype=bool)
                counters["documents_in"] += len(rows.ids)
                counters["empty"] += len(rows.ids) - len(lengths)
                counters["bytes"] += sum(columns["bytes"])
                counters["tokens"] += int(lengths.sum())
                counters["held_out_tokens"] += int(lengths[held].sum())
            index = writer.index()
        write_table(out / task.outputs[1], index, not settings["since"])
        with atomic_write(out / task.outputs[2], not settings["since"]) as stream:
            stream.writelines(item.json() + b"\n" for item in aside)
        counters["rejected"] = len(aside)
        rows_written = (counters["tokens"], len(index), len(aside))
        return Done(dict(zip(task.outputs, rows_written, strict=True)), counters)

    def _encode(
        self, tokenizer: Tokenizer, rows: Rows, file: File, held_out: float
    ) -> tuple[Batch, dict[str, list[Any]]]:
        texts, numbers = [], []
        for number, text in enumerate(rows.texts):
            stripped = text.strip()
            if stripped:
                texts.append(stripped)
                numbers.append(number)
        identities = [rows.ids[number] for number in numbers]
        plain = tokenizer.encode_batch(texts, parallel=self.parallel)
        return with_eos(plain, tokenizer.eos_id), {
            "id": identities,
            "source": [rows.sources[number] for number in numbers],
            "origin": [f"{file.name}:{rows.numbers[number]}" for number in numbers],
            "hash": [order_hash(identity) for identity in identities],
            "held_out": [is_held_out(identity, held_out) for identity in identities],
            "bytes": [len(text) if text.isascii() else len(text.encode()) for text in texts],
            "trained": [0] * len(identities),
        }


def with_eos(batch: Batch, eos: int) -> Batch:
    """Each text of `batch` with the end-of-text id after it."""
    offsets = batch.offsets + np.arange(len(batch.offsets))
    ids = np.full(offsets[-1], eos, dtype=np.uint32)
    body = np.ones(len(ids), dtype=bool)
    body[offsets[1:] - 1] = False
    ids[body] = batch.ids
    return Batch(ids, offsets)


def tokenizer_input(path: Path, at: Path) -> Input:
    """The tokenizer as an input: its artifact, or the file itself."""
    file = tokenizer_file(path)
    if (file.parent / MANIFEST).is_file():
        owner = artifact.load(file.parent)
        if owner.kind in ("tokenizer", "tokens") and file.name in {item.path for item in owner.outputs}:
            return refer(owner, at)
    return Input(relative(file, at), artifact.digest_file(file))


def already(out: Path, settings: Mapping[str, Any], inputs: Sequence[Input]) -> Artifact | None:
    """The finished token folder at `out` if it is this one, else None; an outdated one is discarded."""
    if not (out / MANIFEST).exists():
        return None
    done = artifact.finished(out, "tokens", settings, settle(inputs, out))
    if done is not None:
        sweep(out)
        return done
    held = artifact.load(out)
    if held.kind != "tokens":
        raise LoomError(
            f"{out} already holds {held.kind!r}. Give the tokens a folder of their own with --out."
        )
    for name in [item.path for item in held.outputs]:
        (out / name).unlink(missing_ok=True)
    for folder in (out / HELD_OUT, out):
        artifact.discard(folder, "tokens")
    return None


def begin(out: Path, plan: Any) -> None:
    """Forget receipts of another plan, so that none of them can vouch for a file of this one."""
    wanted = canonical_json(plan)
    marker = out / PARTS / PLAN
    if not marker.is_file() or marker.read_bytes() != wanted:
        clear_receipts(out)
        with atomic_write(marker) as stream:
            stream.write(wanted)


def sweep(out: Path) -> None:
    """Remove what only an unfinished folder needs."""
    clear_receipts(out)
    if (out / PARTS).is_dir():
        shutil.rmtree(out / PARTS)
    for folder in (out, out / HELD_OUT):
        for left in folder.glob(".*.tmp"):  # by a run that was killed while it wrote
            left.unlink()


def finish(
    out: Path,
    engine: Engine,
    tokenizer: Tokenizer,
    parts: Sequence[Finished],
    shard_tokens: int,
    *,
    settings: Mapping[str, Any],
    inputs: Sequence[Input],
    started: float,
    weights: bool = False,
    facts: Mapping[str, Any] | None = None,
    more_outputs: Mapping[bool, Sequence[Output]] | None = None,
) -> Artifact:
    """Gather parts into shards and write the manifests, the held-out folder's first."""
    counters = sum_counters([part.counters for part in parts])
    if not counters.get("tokens"):
        aside = weights or counters.get("rejected")
        why = "every row was set aside" if aside else "every document is empty once it is stripped"
        raise LoomError(f"There is nothing to tokenize: {why}.")
    held_tokens = counters.pop("held_out_tokens")
    operation = shard_operation(
        token_type(tokenizer.vocab_size), shard_tokens, weights, bool(settings.get("csv"))
    )
    names = [
        Input(part.task.outputs[0].removesuffix(".ids"), digest_json([item.digest for item in part.outputs]))
        for part in parts
    ]
    totals = {False: counters["tokens"] - held_tokens, True: held_tokens}
    tasks = shard_tasks(names, totals, operation.settings)
    give_back()  # what encoding needed: gathering has tables of its own
    shards = engine.run(operation, tasks, out, "writing shards")
    duplicates = sum(item.counters["duplicate_ids"] for item in shards)
    counters |= {"held_out_tokens": held_tokens, "duplicate_ids": duplicates}
    folders = {False: out, True: out / HELD_OUT}
    finished: dict[bool, Artifact] = {}
    for held in (True, False):
        mine = [item for item in shards if item.task.parameters["held_out"] is held]
        folder = folders[held]
        if not mine:
            shutil.rmtree(folder, ignore_errors=True)  # of an earlier plan
            continue
        with atomic_write(folder / TOKENIZER_FILE) as stream:
            stream.write(tokenizer.data)
        outputs = [_within(item, folder, out) for shard in mine for item in shard.outputs]
        outputs += artifact.describe(folder, [TOKENIZER_FILE])
        outputs += [_within(item, folder, out) for item in (more_outputs or {}).get(held, ())]
        here = [Input(place(placed(item.path, out), folder), item.digest) for item in inputs]
        totals_here = sum_counters([shard.counters for shard in mine])
        if not held:
            if True in finished:
                outputs += [replace(item, path=f"{HELD_OUT}/{item.path}") for item in finished[True].outputs]
            counters |= {key: totals_here[key] for key in ("documents", "tokens")}
        extra = {
            "tokens": token_facts(tokenizer, mine, folder, out, totals_here["sources"]),
            **(facts or {}),
        }
        finished[held] = artifact.commit(
            folder,
            "tokens",
            inputs=here,
            outputs=outputs,
            counters=counters if not held else {k: totals_here[k] for k in ("documents", "tokens")},
            facts=extra,
            recipe=settings,
            started=started,
        )
    sweep(out)
    return finished[False]


def _within(item: Output, folder: Path, out: Path) -> Output:
    return replace(item, path=(out / item.path).relative_to(folder).as_posix())


def gather_lines(parts: Sequence[Finished], suffix: str, out: Path, name: str) -> list[Output]:
    """The parts' files of one kind as one file of the output; none if they hold nothing."""
    count = 0
    with atomic_write(out / name) as stream:
        for path in (item.path for part in parts for item in part.outputs if item.path.endswith(suffix)):
            data = (out / path).read_bytes()
            count += data.count(b"\n")
            stream.write(data)
    if count:
        return list(artifact.describe(out, [name], {name: count}))
    (out / name).unlink()
    return []


def token_facts(
    tokenizer: Tokenizer,
    shards: Sequence[Finished],
    folder: Path,
    out: Path,
    sources: Mapping[str, Mapping[str, int]],
) -> dict[str, Any]:
    """The manifest's `tokens`: what a loader must know of the shards."""
    entries = []
    for shard in shards:
        made = {Path(item.path).suffix: _within(item, folder, out) for item in shard.outputs}
        docs, ids, weights = made[".parquet"], made[".npy"], made.get(".u8")
        entry = {"path": ids.path, "tokens": ids.rows, "documents": docs.rows, "digest": ids.digest}
        if weights is not None:
            entry |= {"weights": weights.path, "weights_digest": weights.digest}
        entries.append(entry)
    return {
        "dtype": token_type(tokenizer.vocab_size).name,
        **tokenizer.facts(),
        "tokenizer": {"path": TOKENIZER_FILE, "digest": tokenizer.digest},
        "shards": entries,
        "sources": {name: dict(sources[name]) for name in sorted(sources)},
    }
