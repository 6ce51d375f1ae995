"""A causal language model as judge of two answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from loom.evals import cache
from loom.evals.judge.judges import QUESTION, Comparison, Preference, both_orders
from loom.evals.subject import Subject
from loom.tasks.item import choose

TOO_LONG = "longer than the judge's context"


class LocalModel:
    """p(" A") against p(" B"), both orders averaged so that position cancels. A comparison that is longer than the
    model's context, so that it would judge what it could not read, is counted in `failures` and judged None."""

    name = "local-model"

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.failures: dict[str, int] = {}
        self.disagree = 0

    def describe(self) -> dict[str, Any]:
        return {
            "judge": "local-model",
            "digest": self.subject.digest,
            "prompt": QUESTION,
            "failures": dict(self.failures),
        }

    def annotator(self, item: Comparison) -> str:
        return f"local-model:{self.subject.digest}"

    def prefer(self, comparisons: Sequence[Comparison]) -> list[Preference]:
        texts = [text for item in comparisons for text in both_orders(item)]
        items = [choose(index, text, ("A", "B"), 0) for index, text in enumerate(texts)]
        scores, _ = cache.items(self.subject, items, self.subject.max_length)
        short = {index // 2 for index in (*scores.cut, *scores.lost)}
        if short:
            self.failures[TOO_LONG] = len(short)
        result: list[Preference] = []
        for index in range(len(comparisons)):
            if index in short:
                result.append(None)
                continue
            ours = []
            for place, logp in ((1, scores.logp[2 * index]), (0, scores.logp[2 * index + 1])):
                weights = np.exp(logp - logp.max())
                ours.append(float(weights[place] / weights.sum()))
            self.disagree += (ours[0] > 0.5) != (ours[1] > 0.5)
            result.append(1 + sum(ours) / 2)
        return result
