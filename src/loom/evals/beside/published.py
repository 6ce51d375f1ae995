"""What others printed, for a table with yours beside it: protocol by protocol, with split and rows.

Only tasks under the same protocol may stand beside these; under another the same model scores up to ten
points differently.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

TASKS = ("arc_challenge", "arc_easy", "boolq", "hellaswag", "openbookqa", "piqa", "sciq", "winogrande")

TABLE_3: dict[str, tuple[float, ...]] = {
    "StableLM 1.6B": (43.8, 63.7, 76.6, 68.2, 45.8, 74.0, 94.7, 64.9),
    "Pythia 1B": (33.1, 50.2, 61.8, 44.7, 37.8, 69.1, 86.0, 53.3),
    "TinyLlama 1.1B": (34.8, 53.2, 64.6, 58.7, 43.6, 71.1, 90.5, 58.9),
    "OLMo-1B": (34.5, 58.1, 60.7, 62.5, 46.4, 73.7, 88.1, 58.9),
    "Falcon-7B": (47.5, 70.4, 74.6, 75.9, 53.0, 78.5, 93.9, 68.9),
    "LLaMA-7B": (44.5, 67.9, 75.4, 76.2, 51.2, 77.2, 93.9, 70.5),
    "Llama-2-7B": (48.5, 69.5, 80.2, 76.8, 48.4, 76.7, 94.5, 69.4),
    "MPT-7B": (46.5, 70.5, 74.2, 77.6, 48.6, 77.3, 93.7, 69.9),
    "Pythia 6.9B": (44.1, 61.9, 61.1, 63.8, 45.0, 75.1, 91.1, 62.0),
    "RPJ-INCITE-7B": (42.8, 68.4, 68.6, 70.3, 49.4, 76.0, 92.9, 64.7),
    "OLMo-7B": (48.5, 65.4, 73.4, 76.4, 50.4, 78.4, 93.8, 67.9),
}

_OLMES = (
    "arc_challenge",
    "arc_easy",
    "boolq",
    "commonsense_qa",
    "hellaswag",
    "mmlu",
    "openbookqa",
    "piqa",
    "social_iqa",
    "winogrande",
)


@dataclass(frozen=True)
class Published:
    """Figures in percent under one protocol. `tasks` are Loom's names; `rows` say split and number of each."""

    title: str
    tasks: tuple[str, ...]
    rows: tuple[str, ...]
    models: Mapping[str, tuple[float | None, ...]]


PAPER = Published(
    "OLMo paper, table 3: zero-shot, Catwalk's protocol (PMI for ARC and OpenBookQA, per token for HellaSwag, "
    "PIQA and WinoGrande, summed for BoolQ and SciQ); OLMo-7B is the 2.46T-token checkpoint after its learning "
    "rate went to 0 (Groeneveld et al. 2024)",
    tuple(f"{task}:olmo-paper" for task in TASKS),
    tuple(f"validation {n}" for n in ("299", "570", "1,000", "1,000", "500", "1,000", "1,000", "1,000")),
    TABLE_3,
)
OLMES = Published(
    "OLMES: 5 shots, the better of the cloze and the lettered form; MMLU a mean over 57 subjects (Gu et al. 2024)",
    tuple(f"{task}:olmes" for task in _OLMES),
    (
        "test 1,172",
        "test 1,000",
        "validation 1,000",
        "validation 1,221",
        "validation 1,000",
        "test 14,042",
        "test 500",
        "validation 1,000",
        "validation 1,000",
        "validation 1,267",
    ),
    {"Pythia 1B": (31.4, 63.4, 56.8, 50.9, 48.0, 31.1, 40.4, 68.9, 46.4, 52.7)},
)
ADAPTED = Published(
    "OLMo paper, table 4: open-instruct's evaluations, AlpacaEval judged by GPT-4, ToxiGen by its classifier (less "
    "is better), TruthfulQA by two tuned judges (% true and informative)",
    ("mmlu:open-instruct", "alpaca_eval", "toxigen", "truthfulqa_gen"),
    ("test 14,042, 0 shots", "805 instructions", "7,000 prompts", "818 questions"),
    {
        "OLMo-7B": (28.3, None, 81.4, 31.6),
        "OLMo-7B + SFT": (47.3, 57.0, 14.4, 41.2),
        "OLMo-7B + SFT + DPO": (46.2, 69.3, 1.7, 52.0),
        "MPT-7B chat": (33.8, 46.8, 0.1, 42.7),
        "Falcon-7B instruct": (25.2, 14.0, 70.7, 27.2),
        "RPJ-INCITE-7B chat": (27.0, 38.0, 46.4, 53.0),
        "Llama-2-7B chat": (46.8, 87.3, 0.0, 26.3),
        "Tulu 2 7B": (50.4, 73.9, 7.0, 51.7),
        "Tulu 2 7B + DPO": (50.7, 85.1, 0.5, None),
    },
)
CHATTED = "mmlu:open-instruct"  # published with each model's chat template before "The answer is:"
PROTOCOLS = (PAPER, OLMES, ADAPTED)


def tables(bodies: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, list[str], list[list[Any]]]]:
    """Title, columns and rows of each protocol under which one of these `results.json` has a figure, the
    models of `bodies` below the published ones; of the OLMo paper's table 3 where none has any."""
    found = [
        one
        for one in PROTOCOLS
        if any(_cell(body, task) is not None for body in bodies.values() for task in one.tasks)
    ]
    return [_table(one, bodies) for one in found or [PAPER]]


def _table(one: Published, bodies: Mapping[str, Mapping[str, Any]]) -> tuple[str, list[str], list[list[Any]]]:
    theirs: list[list[Any]] = [
        [model, *(None if value is None else f"{value:.1f}" for value in values)]
        for model, values in one.models.items()
    ]
    mine = [[name, *(_cell(body, task) for task in one.tasks)] for name, body in bodies.items()]
    columns = ["model", *(task.partition(":")[0] for task in one.tasks)]
    return one.title, columns, [["split and rows", *one.rows], *theirs, *mine]


def _cell(body: Mapping[str, Any], task: str) -> str | None:
    """A figure in percent with its error and n, the metric's name where a judge made it, and what keeps it from
    being the published protocol's."""
    name, notes = _measured(body, task)
    result, facts = body["results"].get(name), body["tasks"].get(name)
    if result is None or facts is None or not result.get("n"):  # without facts it is a text of that name
        return None
    metric = facts["headline"]
    value, error = result.get(metric), result.get(f"{metric}_stderr")
    if value is None or metric == "n":
        return None
    by_judge = "[" in metric
    scale = 1 if by_judge else 100
    spread = "" if error is None else f" ± {scale * error:.1f}"
    n = result.get("judged", result["n"])
    told = ", ".join([f"n {n:,}", *([metric] if by_judge else []), *notes])
    return f"{scale * value:.1f}{spread} ({told})"


def _measured(body: Mapping[str, Any], task: str) -> tuple[str, list[str]]:
    """The figure of a model that stands nearest to a published one, and how it differs."""
    results = body["results"]
    if f"{task}-max" in results:
        return f"{task}-max", []
    if task.endswith(":olmes"):
        return task, ["cloze form only"]
    if task == CHATTED:
        return (task if task in results else "mmlu"), ["raw text, no chat template"]
    return task, []
