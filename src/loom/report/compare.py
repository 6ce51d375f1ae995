"""`loom report A B`: are two runs the same? Their curves overlaid, and a test on the difference.

OLMo trained the same model on MI250X and on A100 to show that the hardware makes no difference. The
same question is asked here of any two runs: the losses at the steps both logged are paired, and the
mean difference over the last half is set against its standard error. Losses of neighbouring steps go
together, so the error comes from means of blocks (batch means; Flegal and Jones 2010).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from loom.report.data import Points
from loom.report.significance import BEYOND

BLOCKS = 16


@dataclass(frozen=True)
class Difference:
    """`other` minus `first` over `steps` common steps: the mean in nats, its standard error, the largest."""

    steps: int
    mean: float
    stderr: float
    largest: float

    @property
    def sentence(self) -> str:
        """What the test says."""
        if self.largest == 0:
            return f"Equal to the last bit at all {self.steps:,} common steps."
        size = f"{self.mean:+.5f} ± {self.stderr:.5f} nats over {self.steps:,} common steps"
        if abs(self.mean) <= BEYOND * self.stderr:
            return f"No significant difference: {size} (largest at one step: {self.largest:.4f})."
        return f"The losses differ by {size}, more than {BEYOND:g} standard errors."


def paired(first: Points, other: Points) -> list[tuple[float, float]]:
    """(step, other - first) at the steps both have, finite ones only."""
    known = dict(first)
    return [
        (step, value - known[step])
        for step, value in other
        if step in known and math.isfinite(value) and math.isfinite(known[step])
    ]


def difference(first: Points, other: Points) -> Difference | None:
    """The test over the last half of the common steps; None with fewer than two blocks of them."""
    pairs = paired(first, other)
    values = [value for _, value in pairs[len(pairs) // 2 :]]
    blocks = min(BLOCKS, len(values))
    if blocks < 2:
        return None
    means = block_means(values, blocks)
    mean = math.fsum(values) / len(values)
    centre = math.fsum(means) / blocks
    spread = math.fsum((m - centre) ** 2 for m in means) / (blocks - 1)
    return Difference(len(values), mean, math.sqrt(spread / blocks), max(map(abs, values)))


def block_means(values: Sequence[float], blocks: int) -> list[float]:
    """Means of `blocks` runs of neighbouring values, as equal in length as can be."""
    edges = [i * len(values) // blocks for i in range(blocks + 1)]
    return [math.fsum(values[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]
