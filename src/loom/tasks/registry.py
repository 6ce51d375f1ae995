"""The tasks there are, by name.

A name is `task`, `task:protocol`, with `:Nshot` behind either. Without a protocol it is
lm-evaluation-harness's. A protocol fixes text, split, sample and headline metric, because the same task
moves by ten points between them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from loom.errors import LoomError
from loom.recipe import nearest
from loom.tasks import docs_items, mmlu, rank, truthfulqa
from loom.tasks.item import Task

PROTOCOLS = ("lm-eval", "olmo-inloop", "olmo-paper", "olmes", "olmes-mcf")
BOTH = ("acc", "acc_norm")
VALIDATION, TEST = ("validation",), ("test", "validation")
PAPER = 1000  # rows Catwalk draws for the OLMo paper, and OLMES
OLMES_WHOLE = 1500  # rows up to which OLMES takes all (Gu et al. 2024)

_HUB = {
    "arc_easy": "allenai/ai2_arc:ARC-Easy",
    "arc_challenge": "allenai/ai2_arc:ARC-Challenge",
    "boolq": "aps/super_glue:boolq",
    "hellaswag": "Rowan/hellaswag",
    "openbookqa": "allenai/openbookqa:main",
    "piqa": "baber/piqa",
    "sciq": "allenai/sciq",
    "winogrande": "allenai/winogrande:winogrande_xl",
    "copa": "aps/super_glue:copa",
    "commonsense_qa": "tau/commonsense_qa",
    "social_iqa": "lighteval/siqa",
    "mmlu": "cais/mmlu",
}


Line = tuple[str, rank.Render, tuple[str, ...], str]
"""Task, rendering, splits, headline metric (several between spaces)."""


def _family(protocol: str, *lines: Line, sample: int | None = None, shots: int = 0) -> list[Task]:
    return [
        Task(
            name if protocol == "lm-eval" else f"{name}:{protocol}",
            render,
            (name,),
            splits,
            tuple(metrics.split()),
            _HUB[name],
            sample=sample,
            shots=shots,
        )
        for name, render, splits, metrics in lines
    ]


def _lm_eval() -> list[Task]:
    return _family(
        "lm-eval",
        ("arc_easy", rank.arc, TEST, "acc acc_norm"),
        ("arc_challenge", rank.arc, TEST, "acc acc_norm"),
        ("boolq", rank.boolq, VALIDATION, "acc"),
        ("hellaswag", rank.hellaswag, VALIDATION, "acc acc_norm"),
        ("openbookqa", rank.openbookqa, TEST, "acc acc_norm"),
        ("piqa", rank.piqa, VALIDATION, "acc acc_norm"),
        ("sciq", rank.sciq, TEST, "acc acc_norm"),
        ("winogrande", rank.winogrande, VALIDATION, "acc"),
        ("copa", rank.copa, VALIDATION, "acc"),
        ("commonsense_qa", rank.commonsense_qa, VALIDATION, "acc"),
        ("social_iqa", rank.social_iqa, VALIDATION, "acc"),
    )


def _inloop() -> list[Task]:
    return _family(
        "olmo-inloop",
        ("arc_easy", rank.arc, VALIDATION, "acc"),
        ("arc_challenge", rank.arc, VALIDATION, "acc_norm"),
        ("boolq", rank.boolq_inloop, VALIDATION, "acc"),
        ("hellaswag", rank.hellaswag, VALIDATION, "acc_norm"),
        ("openbookqa", rank.openbookqa, VALIDATION, "acc_norm"),
        ("piqa", rank.piqa, VALIDATION, "acc_norm"),
        ("sciq", rank.sciq_inloop, VALIDATION, "acc"),
        ("winogrande", rank.winogrande, VALIDATION, "acc"),
        ("copa", rank.copa_inloop, VALIDATION, "acc"),
        ("commonsense_qa", rank.commonsense_qa_question, VALIDATION, "acc_norm"),
        ("social_iqa", rank.social_iqa_question, VALIDATION, "acc_norm"),
    )


def _paper() -> list[Task]:
    return _family(
        "olmo-paper",
        ("arc_easy", rank.arc, VALIDATION, "acc_pmi"),
        ("arc_challenge", rank.arc, VALIDATION, "acc_pmi"),
        ("boolq", rank.boolq, VALIDATION, "acc"),
        ("hellaswag", rank.hellaswag, VALIDATION, "acc_token"),
        ("openbookqa", rank.openbookqa, VALIDATION, "acc_pmi"),
        ("piqa", rank.piqa, VALIDATION, "acc_token"),
        ("sciq", rank.sciq_catwalk, VALIDATION, "acc"),
        ("winogrande", rank.winogrande, VALIDATION, "acc_token"),
        sample=PAPER,
    )


def _olmes() -> list[Task]:
    """Five shots; v0.1's curated examples are read from the `dev` (else `train`) file like any others."""
    cloze = _family(
        "olmes",
        ("arc_easy", rank.arc, TEST, "acc_char"),
        ("arc_challenge", rank.arc, TEST, "acc_pmi"),
        ("boolq", rank.boolq, VALIDATION, "acc"),
        ("commonsense_qa", rank.commonsense_qa_question, VALIDATION, "acc_pmi"),
        ("hellaswag", rank.hellaswag_olmes, VALIDATION, "acc_char"),
        ("openbookqa", rank.openbookqa_olmes, TEST, "acc_pmi"),
        ("piqa", rank.piqa_olmes, VALIDATION, "acc_char"),
        ("social_iqa", rank.social_iqa_question, VALIDATION, "acc_char"),
        ("winogrande", rank.winogrande, VALIDATION, "acc"),
        sample=PAPER,
        shots=5,
    )
    lettered = _family(
        "olmes-mcf",
        ("arc_easy", rank.arc_letters, TEST, "acc"),
        ("arc_challenge", rank.arc_letters, TEST, "acc"),
        ("commonsense_qa", rank.commonsense_qa_letters, VALIDATION, "acc"),
        ("openbookqa", rank.openbookqa_letters, TEST, "acc"),
        ("piqa", rank.piqa_letters, VALIDATION, "acc"),
        ("social_iqa", rank.social_iqa_letters, VALIDATION, "acc"),
        ("winogrande", rank.winogrande_letters, VALIDATION, "acc"),
        sample=PAPER,
        shots=5,
    )
    return [replace(task, sample_above=OLMES_WHOLE) for task in cloze + lettered]


