"""Training goes on from a Hugging Face folder: its shape, its weights, and only with text that ends as its own did."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from loom.errors import LoomError
from loom.model.config import ModelConfig
from loom.model.huggingface import config_to_huggingface, to_huggingface
from loom.model.initialize import initialize
from loom.model.presets import ModelRecipe
from loom.model.transformer import Transformer
from loom.road.training import run_training
from loom.tokens.order import Stage
from loom.tokens.shards import open_tokens
from loom.tokens.tokenizer import Tokenizer
from loom.train.data import Windows
from loom.train.loader import share

from .test_loop import losses, recipe
from .tokens import learnable, write_tokens


def huggingface_folder(folder: Path, config: ModelConfig, eos: int) -> Path:
    from safetensors.torch import save_file

    folder.mkdir()
    model = Transformer(config)
    initialize(model, 3)
    save_file(to_huggingface(model.state_dict(), config), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config_to_huggingface(config, eos, 1)))
    return folder


@pytest.mark.slow
def test_the_first_loss_is_that_of_transformers_on_the_same_batch(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    tokens = write_tokens(tmp_path / "tokens", [learnable(4000, 64, 1)])
    origin = huggingface_folder(tmp_path / "hf", ModelConfig(32, 2, 2, 64, 128, 32, tied=True), eos=0)
    config = recipe(tokens, init=str(origin), steps=5)
    config = replace(config, model=ModelRecipe())
    run_training(config, tmp_path / "run")
    data = Windows(config.data, [open_tokens(tokens)], 32, config.seed)
    ids = torch.from_numpy(data.windows(share([Stage(1, 0, 8)], 1, 0, 1)))
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(origin)(input_ids=ids, labels=ids).loss
    found = losses(tmp_path / "run")
    assert found[0] == pytest.approx(float(expected), rel=1e-6)
    assert found[-1] < found[0]
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert "../hf" in [item["path"] for item in manifest["inputs"]]


def test_a_recipe_of_another_shape_is_refused(tmp_path: Path) -> None:
    tokens = write_tokens(tmp_path / "tokens", [learnable(4000, 64, 1)])
    origin = huggingface_folder(tmp_path / "hf", ModelConfig(32, 1, 2, 64, 128, 32, tied=True), eos=0)
    with pytest.raises(LoomError, match="has n_layers 1, the recipe's model has 2"):
        run_training(recipe(tokens, init=str(origin)), tmp_path / "run")


def test_text_tokenized_with_the_wrong_eos_is_refused(tmp_path: Path, shared_data: Path) -> None:
    """OLMo 1's configurations named a file in which 50279, that ends its documents, is an IP address."""
    right = Tokenizer.load(shared_data / "tokenizers" / "olmo-v1.json")
    wrong = Tokenizer.load(shared_data / "tokenizers" / "olmo-v1-wrong-eos.json")
    assert (right.eos_id, wrong.eos_id) == (50279, 0)
    assert wrong.token_id("|||IP_ADDRESS|||") == 50279
    tokens = write_tokens(tmp_path / "tokens", [learnable(4000, 64, 1)], vocabulary=wrong.vocab_size)
    facts = json.loads((tokens / "manifest.json").read_text())
    facts["tokens"]["eos"] = {"id": wrong.eos_id, "token": wrong.eos_token}
    (tokens / "manifest.json").write_text(json.dumps(facts))
    shape = ModelConfig(8, 1, 2, 16, 50_304, 32, tied=True)
    origin = huggingface_folder(tmp_path / "hf", shape, eos=right.eos_id)
    config = replace(recipe(tokens, init=str(origin)), model=ModelRecipe())
    with pytest.raises(LoomError, match=r"ends text with id 50279.*with 0 .*own tokenizer"):
        run_training(config, tmp_path / "run")
