"""Every document's prediction equals lm-evaluation-harness's, on a random and on a trained model."""

from __future__ import annotations

import gzip
import importlib.util
import json
import pydoc_data.topics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from loom.evals import metrics
from loom.evals.items import score_items
from loom.evals.perplexity import Document, score_documents
from loom.model.huggingface import config_to_huggingface, to_huggingface
from loom.model.transformer import Transformer
from loom.tasks import data, registry
from loom.tasks.item import Item
from loom.tokens.tokenizer import Tokenizer
from tests.conftest import skip_by_name
from tests.evals import harness
from tests.evals.conftest import byte_tokenizer, random_model
from tests.tasks import rows

TOLERANCE = 1e-3  # nats


def trained_model(tokenizer: Tokenizer) -> Transformer:
    """A few seconds of training on Python's own help texts: enough that choices are far from random."""
    model = random_model(width=64, context=1024)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.05, generator=torch.Generator().manual_seed(1))
    text = "\n".join(pydoc_data.topics.topics.values())[:300_000]
    ids = torch.from_numpy(tokenizer.encode(text).astype(np.int64))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(60):
        starts = torch.randint(0, len(ids) - 129, (16,), generator=generator)
        batch = torch.stack([ids[start : start + 129] for start in starts])
        loss = F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 3.2  # nats a token; uniform would be 5.6
    return model.eval()


@pytest.fixture(scope="module")
def pair(request: pytest.FixtureRequest, tokenizer: Tokenizer) -> tuple[Transformer, Any]:
    """Loom's model and the same weights in the harness."""
    model = trained_model(tokenizer) if request.param == "trained" else random_model(context=1024)
    return model, oracle(model)


def oracle(model: Transformer) -> Any:
    if importlib.util.find_spec("lm_eval") is None:
        skip_by_name("lm-evaluation-harness")
    import transformers
    from tokenizers import Tokenizer as Fast

    config = config_to_huggingface(model.config, 260, 261)
    theirs = transformers.OlmoForCausalLM(transformers.OlmoConfig(**config))
    weights = to_huggingface(model.state_dict(), model.config)
    theirs.load_state_dict(weights, strict=False)
    theirs.tie_weights()
    wrapped = transformers.PreTrainedTokenizerFast(
        tokenizer_object=Fast.from_str(json.dumps(byte_tokenizer())),
        eos_token="<|endoftext|>",
        pad_token="<|padding|>",
        clean_up_tokenization_spaces=False,
    )
    return harness.language_model(theirs.eval(), wrapped)


def write(folder: Path, name: str, split: str, lines: Sequence[dict[str, Any]]) -> None:
    path = folder / f"{name}.{split}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def compare(model: Transformer, tokenizer: Tokenizer, items: Sequence[Item], theirs: dict[int, Any]) -> int:
    """Prompts, log-likelihoods and decisions of every document; how many documents are too close to call."""
    scores = score_items(model, items, tokenizer, model.config.context_length)
    found = metrics.outcomes(items, scores)
    assert len(items) == len(theirs)
    close = 0
    for item, logp, outcome in zip(items, scores.logp, found, strict=True):
        sample = theirs[item.doc_id]
        assert list(item.pairs) == sample["pairs"]
        np.testing.assert_allclose(logp, sample["logp"], atol=TOLERANCE)
        assert outcome is not None
        if outcome.close:
            close += 1
            continue
        assert outcome.values["acc"] == pytest.approx(sample["acc"], abs=1e-3)
        if sample["acc_norm"] is not None:
            assert outcome.values["acc_norm"] == sample["acc_norm"]
    return close


@pytest.mark.slow
@pytest.mark.parametrize("pair", ["random", "trained"], indirect=True)
def test_every_format(pair: tuple[Transformer, Any], tokenizer: Tokenizer, tmp_path: Path) -> None:
    model, lm = pair
    theirs = harness.run(lm, rows.ROWS)["samples"]
    close = 0
    for name, lines in rows.ROWS.items():
        write(tmp_path, name, "validation", lines)
        items = data.load(registry.task(name), tmp_path).items
        close += compare(model, tokenizer, items, theirs[name])
    _few(close, sum(map(len, rows.ROWS.values())))


