"""OLMo's own checkpoints beside their `config.yaml`: whole (`model.pt`) or in parts (`model_and_optim`).

`model.pt` is a pickle; it is read by torch's restricted loader, which builds tensors and runs nothing. The
parts are torch's distributed format, as FSDP saves it; its table of contents is looked through first
(`loom.train.metadata`) and the optimizer's state is left unread. Names and layout: OLMo v0.6
`olmo/model.py`, `olmo/checkpoint.py`; q, k and v are one matrix there, and so are up and gate.
"""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load

from loom.artifact import Input, digest_file, digest_json, relative
from loom.errors import LoomError
from loom.model.config import ModelConfig
from loom.model.huggingface import parameter_shapes
from loom.release.safetensors import Entry
from loom.release.source import Source
from loom.train.metadata import check_metadata
from loom.train.opening import ModelFolder

WEIGHTS, CONFIG = "model.pt", "config.yaml"
PARTS = "model_and_optim"
OLDER = ("rank0.pt", "model", "train")  # what checkpoints in older kinds of parts hold


@dataclass(frozen=True)
class Raw:
    """An OLMo checkpoint: its weights by Loom's names, and the end of text its configuration states."""

    source: Source
    eos: int | None
    digest: Input


def is_raw(folder: Path) -> bool:
    """Whether `folder` looks like a checkpoint of OLMo's trainer, whole or in parts."""
    return (folder / CONFIG).is_file() and not (folder / "config.json").is_file()


