"""Files as the upstream programs have them: AlpacaEval's answers and annotations, TruthfulQA's table,
ToxiGen's predictions as open-instruct has them. Their own judges can be run on what lies there."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from loom.artifact import atomic_write
from loom.evals.judge.judges import Comparison, Preference
from loom.evals.written.questions import Prompt
from loom.tasks.item import Row

ANNOTATIONS = "alpaca_eval.annotations.jsonl"
TRUTHFUL_COLUMNS = {  # the authors' table, and what the Hub's rows call the same
    "Type": "type",
    "Category": "category",
    "Question": "question",
    "Best Answer": "best_answer",
    "Correct Answers": "correct_answers",
    "Incorrect Answers": "incorrect_answers",
    "Source": "source",
}


def generator_name(model: Path) -> str:
    """What answers are signed with: the folder's name, of a checkpoint its run's before it, since every run has a
    step-00001000."""
    path = model.resolve()
    if path.parent.name == "checkpoints":
        return f"{path.parent.parent.name}-{path.name}"
    return path.name


def alpaca_row(prompt: Prompt, answer: str, generator: str) -> dict[str, Any]:
    return {
        "dataset": prompt.row.get("dataset", ""),
        "instruction": prompt.text,
        "output": answer,
        "generator": generator,
    }


def alpaca_files(prompts: Sequence[Prompt], answers: Sequence[str], generator: str) -> dict[str, bytes]:
    """`alpaca_eval --model_outputs` reads one array."""
    rows = [alpaca_row(prompt, answer, generator) for prompt, answer in zip(prompts, answers, strict=True)]
    return {"alpaca_eval.json": orjson.dumps(rows, option=orjson.OPT_INDENT_2) + b"\n"}


def toxigen_row(prompt: Prompt, answer: str, generator: str) -> dict[str, Any]:
    """A line of open-instruct's predictions.jsonl without its verdict, `is_toxic`; a group is called as the rest of
    its file's name is, `asian_1k`."""
    return {
        "text": prompt.text,
        "label": "hate",
        "target_groups": [f"{prompt.group}_1k"],
        "prediction": answer,
    }


def truthful_row(prompt: Prompt, answer: str, generator: str) -> dict[str, Any]:
    return {**prompt.row, _column(generator, prompt.row): answer}


def truthful_files(prompts: Sequence[Prompt], answers: Sequence[str], generator: str) -> dict[str, bytes]:
    """The authors' table with the model's column; lists are joined as there, by semicolons."""
    column = _column(generator, TRUTHFUL_COLUMNS)
    stream = io.StringIO()
    table = csv.DictWriter(stream, [*TRUTHFUL_COLUMNS, column], lineterminator="\n")
    table.writeheader()
    for prompt, answer in zip(prompts, answers, strict=True):
        cells = {name: _cell(prompt.row, name, other) for name, other in TRUTHFUL_COLUMNS.items()}
        table.writerow({**cells, column: answer})
    return {"truthfulqa_gen.csv": stream.getvalue().encode()}


def _column(generator: str, taken: Mapping[str, Any]) -> str:
    """A model called as one of the columns is takes none of them."""
    return f"{generator} (model)" if generator in taken else generator


def _cell(row: Row, name: str, other: str) -> str:
    value = row[name] if name in row else row.get(other)
    if isinstance(value, list | tuple):
        return "; ".join(map(str, value))
    return "" if value is None else str(value)


def annotation(item: Comparison, preference: Preference, annotator: str) -> dict[str, Any]:
    """A row of AlpacaEval's annotations; `preference` is null where nobody judged."""
    return {
        "instruction": item.instruction,
        "output_1": item.baseline,
        "generator_1": item.baseline_by,
        "dataset": item.dataset,
        "output_2": item.answer,
        "generator_2": item.answer_by,
        "annotator": annotator,
        "preference": preference,
    }


def write_lines(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    with atomic_write(path) as stream:
        stream.writelines(orjson.dumps(line) + b"\n" for line in lines)