def _mmlu() -> list[Task]:
    def make(
        name: str, render: rank.Render, splits: tuple[str, ...], describe: mmlu.Describe, metric: str
    ) -> Task:
        return Task(
            name,
            render,
            ("mmlu",),
            splits,
            (metric,),
            _HUB["mmlu"],
            description=describe,
            subjects=mmlu.SUBJECTS,
        )

    def olmes(name: str, render: rank.Render, describe: mmlu.Describe, metric: str) -> Task:
        task = make(name, render, TEST, describe, metric)
        return replace(task, shots=5, macro=True, metrics=(f"macro_{metric}", metric))

    return [
        make("mmlu", mmlu.lettered, TEST, mmlu.choice_header, "acc"),
        make("mmlu_continuation", mmlu.cloze, TEST, mmlu.question_header, "acc"),
        make("mmlu:olmo-inloop", mmlu.cloze, VALIDATION, mmlu.no_header, "acc_norm"),
        replace(make("mmlu:olmo-inloop-mc", mmlu.lettered, VALIDATION, mmlu.colon_header, "acc"), shots=5),
        make("mmlu:olmo-paper", mmlu.indented, VALIDATION, mmlu.choice_header, "acc"),
        olmes("mmlu:olmes", mmlu.plain, mmlu.question_header, "acc_char"),
        olmes("mmlu:olmes-mcf", mmlu.indented_question, mmlu.choice_header, "acc"),
        make("mmlu:open-instruct", mmlu.lettered, TEST, mmlu.spaced_header, "acc"),
    ]


