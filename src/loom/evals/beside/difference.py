"""The difference of two columns of figures, paired: McNemar's test, a bootstrap, what could have been found."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loom.evals.scorer import Floats

DRAWS = 10_000
POWER = 1.959964 + 0.841621  # normal quantiles: two-sided 5 %, power 80 %


@dataclass(frozen=True)
class Difference:
    """B minus A on the documents that both have.

    `low` and `high` bound the 95 % interval of the paired bootstrap. `detectable` is the difference that
    a test of this size finds four times in five at the 5 % level; None where no document differs, which says nothing
    of what a difference would look like. Of fewer than two documents there is no error: these three and `stderr` are
    None. `only_a`, `only_b` count documents where only one is right and
    `p` is McNemar's; they are None for what is not right or wrong. `n_a` and `n_b` are the documents that either
    has, `n` those that both have.
    """

    task: str
    metric: str
    n: int
    a: float
    b: float
    difference: float
    stderr: float | None
    low: float | None
    high: float | None
    detectable: float | None
    only_a: int | None = None
    only_b: int | None = None
    p: float | None = None
    n_a: int = 0
    n_b: int = 0

    @property
    def clear(self) -> bool:
        """Whether there is an interval and it leaves out 0."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def difference(
    task: str,
    metric: str,
    x: Floats,
    y: Floats,
    seed: int = 0,
    draws: int = DRAWS,
    of: tuple[int, int] | None = None,
) -> Difference:
    """The paired comparison of two columns [n] of values by document. `of` are the documents that either side has,
    where they are more."""
    n = len(x)
    delta = y - x
    error = float(delta.std(ddof=1) / math.sqrt(n)) if n > 1 else None
    low, high = _bootstrap(delta, np.ones(n), seed, draws)
    only_a = only_b = p = None
    if set(np.unique(np.concatenate([x, y]))) <= {0.0, 1.0}:
        only_a, only_b = int((delta < 0).sum()), int((delta > 0).sum())
        p = mcnemar(only_a, only_b)
    figures = float(x.mean()), float(y.mean()), float(delta.mean())
    found = error, low, high, POWER * error if error else None
    return Difference(task, metric, n, *figures, *found, only_a, only_b, p, *(of or (n, n)))


def ratio(
    task: str,
    metric: str,
    x: Floats,
    y: Floats,
    below: Floats,
    seed: int,
    of: tuple[int, int] | None = None,
) -> Difference:
    """The paired comparison of sum(x) / sum(below) and sum(y) / sum(below), by document."""
    n = len(below)
    low, high = _bootstrap(y - x, below, seed)
    error = None if low is None or high is None else (high - low) / (2 * 1.959964)
    a, b = (float(side.sum() / below.sum()) for side in (x, y))
    found = error, low, high, POWER * error if error else None
    return Difference(task, metric, n, a, b, b - a, *found, None, None, None, *(of or (n, n)))


def _bootstrap(
    above: Floats, below: Floats, seed: int, draws: int = DRAWS
) -> tuple[float, float] | tuple[None, None]:
    """The 2.5 % and 97.5 % quantiles of sum(above) / sum(below) over resampled documents; None for fewer than two
    that count, which are the same in every draw."""
    n = len(above)
    if np.count_nonzero(below) < 2:
        return None, None
    random = np.random.default_rng(seed)
    ratios: list[NDArray[np.float64]] = []
    step = max(1, 10_000_000 // n)
    for start in range(0, draws, step):
        counts = random.multinomial(n, np.full(n, 1 / n), min(step, draws - start))
        ratios.append((counts @ above) / np.maximum(counts @ below, 1e-300))
    low, high = np.quantile(np.concatenate(ratios), [0.025, 0.975])
    return float(low), float(high)


def mcnemar(only_a: int, only_b: int) -> float:
    """Two-sided exact p that of `only_a` + `only_b` fair coins so few fall on one side (McNemar 1947)."""
    n, k = only_a + only_b, min(only_a, only_b)
    if n == 0:
        return 1.0
    logs = [math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) for i in range(k + 1)]
    tail = math.fsum(math.exp(value - n * math.log(2)) for value in logs)
    return min(1.0, 2 * tail)


def plain(differences: Sequence[Difference]) -> list[dict[str, Any]]:
    return [asdict(item) | {"clear": item.clear} for item in differences]
