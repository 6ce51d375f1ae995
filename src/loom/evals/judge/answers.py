"""Answers before their judge: figures under the judge's name, a verdict an answer, and what was not judged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from loom.console import console
from loom.errors import LoomError
from loom.evals.judge.causal import LocalModel
from loom.evals.judge.endpoint import parse_endpoint
from loom.evals.judge.judges import Comparison, Judge, Replay, win_rate
from loom.evals.judge.verdicts import Judgement, toxicity, truthfulness
from loom.evals.subject import load_subject
from loom.evals.written.schemas import annotation
from loom.evals.written.tasks import Prompt, Written


def judge_answers(
    task: Written,
    prompts: Sequence[Prompt],
    answers: Sequence[str],
    generator: str,
    spec: str,
    cached: bool = False,
) -> Judgement:
    """What a judge says of a written task's answers. Raises `LoomError`, whatever went wrong, for a judge that cannot
    be loaded or asked, and where it judged none of them."""
    kind, _, rest = spec.partition(":")
    with speaking_of(spec):
        match task.name, kind:
            case "toxigen", "classifier":
                found = toxicity(answers, [prompt.group for prompt in prompts], Path(rest), cached)
            case "truthfulqa_gen", "model":
                truth, _, info = rest.partition(",")
                questions = [prompt.asked for prompt in prompts]
                found = truthfulness(questions, answers, Path(truth), Path(info) if info else None, cached)
            case _:
                comparisons = [
                    Comparison(
                        prompt.text,
                        str(prompt.row.get("output") or ""),
                        answer,
                        str(prompt.row.get("dataset") or ""),
                        str(prompt.row.get("generator") or ""),
                        generator,
                    )
                    for prompt, answer in zip(prompts, answers, strict=True)
                ]
                return judge_comparisons(find_judge(spec, cached), comparisons)
        return _checked(found, len(answers))


def judge_comparisons(judge: Judge, comparisons: Sequence[Comparison]) -> Judgement:
    """`alpaca_win[<judge>]` with its error, and a row of annotations for each comparison. Raises `LoomError` where
    none was judged."""
    if isinstance(judge, Replay):
        comparisons = [judge.as_annotated(item) for item in comparisons]
    preferences = judge.prefer(comparisons)
    found = win_rate(preferences)
    metric = f"alpaca_win[{judge.name}]"
    figures: dict[str, Any] = {
        metric: found.win_rate,
        f"{metric}_stderr": found.stderr,
        f"alpaca_discrete_win[{judge.name}]": found.discrete,
        "judged": found.n,
        "not_judged": found.unjudged,
    }
    if judge.disagree is not None:
        figures["orders_disagree"] = judge.disagree
        if 2 * judge.disagree > found.n > 0:
            console.warn(
                f"{metric}: of {judge.disagree:,} of {found.n:,} comparisons the judge's verdict turns with the order of "
                f"the two answers. It goes by their place more than by what they say."
            )
    rows = tuple(
        annotation(item, preference, judge.annotator(item))
        for item, preference in zip(comparisons, preferences, strict=True)
    )
    return _checked(Judgement(figures, judge.describe(), annotations=rows), len(comparisons))


def _checked(found: Judgement, count: int) -> Judgement:
    if found.figures["judged"]:
        return found
    why = failures(found.facts) or "none of them is in the annotations"
    raise LoomError(f"none of the {count:,} answers was judged ({why}), so there is no figure.")


@contextmanager
def speaking_of(spec: str) -> Iterator[None]:
    """Whatever a judge raises as a `LoomError` that names it: the libraries that load and run one have types of their
    own, and answers must not be lost to any."""
    try:
        yield
    except LoomError:
        raise
    except Exception as error:
        raise LoomError(
            f"the judge {spec} cannot be used ({type(error).__name__}: {error}): look at its files."
        ) from error


def find_judge(spec: str, cached: bool = False) -> Judge:
    """A judge by its spelling: `replay:FILE`, `model:FOLDER`, `endpoint:URL#MODEL`; `cached` ones do not
    judge the same comparison twice. Raises `LoomError` for what is none."""
    kind, _, rest = spec.partition(":")
    match kind:
        case "replay" if rest:
            if not Path(rest).is_file():
                raise LoomError(f"There is no file of annotations {rest} for --judge {spec}.")
            return Replay(Path(rest))
        case "model" if rest:
            with speaking_of(spec):
                return LocalModel(replace(load_subject(Path(rest)), cached=cached))
        case "endpoint" if rest:
            judge = parse_endpoint(spec)
            judge.cached = cached
            return judge
        case _:
            raise LoomError(
                f"There is no judge {spec!r}; write replay:FILE (stored annotations), model:FOLDER (a causal "
                f"language model), or endpoint:URL#MODEL (OpenAI-compatible, key in LOOM_JUDGE_KEY)."
            )


def failures(facts: Mapping[str, Any]) -> str:
    """Why answers were not judged, as a judge counted it: requests of an endpoint, answers of a model."""
    return ", ".join(f"{why}: {count:,}" for why, count in facts.get("failures", {}).items())


def notes(result: Mapping[str, Any], facts: Mapping[str, Any]) -> list[str]:
    """What a reader must know of a written task's figure: of how many answers it is, and what was cut.

    `result` and `facts` are its parts of `results` and `tasks` in results.json.
    """
    found = []
    n, judged = result["n"], result.get("judged")
    if "judge_failed" in result:
        found.append(f"not judged ({result['judge_failed']})")
    elif judged is not None and judged < n:
        why = failures(facts.get("judge", {}))
        found.append(
            f"{result['not_judged']:,} of {n:,} answers were not judged{f' ({why})' if why else ''}; they count "
            f"neither way"
        )
    if (turned := result.get("orders_disagree")) is not None and judged:
        found.append(f"orders disagree: {turned:,} of {judged:,}")
    if (whole := result.get("instructions")) is not None and result["answered"] < whole:
        found.append(
            f"{result['answered']:,} of {whole:,} {facts['instructions_of']} instructions are answered"
        )
    if groups := facts.get("missing_groups"):
        found.append(f"{len(groups):,} groups have no file: {', '.join(groups)}")
    if cut := result.get("conversations_cut"):
        found.append(f"{cut:,} conversations are longer than the context: their beginning was read")
    if unread := result.get("unread"):
        found.append(f"{unread:,} conversations have no answer within the context and are left out")
    if cut := result.get("prompts_cut"):
        found.append(f"{cut:,} of {n:,} prompts lost their left end to make room for an answer")
    if cut := result.get("cut_answers"):
        found.append(f"{cut:,} of {n:,} answers were cut at {facts['max_new_tokens']:,} tokens")
    if empty := result.get("empty_answers"):
        found.append(f"{empty:,} of {n:,} answers are empty")
    return found
