"""Small real runs: real documents, the real tokenizer, the real loop, and what the model was really fed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from loom.engine import LocalEngine
from loom.model.presets import ModelRecipe
from loom.model.transformer import Transformer
from loom.tokens.tokenize import Tokenize, tokenize
from loom.train.config import (
    BatchStage,
    DataConfig,
    OptimizerConfig,
    RunConfig,
    ScheduleConfig,
    TokenSource,
    TrainConfig,
)
from tests.small import make_tokenizer, write_documents

SHAPE = ModelRecipe(d_model=16, n_layers=1, n_heads=2, mlp_width=32, context_length=64, tied=True)
LENGTH = 64


def make_tokens(folder: Path, shard_tokens: int = 20_000, tokenizer: Path | None = None) -> Path:
    """Real documents tokenized into `folder`/tokens, in several shards."""
    tokenizer = tokenizer or make_tokenizer(folder)
    documents = write_documents(folder / "corpus")
    tokenize(Tokenize((str(documents),), tokenizer, 0.0, shard_tokens), folder / "tokens", LocalEngine(1))
    return folder / "tokens"


def recipe(data: DataConfig, steps: int = 2, **changes: Any) -> RunConfig:
    values: dict[str, Any] = {
        "steps": steps,
        "batch_tokens": 8 * LENGTH,
        "micro_batch": 3,
        "precision": "float32",
        "compile": False,
        "checkpoint_every": steps,
        "threads": 1,
        "rehearse": False,  # `watched` would see the dry run too
        **changes,
    }
    return RunConfig(SHAPE, data, TrainConfig(**values), OptimizerConfig(), ScheduleConfig(warmup=1))


def lm(
    *tokens: Path, steps: int = 2, weights: tuple[float, ...] = (), stage: bool = False, batch: int = 8
) -> RunConfig:
    sources = tuple(
        TokenSource(str(t), w) for t, w in zip(tokens, weights or (1.0,) * len(tokens), strict=True)
    )
    data = DataConfig(sources if len(tokens) > 1 else str(tokens[0]), sequence_length=LENGTH)
    changes = {"batch_stages": (BatchStage(3, 2 * batch * LENGTH),)} if stage else {}
    return recipe(data, steps, batch_tokens=batch * LENGTH, micro_batch=max(3, batch), **changes)


@contextmanager
def watched() -> Iterator[list[list[int]]]:
    """Every row of ids that a model is fed while this is open, in order."""
    fed: list[list[int]] = []
    plain = Transformer.forward

    def forward(self: Transformer, input_ids: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if torch.is_grad_enabled():
            fed.extend(input_ids.tolist())
        return plain(self, input_ids, *args, **kwargs)

    Transformer.forward = forward  # type: ignore[method-assign]
    try:
        yield fed
    finally:
        Transformer.forward = plain  # type: ignore[method-assign]
