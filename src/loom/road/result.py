"""The closing object of a road: its figures as one JSON value, and as a table."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loom import artifact
from loom.console import console

RESULT, STAGES = "result.json", "stages.json"


def read_result(out: Path) -> dict[str, Any] | None:
    """The closing object of a road that was finished in `out`, or None. Checks the manifest."""
    if not (out / artifact.MANIFEST).exists():
        return None
    artifact.load(out, "quickstart").verify()
    body: dict[str, Any] = json.loads((out / RESULT).read_bytes())
    return body | {"report": str(out / "report.html"), "seconds": read_seconds(out)}


def read_seconds(out: Path) -> dict[str, float]:
    """Seconds by stage, summed over the attempts that finished them."""
    path = out / STAGES
    seconds: dict[str, float] = json.loads(path.read_bytes()) if path.exists() else {}
    return seconds


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The logged steps of a run."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_bytes().splitlines()]


def closing_object(out: Path) -> dict[str, Any]:
    """Everything but the seconds and the page's place: equal for equal plans on one machine."""
    from loom.road.evaluation import read_figures
    from loom.train.checkpoint import checkpoints, read_card

    curated = artifact.load(out / "curated", "documents").counters
    tokens = artifact.load(out / "tokens", "tokens").counters
    text = json.loads((out / "eval" / "text" / "results.json").read_bytes())
    steps = [row for row in read_metrics(out / "pretrain") if "loss" in row]
    card = read_card(checkpoints(out / "pretrain")[-1])
    plan = json.loads((out / "plan.json").read_bytes())
    return {
        "minutes": plan["minutes"],
        "steps": plan["steps"],
        "documents_in": curated["documents_in"],
        "documents_out": curated["documents_out"],
        "bytes_in": curated["bytes_in"],
        "bytes_out": curated["bytes_out"],
        "held_out_passages_cut": curated["held_out_hits"],
        "tokens": tokens["tokens"],
        "tokens_read": steps[-1]["tokens"],
        "parameters": card.model.parameters,
        "train_loss_first": steps[0]["loss"],
        "train_loss_last": steps[-1]["loss"],
        "validation_loss": text["results"]["all"]["loss"],
        "unigram_entropy": text["unigram_entropy"],
        "bigram_entropy": text["bigram_entropy"],
        "bits_per_byte": {
            name: part["bits_per_byte"] for name, part in text["results"].items() if name != "all"
        },
        "table": [row.plain() for row in read_figures(out / "eval")],
    }


def show_result(body: Mapping[str, Any], out: Path) -> None:
    """The end of a road as tables."""
    rows: list[list[Any]] = [
        ["documents in, out", f"{body['documents_in']:,}, {body['documents_out']:,}"],
        ["tokens to train on, read", f"{body['tokens']:,}, {body['tokens_read']:,}"],
        ["parameters", body["parameters"]],
        [
            "training loss, first and last step",
            f"{body['train_loss_first']:.3f}, {body['train_loss_last']:.3f}",
        ],
        ["validation loss (nats a token)", body["validation_loss"]],
        ["  interpolated bigram, same tokens", body["bigram_entropy"]],
        ["  unigram, same tokens", body["unigram_entropy"]],
        *([f"bits per byte, {name}", value] for name, value in body["bits_per_byte"].items()),
    ]
    console.table("The road", ["", "value"], rows)
    keys = ("rank_accuracy", "answer_bits_per_byte", "preference_accuracy")
    table = [
        [row["model"], *(f"{row[key]:.4f} ± {row[f'{key}_stderr']:.4f}" for key in keys)]
        for row in body["table"]
    ]
    columns = ["model", "rank accuracy", "answer bits per byte", "preference accuracy"]
    console.table("Before and after, on held-out functions", columns, table)
    console.say(f"report: {out / 'report.html'}")
    console.say(f"talk to it: loom chat {out / 'export'}")
