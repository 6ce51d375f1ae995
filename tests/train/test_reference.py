"""The cached reference is the live one, and a cache of anything else is never trained on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from loom.errors import LoomError
from loom.model.presets import ModelRecipe
from loom.tokens.shards import open_tokens
from loom.train.checkpoint import load_model, read_weights
from loom.train.config import DataConfig, DpoConfig, RunConfig
from loom.train.data import Pairs
from loom.train.documents import DocumentTable
from loom.train.loop import train
from loom.train.objective import Preference, answer_logprobs
from tests.train.test_init import huggingface_folder
from tests.train.test_loop import losses, recipe
from tests.train.tokens import learnable, write_conversations, write_tokens


@pytest.fixture
def prepared(tmp_path: Path) -> tuple[RunConfig, DocumentTable]:
    tokens = write_tokens(tmp_path / "tokens", [learnable(4000, 64, 1)])
    init = train(recipe(tokens, steps=3), tmp_path / "base")
    table = write_conversations(tmp_path / "pairs", 40, pairs=True)
    base = recipe(tokens, objective="dpo", init=str(init), batch_pairs=8, micro_batch_pairs=4, steps=4)
    return replace(base, model=ModelRecipe(), data=DataConfig(pairs=str(tmp_path / "pairs"))), table


def test_cached_values_are_what_the_model_gives(
    prepared: tuple[RunConfig, DocumentTable], tmp_path: Path
) -> None:
    config, table = prepared
    train(config, tmp_path / "run", documents=table)
    (cache,) = (tmp_path / "run" / "reference").glob("*.npy")
    values = np.load(cache)
    assert config.train.init is not None
    model, _ = load_model(Path(config.train.init))
    data = Pairs(open_tokens(tmp_path / "pairs"), table, 32, 1)
    batch = data.collate(np.arange(data.instances))
    with torch.no_grad():
        live, counts = answer_logprobs(model, batch)
    np.testing.assert_allclose(values, live.numpy(), rtol=1e-5, atol=1e-4)
    total, sums = Preference(DpoConfig(beta=0.1), live)(model, batch)
    assert float(total.detach()) / data.instances == pytest.approx(np.log(2), abs=1e-6)
    assert float(sums["reward_margin"]) == pytest.approx(0, abs=1e-4)
    assert float(sums["kl_estimate"]) == pytest.approx(0, abs=1e-6)
    assert float(counts.sum()) == sum(int((w > 0).sum()) for w in data.folders[0].weights)


def test_another_model_never_uses_the_cache(
    prepared: tuple[RunConfig, DocumentTable], tmp_path: Path
) -> None:
    config, table = prepared
    train(config, tmp_path / "run", documents=table)
    other = train(recipe(tmp_path / "tokens", steps=5), tmp_path / "other")
    changed = replace(config, train=replace(config.train, init=str(other)))
    (tmp_path / "again").mkdir()
    (tmp_path / "run" / "reference").rename(tmp_path / "again" / "reference")
    train(changed, tmp_path / "again", documents=table)
    assert len(list((tmp_path / "again" / "reference").glob("*.npy"))) == 2
    assert losses(tmp_path / "again")[0] == pytest.approx(np.log(2), abs=1e-4)


def test_a_cache_that_was_changed_is_refused(
    prepared: tuple[RunConfig, DocumentTable], tmp_path: Path
) -> None:
    config, table = prepared
    train(config, tmp_path / "run", documents=table)
    (cache,) = (tmp_path / "run" / "reference").glob("*.npy")
    (tmp_path / "fresh" / "reference").mkdir(parents=True)
    copy = tmp_path / "fresh" / "reference" / cache.name
    copy.write_bytes(cache.read_bytes()[:-4])
    with pytest.raises(LoomError, match="not what it was"):
        train(config, tmp_path / "fresh", documents=table)
    np.save(copy, np.load(cache) - 3)
    from loom.tokens.digest import digest_bytes

    header = {"pairs": 40, "digest": digest_bytes(copy.read_bytes())}
    copy.with_suffix(".json").write_text(json.dumps(header))
    with pytest.raises(LoomError, match=r"would not start at ln 2"):
        train(config, tmp_path / "fresh", documents=table)


def test_a_reference_of_its_own_is_compared_with(
    prepared: tuple[RunConfig, DocumentTable], tmp_path: Path
) -> None:
    """Tuning goes on from a later model while the reference stays the earlier one."""
    config, table = prepared
    first = train(config, tmp_path / "first", documents=table)
    further = replace(
        config,
        train=replace(config.train, init=str(first)),
        dpo=DpoConfig(reference=config.train.init),
    )
    train(further, tmp_path / "further", documents=table)
    assert abs(losses(tmp_path / "further")[0] - np.log(2)) > 1e-6
    assert not all(
        torch.equal(a, b)
        for a, b in zip(
            read_weights(first).values(), read_weights(Path(str(config.train.init))).values(), strict=True
        )
    )


def test_weights_that_changed_in_the_same_folder_are_another_model(
    prepared: tuple[RunConfig, DocumentTable], tmp_path: Path
) -> None:
    """A Hugging Face folder written anew, of the same shape: the old values are not taken."""
    from safetensors.torch import load_file, save_file

    config, table = prepared
    assert config.train.init is not None
    _, card = load_model(Path(config.train.init))
    made = huggingface_folder(tmp_path / "hf", card.model, card.eos.id)
    config = replace(config, train=replace(config.train, init=str(made)))
    train(config, tmp_path / "run", documents=table)
    weights = load_file(made / "model.safetensors")
    save_file({name: 1.01 * tensor for name, tensor in weights.items()}, made / "model.safetensors")
    (tmp_path / "again").mkdir()
    (tmp_path / "run" / "reference").rename(tmp_path / "again" / "reference")
    train(config, tmp_path / "again", documents=table)
    assert len(list((tmp_path / "again" / "reference").glob("*.npy"))) == 2


def test_pairs_are_not_trained_as_conversations(
    prepared: tuple[RunConfig, DocumentTable], tmp_path: Path
) -> None:
    config, table = prepared
    wrong = replace(
        config,
        train=replace(config.train, objective="sft"),
        data=DataConfig(sft=str(tmp_path / "pairs")),
    )
    with pytest.raises(LoomError, match="holds preference pairs, whose rejected answers"):
        train(wrong, tmp_path / "run", documents=table)
