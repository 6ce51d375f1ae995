"""What a model is asked to write about: the files of AlpacaEval, TruthfulQA and ToxiGen, and their prompts."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loom.artifact import digest_file
from loom.console import console
from loom.errors import LoomError
from loom.tasks import truthfulqa
from loom.tasks.data import Found, NotThere, find, numbered
from loom.tasks.item import Row

TOXIGEN_SAMPLE = 500  # prompts of each group (open-instruct)
TOXIGEN_SEED = 42
TOXIGEN_GROUPS = (
    "asian",
    "black",
    "chinese",
    "jewish",
    "latino",
    "lgbtq",
    "mental_disability",
    "mexican",
    "middle_east",
    "muslim",
    "native_american",
    "physical_disability",
    "trans",
    "women",
)
TRUTHFUL = "truthfulqa/truthful_qa:generation"


@dataclass(frozen=True)
class Prompt:
    """What the model is given; `row` is what its answer is stored with, `asked` the question alone, where the
    text holds more than that, `group` what it is counted under, `place` its file and line."""

    text: str
    row: Mapping[str, Any]
    asked: str = ""
    group: str = ""
    place: str = ""

    @property
    def spellings(self) -> tuple[str, ...]:
        """What a model may have been tuned on: the prompt as it is given, the question alone."""
        return (self.text, self.asked) if self.asked else (self.text,)


def alpaca_found(folder: Path) -> list[Found]:
    names = ("alpaca_eval", "alpaca_eval.reference", "alpaca_eval_reference")
    return [find(folder, names, (), "tatsu-lab/alpaca_eval", fetched=False)]


def alpaca(found: Found) -> Iterator[Prompt]:
    for place, row in numbered(*found.paths):
        yield Prompt(_text(row, ("instruction",), place), row, place=place)


def truthful_found(folder: Path) -> list[Found]:
    return [find(folder, ("truthfulqa", "truthfulqa_gen", "truthful_qa"), ("validation",), TRUTHFUL)]


def truthful(found: Found) -> Iterator[Prompt]:
    for place, row in numbered(*found.paths):
        question = _text(row, ("Question", "question"), place)
        yield Prompt(truthfulqa.prompt(question), row, question, place=place)


def _text(row: Row, names: Sequence[str], place: str) -> str:
    """The first of these fields that the row has. Raises `LoomError` with file and line."""
    value = next((row[name] for name in names if name in row), None)
    if not isinstance(value, str) or not value.strip():
        raise LoomError(f"{place}: this row has no {' or '.join(names)} to ask; mend or remove it.")
    return value


def toxigen_found(folder: Path) -> list[Found]:
    """The groups' files in the order of their names. Says which of the 14 are not there."""
    files = sorted((folder / "toxigen").glob("hate_*_1k.txt"))
    if not files:
        raise NotThere(
            f"There is no {folder / 'toxigen' / 'hate_<group>_1k.txt'}: ToxiGen's 14 prompt files, from "
            f"github.com/microsoft/TOXIGEN. Name the folder that holds toxigen/ with --data."
        )
    if missing := missing_groups([_group(file) for file in files]):
        console.warn(
            f"toxigen: {len(missing)} of its {len(TOXIGEN_GROUPS)} groups have no file hate_<group>_1k.txt in "
            f"{folder / 'toxigen'}: {', '.join(missing)}. The figure is of the others."
        )
    return [Found((file,), "", (digest_file(file),)) for file in files]


def missing_groups(groups: Sequence[str]) -> list[str]:
    return [group for group in TOXIGEN_GROUPS if group not in groups]


def toxigen(found: Found) -> Iterator[Prompt]:
    """`toxigen/hate_<group>_1k.txt`: its lines, shuffled, the first 500 (open-instruct). A line ends where one of a
    text file does, not at U+2028 or U+0085. Each file is shuffled from the same seed: upstream's sample depends on the
    order in which a disk lists them."""
    try:
        with open(found.path, encoding="utf-8") as stream:
            lines = [(line.strip(), number) for number, line in enumerate(stream, 1)]
    except UnicodeDecodeError as error:
        raise LoomError(f"{found.path} is not UTF-8 ({error}): fetch it again.") from None
    if not any(line for line, _ in lines):
        raise LoomError(f"{found.path} holds no prompts: fetch it again, or take it away.")
    random.Random(TOXIGEN_SEED).shuffle(lines)
    group = _group(found.path)
    for line, number in lines[:TOXIGEN_SAMPLE]:
        text = line.replace("\\\\", "\\").replace("\\n", "\n")
        yield Prompt(text, {"group": group}, group=group, place=f"{found.path}:{number}")


def _group(path: Path) -> str:
    return path.name.removeprefix("hate_").removesuffix("_1k.txt")


def limited(prompts: Sequence[Prompt], limit: int | None) -> tuple[Prompt, ...]:
    """The first `limit` prompts, of each group where there are groups; None for all."""
    if limit is None:
        return tuple(prompts)
    taken: dict[str, int] = {}
    kept = []
    for prompt in prompts:
        taken[prompt.group] = taken.get(prompt.group, 0) + 1
        if taken[prompt.group] <= limit:
            kept.append(prompt)
    return tuple(kept)
