"""A MODEL by its path: a run folder (its newest whole checkpoint), a checkpoint, a Hugging Face folder."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from loom.model.huggingface import read_folder
from loom.model.transformer import Transformer
from loom.train.checkpoint import load_model
from loom.train.metadata import check_metadata
from loom.train.start import find_model


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


def chat_template(path: Path) -> str | None:
    """The template of the conversations a model was tuned on, found by walking its manifests; else None.

    A Hugging Face folder says it itself.
    """
    config = path / "tokenizer_config.json"
    if config.is_file():
        template = json.loads(config.read_text(encoding="utf-8")).get("chat_template")
        return template if isinstance(template, str) else None
    seen: set[Path] = set()
    layer = [path]
    while layer:
        following: list[Path] = []
        for folder in layer:
            manifest = folder / "manifest.json"
            if folder.resolve() in seen or not manifest.is_file():
                continue
            seen.add(folder.resolve())
            body = json.loads(manifest.read_bytes())
            if isinstance(body.get("chat"), dict) and isinstance(body["chat"].get("template"), str):
                return str(body["chat"]["template"])
            inputs = body.get("inputs")
            if isinstance(inputs, list):
                following += [folder / item["path"] for item in inputs]
        layer = following
    return None
