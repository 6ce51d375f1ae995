"""In the loop: the figures of the offline scorer, in fixed shapes, on any number of ranks."""

from __future__ import annotations

import socket
from dataclasses import replace
from datetime import timedelta
from typing import Any

import numpy as np
import pytest
import torch

from loom.evals import inloop, metrics
from loom.evals.inloop import InLoop
from loom.evals.items import score_items
from loom.evals.perplexity import Document, score_documents, summary
from loom.model.transformer import Transformer
from loom.tasks.item import choose
from loom.tokens.tokenizer import Tokenizer
from tests.evals.conftest import random_model, rng

QUESTIONS = [
    choose(i, f"Question {i} in the", (f"{i} thing", f"the {i * i}", "no"), i % 3) for i in range(23)
]


def documents() -> list[Document]:
    draw = rng(1)
    return [
        Document(str(i), "ab"[i % 2], "ab"[i % 2], draw.integers(0, 256, size), int(size))
        for i, size in enumerate(draw.integers(1, 150, 12))
    ]


def test_equal_to_offline(model: Transformer, tokenizer: Tokenizer) -> None:
    texts = documents()
    logged = InLoop(tokenizer, {"quiz": QUESTIONS}, texts, length=48, rows=4)(model, 1)
    scores = score_items(model, QUESTIONS, tokenizer, 48)
    outcomes = [outcome for outcome in metrics.outcomes(QUESTIONS, scores) if outcome is not None]
    for name in ("acc", "acc_norm", "bpb", "soft"):
        value, error = metrics.mean([outcome.values[name] for outcome in outcomes])
        assert logged[f"quiz/{name}"] == pytest.approx(value, abs=1e-5)
        assert logged[f"quiz/{name}_stderr"] == pytest.approx(error, abs=1e-5)
    assert logged["quiz/n"] == len(QUESTIONS)
    for name, group in {
        "validation": texts,
        "a": [text for text in texts if text.source == "a"],
    }.items():
        whole = summary(score_documents(model, group, tokenizer.eos_id, 48))
        assert logged[f"{name}/loss"] == pytest.approx(whole["loss"], abs=1e-5)
        assert logged[f"{name}/bits_per_byte"] == pytest.approx(whole["bits_per_byte"], abs=1e-5)


def test_every_forward_has_the_same_shapes_and_the_model_goes_back_to_training(
    tokenizer: Tokenizer,
) -> None:
    model = random_model().train()
    shapes: list[Any] = []
    handle = model.register_forward_pre_hook(
        lambda _, args, kwargs: shapes.append(
            (
                tuple(args[0].shape),
                *(tuple(kwargs[name].shape) for name in ("position_ids", "attn_mask", "at")),
            )
        ),
        with_kwargs=True,
    )
    InLoop(tokenizer, {"quiz": QUESTIONS}, length=48, rows=4)(model, 1)
    handle.remove()
    assert len(shapes) > 2
    assert len(set(shapes)) == 1
    assert model.training


def test_no_time_means_no_figures(model: Transformer, tokenizer: Tokenizer) -> None:
    logged = InLoop(tokenizer, {"quiz": QUESTIONS}, documents(), length=48, rows=4, budget=0.0)(model, 1)
    assert logged["quiz/n"] == 0
    assert "quiz/acc" not in logged
    assert "validation/loss" not in logged


def test_a_diverged_model_gives_figures_that_are_not_numbers(tokenizer: Tokenizer) -> None:
    """So that the loop stops at them; and no accuracy is made of an argmax of NaN."""
    model = random_model()
    model.embed.weight.data.fill_(float("nan"))
    logged = InLoop(tokenizer, {"quiz": QUESTIONS}, documents(), length=48, rows=4)(model, 1)
    assert {name for name, value in logged.items() if np.isnan(value)} == {
        "quiz/acc",
        *(f"{name}/{metric}" for name in ("a", "b", "validation") for metric in ("bits_per_byte", "loss")),
    }


class Clock:
    """Time that passes by so many seconds whenever it is asked for."""

    def __init__(self, step: float = 1.0) -> None:
        self.now, self.step = 0.0, step

    def monotonic(self) -> float:
        self.now += self.step
        return self.now


