"""Losses do not depend on the number of ranks, the way of sharding, or where a run was resumed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from loom.errors import LoomError
from loom.train.checkpoint import read_weights, step_folder
from loom.train.config import ParallelConfig, RunConfig
from loom.train.loop import train

from .ranks import launch
from .test_loop import losses, recipe
from .tokens import learnable, write_tokens

pytestmark = pytest.mark.slow
STEPS = 20
BATCH = 12 * 32  # divisible by 1, 2, 3 and 4 ranks


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> tuple[RunConfig, Path]:
    folder = tmp_path_factory.mktemp("alone")
    write_tokens(folder / "tokens", [learnable(9000, 64, 1)])
    config = recipe(folder / "tokens", steps=STEPS, batch_tokens=BATCH, checkpoint_every=10, micro_batch=12)
    train(config, folder / "run")
    return config, folder / "run"


def layout(config: RunConfig, strategy, micro_batch: int, steps: int = STEPS, **changes) -> RunConfig:
    return replace(
        config,
        parallel=ParallelConfig(strategy, replicas=2 if strategy == "hsdp" else None),
        train=replace(config.train, micro_batch=micro_batch, steps=steps, **changes),
    )


@pytest.mark.parametrize(
    ("ranks", "strategy", "micro_batch"),
    [(2, "ddp", 2), (2, "fsdp", 6), (3, "fsdp", 4), (4, "ddp", 1), (4, "fsdp", 3), (4, "hsdp", 2)],
)
def test_any_layout_gives_the_same_losses(
    alone, tmp_path: Path, ranks: int, strategy, micro_batch: int
) -> None:
    config, run = alone
    launch(ranks, layout(config, strategy, micro_batch), tmp_path / "run")
    assert losses(tmp_path / "run") == pytest.approx(losses(run), abs=1e-5)
    ours, theirs = (read_weights(step_folder(folder, STEPS)) for folder in (tmp_path / "run", run))
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("ranks", "strategy", "recompute", "document_mask"),
    [(2, "ddp", "none", False), (4, "fsdp", "full", True)],
)
def test_rows_parted_over_two_ranks_give_the_same_losses(
    alone, tmp_path: Path, ranks: int, strategy, recompute: str, document_mask: bool
) -> None:
    """With document masks the oracle is a run of its own, else the module's."""
    config, run = alone
    config = replace(config, data=replace(config.data, document_mask=document_mask))
    if document_mask:
        run = tmp_path / "alone"
        train(config, run)
    parted = layout(config, strategy, 3, recompute=recompute)
    parted = replace(parted, parallel=replace(parted.parallel, context=2))
    launch(ranks, parted, tmp_path / "run")
    assert losses(tmp_path / "run") == pytest.approx(losses(run), abs=1e-5)
    with pytest.raises(LoomError, match=r"parallel.context"):
        train(parted, tmp_path / "one rank")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((2, "fsdp"), (1, "auto")),
        ((2, "ddp"), (4, "fsdp")),
        ((4, "fsdp"), (3, "hsdp")),
        ((2, "fsdp"), (3, "fsdp")),  # 32 rows over 3 ranks: not the same number each
    ],
)
def test_resume_on_another_number_of_ranks(alone, tmp_path: Path, before, after) -> None:
    config, run = alone
    # A constant schedule length: the first leg must follow the whole run's learning rate.
    whole = replace(config, schedule=replace(config.schedule, length=STEPS))
    launch(before[0], layout(whole, before[1], 2, steps=10), tmp_path / "run")
    second = layout(whole, after[1], 3)
    if after[1] == "hsdp":
        second = replace(second, parallel=ParallelConfig("hsdp", replicas=3))
    if after[0] == 1:
        train(second, tmp_path / "run")
    else:
        launch(after[0], second, tmp_path / "run")
    assert losses(tmp_path / "run") == pytest.approx(losses(run), abs=1e-5)


@pytest.mark.parametrize("strategy", ["fsdp"])
def test_bf16_with_sharding_keeps_float32_weights(alone, tmp_path: Path, strategy) -> None:
    config, _ = alone
    mixed = layout(config, strategy, 3, precision="bf16")
    launch(2, mixed, tmp_path / "two")
    train(mixed, tmp_path / "one")
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=0.02)
    assert {t.dtype for t in read_weights(step_folder(tmp_path / "two", STEPS)).values()} == {torch.float32}
