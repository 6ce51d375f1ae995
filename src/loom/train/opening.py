"""A MODEL by its path: a run folder (its newest whole checkpoint), a checkpoint, a Hugging Face folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from loom.model.huggingface import read_folder
from loom.model.transformer import Transformer
from loom.train.checkpoint import load_model
from loom.train.initial import find_model
from loom.train.metadata import check_metadata


@dataclass(frozen=True)
class ModelFolder:
    """Where a model lies and what it is stored as."""

    path: Path
    kind: Literal["checkpoint", "huggingface", "olmo"]  # the last is to be imported first


def model_folder(path: Path) -> ModelFolder:
    """What lies at `path`. Raises `LoomError` if it is no model, or a checkpoint that could run code."""
    found = find_model(path)
    if (found / "config.json").is_file():
        return ModelFolder(found, "huggingface")
    check_metadata(found)
    return ModelFolder(found, "checkpoint")


def open_model(path: Path, dtype: torch.dtype | None = None) -> tuple[Transformer, ModelFolder]:
    """The model at `path` on the CPU in evaluation mode; weights in `dtype`, else as they are stored.

    Raises `LoomError` for what is no model, is damaged, or lacks weights.
    """
    found = model_folder(path)
    if found.kind == "checkpoint":
        return load_model(found.path, dtype)[0], found
    config, weights = read_folder(found.path)
    with torch.device("meta"):
        model = Transformer(config)
    own = {name: tensor if dtype is None else tensor.to(dtype) for name, tensor in weights.items()}
    model.load_state_dict(own, assign=True)
    return model.eval(), found
