"""Adapters start as nothing, are all that is trained, and are merged by whoever reads the weights."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from loom.errors import LoomError
from loom.model.config import ModelConfig
from loom.model.initialize import initialize
from loom.model.transformer import Transformer
from loom.train.checkpoint import load_model, read_weights, step_folder
from loom.train.config import DataConfig, LoraConfig
from loom.train.loop import train
from loom.train.lora import attach, merge, start_adapters
from tests.train.test_loop import Stop, StopAt, recipe
from tests.train.tokens import EOS, learnable, write_conversations, write_tokens

SHAPE = ModelConfig(d_model=32, n_layers=2, n_heads=2, mlp_width=64, vocab_size=64, context_length=32)
IDS = torch.arange(2, 34)[None]


def adapted(seed: int = 1) -> tuple[Transformer, torch.Tensor]:
    model = Transformer(SHAPE)
    initialize(model, seed)
    before: torch.Tensor = model(IDS).detach()
    attach(model, LoraConfig(rank=4))
    start_adapters(model, LoraConfig(rank=4), seed)
    return model, before


def test_adapters_start_as_nothing_and_merge_into_what_they_do() -> None:
    model, before = adapted()
    assert torch.equal(model(IDS), before)
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trainable == {name for name, _ in model.named_parameters() if ".lora_" in name}
    assert len(trainable) == 2 * 7 * 2
    for name, parameter in model.named_parameters():
        if name.endswith("lora_out"):
            torch.nn.init.normal_(parameter, std=0.05)
    changed = model(IDS)
    assert not torch.allclose(changed, before, atol=1e-3)
    plain = Transformer(SHAPE)
    plain.load_state_dict(merge(model.state_dict()))
    torch.testing.assert_close(plain(IDS), changed, rtol=1e-4, atol=1e-5)


def test_outputs_and_gradients_are_pefts() -> None:
    peft = pytest.importorskip("peft")
    from transformers import AutoConfig, AutoModelForCausalLM

    from loom.model.huggingface import config_to_huggingface, to_huggingface

    model, _ = adapted()
    theirs = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config_to_huggingface(SHAPE, 0, 1)))
    base = {name: tensor for name, tensor in model.state_dict().items() if ".lora_" not in name}
    theirs.load_state_dict(to_huggingface(base, SHAPE))
    names = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "out": "o_proj"}
    names |= {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}
    theirs = peft.get_peft_model(
        theirs, peft.LoraConfig(r=4, lora_alpha=32, target_modules=list(names.values()), bias="none")
    ).float()
    found = dict(theirs.named_parameters())
    pairs = []
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            torch.nn.init.normal_(parameter, std=0.05)
            _, layer, part, matrix, kind = name.split(".")
            side = {"lora_in": "lora_A", "lora_out": "lora_B"}[kind]
            where = "self_attn" if part == "attention" else "mlp"
            other = found[
                f"base_model.model.model.layers.{layer}.{where}.{names[matrix]}.{side}.default.weight"
            ]
            other.data.copy_(parameter.data)
            pairs.append((parameter, other))
    expected = theirs(input_ids=IDS).logits
    torch.testing.assert_close(model(IDS), expected, rtol=1e-4, atol=1e-5)
    model(IDS).logsumexp(-1).sum().backward()
    expected.logsumexp(-1).sum().backward()
    for mine, other in pairs:
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-3, atol=1e-5)


def test_an_unknown_target_is_named() -> None:
    with pytest.raises(LoomError, match="query"):
        attach(Transformer(SHAPE), LoraConfig(targets=("query",)))


@pytest.fixture
def base(tmp_path: Path) -> Path:
    tokens = write_tokens(tmp_path / "tokens", [learnable(4000, 64, 1)])
    return train(recipe(tokens, steps=2), tmp_path / "base")


def test_training_resumes_bitwise_and_leaves_the_base_as_it_was(base: Path, tmp_path: Path) -> None:
    documents = write_conversations(tmp_path / "sft", 60)
    plain = recipe(
        tmp_path / "tokens", steps=6, checkpoint_every=3, objective="sft", init=str(base), lora=LoraConfig(4)
    )
    config = replace(plain, data=DataConfig(sft=str(tmp_path / "sft")))
    last = train(config, tmp_path / "calm", documents=documents)
    with pytest.raises(Stop):
        train(config, tmp_path / "cut", documents=documents, callbacks=[StopAt(5)])
    again = train(config, tmp_path / "cut", documents=documents)
    merged, same = read_weights(last), read_weights(again)
    assert merged.keys() == same.keys() == read_weights(base).keys()
    assert all(torch.equal(merged[name], same[name]) for name in merged)
    before = read_weights(base)
    changed = {name for name in merged if not torch.equal(merged[name], before[name])}
    assert changed == {name for name in merged if "attention" in name or "mlp" in name}
    model, _ = load_model(last)
    assert torch.isfinite(model(IDS)).all()
    losses = [
        json.loads(line)["loss"] for line in (tmp_path / "calm" / "metrics.jsonl").read_text().splitlines()
    ]
    assert losses[-1] < losses[0]
    assert step_folder(tmp_path / "calm", 6) == last


def test_a_model_that_ends_text_otherwise_is_refused(base: Path, tmp_path: Path) -> None:
    """The two-tokenizer trap: the same id has another meaning."""
    documents = write_conversations(tmp_path / "sft", 60)
    manifest = tmp_path / "sft" / "manifest.json"
    body = json.loads(manifest.read_text())
    body["tokens"]["eos"] = {"id": EOS, "token": "|||IP_ADDRESS|||"}
    manifest.write_text(json.dumps(body))
    plain = recipe(tmp_path / "tokens", steps=2, objective="sft", init=str(base))
    config = replace(plain, data=DataConfig(sft=str(tmp_path / "sft")))
    with pytest.raises(LoomError, match="IP_ADDRESS"):
        train(config, tmp_path / "run", documents=documents)


def test_adapters_need_a_model(tmp_path: Path) -> None:
    tokens = write_tokens(tmp_path / "tokens", [learnable(2000, 64, 1)])
    with pytest.raises(LoomError, match=r"train\.init"):
        train(recipe(tokens, lora=LoraConfig(4)), tmp_path / "run")
