"""Questions made of documentation: what a model can be taught and asked without any download.

From a list of functions and their summaries come: questions with answers to tune on, preference pairs
(the right summary against a sibling's), and the same of functions that training never sees.

Functions are held out in groups of four from one module. A group's members are each other's wrong
choices, so that neither the right answer nor a wrong one was ever trained on: a model cannot win by
having learnt the others, nor lose because a wrong summary is text it knows.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import xxhash

from loom import artifact
from loom.artifact import Artifact, Input, atomic_write
from loom.errors import LoomError
from loom.recipe import to_plain
from loom.tasks.ngrams import NGRAM, near_copies, ngrams, shares_ngram, words

GROUP = 4  # choices of a question
FILES = ("sft.jsonl", "pairs.jsonl", "heldout.jsonl", "heldout-pairs.jsonl", "heldout-summaries.txt")


@dataclass(frozen=True)
class QuestionsRecipe:
    """`documents` is a folder that holds `functions.jsonl` (name, module, summary a line)."""

    documents: Path
    held_out: int = 800
    """Functions to hold out at most; never more than a quarter of all."""
    min_words: int = 8
    """Words a held-out summary has at least: shorter ones hardly say which function they describe."""
    seed: int = 0


@dataclass(frozen=True)
class Function:
    name: str
    module: str
    summary: str


def question(name: str) -> str:
    return f"What does `{name}` do?"


def make_questions(recipe: QuestionsRecipe, out: Path) -> Artifact:
    """Split the functions, write the five files of `FILES`, commit kind "questions".

    Counters: functions, held_out, train, pairs, heldout_pairs, near_copies, decontaminated (training rows
    dropped because they share eight words in a row with a held-out summary).
    """
    started = time.monotonic()
    source = recipe.documents / "functions.jsonl"
    inputs = _inputs(recipe.documents, source, out)
    plain = to_plain(recipe) | {"documents": artifact.relative(recipe.documents, out)}
    if (done := artifact.finished(out, "questions", plain, inputs)) is not None:
        return done
    functions = read_functions(source)
    groups, copies = hold_out(functions, recipe)
    if not groups:
        raise LoomError(
            f"{source} has {len(functions):,} functions but no module with {GROUP} whose summaries have "
            f"{recipe.min_words} words and no near-copy, so nothing can be held out to ask about. Collect "
            f"from a Python whose library has documentation strings (not one stripped with -OO)."
        )
    held = {function.name for group in groups for function in group}
    banned = {gram for group in groups for function in group for gram in ngrams(function.summary)}
    rest = [function for function in functions if function.name not in held]
    train = [function for function in rest if not shares_ngram(function.summary, banned)]
    pairs = list(_pairs(_by_module(train).values(), recipe.seed))
    heldout_pairs = list(_pairs(groups, recipe.seed))
    artifact.discard(out, "questions")
    rows = {
        "sft.jsonl": _write(out / "sft.jsonl", map(_conversation, train)),
        "pairs.jsonl": _write(out / "pairs.jsonl", pairs),
        "heldout.jsonl": _write(out / "heldout.jsonl", _held_rows(groups, recipe.seed)),
        "heldout-pairs.jsonl": _write(out / "heldout-pairs.jsonl", heldout_pairs),
        "heldout-summaries.txt": _write_lines(
            out / "heldout-summaries.txt", sorted(function.summary for group in groups for function in group)
        ),
    }
    counters = {
        "functions": len(functions),
        "held_out": len(held),
        "train": len(train),
        "pairs": len(pairs),
        "heldout_pairs": len(heldout_pairs),
        "near_copies": copies,
        "decontaminated": len(rest) - len(train),
        "ngram": NGRAM,
    }
    return artifact.commit(
        out,
        "questions",
        recipe=plain,
        inputs=inputs,
        outputs=artifact.describe(out, rows, rows),
        counters=counters,
        started=started,
    )


def read_functions(path: Path) -> list[Function]:
    """Functions sorted by name. Raises `LoomError` for a missing file, a bad line or a name given twice."""
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        raise LoomError(f"There is no {path}; `loom collect python` writes it.") from None
    found: dict[str, Function] = {}
    for number, line in enumerate(lines, 1):
        try:
            row = orjson.loads(line)
            function = Function(row["name"], row["module"], " ".join(row["summary"].split()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise LoomError(
                f"{path}:{number} is not a function ({error!r}); each line needs name, module and summary."
            ) from None
        if function.name in found:
            raise LoomError(f"{path}:{number} names {function.name} a second time; names must be unique.")
        found[function.name] = function
    return [found[name] for name in sorted(found)]


def hold_out(
    functions: Sequence[Function], recipe: QuestionsRecipe
) -> tuple[list[tuple[Function, ...]], int]:
    """Groups of four functions of one module to hold out, and how many functions have a near-copy.

    A summary can be held out if it has `min_words` words, no near-copy among the others, and is not a
    call's signature (which would spell the name that is asked for); its function's name must not differ
    from another's in case or punctuation alone, for then the question would be a trained one's twin.
    """
    names = Counter(tuple(words(function.name)) for function in functions)
    copied = near_copies([function.summary for function in functions])
    eligible = [
        function
        for function, copy in zip(functions, copied, strict=True)
        if not copy and min(len(words(function.summary)), len(function.summary.split())) >= recipe.min_words
        if not _spells_itself(function) and names[tuple(words(function.name))] == 1
    ]
    groups = [
        tuple(members[at : at + GROUP])
        for members in _by_module(eligible, recipe.seed).values()
        for at in range(0, len(members) - GROUP + 1, GROUP)
    ]
    groups.sort(key=lambda group: _hash(group[0].name, recipe.seed))
    wanted = min(recipe.held_out, len(functions) // 4) // GROUP
    return groups[:wanted], sum(copied)


def _spells_itself(function: Function) -> bool:
    last = function.name.rpartition(".")[2]
    return "->" in function.summary or f"{last}(" in function.summary


def _by_module(functions: Iterable[Function], seed: int = 0) -> dict[str, list[Function]]:
    """Functions of each module in the order of their keyed hashes."""
    modules: dict[str, list[Function]] = {}
    for function in sorted(functions, key=lambda function: _hash(function.name, seed)):
        modules.setdefault(function.module, []).append(function)
    return dict(sorted(modules.items()))


def _hash(name: str, seed: int, purpose: str = "split") -> int:
    return int(xxhash.xxh3_64_intdigest(f"{purpose}\0{name}".encode(), seed))


def _conversation(function: Function) -> dict[str, Any]:
    return {
        "id": function.name,
        "messages": [
            {"role": "user", "content": question(function.name)},
            {"role": "assistant", "content": function.summary},
        ],
    }


def _pairs(modules: Iterable[Sequence[Function]], seed: int) -> Iterable[dict[str, str]]:
    """One pair a function that has a sibling with another summary; the next sibling is the wrong answer."""
    for members in modules:
        for at, function in enumerate(members):
            around = [*members[at + 1 :], *members[:at]]
            others = [other for other in around if other.summary != function.summary]
            if others:
                other = others[0]
                yield {
                    "id": function.name,
                    "prompt": question(function.name),
                    "chosen": function.summary,
                    "rejected": other.summary,
                    "rejected_id": other.name,
                }


def _held_rows(groups: Iterable[Sequence[Function]], seed: int) -> Iterable[dict[str, Any]]:
    for group in groups:
        for function in group:
            wrong = sorted(
                (other.name for other in group if other is not function),
                key=lambda name: _hash(f"{function.name}\0{name}", seed, "order"),
            )
            gold = _hash(function.name, seed, "gold") % GROUP
            yield {
                "id": function.name,
                "module": function.module,
                "question": question(function.name),
                "summary": function.summary,
                "choices": [*wrong[:gold], function.name, *wrong[gold:]],
                "gold": gold,
            }


def _inputs(folder: Path, source: Path, out: Path) -> list[Input]:
    if (folder / artifact.MANIFEST).exists():
        return [artifact.refer(artifact.load(folder), out)]
    if not source.is_file():
        raise LoomError(f"There is no {source}; `loom collect python` writes it.")
    return [Input(artifact.relative(source, out), artifact.digest_file(source))]


def _write(path: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    return _write_lines(path, (orjson.dumps(row).decode() for row in rows))


def _write_lines(path: Path, lines: Iterable[str]) -> int:
    count = 0
    with atomic_write(path) as stream:
        for line in lines:
            stream.write(line.encode() + b"\n")
            count += 1
    return count
