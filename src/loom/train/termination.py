"""SIGTERM ends a run between two steps, all ranks at the same one."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from loom.train.parallel import World


@contextmanager
def termination() -> Iterator[threading.Event]:
    """SIGTERM sets the event, for as long as training goes on: the step in work is finished and saved."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    before = signal.signal(signal.SIGTERM, lambda *_: event.set())
    try:
        yield event
    finally:
        signal.signal(signal.SIGTERM, before)


class Agreement:
    """Whether any rank was told to stop: asked once a step, answered alike on every rank.

    A collective of four bytes a step. On a GPU the answer is that of the step before, copied to the host
    while this one runs, so that the host stays a step ahead of the device.
    """

    def __init__(self, event: threading.Event, world: World) -> None:
        self.event, self.world = event, world
        self.asked: tuple[torch.Tensor, torch.cuda.Event] | None = None

    def stop(self) -> bool:
        """At the end of a step."""
        told = self.event.is_set()
        if self.world.size == 1:
            return told
        flag = torch.full((1,), float(told), device=self.world.device)
        dist.all_reduce(flag, dist.ReduceOp.MAX)
        if self.world.device.type != "cuda":
            return bool(flag)
        before = self.asked
        copy = torch.empty(1, pin_memory=True)
        copy.copy_(flag, non_blocking=True)
        done = torch.cuda.Event()  # type: ignore[no-untyped-call]
        done.record()
        self.asked = (copy, done)
        if before is None:
            return False
        before[1].synchronize()
        return bool(before[0])
