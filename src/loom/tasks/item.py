"""What a task makes of a row: contexts, continuations and which of them is right."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Item:
    """One question, ready to be scored.

    The scorer gives log p(continuation | context) for every pair; a prediction is the pair with the
    highest (normalised) one. A context never ends in the space that separates it from its continuation:
    the continuation begins with it.
    """

    doc_id: int
    """The row's index in its file, from 0."""
    pairs: tuple[tuple[str, str], ...]
    """(context, continuation), one a choice."""
    gold: int | tuple[int, ...]
    """The right choice, or several where the task has several (TruthfulQA MC2)."""
    choices: tuple[str, ...]
    """What length normalisation measures: the choice as the row spells it, without the joining space."""
    header: str = ""
    """The beginning that the contexts share with the other items of their group (few-shot examples)."""
    group: str = ""
    """The subset the item belongs to (an MMLU subject)."""
    cluster: str = ""
    """Items of one cluster share text (a passage), so their errors are not independent."""
    unconditioned: str | None = None
    """PMI: the context that the continuations are scored after a second time."""
    chat: bool = False
    """The contexts are chat prompts: they begin with the end-of-text token."""
    question: tuple[str, ...] = ()
    """The question in plain words, without the prompt's frame, in the spellings a person may give it: that a
    model was tuned on it is found by them."""

    @property
    def golds(self) -> tuple[int, ...]:
        return (self.gold,) if isinstance(self.gold, int) else self.gold


class BadRow(ValueError):
    """A row that cannot become an item; the reader adds file and line."""


class Fields(dict[str, Any]):
    """A row as a task reads it: a field that is asked for and null is as bad as one that is not there."""

    def __getitem__(self, name: str) -> Any:
        if name in self and (value := super().__getitem__(name)) is not None:
            return value
        raise BadRow(f"its {name} is null" if name in self else f"it has no field {name!r}")


def asked(item: Item) -> tuple[str, ...]:
    """What a user may have asked: the context without its few-shot header and the chat format's frame, and the
    question alone."""
    text = item.pairs[0][0].removeprefix(item.header)
    return (text.removeprefix("<|user|>\n").removesuffix("\n<|assistant|>\n"), *item.question)


def choose(
    doc_id: int, context: str, choices: Sequence[str], gold: int, *, joint: str = " ", **more: Any
) -> Item:
    """An item whose choices all continue one context."""
    pairs = tuple((context, joint + text) for text in choices)
    return Item(doc_id, pairs, gold, tuple(choices), **more)


def check(item: Item, choices: int = 2) -> Item:
    """`item` itself. Raises `BadRow` if it has a gold out of range, fewer `choices`, an empty choice or question."""
    if not item.pairs or len(item.pairs) != len(item.choices):
        raise BadRow(f"it has {len(item.pairs)} continuations for {len(item.choices)} choices")
    if len(item.pairs) < choices:
        raise BadRow(f"it has {len(item.pairs)} choice, and at least {choices} are needed")
    for gold in item.golds:
        if not 0 <= gold < len(item.pairs):
            raise BadRow(f"its right answer is number {gold} of {len(item.pairs)} choices (counted from 0)")
    for index, (_, continuation) in enumerate(item.pairs):
        if not continuation.strip() or not item.choices[index].strip():
            raise BadRow(f"its choice {index} (counted from 0) is empty")
    if any(not text.strip() for text in item.question):
        raise BadRow("its question is empty")
    return item


@dataclass(frozen=True)
class Task:
    """A task under one protocol: where its rows are, how a row becomes an item, what is reported.

    `render` is pure. To add a task, write `render` and one `Task(...)` in the registry.
    """

    name: str
    render: Callable[[int, Row], Item]
    files: tuple[str, ...]
    """Names the rows may have in the data folder, before `.<split>.jsonl`."""
    splits: tuple[str, ...] = ()
    """Splits in order of preference; the first is the protocol's own."""
    metrics: tuple[str, ...] = ("acc",)
    """What the protocol reports; the first is its headline. The other metrics are recorded too."""
    source: str = ""
    """The data set on the Hugging Face Hub that the rows come from: "owner/name" or "owner/name:config"."""
    sample: int | None = None
    """Rows the protocol draws, with the seed of `loom.tasks.data.SEED`; None for all."""
    sample_above: int = 0
    """It draws them only from files of more rows than this (OLMES: 1,500)."""
    shots: int = 0
    """Worked examples before each question: the first rows of the `dev` or `train` file."""
    description: Callable[[str], str] | None = None
    """What stands before everything else, from the subject."""
    subjects: tuple[str, ...] = ()
    """Subsets with files of their own, `<files[0]>/<subject>.<split>.jsonl` (MMLU)."""
    macro: bool = False
    """The headline is the plain mean over the subjects (OLMES), `macro_` and its metric."""
    title: str = ""
    """A line for `loom list tasks`."""


def item_of(task: Task, doc_id: int, row: Row) -> Item:
    """The item that a task makes of a row. Raises `BadRow` with what is wrong with it."""
    try:
        return check(task.render(doc_id, Fields(row)), choices=1 if task.metrics[0] == "bits_per_byte" else 2)
    except BadRow:
        raise
    except KeyError as error:
        raise BadRow(f"it has no field {error}") from None
    except (ValueError, TypeError, IndexError, AttributeError) as error:
        raise BadRow(str(error) or type(error).__name__) from None
