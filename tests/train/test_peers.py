"""SFT and DPO give TRL's losses, rewards and gradients on the same rows and weights."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from loom.tokens.tokenizer import Tokenizer
from loom.train.config import DpoConfig
from loom.train.objective import LanguageModel, Preference, answer_logprobs
from tests.small import make_tokenizer
from tests.train.prepared import Prepared, gradients, make, peer_tokenizer, twins

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
pytestmark = pytest.mark.slow  # importing TRL takes seconds


@pytest.fixture(scope="module")
def tokenizer_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def conversations(tokenizer_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return make(tmp_path_factory.mktemp("sft"), tokenizer_path, "sft")


@pytest.fixture(scope="module")
def pairs(tokenizer_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return make(tmp_path_factory.mktemp("dpo"), tokenizer_path, "dpo")


def assert_equal_gradients(theirs: Any, mine: Any) -> None:
    for name, expected, found in gradients(theirs, mine):
        assert float((found - expected).abs().max()) <= 1e-5 * float(expected.abs().max()) + 1e-9, name
        assert float((found - expected).norm()) <= 1e-5 * float(expected.norm()) + 1e-9, name


def common(tmp_path: Path, **more: Any) -> dict[str, Any]:
    return {
        "output_dir": str(tmp_path), "report_to": "none", "use_cpu": True, "bf16": False, "max_length": None,
        "remove_unused_columns": False, "gradient_checkpointing": False, "disable_tqdm": True, **more,
    }  # fmt: skip


def test_sft_loss_and_gradient_are_trls(
    conversations: Prepared, tokenizer_path: Path, tmp_path: Path
) -> None:
    """TRL finds ids and masks by itself, from the template; its batch is padded, Loom's packed."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    theirs, mine = twins(Tokenizer.load(tokenizer_path).vocab_size, 1)
    count = len(conversations.rows)
    arguments = SFTConfig(
        **common(tmp_path, assistant_only_loss=True, per_device_train_batch_size=count, loss_type="nll")
    )
    trainer = SFTTrainer(
        theirs, arguments, train_dataset=Dataset.from_list(conversations.rows),
        processing_class=peer_tokenizer(tokenizer_path),
    )  # fmt: skip
    (inputs,) = trainer.get_train_dataloader()
    labels = int((inputs["labels"] != -100).sum())
    expected = trainer.compute_loss(theirs, dict(inputs), num_items_in_batch=torch.tensor(labels))
    expected.backward()

    data = conversations.conversations()
    batch = data.batch(np.arange(data.instances))
    assert batch.denominator == labels
    assert len(batch.input_ids) < count
    total, _ = LanguageModel()(mine, batch)
    loss = total / batch.denominator
    loss.backward()
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    assert_equal_gradients(theirs, mine)


def test_sft_loss_and_gradient_are_those_of_transformers(
    conversations: Prepared, tokenizer_path: Path
) -> None:
    """Labels from transformers' own assistant mask, one conversation at a time."""
    theirs, mine = twins(Tokenizer.load(tokenizer_path).vocab_size, 2)
    other = peer_tokenizer(tokenizer_path)
    total = count = 0
    for row in conversations.rows:
        made = other.apply_chat_template(
            row["messages"], return_dict=True, return_assistant_tokens_mask=True, return_tensors="pt"
        )
        labels = made["input_ids"].masked_fill(torch.as_tensor(made["assistant_masks"]) == 0, -100)
        trained = int((labels != -100).sum())
        total = total + theirs(input_ids=made["input_ids"], labels=labels).loss * trained
        count += trained
    expected = total / count
    expected.backward()
    data = conversations.conversations()
    batch = data.batch(np.arange(data.instances))
    loss = LanguageModel()(mine, batch)[0] / batch.denominator
    loss.backward()
    assert batch.denominator == count
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    assert_equal_gradients(theirs, mine)


@pytest.mark.parametrize("label_weight", ["per_token", "per_example"])
def test_weighting_per_example_is_a_mean_of_means(
    label_weight: str, conversations: Prepared, tokenizer_path: Path
) -> None:
    theirs, mine = twins(Tokenizer.load(tokenizer_path).vocab_size, 3)
    other = peer_tokenizer(tokenizer_path)
    means, counts = [], []
    for row in conversations.rows:
        made = other.apply_chat_template(
            row["messages"], return_dict=True, return_assistant_tokens_mask=True, return_tensors="pt"
        )
        labels = made["input_ids"].masked_fill(torch.as_tensor(made["assistant_masks"]) == 0, -100)
        means.append(float(theirs(input_ids=made["input_ids"], labels=labels).loss.detach()))
        counts.append(int((labels != -100).sum()))
    data = conversations.conversations(label_weight)
    batch = data.batch(np.arange(data.instances))
    loss = float(LanguageModel()(mine, batch)[0].detach()) / batch.denominator
    weights = counts if label_weight == "per_token" else None
    assert loss == pytest.approx(float(np.average(means, weights=weights)), rel=1e-5)


@pytest.mark.parametrize("kind", ["sigmoid", "ipo", "norm"])
def test_dpo_loss_rewards_and_gradient_are_trls(
    kind: Any, pairs: Prepared, tokenizer_path: Path, tmp_path: Path
) -> None:
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    size = Tokenizer.load(tokenizer_path).vocab_size
    theirs, mine = twins(size, 4)
    their_reference, my_reference = twins(size, 5)
    count = len(pairs.rows)
    arguments = DPOConfig(
        **common(
            tmp_path, beta=0.1, per_device_train_batch_size=count,
            loss_type=[{"norm": "sigmoid_norm"}.get(kind, kind)],
        )
    )  # fmt: skip
    trainer = DPOTrainer(
        theirs, their_reference, arguments, train_dataset=Dataset.from_list(pairs.rows),
        processing_class=peer_tokenizer(tokenizer_path),
    )  # fmt: skip
    (inputs,) = trainer.get_train_dataloader()
    expected = trainer.compute_loss(theirs, dict(inputs))
    expected.backward()

    data = pairs.pairs()
    batch = data.batch(np.arange(data.instances))
    with torch.no_grad():
        reference = torch.empty(data.instances, 2)
        reference[batch.pairs] = answer_logprobs(my_reference, batch)[0]
    config = DpoConfig(beta=0.1, loss=kind)
    total, sums = Preference(config, reference)(mine, batch)
    loss = total / batch.denominator
    loss.backward()
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    assert_equal_gradients(theirs, mine)
    if kind == "sigmoid":
        logged = trainer._metrics["train"]
        for mine_name, their_name in (
            ("reward_chosen", "rewards/chosen"), ("reward_rejected", "rewards/rejected"),
            ("reward_margin", "rewards/margins"), ("reward_accuracy", "rewards/accuracies"),
        ):  # fmt: skip
            found = float(sums[mine_name]) / batch.denominator
            assert found == pytest.approx(logged[their_name][0], rel=1e-4, abs=1e-6)
