"""Whether runs differ by more than their seeds make runs differ.

Groups of runs that are alike but for their seeds are compared by Welch's t-test of their final losses
(Welch 1947): precision, device or a hyper-parameter against the spread that seeds alone give.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from loom.report.sweep import Group

# Two-sided 5 % points of Student's t; between two degrees of freedom the lower one's, which is the larger.
STUDENT = {
    1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262, 10: 2.228,
    12: 2.179, 15: 2.131, 20: 2.086, 30: 2.042, 60: 2.000, 1000: 1.962,
}  # fmt: skip


@dataclass(frozen=True)
class Difference:
    """Of two means over seeds: its standard error from both spreads, Welch's degrees of freedom."""

    mean: float
    error: float
    degrees: float

    @property
    def bound(self) -> float:
        """The largest difference that seeds give in 95 of 100 such comparisons."""
        return STUDENT[max(known for known in STUDENT if known <= max(1.0, self.degrees))] * self.error

    @property
    def beyond(self) -> bool:
        return abs(self.mean) > self.bound


def difference(one: Sequence[float], other: Sequence[float]) -> Difference | None:
    """mean(one) - mean(other); None unless both have at least two values and some spread."""
    if min(len(one), len(other)) < 2:
        return None
    means, parts = [], []
    for values in (one, other):
        mean = math.fsum(values) / len(values)
        variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
        means.append(mean)
        parts.append(variance / len(values))
    if sum(parts) == 0:
        return None
    rest = sum(part**2 / (len(values) - 1) for part, values in zip(parts, (one, other), strict=True) if part)
    return Difference(means[0] - means[1], math.sqrt(sum(parts)), sum(parts) ** 2 / rest)


def sentences(keys: Sequence[str], groups: Sequence[Group]) -> list[str]:
    """Every group against the best one, for each loss that both have, where seeds were varied."""
    said = []
    for group in groups[1:]:
        best = groups[0]
        for name in group.values:
            found = difference(group.values[name], best.values.get(name, ()))
            if found is None:
                continue
            pairs = (
                f"{key} {group.settings[key]} against {best.settings[key]}"
                for key in keys
                if group.settings[key] != best.settings[key]
            )
            verdict = "more than" if found.beyond else "no more than"
            said.append(
                f"{', '.join(pairs)}: {name} {found.mean:+.4f}, {verdict} seeds give "
                f"(±{found.bound:.4f} in 95 of 100 cases; {group.runs} and {best.runs} runs)."
            )
    return said
