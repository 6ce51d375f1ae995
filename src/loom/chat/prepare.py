"""Conversations and preference pairs to token folders with a weight a token.

Each input file becomes parts, parts become shards in the keyed order (`loom.tokens.parts`), as with
documents. What may be held out is decided by the prompt's text, so that one prompt is never on both
sides. Rows that are no conversations stop the work, or are set aside in `rejected.jsonl` and counted.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import orjson
import xxhash

from loom.artifact import Artifact, Input, atomic_write, canonical_json, digest_json, relative
from loom.chat.conversations import Conversation, Malformed, Pair, conversation, pair, rows
from loom.chat.decontaminate import Questions
from loom.chat.format import FORMATS, ChatFormat, Message, Rendered, Renderer, check_template, find_format
from loom.chat.length import Fitted, fit_conversation, fit_pair
from loom.chat.mixture import Hashes, Mixed, Share, draw
from loom.console import console
from loom.engine import Done, Engine, Finished, LocalEngine, Operation, Task, sum_counters
from loom.errors import LoomError
from loom.recipe import to_plain
from loom.tokens.documents import NAMED, REJECTED, File, find, settle
from loom.tokens.parts import HELD_OUT_KEY, PartWriter, order_hash, token_type, write_table
from loom.tokens.tokenize import (
    HELD_OUT,
    PARTS,
    already,
    begin,
    finish,
    gather_lines,
    load_once,
    tokenizer_input,
)
from loom.tokens.tokenizer import Batch, Tokenizer, tokenizer_file

CONVERSATIONS = "conversations.jsonl"  # what is held out, as text
CONTAMINATED = "says what an evaluation question says"
BATCH = 256  # conversations encoded together


@dataclass(frozen=True)
class Prepare:
    """What `loom prepare` makes.

    `input`: files, folders or globs, or shares of a mixture. `held_out`: a share of the prompts below 1, or
    a number of them. `over_long`: what happens past `max_length` ids; conversations are split at turns by
    default, answers of pairs are cut. `max_bad`: the share of a file's rows that may be no conversations and
    are then set aside; more of them stop the work, and with 0 the first one does. `against`: files of
    evaluation questions; conversations whose user turns share `ngram` words with them are set aside.
    """

    objective: Literal["sft", "dpo"]
    input: tuple[Share, ...]
    tokenizer: Path
    format: str = "olmo-v1"
    max_length: int = 2048
    over_long: Literal["split", "truncate", "drop"] | None = None
    held_out: float = 0.0
    max_bad: float = 0.05
    total: int | None = None
    shard_tokens: int = 500_000_000
    against: tuple[str, ...] = ()
    ngram: int = 8

    def __post_init__(self) -> None:
        if self.max_length < 8:
            raise ValueError(f"max_length is {self.max_length}; a conversation needs some ids")
        if self.held_out < 0 or (self.held_out > 1 and self.held_out != int(self.held_out)):
            raise ValueError(f"held_out is {self.held_out}; it is a share below 1, or a number of prompts")
        if self.objective == "dpo" and self.over_long == "split":
            raise ValueError("over_long is 'split', but a pair cannot be split: truncate or drop")

    @property
    def policy(self) -> Literal["split", "truncate", "drop"]:
        return self.over_long or ("split" if self.objective == "sft" else "truncate")


def prepare(recipe: Prepare, out: Path, engine: Engine | None = None) -> Artifact:
    """Make the token folder `out` from conversations (`sft`) or pairs (`dpo`)."""
    started = time.monotonic()
    engine = engine or LocalEngine()
    tokenizer = Tokenizer.load(recipe.tokenizer)
    form = find_format(recipe.format)
    renderer = Renderer(form, tokenizer)
    check_template(renderer, form.jinja())
    found, inputs = _find(recipe.input, out)
    inputs.append(tokenizer_input(recipe.tokenizer, out))
    questions, against = None, list[Input]()
    if recipe.against:
        files, more = find(recipe.against, out)
        against = [item for item in more if item not in inputs]
        inputs += more
        questions = Questions.read(files, recipe.ngram)
    settings = {k: v for k, v in to_plain(recipe).items() if k not in ("tokenizer", "input", "against")}
    if recipe.format not in FORMATS:  # a file may change under its name
        settings["format"] = f"{Path(recipe.format).name}:{digest_json(to_plain(form))}"
    settings["input"] = [{k: v for k, v in to_plain(share).items() if k != "path"} for share in recipe.input]
    if (done := already(out, settings, inputs)) is not None:
        return done
    chat = {"objective": recipe.objective, "max_length": recipe.max_length, **renderer.facts()}
    names = [[file.name, file.digest] for files in found for file in files]
    begin(out, [settings, tokenizer.digest, chat, names])
    mixed, threshold = draw(
        recipe.input,
        recipe.total,
        recipe.held_out,
        lambda index: _hashes(found[index], recipe.objective, questions),
    )
    encoding = {
        "tokenizer": tokenizer.digest,
        "dtype": token_type(tokenizer.vocab_size).str,
        "format": to_plain(form),
        "objective": recipe.objective,
        "max_length": recipe.max_length,
        "over_long": recipe.policy,
        "held_out": threshold,
        "questions": questions.digest if questions else None,
    }
    worker = Encoder(str(tokenizer_file(recipe.tokenizer).resolve()), form, str(out.resolve()), questions)
    tasks = [
        _task(file, share, encoding, out) for files, share in zip(found, mixed, strict=True) for file in files
    ]
    parts = engine.run(
        Operation("encode conversations", 2, worker, encoding, threads=True), tasks, out, "encoding"
    )
    for part, path in zip(parts, (file.path for files in found for file in files), strict=True):
        _judge_malformed(part, path, out, recipe.max_bad)
    counters = sum_counters([part.counters for part in parts])
    chat |= {
        "conversations": counters["kept"] - counters["held_out"],
        "trained_tokens": counters["trained"],
        "by_source": counters["by_source"],
    }
    if (fewer := counters["drawn"] - counters["kept"]) and any(map(Share.is_drawn, recipe.input)):
        refused = ", ".join(f"{count:,} {why}" for why, count in counters["rejected"].items())
        console.warn(
            f"The mixture holds {fewer:,} rows fewer than were drawn, because they were set aside afterwards "
            f"({refused}): --over-long truncate or split keeps them."
        )
    return finish(
        out,
        engine,
        tokenizer,
        parts,
        recipe.shard_tokens,
        settings=settings,
        inputs=settle(inputs, out),
        started=started,
        weights=True,
        facts={"chat": chat, "against": [item.digest for item in settle(against, out)]},
        more_outputs={
            False: gather_lines(parts, f".{REJECTED}", out, REJECTED),
            True: gather_lines(parts, ".held.jsonl", out, f"{HELD_OUT}/{CONVERSATIONS}"),
        },
    )


def _judge_malformed(part: Finished, path: Path, out: Path, most: float) -> None:
    """Warn of rows set aside, with their lines; raise `LoomError` if they are too many."""
    count, total = part.counters["malformed"], part.counters["rows"]
    if not count:
        return
    listing = next(name for name in part.task.outputs if name.endswith(".rejected.jsonl"))
    first = [orjson.loads(line) for line in (out / listing).read_bytes().splitlines()[:NAMED]]
    named = "; ".join(f"{path}:{row['line']}: {row['reason']}" for row in first)
    more = f"; and {count - len(first):,} more" if count > len(first) else ""
    if count > most * total:
        raise LoomError(
            f"{count:,} of {total:,} rows of {path} cannot be used: {named}{more}. Mend them, or let "
            f"such rows be set aside with --max-bad {min(1.0, -(-count * 100 // total) / 100):g}."
        )
    console.warn(f"{count:,} rows of {path} are set aside in {REJECTED}: {named}{more}")


def _find(shares: Sequence[Share], out: Path) -> tuple[list[list[File]], list[Input]]:
    found, inputs = [], {}
    for share in shares:
        files, mine = find([share.path], out)
        named = (
            [replace(file, name=f"{share.source}/{file.name}") for file in files] if share.source else files
        )
        found.append(named)
        inputs.update({item.path: item for item in mine})
    return found, list(inputs.values())


def _task(file: File, share: Mixed, encoding: Mapping[str, Any], out: Path) -> Task:
    drawn = to_plain(share)
    stem = f"{PARTS}/{digest_json([encoding, file.name, file.digest, drawn])}"
    source = Input(relative(file.path, out), file.digest)
    outputs = tuple(
        f"{stem}{suffix}" for suffix in (".ids", ".parquet", ".weights", ".rejected.jsonl", ".held.jsonl")
    )
    return Task((source,), outputs, {"name": file.name, **drawn})


def prompt_hash(item: Conversation | Pair) -> int:
    """A keyed hash of the prompt's text: what decides whether it is held out."""
    text = canonical_json([[message.role, message.content.strip()] for message in item.prompt])
    return int(xxhash.xxh3_64_intdigest(text, seed=HELD_OUT_KEY))


