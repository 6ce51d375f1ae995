"""One step of SFT and DPO by the real loop: micro-batches, packing and ranks change neither loss nor gradient.

AdamW's first step is g / (|g| + eps) times the learning rate: with both at 1,000 the weights move by the
gradient itself, so that weights after the step compare gradients.
"""

from __future__ import annotations

import itertools
import pickle
import socket
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp

from loom.model.presets import ModelRecipe
from loom.tokens.shards import open_tokens
from loom.train.checkpoint import read_weights, step_folder
from loom.train.config import DataConfig, DpoConfig, OptimizerConfig, RunConfig, ScheduleConfig
from loom.train.data import PackedRows
from loom.train.documents import DocumentTable
from loom.train.loop import train
from tests.train.ranks import set_rank
from tests.train.test_loop import losses, recipe
from tests.train.tokens import learnable, write_conversations, write_tokens

pytestmark = pytest.mark.slow
COUNT = 20
KINDS = ("per_token", "per_example", "dpo")
CASES = list(itertools.product(KINDS, ("packed", "padded"), (8, 4, 1)))


def alone(sizes: list[int], length: int) -> tuple[np.ndarray, np.ndarray]:
    """In place of packing: every document in a row of its own."""
    return np.arange(len(sizes)), np.zeros(len(sizes), np.int64)


def one_step(root: Path, case: tuple[str, str, int], out: Path) -> None:
    kind, packing, micro_batch = case
    table = pickle.loads((root / f"{folder_of(kind)}.table").read_bytes())
    config = configuration(root, table, kind, packing, micro_batch)
    with ExitStack() as stack:
        if packing == "padded":
            for room in ("documents", "branches"):
                stack.enter_context(mock.patch(f"loom.train.{room}.best_fit", alone))
        train(config, out, documents=table)


def folder_of(kind: str) -> str:
    return "pairs" if kind == "dpo" else "sft"


def configuration(root: Path, table: DocumentTable, kind: str, packing: str, micro_batch: int) -> RunConfig:
    base = recipe(root / "tokens", steps=1, eval_every=1, checkpoint_every=1)
    common = replace(
        base,
        optimizer=OptimizerConfig(learning_rate=1e3, eps=1e3, weight_decay=0.0, clip=None),
        schedule=ScheduleConfig(kind="constant"),
    )
    if kind == "dpo":
        init = step_folder(root / "base", 1)
        steps = replace(
            base.train, objective="dpo", init=str(init), batch_pairs=COUNT, micro_batch_pairs=micro_batch
        )
        data = DataConfig(pairs=str(root / "pairs"))
        return replace(common, model=ModelRecipe(), data=data, dpo=DpoConfig(beta=0.5), train=steps)
    rows = COUNT if packing == "padded" else PackedRows(open_tokens(root / "sft"), table, 32, 1).instances
    assert rows % 2 == 0 and (rows == COUNT) == (packing == "padded")
    steps = replace(
        base.train, objective="sft", batch_tokens=32 * rows, micro_batch=micro_batch, label_weight=kind
    )
    return replace(common, data=DataConfig(sft=str(root / "sft")), train=steps)


def _all_cases(rank: int, ranks: int, ports: list[int], root: Path) -> None:
    torch.set_num_threads(1)
    for case, port in zip(CASES, ports, strict=True):
        set_rank(rank, ranks, port)
        one_step(root, case, root / name("two", case))


def name(ranks: str, case: tuple[str, str, int]) -> str:
    return "-".join(map(str, (ranks, *case)))


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All cases, on one rank and on two."""
    root = tmp_path_factory.mktemp("adaptation")
    write_tokens(root / "tokens", [learnable(4000, 64, 1)])
    train(recipe(root / "tokens", steps=1, checkpoint_every=1), root / "base")
    for kind in ("sft", "dpo"):
        folder = root / folder_of(kind)
        table = write_conversations(folder, COUNT, pairs=kind == "dpo")
        folder.with_suffix(".table").write_bytes(pickle.dumps(table))
    for case in CASES:
        one_step(root, case, root / name("one", case))
    mp.spawn(_all_cases, (2, free_ports(len(CASES)), root), nprocs=2)
    return root


@pytest.mark.parametrize("kind", KINDS)
def test_neither_loss_nor_gradient_changes(root: Path, kind: str) -> None:
    first = root / name("one", (kind, "packed", 8))
    weights, before = read_weights(step_folder(first, 1)), read_weights(step_folder(root / "base", 1))
    if kind == "dpo":
        assert losses(first) == pytest.approx([np.log(2)], abs=1e-6)
        moved = max(float((weights[key] - before[key]).abs().max()) for key in weights)
        assert moved > 1e-3
    for case in CASES:
        for ranks in ("one", "two"):
            if case[0] != kind:
                continue
            run = root / name(ranks, case)
            assert losses(run) == pytest.approx(losses(first), abs=1e-6), run.name
            for key, tensor in read_weights(step_folder(run, 1)).items():
                assert float((tensor - weights[key]).abs().max()) < 1e-6, (run.name, key)