def _others() -> list[Task]:
    truth = "truthfulqa/truthful_qa:multiple_choice"
    files = ("truthfulqa", "truthful_qa")
    return [
        Task("truthfulqa_mc1", truthfulqa.mc1, ("truthfulqa_mc1", *files), VALIDATION, ("acc",), truth),
        Task("truthfulqa_mc2", truthfulqa.mc2, ("truthfulqa_mc2", *files), VALIDATION, ("mc2", "mc3"), truth),
        Task("docs", docs_items.which_function, ("heldout",), (), ("acc", "soft")),
        Task("docs_answer", docs_items.answer, ("heldout",), (), ("bits_per_byte",)),
        Task("docs_preference", docs_items.preference, ("heldout-pairs",), (), BOTH),
    ]


TASKS: dict[str, Task] = {
    task.name: task for task in [*_lm_eval(), *_inloop(), *_paper(), *_olmes(), *_mmlu(), *_others()]
}

_EIGHT = (
    "arc_challenge",
    "arc_easy",
    "boolq",
    "hellaswag",
    "openbookqa",
    "piqa",
    "sciq",
    "winogrande",
)
SUITES: dict[str, tuple[str, ...]] = {
    "olmo-v1": _EIGHT,
    "olmo-paper": tuple(f"{name}:olmo-paper" for name in _EIGHT),
    "olmes": tuple(name for name in TASKS if name.endswith((":olmes", ":olmes-mcf"))),
    "mmlu": ("mmlu", "mmlu:5shot", "mmlu_continuation"),
    "quick": ("arc_easy", "openbookqa", "piqa", "sciq"),
    "quickstart": ("docs", "docs_answer", "docs_preference"),
    "adaptation": ("mmlu", "truthfulqa_mc1", "truthfulqa_mc2"),
}

WRITTEN = ("alpaca_eval", "truthfulqa_gen", "toxigen")
"""Tasks in which the model writes (`loom.evals.written.tasks`); they have no items."""


def task(name: str) -> Task:
    """The task called `name`. Raises `LoomError` with the nearest name there is."""
    base, shots = name, None
    if found := re.search(r":(\d+)shot$", name):
        base, shots = name[: found.start()], int(found[1])
    base = base.removesuffix(":lm-eval")
    plain = base if shots is None else f"{base}:{shots}shot"
    chosen = TASKS.get(base)
    if chosen is None and base.startswith("mmlu_"):
        subject = base.removeprefix("mmlu_")
        if subject in mmlu.SUBJECTS:
            chosen = replace(TASKS["mmlu"], subjects=(subject,), name=base)
    if name in WRITTEN:
        raise LoomError(f"{name} is written by the model and not ranked: only `loom eval` can measure it.")
    if chosen is None:
        near = nearest(base, [*TASKS, *SUITES])
        raise LoomError(
            f"There is no task {name!r}.{f' Did you mean {near!r}?' if near else ''} `loom list tasks` shows "
            f"all; protocols are written behind a colon ({', '.join(PROTOCOLS)}), shots as in mmlu:5shot."
        )
    return chosen if shots is None else replace(chosen, shots=shots, name=plain)


def suite(name: str) -> tuple[str, ...]:
    """The names of a suite's tasks. Raises `LoomError` with the nearest name there is."""
    if name not in SUITES:
        near = nearest(name, SUITES)
        raise LoomError(
            f"There is no suite {name!r}.{f' Did you mean {near!r}?' if near else ''} The suites are "
            f"{', '.join(SUITES)}."
        )
    return SUITES[name]


def tasks(names: Sequence[str]) -> list[Task]:
    """Tasks by name, each once, in order; a suite's name that is no task's stands for its tasks."""
    spread = [
        part for name in names for part in (SUITES[name] if name in SUITES and name not in TASKS else (name,))
    ]
    return list({(one := task(name)).name: one for name in spread}.values())
