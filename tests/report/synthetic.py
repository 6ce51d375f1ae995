"""A made-up run, for drawing the page in tests. Nothing here was measured."""

from __future__ import annotations

import math
import random

from loom.report.data import (
    Amount,
    Change,
    Comparison,
    Echo,
    Flow,
    Measure,
    Metric,
    ModelFigures,
    Node,
    Origin,
    ReportData,
    Rule,
    Sample,
    Score,
    Stage,
    Traced,
    Training,
)
from loom.report.energy import Grid, estimate

SOURCES = ("python-docs", "packages", "code", "system-docs")
RULES = (
    ("language", "not English with probability 0.5", (0.004, 0.03, 0.0, 0.16)),
    ("gopher quality", "word counts, symbols, repeated lines", (0.02, 0.06, 0.05, 0.07)),
    ("c4 lines", "lines without an end mark, lorem ipsum", (0.03, 0.05, 0.02, 0.04)),
    ("code quality", "generated files, data in code", (0.0, 0.0, 0.11, 0.0)),
    ("exact duplicates", "the same text again", (0.001, 0.14, 0.03, 0.22)),
    ("paragraph duplicates", "paragraphs seen before, by Bloom filter", (0.01, 0.09, 0.02, 0.05)),
    ("decontamination", "8-grams of held-out summaries", (0.02, 0.001, 0.004, 0.0)),
    ("source proportions", "at most 40 % of one source", (0.0, 0.0, 0.18, 0.0)),
)


def flow() -> Flow:
    raw = dict(
        zip(
            SOURCES,
            (
                Amount(2210, 4_100_000),
                Amount(1480, 5_900_000),
                Amount(2950, 13_800_000),
                Amount(1730, 6_400_000),
            ),
            strict=True,
        )
    )
    left = dict(raw)
    rules = []
    for name, note, shares in RULES:
        removed = {}
        for source, share in zip(SOURCES, shares, strict=True):
            cut = name == "paragraph duplicates"
            amount = Amount(
                0 if cut else int(left[source].documents * share), int(left[source].bytes * share)
            )
            removed[source] = amount
            left[source] = left[source] - amount
        rules.append(Rule(name, removed, touched=312 if name == "paragraph duplicates" else 0, note=note))
    rules.insert(5, Rule("toxicity", {}, note="words of a list"))
    rules.append(Rule("addresses", {}, masked=1893, touched=704, note="mail, phone and IP addresses"))
    left["code"] = left["code"] - Amount(0, 21_000)
    return Flow(raw, tuple(rules), left)


def training() -> Training:
    chance = random.Random(1)
    loss, rate, norm, speed, validation = [], [], [], [], []
    steps = 1280
    for step in range(1, steps + 1):
        level = 4.38 + 4.66 * math.exp(-step / 95) + 0.5 * math.exp(-step / 500)
        loss.append((step, level + chance.gauss(0, 0.12)))
        rate.append((step, 4e-3 * min(step / 80, 1 - 0.9 * (step - 80) / (steps - 80))))
        norm.append((step, 0.5 + 2.2 * math.exp(-step / 40) + abs(chance.gauss(0, 0.06))))
        speed.append((step, 9_800 + chance.gauss(0, 260)))
        if step % 80 == 0:
            validation.append((step, level + 0.08))
    return Training(
        "pretrain",
        tuple(loss),
        tuple(validation),
        tuple(rate),
        tuple(norm),
        tuple(speed),
        unigram_entropy=6.81,
        bigram_entropy=4.66,
    )


def tuning(name: str, objective: str, start: float, end: float) -> Training:
    chance = random.Random(2)
    loss = tuple((s, end + (start - end) * math.exp(-s / 30) + chance.gauss(0, 0.06)) for s in range(1, 121))
    held = tuple((s, end + 0.12 + (start - end) * math.exp(-s / 30)) for s in range(20, 121, 20))
    assert objective in ("sft", "dpo")
    return Training(name, loss, held, objective="sft" if objective == "sft" else "dpo")


def comparison() -> Comparison:
    metrics = (
        Metric("rank", "rank accuracy", percent=True, chance=0.25, note="four choices"),
        Metric("bits", "answer bits per byte", better="lower"),
        Metric("preference", "preference accuracy", percent=True, chance=0.5),
    )
    rows = (
        ModelFigures(
            "base",
            {
                "rank": Measure(0.338, 0.0236, 402),
                "bits": Measure(2.871, 0.031, 402),
                "preference": Measure(0.597, 0.0245, 402),
            },
        ),
        ModelFigures(
            "sft",
            {
                "rank": Measure(0.391, 0.0243, 402),
                "bits": Measure(2.214, 0.028, 402),
                "preference": Measure(0.622, 0.0242, 402),
            },
        ),
        ModelFigures(
            "dpo",
            {
                "rank": Measure(0.398, 0.0244, 402),
                "bits": Measure(2.297, 0.029, 402),
                "preference": Measure(0.744, 0.0218, 402),
            },
        ),
    )
    changes = (
        Change("rank", "sft", "base", 0.053, 0.021),
        Change("rank", "dpo", "sft", 0.007, 0.012),
        Change("bits", "sft", "base", -0.657, 0.017),
        Change("bits", "dpo", "sft", 0.083, 0.006),
        Change("preference", "sft", "base", 0.025, 0.022),
        Change("preference", "dpo", "sft", 0.122, 0.019),
    )
    return Comparison(metrics, rows, changes)


