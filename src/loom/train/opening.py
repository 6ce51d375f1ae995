"""A MODEL by its path: a run folder (its newest whole checkpoint), a checkpoint, a Hugging Face folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from loom.errors import LoomError
from loom.model.huggingface import read_folder
from loom.model.transformer import Transformer
from loom.train.checkpoint import load_model, newest_good, step_of


@dataclass(frozen=True)
class ModelFolder:
    """Where a model lies. `damaged` says which newer checkpoints of the run were passed over, and why."""

    path: Path
    kind: Literal["checkpoint", "huggingface"]
    step: int | None = None
    damaged: tuple[str, ...] = ()


def find_model(path: Path) -> ModelFolder:
    """What lies at `path`. Raises `LoomError` if it is no model."""
    if (path / "config.json").is_file():
        return ModelFolder(path, "huggingface")
    if (path / "model.json").is_file():
        step = step_of(path.resolve())
        return ModelFolder(path, "checkpoint", step if step >= 0 else 0)
    if (path / "checkpoints").is_dir():
        newest, damaged = newest_good(path)
        if newest is not None:
            return ModelFolder(newest, "checkpoint", step_of(newest), tuple(damaged))
        why = f" {damaged[0]}" if damaged else ""
        raise LoomError(f"The run {path} has no whole checkpoint yet.{why} Train it further: loom train.")
    what = "is not there" if not path.exists() else "holds none of these"
    raise LoomError(
        f"{path} {what}: a model is a run folder, a checkpoint (checkpoints/step-...), or a Hugging Face "
        f"folder (config.json and *.safetensors)."
    )


def open_model(path: Path, dtype: torch.dtype | None = None) -> tuple[Transformer, ModelFolder]:
    """The model at `path` on the CPU in evaluation mode; weights in `dtype`, else as they are stored.

    Raises `LoomError` for what is no model, is damaged, or lacks weights.
    """
    found = find_model(path)
    if found.kind == "checkpoint":
        model, _ = load_model(found.path, dtype)
        return model, found
    config, weights = read_folder(found.path)
    with torch.device("meta"):
        model = Transformer(config)
    model.load_state_dict(
        {name: t if dtype is None else t.to(dtype) for name, t in weights.items()}, assign=True
    )
    return model.eval(), found
