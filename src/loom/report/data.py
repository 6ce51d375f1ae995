"""What a report shows, as plain values: the page is a pure function of one `ReportData`.

Every part may be absent; the page then says that it was not measured. `load` and `save` keep the same
values as JSON, so that a page can be drawn again without the run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from loom.artifact import write_json
from loom.errors import LoomError
from loom.recipe import build, to_plain

Points = tuple[tuple[float, float], ...]  # (step, value), steps ascending


@dataclass(frozen=True)
class Amount:
    """Some of a corpus: whole documents, and bytes of text (UTF-8)."""

    documents: int = 0
    bytes: int = 0

    def __add__(self, other: Amount) -> Amount:
        return Amount(self.documents + other.documents, self.bytes + other.bytes)

    def __sub__(self, other: Amount) -> Amount:
        return Amount(self.documents - other.documents, self.bytes - other.bytes)


@dataclass(frozen=True)
class Rule:
    """One rule of curation.

    `removed` holds, by source, the documents dropped and the bytes that left with them or were cut out
    of documents that stayed. `masked` counts spans that were replaced: nothing leaves with those. `cut`
    counts spans that were cut out of documents that stayed.
    `touched` counts the documents that stayed and were changed.
    """

    name: str
    removed: Mapping[str, Amount] = field(default_factory=dict)
    masked: int = 0
    cut: int = 0
    touched: int = 0
    note: str = ""  # what the rule looks for, in a few words


@dataclass(frozen=True)
class Flow:
    """A corpus before, rule by rule in the order they act, and after; amounts by source."""

    raw: Mapping[str, Amount]
    rules: tuple[Rule, ...]
    kept: Mapping[str, Amount]


@dataclass(frozen=True)
class Training:
    """One run's curves. Losses and entropies in nats a token; time in seconds.

    `unigram_entropy` and `bigram_entropy` are those models' losses on the same held-out tokens as
    `validation`.
    """

    name: str
    loss: Points = ()
    validation: Points = ()
    learning_rate: Points = ()
    gradient_norm: Points = ()
    tokens_per_second: Points = ()
    more: Mapping[str, Points] = field(default_factory=dict)  # other evaluations in the loop
    unigram_entropy: float | None = None
    bigram_entropy: float | None = None
    objective: Literal["lm", "sft", "dpo"] = "lm"
    note: str = ""


@dataclass(frozen=True)
class Measure:
    """A figure with its standard error and the number of items it was taken over, where known."""

    value: float
    stderr: float | None = None
    n: int | None = None


@dataclass(frozen=True)
class Metric:
    """How a figure is read: its key in `ModelFigures.metrics`, which way is better, what chance gives."""

    key: str
    title: str
    better: Literal["higher", "lower"] = "higher"
    percent: bool = False
    chance: float | None = None
    note: str = ""


@dataclass(frozen=True)
class ModelFigures:
    model: str
    metrics: Mapping[str, Measure]


@dataclass(frozen=True)
class Change:
    """The paired difference `model` minus `against` on the same items."""

    metric: str
    model: str
    against: str
    difference: float
    stderr: float


@dataclass(frozen=True)
class Comparison:
    """Models in the order they were made. A model is compared with the one before it and with the first.

    Where `changes` has no paired difference, the standard error of the difference is taken as that of
    two independent samples, which overstates it for the same items.
    """

    metrics: tuple[Metric, ...]
    models: tuple[ModelFigures, ...]
    changes: tuple[Change, ...] = ()


@dataclass(frozen=True)
class Score:
    """An evaluation's headline figure: a share for accuracies, else in the metric's own unit."""

    model: str
    task: str
    metric: str
    measure: Measure


@dataclass(frozen=True)
class Sample:
    question: str
    answers: Mapping[str, str]  # by model
    expected: str | None = None
    trace: str = ""  # the page of its trace, beside the report


@dataclass(frozen=True)
class Origin:
    """A training document that holds a span: its place, the passage, what touched it, who read it when.

    `steps` read any of the document, `passage_steps` the passage itself.
    """

    id: str
    source: str
    place: str
    before: str
    match: str
    after: str
    rules: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    steps: tuple[int, ...] = ()
    passage_steps: tuple[int, ...] = ()


@dataclass(frozen=True)
class Echo:
    """Code points [start, end) of an answer that stand word for word in the training tokens."""

    start: int
    end: int
    tokens: int
    count: int
    documents: tuple[Origin, ...]


@dataclass(frozen=True)
class Traced:
    """One answer followed to its documents. `page` and `step_page` lie beside the report."""

    question: str
    answer: str
    echoes: tuple[Echo, ...]
    steps_read: int
    page: str = ""
    step: int | None = None
    step_page: str = ""


@dataclass(frozen=True)
class Stage:
    name: str
    seconds: float
    note: str = ""


@dataclass(frozen=True)
class Node:
    """An artifact in the lineage. `parents` are the `id`s of what it was made from."""

    id: str
    kind: str
    name: str
    digest: str = ""
    parents: tuple[str, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Energy:
    """Energy and carbon of the run; see `loom.report.energy`."""

    kwh: float
    measured: bool
    how: str
    pue: float
    carbon_intensity: float  # kg CO2eq a kWh
    source: str
    kg_co2: float


@dataclass(frozen=True)
class ReportData:
    """Everything a page shows. `bits_per_byte` is of held-out text, by source."""

    title: str
    subtitle: str = ""
    flow: Flow | None = None
    tokens: int | None = None
    vocabulary: int | None = None
    parameters: int | None = None
    training: tuple[Training, ...] = ()
    bits_per_byte: Mapping[str, Measure] = field(default_factory=dict)
    comparison: Comparison | None = None
    scores: tuple[Score, ...] = ()
    samples: tuple[Sample, ...] = ()
    traced: Traced | None = None
    stages: tuple[Stage, ...] = ()
    lineage: tuple[Node, ...] = ()
    energy: Energy | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    beside: tuple[
        Training, ...
    ] = ()  # runs laid over each other; the first is what the others are set against
    outcomes: tuple[tuple[str, ...], ...] = ()
    """Of runs side by side: titles, then a row a group of runs (`loom.report.sweep.table`)."""
    noise: tuple[str, ...] = ()
    """Whether they differ by more than their seeds (`loom.report.noise`)."""


def save(path: Path, data: ReportData) -> None:
    write_json(path, to_plain(data))


def load(path: Path) -> ReportData:
    """Read what `save` wrote. Raises `LoomError` naming the key that is wrong."""
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise LoomError(f"There are no records {path}.") from None
    except ValueError as error:
        raise LoomError(f"{path} is not JSON: {error}.") from None
    return build(value, ReportData, str(path))
