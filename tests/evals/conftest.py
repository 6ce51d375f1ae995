from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from loom.model.config import ModelConfig
from loom.model.transformer import Transformer
from loom.tokens.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """Bytes only, and the two control tokens."""
    return Tokenizer(json.dumps(byte_tokenizer()).encode(), "bytes")


def byte_tokenizer() -> dict[str, object]:
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {byte: chr(byte) for byte in printable} | {b: chr(256 + i) for i, b in enumerate(others)}
    vocabulary = {letters[byte]: byte for byte in range(256)}
    merges = [("Ġ", "t"), ("h", "e"), ("Ġt", "he"), ("i", "n")]
    for left, right in merges:
        vocabulary[left + right] = len(vocabulary)
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    added = [
        {"id": len(vocabulary) + i, "content": text, **special}
        for i, text in enumerate(("<|endoftext|>", "<|padding|>"))
    ]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {
            "type": "ByteLevel",
            "add_prefix_space": False,
            "trim_offsets": True,
            "use_regex": True,
        },
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocabulary,
            "merges": [f"{left} {right}" for left, right in merges],
        },
    }


def random_model(vocab_size: int = 384, context: int = 64, seed: int = 0, width: int = 32) -> Transformer:
    """Two layers with weights wide enough that predictions differ."""
    config = ModelConfig(
        d_model=width,
        n_layers=2,
        n_heads=2,
        mlp_width=2 * width,
        vocab_size=vocab_size,
        context_length=context,
        tied=True,
    )
    model = Transformer(config)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    return model.eval()


@pytest.fixture(scope="session")
def model() -> Transformer:
    return random_model()


def brute_force(model: Transformer, context: list[int], continuation: list[int]) -> float:
    """log p(continuation | context): one whole forward, softmax in float64."""
    with torch.no_grad():
        logits = model(torch.tensor([[*context, *continuation][:-1]]))[0].double()
    logp = torch.log_softmax(logits, dim=-1)
    first = len(context) - 1
    return float(sum(logp[first + i, token] for i, token in enumerate(continuation)))


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)