def _hashes(files: Sequence[File], objective: str, questions: Questions | None) -> Hashes:
    order, prompt = [], []
    for file in files:
        for _, item in parse(file, objective):
            if not isinstance(item, Malformed) and not _asks_again(item, questions):
                order.append(order_hash(item.id))
                prompt.append(prompt_hash(item))
    return Hashes(np.asarray(order, dtype=np.uint64), np.asarray(prompt, dtype=np.uint64))


@lru_cache(maxsize=2)
def _renderer(tokenizer: str, digest: str, form: ChatFormat) -> Renderer:
    return Renderer(form, load_once(tokenizer, digest))


def parse(file: File, objective: str) -> Iterator[tuple[int, Conversation | Pair | Malformed]]:
    """Every row of a file as a conversation or a pair, or the reason why it is none."""
    read = conversation if objective == "sft" else pair
    for row in rows(file):
        if isinstance(row.value, Malformed):
            yield row.number, row.value
            continue
        try:
            yield row.number, read(row.value, f"{file.name}:{row.number}", file.source)
        except Malformed as error:
            yield row.number, error


@dataclass(frozen=True)
class Encoder:
    """Encodes one file of conversations or pairs into a part."""

    tokenizer: str
    format: ChatFormat
    out: str
    questions: Questions | None

    def __call__(self, settings: Mapping[str, Any], task: Task, out: Path) -> Done:
        renderer = _renderer(self.tokenizer, settings["tokenizer"], self.format)
        drawn = Mixed(task.parameters["copies"], task.parameters["threshold"])
        file = File(Path(self.out) / task.inputs[0].path, task.parameters["name"], task.inputs[0].digest)
        counters: dict[str, Any] = {
            "rows": 0, "kept": 0, "documents_in": 0, "tokens": 0, "held_out_tokens": 0, "trained": 0,
            "held_out": 0, "malformed": 0, "drawn": 0, "rejected": {}, "over_long": {}, "by_source": {},
        }  # fmt: skip
        with ExitStack() as stack:
            ids = stack.enter_context(atomic_write(out / task.outputs[0]))
            weights = stack.enter_context(atomic_write(out / task.outputs[2]))
            aside = stack.enter_context(atomic_write(out / task.outputs[3]))
            kept_back = stack.enter_context(atomic_write(out / task.outputs[4]))
            writer = PartWriter(ids, np.dtype(settings["dtype"]), weights)
            pending: list[tuple[int, Conversation | Pair]] = []
            for number, item in parse(file, settings["objective"]):
                counters["rows"] += 1
                if isinstance(item, Malformed):
                    counters["malformed"] += 1
                    _reject(aside, counters, file, number, item.reason, str(item))
                    continue
                if _asks_again(item, self.questions):
                    _reject(aside, counters, file, number, CONTAMINATED, CONTAMINATED)
                    continue
                copies = drawn.copies + (order_hash(item.id) < drawn.threshold)
                if copies and prompt_hash(item) < settings["held_out"]:
                    copies = 1  # measured once, however often it would be read
                counters["drawn"] += copies
                pending += [(number, item)] * copies
                if len(pending) >= BATCH:
                    self._write(renderer, writer, pending, settings, file, counters, aside, kept_back)
                    pending = []
            self._write(renderer, writer, pending, settings, file, counters, aside, kept_back)
            index = writer.index()
        write_table(out / task.outputs[1], index)
        return Done({task.outputs[0]: counters["tokens"], task.outputs[1]: len(index)}, counters)

    def _write(
        self,
        renderer: Renderer,
        writer: PartWriter,
        pending: Sequence[tuple[int, Conversation | Pair]],
        settings: Mapping[str, Any],
        file: File,
        counters: dict[str, Any],
        aside: Any,
        kept_back: Any,
    ) -> None:
        items = [item for _, item in pending]
        columns: dict[str, list[Any]] = {name: [] for name in _COLUMNS}
        pieces: list[Rendered] = []
        seen: dict[tuple[int, str], int] = {}
        for (number, item), fitted in zip(pending, fit(renderer, items, settings), strict=True):
            for change in fitted.changes:
                counters["over_long"][change] = counters["over_long"].get(change, 0) + 1
            if fitted.refused:
                _reject(aside, counters, file, number, fitted.refused, fitted.refused)
                continue
            copy = seen.get((number, item.id), 0)
            seen[number, item.id] = copy + 1
            held = prompt_hash(item) < settings["held_out"]
            counters["kept"] += 1
            counters["held_out"] += held
            if not held:
                counters["by_source"][item.source] = counters["by_source"].get(item.source, 0) + 1
            else:
                kept_back.write(canonical_json(to_plain(item)) + b"\n")
            for position, piece in enumerate(fitted.pieces):
                pieces.append(piece)
                trained = int(piece.trained.sum())
                values = (
                    item.id, item.source, f"{file.name}:{number}", int(position == 0), piece.prompt_end,
                    0 if isinstance(item, Pair) else -1, _side(item, position),
                    order_hash(f"{item.id}\n{file.name}:{number}\n{copy}"), held, _text_bytes(item, position),
                    trained,
                )  # fmt: skip
                for name, value in zip(_COLUMNS, values, strict=True):
                    columns[name].append(value)
                counters["documents_in"] += 1
                counters["tokens"] += len(piece)
                counters["held_out_tokens"] += len(piece) if held else 0
                counters["trained"] += 0 if held else trained
        if pieces:
            offsets = np.cumsum([0, *(len(piece) for piece in pieces)])
            batch = Batch(np.concatenate([piece.ids for piece in pieces]), offsets.astype(np.int64))
            writer.add(batch, columns, np.concatenate([piece.trained for piece in pieces]))


