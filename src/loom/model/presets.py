"""Named shapes, and how a recipe chooses and alters one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any, Literal

from loom.errors import LoomError
from loom.model.config import ModelConfig

OLMO_ROWS = 50_304  # 50,280 entries, rounded up to a multiple of 128


def _ladder(d_model: int, n_layers: int, n_heads: int) -> ModelConfig:
    # OLMo's own ladder: fused width 8 d, so an inner width of 4 d, as in its 1B.
    return ModelConfig(d_model, n_layers, n_heads, 4 * d_model, OLMO_ROWS, 2048, tied=True)


PRESETS: Mapping[str, ModelConfig] = MappingProxyType(
    {
        "tiny": ModelConfig(256, 3, 4, 640, 8192, 256, tied=True),
        "olmo-20m": _ladder(256, 8, 8),
        "olmo-60m": _ladder(512, 8, 8),
        "olmo-150m": _ladder(768, 12, 12),
        "olmo-300m": _ladder(1024, 16, 16),
        "olmo-700m": _ladder(1536, 16, 16),
        "olmo-1b": ModelConfig(2048, 16, 16, 8192, OLMO_ROWS, 2048, tied=True),
        "olmo-7b": ModelConfig(4096, 32, 32, 11008, OLMO_ROWS, 2048),
        "olmo-65b": ModelConfig(8192, 80, 64, 22016, OLMO_ROWS, 2048),
        "olmo2-1b": ModelConfig(
            2048, 16, 16, 8192, 100_352, 4096, None, False, 500_000.0, "rmsnorm", 1e-6, True, True
        ),
        "olmo2-7b": ModelConfig(
            4096, 32, 32, 11008, 100_352, 4096, None, False, 500_000.0, "rmsnorm", 1e-6, True, True
        ),
    }
)  # fmt: skip

FREE_VOCABULARY = frozenset({"tiny"})
"""Presets whose vocabulary follows the token folder."""


@dataclass(frozen=True)
class ModelRecipe:
    """The `model` part of a recipe: a preset, and what differs from it; None keeps the preset's value."""

    preset: str | None = None
    d_model: int | None = None
    n_layers: int | None = None
    n_heads: int | None = None
    n_kv_heads: int | None = None
    mlp_width: int | None = None
    vocab_size: int | None = None
    """Embedding rows; None follows the preset, or the token folder where the preset does not fix it."""
    context_length: int | None = None
    tied: bool | None = None
    rope_theta: float | None = None
    norm: Literal["layernorm", "rmsnorm"] | None = None
    norm_eps: float | None = None
    qk_norm: bool | None = None
    norm_after: bool | None = None
    clip_qkv: float | None = None


def preset(name: str) -> ModelConfig:
    """Raises `LoomError` that lists the names for an unknown one."""
    if name not in PRESETS:
        near = get_close_matches(name, PRESETS, 1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise LoomError(f"model.preset {name!r} does not exist; there are {', '.join(PRESETS)}.{hint}")
    return PRESETS[name]


def resolve(recipe: ModelRecipe, entries: int | None = None) -> ModelConfig:
    """The shape a recipe asks for.

    `entries` is the tokenizer's vocabulary: it sets the rows, rounded up to a multiple of 128, where
    neither recipe nor preset fixes them. Raises `LoomError` when a key is missing, or when the rows
    are fewer than the entries.
    """
    changes: dict[str, Any] = {
        field.name: getattr(recipe, field.name)
        for field in fields(recipe)
        if field.name != "preset" and getattr(recipe, field.name) is not None
    }
    if (
        "vocab_size" not in changes
        and entries is not None
        and (recipe.preset is None or recipe.preset in FREE_VOCABULARY)
    ):
        changes["vocab_size"] = -(-entries // 128) * 128
    if recipe.preset is not None:
        config = replace(preset(recipe.preset), **changes)
    else:
        needed = ("d_model", "n_layers", "n_heads", "mlp_width", "vocab_size", "context_length")
        if missing := [name for name in needed if name not in changes]:
            raise LoomError(
                f"model.{missing[0]} is missing: give it, or choose a model.preset ({', '.join(PRESETS)})."
            )
        config = ModelConfig(**changes)
    if entries is not None and entries > config.vocab_size:
        raise LoomError(
            f"The tokenizer has {entries:,} entries but the model only {config.vocab_size:,} embedding rows: set "
            f"model.vocab_size to at least {-(-entries // 128) * 128}, or tokenize with the tokenizer of this model."
        )
    return config
