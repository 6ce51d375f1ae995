"""Who judges what: one judge a written task, checked before anything is generated; and a file of answers, judged
without a model."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loom import artifact
from loom.artifact import Artifact, Input, write_json
from loom.console import console
from loom.errors import LoomError
from loom.evals.folder import discard, refuse_emptying
from loom.evals.foreign import is_foreign
from loom.evals.judge.answers import find_judge, judge_comparisons, speaking_of
from loom.evals.judge.judges import Comparison, Judge, Replay
from loom.evals.settings import EvalRecipe, clean
from loom.evals.written.questions import Prompt
from loom.evals.written.records import read_records, text_of
from loom.evals.written.schemas import ANNOTATIONS, write_lines
from loom.tasks.data import Found
from loom.tokens.tokenizer import Tokenizer
from loom.train.opening import model_folder
from loom.version import VERSION

KINDS = {
    "alpaca_eval": ("replay", "model", "endpoint"),
    "toxigen": ("classifier",),
    "truthfulqa_gen": ("model",),
}
SPELLINGS = {
    "alpaca_eval": "replay:FILE, model:FOLDER or endpoint:URL#MODEL",
    "toxigen": "classifier:FOLDER",
    "truthfulqa_gen": "model:TRUTH_JUDGE or model:TRUTH_JUDGE,INFO_JUDGE",
}


def judges_for(words: Sequence[str], tasks: Sequence[str]) -> dict[str, str]:
    """The judge of each written task, from `--judge` words: `TASK=JUDGE`, or a JUDGE by itself for every task
    that takes its kind and has none of its own.

    Everything that can be known without running a judge is checked: raises `LoomError` for a task that is
    not evaluated, a kind that no task takes, and a file or folder that is not there or no model.
    """
    found: dict[str, str] = {}
    for word in words:
        task, equals, spec = word.partition("=")
        if equals and task in KINDS:
            if task not in tasks:
                raise LoomError(f"--judge {word}: {task} is not among the tasks ({', '.join(tasks)}).")
            if task in found:
                raise LoomError(f"--judge {word}: {task} has a judge, {found[task]}. Name one for each task.")
            found[task] = spec
    own = set(found)
    for word in words:
        task, equals, _ = word.partition("=")
        if equals and task in KINDS:
            continue
        takers = [
            name for name in tasks if name not in found and word.partition(":")[0] in KINDS.get(name, ())
        ]
        if word.startswith("model:") and "," in word:  # a pair of judges is TruthfulQA's alone
            takers = [name for name in takers if name == "truthfulqa_gen"]
        kind = word.partition(":")[0]
        if not takers and (taken := [name for name in found if name not in own and kind in KINDS[name]]):
            raise LoomError(
                f"--judge {word}: {taken[0]} has a judge, {found[taken[0]]}. Name one for each task, as TASK=JUDGE."
            )
        if not takers:
            takes = "; ".join(f"{name} takes {SPELLINGS[name]}" for name in tasks if name in KINDS)
            raise LoomError(
                f"--judge {word} judges none of the tasks: {takes or 'none of them is judged'}. A judge for one "
                f"task is written TASK=JUDGE, as in --judge toxigen=classifier:FOLDER."
            )
        found |= dict.fromkeys(takers, word)
    for name, spec in found.items():
        _check(name, spec)
    return found


def _check(task: str, spec: str) -> None:
    """Raise `LoomError` unless `task` can be judged by `spec`, as far as can be seen without loading a model."""
    kind, _, rest = spec.partition(":")
    if kind not in KINDS[task] or not rest:
        raise LoomError(f"{task} cannot be judged by {spec!r}: it takes {SPELLINGS[task]}.")
    if kind == "classifier":
        if not (Path(rest) / "config.json").is_file():
            raise LoomError(f"--judge {spec}: there is no config.json in {rest}, so it is no classifier.")
        if importlib.util.find_spec("transformers") is None:
            raise LoomError("A classifier as judge needs transformers: pip install transformers.")
    elif kind == "model":
        folders = rest.split(",")
        if len(folders) > (2 if task == "truthfulqa_gen" else 1):
            raise LoomError(f"{task} cannot be judged by {spec!r}: it takes {SPELLINGS[task]}.")
        for folder in map(Path, folders):
            with speaking_of(spec):
                there = folder if is_foreign(folder) else model_folder(folder).path
                Tokenizer.load(there)
    else:
        find_judge(spec)


def check_references(task: str, spec: str, files: Sequence[Found], prompts: Sequence[Prompt]) -> None:
    """Raise `LoomError`, naming the row, where a judge would compare with an answer that is not there: a model wins
    against none. A replayed judgement compares nothing anew."""
    if task != "alpaca_eval" or spec.startswith("replay:"):
        return
    for prompt in prompts:
        if not isinstance(prompt.row.get("output"), str):
            raise LoomError(
                f"{prompt.place or files[0].path}: this row has no output, the reference answer that --judge {spec} is "
                f"to compare with. Name the file of reference answers as alpaca_eval.jsonl in --data, or leave --judge "
                f"out."
            )


def check_settings(recipe: EvalRecipe, written_names: Sequence[str]) -> None:
    """Raise `LoomError` for settings that choose rows in a way in which written tasks have none; where they are only
    part of a suite, say that they do not apply."""
    chosen = {
        "--sample": recipe.sample is not None,
        "--split": recipe.split is not None,
        "--skip-bad": recipe.skip_bad,
    }
    given = " and ".join(flag for flag, there in chosen.items() if there)
    if not given or not written_names:
        return
    if recipe.present:
        console.warn(
            f"{given}: of written tasks ({', '.join(written_names)}) every prompt is read all the same."
        )
        return
    raise LoomError(
        f"{given}: written tasks ({', '.join(written_names)}) are not drawn from, have no splits and no rows that may "
        f"be left out. Use --limit, or evaluate them by a command of their own."
    )


def judge_outputs(outputs: Path, reference: Path | None, judge: Judge, out: Path) -> Artifact:
    """Judge answers that lie in a file: rows {instruction, output}, or annotations with their output_2.

    They are compared with the answers of `reference`, by instruction; stored judgements with what they were made
    against, and `reference` is not read. Where the judge fails, `judge_failed` stands in results.json. Raises
    `LoomError` for a row that cannot be judged, and a repeated or unknown instruction.
    """
    started = time.monotonic()
    given = _given(outputs, annotated=True)
    inputs = [outputs]
    if isinstance(judge, Replay):
        if reference is not None:
            console.warn(
                f"--reference {reference} is not read: the judgements in {judge.path} were made against the answers "
                f"that stand there."
            )
        instructions = {item.instruction for item in judge.comparisons()}
        comparisons = [
            Comparison(asked, "", own.answer, own.dataset, answer_by=own.by) for asked, own in given.items()
        ]
        inputs.append(judge.path)
    elif reference is None:
        raise LoomError(f"{outputs} is to be compared with other answers: name their file with --reference.")
    else:
        comparisons, instructions = _against(given, reference)
        inputs.append(reference)
    of = "annotated" if isinstance(judge, Replay) else "reference"
    refuse_emptying(out, inputs)
    digests = [
        Input(artifact.relative(path, out), artifact.digest_file(path)) for path in dict.fromkeys(inputs)
    ]
    discard(out)
    result: dict[str, Any] = {
        "n": len(comparisons),
        "answered": sum(item.instruction in instructions for item in comparisons),
        "instructions": len(instructions),
    }
    facts: dict[str, Any] = {"headline": "n", "instructions_of": of}
    if reference is not None and not isinstance(judge, Replay):
        facts["reference"] = artifact.digest_file(reference)
    names = ["results.json"]
    try:
        with speaking_of(judge.name):
            found = judge_comparisons(judge, comparisons)
    except LoomError as error:
        result["judge_failed"] = f"{judge.name}: {error}"
        facts["judge"] = judge.describe()
    else:
        result |= found.figures
        facts |= {"judge": found.facts, "headline": next(iter(found.figures))}
        names.append(ANNOTATIONS)
        write_lines(out / names[-1], found.annotations)
    tasks = {"alpaca_eval": facts}
    write_json(
        out / "results.json", {"results": clean({"alpaca_eval": result}), "loom": VERSION, "tasks": tasks}
    )
    return artifact.commit(
        out,
        "evaluation",
        recipe={"outputs": artifact.relative(outputs, out), "judge": judge.describe()},
        inputs=digests,
        outputs=artifact.describe(out, names),
        counters={"answers": len(comparisons)},
        started=started,
    )


@dataclass(frozen=True)
class _Given:
    """A file's answer to an instruction, who gave it, and where it stands."""

    answer: str
    by: str
    dataset: str
    place: str


