"""A model's weights one at a time, whatever they are stored in: what exports and checks read from."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from loom.artifact import MANIFEST, Input, digest_file, digest_json, relative
from loom.errors import LoomError
from loom.model.config import ModelConfig
from loom.model.huggingface import config_from_huggingface, parameter_shapes, read_config, weight_map
from loom.release.safetensors import Entry, Folder
from loom.train.checkpoint import check, read_card
from loom.train.lora import IN, OUT, SCALE, merge
from loom.train.opening import ModelFolder, model_folder


@dataclass
class Source:
    """Weights by Loom's names. `entries` gives type and shape; `read` gives a tensor of its own memory."""

    folder: ModelFolder
    config: ModelConfig
    entries: Mapping[str, Entry]
    tokenizer: Path
    _read: Any = field(repr=False)

    def read(self, name: str) -> Tensor:
        tensor: Tensor = self._read([name])[name]
        return tensor

    def read_all(self, names: Iterable[str]) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = self._read(list(names))
        return tensors

    @property
    def dtype(self) -> torch.dtype:
        """The one type of all weights. Raises `LoomError` where they are mixed."""
        found = {entry.dtype for entry in self.entries.values()}
        if len(found) > 1:
            raise LoomError(
                f"{self.folder.path} mixes weights of several types "
                f"({', '.join(sorted(map(type_name, found)))}); give --dtype to choose one."
            )
        return found.pop()


def type_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def open_source(path: Path) -> Source:
    """Open MODEL. Raises `LoomError` for no model, a damaged one, a tensor missing or too many."""
    found = model_folder(path)
    return _huggingface(found) if found.kind == "huggingface" else _checkpoint(found)


def _huggingface(found: ModelFolder) -> Source:
    config, stored = config_from_huggingface(read_config(found.path)), Folder(found.path)
    names = weight_map(config)
    present = dict(stored.entries)
    if config.tied:
        present.pop("lm_head.weight", None)
    named = {ours: present.pop(theirs) for ours, theirs in names.items() if theirs in present}
    _complete(found.path, names, named, present, {ours: entry.shape for ours, entry in named.items()}, config)

    def read(wanted: list[str]) -> dict[str, Tensor]:
        return {ours: stored.read(names[ours]) for ours in wanted}

    return Source(found, config, named, found.path / "tokenizer.json", read)


def _checkpoint(found: ModelFolder) -> Source:
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata
    from torch.distributed.checkpoint.state_dict_loader import load

    check(found.path)
    card = read_card(found.path)
    reader = FileSystemReader(found.path)
    stored = {
        name.removeprefix("model."): Entry(name, item.properties.dtype, tuple(item.size))
        for name, item in reader.read_metadata().state_dict_metadata.items()
        if name.startswith("model.") and isinstance(item, TensorStorageMetadata)
    }
    added = {name for name in stored if name.endswith((IN, OUT, SCALE))}
    names = {ours: ours for ours in weight_map(card.model)}
    plain = {name: entry for name, entry in stored.items() if name not in added}
    extra = {name: entry for name, entry in plain.items() if name not in names}
    shapes = {name: entry.shape for name, entry in plain.items()}
    _complete(found.path, names, plain, extra, shapes, card.model)

    def read(wanted: list[str]) -> dict[str, Tensor]:
        stems = {name.removesuffix(".weight") for name in wanted}
        needed = [*wanted, *(name for name in added if name[: name.rindex(".")] in stems)]
        tensors = {name: torch.empty(stored[name].shape, dtype=stored[name].dtype) for name in needed}
        with warnings.catch_warnings():  # it warns that there is one process, which is meant
            warnings.simplefilter("ignore")
            load({"model": tensors}, storage_reader=FileSystemReader(found.path), no_dist=True)
        return merge(tensors)

    return Source(
        found, card.model, {name: plain[name] for name in names}, found.path / "tokenizer.json", read
    )


def _complete(
    path: Path,
    names: Mapping[str, str],
    found: Mapping[str, Entry],
    extra: Mapping[str, Entry],
    shapes: Mapping[str, tuple[int, ...]],
    config: ModelConfig,
) -> None:
    """Every tensor of the model is there, none besides, each of its shape."""
    if missing := [theirs for ours, theirs in names.items() if ours not in found]:
        near = f" It has {min(extra)}, which this model has no place for." if extra else ""
        raise LoomError(
            f"{path} has no tensor {missing[0]}, which its configuration asks for "
            f"({len(missing)} of {len(names)} are missing).{near}"
        )
    if extra:
        raise LoomError(
            f"{path} has the tensor {min(extra)}, which has no place in the model its configuration "
            f"describes ({len(extra)} such). Is the configuration another model's?"
        )
    for name, shape in parameter_shapes(config).items():
        if shapes[name] != shape:
            raise LoomError(
                f"{path}: {names[name]} has the shape {shapes[name]}; the configuration says {shape}."
            )


def as_input(found: ModelFolder, at: Path) -> Input:
    """A model as what an artifact at `at` was made from: its manifest's digest, or that of its files."""
    manifest = found.path / MANIFEST
    if manifest.is_file():
        return Input(relative(found.path, at), digest_json(json.loads(manifest.read_bytes())))
    kinds = (".safetensors", ".json", ".jinja")
    files = sorted(p for p in found.path.iterdir() if p.suffix in kinds and p.is_file())
    return Input(relative(found.path, at), digest_json([[p.name, digest_file(p)] for p in files]))
