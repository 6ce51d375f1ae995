"""What a model gave, kept below the user's cache folder under everything it depends on.

The key is a digest of what was asked (every prompt and continuation, every row of tokens), the model's
weights, the tokenizer, the precision and Loom's version: a changed row, weight or setting is another key,
so nothing ever has to be thrown away because it is stale. Nothing is looked up or kept where `cached` is
False.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from loom.artifact import atomic_write, digest_bytes, digest_json
from loom.console import Progress
from loom.errors import LoomError
from loom.evals.encode import PLAIN
from loom.evals.items import Scores, score_items
from loom.evals.rows import Row
from loom.evals.scorer import Floats, score_rows
from loom.evals.subject import Subject
from loom.tasks.item import Item
from loom.version import VERSION


def folder() -> Path:
    """`LOOM_CACHE`, else `loom` in the user's cache folder."""
    if chosen := os.environ.get("LOOM_CACHE"):
        return Path(chosen) / "evals"
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "loom" / "evals"


def key(kind: str, *content: Any) -> str:
    """The name under which what was made of `content` (anything that JSON holds) is kept."""
    return digest_json([VERSION, kind, *content])


def of(subject: Subject) -> list[str]:
    """What a subject's figures depend on."""
    return [subject.dtype, subject.digest, subject.tokenizer.digest]


def read(name: str, cached: bool = True) -> Any:
    """What is kept under a key; None if there is nothing that can be read."""
    if not cached:
        return None
    try:
        return orjson.loads((folder() / f"{name}.json").read_bytes())
    except (OSError, ValueError):
        return None


def write(name: str, body: Any, cached: bool = True) -> None:
    """Keep `body`; a folder that cannot be written is no reason to lose an evaluation."""
    if not cached:
        return
    try:
        with atomic_write(folder() / f"{name}.json") as stream:
            stream.write(orjson.dumps(body))
    except LoomError:
        return


def rows(
    subject: Subject,
    given: Sequence[Row],
    count: int,
    *,
    budget: int | None = None,
    progress: Progress | None = None,
) -> Floats:
    """`score_rows` of a subject, once for the same rows. Raises `LoomError` for NaN."""
    content = [
        digest_bytes(b"".join(part.tobytes() for part in (row.tokens, row.positions, row.ends)))
        + digest_bytes(b"".join(part.tobytes() for part in (row.at, row.targets, row.keys)))
        for row in given
    ]
    name = key("rows", of(subject), count, content)
    if (known := read(name, subject.cached)) is not None:
        return np.asarray(known, dtype=np.float64)
    found = score_rows(subject.model, given, count, budget=budget, device=subject.device, progress=progress)
    check_numbers(found)
    write(name, found.tolist(), subject.cached)
    return found


def check_numbers(found: Floats) -> None:
    """Raise `LoomError` for log-likelihoods that are NaN: nothing can be made of them."""
    if np.isnan(found).any():
        raise LoomError(
            "The model gives log-likelihoods that are not numbers (NaN), so nothing can be said of it: look at "
            "its weights, or evaluate in float32."
        )


def items(
    subject: Subject,
    given: Sequence[Item],
    length: int,
    *,
    budget: int | None = None,
    progress: Progress | None = None,
) -> tuple[Scores, bool]:
    """`score_items` of a subject, once for the same items; and whether the scores were known."""
    content = [[item.pairs, item.unconditioned, item.header, item.chat] for item in given]
    opened = [] if subject.opening == PLAIN else [vars(subject.opening)]
    name = key("items", of(subject), length, content, *opened)
    if (known := _read_scores(name, subject.cached)) is not None:
        return known, True
    scores = score_items(
        subject.model,
        given,
        subject.tokenizer,
        length,
        opening=subject.opening,
        budget=budget,
        device=subject.device,
        progress=progress,
    )
    body = {
        "logp": [values.tolist() for values in scores.logp],
        "free": [None if values is None else values.tolist() for values in scores.free],
        "tokens": [values.tolist() for values in scores.tokens],
        "truncated": scores.truncated,
        "cut": list(scores.cut),
        "gutted": list(scores.gutted),
        "lost": list(scores.lost),
        "read": scores.read,
        "naive": scores.naive,
    }
    write(name, body, subject.cached)
    return scores, False


def _read_scores(name: str, cached: bool) -> Scores | None:
    try:
        if (body := read(name, cached)) is None:
            return None
        return Scores(
            logp=[_array(values) for values in body["logp"]],
            free=[None if values is None else _array(values) for values in body["free"]],
            tokens=[_array(values) for values in body["tokens"]],
            truncated=body["truncated"],
            cut=tuple(body["cut"]),
            gutted=tuple(body["gutted"]),
            lost=tuple(body["lost"]),
            read=body["read"],
            naive=body["naive"],
        )
    except (KeyError, TypeError):
        return None


def _array(values: Sequence[float | None]) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)
