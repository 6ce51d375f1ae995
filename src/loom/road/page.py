"""The road's records as the page's data."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from loom import artifact
from loom.report.ancestry import nodes
from loom.report.data import (
    Amount,
    Change,
    Comparison,
    Flow,
    Measure,
    Metric,
    ModelFigures,
    ReportData,
    Rule,
    Sample,
    Stage,
    Training,
    save,
)
from loom.report.energy import Grid, of_run
from loom.report.page import write_report
from loom.road.answers import read_answers
from loom.road.evaluation import FIGURES, paired_change, read_figures
from loom.road.result import closing_object, read_metrics, read_seconds
from loom.road.trace import echoed, read_traces
from loom.version import VERSION

TITLES = {
    "rank_accuracy": ("Which function does this sentence describe? (of four)", 0.25),
    "answer_bits_per_byte": ("Answer, bits per byte", None),
    "preference_accuracy": ("Prefers the right summary to a sibling's", 0.5),
}


def write_page(out: Path) -> None:
    """`report.html` and the `report.json` it was drawn from."""
    data = report_data(out)
    save(out / "report.json", data)
    write_report(out / "report.html", data)


def report_data(out: Path) -> ReportData:
    body = closing_object(out)
    text = json.loads((out / "eval" / "text" / "results.json").read_bytes())["results"]
    seconds = read_seconds(out)
    return ReportData(
        title="From raw documents to a model that answers",
        subtitle=(
            f"loom quickstart, {body['minutes']:g} minutes planned: {body['steps']['pretrain']:,} steps of "
            f"pretraining, {body['steps']['sft']:,} of SFT, {body['steps']['dpo']:,} of DPO"
        ),
        flow=flow(artifact.load(out / "curated", "documents").counters),
        tokens=body["tokens"],
        vocabulary=artifact.load(out / "tokens", "tokens").facts["tokens"]["vocab_size"],
        parameters=body["parameters"],
        training=(
            training("Pretraining", out / "pretrain", "lm", body),
            training("SFT", out / "sft", "sft"),
            training("DPO", out / "dpo", "dpo"),
        ),
        bits_per_byte={
            name: Measure(part["bits_per_byte"], part["bits_per_byte_stderr"], part["n"])
            for name, part in text.items()
            if name != "all"
        },
        comparison=comparison(out / "eval"),
        samples=tuple(
            Sample(row["question"], {"tuned model": row["answer"]}, row["expected"], f"trace/{told['page']}")
            for row, told in zip(read_answers(out / "answers"), read_traces(out / "trace"), strict=True)
        ),
        traced=echoed(out / "trace"),
        stages=tuple(Stage(name, value) for name, value in seconds.items()),
        lineage=nodes(artifact.lineage(out / "export")),
        energy=of_run(out, sum(seconds.values()), Grid()),
        environment={
            "Loom": VERSION,
            "Python": platform.python_version(),
            "torch": torch.__version__,
            "system": platform.platform(terse=True),
            "processor": _processor(),
            "cores": str(os.cpu_count()),
        },
        notes=(
            "Answers are greedy and printed as they came out; the first question is one the model was tuned "
            "on, the others are held out.",
            f"{body['held_out_passages_cut']:,} passages that share 8 words in a row with a held-out answer "
            "were cut out of the corpus.",
        ),
    )


def flow(counters: Mapping[str, Any]) -> Flow:
    """What each rule of the curation removed, by source; masks count spans."""
    sources = counters["sources"]
    raw = {name: Amount(part["documents_in"], part["bytes_in"]) for name, part in sources.items()}
    kept = {name: Amount(part["documents_out"], part["bytes_out"]) for name, part in sources.items()}
    rules = [
        Rule(
            rule.replace("_", " "),
            {
                name: Amount(part["removed"].get(rule, 0), part["removed_bytes"].get(rule, 0))
                for name, part in sources.items()
                if part["removed"].get(rule)
            },
        )
        for rule in _names(sources, "removed")
    ]
    rules += [
        Rule(
            kind.replace("_", " "),
            cut=sum(part["cut"].get(kind, 0) for part in sources.values()),
        )
        for kind in _names(sources, "cut")
    ]
    rules += [
        Rule(f"mask: {kind}", masked=sum(part["masked"].get(kind, 0) for part in sources.values()))
        for kind in _names(sources, "masked")
    ]
    return Flow(raw, tuple(rules), kept)


def _names(sources: Mapping[str, Any], key: str) -> list[str]:
    return list(dict.fromkeys(name for part in sources.values() for name in part[key]))


def training(
    name: str, run: Path, objective: Literal["lm", "sft", "dpo"], body: Mapping[str, Any] | None = None
) -> Training:
    rows = read_metrics(run)

    def points(key: str) -> tuple[tuple[float, float], ...]:
        return tuple((row["step"], row[key]) for row in rows if key in row)

    validation = points("eval/validation/loss")
    if body and validation:
        # On the way a sample is measured; the end is measured over all held-out tokens.
        validation = (*validation[:-1], (validation[-1][0], body["validation_loss"]))
    return Training(
        name,
        loss=points("loss"),
        validation=validation,
        learning_rate=points("lr"),
        gradient_norm=points("grad_norm"),
        tokens_per_second=points("tokens_per_second"),
        more={"rank accuracy": found} if (found := points("eval/docs/acc")) else {},
        unigram_entropy=body["unigram_entropy"] if body else None,
        bigram_entropy=body["bigram_entropy"] if body else None,
        objective=objective,
        note="Validation: a sample of the held-out text on the way, all of it at the end." if body else "",
    )


def comparison(folder: Path) -> Comparison:
    """The before/after table, with paired differences between each model and those before it."""
    rows = read_figures(folder)
    changes = []
    for at, row in enumerate(rows):
        for earlier in {0, at - 1} if at else set():
            for key, *_ in FIGURES:
                difference, error = paired_change(folder, key, row.model, rows[earlier].model)
                changes.append(Change(key, row.model, rows[earlier].model, difference, error))
    metrics = tuple(
        Metric(
            key,
            TITLES[key][0],
            better="higher" if more else "lower",
            percent=more,
            chance=TITLES[key][1],
        )
        for key, _, _, more in FIGURES
    )
    models = tuple(
        ModelFigures(
            row.model, {key: Measure(row.values[key], row.errors[key], row.n) for key, *_ in FIGURES}
        )
        for row in rows
    )
    return Comparison(metrics, models, tuple(changes))


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
