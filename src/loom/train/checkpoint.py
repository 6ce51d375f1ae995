"""Checkpoints: one folder a step, in torch's distributed format, with the manifest written last.

    checkpoints/step-00001000/   .metadata, __R_N.distcp (model, optimizer, guard), model.json,
                                 tokenizer.json, state.json, manifest.json

Without `manifest.json` a folder is not a checkpoint; with it, it is a model by itself.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from loom.errors import LoomError
from loom.model.config import ModelConfig
from loom.model.transformer import Transformer
from loom.tokens.digest import digest_file, digest_json
from loom.tokens.remote import address
from loom.tokens.shards import SpecialToken
from loom.train.lora import merge
from loom.train.metadata import check_metadata
from loom.train.optimizer import StepGuard
from loom.train.parallel import World, load_full
from loom.version import VERSION

# One process alone saves without a process group on purpose.
warnings.filterwarnings("ignore", message="torch.distributed is disabled")

MANIFEST = "manifest.json"
NAME = re.compile(r"step-(\d{8,})$")


@dataclass(frozen=True)
class ModelCard:
    """`model.json`: what is needed to use the weights besides the tokenizer file."""

    model: ModelConfig
    eos: SpecialToken
    pad: SpecialToken
    entries: int
    """The tokenizer's vocabulary; rows above are never tokens."""

    def to_json(self) -> dict[str, Any]:
        return {
            "model": self.model.to_dict(),
            "eos": asdict(self.eos),
            "pad": asdict(self.pad),
            "entries": self.entries,
        }


@dataclass(frozen=True)
class TrainState:
    """`state.json`: where the run stands. Stages are (step, instances before it, batch) as they were used."""

    step: int
    instances_seen: int
    tokens_seen: int
    fingerprint: str
    seed: int
    sequence_length: int
    stages: list[list[int]] = field(default_factory=list)
    learning_rate: float | None = None
    """Of the last step; None where nothing was trained."""
    sources: list[str] = field(default_factory=list)
    """The token folders' digests in the order's numbering; none of a checkpoint from before they were kept."""


def step_folder(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step-{step:08d}"


def step_of(folder: Path) -> int:
    match = NAME.search(folder.name)
    return int(match[1]) if match else -1


def write_json(path: Path, value: Any) -> None:
    """Through a temporary name, so that the file is whole or not there."""
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "w", encoding="utf-8") as stream:
        stream.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, path)


def write_manifest(
    folder: Path,
    kind: str,
    recipe: Any,
    inputs: Sequence[Mapping[str, str]],
    outputs: Sequence[Mapping[str, Any]],
    counters: Mapping[str, Any],
    facts: Mapping[str, Any] | None = None,
) -> None:
    """The folder's last file. Input paths become relative to the folder; addresses stay."""

    def named(path: str) -> str:
        relative = os.path.relpath(Path(path).resolve(), folder.resolve())
        return address(path) or Path(relative).as_posix()

    listed = [{"path": named(item["path"]), "digest": item["digest"]} for item in inputs]
    body = {
        "kind": kind,
        "loom": VERSION,
        "recipe": recipe,
        "inputs": sorted(listed, key=lambda item: item["path"]),
        "outputs": sorted(outputs, key=lambda item: str(item["path"])),
        "counters": dict(counters),
        **(facts or {}),
    }
    write_json(folder / MANIFEST, body)


def describe(folder: Path, names: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {
            "path": name,
            "bytes": (folder / name).stat().st_size,
            "rows": 0,
            "digest": digest_file(folder / name),
        }
        for name in sorted(names)
    ]


def reference(folder: Path) -> dict[str, str]:
    """A finished checkpoint as another's input: its path and its manifest's digest."""
    return {"path": str(folder), "digest": digest_json(json.loads((folder / MANIFEST).read_bytes()))}


