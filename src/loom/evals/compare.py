"""Two evaluations of the same documents: is the difference more than chance?

Scores of two models on one test set are correlated, so the comparison is paired: McNemar's exact test on
the documents where exactly one is right, a paired bootstrap of the difference, and the smallest
difference that this many documents would have shown.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from loom.console import console
from loom.errors import LoomError
from loom.evals import paired
from loom.evals.scorer import Floats

DRAWS = 10_000
POWER = 1.959964 + 0.841621  # normal quantiles: two-sided 5 %, power 80 %


@dataclass(frozen=True)
class Difference:
    """B minus A on the documents that both have.

    `low` and `high` bound the 95 % interval of the paired bootstrap. `detectable` is the difference that
    a test of this size finds four times in five at the 5 % level. `only_a`, `only_b` count documents where
    only one is right and `p` is McNemar's; they are None for what is not right or wrong.
    """

    task: str
    metric: str
    n: int
    a: float
    b: float
    difference: float
    stderr: float
    low: float
    high: float
    detectable: float
    only_a: int | None = None
    only_b: int | None = None
    p: float | None = None

    @property
    def clear(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low > 0 or self.high < 0


def compare(a: Path, b: Path, metrics: Sequence[str] = (), seed: int = 0) -> list[Difference]:
    """Every task that both folders have by row, by its headline metric (or the `metrics` named), and text.

    So too the held-out answers, pairs and prompts of an evaluation of tuned models. What has no rows (a refused
    task, judged answers, the better of two forms) is left out, and that is said.
    Raises `LoomError` if a folder is no evaluation, if they share no task, or if a task's rows differ.
    """
    left, right = read_results(a), read_results(b)
    shared = [name for name in left["tasks"] if name in right["tasks"]]
    rows = [name for name in shared if all(_has_rows(*side, name) for side in ((left, a), (right, b)))]
    tuned = [
        item for name in shared if name not in rows for item in _tuned(name, left, right, a, b, metrics, seed)
    ]
    told = {*rows, *(item.task for item in tuned)}
    if others := [name for name in shared if name not in told]:
        console.say(f"not compared row by row: {', '.join(others)}")
    result: list[Difference] = []
    for name in rows:
        _same_rows(name, left, right, a, b)
        first, second = read_lines(a, name), read_lines(b, name)
        headline = left["tasks"][name]["headline"]
        for metric in metrics or _measured(headline, first):
            result.append(_paired(name, metric, first, second, seed, a, b))
    result += tuned
    if all(has_text(*side) for side in ((left, a), (right, b))):
        result += _compare_text(a, b, seed)
    if not result:
        raise LoomError(f"{a} and {b} have no task in common: evaluate both on the same tasks first.")
    return result


def _has_rows(results: Mapping[str, Any], folder: Path, name: str) -> bool:
    return "files" in results["tasks"][name] and (folder / f"{name}.jsonl").is_file()


def has_text(results: Mapping[str, Any], folder: Path) -> bool:
    """Whether this evaluation measured text: a text.jsonl that a killed one left says nothing of this model."""
    return bool(results.get("text")) and (folder / "text.jsonl").is_file()


def read_results(folder: Path) -> dict[str, Any]:
    """`results.json`. Raises `LoomError` if the folder is no evaluation."""
    try:
        body: dict[str, Any] = orjson.loads((folder / "results.json").read_bytes())
        body["results"], body["tasks"]
    except (OSError, ValueError, KeyError) as error:
        raise LoomError(
            f"{folder} is not an evaluation of Loom's ({error}); name the --out of `loom eval`."
        ) from None
    return body


def read_lines(folder: Path, name: str) -> dict[tuple[str, int], dict[str, Any]]:
    """The rows of one task by (subject, doc_id)."""
    lines = map(orjson.loads, (folder / f"{name}.jsonl").read_bytes().splitlines())
    return {(line.get("subject", ""), line["doc_id"]): line for line in lines}


def _same_rows(name: str, left: Mapping[str, Any], right: Mapping[str, Any], a: Path, b: Path) -> None:
    digests = [[file["digest"] for file in side["tasks"][name]["files"]] for side in (left, right)]
    if digests[0] != digests[1]:
        raise LoomError(
            f"{a} and {b} evaluated {name} on different rows (the files' digests differ), so documents "
            f"cannot be paired. Evaluate both on the same --data."
        )
    shown = [
        [file["digest"] for file in side["tasks"][name].get("example_files", ())] for side in (left, right)
    ]
    if shown[0] != shown[1]:
        raise LoomError(
            f"{a} and {b} showed {name} with different worked examples (the files' digests differ), so the difference "
            f"is not the models' alone. Evaluate both on the same --data."
        )


def _measured(headline: str, lines: Mapping[Any, Mapping[str, Any]]) -> list[str]:
    """The headline metric, or for one that is pooled the value each document has of it."""
    headline = headline.removeprefix("macro_")  # a mean over subjects is over rows here
    return ["bpb" if headline == "bits_per_byte" else headline] if lines else []


def _paired(
    name: str,
    metric: str,
    first: Mapping[tuple[str, int], Mapping[str, Any]],
    second: Mapping[tuple[str, int], Mapping[str, Any]],
    seed: int,
    a: Path,
    b: Path,
) -> Difference:
    keys = sorted(
        key for key in first.keys() & second.keys() if first[key]["values"] and second[key]["values"]
    )
    try:
        x = np.array([first[key]["values"][metric] for key in keys])
        y = np.array([second[key]["values"][metric] for key in keys])
    except KeyError:
        known = ", ".join(next(iter(first.values()))["values"]) if first else "none"
        raise LoomError(f"{name} has no metric {metric!r} by document; it has {known}.") from None
    if not len(x):
        raise LoomError(f"{a} and {b} share no scored document of {name}.")
    return difference(name, metric, x, y, seed)


def difference(task: str, metric: str, x: Floats, y: Floats, seed: int = 0, draws: int = DRAWS) -> Difference:
    """The paired comparison of two columns [n] of values by document."""
    n = len(x)
    delta = y - x
    error = float(delta.std(ddof=1) / math.sqrt(n)) if n > 1 else math.nan
    low, high = _bootstrap(delta, np.ones(n), seed, draws)
    only_a = only_b = p = None
    if set(np.unique(np.concatenate([x, y]))) <= {0.0, 1.0}:
        only_a, only_b = int((delta < 0).sum()), int((delta > 0).sum())
        p = mcnemar(only_a, only_b)
    return Difference(
        task,
        metric,
        n,
        float(x.mean()),
        float(y.mean()),
        float(delta.mean()),
        error,
        low,
        high,
        POWER * error,
        only_a,
        only_b,
        p,
    )


def _tuned(
    name: str,
    left: Mapping[str, Any],
    right: Mapping[str, Any],
    a: Path,
    b: Path,
    metrics: Sequence[str],
    seed: int,
) -> Iterator[Difference]:
    """What was held out of a folder of `loom prepare`, where both evaluations have its rows."""
    digests = [side["tasks"][name].get("digest") for side in (left, right)]
    if None in digests:
        return
    if digests[0] != digests[1]:
        raise LoomError(
            f"{a} and {b} evaluated {name} on different held-out rows (their digests differ), so documents cannot be "
            f"paired. Evaluate both on the same folders."
        )
    for metric in metrics or (left["tasks"][name]["headline"],):
        first, second = (
            paired.parts(folder, body["results"], name, metric) or {}
            for folder, body in ((a, left), (b, right))
        )
        both = sorted(first.keys() & second.keys(), key=repr)
        keys = [key for key in both if first[key][1] == second[key][1]]
        x, y = (np.array([side[key][0] for key in keys]) for side in (first, second))
        below = np.array([first[key][1] for key in keys])
        if keys:
            whole = bool((below == 1).all())
            yield difference(name, metric, x, y, seed) if whole else _ratio(name, metric, x, y, below, seed)


def _ratio(task: str, metric: str, x: Floats, y: Floats, below: Floats, seed: int) -> Difference:
    """The paired comparison of sum(x) / sum(below) and sum(y) / sum(below), by document."""
    low, high = _bootstrap(y - x, below, seed)
    error = (high - low) / (2 * 1.959964)
    a, b = (float(side.sum() / below.sum()) for side in (x, y))
    return Difference(task, metric, len(below), a, b, b - a, error, low, high, POWER * error)


def _compare_text(a: Path, b: Path, seed: int) -> list[Difference]:
    """Bits per byte by source: ratios of sums, documents resampled together on both sides."""
    sides = []
    for folder in (a, b):
        lines = map(orjson.loads, (folder / "text.jsonl").read_bytes().splitlines())
        sides.append({(line["source"], line["domain"], line["id"]): line for line in lines})
    keys = sorted(sides[0].keys() & sides[1].keys())
    if unlike := next((key for key in keys if sides[0][key]["bytes"] != sides[1][key]["bytes"]), None):
        raise LoomError(
            f"{a} and {b} hold different texts under the name {unlike[2]!r} of {unlike[0]!r}: evaluate both on the "
            f"same text."
        )
    result = []
    for source in dict.fromkeys(key[0] for key in keys):
        of = [key for key in keys if key[0] == source]
        bits = [np.array([side[key]["nll"] for key in of]) / math.log(2) for side in sides]
        size = np.array([sides[0][key]["bytes"] for key in of], dtype=np.float64)
        if not size.sum():
            continue
        result.append(_ratio(source, "bits_per_byte", bits[0], bits[1], size, seed))
    return result


def _bootstrap(above: Floats, below: Floats, seed: int, draws: int = DRAWS) -> tuple[float, float]:
    """The 2.5 % and 97.5 % quantiles of sum(above) / sum(below) over resampled documents."""
    n = len(above)
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
