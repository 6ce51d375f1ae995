"""A training recipe on this machine's console: document tables, progress line, resolved recipe.

`loom.train` itself needs torch and numpy only; what it must not import is brought to it from here.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from loom.artifact import MANIFEST, atomic_write
from loom.console import Progress, console
from loom.errors import LoomError
from loom.recipe import dump_yaml
from loom.recipe import load as load_recipe
from loom.road.mirror import Mirror, fetch_newest, target
from loom.road.tracking import trackers
from loom.tokens.shards import open_tokens
from loom.trace.reading import document_table
from loom.train.callbacks import Callback, Evaluate, Record, RunInfo
from loom.train.config import ParallelConfig, RunConfig, TrainConfig
from loom.train.loop import train

SAME_RESULT = (
    "micro_batch", "micro_batch_pairs", "compile", "recompute", "activation_budget", "asynchronous", "rehearse",
    "threads",
)  # fmt: skip
"""Keys of `train` that say how the work is done, as all of `parallel` does; a run's result is theirs to rounding."""


def run_training(
    config: RunConfig,
    out: Path,
    *,
    evaluate: Evaluate | None = None,
    callbacks: tuple[Callback, ...] = (),
    name: str = "train",
) -> Path:
    """Train `config` into the run folder `out`, going on where it stopped; the last checkpoint's folder.

    A finished run says so, and goes on where `train.steps` grew. Raises `LoomError` where `out` holds a finished
    run of another recipe (`SAME_RESULT` aside), or one whose learning rates would have been others with more steps.
    """
    written = out / "recipe.yaml"
    if (out / MANIFEST).exists() and written.is_file():
        _check_finished(out, written, config)
    documents = None
    if config.train.objective != "lm":
        folder = config.data.sft if config.train.objective == "sft" else config.data.pairs
        if folder is None:
            key = "data.sft" if config.train.objective == "sft" else "data.pairs"
            raise LoomError(f"{key} is missing: name a folder of `loom prepare {config.train.objective}`.")
        documents = document_table(open_tokens(Path(folder)))
    mirrors: tuple[Callback, ...] = ()
    if config.train.mirror is not None:
        url = target(config.train.mirror)
        mirrors = (Mirror(url),)
        if os.environ.get("RANK", "0") == "0":  # the other ranks wait for the first one's word
            for said in fetch_newest(url, out):
                console.say(f"{out.name}: {said}")
    begun = _Begun()
    with console.progress(name, total=config.train.steps) as progress:
        last = train(
            config,
            out,
            documents=documents,
            callbacks=(
                begun,
                _Recipe(written, config),
                _Line(progress),
                *trackers(config.train.track),
                *mirrors,
                *callbacks,
            ),
            evaluate=evaluate,
        )
    if not begun.there and os.environ.get("RANK", "0") == "0":
        console.say(
            f"{out.name}: finished at step {config.train.steps:,} before, and its last checkpoint is whole; nothing "
            f"was left to do."
        )
    return last


def _check_finished(out: Path, written: Path, config: RunConfig) -> None:
    """Raise `LoomError` unless the finished run in `out` is of this recipe, or could have had its larger train.steps.

    A key that did not exist then had its usual value.
    """
    try:
        before = load_recipe(written, RunConfig)
    except LoomError:
        before = None
    longer = before is not None and config.train.steps > before.train.steps
    if before is not None and longer:
        before = replace(before, train=replace(before.train, steps=config.train.steps))
    if before is None or _result(before) != _result(config):
        raise LoomError(
            f"{out} holds a finished run of another recipe ({written}). Choose another --out, or remove it."
        )
    fixed = config.schedule.kind == "constant" or config.schedule.length is not None
    if longer and (config.train.anneal is not None or not fixed):
        raise LoomError(
            f"{out} holds a finished run, whose learning rate fell to its last step; towards train.steps "
            f"{config.train.steps:,} it would have been another from early on. Go on from it in another --out with "
            f"train.init={out}. (A schedule with schedule.length, or of the kind constant, can be made longer.)"
        )


def _result(config: RunConfig) -> RunConfig:
    """The recipe with `SAME_RESULT` at their usual values."""
    train = {name: getattr(TrainConfig(), name) for name in SAME_RESULT}
    return replace(config, train=replace(config.train, **train), parallel=ParallelConfig())


class _Begun(Callback):
    """Whether there was anything to train; of a finished run no callback is told."""

    there = False

    def on_start(self, run: RunInfo) -> None:
        self.there = True


class _Recipe(Callback):
    """The resolved recipe, written once the folder is this run's: one that is refused changes nothing."""

    def __init__(self, path: Path, config: RunConfig) -> None:
        self.path, self.text = path, dump_yaml(config)

    def on_start(self, run: RunInfo) -> None:
        with atomic_write(self.path) as stream:
            stream.write(self.text.encode())


class _Line(Callback):
    """The live line: loss, learning rate, gradient norm, speed, waiting for data, the last evaluation."""

    def __init__(self, progress: Progress) -> None:
        self.progress, self.evaluated = progress, ""

    def on_start(self, run: RunInfo) -> None:
        for note in run.notes:
            console.say(f"{run.out.name}: {note}")
        if run.utilisation:
            console.say(f"{run.out.name}: {run.utilisation}")
        self.progress.update(run.first_step - 1)

    def on_step(self, record: Record) -> None:
        parts = [f"loss {record['loss']:.3f}", f"lr {record['lr']:.2g}", f"|g| {record['grad_norm']:.2g}"]
        if "reward_accuracy" in record:
            parts.append(f"accuracy {record['reward_accuracy']:.2f}")
        parts.append(f"{record['tokens_per_second']:,.0f} tokens/s")
        parts.append(f"MFU {float(record['mfu']):.0%}" if "mfu" in record else "MFU n/a")
        parts.append(f"waits {float(record['data_wait']):.1%}")
        if self.evaluated:
            parts.append(self.evaluated)
        self.progress.update(float(record["step"]), "  ".join(parts))

    def on_eval(self, step: int, metrics: Mapping[str, float]) -> None:
        self.evaluated = "  ".join(f"{name} {value:.3f}" for name, value in list(metrics.items())[:2])
        self.progress.update(step, self.progress.note)
