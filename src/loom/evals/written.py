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

from loom.artifact import digest_file
from loom.chat.format import Message
from loom.chat.prompts import Conversation, conversation
from loom.chat.template import chat_template
from loom.console import Progress
from loom.errors import LoomError
from loom.evals import cache
from loom.evals.subject import Subject
from loom.model.generate import Generator
from loom.model.sampling import Sampling
from loom.model.transformer import Transformer
from loom.tasks import truthfulqa
from loom.tasks.data import Found, find, read_rows
from loom.tasks.item import Row

TOXIGEN_SAMPLE = 500  # prompts of each group (open-instruct)
TOXIGEN_SEED = 42
TRUTHFUL = "truthfulqa/truthful_qa:generation"


@dataclass(frozen=True)
class Prompt:
    """What the model is given; `row` is what its answer is stored with, `asked` the question alone, where the
    text holds more than that."""

    text: str
    row: Mapping[str, Any]
    asked: str = ""

    @property
    def spellings(self) -> tuple[str, ...]:
        """What a model may have been tuned on: the prompt as it is given, the question alone."""
        return (self.text, self.asked) if self.asked else (self.text,)


@dataclass(frozen=True)
class Written:
    """A generation task. `stop` strings end an answer and are no part of it."""

    name: str
    files: Callable[[Path], list[Found]]
    """The files of the prompts below the data folder. Raises `LoomError` that says what is missing."""
    read: Callable[[Found], Iterator[Prompt]]
    """The prompts of one file."""
    store: Callable[[Prompt, str, str], dict[str, Any]]
    """(prompt, answer, generator's name) -> a row of the upstream schema."""
    max_new_tokens: int
    stop: tuple[str, ...] = ()
    chat_before: str = ""
    """Stands before the prompt in the chat form."""
    source: str = ""
    """The data set on the Hub that the prompts can be fetched from, "owner/name:config"."""

    def prompts(self, folder: Path) -> Iterator[Prompt]:
        """Every prompt, in the order of the files."""
        for found in self.files(folder):
            yield from self.read(found)


def _alpaca_files(folder: Path) -> list[Found]:
    names = ("alpaca_eval", "alpaca_eval.reference", "alpaca_eval_reference")
    return [find(folder, names, (), "tatsu-lab/alpaca_eval", fetched=False)]


def _alpaca(found: Found) -> Iterator[Prompt]:
    for number, row in enumerate(read_rows(*found.paths), 1):
        yield Prompt(_text(row, ("instruction",), found, number), row)


def _truthful_files(folder: Path) -> list[Found]:
    return [find(folder, ("truthfulqa", "truthfulqa_gen", "truthful_qa"), ("validation",), TRUTHFUL)]


def _truthful(found: Found) -> Iterator[Prompt]:
    for number, row in enumerate(read_rows(*found.paths), 1):
        question = _text(row, ("Question", "question"), found, number)
        yield Prompt(truthfulqa.prompt(question), row, question)


def _text(row: Row, names: Sequence[str], found: Found, number: int) -> str:
    """The first of these fields that the row has. Raises `LoomError` with file and line."""
    value = next((row[name] for name in names if name in row), None)
    if not isinstance(value, str) or not value.strip():
        raise LoomError(
            f"{found.path}:{number}: this row has no {' or '.join(names)} to ask; mend or remove it."
        )
    return value


def _toxigen_files(folder: Path) -> list[Found]:
    files = sorted((folder / "toxigen").glob("hate_*_1k.txt"))
    if not files:
        raise LoomError(
            f"There is no {folder / 'toxigen' / 'hate_<group>_1k.txt'}: ToxiGen's 14 prompt files, from "
            f"github.com/microsoft/TOXIGEN. Name the folder that holds toxigen/ with --data."
        )
    return [Found((file,), "", (digest_file(file),)) for file in files]


def _toxigen(found: Found) -> Iterator[Prompt]:
    """`toxigen/hate_<group>_1k.txt`, files in the order of their names: upstream's sample depends on the
    order in which a disk lists them."""
    try:
        lines = found.path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise LoomError(f"{found.path} is not UTF-8 ({error}): fetch it again.") from None
    random.Random(TOXIGEN_SEED).shuffle(lines)
    group = found.path.name.removeprefix("hate_").removesuffix("_1k.txt")
    for line in lines[:TOXIGEN_SAMPLE]:
        yield Prompt(line.replace("\\n", "\n"), {"group": group})


WRITTEN: dict[str, Written] = {
    "alpaca_eval": Written(
        "alpaca_eval",
        _alpaca_files,
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
        _truthful_files,
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
        _toxigen_files,
        _toxigen,
        lambda prompt, answer, name: {"prompt": prompt.text, "output": answer, **prompt.row},
        512,
        stop=("\n",),
        chat_before="Complete the following: ",
    ),
}


def chat_of(subject: Subject) -> Conversation:
    """The format that the model was tuned on, found through its manifests or its tokenizer_config.json; the
    built-in one for a model without."""
    return conversation(subject.tokenizer, chat_template(subject.path))


