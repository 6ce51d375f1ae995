"""Writing a run's checkpoints beside training, and keeping those that are to be kept."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch.distributed.checkpoint import state_dict_saver
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

from loom.errors import LoomError
from loom.train.checkpoint import (
    MANIFEST,
    ModelCard,
    TrainState,
    checkpoints,
    describe,
    finish,
    prepare_folder,
    step_folder,
    step_of,
    writer,
)
from loom.train.parallel import World


class Saver:
    """Writes checkpoints of one run, beside training if asked, and keeps what is to be kept."""

    def __init__(
        self,
        run: Path,
        world: World,
        card: ModelCard,
        tokenizer: Path,
        inputs: Sequence[Mapping[str, str]],
        recipe: Any,
        *,
        asynchronous: bool,
        keep: int,
        keep_every: int | None,
        keep_steps: Sequence[int],
    ) -> None:
        self.run, self.world, self.card, self.tokenizer = run, world, card, tokenizer
        self.inputs, self.recipe, self.asynchronous = inputs, recipe, asynchronous
        self.keep, self.keep_every, self.keep_steps = keep, keep_every, set(keep_steps)
        self.group = dist.new_group(backend="gloo") if world.size > 1 else None
        self.thread: threading.Thread | None = None
        self.error: BaseException | None = None
        self.finished: list[Path] = []

    def save(self, state: TrainState, tensors: dict[str, Any]) -> None:
        """Take a copy of `tensors` and write it; returns at once when asynchronous."""
        self.wait()
        folder = step_folder(self.run, state.step)
        if not self.asynchronous:
            self._guarded(folder, state, tensors)
            self._raise()
            return
        copy = DefaultStager(StagingOptions(False, False, False, False)).stage(tensors)
        self.thread = threading.Thread(
            target=self._guarded, args=(folder, state, copy), name="loom-checkpoint"
        )
        self.thread.start()

    def wait(self) -> None:
        """Until nothing is being written. Raises what went wrong; the checkpoint before is untouched."""
        self.join()
        self._raise()

    def join(self) -> None:
        if self.thread is not None:
            self.thread.join()
            self.thread = None

    def collect(self) -> list[Path]:
        """Checkpoints finished since the last call; raises what went wrong meanwhile."""
        self._raise()
        done, self.finished = self.finished, []
        return done

    def _raise(self) -> None:
        if self.error is None:
            return
        error, self.error = self.error, None
        if isinstance(error, LoomError):
            raise error
        raise LoomError(
            f"The checkpoint could not be written below {self.run} ({reason(error, self.run)}). The one before it "
            f"is whole: make room or mend the folder, and run the same command again."
        ) from error

    def _guarded(self, folder: Path, state: TrainState, tensors: Any) -> None:
        try:
            self._write(folder, state, tensors)
        except BaseException as error:
            self.error = error

    def _write(self, folder: Path, state: TrainState, tensors: Any) -> None:
        if self.world.first:
            prepare_folder(folder)
        if self.group is not None:
            dist.barrier(self.group)
        state_dict_saver.save(
            tensors, storage_writer=writer(folder), process_group=self.group, no_dist=self.world.size == 1
        )
        mine = [path.name for path in folder.glob(f"__{self.world.rank}_*.distcp")]
        shards = [item for part in self.world.gather(describe(folder, mine), self.group) for item in part]
        if self.world.first:
            finish(folder, self.card, self.tokenizer, state, self.inputs, self.recipe, shards)
            self._retain(state.step)
            self.finished.append(folder)

    def _retain(self, saved: int) -> None:
        if self.keep == 0:
            return
        # Those past what was just saved are damaged, or the run would have gone on from them: they stand for nothing.
        for folder in [folder for folder in checkpoints(self.run) if step_of(folder) <= saved][: -self.keep]:
            step = step_of(folder)
            if step in self.keep_steps or (self.keep_every and step % self.keep_every == 0):
                continue
            (folder / MANIFEST).unlink()
            shutil.rmtree(folder)


def reason(error: BaseException, folder: Path) -> str:
    """Why writing below `folder` failed, in a line, and how much room there is."""
    failures = getattr(error, "failures", None)  # dcp's exception keeps one a rank
    if isinstance(failures, dict) and failures:
        first = next(iter(failures.values()))
        return reason(first[0] if isinstance(first, tuple) else first, folder)
    said = (str(error) or type(error).__name__).splitlines()[0]
    if "inline_container" in said:
        said = "torch's writer stopped short, as it does when a disk is full"
    return f"{said}; {shutil.disk_usage(folder).free / 1e6:,.0f} MB are free there"
