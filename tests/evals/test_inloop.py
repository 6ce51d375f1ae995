"""In the loop: the figures of the offline scorer, in fixed shapes, on any number of ranks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from loom.evals import metrics
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


def _rank(rank: int, world: int, port: int, out: str) -> None:
    import json

    import torch.distributed as dist
    from torch.distributed.fsdp import fully_shard

    from tests.evals.conftest import byte_tokenizer

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    tokenizer = Tokenizer(json.dumps(byte_tokenizer()).encode(), "bytes")
    model = random_model()
    for block in model.blocks:
        fully_shard(block)
    fully_shard(model)
    logged = InLoop(tokenizer, {"quiz": QUESTIONS}, documents(), length=48, rows=4)(model, 1)
    logged.pop("seconds")
    torch.save(logged, f"{out}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 3])
def test_sharded_over_ranks_gives_the_same_figures(
    model: Transformer, tokenizer: Tokenizer, tmp_path: Any, world: int
) -> None:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(_rank, (world, port, str(tmp_path)), nprocs=world)
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