def lineage() -> tuple[Node, ...]:
    digest = "9f86d081884c7d659a2feaa0c55ad015"

    def node(key: str, kind: str, *parents: str) -> Node:
        return Node(
            key, kind, key, "" if kind == "files" else digest[len(key) :] + digest[: len(key)], parents
        )

    return (
        Node("files", "files", "8,370 raw files"),
        node("raw", "documents", "files"),
        node("questions", "questions", "raw"),
        node("curated", "documents", "raw", "questions"),
        node("tokenizer", "tokenizer", "curated"),
        node("tokens", "tokens", "curated", "tokenizer"),
        node("pretrain", "run", "tokens"),
        node("sft-data", "tokens", "questions", "tokenizer"),
        node("dpo-data", "tokens", "questions", "tokenizer"),
        node("sft", "run", "pretrain", "sft-data"),
        node("dpo", "run", "sft", "dpo-data"),
        node("export", "model", "dpo"),
    )


def traced(hostile: str = "") -> Traced:
    answer = "Remove any common leading whitespace from each line of the given text." + hostile
    docs = Origin(
        "python-docs/stdlib/textwrap" + hostile,
        "python-docs",
        "python-docs/part-000.jsonl.zst:41" + hostile,
        "textwrap.dedent(text)\n\n" + hostile,
        "Remove any common leading whitespace from" + hostile,
        " every line in text. This can be used to make triple-quoted strings line up." + hostile,
        ("pii.EMAIL_ADDRESS (1 replaced)" + hostile,),
        {"path" + hostile: "textwrap.py" + hostile},
        (12, 13, 14, 977),
        (13,),
    )
    package = Origin(
        "packages/rich" + hostile, "packages", "packages/part-001.jsonl.zst:7", "of ", "the given", " name"
    )
    echoes = (Echo(0, 41, 7, 3, (docs,)), Echo(55, 64, 2, 1841, (package,)))
    question = "What does `textwrap.dedent` do?" + hostile
    return Traced(question, answer, echoes, 1280, "trace/answer-1.html", 13, "trace/step-1.html#here")


def report(hostile: str = "") -> ReportData:
    """The made-up run; `hostile` is put wherever text of a run's own can reach the page."""
    answers = {
        "base": "The following are the same as the previous one.\n\n.. note:: The default is None." + hostile,
        "sft": "Remove leading whitespace from every line in a string." + hostile,
        "dpo": "Remove any common leading whitespace from each line of the given text." + hostile,
    }
    expected = "Remove any common leading whitespace from every line in `text`." + hostile
    samples = tuple(
        Sample(question + hostile, answers, expected)
        for question in (
            "What does `textwrap.dedent` do?",
            "What does `heapq.merge` do?",
            "What does `shutil.which` do?",
        )
    )
    stages = tuple(
        Stage(name, seconds, hostile)
        for name, seconds in (
            ("collect", 11.2),
            ("curate", 48.0),
            ("tokenizer", 6.4),
            ("tokenize", 3.1),
            ("pretrain", 251.0),
            ("evaluate", 22.5),
            ("sft", 44.0),
            ("dpo", 61.0),
            ("evaluate tuned", 38.0),
            ("export", 1.9),
        )
    )
    held = dict(
        zip(
            SOURCES,
            (Measure(2.013, 0.021), Measure(2.241, 0.03), Measure(1.702, 0.018), Measure(2.477, 0.034)),
            strict=True,
        )
    )
    return ReportData(
        title="A language model from this machine's documents" + hostile,
        subtitle="Curated, tokenized, pretrained, tuned and exported on 2 CPU cores, without a network."
        + hostile,
        flow=flow(),
        tokens=6_214_880,
        vocabulary=8192,
        parameters=3_145_728,
        training=(training(), tuning("sft", "sft", 4.1, 2.6), tuning("dpo", "dpo", 0.69, 0.41)),
        bits_per_byte=held,
        comparison=comparison(),
        scores=(
            Score("dpo" + hostile, "piqa:olmo-paper", "acc_token", Measure(0.62, 0.012, 1000)),
            Score("dpo" + hostile, "docs" + hostile, "acc", Measure(0.41, 0.02, 400)),
        ),
        samples=samples,
        traced=traced(hostile),
        stages=stages,
        lineage=lineage(),
        energy=estimate(487.0, 2, Grid()),
        environment={
            "Loom": "0.1.0",
            "Python": "3.11.2",
            "torch": "2.13.0+cpu",
            "processor": "2 cores, x86_64" + hostile,
            "memory": "24 GiB",
            "system": "Linux 6.1",
            "seed": "6198",
            "command": "loom quickstart --minutes 8",
        },
    )
