"""What is logged, sent to trackers too. Nothing is sent anywhere unless a recipe's `train.track` says so.

A tracker is three functions: begin with the recipe, take numbers at a step, end.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from loom.errors import LoomError
from loom.tokens.digest import digest_bytes
from loom.train.callbacks import Callback, Record, RunInfo

STEP = "step"  # of Weights & Biases: an axis of our own


class Tracker(Protocol):
    def begin(self, name: str, folder: Path, recipe: Mapping[str, Any], first_step: int) -> None:
        """What was sent of `first_step` and later steps, before the run was cut off, is of no run any more."""

    def log(self, step: int, values: Mapping[str, float]) -> None: ...

    def end(self) -> None: ...


def _import(module: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise LoomError(
            f"train.track asks for {extra}, which is not installed: pip install 'loom-lm[{extra}]', or leave it out."
        ) from None


class TensorBoard:
    """Event files below the run's folder, `tensorboard/`."""

    def begin(self, name: str, folder: Path, recipe: Mapping[str, Any], first_step: int) -> None:
        _import("tensorboard", "tensorboard")
        self.writer = _import("torch.utils.tensorboard", "tensorboard").SummaryWriter(
            str(folder / "tensorboard"), purge_step=first_step if first_step > 1 else 0
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def end(self) -> None:
        self.writer.close()


class Online:
    """Weights & Biases and trackio, whose functions have the same names. WANDB_MODE=offline keeps it local."""

    def __init__(self, module: str) -> None:
        self.module = _import(module, module)
        self.name = module

    def begin(self, name: str, folder: Path, recipe: Mapping[str, Any], first_step: int) -> None:
        # A run that goes on is the same run; one of the same name in another folder is not.
        own = f"{name}-{digest_bytes(str(folder.resolve()).encode())[-8:]}"
        more = {"name": name, "dir": str(folder), "id": own} if self.name == "wandb" else {"name": own}
        self.module.init(project="loom", config=dict(recipe), resume="allow", **more)
        if self.name == "wandb":  # its own steps only rise: it would drop those that a run takes again
            self.module.define_metric(STEP)
            self.module.define_metric("*", step_metric=STEP)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        if self.name == "wandb":
            self.module.log({**values, STEP: step})
        else:
            self.module.log(dict(values), step=step)

    def end(self) -> None:
        self.module.finish()


class Track(Callback):
    """A tracker as a callback of the training loop."""

    def __init__(self, tracker: Tracker) -> None:
        self.tracker = tracker

    def on_start(self, run: RunInfo) -> None:
        self.tracker.begin(run.out.name, run.out, asdict(run.config), run.first_step)

    def on_step(self, record: Record) -> None:
        numbers = {k: float(v) for k, v in record.items() if k != "step" and not isinstance(v, str)}
        self.tracker.log(int(record["step"]), numbers)

    def on_eval(self, step: int, metrics: Mapping[str, float]) -> None:
        self.tracker.log(step, {f"eval/{name}": value for name, value in metrics.items()})

    def on_finish(self, last_checkpoint: Path) -> None:
        self.tracker.end()


def trackers(names: Sequence[str]) -> list[Callback]:
    """Of a recipe's `train.track`. Raises `LoomError` naming the extra that is missing."""
    made: list[Callback] = []
    for name in names:
        match name:
            case "tensorboard":
                _import("tensorboard", "tensorboard")
                made.append(Track(TensorBoard()))
            case _:
                made.append(Track(Online(name)))
    return made
