"""Loom's weights and shapes in Hugging Face's names (`OlmoForCausalLM`, `Olmo2ForCausalLM`), and back.

Both ways only rename: nothing is computed, so a round trip is bitwise. Folders are written by
the release room; weights are read here, because training can start from them.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from loom.errors import LoomError
from loom.model.config import ModelConfig

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def weight_map(config: ModelConfig) -> dict[str, str]:
    """Our parameter's name -> theirs."""
    block = {f"attention.{part}.weight": f"self_attn.{part}_proj.weight" for part in "qkv"}
    block["attention.out.weight"] = "self_attn.o_proj.weight"
    block |= {f"mlp.{part}.weight": f"mlp.{part}_proj.weight" for part in ("gate", "up", "down")}
    if config.qk_norm:
        block |= {f"attention.{part}_norm.weight": f"self_attn.{part}_norm.weight" for part in "qk"}
    if config.norm == "rmsnorm":
        block["attention_norm.weight"] = "post_attention_layernorm.weight"
        block["mlp_norm.weight"] = "post_feedforward_layernorm.weight"
    names = {"embed.weight": "model.embed_tokens.weight"}
    for i in range(config.n_layers):
        names |= {f"blocks.{i}.{ours}": f"model.layers.{i}.{theirs}" for ours, theirs in block.items()}
    if config.norm == "rmsnorm":
        names["norm.weight"] = "model.norm.weight"
    if not config.tied:
        names["head.weight"] = "lm_head.weight"
    return names


