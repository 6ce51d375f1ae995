"""Metrics: per-item values from log-likelihoods, and their means with standard errors.

L is the summed log-likelihood of a choice in nats. All of these follow from one pass:

    acc        argmax L
    acc_norm   argmax L / characters of the choice, without the joining space (lm-evaluation-harness)
    acc_char   argmax L / characters with that space (Catwalk, OLMES)
    acc_token  argmax L / tokens (Catwalk's per-token)
    acc_bytes  argmax L / UTF-8 bytes of the choice
    acc_pmi    argmax L - L after the unconditioned context (Catwalk's acc_uncond)
    bpb        -L / (bytes ln 2) of the right choice
    soft       exp L of the right choice over the sum of all choices'
    mc2        share of exp L on right choices, where there are several (TruthfulQA); also `acc`
    mc3        share of the right choices that beat every wrong one

The first of equal maxima wins, as in numpy and the harness.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from loom.evals.items import Scores
from loom.evals.scorer import Floats
from loom.tasks.item import Item

CLOSE = 1e-3  # nats; two best choices nearer than this may swap between programs


@dataclass(frozen=True)
class Outcome:
    """One item's results."""

    values: Mapping[str, float]
    predictions: Mapping[str, int]
    close: bool
    """The two best choices by summed log-likelihood are within `CLOSE`."""


def outcome(item: Item, logp: Floats, free: Floats | None, tokens: Floats) -> Outcome:
    """Every metric that the item allows."""
    joined = [continuation for _, continuation in item.pairs]
    rankings: dict[str, Floats] = {
        "acc": logp,
        "acc_norm": logp / np.array([len(text) for text in item.choices], dtype=np.float64),
        "acc_char": logp / np.array([len(text) for text in joined], dtype=np.float64),
        "acc_token": logp / tokens,
        "acc_bytes": logp / np.array([len(text.encode()) for text in item.choices], dtype=np.float64),
    }
    if free is not None:
        rankings["acc_pmi"] = logp - free
    weights = np.exp(logp - logp.max())
    shares = weights / weights.sum()
    golds = list(item.golds)
    values: dict[str, float] = {}
    predictions: dict[str, int] = {}
    if len(logp) > 1:
        predictions = {name: int(np.argmax(ranking)) for name, ranking in rankings.items()}
        values |= {name: float(prediction in golds) for name, prediction in predictions.items()}
    if isinstance(item.gold, int):
        gold = golds[0]
        values["bpb"] = float(-logp[gold] / (len(item.choices[gold].encode()) * math.log(2)))
        values["soft"] = float(shares[gold])
    else:
        wrong = np.delete(logp, golds)
        values = {"acc": float(shares[golds].sum())}  # the harness calls it acc
        values["mc2"] = values["acc"]
        values["mc3"] = float((logp[golds] > wrong.max(initial=-np.inf)).mean())
    best = np.sort(logp)[::-1]
    return Outcome(values, predictions, close=len(best) > 1 and bool(best[0] - best[1] < CLOSE))


def outcomes(items: Sequence[Item], scores: Scores) -> list[Outcome | None]:
    """One an item, None for those that could not be scored."""
    lost = set(scores.lost)
    parts = zip(items, scores.logp, scores.free, scores.tokens, strict=True)
    return [
        None if index in lost else outcome(item, logp, free, tokens)
        for index, (item, logp, free, tokens) in enumerate(parts)
    ]


def mean(values: Sequence[float], clusters: Sequence[str] | None = None) -> tuple[float, float]:
    """Mean and its standard error: the sample's deviation over sqrt(n), as the harness gives it.

    With `clusters`, deviations are summed within a cluster before they are squared (Miller 2024,
    "Adding Error Bars to Evals", section 2.2). NaN for fewer than two values, or clusters.
    """
    data = np.asarray(values, dtype=np.float64)
    if len(data) == 0:
        return math.nan, math.nan
    center = float(data.mean())
    if len(data) == 1:
        return center, math.nan
    if clusters is None or len(set(clusters)) == len(data):
        return center, float(data.std(ddof=1) / math.sqrt(len(data)))
    if len(set(clusters)) < 2:
        return center, math.nan
    _, which = np.unique(np.asarray(clusters), return_inverse=True)
    sums = np.bincount(which, weights=data - center)
    return center, float(math.sqrt((sums**2).sum()) / len(data))


def pooled_bpb(items: Sequence[Item], logp: Sequence[Floats]) -> tuple[float, float]:
    """Bits a byte of the right answers of all items (a ratio of sums), and its error (delta method)."""
    bits = np.array([-values[item.golds[0]] / math.log(2) for item, values in zip(items, logp, strict=True)])
    lengths = np.array([len(item.choices[item.golds[0]].encode()) for item in items], dtype=np.float64)
    if len(items) == 0:
        return math.nan, math.nan
    ratio = float(bits.sum() / lengths.sum())
    if len(items) == 1:
        return ratio, math.nan
    residual = bits - ratio * lengths
    return ratio, float(math.sqrt(len(items) / (len(items) - 1) * (residual**2).sum()) / lengths.sum())
