"""Which figures a table of evaluations has a line for, what they are called, and whether more of it is better."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

Body = Mapping[str, Any]
"""A `results.json`."""


@dataclass(frozen=True)
class Figure:
    task: str
    """Its name in `results`; of a text, the domain's, the source's, or `all`."""
    metric: str
    name: str
    better: bool | None
    """Whether more is better; None where neither is."""
    text: bool = False

    def result(self, body: Body) -> Mapping[str, Any] | None:
        """What an evaluation found of it. A text may be called what a task is called; neither stands for the other."""
        found = body["results"].get(self.task)
        return found if found is not None and ("bytes" in found) == self.text else None


SHOWN = (
    Figure("mmlu", "acc", "MMLU accuracy", True),
    Figure("mmlu:5shot", "acc", "MMLU accuracy, 5 shots", True),
    Figure("truthfulqa_mc1", "acc", "TruthfulQA MC1", True),
    Figure("truthfulqa_mc2", "mc2", "TruthfulQA MC2", True),
    Figure("preferences", "acc", "held-out pairs: accuracy, summed", True),
    Figure("preferences", "acc_token", "held-out pairs: accuracy, a token", True),
    Figure("preferences", "margin", "held-out pairs: margin, nats", True),
    Figure("answers", "bits_per_byte", "held-out answers: bits per byte", False),
    Figure("instructions", "stop_rate", "held-out prompts: answers that end", True),
    Figure("instructions", "repeating", "held-out prompts: answers that repeat", False),
    Figure("instructions", "tokens", "held-out prompts: tokens an answer", None),
    Figure("probes", "followed", "instruction probes followed", True),
    Figure("all", "bits_per_byte", "all text: bits per byte", False, text=True),
)
"""Those with a name of their own, wherever an evaluation has them."""


def figures(bodies: Iterable[Body]) -> list[Figure]:
    """Every figure that a table of these evaluations may have a line for."""
    bodies = list(bodies)
    return [*SHOWN, *_ranked(bodies), *_written(bodies), *_texts(bodies)]


def _ranked(bodies: Iterable[Body]) -> list[Figure]:
    """Every other task that has rows, by its headline metric, with the split that was read; those of one protocol
    together."""
    found: dict[str, tuple[str, dict[str, None]]] = {}
    known = {figure.task for figure in SHOWN if not figure.text}
    for body in bodies:
        for task, facts in body["tasks"].items():
            if task not in known and ("files" in facts or "seen" in facts) and "prompts" not in facts:
                _, splits = found.setdefault(task, (facts["headline"], {}))
                splits |= dict.fromkeys(file.get("split", "") for file in facts.get("files", ()))
    return [
        Figure(
            task,
            metric,
            f"{task} {metric}{f' ({split})' if (split := '/'.join(filter(None, splits))) else ''}",
            metric not in ("bits_per_byte", "bpb"),
        )
        for task, (metric, splits) in sorted(found.items(), key=lambda one: one[0].partition(":")[2])
    ]


def _written(bodies: Iterable[Body]) -> list[Figure]:
    """Written evaluations: by the name of whoever judged, or `refused`."""
    found: dict[tuple[str, str], None] = {}
    for body in bodies:
        for task in ("alpaca_eval", "toxigen", "truthfulqa_gen"):
            headline = body["tasks"].get(task, {}).get("headline", "n")
            if "refused" in body["results"].get(task, {}) or headline != "n":
                found[task, headline] = None
    judged = {task for task, headline in found if headline != "n"}
    return [
        Figure(
            task,
            headline,
            f"{task} {headline}" if headline != "n" else task,
            "tox" not in task,  # a win rate and a share of true answers: more is better; of toxic ones, less
        )
        for task, headline in found
        if headline != "n" or task not in judged
    ]


def _texts(bodies: Iterable[Body]) -> list[Figure]:
    names = dict.fromkeys(
        name
        for body in bodies
        for name, result in body["results"].items()
        if "bytes" in result and name != "all"
    )
    return [Figure(name, "bits_per_byte", f"{name}: bits per byte", False, text=True) for name in names]
