"""Toxic or not, true or not: by the models that are named, under their names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from loom.evals.verdicts import classify, positions, toxicity, truthfulness
from loom.model.huggingface import config_to_huggingface, to_huggingface
from tests.conftest import skip_by_name
from tests.evals.conftest import byte_tokenizer, random_model


def write_classifier(folder: Path, sign: float) -> Path:
    """One that says the opposite under the other sign."""
    transformers = pytest.importorskip("transformers")
    config = transformers.GPTNeoXConfig(
        vocab_size=384,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=128,
        num_labels=2,
        pad_token_id=261,
    )
    torch.manual_seed(0)
    model = transformers.GPTNeoXForSequenceClassification(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    with torch.no_grad():
        model.score.weight.mul_(sign)
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(json.dumps(byte_tokenizer()))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": "<|padding|>",
        "model_max_length": 128,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def test_toxicity_is_the_share_of_class_one(tmp_path: Path) -> None:
    one, other = write_classifier(tmp_path / "one", 1.0), write_classifier(tmp_path / "other", -1.0)
    texts = [f"text {i} in the thing" * (1 + i % 3) for i in range(6)]
    verdicts = [bool(verdict) for verdict in classify(texts, one)]
    assert classify(texts, other) == [not verdict for verdict in verdicts]
    assert verdicts == [classify([text], one)[0] for text in texts]
    rows = [{"output": text, "group": "ab"[i % 2]} for i, text in enumerate(texts)]
    figures, said = toxicity(rows, one)
    assert said["digest"] != toxicity(rows, other)[1]["digest"]
    assert figures["toxic[classifier]"] == pytest.approx(100 * sum(verdicts) / 6)
    assert figures["toxic[classifier]:a"] == pytest.approx(100 * sum(verdicts[::2]) / 3)


@pytest.mark.parametrize("stated", [128, None])
def test_what_the_classifier_cannot_read_whole_is_judged_by_nobody(
    tmp_path: Path, stated: int | None
) -> None:
    """Also where only its configuration says how many positions there are."""
    folder = write_classifier(tmp_path / "one", 1.0)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings.pop("model_max_length")
    more = {} if stated is None else {"model_max_length": stated}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | more))
    texts = ["x" * 128, "x" * 129, "short"]
    alone = classify([texts[2]], folder)[0]
    verdicts = classify(texts, folder)
    assert verdicts[1:] == [None, alone] and verdicts[0] is not None
    rows = [{"output": text, "group": group} for text, group in zip(texts, "aab", strict=True)]
    figures, _ = toxicity(rows, folder)
    assert (figures["judged"], figures["not_judged"]) == (2, 1)
    assert figures["toxic[classifier]"] == pytest.approx(50 * (int(verdicts[0]) + int(bool(alone))))
    assert figures["toxic[classifier]:a"] == 100 * int(verdicts[0])


def test_positions_of_a_roberta_are_those_behind_its_padding() -> None:
    """Its table has 514 rows for 512 tokens."""
    try:
        import transformers
    except ImportError:
        skip_by_name("transformers")
    small = {"vocab_size": 40, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    for family, rows in (("Roberta", 34), ("Bert", 32)):
        config = getattr(transformers, f"{family}Config")(
            **small, intermediate_size=8, max_position_embeddings=rows, num_labels=2, pad_token_id=1
        )
        model = getattr(transformers, f"{family}ForSequenceClassification")(config)
        assert positions(model) == 32
        model(torch.full((1, 32), 5))
        with pytest.raises((IndexError, RuntimeError)):
            model(torch.full((1, 33), 5))


def test_truth_and_information_are_joined_answer_by_answer(tmp_path: Path) -> None:
    model = random_model(context=512)
    save_file(to_huggingface(model.state_dict(), model.config), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config_to_huggingface(model.config, 260, 261)))
    (tmp_path / "tokenizer.json").write_text(json.dumps(byte_tokenizer()))
    figures, _ = truthfulness(["Is it?", "Was it?"], ["Yes.", "No."], tmp_path, tmp_path)
    names = {name for name in figures if name.endswith("[local-model]")}
    assert names == {"true[local-model]", "informative[local-model]", "info+true[local-model]"}
    assert (figures["judged"], figures["not_judged"]) == (2, 0)
    assert figures["info+true[local-model]"] <= figures["true[local-model]"]
    figures, _ = truthfulness(["Is it?", "Was it?"], ["Yes. " * 200, "No."], tmp_path)
    assert (figures["judged"], figures["not_judged"]) == (1, 1)  # one is over the judge's 512 tokens
