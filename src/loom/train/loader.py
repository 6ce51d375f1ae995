"""Micro-batches of the steps to come, made ready by a thread while the device computes."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from loom.tokens.order import Stage, places_of_step
from loom.train.data import Batch, Data


@dataclass(frozen=True)
class StepBatches:
    """One rank's share of a step: places rank, rank + ranks, ... of the step's, in micro-batches."""

    step: int
    batches: list[Batch]
    instances: int
    """Of all ranks."""
    waited: float
    """Seconds the loop stood still for it."""


def share(
    stages: Sequence[Stage], step: int, rank: int, ranks: int
) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Places of the order that a rank reads at a step."""
    first, last = places_of_step(stages, step)
    return np.arange(first + rank, last, ranks, dtype=np.int64)


def collate_step(
    data: Data, stages: Sequence[Stage], step: int, rank: int, ranks: int, micro_batch: int
) -> list[Batch]:
    places = share(stages, step, rank, ranks)
    return [data.batch(places[first : first + micro_batch]) for first in range(0, len(places), micro_batch)]


def steps(
    data: Data,
    stages: Sequence[Stage],
    first: int,
    last: int,
    *,
    rank: int = 0,
    ranks: int = 1,
    micro_batch: int = 8,
    ahead: int = 2,
) -> Iterator[StepBatches]:
    """Steps [first, last] in order. An error while reading is raised here, at its step."""
    ready: queue.Queue[list[Batch] | BaseException] = queue.Queue(maxsize=ahead)
    stop = threading.Event()

    def put(item: list[Batch] | BaseException) -> None:
        while not stop.is_set():
            try:
                return ready.put(item, timeout=0.1)
            except queue.Full:
                continue

    def read() -> None:
        try:
            for step in range(first, last + 1):
                if stop.is_set():
                    return
                put(collate_step(data, stages, step, rank, ranks, micro_batch))
        except BaseException as error:
            put(error)

    thread = threading.Thread(target=read, name="loom-loader", daemon=True)
    thread.start()
    try:
        for step in range(first, last + 1):
            began = time.perf_counter()
            item = ready.get()
            if isinstance(item, BaseException):
                raise item
            begin, end = places_of_step(stages, step)
            yield StepBatches(step, item, end - begin, time.perf_counter() - began)
    finally:
        stop.set()
        thread.join()
