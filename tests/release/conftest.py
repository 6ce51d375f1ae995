from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from loom.model.config import ModelConfig
from loom.model.initialize import initialize
from loom.model.transformer import Transformer
from loom.tokens.shards import SpecialToken
from loom.tokens.tokenizer import Tokenizer
from loom.train.checkpoint import ModelCard, save_model
from tests.small import make_tokenizer

TIED = ModelConfig(48, 2, 4, 128, 1280, 64, tied=True)
UNTIED = ModelConfig(48, 3, 4, 128, 1280, 64, n_kv_heads=2, clip_qkv=2.0)
SECOND = ModelConfig(
    48, 2, 4, 128, 1280, 64, rope_theta=5e5, norm="rmsnorm", norm_eps=1e-6, qk_norm=True, norm_after=True
)
SHAPES = {"tied": TIED, "untied": UNTIED, "olmo2": SECOND}

Make = Callable[..., Path]


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Models this small are slower on several cores, and far slower when those are busy."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tokenizer_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def make_checkpoint(tmp_path: Path, tokenizer_path: Path) -> Make:
    """`make_checkpoint(config, seed=0, dtype=float32)` writes a checkpoint of random weights."""

    def make(
        config: ModelConfig, seed: int = 0, dtype: torch.dtype = torch.float32, name: str = "model"
    ) -> Path:
        model = Transformer(config)
        initialize(model, seed)
        for key, parameter in model.named_parameters():
            if "norm" in key:
                parameter.data += 0.1 * torch.randn(
                    parameter.shape, generator=torch.Generator().manual_seed(seed)
                )
        tokenizer = Tokenizer.load(tokenizer_path)
        card = ModelCard(
            config,
            SpecialToken(tokenizer.eos_id, tokenizer.eos_token),
            SpecialToken(tokenizer.pad_id, tokenizer.pad_token),
            tokenizer.vocab_size,
        )
        return save_model(tmp_path / name, model.to(dtype), card, tokenizer_path)

    return make
