"""What watches a run: a small surface of hooks, and the writer of `metrics.jsonl`.

Hooks run on the first rank. They may be slow only where the loop waits anyway: at log steps.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from loom.model.config import ModelConfig
from loom.model.transformer import Transformer
from loom.train.checkpoint import write_json
from loom.train.config import RunConfig
from loom.version import VERSION

Record = dict[str, float | int | str]
Evaluate = Callable[[Transformer, int], Mapping[str, float]]
"""(model in evaluation mode, step) -> metrics; logged under `eval/`."""


@dataclass(frozen=True)
class RunInfo:
    """What is known before the first step."""

    out: Path
    config: RunConfig
    model: ModelConfig
    first_step: int
    last_step: int
    instances: int
    batch_tokens: int
    ranks: int
    device: str
    notes: Sequence[str]
    utilisation: str = ""
    """How model FLOPs utilisation is reckoned here, or why it is not."""


class Callback:
    """Override what you need."""

    def on_start(self, run: RunInfo) -> None: ...

    def on_step(self, record: Record) -> None:
        """At every log step: step, tokens, loss (nats, before the update), lr, grad_norm, speeds."""

    def on_eval(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def on_pause(self) -> None:
        """Before a checkpoint is taken, and when the loop ends, however it ends: nothing may be held back."""

    def on_checkpoint(self, step: int, folder: Path) -> None: ...

    def on_finish(self, last_checkpoint: Path) -> None: ...


def logged(path: Path) -> Iterator[Record]:
    """The records of a `metrics.jsonl`, if it is there; the last line of a killed run may be half of one."""
    if not path.exists():
        return
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            record: Record = json.loads(line)
            if int(record["step"]) >= 0:
                yield record
        except (ValueError, KeyError, TypeError):
            continue


def environment() -> dict[str, str]:
    """This machine and the versions here."""
    return {
        "Loom": VERSION,
        "Python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "processor": f"{os.cpu_count()} cores, {platform.machine()}",
        "system": platform.system(),
    }


class MetricsFile(Callback):
    """`metrics.jsonl`: one object a logged step, evaluation merged in under `eval/`; `run.json`: what it ran on.

    On resume, lines past the checkpoint's step are cut, so that no step is there twice.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.pending: Record | None = None

    def on_start(self, run: RunInfo) -> None:
        here = {
            "device": run.device,
            "ranks": run.ranks,
            "cores": os.cpu_count(),
            "environment": environment(),
        }
        write_json(self.path.with_name("run.json"), here)
        kept = [record for record in logged(self.path) if int(record["step"]) < run.first_step]
        temporary = self.path.with_name(f".{self.path.name}.tmp")
        temporary.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")
        os.replace(temporary, self.path)

    def on_step(self, record: Record) -> None:
        self._flush()
        self.pending = dict(record)

    def on_eval(self, step: int, metrics: Mapping[str, float]) -> None:
        if self.pending is None or self.pending["step"] != step:
            self._flush()
            self.pending = {"step": step}
        self.pending |= {f"eval/{name}": value for name, value in metrics.items()}
        self._flush()

    def on_pause(self) -> None:
        self._flush()

    def _flush(self) -> None:
        if self.pending is not None:
            with open(self.path, "a", encoding="utf-8") as stream:
                stream.write(json.dumps(self.pending) + "\n")
            self.pending = None
