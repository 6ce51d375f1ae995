"""Annealing: a run's checkpoint goes on, optimizer and all, on other data while its learning rate falls to zero.

OLMo 7B decayed to zero in its last 1,000 steps; its successors do so on better data than the rest.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from loom.errors import LoomError
from loom.train.checkpoint import MANIFEST, read_state
from loom.train.config import RunConfig, ScheduleConfig


def annealing(config: RunConfig, rate: float) -> RunConfig:
    """The recipe with what annealing fixes: from `rate` linearly to 0 at the last step, no warm-up of anything."""
    return replace(
        config,
        schedule=ScheduleConfig(kind="linear", warmup=0, floor=0.0),
        optimizer=replace(config.optimizer, learning_rate=rate, clip_warmup_steps=0, clip_warmup_tokens=0),
    )


def rate_of(origin: Path, resumed: Path | None) -> float:
    """The learning rate at which annealing begins: that of the last step of `origin`.

    Once under way it is in the run's own checkpoint, `resumed`. Raises `LoomError` where nothing was trained.
    """
    if resumed is not None:
        recipe = json.loads((resumed / MANIFEST).read_bytes())["recipe"]
        return float(recipe["optimizer"]["learning_rate"])
    rate = read_state(origin).learning_rate
    if not rate:
        raise LoomError(
            f"{origin} does not say the learning rate it was trained with last, or that was 0: train.anneal goes on "
            f"from a checkpoint of a run under way. To start from its weights alone use train.init."
        )
    return rate


def origin_of(resumed: Path, data: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """What else than its data a run under way was made from, by its checkpoint: the origin may have gone on since."""
    known = {item["digest"] for item in data}
    listed = json.loads((resumed / MANIFEST).read_bytes())["inputs"]
    return [
        {"path": os.path.normpath(resumed.resolve() / item["path"]), "digest": item["digest"]}
        for item in listed
        if item["digest"] not in known
    ]