def test_time_that_runs_out_leaves_each_its_part_and_says_so_once(
    model: Transformer,
    tokenizer: Tokenizer,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """What was held out comes first; tasks and texts then get as far as each other. Longer budgets measure more, and
    a document counts whole or not at all."""
    held = documents()[:4]
    texts = [replace(one, source=f"page-{one.id}") for one in documents()]  # a name each, to see which count
    pages = [text.source for text in texts]
    scores = score_documents(model, texts, tokenizer.eos_id, 48)
    whole = InLoop(tokenizer, {"quiz": QUESTIONS}, held, length=48, rows=1, texts=texts)(model, 1)
    counted: list[tuple[float, float]] = []
    for budget in (2.0, 20.0, 30.0, 1000.0):
        callback = InLoop(tokenizer, {"quiz": QUESTIONS}, held, length=48, rows=1, texts=texts, budget=budget)
        monkeypatch.setattr("loom.evals.inloop.time", Clock())
        logged, again = callback(model, 1), callback(model, 2)
        monkeypatch.undo()
        assert {**logged, "seconds": 0} == {**again, "seconds": 0}
        told = capfd.readouterr().err
        assert told.count("were too short for") == (budget < 1000)
        for name in pages:
            assert (f"{name} (0 of 1)" in told) == (logged[f"{name}/n"] == 0)
        for score in scores:
            figure = logged.get(f"{score.source}/bits_per_byte")
            assert (figure is None) == (logged[f"{score.source}/n"] == 0)
            own = summary([score])["bits_per_byte"]
            assert figure is None or figure == pytest.approx(own, abs=1e-5)
        counted.append((sum(logged[f"{name}/n"] for name in pages), logged["quiz/n"]))
        if budget > 2:
            assert logged["validation/n"] == len(held)
            assert logged["validation/loss"] == pytest.approx(whole["validation/loss"], abs=1e-5)
    assert counted[0] == (0, 0) and counted[-1] == (len(texts), len(QUESTIONS))
    assert all(0 < text < len(texts) and 0 < task < len(QUESTIONS) for text, task in counted[1:3])
    assert counted[1] < counted[2]
    assert {**logged, "seconds": 0} == pytest.approx({**whole, "seconds": 0}, abs=1e-5)


def test_a_document_of_which_a_window_is_missing_does_not_count(
    model: Transformer, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = Document("long", "long", "long", rng(2).integers(0, 256, 600), 600)
    for budget, whole in ((8.0, False), (1000.0, True)):
        monkeypatch.setattr("loom.evals.inloop.time", Clock())
        logged = InLoop(tokenizer, {}, [long], length=48, rows=1, budget=budget)(model, 1)
        assert logged["long/n"] == logged["validation/n"] == whole
        assert ("long/bits_per_byte" in logged) == ("validation/loss" in logged) == whole


def test_nothing_takes_anothers_name(model: Transformer, tokenizer: Tokenizer) -> None:
    """A text called as a task, as what was held out, or `validation`; a held-out source called as a task."""
    whole = documents()
    held = [replace(one, source=name) for one, name in zip(whole, ("c4", "quiz", "c4"), strict=False)]
    texts = [
        replace(one, source=name)
        for one, name in zip(whole[4:], ("c4", "quiz", "validation", "news"), strict=False)
    ]
    logged = InLoop(tokenizer, {"quiz": QUESTIONS}, held, length=48, rows=4, texts=texts)(model, 1)
    expected = {
        "validation": held,
        "c4": [held[0], held[2]],
        "text:quiz": [held[1]],
        "text:c4": [texts[0]],
        "text:text:quiz": [texts[1]],
        "text:validation": [texts[2]],
        "news": [texts[3]],
    }
    for name, group in expected.items():
        own = summary(score_documents(model, group, tokenizer.eos_id, 48))
        assert logged[f"{name}/n"] == len(group)
        assert logged[f"{name}/bits_per_byte"] == pytest.approx(own["bits_per_byte"], abs=1e-5)
    assert logged["quiz/n"] == len(QUESTIONS)
    assert {name.rpartition("/")[0] for name in logged} == {"", "quiz", *expected}


def _rank(rank: int, world: int, port: int, out: str, budget: float | None = None) -> None:
    import json

    import torch.distributed as dist
    from torch.distributed.fsdp import fully_shard

    from tests.evals.conftest import byte_tokenizer

    torch.set_num_threads(1)
    address, patience = f"tcp://127.0.0.1:{port}", timedelta(minutes=2)
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=world, timeout=patience)
    tokenizer = Tokenizer(json.dumps(byte_tokenizer()).encode(), "bytes")
    model = random_model()
    for block in model.blocks:
        fully_shard(block)
    fully_shard(model)
    if budget is not None:
        inloop.time = Clock(1.0 + rank)  # type: ignore[assignment]
    logged = InLoop(tokenizer, {"quiz": QUESTIONS}, documents(), length=48, rows=4, budget=budget)(model, 1)
    logged.pop("seconds")
    torch.save(logged, f"{out}/{rank}.pt")
    dist.destroy_process_group()


def _port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.slow
def test_ranks_whose_clocks_differ_stop_together(tokenizer: Tokenizer, tmp_path: Any) -> None:
    """At a forward that one rank makes and another does not, a sharded model would wait for ever."""
    torch.multiprocessing.spawn(_rank, (2, _port(), str(tmp_path), 8.5), nprocs=2)
    one, other = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert one == other
    assert 0 < one["validation/n"] + one["quiz/n"] < len(documents()) + len(QUESTIONS)


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 3])
def test_sharded_over_ranks_gives_the_same_figures(
    model: Transformer, tokenizer: Tokenizer, tmp_path: Any, world: int
) -> None:
    torch.multiprocessing.spawn(_rank, (world, _port(), str(tmp_path)), nprocs=world)
    alone = InLoop(tokenizer, {"quiz": QUESTIONS}, documents(), length=48, rows=4)(model, 1)
    alone.pop("seconds")
    for rank in range(world):
        there = torch.load(tmp_path / f"{rank}.pt")
        assert there.keys() == alone.keys()
        np.testing.assert_allclose([there[k] for k in alone], list(alone.values()), atol=1e-5)


def test_compiled_blocks_are_not_compiled_again(tokenizer: Tokenizer) -> None:
    """Dynamo alone (no code is generated): a second evaluation, and a third, look new to no block."""
    model = random_model()
    callback = InLoop(tokenizer, {"quiz": QUESTIONS}, documents(), length=48, rows=4)
    plain = callback(model, 1)
    for block in model.blocks:
        block.compile(backend="eager")
    first = callback(model, 2)
    with torch.compiler.set_stance("fail_on_recompile"):
        second, third = callback(model, 3), callback(model, 4)
    for other in (first, second, third):
        assert {name: value for name, value in other.items() if name != "seconds"} == pytest.approx(
            {name: value for name, value in plain.items() if name != "seconds"}, abs=1e-5
        )