def to_huggingface(weights: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """State dict of `Transformer` -> that of `OlmoForCausalLM`; a tied model has no `lm_head.weight`.

    The tensors are shared, not copied. Raises `LoomError` naming a weight that is missing.
    """
    names = weight_map(config)
    if missing := [name for name in names if name not in weights]:
        raise LoomError(
            f"The weight {missing[0]} is missing: these weights are not those of this model.json."
        )
    return {theirs: weights[ours] for ours, theirs in names.items()}


def from_huggingface(weights: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """The inverse. Raises `LoomError` naming a weight that is missing, left over or of another shape."""
    names = weight_map(config)
    if missing := [name for name in names.values() if name not in weights]:
        raise LoomError(
            f"The weight {missing[0]} is missing from the Hugging Face weights; config.json asks for it."
        )
    ignored = {"lm_head.weight"} if config.tied else set()
    if extra := sorted(set(weights) - set(names.values()) - ignored):
        raise LoomError(
            f"The weight {extra[0]} has no place in this model: config.json describes another architecture."
        )
    for ours, shape in parameter_shapes(config).items():
        if tuple(weights[names[ours]].shape) != shape:
            raise LoomError(
                f"{names[ours]} has the shape {tuple(weights[names[ours]].shape)}; config.json says {shape}."
            )
    return {ours: weights[theirs] for ours, theirs in names.items()}


def parameter_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every parameter's name and shape, without building the model."""
    from loom.model.transformer import Transformer

    with torch.device("meta"):
        return {name: tuple(p.shape) for name, p in Transformer(config).named_parameters()}


def config_to_huggingface(
    config: ModelConfig, eos_id: int, pad_id: int, dtype: str = "float32"
) -> dict[str, Any]:
    """config.json as a dict. Raises `LoomError` when no Hugging Face architecture has these options."""
    second = config.norm == "rmsnorm"
    if (config.qk_norm, config.norm_after) != (second, second) or (second and config.clip_qkv is not None):
        raise LoomError(
            "Hugging Face has no architecture for this mixture of options: it knows OLMo (layernorm; clip_qkv or not) "
            "and OLMo 2 (rmsnorm, qk_norm and norm_after together, no clip_qkv)."
        )
    if not second and config.norm_eps != 1e-5:
        raise LoomError(
            f"OlmoForCausalLM fixes the norm's eps at 1e-5; this model was trained with {config.norm_eps}."
        )
    values: dict[str, Any] = {
        "architectures": ["Olmo2ForCausalLM" if second else "OlmoForCausalLM"],
        "model_type": "olmo2" if second else "olmo",
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "intermediate_size": config.mlp_width,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.kv_heads,
        "hidden_act": "silu",
        "max_position_embeddings": config.context_length,
        "initializer_range": 0.02,
        "use_cache": True,
        "bos_token_id": None,
        "eos_token_id": eos_id,
        "pad_token_id": pad_id,
        "tie_word_embeddings": config.tied,
        # Older readers know rope_theta, newer ones rope_parameters.
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "attention_bias": False,
        "attention_dropout": 0.0,
        "dtype": dtype,
        "torch_dtype": dtype,
    }
    return values | ({"rms_norm_eps": config.norm_eps} if second else {"clip_qkv": config.clip_qkv})


def config_from_huggingface(values: Mapping[str, Any]) -> ModelConfig:
    """config.json -> ModelConfig. Raises `LoomError` for what this transformer does not compute."""
    kind = values.get("model_type")
    if kind not in ("olmo", "olmo2"):
        raise LoomError(f"config.json has model_type {kind!r}; Loom reads 'olmo' and 'olmo2'.")
    rope = values.get("rope_parameters") or {}
    if values.get("rope_scaling") or rope.get("rope_type", "default") != "default":
        raise LoomError("config.json asks for scaled rotary embeddings, which OLMo does not have.")
    if values.get("attention_bias") or values.get("hidden_act", "silu") != "silu":
        raise LoomError(
            "config.json asks for biases or another activation than silu, which OLMo does not have."
        )
    second = kind == "olmo2"
    heads = int(values.get("num_attention_heads", 32))
    groups = values.get("num_key_value_heads")
    try:
        return ModelConfig(
            d_model=int(values["hidden_size"]),
            n_layers=int(values["num_hidden_layers"]),
            n_heads=heads,
            n_kv_heads=None if groups is None or int(groups) == heads else int(groups),
            mlp_width=int(values["intermediate_size"]),
            vocab_size=int(values["vocab_size"]),
            context_length=int(values.get("max_position_embeddings", 2048)),
            tied=bool(values.get("tie_word_embeddings", False)),
            rope_theta=float(rope.get("rope_theta", values.get("rope_theta", 10_000.0))),
            norm="rmsnorm" if second else "layernorm",
            norm_eps=float(values.get("rms_norm_eps", 1e-5)) if second else 1e-5,
            qk_norm=second,
            norm_after=second,
            clip_qkv=values.get("clip_qkv") if not second else None,
        )
    except KeyError as error:
        raise LoomError(
            f"config.json lacks {error.args[0]!r}: it is not a Hugging Face OLMo folder."
        ) from error
    except (TypeError, ValueError, AttributeError) as error:
        raise LoomError(f"config.json does not describe a model ({error}): fetch it again.") from error


def read_safetensors(file: Path) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of one .safetensors file, mapped from disk (read-only: copy before writing).

    Format: u64 length of a JSON header, the header, raw little-endian data at its offsets.
    """
    try:
        with open(file, "rb") as stream:
            content = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)  # an empty file cannot be
        start = 8 + int.from_bytes(content[:8], "little")
        header = json.loads(content[8:start])
        header.pop("__metadata__", None)
        places = [
            (name, item["dtype"], *item["data_offsets"], item["shape"]) for name, item in header.items()
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise LoomError(
            f"{file} is not a safetensors file, or was cut short: fetch or export it again."
        ) from error
    for name, kind, first, last, shape in places:
        if kind not in _DTYPES or start + last > len(content):
            raise LoomError(f"{file}: {name} is of type {kind} or was cut short; fetch or export it again.")
        dtype = _DTYPES[kind]
        count = (last - first) // dtype.itemsize
        yield (
            name,
            torch.frombuffer(content, dtype=dtype, count=count, offset=start + first).view(shape),
        )


def read_config(folder: Path) -> dict[str, Any]:
    """A Hugging Face folder's config.json. Raises `LoomError` where it is missing, cut short or no object."""
    path = folder / "config.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError("it should hold an object")
    except FileNotFoundError:
        raise LoomError(f"{folder} has no config.json: it is not a Hugging Face folder.") from None
    except ValueError as error:
        raise LoomError(
            f"{path} is not JSON, or was cut short ({error}): fetch or export it again."
        ) from None
    return values


def read_folder(folder: Path) -> tuple[ModelConfig, dict[str, Tensor]]:
    """A Hugging Face folder (config.json, *.safetensors) as our config and weights, in the stored type."""
    config = config_from_huggingface(read_config(folder))
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise LoomError(
            f"{folder} holds no .safetensors file; pickled weights (.bin) are not read, because they run code."
        )
    return config, from_huggingface({name: t for file in files for name, t in read_safetensors(file)}, config)
