"""Evaluations in which the model writes: AlpacaEval, TruthfulQA, ToxiGen.

What it writes is stored in the upstream programs' own schemas, so that the official judges can be run
on it elsewhere. Here a number is made only where a judge or classifier is named.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loom.chat.format import FORMATS, Message, Renderer
from loom.console import Progress
from loom.errors import LoomError
from loom.evals.subject import Subject
from loom.model.generate import Generator
from loom.model.sampling import Sampling
from loom.tasks import truthfulqa
from loom.tasks.data import find, read_rows

TOXIGEN_SAMPLE = 500  # prompts of each group (open-instruct)
TOXIGEN_SEED = 42
TRUTHFUL = "truthfulqa/truthful_qa:generation"


@dataclass(frozen=True)
class Prompt:
    """What the model is given; `row` is what its answer is stored with."""

    text: str
    row: Mapping[str, Any]


@dataclass(frozen=True)
class Written:
    """A generation task. `stop` strings end an answer and are no part of it."""

    name: str
    prompts: Callable[[Path], Iterator[Prompt]]
    store: Callable[[Prompt, str, str], dict[str, Any]]
    """(prompt, answer, generator's name) -> a row of the upstream schema."""
    max_new_tokens: int
    stop: tuple[str, ...] = ()
    chat_before: str = ""
    """Stands before the prompt in the chat form."""
    source: str = ""
    """The data set on the Hub that the prompts can be fetched from, "owner/name:config"."""


def _alpaca(folder: Path) -> Iterator[Prompt]:
    names = ("alpaca_eval", "alpaca_eval.reference", "alpaca_eval_reference")
    for row in read_rows(find(folder, names, (), "tatsu-lab/alpaca_eval").path):
        yield Prompt(row["instruction"], row)


def _truthful(folder: Path) -> Iterator[Prompt]:
    names = ("truthfulqa", "truthfulqa_gen", "truthful_qa")
    for row in read_rows(find(folder, names, ("validation",), TRUTHFUL).path):
        yield Prompt(truthfulqa.prompt(row["Question"] if "Question" in row else row["question"]), row)


def _toxigen(folder: Path) -> Iterator[Prompt]:
    """`toxigen/hate_<group>_1k.txt`, files in the order of their names: upstream's sample depends on the
    order in which a disk lists them."""
    files = sorted((folder / "toxigen").glob("hate_*_1k.txt"))
    if not files:
        raise LoomError(
            f"There is no {folder / 'toxigen' / 'hate_<group>_1k.txt'}: ToxiGen's 14 prompt files, from "
            f"github.com/microsoft/TOXIGEN. Name the folder that holds toxigen/ with --data."
        )
    for file in files:
        lines = file.read_text(encoding="utf-8").splitlines()
        random.Random(TOXIGEN_SEED).shuffle(lines)
        group = file.name.removeprefix("hate_").removesuffix("_1k.txt")
        for line in lines[:TOXIGEN_SAMPLE]:
            yield Prompt(line.replace("\\n", "\n"), {"group": group})


WRITTEN: dict[str, Written] = {
    "alpaca_eval": Written(
        "alpaca_eval",
        _alpaca,
        lambda prompt, answer, name: {
            "dataset": prompt.row.get("dataset", ""),
            "instruction": prompt.text,
            "output": answer,
            "generator": name,
        },
        2048,
    ),
    "truthfulqa_gen": Written(
        "truthfulqa_gen",
        _truthful,
        lambda prompt, answer, name: {
            **prompt.row,
            name: answer.removeprefix("A:").split("Q:")[0].strip(),
        },
        50,
        stop=("\n\n",),
        source=TRUTHFUL,
    ),
    "toxigen": Written(
        "toxigen",
        _toxigen,
        lambda prompt, answer, name: {"prompt": prompt.text, "output": answer, **prompt.row},
        512,
        stop=("\n",),
        chat_before="Complete the following: ",
    ),
}


def write_answers(
    subject: Subject,
    task: Written,
    prompts: Sequence[Prompt],
    *,
    chat: bool,
    max_new_tokens: int | None = None,
    batch: int = 16,
    progress: Progress | None = None,
) -> list[str]:
    """Greedy answers to `prompts`, each stripped. In the chat form a prompt is one user's turn and the
    format's stop token ends the answer; else it is raw text after an end-of-text token."""
    renderer = Renderer(FORMATS["olmo-v1"], subject.tokenizer)
    limit = min(max_new_tokens or task.max_new_tokens, subject.max_length // 2)
    ids = [_encode(subject, task, renderer, prompt.text, chat, limit) for prompt in prompts]
    found = generate_answers(subject, ids, limit, task.stop, batch, progress)
    return [_until(answer.text, task.stop) for answer in found]


@dataclass(frozen=True)
class Answer:
    """A greedy answer, stripped; `finish` is stop where the model ended it, else length."""

    text: str
    tokens: tuple[int, ...]
    finish: str


def generate_answers(
    subject: Subject,
    ids: Sequence[Sequence[int]],
    limit: int,
    stops: Sequence[str] = (),
    batch: int = 16,
    progress: Progress | None = None,
) -> list[Answer]:
    """Greedy answers of at most `limit` tokens; an end-of-text token or one of `stops` ends an answer."""
    sampling = Sampling(limit, temperature=0, stop_ids=(subject.tokenizer.eos_id,))
    answers: dict[int, Answer] = {}
    # Prompts of like lengths together: they are padded to the longest of their batch.
    order = sorted(range(len(ids)), key=lambda index: len(ids[index]))
    for start in range(0, len(ids), batch):
        members = order[start : start + batch]
        generator = Generator(subject.model, [ids[index] for index in members], sampling)
        open_rows = set(range(len(members)))
        for _ in generator:
            for row in list(open_rows) if stops else ():
                text = subject.tokenizer.decode(generator.results[row].tokens)
                if generator.results[row].finish or any(stop in text.lstrip() for stop in stops):
                    generator.finish(row)
                    open_rows.discard(row)
        for index, result in zip(members, generator.results, strict=True):
            text = subject.tokenizer.decode(result.tokens).strip()
            answers[index] = Answer(text, tuple(result.tokens), result.finish)
            if progress is not None:
                progress.advance()
    return [answers[index] for index in range(len(ids))]


def _encode(
    subject: Subject, task: Written, renderer: Renderer, text: str, chat: bool, limit: int
) -> list[int]:
    """A prompt's ids; one that leaves no room for `limit` new tokens loses its left end."""
    if chat:
        ids = renderer.render([Message("user", task.chat_before + text)], generation_prompt=True).ids.tolist()
    else:
        ids = [subject.tokenizer.eos_id, *subject.tokenizer.encode(text).tolist()]
    return [int(token) for token in ids[-(subject.max_length - limit) :]]


def _until(text: str, stops: Sequence[str]) -> str:
    for stop in stops:
        text = text.split(stop)[0]
    return text.strip()