def write_answers(
    subject: Subject,
    task: Written,
    prompts: Sequence[Prompt],
    *,
    chat: bool,
    max_new_tokens: int | None = None,
    batch: int = 16,
    progress: Progress | None = None,
) -> tuple[list[str], int]:
    """Greedy answers to `prompts`, each stripped, and how many prompts lost their left end to make room for
    one. In the chat form a prompt is one user's turn and the format's stop token ends the answer; else it is
    raw text after an end-of-text token, or what else the model reads before every text."""
    limit = min(max_new_tokens or task.max_new_tokens, subject.max_length // 2)
    room = subject.max_length - limit
    if chat:
        form = chat_of(subject)
        fitted = [fit_turns(form, [Message("user", task.chat_before + p.text)], room) for p in prompts]
        stop_ids = form.stop_ids
    else:
        eos = subject.tokenizer.eos_id
        opened = list(subject.opening.always) or [eos]
        left = room - len(opened)
        whole = [subject.tokenizer.encode(prompt.text).tolist() for prompt in prompts]
        fitted = [([*opened, *ids[max(0, len(ids) - left) :]], len(ids) > left) for ids in whole]
        stop_ids = (eos,)
    ids = [one for one, _ in fitted]
    found = generate_answers(subject, ids, limit, stop_ids, task.stop, batch, progress)
    return [_until(answer.text, task.stop) for answer in found], sum(cut for _, cut in fitted)


def fit_turns(form: Conversation, messages: Sequence[Message], room: int) -> tuple[list[int], bool]:
    """A conversation's ids in at most `room` tokens, and whether it was cut for that: earlier turns go first,
    then the left end of the last turn's content; the frame stays whole. Raises `LoomError` where the frame
    alone is longer."""
    kept = list(messages)
    ids = form.prompt(kept)
    while len(ids) > room:
        later = [place for place, message in enumerate(kept) if place and message.role == "user"]
        if later:
            kept = kept[later[0] :]
        else:
            content = form.tokenizer.encode(kept[-1].content.strip()).tolist()
            if not content:
                raise LoomError(
                    f"The chat format's frame alone is longer than the {room:,} tokens there are."
                )
            text = form.tokenizer.decode(content[len(ids) - room :]).lstrip("\ufffd")
            kept[-1] = Message(kept[-1].role, text)
        ids = form.prompt(kept)
    return ids, kept != list(messages)


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
    stop_ids: Sequence[int],
    stops: Sequence[str] = (),
    batch: int = 16,
    progress: Progress | None = None,
) -> list[Answer]:
    """Greedy answers of at most `limit` tokens; one of `stop_ids` or of the strings `stops` ends an answer."""
    asked = [list(map(list, ids)), limit, list(stop_ids), list(stops), batch]
    key = cache.key("answers", cache.of(subject), asked)
    if (known := cache.read(key, subject.cached)) is not None:
        return [Answer(one["text"], tuple(one["tokens"]), one["finish"]) for one in known]
    write = _write_own if isinstance(subject.model, Transformer) else _write_foreign
    found = write(subject, ids, limit, stop_ids, stops, batch, progress)
    cache.write(key, [vars(answer) for answer in found], subject.cached)
    return found


def _write_own(
    subject: Subject,
    ids: Sequence[Sequence[int]],
    limit: int,
    stop_ids: Sequence[int],
    stops: Sequence[str],
    batch: int,
    progress: Progress | None,
) -> list[Answer]:
    sampling = Sampling(limit, temperature=0, stop_ids=tuple(stop_ids))
    answers: dict[int, Answer] = {}
    # Prompts of like lengths together: they are padded to the longest of their batch.
    order = sorted(range(len(ids)), key=lambda index: len(ids[index]))
    for start in range(0, len(ids), batch):
        members = order[start : start + batch]
        generator = Generator(subject.model, [ids[index] for index in members], sampling)
        open_rows = set(range(len(members)))
        for _ in generator:
            for row in list(open_rows) if stops else ():
                if generator.results[row].finish or _stopped(subject, generator.results[row].tokens, stops):
                    generator.finish(row)
                    open_rows.discard(row)
        for index, result in zip(members, generator.results, strict=True):
            text = subject.tokenizer.decode(result.tokens).strip()
            answers[index] = Answer(text, tuple(result.tokens), result.finish)
            if progress is not None:
                progress.advance()
    return [answers[index] for index in range(len(ids))]


def _write_foreign(
    subject: Subject,
    ids: Sequence[Sequence[int]],
    limit: int,
    stop_ids: Sequence[int],
    stops: Sequence[str],
    batch: int,
    progress: Progress | None,
) -> list[Answer]:
    """One prompt at a time: how an architecture takes padding is not known here."""
    answers = []
    for prompt in ids:
        tokens, ended = subject.model.generate(
            prompt, limit, stop_ids, lambda new: bool(stops) and _stopped(subject, new, stops)
        )
        text = subject.tokenizer.decode(tokens).strip()
        answers.append(Answer(text, tuple(tokens), "stop" if ended else "length"))
        if progress is not None:
            progress.advance()
    return answers


def _stopped(subject: Subject, tokens: Sequence[int], stops: Sequence[str]) -> bool:
    text = subject.tokenizer.decode(tokens).lstrip()
    return any(stop in text for stop in stops)


def _until(text: str, stops: Sequence[str]) -> str:
    for stop in stops:
        text = text.split(stop)[0]
    return text.strip()
