"""Another architecture, through transformers: scores equal to its own forward."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from loom.errors import LoomError
from loom.evals import cache
from loom.evals.encode import encode_items
from loom.evals.evaluate import EvalRecipe, evaluate_text
from loom.evals.items import score_items
from loom.evals.sources import find_sources, read_sources
from loom.evals.subject import digest, load_subject
from loom.evals.written import tasks as written
from loom.evals.written.tasks import generate_answers
from loom.tasks.item import choose
from tests.conftest import skip_by_name
from tests.evals import harness
from tests.evals.conftest import byte_tokenizer

SMALL: dict[str, Any] = {
    "vocab_size": 384,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
    "eos_token_id": 260,
    "bos_token_id": 260,
    "pad_token_id": 261,
}


def write(folder: Path, family: str, more: dict[str, Any]) -> Path:
    """A small random model of a family of transformers'."""
    try:
        import transformers as library
    except ImportError:
        skip_by_name("transformers")
    transformers: Any = library
    config = getattr(transformers, f"{family}Config")(**(SMALL | more))
    torch.manual_seed(0)
    model = getattr(transformers, f"{family}ForCausalLM")(config)
    for name, parameter in model.named_parameters():
        if "norm" not in name.lower() and parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(json.dumps(byte_tokenizer()))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path, "GPTNeoX", {})


GQA = {"num_key_value_heads": 2, "head_dim": 16}
FAMILIES: list[tuple[str, dict[str, Any], bool]] = [
    # family, settings, whether two continuations can share a row
    ("GPTNeoX", {}, True),
    ("Llama", {}, True),
    ("Gemma2", {**GQA, "final_logit_softcapping": 5.0, "sliding_window": 4096}, True),
    ("Gemma2", {**GQA, "final_logit_softcapping": 5.0, "sliding_window": 16}, False),
    ("Cohere", {**GQA, "logit_scale": 0.25}, True),
    ("Granite", {**GQA, "logits_scaling": 8.0}, True),
    ("Mamba", {"state_size": 8}, False),
    ("Bloom", {"n_layer": 2, "n_head": 2}, False),
]


@pytest.mark.parametrize(("family", "more", "shares"), FAMILIES)
def test_equal_to_its_own_forward(tmp_path: Path, family: str, more: dict[str, Any], shares: bool) -> None:
    """Logits that are capped or scaled, windows, states and biases in place of positions: figures are those of
    the model run plainly, one choice at a time."""
    subject = load_subject(write(tmp_path, family, more))
    assert subject.model.plain == (not shares)
    items = [
        choose(i, f"Question {i}: in the\nAnswer:", ("the one", "the other thing", "x"), 0) for i in range(3)
    ]
    scores = score_items(subject.model, items, subject.tokenizer, subject.max_length)
    pairs, _ = encode_items(items, subject.tokenizer)
    for group, logp in zip(pairs, scores.logp, strict=True):
        for pair, value in zip(group, logp, strict=True):
            ids = torch.tensor([[*pair.context, *pair.continuation]])
            with torch.no_grad():
                table = subject.model.inner(ids[:, :-1]).logits.double().log_softmax(-1)[0]
            first = len(pair.context) - 1
            expected = sum(table[first + i, token] for i, token in enumerate(pair.continuation))
            assert value == pytest.approx(float(expected), abs=1e-3)


BEGIN = 262


def write_with_begin(folder: Path, stated: bool = True) -> Path:
    """A Llama whose tokenizer, as Llama 3's, puts a token of its own before every text."""
    write(folder, "Llama", {"bos_token_id": BEGIN})
    spec: dict[str, Any] = byte_tokenizer()
    spec["added_tokens"].append({**spec["added_tokens"][0], "id": BEGIN, "content": "<|begin|>"})
    token = {"id": "<|begin|>", "ids": [BEGIN], "tokens": ["<|begin|>"]}
    before = {"SpecialToken": {"id": "<|begin|>", "type_id": 0}}
    text = [{"Sequence": {"id": name, "type_id": i}} for i, name in enumerate("AB")]
    template = {
        "type": "TemplateProcessing",
        "single": [before, text[0]],
        "pair": [before, text[0], before, text[1]],
        "special_tokens": {"<|begin|>": token},
    }
    level = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}
    spec["post_processor"] = {"type": "Sequence", "processors": [level, template]} if stated else None
    (folder / "tokenizer.json").write_text(json.dumps(spec))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|begin|>"}
    settings |= {"eos_token": "<|endoftext|>", "pad_token": "<|padding|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


OPENED = [
    choose(0, "Question: what is the thing?\nAnswer:", ("the inner thing", "a"), 0, unconditioned="Answer:"),
    choose(1, "in the ", ("x", "y"), 0, joint=""),
    choose(2, "", ("the", "in the"), 0, joint=""),
]


@pytest.mark.parametrize("stated", [True, False])
def test_what_its_tokenizer_puts_before_a_text_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stated: bool
) -> None:
    """Ids are those of the tokenizer with all it adds by itself; before nothing stands its BOS in any case."""
    from tokenizers import Tokenizer as Fast

    folder = write_with_begin(tmp_path, stated)
    subject, fast = load_subject(folder), Fast.from_file(str(folder / "tokenizer.json"))
    conditioned, free = encode_items(OPENED, subject.tokenizer, subject.opening)
    for item, group in zip(OPENED, conditioned, strict=True):
        for pair, (context, continuation) in zip(group, item.pairs, strict=True):
            whole = fast.encode(context + continuation).ids
            assert [*pair.context, *pair.continuation] == (whole if context or stated else [BEGIN, *whole])
            assert list(pair.context) == (fast.encode(context.rstrip()).ids or [BEGIN])
    assert list(free[0][0].context) == fast.encode("Answer:").ids
    scores, _ = cache.items(subject, OPENED, subject.max_length)
    for group, logp in zip(conditioned, scores.logp, strict=True):
        for pair, value in zip(group, logp, strict=True):
            with torch.no_grad():
                ids = torch.tensor([[*pair.context, *pair.continuation]])
                table = subject.model.inner(ids[:, :-1]).logits.double().log_softmax(-1)[0]
            rows = range(len(pair.context) - 1, ids.shape[1] - 1)
            expected = sum(float(table[row, ids[0, row + 1]]) for row in rows)
            assert value == pytest.approx(expected, abs=1e-3)
    (tmp_path / "a.txt").write_text("in the end")
    score = evaluate_text(subject, EvalRecipe(), read_sources(find_sources([tmp_path / "a.txt"])), {})[1][0]
    ids = torch.tensor([[BEGIN, *subject.tokenizer.encode("in the end").tolist()]])
    with torch.no_grad():
        table = subject.model.inner(ids[:, :-1]).logits.double().log_softmax(-1)[0]
    expected = sum(float(table[row, ids[0, row + 1]]) for row in range(ids.shape[1] - 1))
    assert score["nll"] == pytest.approx(-expected, abs=1e-3)
    asked: list[Any] = []

    def keep(_: Any, ids: list[list[int]], *__: Any) -> list[Any]:
        asked.extend(ids)
        return []

    monkeypatch.setattr(written, "generate_answers", keep)
    task = written.WRITTEN["alpaca_eval"]
    written.write_answers(subject, task, [written.Prompt("in the", {})], chat=False)
    assert asked == [fast.encode("in the").ids if stated else [260, *fast.encode("in the").ids]]