_COLUMNS = (
    "id", "source", "origin", "conversation", "prompt_end", "pair", "side", "hash", "held_out", "bytes",
    "trained",
)  # fmt: skip


def fit(
    renderer: Renderer, items: Sequence[Conversation | Pair], settings: Mapping[str, Any]
) -> Iterable[Fitted]:
    """Each conversation or pair as documents of at most `max_length` ids."""
    length, policy = settings["max_length"], settings["over_long"]
    messages = [_all_messages(item) for item in items]
    for item, turns in zip(items, renderer.turns(messages), strict=True):
        if isinstance(item, Pair):
            yield fit_pair(renderer, turns, length, policy)
        else:
            yield fit_conversation(renderer, [m.role for m in item.messages], turns, length, policy)


def _asks_again(item: Conversation | Pair, questions: Questions | None) -> bool:
    """Whether a conversation says what an evaluation question says."""
    return questions is not None and questions.overlap(_all_messages(item))


def _all_messages(item: Conversation | Pair) -> tuple[Message, ...]:
    return item.messages if isinstance(item, Conversation) else (*item.prompt, item.chosen, item.rejected)


def _side(item: Conversation | Pair, position: int) -> str:
    return ("chosen", "rejected")[position] if isinstance(item, Pair) else ""


def _text_bytes(item: Conversation | Pair, position: int) -> int:
    """UTF-8 bytes of the contents; a split conversation's are counted with its first piece."""
    if isinstance(item, Pair):
        messages: tuple[Message, ...] = (*item.prompt, (item.chosen, item.rejected)[position])
    else:
        messages = item.messages if position == 0 else ()
    return sum(len(message.content.strip().encode()) for message in messages)


def _reject(aside: Any, counters: dict[str, Any], file: File, number: int, reason: str, detail: str) -> None:
    counters["rejected"][reason] = counters["rejected"].get(reason, 0) + 1
    aside.write(canonical_json({"file": file.name, "line": number, "reason": detail}) + b"\n")
