"""Evaluations in which the model writes: AlpacaEval, TruthfulQA, ToxiGen.

What it writes is stored in the upstream programs' own schemas, so that the official judges can be run
on it elsewhere. Here a number is made only where a judge or classifier is named.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loom.chat.format import Message
from loom.chat.prompts import Conversation, conversation
from loom.chat.template import chat_template
from loom.console import Progress
from loom.errors import LoomError
from loom.evals import cache
from loom.evals.subject import Subject
from loom.evals.written import questions, schemas
from loom.evals.written.questions import TRUTHFUL, Prompt, limited
from loom.model.generate import Generator
from loom.model.sampling import Sampling
from loom.model.transformer import Transformer
from loom.tasks.data import Found

__all__ = [
    "WRITTEN",
    "Answer",
    "Answers",
    "Prompt",
    "Written",
    "chat_of",
    "fit_turns",
    "generate_answers",
    "limited",
    "write_answers",
]


def _no_files(prompts: Sequence[Prompt], answers: Sequence[str], generator: str) -> dict[str, bytes]:
    return {}


@dataclass(frozen=True)
class Written:
    """A generation task."""

    name: str
    files: Callable[[Path], list[Found]]
    """The files of the prompts below the data folder. Raises `LoomError` that says what is missing."""
    read: Callable[[Found], Iterator[Prompt]]
    """The prompts of one file."""
    store: Callable[[Prompt, str, str], dict[str, Any]]
    """(prompt, answer, generator's name) -> a row of the upstream schema."""
    max_new_tokens: int
    stop: tuple[str, ...] = ()
    """Strings that end an answer and are no part of it; of raw text only, in the chat form the format ends it
    (open-instruct)."""
    trim: Callable[[str], str] = str
    """What is stored and judged of an answer."""
    verdicts: tuple[str, ...] = ()
    """Columns of the stored rows that a judge fills; null until then."""
    also: Callable[[Sequence[Prompt], Sequence[str], str], dict[str, bytes]] = _no_files
    """(prompts, answers, generator's name) -> further files that the upstream programs read, by name."""
    chat_before: str = ""
    """Stands before the prompt in the chat form."""
    source: str = ""
    """The data set on the Hub that the prompts can be fetched from, "owner/name:config"."""

    def prompts(self, folder: Path) -> Iterator[Prompt]:
        """Every prompt, in the order of the files."""
        for found in self.files(folder):
            yield from self.read(found)


def trim_truthful(answer: str) -> str:
    """An answer behind its own "A:" and before the next "Q:", blank lines as spaces (open-instruct's trim_answer)."""
    answer = answer.strip()
    if answer.startswith("A:"):
        answer = answer[2:].strip()
    return answer.split("Q:")[0].strip().replace("\n\n", " ")


WRITTEN: dict[str, Written] = {
    "alpaca_eval": Written(
        "alpaca_eval",
        questions.alpaca_found,
        questions.alpaca,
        schemas.alpaca_row,
        2048,
        also=schemas.alpaca_files,
    ),
    "truthfulqa_gen": Written(
        "truthfulqa_gen",
        questions.truthful_found,
        questions.truthful,
        schemas.truthful_row,
        50,
        stop=("\n\n",),
        trim=trim_truthful,
        verdicts=("true", "informative"),
        also=schemas.truthful_files,
        source=TRUTHFUL,
    ),
    "toxigen": Written(
        "toxigen",
        questions.toxigen_found,
        questions.toxigen,
        schemas.toxigen_row,
        512,
        stop=("\n",),
        verdicts=("is_toxic",),
        chat_before="Complete the following: ",
    ),
}


def chat_of(subject: Subject) -> Conversation:
    """The format that the model was tuned on, found through its manifests or its tokenizer_config.json; the
    built-in one for a model without."""
    return conversation(subject.tokenizer, chat_template(subject.path))


@dataclass(frozen=True)
class Answers:
    """Greedy answers, each stripped, of at most `limit` tokens: how many of them ended there, and how many prompts
    lost their left end to make room for one."""

    texts: list[str]
    limit: int
    cut: int
    prompts_cut: int


def write_answers(
    subject: Subject,
    task: Written,
    prompts: Sequence[Prompt],
    *,
    chat: bool,
    max_new_tokens: int | None = None,
    max_length: int | None = None,
    batch: int = 16,
    progress: Progress | None = None,
) -> Answers:
    """Answers to `prompts`. In the chat form a prompt is one user's turn and the format's stop token ends the
    answer; else it is raw text after an end-of-text token, or what else the model reads before every text, and a stop
    string ends it too. Prompt and answer have `max_length` tokens, at most the model's context, an answer at most half
    of them. Raises `LoomError` where those hold no prompt."""
    length = min(max_length or subject.max_length, subject.max_length)
    limit = min(max_new_tokens or task.max_new_tokens, length // 2)
    room = length - limit
    stops = () if chat else task.stop
    if chat:
        form = chat_of(subject)
        fitted = [fit_turns(form, [Message("user", task.chat_before + p.text)], room) for p in prompts]
        stop_ids = form.stop_ids
    else:
        eos = subject.tokenizer.eos_id
        opened = list(subject.opening.always) or [eos]
        left = room - len(opened)
        if left < 1 or limit < 1:
            raise LoomError(
                f"{length:,} tokens hold no prompt and an answer to it: give a larger --max-length."
            )
        whole = [subject.tokenizer.encode(prompt.text).tolist() for prompt in prompts]
        fitted = [([*opened, *ids[max(0, len(ids) - left) :]], len(ids) > left) for ids in whole]
        stop_ids = (eos,)
    ids = [one for one, _ in fitted]
    found = generate_answers(subject, ids, limit, stop_ids, stops, batch, progress)
    return Answers(
        [answer.text for answer in found],
        limit,
        sum(answer.finish == "length" for answer in found),
        sum(cut for _, cut in fitted),
    )


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
    """A greedy answer before its stop string, stripped; `finish` is stop where the model or the string ended it, else
    length."""

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
    key = cache.key("answers before stops", cache.of(subject), asked)
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
            answers[index] = _answer(subject, result.tokens, stops, result.finish == "stop")
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
        answers.append(_answer(subject, tokens, stops, ended))
        if progress is not None:
            progress.advance()
    return answers


def _stopped(subject: Subject, tokens: Sequence[int], stops: Sequence[str]) -> bool:
    text = subject.tokenizer.decode(tokens)
    return any(stop in text for stop in stops)


def _answer(subject: Subject, tokens: Sequence[int], stops: Sequence[str], ended: bool) -> Answer:
    """A stop string counts wherever it stands: an answer that begins with one is empty (open-instruct)."""
    text = subject.tokenizer.decode(tokens)
    ended = ended or _stopped(subject, tokens, stops)
    for stop in stops:
        text = text.split(stop)[0]
    return Answer(text.strip(), tuple(tokens), "stop" if ended else "length")
