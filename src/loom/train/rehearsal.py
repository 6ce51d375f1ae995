"""Before step 1: a micro-batch forward and backward, and a checkpoint written, read back and compared.

What would fail after an hour (too little memory, a disk that cannot be written, weights that come back
different) fails now. Nothing of it is left: the run's first step is what it would have been.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.tensor import DTensor

from loom.errors import LoomError
from loom.train.checkpoint import training_state
from loom.train.loader import collate_step
from loom.train.saving import reason
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
    fresh = not run.optimizer.state
    _round_trip(run, out / ".rehearsal", fresh)
    if fresh:  # asking for its state made the optimizer count a step, and the moments were stand-ins
        run.optimizer.state.clear()


def _round_trip(run: Run, folder: Path, fresh: bool) -> None:
    alone = run.world.size == 1
    if run.world.first:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    run.world.barrier()
    state = training_state(run.model, run.optimizer, run.guard)
    model, moments = state["model"], state["optimizer"]["state"]
    if fresh:  # zeros would come back from a disk that holds nothing
        for name, values in moments.items():
            for value in values.values():
                if value.shape == model[name].shape:
                    value.copy_(model[name].detach())
    try:
        state_dict_saver.save(state, storage_writer=FileSystemWriter(folder), no_dist=alone)
        for part in _parts(model, moments):
            found = _map(part, lambda value: torch.full_like(value, torch.nan))
            state_dict_loader.load(found, storage_reader=FileSystemReader(folder), no_dist=alone)
            _compare(found, part, folder.parent)
    except LoomError:
        raise
    except (Exception, CheckpointException) as error:  # torch's own is no Exception
        raise LoomError(
            f"A checkpoint could not be written to {folder.parent} and read back ({reason(error, folder.parent)}): "
            f"make room there, or choose another --out. No step was taken."
        ) from error
    finally:
        run.world.barrier()
        if run.world.first:
            shutil.rmtree(folder, ignore_errors=True)


def _parts(model: dict[str, Tensor], moments: dict[str, dict[str, Tensor]]) -> Iterator[dict[str, Any]]:
    """Weights, then each of Adam's moments: a second copy of one at a time."""
    yield {"model": {name: value.detach() for name, value in model.items() if value.is_floating_point()}}
    for key in sorted({key for values in moments.values() for key in values}):
        yield {"optimizer": {"state": {name: {key: values[key]} for name, values in moments.items()}}}


def _map(tree: dict[str, Any], change: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    return {
        name: _map(value, change) if isinstance(value, dict) else change(value)
        for name, value in tree.items()
    }


def _compare(found: dict[str, Any], written: dict[str, Any], out: Path, where: str = "") -> None:
    for name, value in written.items():
        if isinstance(value, dict):
            _compare(found[name], value, out, f"{where}{name}.")
        elif not torch.equal(_local(found[name]), _local(value)):
            raise LoomError(
                f"{where}{name} came back from {out} with other values than were written: that disk cannot be "
                f"trusted. No step was taken."
            )


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
