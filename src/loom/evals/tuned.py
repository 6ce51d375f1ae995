"""What tuning is for, measured on what was held out of it.

`answers`: bits per byte of held-out answers. `preferences`: how often the preferred answer of a held-out
pair is the likelier one. `instructions`: whether answers to held-out prompts end by themselves. Rows are
the held-out part of a folder of `loom prepare`, so text, format and what counts are those of training.
`probes`: instructions whose following a few lines of code can check (`loom.evals.probes`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow.parquet as pq
from numpy.typing import NDArray

from loom import artifact
from loom.chat.format import Message
from loom.console import console
from loom.errors import LoomError
from loom.evals import cache, metrics
from loom.evals.perplexity import bootstrap_ratio
from loom.evals.probes import PROBES
from loom.evals.rows import Row, Scored, tree
from loom.evals.subject import Subject
from loom.evals.written.tasks import chat_of, fit_turns, generate_answers
from loom.tokens.shards import open_tokens

Found = tuple[dict[str, Any], list[dict[str, Any]]]
"""Figures, and a line a document."""
LONGEST_ANSWER = 256  # tokens


@dataclass(frozen=True)
class Tuned:
    """A document of a prepared folder: ids, and 1 where a token is trained."""

    id: str
    pair: int
    side: str
    ids: NDArray[np.int64]
    weights: NDArray[np.uint8]


def held_out(folder: Path, objective: str) -> Path:
    """The held-out part of a folder prepared for `objective`, or the folder itself where it is one.

    Raises `LoomError` for a folder that holds nothing back, or was prepared for something else.
    """
    found = folder / "heldout" if (folder / "heldout").is_dir() else folder
    facts = artifact.load(found, "tokens").facts
    if (made := facts.get("chat", {}).get("objective")) != objective:
        was = f"made by `loom prepare {made}`" if made else "no folder of `loom prepare`"
        raise LoomError(f"{folder} is {was}: give one of `loom prepare {objective} --held-out N`.")
    if not (found / "conversations.jsonl").is_file():
        raise LoomError(
            f"{folder} has no held-out rows, and what a model was trained on measures nothing: prepare it with "
            f"--held-out N."
        )
    return found


def said(folder: Path, objective: str) -> list[list[str]]:
    """What users say in each held-out conversation, or before each held-out pair of answers."""
    lines = (held_out(folder, objective) / "conversations.jsonl").read_bytes().splitlines()
    rows = [orjson.loads(line) for line in lines]
    turns = [row["messages" if objective == "sft" else "prompt"] for row in rows]
    return [[message["content"] for message in one if message["role"] == "user"] for one in turns]


def documents(folder: Path, subject: Subject) -> list[Tuned]:
    """Documents of a folder of `loom prepare`. Raises `LoomError` for another tokenizer or no weights."""
    subject.tokenizer.check(artifact.load(folder, "tokens").facts["tokens"], str(folder))
    opened = open_tokens(folder)
    if not opened.weights:
        raise LoomError(f"{folder} says nowhere what is trained: give a folder of `loom prepare`.")
    found = []
    for shard, ids, weights in zip(opened.shards, opened.arrays, opened.weights, strict=True):
        table = pq.read_table(folder / shard.path.replace(".npy", ".docs.parquet"))
        for row in table.to_pylist():
            part = slice(row["start"], row["end"])
            kept = np.asarray(weights[part]), np.asarray(ids[part]).astype(np.int64)
            found.append(Tuned(row["id"], row["pair"], row["side"], kept[1], kept[0]))
    return found


def answers(subject: Subject, folder: Path, seed: int = 0, limit: int | None = None) -> Found:
    """Bits per byte and nats a token of the trained tokens of held-out conversations, ratios of sums. Of one longer
    than the context the beginning is read (`conversations_cut`); one without an answer there is left out (`unread`)."""
    kept: list[tuple[str, NDArray[np.int64]]] = []
    rows = []
    length = subject.max_length
    cut = unread = 0
    for document in documents(held_out(folder, "sft"), subject)[:limit]:
        cut += len(document.ids) > length + 1
        ids, trained = document.ids[: length + 1], document.weights[: length + 1]
        at = np.flatnonzero(trained[1:])
        if not len(at):
            unread += 1
            continue
        size = len(ids) - 1
        keys = np.full(len(at), len(kept))
        rows.append(Row(ids[:-1], np.arange(size), np.full(size, size), at, ids[at + 1], keys))
        kept.append((document.id, ids[at + 1]))
    if not kept:
        raise LoomError(f"{folder} has no held-out answers: prepare it with --held-out N.")
    logp = cache.rows(subject, rows, len(kept))
    tokens = np.array([len(ids) for _, ids in kept], dtype=np.float64)
    sizes = np.array([len(subject.tokenizer.decode(ids.tolist()).encode()) for _, ids in kept], np.float64)
    figures = {
        "bits_per_byte": float(-logp.sum() / (sizes.sum() * math.log(2))),
        "bits_per_byte_stderr": bootstrap_ratio(-logp / math.log(2), sizes, seed),
        "loss": float(-logp.sum() / tokens.sum()),
        "loss_stderr": bootstrap_ratio(-logp, tokens, seed),
        "n": len(kept),
        "conversations_cut": cut,
        "unread": unread,
    }
    lines = [
        {"id": name, "nll": float(-value), "tokens": len(ids), "bytes": int(size)}
        for (name, ids), value, size in zip(kept, logp, sizes, strict=True)
    ]
    return figures, lines


def preferences(subject: Subject, folder: Path, limit: int | None = None) -> Found:
    """How often the chosen answer of a held-out pair is likelier than the rejected one: `acc` by the sum of
    log p, as DPO trains it, `acc_token` by the mean a token; `margin` is the mean difference in nats. A pair
    of which a side is longer than the model's context is left out and counted."""
    sides: dict[int, dict[str, Tuned]] = {}
    for document in documents(held_out(folder, "dpo"), subject):
        if document.side:
            sides.setdefault(document.pair, {})[document.side] = document
    pairs = [(pair["chosen"], pair["rejected"]) for pair in sides.values() if len(pair) == 2][:limit]
    fitting = [pair for pair in pairs if max(len(side.ids) for side in pair) <= subject.max_length]
    if not fitting:
        raise LoomError(f"{folder} has no held-out pairs that fit: `loom prepare dpo --held-out N`.")
    sides_of = [
        [Scored(_read(side), _trained(side), 2 * index + at) for at, side in enumerate(pair)]
        for index, pair in enumerate(fitting)
    ]
    alone = getattr(subject.model, "plain", False)  # such a model takes one sequence a row
    rows = [tree(part) for pair in sides_of for part in ([[one] for one in pair] if alone else [pair])]
    logp = cache.rows(subject, rows, 2 * len(fitting)).reshape(-1, 2)
    counts = np.array([[_trained(side) for side in pair] for pair in fitting], dtype=np.float64)
    each = logp / counts
    values = {
        "acc": (logp[:, 0] > logp[:, 1]).astype(float).tolist(),
        "acc_token": (each[:, 0] > each[:, 1]).astype(float).tolist(),
        "margin": (logp[:, 0] - logp[:, 1]).tolist(),
    }
    figures = _means(values)
    figures |= {"chance": 0.5, "n": len(fitting), "not_scored": len(pairs) - len(fitting)}
    lines = [
        {"id": pair[0].id, "chosen": float(sides[0]), "rejected": float(sides[1]), "values": of}
        for pair, sides, of in zip(fitting, logp, _by_row(values), strict=True)
    ]
    return figures, lines


