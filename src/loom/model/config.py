"""What a model is: its shape and the options in which OLMo 1 and OLMo 2 differ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from loom.errors import LoomError


@dataclass(frozen=True)
class ModelConfig:
    """A decoder-only transformer without biases.

    Widths are explicit, never computed: OLMo's 1B, 7B and 65B follow three different rules.
    `vocab_size` counts embedding rows, which may exceed the tokenizer's entries; the rows above are
    ordinary classes that only ever serve as negatives.
    """

    d_model: int
    n_layers: int
    n_heads: int
    mlp_width: int
    vocab_size: int
    context_length: int
    n_kv_heads: int | None = None
    """Heads of keys and values (grouped-query attention); None is as many as `n_heads`."""
    tied: bool = False
    """The output matrix is the embedding matrix."""
    rope_theta: float = 10_000.0
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    """`layernorm` has no parameters (OLMo 1), `rmsnorm` has a gain (OLMo 2)."""
    norm_eps: float = 1e-5
    qk_norm: bool = False
    """RMSNorm over all of q and all of k before the split into heads (OLMo 2)."""
    norm_after: bool = False
    """Normalise what attention and MLP give, not what they take (OLMo 2)."""
    clip_qkv: float | None = None
    """Clamp q, k and v to plus or minus this (OLMo 0424 and 0724)."""

    def __post_init__(self) -> None:
        for name in ("d_model", "n_layers", "n_heads", "mlp_width", "vocab_size", "context_length"):
            if getattr(self, name) < 1:
                raise LoomError(f"model.{name} is {getattr(self, name)}; it must be at least 1.")
        if self.d_model % self.n_heads or (self.d_model // self.n_heads) % 2:
            raise LoomError(
                f"model.d_model {self.d_model} over model.n_heads {self.n_heads} must be a whole, even number "
                f"(rotary embeddings turn pairs of dimensions); change one of the two."
            )
        if self.kv_heads < 1 or self.n_heads % self.kv_heads:
            raise LoomError(
                f"model.n_kv_heads {self.n_kv_heads} must divide model.n_heads {self.n_heads}; leave it out for as "
                f"many key and value heads as query heads."
            )
        if self.clip_qkv is not None and self.clip_qkv <= 0:
            raise LoomError(
                f"model.clip_qkv is {self.clip_qkv}; it must be positive, or null for no clipping."
            )

    @property
    def kv_heads(self) -> int:
        return self.n_heads if self.n_kv_heads is None else self.n_kv_heads

    @property
    def head_dim(self) -> int:
        return self.d_model // self.n_heads

    @property
    def kv_width(self) -> int:
        return self.kv_heads * self.head_dim

    @property
    def matmul_parameters(self) -> int:
        """Parameters that take part in a matrix product for each token, the output matrix included."""
        attention = 2 * self.d_model * self.d_model + 2 * self.d_model * self.kv_width
        return (
            self.n_layers * (attention + 3 * self.d_model * self.mlp_width) + self.vocab_size * self.d_model
        )

    @property
    def parameters(self) -> int:
        """All trained numbers; a tied matrix counts once."""
        gains = 0
        if self.norm == "rmsnorm":
            gains += (2 * self.n_layers + 1) * self.d_model
        if self.qk_norm:
            gains += self.n_layers * (self.d_model + self.kv_width)
        untied = 0 if self.tied else self.vocab_size * self.d_model
        return self.matmul_parameters + untied + gains

    def flops_per_token(self, sequence_length: int) -> int:
        """Forward and backward: 6 N + 12 L d T, N the matmul parameters with the output matrix.

        Attention counts in full, not its causal half (PaLM, appendix B).
        """
        return 6 * self.matmul_parameters + 12 * self.n_layers * self.d_model * sequence_length

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str = "model.json") -> ModelConfig:
        """The inverse of `to_dict`. Raises `LoomError` naming an unknown or missing key of `source`."""
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise LoomError(
                f"{source} has the unknown key {unknown[0]!r}; known are {', '.join(sorted(known))}."
            )
        try:
            return cls(**values)
        except TypeError as error:
            raise LoomError(f"{source} does not describe a model: {error}.") from error
