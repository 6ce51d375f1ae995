"""Before step 1: a micro-batch forward and backward, and a checkpoint written, read back and compared.

What would fail after an hour (too little memory, a disk that cannot be written, weights that come back
different) fails now. Nothing of it is left: the run's first step is what it would have been.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.tensor import DTensor

from loom.errors import LoomError
from loom.train.checkpoint import reason, training_state
from loom.train.loader import collate_step
from loom.train.start import Run


def rehearse(run: Run, out: Path, micro_batch: int) -> None:
    """Raises `LoomError` naming what this machine cannot do. All ranks take part."""
    readers = run.context.reader, run.context.readers
    batch = collate_step(run.data, run.stages, 1, *readers, micro_batch)[0].to(run.world.device)
    try:
        total, _ = run.objective(run.model, run.context.part(batch))
        total.backward()  # type: ignore[no-untyped-call]
    except torch.OutOfMemoryError as error:
        raise LoomError(
            f"A micro-batch of {micro_batch} does not fit into this device's memory: lower train.micro_batch, or set "
            f"train.recompute=selective or full. ({str(error).splitlines()[0]})"
        ) from None
    run.optimizer.zero_grad(set_to_none=True)
    _round_trip(run, out / ".rehearsal")
    # Asking for its state made the optimizer count a step.
    run.optimizer.state.clear()


def _round_trip(run: Run, folder: Path) -> None:
    alone = run.world.size == 1
    if run.world.first:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    run.world.barrier()
    state = training_state(run.model, run.optimizer, run.guard)
    try:
        state_dict_saver.save(state, storage_writer=FileSystemWriter(folder), no_dist=alone)
        found = {name: torch.zeros_like(value) for name, value in state["model"].items()}
        state_dict_loader.load({"model": found}, storage_reader=FileSystemReader(folder), no_dist=alone)
    except (Exception, CheckpointException) as error:  # torch's own is no Exception
        raise LoomError(
            f"A checkpoint could not be written to {folder.parent} and read back ({reason(error, folder.parent)}): "
            f"make room there, or choose another --out. No step was taken."
        ) from error
    finally:
        run.world.barrier()
        if run.world.first:
            shutil.rmtree(folder, ignore_errors=True)
    for name, value in state["model"].items():
        if not torch.equal(_local(found[name]), _local(value)):
            raise LoomError(
                f"{name} came back from {folder.parent} with other values than were written: that disk cannot be "
                f"trusted. No step was taken."
            )


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