def _trained(side: Tuned) -> int:
    """Trained tokens; in a pair they are the last ones, but for the end of an answer that was cut."""
    return int(np.count_nonzero(side.weights[1:]))


def _read(side: Tuned) -> NDArray[np.int64]:
    return side.ids[: int(np.flatnonzero(side.weights)[-1]) + 1]


def instructions(
    subject: Subject, folder: Path, max_new_tokens: int | None = None, limit: int | None = None
) -> Found:
    """Greedy answers to held-out prompts in the chat format: `stop_rate`, the share that ends by itself
    within `max_new_tokens`; `repeating`, the share of which less than half of the 4-grams are distinct;
    `tokens`, the mean length."""
    path = held_out(folder, "sft") / "conversations.jsonl"
    rows = [orjson.loads(line) for line in path.read_bytes().splitlines()[:limit]]
    prompts = [list(_until_answer(row["messages"])) for row in rows]
    said, left = _say(subject, "instructions", prompts, max_new_tokens)
    values = {
        "stop_rate": [float(answer.finish == "stop") for answer in said],
        "repeating": [float(_repeats(answer.tokens)) for answer in said],
        "empty": [float(not answer.text) for answer in said],
        "tokens": [float(len(answer.tokens)) for answer in said],
    }
    figures = _means(values) | {"n": len(said), "prompts_cut": left}
    lines = [
        {
            "id": row,
            "prompt": prompt[-1].content,
            "answer": answer.text,
            "finish": answer.finish,
            "values": of,
        }
        for row, (prompt, answer, of) in enumerate(zip(prompts, said, _by_row(values), strict=True))
    ]
    return figures, lines


