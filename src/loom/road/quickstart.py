"""The whole road on this machine: documents, tokens, a model, its tuning, its release, its page.

Every stage is the function behind a verb and leaves an artifact; a finished one is found and passed by.
What a stage does depends on its inputs and `plan.json` alone, so a road that was stopped ends with the
same numbers as one that was not.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from loom import artifact
from loom.artifact import Artifact, write_json
from loom.console import console, format_bytes
from loom.engine import LocalEngine
from loom.errors import LoomError
from loom.recipe import find, load, to_plain
from loom.road.answers import answers
from loom.road.evaluation import (
    FIGURE_COLUMNS,
    evaluate_model,
    heldout_evaluation,
    measure_text,
    read_figures,
)
from loom.road.page import write_page
from loom.road.plan import PLAN, Plan, make_plan, read_plan
from loom.road.result import RESULT, STAGES, closing_object, read_result, read_seconds, show_result
from loom.road.trace import index_tokens, read_traces, trace_answers
from loom.road.training import run_training
from loom.train.config import RunConfig

SPACE = 1_000_000_000  # bytes a road needs on its disk
VOCABULARY = 8192
DEFAULT_MINUTES = 8.0
CONTEXT = 256  # tokens: what evaluation reads at once, and the longest conversation


@dataclass(frozen=True)
class Quickstart:
    """`minutes` is the time of the whole road; None takes the plan's, or 8 where there is none yet."""

    minutes: float | None = None
    limit_mb: float = 15.0
    total_mb: float = 40.0
    held_out: float = 0.02
    held_out_functions: int = 800
    workers: int | None = None

    def __post_init__(self) -> None:
        if self.minutes is not None and not self.minutes > 0:
            raise LoomError(
                f"--minutes is {self.minutes:g}; give the road some time, for example --minutes 8."
            )
        if not self.limit_mb > 0 or not self.total_mb > 0:
            raise LoomError("--limit-mb and --total-mb must be above 0, for example --limit-mb 15.")


def quickstart(recipe: Quickstart, out: Path) -> dict[str, Any]:
    """Go the road in the folder `out`, on from where it was; the closing object (see `loom quickstart`)."""
    _check_room(out)
    road = _Road(recipe, out)
    raw = road.collect()
    questions = road.ask(raw)
    curated = road.curate(raw, questions)
    tokens = road.tokenize(curated)
    plan = road.plan(questions)
    base = road.pretrain(plan, questions)
    road.evaluate("base", base, questions)
    tuned = road.tune_on_answers(plan, base)
    road.evaluate("sft", tuned, questions)
    preferred = road.tune_on_pairs(plan, tuned, questions)
    road.evaluate("dpo", preferred, questions)
    exported = road.export(preferred)
    answered = road.answer(exported, questions)
    traced = road.trace(tokens, answered, preferred)
    return road.finish(exported, traced)