def _given(path: Path, annotated: bool = False) -> dict[str, _Given]:
    """By instruction, a file's answers: `output`, or where rows may be `annotated`, also their output_2."""
    found: dict[str, _Given] = {}
    for place, row in read_records(path):
        instruction = text_of(row, "instruction", place)
        if instruction in found:
            raise LoomError(
                f"{place} repeats the instruction of {found[instruction].place}: which answer is meant cannot be known. "
                f"Leave one to each instruction."
            )
        second = annotated and "output" not in row and "output_2" in row
        answer = text_of(row, "output_2" if second else "output", place)
        by, dataset = (
            str(row.get(name) or "") for name in ("generator_2" if second else "generator", "dataset")
        )
        found[instruction] = _Given(answer, by, dataset, place)
    return found


def _against(given: dict[str, _Given], reference: Path) -> tuple[list[Comparison], set[str]]:
    """Each answer beside the reference's to the same instruction; and all instructions of the reference."""
    others = _given(reference)
    for instruction, own in given.items():
        if instruction not in others:
            raise LoomError(
                f"{own.place}: {reference} has no answer to this instruction: take the row out, or name the answers that "
                f"it is to be compared with."
            )
    found = [
        Comparison(asked, others[asked].answer, own.answer, others[asked].dataset, others[asked].by, own.by)
        for asked, own in given.items()
    ]
    return found, set(others)
