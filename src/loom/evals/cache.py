"""Scores kept below the user's cache folder, keyed by everything they depend on.

The key is the digest of every prompt and continuation, the model's weights, the tokenizer, the context
length, the precision and Loom's version: a changed row, weight or setting is another key, so nothing
ever has to be thrown away because it is stale.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from loom.artifact import atomic_write, digest_json
from loom.errors import LoomError
from loom.evals.items import Scores
from loom.tasks.item import Item
from loom.version import VERSION


def folder() -> Path:
    """`LOOM_CACHE`, else `loom` in the user's cache folder."""
    if chosen := os.environ.get("LOOM_CACHE"):
        return Path(chosen) / "evals"
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "loom" / "evals"


def key(items: Sequence[Item], settings: Sequence[Any]) -> str:
    content = [[item.pairs, item.unconditioned, item.header, item.chat] for item in items]
    return digest_json([VERSION, list(settings), content])


def read(name: str) -> Scores | None:
    """The scores kept under a key; None if there are none that can be read."""
    try:
        body = orjson.loads((folder() / f"{name}.json").read_bytes())
        return Scores(
            logp=[_array(values) for values in body["logp"]],
            free=[None if values is None else _array(values) for values in body["free"]],
            tokens=[_array(values) for values in body["tokens"]],
            truncated=body["truncated"],
            lost=tuple(body["lost"]),
            read=body["read"],
            naive=body["naive"],
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write(name: str, scores: Scores) -> None:
    """Keep scores; a folder that cannot be written is no reason to lose an evaluation."""
    body = {
        "logp": [values.tolist() for values in scores.logp],
        "free": [None if values is None else values.tolist() for values in scores.free],
        "tokens": [values.tolist() for values in scores.tokens],
        "truncated": scores.truncated,
        "lost": list(scores.lost),
        "read": scores.read,
        "naive": scores.naive,
    }
    try:
        with atomic_write(folder() / f"{name}.json") as stream:
            stream.write(orjson.dumps(body))
    except LoomError:
        return


def _array(values: Sequence[float | None]) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)
