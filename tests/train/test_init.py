"""Training goes on from a Hugging Face folder: its shape, its weights, and only with text that ends as its own did."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from loom.engine import LocalEngine
from loom.errors import LoomError
from loom.model.config import ModelConfig
from loom.model.huggingface import config_to_huggingface, to_huggingface
from loom.model.initialize import initialize
from loom.model.presets import ModelRecipe
from loom.model.transformer import Transformer
from loom.release.export import export
from loom.road.training import run_training
from loom.tokens.order import Stage
from loom.tokens.shards import open_tokens
from loom.tokens.tokenize import Tokenize, tokenize
from loom.tokens.tokenizer import Tokenizer
from loom.train import checkpoint
from loom.train.checkpoint import checkpoints, load_model, read_weights, save_model
from loom.train.config import ParallelConfig, RunConfig
from loom.train.data import Windows
from loom.train.loader import share
from loom.train.loop import train
from tests.small import make_tokenizer, write_documents

from .ranks import launch
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


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory, tokenizer: Path) -> Path:
    """Tokens of real text, made with `tokenizer`."""
    folder = tmp_path_factory.mktemp("text")
    tokenize(Tokenize((str(write_documents(folder / "raw")),), tokenizer), folder / "tokens", LocalEngine(1))
    return folder / "tokens"


def shaped(tokens: Path, **changes) -> RunConfig:
    base = recipe(tokens, **changes)
    return replace(base, model=ModelRecipe() if changes.get("init") else replace(base.model, tied=False))


@pytest.mark.slow
def test_the_road_of_published_weights_and_back(tmp_path: Path, text: Path) -> None:
    """checkpoint -> Hugging Face folder -> train.init -> on with training -> export -> transformers."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    first = run_training(shaped(text, steps=6), tmp_path / "first")
    export(tmp_path / "first", tmp_path / "published")
    run_training(shaped(text, steps=8, init=str(tmp_path / "published")), tmp_path / "on")
    # The folder holds the checkpoint's weights: from either the run is the same.
    run_training(shaped(text, steps=8, init=str(first)), tmp_path / "same")
    assert losses(tmp_path / "on") == losses(tmp_path / "same")
    assert losses(tmp_path / "on")[-1] < losses(tmp_path / "first")[0]
    export(tmp_path / "on", tmp_path / "continued")
    mine, card = load_model(checkpoints(tmp_path / "on")[-1])
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "continued", dtype=torch.float32)
    (data,) = [open_tokens(text)]
    ids = torch.from_numpy(data.arrays[0][:64].astype("int64")).view(2, 32)
    with torch.no_grad():
        assert torch.equal(mine(ids), theirs(input_ids=ids).logits)
    words = AutoTokenizer.from_pretrained(tmp_path / "continued")
    assert words.eos_token_id == card.eos.id
    assert words("The string with all whitespace").input_ids == list(
        Tokenizer.load(data.tokenizer).encode("The string with all whitespace")
    )
    # The way back to the first checkpoint can be walked.
    manifest = json.loads((tmp_path / "on" / "manifest.json").read_text())
    assert "../published" in [item["path"] for item in manifest["inputs"]]


@pytest.mark.slow
def test_a_rank_reads_its_own_rows_of_a_checkpoint(tmp_path: Path, monkeypatch) -> None:
    tokens = write_tokens(tmp_path / "tokens", [learnable(4000, 64, 1)])
    origin = train(shaped(tokens, steps=5), tmp_path / "first")
    config = shaped(tokens, steps=6, init=str(origin))
    launch(2, replace(config, parallel=ParallelConfig("fsdp")), tmp_path / "sharded")
    monkeypatch.setattr(checkpoint, "read_weights", None)  # which reads all of them
    train(config, tmp_path / "alone")
    assert losses(tmp_path / "sharded") == pytest.approx(losses(tmp_path / "alone"), abs=1e-5)


def test_weights_saved_in_half_are_trained_in_full(tmp_path: Path) -> None:
    tokens = write_tokens(tmp_path / "tokens", [learnable(4000, 64, 1)])
    model, card = load_model(train(shaped(tokens, steps=3), tmp_path / "first"))
    half = save_model(tmp_path / "half", model.to(torch.bfloat16), card, tokens / "tokenizer.json")
    last = train(shaped(tokens, steps=1, init=str(half)), tmp_path / "on")
    assert {tensor.dtype for tensor in read_weights(half).values()} == {torch.bfloat16}
    assert {tensor.dtype for tensor in read_weights(last).values()} == {torch.float32}


def test_text_of_another_tokenizer_is_refused(tmp_path: Path, text: Path, tokenizer: Path) -> None:
    origin = huggingface_folder(
        tmp_path / "hf", ModelConfig(32, 2, 2, 64, 1280, 32), eos=open_tokens(text).eos.id
    )
    body = json.loads(tokenizer.read_bytes())
    # As another tool saves it: other bytes, the same ids.
    (origin / "tokenizer.json").write_text(json.dumps(body, indent=1, ensure_ascii=True))
    run_training(shaped(text, steps=1, init=str(origin)), tmp_path / "run")
    vocabulary = body["model"]["vocab"]
    a, b = [token for token, number in vocabulary.items() if number in (700, 701)]
    vocabulary[a], vocabulary[b] = vocabulary[b], vocabulary[a]
    (origin / "tokenizer.json").write_text(json.dumps(body))
    with pytest.raises(
        LoomError, match=r"another tokenizer than .*hf has: .* is id 70[01] there and id 70[01] in"
    ):
        run_training(shaped(text, steps=1, init=str(origin)), tmp_path / "other")
    del vocabulary[a]
    (origin / "tokenizer.json").write_text(json.dumps(body))
    with pytest.raises(LoomError, match="not in .*own tokenizer"):
        run_training(shaped(text, steps=1, init=str(origin)), tmp_path / "other")


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
