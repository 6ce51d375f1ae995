"""Models of other architectures, through `transformers` where it is installed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from loom.errors import LoomError

OURS = ("olmo", "olmo2")


def is_foreign(path: Path) -> bool:
    """Whether `path` is a Hugging Face folder of an architecture that Loom does not build itself."""
    try:
        kind = json.loads((path / "config.json").read_bytes()).get("model_type")
    except (OSError, ValueError):
        return False
    return kind not in OURS


class Foreign(nn.Module):
    """A transformers model behind the scorer's interface. Shared prefixes are not kept: `cache` must be
    None."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner
        head = inner.get_output_embeddings()
        if head is None or getattr(head, "bias", None) is not None:
            raise LoomError(
                f"{type(inner).__name__} has no plain output matrix, so it cannot be scored here."
            )
        self.vocab_size = int(head.weight.shape[0])
        config = inner.config
        self.context_length = int(
            getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", 0) or 2048
        )

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor | None = None,
        *,
        attn_mask: Tensor | None = None,
        cache: None = None,
        at: Tensor | None = None,
        readout: Callable[[Tensor, Tensor], Any] | None = None,
    ) -> Any:
        if cache is not None:
            raise ValueError("a foreign model takes no cache")
        if attn_mask is not None:
            lowest = torch.finfo(self.inner.dtype).min
            attn_mask = torch.zeros_like(attn_mask, dtype=self.inner.dtype).masked_fill(~attn_mask, lowest)
        hidden = self.inner.base_model(
            input_ids=input_ids, position_ids=position_ids, attention_mask=attn_mask, use_cache=False
        ).last_hidden_state
        if at is not None:
            hidden = hidden.flatten(0, 1)[at]
        head = self.inner.get_output_embeddings()
        return readout(hidden, head.weight) if readout is not None else head(hidden)


def load_foreign(path: Path, dtype: torch.dtype) -> Foreign:
    """Raises `LoomError` if transformers is not installed, does not know the architecture, or reports
    weights that were missing: those would be random numbers."""
    try:
        import transformers as library
    except ImportError:
        raise LoomError(
            f"{path} is of an architecture that Loom does not build itself; install transformers to evaluate "
            f"it (pip install transformers)."
        ) from None
    transformers: Any = library
    try:
        loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
            path, dtype=dtype, local_files_only=True, trust_remote_code=False, output_loading_info=True
        )
    except (OSError, ValueError, KeyError) as error:
        raise LoomError(f"transformers cannot load {path}: {str(error).splitlines()[0]}") from None
    inner, info = loaded
    missing = sorted(info.get("missing_keys") or ())
    if missing or info.get("mismatched_keys"):
        named = missing[0] if missing else str(info["mismatched_keys"])
        raise LoomError(
            f"{path} does not hold all weights of {type(inner).__name__} ({named} is missing or of another "
            f"shape), so parts of it would be random numbers: it gets no figure."
        )
    return Foreign(inner.eval())