@pytest.mark.slow
@pytest.mark.parametrize("pair", ["trained"], indirect=True)
@pytest.mark.parametrize("form", ["mmlu", "mmlu_continuation"])
@pytest.mark.parametrize("shots", [0, 5])
def test_mmlu(
    pair: tuple[Transformer, Any], tokenizer: Tokenizer, tmp_path: Path, form: str, shots: int
) -> None:
    model, lm = pair
    name = "mmlu_world_religions" + form.removeprefix("mmlu")
    theirs = harness.run(lm, {name: rows.MMLU}, shots, {name: rows.MMLU_DEV})["samples"][name]
    write(tmp_path / "mmlu", "world_religions", "test", rows.MMLU)
    write(tmp_path / "mmlu", "world_religions", "dev", rows.MMLU_DEV)
    task = registry.task(f"{form}:{shots}shot" if shots else form)
    items = data.load(task, tmp_path).items
    _few(compare(model, tokenizer, items, theirs), len(items))


@pytest.mark.slow
@pytest.mark.parametrize("pair", ["trained"], indirect=True)
def test_documents_longer_than_the_context_and_real_rows(
    pair: tuple[Transformer, Any], tokenizer: Tokenizer, shared_data: Path
) -> None:
    """Bytes are tokens here, so most BoolQ passages are longer than the model's 1,024."""
    model, lm = pair
    loaded = {
        name: data.load(registry.task(name), shared_data / "eval", limit=6)
        for name in ("boolq", "arc_easy", "openbookqa", "piqa", "sciq")
    }
    lines = {name: _first(found.found[0].path, 6) for name, found in loaded.items()}
    for name in ("truthfulqa_mc1", "truthfulqa_mc2"):  # the authors' table; the harness reads the Hub's rows
        loaded[name] = data.load(registry.task(name), shared_data / "eval", limit=3)
        raw = _first(loaded[name].found[0].path, 3)
        lines[name] = [harness.hub_row(row, loaded[name].items[i], name) for i, row in enumerate(raw)]
    theirs = harness.run(lm, lines)["samples"]
    close = sum(compare(model, tokenizer, loaded[name].items, theirs[name]) for name in loaded)
    _few(close, sum(map(len, lines.values())))


@pytest.mark.slow
@pytest.mark.parametrize("pair", ["trained"], indirect=True)
def test_real_questions_of_mmlu_with_their_examples(
    pair: tuple[Transformer, Any], tokenizer: Tokenizer, shared_data: Path
) -> None:
    """The dev file's examples before questions of the test file: two, and five, with which some are longer than
    the 1,024 bytes that the model reads."""
    model, lm = pair
    name = "mmlu_abstract_algebra"
    folder = shared_data / "eval" / "mmlu"
    lines = {name: _first(folder / "abstract_algebra.test.jsonl.gz", 2)}
    examples = {name: _first(folder / "abstract_algebra.dev.jsonl.gz", 5)}
    for shots in (2, 5):
        theirs = harness.run(lm, lines, shots, examples)["samples"][name]
        task = registry.task(f"{name}:{shots}shot" if shots else name)
        items = data.load(task, shared_data / "eval", limit=2).items
        _few(compare(model, tokenizer, items, theirs), len(items))


def _few(close: int, of: int) -> None:
    """At most a tenth of the documents may be too close to call: beyond that, equality says little."""
    print(f"{close} of {of} documents have two choices within {TOLERANCE} nats")
    assert close <= max(1, of // 10)


@pytest.mark.slow
@pytest.mark.parametrize("pair", ["trained"], indirect=True)
def test_perplexity_equals_the_rolling_log_likelihood(
    pair: tuple[Transformer, Any], tokenizer: Tokenizer, shared_data: Path
) -> None:
    model, lm = pair
    file = next((shared_data / "paloma").rglob("*.jsonl.gz"))
    texts = [line["text"] for line in _first(file, 2)] + ["short", "é", "x" * 1023, "x" * 1024, "x" * 1025]
    documents = [
        Document(str(i), "c4", "c4", tokenizer.encode(text), len(text.encode()))
        for i, text in enumerate(texts)
    ]
    ours = score_documents(model, documents, tokenizer.eos_id, model.config.context_length)
    theirs = harness.rolling(lm, texts)
    np.testing.assert_allclose([-score.nll for score in ours], theirs, rtol=1e-5, atol=TOLERANCE)


def _first(path: Path, count: int) -> list[dict[str, Any]]:
    with gzip.open(path, "rt") as stream:
        return [json.loads(line) for _, line in zip(range(count), stream, strict=False)]