class _Road:
    def __init__(self, recipe: Quickstart, out: Path) -> None:
        self.recipe, self.out = recipe, out
        self.engine = LocalEngine(recipe.workers)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Times a stage; what it took is added to `stages.json` when it is done."""
        console.heading(name)
        started = time.monotonic()
        yield
        seconds = read_seconds(self.out)
        seconds[name] = round(seconds.get(name, 0.0) + time.monotonic() - started, 2)
        write_json(self.out / STAGES, seconds)

    def collect(self) -> Artifact:
        from loom.corpus.sources.python import Collect, collect

        with self.stage("collect"):
            wanted = Collect(limit_mb=self.recipe.limit_mb, total_mb=self.recipe.total_mb)
            raw = collect(wanted, self.out / "raw", self.engine)
            rows = [
                [name, part["documents"], format_bytes(part["bytes"])]
                for name, part in raw.counters["sources"].items()
            ]
            console.table("Documents of this machine's Python", ["source", "documents", "text"], rows)
        return raw

    def ask(self, raw: Artifact) -> Artifact:
        from loom.tasks.docs import QuestionsRecipe, make_questions

        with self.stage("questions"):
            wanted = QuestionsRecipe(raw.path, held_out=self.recipe.held_out_functions)
            questions = make_questions(wanted, self.out / "questions")
            console.say(
                "{train:,} functions to learn from, {held_out:,} held out".format(**questions.counters)
            )
            dropped = questions.counters["decontaminated"]
            console.say(
                f"decontamination: {dropped:,} questions dropped that share 8 words with a held-out answer"
            )
        return questions

    def curate(self, raw: Artifact, questions: Artifact) -> Artifact:
        from loom.corpus.curate import Curate, curate
        from loom.corpus.summary import show

        with self.stage("curate"):
            held = questions.file("heldout-summaries.txt")
            overrides = [
                f"documents={json.dumps(str(raw.path))}",
                f"decontaminate={{path: {json.dumps(str(held))}, ngram: 8}}",
            ]
            recipe = load(find("quickstart-corpus"), Curate, overrides)
            curated = curate(recipe, self.out / "curated", self.engine)
            show(curated.counters)
            hits = curated.counters["held_out_hits"]
            console.say(
                f"decontamination: {hits:,} passages of 8 words from held-out answers cut out of the corpus"
            )
        return curated

    def tokenize(self, curated: Artifact) -> Artifact:
        from loom.tokens.bpe import TrainTokenizer, train
        from loom.tokens.tokenize import Tokenize, tokenize

        with self.stage("tokenizer"):
            train(TrainTokenizer((str(curated.path),), vocab_size=VOCABULARY), self.out / "tokenizer")
        with self.stage("tokenize"):
            wanted = Tokenize((str(curated.path),), self.out / "tokenizer", held_out=self.recipe.held_out)
            tokens = tokenize(wanted, self.out / "tokens", self.engine)
            counters = tokens.counters
            console.say(
                f"{counters['tokens']:,} tokens to train on, {counters['held_out_tokens']:,} held out"
            )
        return tokens

    def plan(self, questions: Artifact) -> Plan:
        """Make conversations of the questions, and fix how many steps the minutes allow."""
        with self.stage("plan"):
            data = self._prepare("sft", questions.file("sft.jsonl"))
            plan = read_plan(self.out, self.recipe.minutes)
            if plan is None:
                minutes = self.recipe.minutes or DEFAULT_MINUTES
                mean = data.counters["tokens"] / data.facts["chat"]["conversations"]
                pairs = load(find("tiny-dpo"), RunConfig).train.batch_pairs
                plan = make_plan(self.out, minutes, self._pretraining(1), 2 * mean, pairs)
            steps = plan.steps
            console.say(f"steps: {steps.pretrain:,} pretraining, {steps.sft:,} SFT, {steps.dpo:,} DPO")
        return plan

    def pretrain(self, plan: Plan, questions: Artifact) -> Path:
        with self.stage("pretrain"):
            config = self._pretraining(plan.steps.pretrain)
            watch = heldout_evaluation([self.out / "tokens"], CONTEXT, questions.path)
            return run_training(config, self.out / "pretrain", evaluate=watch, name="pretrain")

    def tune_on_answers(self, plan: Plan, base: Path) -> Path:
        with self.stage("sft"):
            overrides = [f"data.sft={_yaml(self.out / 'sft-data')}", f"train.init={_yaml(base)}"]
            config = _config("tiny-sft", plan.steps.sft, overrides)
            return run_training(config, self.out / "sft", name="SFT")

    def tune_on_pairs(self, plan: Plan, tuned: Path, questions: Artifact) -> Path:
        with self.stage("dpo"):
            recipe = load(find("tiny-dpo"), RunConfig)
            # Each pair is read once; the reference model reads no more than are used.
            count = min(plan.steps.dpo * recipe.train.batch_pairs, questions.counters["pairs"])
            self._prepare("dpo", questions.file("pairs.jsonl"), count)
            overrides = [f"data.pairs={_yaml(self.out / 'dpo-data')}", f"train.init={_yaml(tuned)}"]
            config = _config("tiny-dpo", plan.steps.dpo, overrides)
            return run_training(config, self.out / "dpo", name="DPO")

    def evaluate(self, name: str, model: Path, questions: Artifact) -> Artifact:
        """The three tasks on held-out functions; for the base model also bits per byte of held-out text."""
        with self.stage("evaluate"):
            done = evaluate_model(model, questions.path, self.out / "eval" / name)
            if name == "base":
                measure_text(model, self.out / "tokens", self.out / "eval" / "text")
            table = read_figures(self.out / "eval", (name,))
            console.table(
                f"{name} on held-out functions", FIGURE_COLUMNS, [row.cells() for row in table], left=1
            )
        return done

    def export(self, model: Path) -> Artifact:
        from loom.release.export import Export, export

        with self.stage("export"):
            return export(model, self.out / "export", Export(chat="yes"))

    def answer(self, exported: Artifact, questions: Artifact) -> Artifact:
        with self.stage("answers"):
            for answer in answers(exported, questions, self.out / "answers"):
                console.say(f"Q: {answer['question']}")
                console.say(f"A: {answer['answer'] or '(nothing)'}")
                console.say(f"   the documentation says: {answer['expected']}")
        return artifact.load(self.out / "answers", "answers")

    def trace(self, tokens: Artifact, answered: Artifact, model: Path) -> Artifact:
        """An index over the training tokens, and where the answers' words stand in them."""
        with self.stage("trace"):
            index = index_tokens(tokens, self.out / "index", self.engine)
            traced = trace_answers(index, answered, model, self.out / "trace")
            for found in read_traces(traced.path):
                spans, documents = len(found["spans"]), len(found["documents"])
                console.say(f"{found['prompt']} {spans} spans, {documents} documents: {found['page']}")
        return traced

    def finish(self, exported: Artifact, traced: Artifact) -> dict[str, Any]:
        """Write the page and the closing object; the manifest comes last."""
        with self.stage("report"):
            body = closing_object(self.out)
            write_json(self.out / RESULT, body)
            write_page(self.out)
        made_of = [exported, artifact.load(self.out / "eval" / "dpo"), traced]
        artifact.commit(
            self.out,
            "quickstart",
            recipe=to_plain(replace(self.recipe, workers=None, minutes=self._minutes())),
            inputs=[artifact.refer(part, self.out) for part in made_of],
            outputs=artifact.describe(self.out, [RESULT]),
            counters={},
        )
        show_result(body, self.out)
        return read_result(self.out) or {}

    def _minutes(self) -> float | None:
        plan = read_plan(self.out, None)
        return plan.minutes if plan else None

    def _pretraining(self, steps: int) -> RunConfig:
        return _config("tiny", steps, [f"data.tokens={_yaml(self.out / 'tokens')}"])

    def _prepare(self, objective: Literal["sft", "dpo"], file: Path, count: int | None = None) -> Artifact:
        from loom.chat.mixture import Share
        from loom.chat.prepare import Prepare, prepare

        wanted = Prepare(
            objective,
            (Share(str(file), count=count),),
            self.out / "tokenizer" / "tokenizer.json",
            max_length=CONTEXT,
        )
        return prepare(wanted, self.out / f"{objective}-data", self.engine)


def _config(name: str, steps: int, overrides: list[str]) -> RunConfig:
    """A shipped recipe at this many steps, saved and evaluated eight times on the way."""
    often = max(1, -(-steps // 8))
    fixed = [f"train.steps={steps}", f"train.checkpoint_every={often}", f"train.eval_every={often}"]
    return load(find(name), RunConfig, [*overrides, *fixed])


def _yaml(path: Path) -> str:
    return json.dumps(str(path))


def _check_room(out: Path) -> None:
    """Raises `LoomError` if `out` cannot be written, or its disk is nearly full."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / ".writable"
        probe.write_bytes(b"")
        probe.unlink()
        free = shutil.disk_usage(out).free
    except OSError as error:
        raise artifact.explain_os_error(error, out / PLAN) from None
    if free < SPACE:
        raise LoomError(
            f"Only {format_bytes(free)} are free on the disk that holds {out}; the quickstart needs about "
            f"{format_bytes(SPACE)}. Free some space, or choose another disk with --out."
        )