def probes(subject: Subject, max_new_tokens: int | None = None) -> Found:
    """Share of the probes that were followed, and by kind."""
    prompts = [[Message("user", probe.prompt)] for probe in PROBES]
    said, _ = _say(subject, "probes", prompts, max_new_tokens or 96)
    loose = [float(probe.check(answer.text)) for probe, answer in zip(PROBES, said, strict=True)]
    kept = [value * (answer.finish == "stop") for value, answer in zip(loose, said, strict=True)]
    values = {"followed": kept, "followed_unended": loose}
    figures = _means(values) | {"n": len(PROBES)}
    for kind in dict.fromkeys(probe.kind for probe in PROBES):
        of = [value for value, probe in zip(kept, PROBES, strict=True) if probe.kind == kind]
        figures[kind] = sum(of) / len(of)
    lines = [
        {"kind": probe.kind, "prompt": probe.prompt, "answer": answer.text, "values": of}
        for probe, answer, of in zip(PROBES, said, _by_row(values), strict=True)
    ]
    return figures, lines


def _means(values: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Each metric's mean over its rows, with its standard error."""
    figures = {}
    for name, of in values.items():
        figures[name], figures[f"{name}_stderr"] = metrics.mean(of)
    return figures


def _by_row(values: Mapping[str, Sequence[float]]) -> list[dict[str, float]]:
    return [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]


def _say(
    subject: Subject, name: str, prompts: Sequence[Sequence[Message]], max_new_tokens: int | None
) -> tuple[list[Any], int]:
    """Answers, and how many prompts lost their left end to make room for one."""
    form = chat_of(subject)
    limit = min(max_new_tokens or LONGEST_ANSWER, subject.max_length // 2)
    fitted = [fit_turns(form, list(prompt), subject.max_length - limit) for prompt in prompts]
    with console.progress(name, total=len(fitted)) as progress:
        said = generate_answers(subject, [ids for ids, _ in fitted], limit, form.stop_ids, progress=progress)
    return said, sum(cut for _, cut in fitted)


def _until_answer(messages: Sequence[dict[str, Any]]) -> Iterator[Message]:
    """What comes before the last answer."""
    last = max(index for index, message in enumerate(messages) if message["role"] == "assistant")
    for message in messages[:last]:
        yield Message(message["role"], message["content"])


def _repeats(tokens: Sequence[int], size: int = 4) -> bool:
    grams = [tuple(tokens[start : start + size]) for start in range(len(tokens) - size + 1)]
    return len(grams) > size and 2 * len(set(grams)) < len(grams)
