"""Token folders for tests: small, learnable, written as `loom tokenize` and `loom prepare` lay them out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from loom.tokens.digest import digest_file
from loom.train.documents import DocumentTable

EOS, PAD = 0, 1


def learnable(count: int, vocabulary: int, seed: int) -> np.ndarray:
    """A walk that mostly adds 7: easy to learn, never constant."""
    generator = np.random.default_rng(seed)
    steps = np.where(generator.random(count) < 0.8, 7, generator.integers(1, vocabulary, count))
    return (2 + np.cumsum(steps) % (vocabulary - 2)).astype("<u2")


def write_tokens(
    folder: Path, shards: list[np.ndarray], vocabulary: int = 64, weights: list[np.ndarray] | None = None
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text('{"version": "1.0"}')
    entries = []
    for number, ids in enumerate(shards):
        ids = ids.astype("<u2")
        ids[-1] = EOS
        path = folder / f"shard-{number:05d}.npy"
        ids.tofile(path)
        if weights is not None:
            weights[number].astype(np.uint8).tofile(folder / f"shard-{number:05d}.weights.u8")
        entries.append(
            {
                "path": path.name,
                "tokens": len(ids),
                "documents": int((ids == EOS).sum()),
                "digest": digest_file(path),
            }
        )
    facts = {
        "dtype": "uint16",
        "vocab_size": vocabulary,
        "eos": {"id": EOS, "token": "<|endoftext|>"},
        "pad": {"id": PAD, "token": "<|padding|>"},
        "tokenizer": {"path": "tokenizer.json", "digest": digest_file(folder / "tokenizer.json")},
        "shards": entries,
        "sources": {},
    }
    body = {
        "kind": "tokens", "loom": "0", "recipe": None, "inputs": [], "outputs": [], "counters": {}, "tokens": facts
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(body))
    return folder


def write_conversations(
    folder: Path, count: int, vocabulary: int = 64, seed: int = 0, pairs: bool = False
) -> DocumentTable:
    """Prompts of random ids and answers that count up by 7; a rejected answer counts up by 11."""
    generator = np.random.default_rng(seed)
    ids, weights, start, end = [], [], [], []
    at = 0
    for number in range(count * (2 if pairs else 1)):
        if not pairs or number % 2 == 0:
            prompt = generator.integers(2, vocabulary, generator.integers(3, 12))
        step = 11 if pairs and number % 2 else 7
        length = int(generator.integers(3, 15))
        answer = 2 + (prompt[-1] + step * np.arange(1, length + 1)) % (vocabulary - 2)
        document = np.concatenate((prompt, answer, [EOS]))
        ids.append(document)
        weights.append(np.concatenate((np.zeros(len(prompt)), np.ones(length + 1))))
        start.append(at)
        at += len(document)
        end.append(at)
    write_tokens(folder, [np.concatenate(ids)], vocabulary, [np.concatenate(weights)])
    documents = len(start)
    return DocumentTable(
        np.zeros(documents, np.int64),
        np.array(start),
        np.array(end),
        np.arange(documents) // 2 if pairs else None,
        np.arange(documents) % 2 == 1 if pairs else None,
    )