def check(folder: Path) -> None:
    """Raise `LoomError` naming what is missing, cut short or changed in a checkpoint."""
    try:
        body = json.loads((folder / MANIFEST).read_bytes())
        outputs = body["outputs"]
    except FileNotFoundError:
        raise LoomError(
            f"{folder} has no {MANIFEST}: it was never finished, so it is no checkpoint."
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LoomError(
            f"{folder / MANIFEST} cannot be read ({error}); use the checkpoint before it."
        ) from None
    for output in outputs:
        file = folder / output["path"]
        size = file.stat().st_size if file.is_file() else -1
        if size != output["bytes"]:
            what = "is missing" if size < 0 else f"has {size:,} bytes instead of {output['bytes']:,}"
            raise LoomError(f"{file} {what}: this checkpoint is damaged; use the one before it.")
        found = digest_file(file, output["digest"])
        if found is not None and found != output["digest"]:
            raise LoomError(
                f"{file} has changed since it was saved: this checkpoint is damaged; use the one before it."
            )


def checkpoints(run: Path) -> list[Path]:
    """Finished checkpoints of a run, oldest first."""
    folders = [path.parent for path in (run / "checkpoints").glob(f"step-*/{MANIFEST}")]
    return sorted((folder for folder in folders if step_of(folder) >= 0), key=step_of)


def newest_good(run: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that is whole, and a sentence about each newer one that is not, half-written ones too."""
    damaged: list[str] = []
    begun = [folder for folder in (run / "checkpoints").glob("step-*") if step_of(folder) >= 0]
    for folder in sorted(begun, key=step_of, reverse=True):
        try:
            check(folder)
        except LoomError as error:
            damaged.append(str(error))
            continue
        return folder, damaged
    return None, damaged


def read_card(folder: Path) -> ModelCard:
    try:
        values = json.loads((folder / "model.json").read_bytes())
        return ModelCard(
            ModelConfig.from_dict(values["model"], str(folder / "model.json")),
            SpecialToken(**values["eos"]),
            SpecialToken(**values["pad"]),
            int(values["entries"]),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LoomError(
            f"{folder / 'model.json'} cannot be read ({error}): it is no checkpoint of Loom's."
        ) from None


def read_state(folder: Path) -> TrainState:
    try:
        return TrainState(**json.loads((folder / "state.json").read_bytes()))
    except (OSError, ValueError, TypeError) as error:
        raise LoomError(
            f"{folder / 'state.json'} cannot be read ({error}): it is no checkpoint of Loom's."
        ) from None


def training_state(model: nn.Module, optimizer: torch.optim.Optimizer, guard: StepGuard) -> dict[str, Any]:
    return {
        "model": get_model_state_dict(model),
        "optimizer": get_optimizer_state_dict(model, optimizer),
        "guard": guard.state_dict(),
    }


def load_training(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, guard: StepGuard | None, world: World
) -> None:
    """Restore in place, whatever the number of ranks or the sharding that wrote it; no guard: a new one's history.

    Tensors only: the recipe's learning rate and decay hold, not those saved. Raises `LoomError` for a
    checkpoint that holds a model and no more.
    """
    names = _contents(folder)
    if not any(name.startswith("optimizer.state.") for name in names):
        raise LoomError(
            f"{folder} holds a model without its optimizer, as imports and averages do: start from it with train.init."
        )
    own = optimizer.state_dict()["param_groups"]
    state: dict[str, Any] = {
        "model": get_model_state_dict(model), "optimizer": get_optimizer_state_dict(model, optimizer)
    }  # fmt: skip
    wanted = {"model": state["model"], "optimizer": {"state": state["optimizer"]["state"]}}
    if guard is not None:
        wanted["guard"] = guard.state_dict()
    state_dict_loader.load(wanted, storage_reader=FileSystemReader(folder), no_dist=world.size == 1)
    set_model_state_dict(model, state["model"])
    set_optimizer_state_dict(model, optimizer, state["optimizer"])
    for group, before in zip(optimizer.param_groups, own, strict=True):
        group.update({key: value for key, value in before.items() if key != "params"})


def _contents(folder: Path) -> dict[str, TensorStorageMetadata]:
    """The tensors that a checkpoint holds, by name."""
    check_metadata(folder)
    metadata = FileSystemReader(folder).read_metadata().state_dict_metadata
    return {name: item for name, item in metadata.items() if isinstance(item, TensorStorageMetadata)}


def read_weights(folder: Path) -> dict[str, Tensor]:
    """A checkpoint's model weights, whole and on the CPU, in the type they were saved in, adapters merged."""
    weights = {
        name.removeprefix("model."): torch.empty(item.size, dtype=item.properties.dtype)
        for name, item in _contents(folder).items()
        if name.startswith("model.")
    }
    state_dict_loader.load({"model": weights}, storage_reader=FileSystemReader(folder), no_dist=True)
    return merge(weights)


def load_weights(folder: Path, model: Transformer, world: World) -> None:
    """A checkpoint's weights into a model that may be sharded: each rank reads its own rows.

    Where the checkpoint has adapters, which are merged, each rank reads all. The model's own adapters are
    left alone (`loom.train.lora.start_adapters`). Raises `LoomError` for weights of another shape.
    """
    saved = {name.removeprefix("model."): item for name, item in _contents(folder).items()}
    if any(".lora_" in name for name in saved):
        load_full(model, read_weights(folder))
        return
    own = {name: p.data for name, p in model.named_parameters() if ".lora_" not in name}
    if any(name not in saved or saved[name].size != own[name].shape for name in own):
        raise LoomError(f"{folder}: the weights are not those that model.json describes.")
    state_dict_loader.load({"model": own}, storage_reader=FileSystemReader(folder), no_dist=world.size == 1)


def load_model(folder: Path, dtype: torch.dtype | None = None) -> tuple[Transformer, ModelCard]:
    """A checkpoint as a model in evaluation mode on the CPU. Raises `LoomError` for a damaged one."""
    check(folder)
    card = read_card(folder)
    weights = read_weights(folder)
    with torch.device("meta"):
        model = Transformer(card.model)
    if dtype is not None:
        weights = {name: tensor.to(dtype) for name, tensor in weights.items()}
    expected = {name: tuple(p.shape) for name, p in model.named_parameters()}
    if expected != {name: tuple(t.shape) for name, t in weights.items()}:
        raise LoomError(f"{folder}: the weights are not those that model.json describes.")
    model.load_state_dict(weights, assign=True)
    return model.eval(), card


def save_model(
    folder: Path,
    model: Transformer,
    card: ModelCard,
    tokenizer: Path,
    inputs: Sequence[Mapping[str, str]] = (),
    recipe: Any = None,
    seed: int = 0,
    facts: Mapping[str, Any] | None = None,
) -> Path:
    """Write a checkpoint at step 0 that holds a model only (imports, averages); `facts` go to its manifest."""
    prepare_folder(folder)
    state_dict_saver.save({"model": model.state_dict()}, storage_writer=writer(folder), no_dist=True)
    state = TrainState(0, 0, 0, "", seed, card.model.context_length)
    finish(folder, card, tokenizer, state, inputs, recipe, [], facts)
    return folder


def prepare_folder(folder: Path) -> None:
    """Empty, with whatever an unfinished save left there gone."""
    if folder.exists():
        (folder / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(folder)
    folder.mkdir(parents=True)


class _Writer(FileSystemWriter):
    """torch's writer, without the folder's name and the random id it adds: equal states are equal bytes."""

    def storage_meta(self) -> StorageMeta:
        return StorageMeta()


def writer(folder: Path) -> FileSystemWriter:
    """For `torch.distributed.checkpoint`; one file a rank."""
    return _Writer(folder, single_file_per_rank=True, overwrite=True)


def finish(
    folder: Path,
    card: ModelCard,
    tokenizer: Path,
    state: TrainState,
    inputs: Sequence[Mapping[str, str]],
    recipe: Any,
    shards: Sequence[Mapping[str, Any]],
    facts: Mapping[str, Any] | None = None,
) -> None:
    """The small files, then the manifest. `shards` describe the .distcp files already digested by ranks."""
    write_json(folder / "model.json", card.to_json())
    write_json(folder / "state.json", asdict(state))
    shutil.copyfile(tokenizer, folder / "tokenizer.json")
    known = {shard["path"] for shard in shards}
    rest = [p.name for p in folder.iterdir() if p.name not in known and p.name != MANIFEST]
    counters = {
        "step": state.step,
        "instances": state.instances_seen,
        "tokens": state.tokens_seen,
        "parameters": card.model.parameters,
    }
    write_manifest(folder, "checkpoint", recipe, inputs, [*shards, *describe(folder, rest)], counters, facts)
