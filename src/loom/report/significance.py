"""What changed between models, and whether it is more than chance would give."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from loom.report.data import Comparison, Measure, Metric
from loom.report.figures import number

BEYOND = 2.0  # standard errors


@dataclass(frozen=True)
class Verdict:
    """`model` against `against` on a metric. `paired` says how the standard error was had."""

    metric: Metric
    model: str
    against: str
    difference: float
    stderr: float | None
    paired: bool

    @property
    def kind(self) -> Literal["better", "worse", "none", "unknown"]:
        """Beyond two standard errors, and which way; "unknown" where no standard error is known."""
        if self.stderr is None or not math.isfinite(self.stderr) or not math.isfinite(self.difference):
            return "unknown"
        if abs(self.difference) <= BEYOND * self.stderr:
            return "none"
        return "better" if (self.difference > 0) == (self.metric.better == "higher") else "worse"

    @property
    def sentence(self) -> str:
        """'sft is better than base by 0.912 ± 0.041 (22 standard errors).'"""
        size = number(abs(self.difference), self.metric.percent)
        if self.metric.percent:
            size = size.replace(" %", " points")
        match self.kind:
            case "unknown":
                way = "above" if self.difference > 0 else "below"
                return f"{self.model} is {size} {way} {self.against}; no standard error was recorded."
            case "none":
                error = self._error()
                return f"No significant change from {self.against} to {self.model} ({size} ± {error})."
            case kind:
                assert self.stderr is not None
                times = f"{abs(self.difference) / self.stderr:.0f}" if self.stderr else "more than any"
                return (
                    f"{self.model} is {kind} than {self.against} by {size} ± {self._error()} "
                    f"({times} standard errors)."
                )

    def _error(self) -> str:
        assert self.stderr is not None
        return number(self.stderr, self.metric.percent).replace(" %", "")


def verdict(comparison: Comparison, metric: Metric, model: str, against: str) -> Verdict | None:
    """Compare two models on `metric`; None where one of them was not measured."""
    for change in comparison.changes:
        if (change.metric, change.model, change.against) == (metric.key, model, against):
            return Verdict(metric, model, against, change.difference, change.stderr, paired=True)
    figures = {row.model: row.metrics.get(metric.key) for row in comparison.models}
    one, other = figures.get(model), figures.get(against)
    if one is None or other is None:
        return None
    return Verdict(metric, model, against, one.value - other.value, _independent(one, other), paired=False)


def _independent(one: Measure, other: Measure) -> float | None:
    if one.stderr is None or other.stderr is None:
        return None
    return math.hypot(one.stderr, other.stderr)


def verdicts(comparison: Comparison) -> list[Verdict]:
    """Each metric, each model against the one before it."""
    found = []
    for metric in comparison.metrics:
        for before, after in zip(comparison.models, comparison.models[1:], strict=False):
            if (item := verdict(comparison, metric, after.model, before.model)) is not None:
                found.append(item)
    return found
