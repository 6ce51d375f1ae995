"""Judges: who says which of two answers is better, behind one interface.

A judge gives, for each comparison, 1 where the baseline's answer is better, 2 where the model's is, 1.5
for a draw and None where it did not answer. Its name is part of the metric's name (`alpaca_win[replay]`):
a number that a stand-in made never carries the published metric's name.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from loom.artifact import digest_file
from loom.errors import LoomError
from loom.evals.written.records import read_records, text_of

Preference = float | None


@dataclass(frozen=True)
class Comparison:
    """An instruction with the baseline's and the model's answer; of which data set it is and who answered are what
    annotations say of it, and no judge reads them."""

    instruction: str
    baseline: str
    answer: str
    dataset: str = ""
    baseline_by: str = ""
    answer_by: str = ""


class Judge(Protocol):
    @property
    def name(self) -> str:
        """What stands in the brackets of the metric's name."""
        ...

    @property
    def disagree(self) -> int | None:
        """Of how many comparisons the verdict turned with the order of the two answers; None for a judge that is not
        asked in both."""
        ...

    def describe(self) -> dict[str, Any]:
        """What a reader must know to repeat the judgement; written into the results."""
        ...

    def prefer(self, comparisons: Sequence[Comparison]) -> list[Preference]: ...

    def annotator(self, item: Comparison) -> str:
        """Who stands beside a verdict in the annotations."""
        ...


QUESTION = (
    "Which of two answers to an instruction is better?\n\nInstruction:\n{instruction}\n\nAnswer A:\n{first}"
    "\n\nAnswer B:\n{second}\n\nThe better answer is Answer"
)


def both_orders(item: Comparison) -> tuple[str, str]:
    """The question with the baseline's answer first, and with the model's."""
    answers = ((item.baseline, item.answer), (item.answer, item.baseline))
    first, second = (
        QUESTION.format(instruction=item.instruction, first=one, second=two) for one, two in answers
    )
    return first, second


@dataclass(frozen=True)
class WinRate:
    """`win_rate` is 100 mean(preference - 1) over the `n` that were judged, `discrete` counts wins and half
    draws, `stderr` is 100 sd / sqrt(n); `unjudged` got no answer and count in neither."""

    win_rate: float
    discrete: float
    stderr: float
    n: int
    unjudged: int


def win_rate(preferences: Sequence[Preference]) -> WinRate:
    """AlpacaEval v1's figures (Li et al. 2023; `alpaca_eval.metrics`). 0 means a draw there, too."""
    kept = np.array([1.5 if value == 0 else value for value in preferences if value is not None])
    if len(kept) == 0:
        return WinRate(math.nan, math.nan, math.nan, 0, len(preferences))
    if not ((kept >= 1) & (kept <= 2)).all():
        raise ValueError("a preference lies between 1 (baseline) and 2 (model), or is 0 for a draw")
    discrete = np.where(kept > 1.5, 1.0, np.where(kept == 1.5, 0.5, 0.0))
    error = 100 * kept.std(ddof=1) / math.sqrt(len(kept)) if len(kept) > 1 else math.nan
    return WinRate(
        float(100 * (kept - 1).mean()),
        float(100 * discrete.mean()),
        float(error),
        len(kept),
        len(preferences) - len(kept),
    )


class Replay:
    """Stored annotations in AlpacaEval's schema, looked up by instruction and answer.

    An answer that was never annotated is not judged: the annotations are of one model's answers. Raises
    `LoomError`, naming the lines, for what is no annotation and for two that contradict each other.
    """

    name = "replay"
    disagree = None

    def __init__(self, path: Path) -> None:
        self.path = path
        self.stored: dict[tuple[str, str], Preference] = {}
        self.rows: dict[tuple[str, str], dict[str, Any]] = {}
        places: dict[tuple[str, str], str] = {}
        for place, row in read_records(path):
            key = text_of(row, "instruction", place), text_of(row, "output_2", place)
            preference = _preference(row, place)
            if key in places and self.stored[key] != preference:
                raise LoomError(
                    f"{place} says {preference} of an answer and {places[key]} says {self.stored[key]} of the same one: "
                    f"which of the two is meant cannot be known. Take one of them out."
                )
            self.stored[key] = preference
            self.rows.setdefault(key, row)
            places.setdefault(key, place)

    def describe(self) -> dict[str, Any]:
        return {
            "judge": "replay",
            "file": self.path.name,
            "digest": digest_file(self.path),
            "annotators": self._named("annotator"),
            "baselines": self._named("generator_1"),
        }

    def _named(self, field: str) -> list[str]:
        return sorted({str(row[field]) for row in self.rows.values() if row.get(field) is not None})

    def comparisons(self) -> list[Comparison]:
        """What was annotated."""
        return [self.as_annotated(Comparison(asked, "", answer)) for asked, answer in self.rows]

    def as_annotated(self, item: Comparison) -> Comparison:
        """The comparison with the baseline that it was judged against; as it is, where it never was."""
        if (row := self.rows.get((item.instruction, item.answer))) is None:
            return item
        return replace(
            item,
            baseline=str(row.get("output_1") or ""),
            dataset=str(row.get("dataset") or ""),
            baseline_by=str(row.get("generator_1") or ""),
            answer_by=item.answer_by or str(row.get("generator_2") or ""),
        )

    def prefer(self, comparisons: Sequence[Comparison]) -> list[Preference]:
        return [self.stored.get((item.instruction, item.answer)) for item in comparisons]

    def annotator(self, item: Comparison) -> str:
        return str(self.rows.get((item.instruction, item.answer), {}).get("annotator") or "")


def _preference(row: dict[str, Any], place: str) -> Preference:
    if "preference" not in row:
        raise LoomError(f"{place} has no 'preference'; each row of annotations needs it.")
    value = row["preference"]
    try:
        preference = None if value is None else math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        preference = math.nan
    if preference is not None and not (preference == 0 or 1 <= preference <= 2):
        raise LoomError(
            f"{place}: the preference is {value!r}; it lies between 1 (baseline) and 2 (model), is 0 for a draw, or "
            f"null."
        )
    return preference