def open_raw(folder: Path, out: Path) -> Raw:
    """Open an OLMo v1 checkpoint to be imported to `out`.

    Raises `LoomError` for one in parts of the older kinds, for options that OLMo v1 does not have, for a pickle that
    holds more than tensors, and for tensors that are missing, unknown or of another shape, by name.
    """
    weights = folder / WEIGHTS
    if not weights.is_file() and (folder / PARTS).is_dir():
        weights = folder / PARTS
    elif not weights.is_file():
        parts = [name for name in OLDER if (folder / name).exists()]
        what = f"is in parts ({', '.join(parts)})" if parts else f"has no {WEIGHTS}"
        raise LoomError(
            f"{folder} {what}: join it with OLMo's scripts/unshard.py and import what that writes."
        )
    values = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))
    options = values.get("model") if isinstance(values, dict) else None
    if not isinstance(options, dict):
        raise LoomError(f"{folder / CONFIG} has no section 'model': it is not OLMo's configuration.")
    config = model_config(options, folder / CONFIG)
    read_in = _load_parts(weights) if weights.is_dir() else _load(weights)
    theirs = {_plain(name, options): tensor for name, tensor in read_in.items()}
    tensors = _split(theirs, config, weights)
    entries = {name: Entry(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}

    def read(wanted: list[str]) -> dict[str, Tensor]:
        return {name: tensors[name].clone() for name in wanted}

    found = ModelFolder(folder, "olmo")
    held = sorted(path for path in weights.iterdir() if path.is_file()) if weights.is_dir() else [weights]
    files = [[str(p.relative_to(folder)), digest_file(p)] for p in (folder / CONFIG, *held)]
    return Raw(
        Source(found, config, entries, folder / "tokenizer.json", read),
        options.get("eos_token_id"),
        Input(relative(folder, out), digest_json(files)),
    )


REQUIRED: Mapping[str, tuple[Any, ...]] = {
    "activation_type": ("swiglu",),
    "block_type": ("sequential",),
    "alibi": (False,),
    "rope": (True,),
    "layer_norm_type": ("default", "low_precision"),
    "layer_norm_with_affine": (False,),
    "attention_layer_norm": (False,),
    "include_bias": (False,),
    "norm_after": (False,),
    "scale_logits": (False,),
    "multi_query_attention": (None, False),
}
DEFAULTS = {
    "activation_type": "swiglu",
    "block_type": "sequential",
    "alibi": False,
    "rope": False,
    "layer_norm_type": "default",
    "layer_norm_with_affine": True,
    "attention_layer_norm": False,
    "include_bias": True,
    "norm_after": False,
    "scale_logits": False,
    "multi_query_attention": None,
}


def model_config(options: Mapping[str, Any], file: Path) -> ModelConfig:
    """The section `model` of OLMo's configuration. Raises `LoomError` for what OLMo v1 does not compute."""
    for name, allowed in REQUIRED.items():
        value = options.get(name, DEFAULTS[name])
        if value not in allowed:
            raise LoomError(f"{file}: model.{name} is {value!r}; an OLMo v1 model has {allowed[0]!r}.")
    try:
        d, heads = int(options["d_model"]), int(options["n_heads"])
        groups = options.get("n_kv_heads")
        hidden = options.get("mlp_hidden_size") or options.get("mlp_ratio", 4) * d
        return ModelConfig(
            d_model=d,
            n_layers=int(options["n_layers"]),
            n_heads=heads,
            n_kv_heads=None if groups in (None, heads) else int(groups),
            mlp_width=int(hidden) // 2,
            vocab_size=int(options.get("embedding_size") or options["vocab_size"]),
            context_length=int(options.get("max_sequence_length", 1024)),
            tied=bool(options.get("weight_tying", True)),
            rope_theta=float(options.get("rope_theta", 10_000)),
            clip_qkv=options.get("clip_qkv"),
        )
    except KeyError as error:
        raise LoomError(f"{file} lacks model.{error.args[0]}: it is not OLMo's configuration.") from None


def _load(file: Path) -> dict[str, Tensor]:
    try:
        found = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        reason = str(error).splitlines()[0]
        raise LoomError(
            f"{file} holds more than tensors, so it is not opened: it could run code of its maker's ({reason})."
        ) from None
    except (RuntimeError, EOFError, ValueError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise LoomError(
            f"{file} is not a file of torch, or was cut short ({reason}): fetch it again."
        ) from None
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise LoomError(f"{file} is not a model's weights: it should hold tensors by name and nothing else.")
    return found


def _load_parts(folder: Path) -> dict[str, Tensor]:
    """The weights of a checkpoint in parts, whole, by OLMo's names."""
    check_metadata(folder)
    stored = FileSystemReader(folder).read_metadata().state_dict_metadata
    tensors = {
        name.removeprefix("model."): torch.empty(item.size, dtype=item.properties.dtype)
        for name, item in stored.items()
        if name.startswith("model.") and isinstance(item, TensorStorageMetadata)
    }
    if not tensors:
        raise LoomError(
            f"{folder} holds no tensor of a model: it should be FSDP's model and optimizer state."
        )
    try:
        with warnings.catch_warnings():  # it warns that there is one process, which is meant
            warnings.simplefilter("ignore")
            load({"model": tensors}, storage_reader=FileSystemReader(folder), no_dist=True)
    except (CheckpointException, OSError, RuntimeError, EOFError, ValueError) as error:
        said = str(error).strip().splitlines()
        raise LoomError(
            f"{folder} cannot be read whole, a part of it is missing or was cut short "
            f"({said[-1] if said else type(error).__name__}): fetch it again."
        ) from None
    return tensors


def _plain(name: str, options: Mapping[str, Any]) -> str:
    """A tensor's name without what FSDP and block groups put into it."""
    name = name.replace("_fsdp_wrapped_module.", "").removeprefix("module.")
    size = int(options.get("block_group_size", 1))
    return re.sub(r"block_groups\.(\d+)\.(\d+)\.", lambda m: f"blocks.{int(m[1]) * size + int(m[2])}.", name)


def _split(theirs: Mapping[str, Tensor], config: ModelConfig, file: Path) -> dict[str, Tensor]:
    """OLMo's fused matrices as Loom's: rows of q, k, v; then up before gate."""
    left = dict(theirs)

    def take(name: str, rows: int) -> Tensor:
        if name not in left:
            near = f" It has {min(left)}, which an OLMo v1 model has no place for." if left else ""
            raise LoomError(f"{file} has no tensor {name}, which its configuration asks for.{near}")
        tensor = left.pop(name)
        if tensor.dim() != 2 or tensor.shape[0] != rows:
            raise LoomError(f"{file}: {name} has the shape {tuple(tensor.shape)}; {rows} rows are expected.")
        return tensor

    d, kv, mlp = config.d_model, config.kv_width, config.mlp_width
    made = {"embed.weight": take("transformer.wte.weight", config.vocab_size)}
    for i in range(config.n_layers):
        block, ours = f"transformer.blocks.{i}", f"blocks.{i}"
        q, k, v = torch.split(take(f"{block}.att_proj.weight", d + 2 * kv), [d, kv, kv])
        made |= {f"{ours}.attention.{n}.weight": t for n, t in (("q", q), ("k", k), ("v", v))}
        made[f"{ours}.attention.out.weight"] = take(f"{block}.attn_out.weight", d)
        up, gate = take(f"{block}.ff_proj.weight", 2 * mlp).chunk(2)
        made |= {f"{ours}.mlp.up.weight": up, f"{ours}.mlp.gate.weight": gate}
        made[f"{ours}.mlp.down.weight"] = take(f"{block}.ff_out.weight", d)
    if not config.tied:
        made["head.weight"] = take("transformer.ff_out.weight", config.vocab_size)
    if left:
        raise LoomError(
            f"{file} has the tensor {min(left)}, which has no place in an OLMo v1 model ({len(left)} such)."
        )
    for name, shape in parameter_shapes(config).items():
        if tuple(made[name].shape) != shape:
            raise LoomError(f"{file}: {name} has the shape {tuple(made[name].shape)}; {shape} is expected.")
    return made