@pytest.mark.slow
@pytest.mark.parametrize("stated", [True, False])
def test_with_its_first_token_it_is_scored_as_by_the_harness(tmp_path: Path, stated: bool) -> None:
    if importlib.util.find_spec("lm_eval") is None:
        skip_by_name("lm-evaluation-harness")
    folder = write_with_begin(tmp_path, stated)
    subject = load_subject(folder)
    scores, _ = cache.items(subject, OPENED, subject.max_length)
    lm = harness.language_model(str(folder))
    for item, logp in zip(OPENED, scores.logp, strict=True):
        assert list(logp) == pytest.approx(harness.loglikelihoods(lm, item.pairs), abs=1e-3)


UNKNOWN: list[tuple[str, Callable[[torch.Tensor], torch.Tensor]]] = [
    ("makes its logits .* in a way that is not known", lambda logits: logits * 0.5),
    ("no causal language model", lambda logits: logits + logits.mean(1, keepdim=True)),
]


@pytest.mark.parametrize(("why", "change"), UNKNOWN)
def test_what_is_not_known_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, why: str, change: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    """A family that does more behind the output matrix; one whose tokens depend on those after them."""
    folder = write(tmp_path, "Llama", {})
    import transformers

    model: Any = transformers.LlamaForCausalLM
    forward = model.forward

    def changed(self: Any, *given: Any, **named: Any) -> Any:
        found = forward(self, *given, **named)
        found.logits = change(found.logits)
        return found

    monkeypatch.setattr(model, "forward", changed)
    with pytest.raises(LoomError, match=why):
        load_subject(folder)


@pytest.mark.parametrize("family", ["GPTNeoX", "Mamba"])
def test_its_answers_are_its_most_likely_tokens(tmp_path: Path, family: str) -> None:
    """Greedy, token by token through the plain forward; a stop token ends an answer, a stop string too, and what
    the folder says of sampling does not count."""
    folder = write(tmp_path, family, {})
    settings = {"do_sample": True, "temperature": 5.0, "repetition_penalty": 3.0, "eos_token_id": 260}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    subject = load_subject(folder)
    prompts = [subject.tokenizer.encode(text).tolist() for text in ("in the", "Question 7: what")]
    said = []
    for prompt in prompts:
        ids = list(prompt)
        for _ in range(8):
            with torch.no_grad():
                ids.append(int(subject.model.inner(torch.tensor([ids])).logits[0, -1].argmax()))
        said.append(tuple(ids[len(prompt) :]))
    found = generate_answers(subject, prompts, 8, (260,))
    assert [answer.tokens for answer in found] == said
    assert {answer.finish for answer in found} == {"length"}
    stop = said[0][4]
    (ended, *_) = generate_answers(subject, prompts[:1], 8, (stop,))
    assert ended.tokens == said[0][: said[0].index(stop)] and ended.finish == "stop"
    word = subject.tokenizer.decode(said[1][:3])[-1]
    (ended,) = generate_answers(subject, prompts[1:], 8, (260,), [word])
    assert ended.finish == "stop" and word in subject.tokenizer.decode(ended.tokens)
    assert len(ended.tokens) <= 3


def test_a_bin_of_other_weights_is_another_model(folder: Path) -> None:
    """`pytorch_model.bin` is read where there are no safetensors, so it is part of what identifies a model."""
    before = digest(folder)
    (folder / "pytorch_model.bin").write_bytes(b"weights")
    assert digest(folder) != before


def test_another_models_tokenizer_is_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"eos_token_id": 7}))
    (folder / "generation_config.json").unlink(missing_ok=True)
    with pytest.raises(LoomError, match="ends text with id 7"):
        load_subject(folder)


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
