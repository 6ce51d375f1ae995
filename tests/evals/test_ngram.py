"""The bigram baseline against counting by hand."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loom.evals.ngram import baselines, count, previous_tokens
from loom.tokens.digest import digest_file
from tests.evals.conftest import byte_tokenizer, rng

EOS, VOCABULARY = 4, 6
STREAMS = st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=30), min_size=1, max_size=3)


def by_hand(streams: list[list[int]], previous: int, token: int) -> float:
    pairs = Counter(pair for s in streams for pair in zip([EOS, *s[:-1]], s, strict=True))
    words = Counter(t for s in streams for t in s)
    total, kinds = sum(words.values()), len(words)
    unigram = (words[token] + kinds / VOCABULARY) / (total + kinds)
    after = [pair for pair in pairs if pair[0] == previous]
    seen = sum(pairs[pair] for pair in after)
    if not seen:
        return unigram
    return (pairs[(previous, token)] + len(after) * unigram) / (seen + len(after))


@settings(deadline=None)  # the first call compiles
@given(STREAMS)
def test_equal_to_counting_by_hand(streams: list[list[int]]) -> None:
    model = count([np.array(s, dtype=np.uint16) for s in streams], VOCABULARY, EOS)
    grid = np.array([(v, w) for v in range(VOCABULARY) for w in range(VOCABULARY)], dtype=np.uint16)
    found = np.exp(model.log_probabilities(grid[:, 0], grid[:, 1])).reshape(VOCABULARY, VOCABULARY)
    expected = [[by_hand(streams, v, w) for w in range(VOCABULARY)] for v in range(VOCABULARY)]
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-12)
    assert model.unigram.sum() == pytest.approx(1)


def write_tokens(folder: Path, ids: list[int], eos: int) -> None:
    folder.mkdir(parents=True)
    (folder / "tokenizer.json").write_text(json.dumps(byte_tokenizer()))
    np.array(ids, dtype="<u2").tofile(folder / "shard-00000.npy")
    facts = {
        "dtype": "uint16",
        "vocab_size": 262,
        "eos": {"id": eos, "token": "<|endoftext|>"},
        "pad": {"id": eos + 1, "token": "<|padding|>"},
        "tokenizer": {"path": "tokenizer.json", "digest": digest_file(folder / "tokenizer.json", "")},
        "shards": [
            {"path": "shard-00000.npy", "tokens": len(ids), "documents": ids.count(eos), "digest": ""}
        ],
        "sources": {},
    }
    (folder / "manifest.json").write_text(json.dumps({"kind": "tokens", "tokens": facts}))


def test_baselines_of_a_token_folder(tmp_path: Path) -> None:
    draw = rng(3)
    training = [*draw.integers(0, 20, 500).tolist(), 260]
    heldout = [*draw.integers(0, 20, 50).tolist(), 260, *draw.integers(0, 20, 9).tolist(), 260]
    write_tokens(tmp_path / "tokens", training, 260)
    write_tokens(tmp_path / "tokens" / "heldout", heldout, 260)
    found = baselines(tmp_path / "tokens")
    model = count([np.array(training, dtype=np.uint16)], 262, 260)
    stream = np.array(heldout, dtype=np.uint16)
    assert found["tokens"] == len(heldout)
    assert found["bigram_entropy"] == pytest.approx(
        -model.log_probabilities(previous_tokens(stream, 260), stream).mean()
    )
    assert found["unigram_entropy"] == pytest.approx(-np.log(model.unigram)[stream].mean())
