"""Another architecture, through transformers: scores equal to its own forward."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from loom.errors import LoomError
from loom.evals.encode import encode_items
from loom.evals.items import score_items
from loom.evals.subject import load_subject
from loom.tasks.item import choose
from tests.evals.conftest import byte_tokenizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPTNeoXConfig(
        vocab_size=384,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=128,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    model = transformers.GPTNeoXForCausalLM(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text(json.dumps(byte_tokenizer()))
    return tmp_path


def test_equal_to_its_own_forward(folder: Path) -> None:
    import transformers

    subject = load_subject(folder)
    items = [choose(i, f"Question {i}: in the\nAnswer:", ("the one", "the other", "x"), 0) for i in range(4)]
    scores = score_items(subject.model, items, subject.tokenizer, subject.max_length)
    theirs = transformers.GPTNeoXForCausalLM.from_pretrained(folder).eval()
    pairs, _ = encode_items(items, subject.tokenizer)
    for group, logp in zip(pairs, scores.logp, strict=True):
        for pair, value in zip(group, logp, strict=True):
            ids = torch.tensor([[*pair.context, *pair.continuation]])
            with torch.no_grad():
                table = theirs(ids[:, :-1]).logits.double().log_softmax(-1)[0]
            first = len(pair.context) - 1
            expected = sum(table[first + i, token] for i, token in enumerate(pair.continuation))
            assert value == pytest.approx(float(expected), abs=1e-3)


def test_weights_that_were_not_loaded_are_refused(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if "mlp" in name)
    save_file(
        {key: value for key, value in weights.items() if key != name},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    with pytest.raises(LoomError, match="no figure"):
        load_subject(folder)
