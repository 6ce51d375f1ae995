"""The loop learns, resumes bitwise, and its result does not depend on how a batch is split."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from loom.errors import LoomError
from loom.model.presets import ModelRecipe
from loom.train.callbacks import Callback
from loom.train.checkpoint import checkpoints, load_model, read_weights, step_folder
from loom.train.config import DataConfig, DpoConfig, OptimizerConfig, RunConfig, ScheduleConfig, TrainConfig
from loom.train.loop import train

from .tokens import learnable, write_conversations, write_tokens

SHAPE = ModelRecipe(d_model=32, n_layers=2, n_heads=2, mlp_width=64, context_length=32, tied=True)


def recipe(tokens: Path, **changes) -> RunConfig:
    values = {
        "steps": 12, "batch_tokens": 256, "micro_batch": 4, "precision": "float32", "compile": False,
        "checkpoint_every": 5, "eval_every": 6, "log_every": 1, "threads": 1, **changes,
    }  # fmt: skip
    return RunConfig(
        model=SHAPE,
        data=DataConfig(tokens=str(tokens)),
        train=TrainConfig(**values),
        optimizer=OptimizerConfig(learning_rate=3e-3),
        schedule=ScheduleConfig(warmup=4),
    )


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    return write_tokens(tmp_path / "tokens", [learnable(4000, 64, 1), learnable(3000, 64, 2)])


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


class Stop(Exception):
    pass


class StopAt(Callback):
    """Ends the process's run as a crash would, right after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, record) -> None:
        if record["step"] == self.step:
            raise Stop


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_learns(tmp_path: Path, tokens: Path, precision: str) -> None:
    seen = []
    config = recipe(tokens, steps=60, precision=precision)
    last = train(config, tmp_path / "run", evaluate=lambda model, step: seen.append(step) or {"x": 1.0})
    values = losses(tmp_path / "run")
    assert len(values) == 60 and seen == [*range(6, 61, 6)]
    assert values[0] == pytest.approx(5.3, abs=0.5) and values[-1] < values[0] - 1
    assert last == step_folder(tmp_path / "run", 60)
    model, card = load_model(last)
    assert card.eos.id == 0 and card.model.vocab_size == 128 and not model.training
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert train(config, tmp_path / "run") == last


@pytest.mark.parametrize("asynchronous", [True, False])
def test_resumed_run_is_bitwise_the_undisturbed_one(tmp_path: Path, tokens: Path, asynchronous: bool) -> None:
    config = recipe(tokens, asynchronous=asynchronous)
    whole_folder = train(config, tmp_path / "whole")
    whole = read_weights(whole_folder)
    for stop in (3, 8, 11):
        with pytest.raises(Stop):
            train(config, tmp_path / "cut", callbacks=[StopAt(stop)])
    notes = []

    class Notes(Callback):
        def on_start(self, run) -> None:
            notes.extend(run.notes)

    cut_folder = train(config, tmp_path / "cut", callbacks=[Notes()])
    cut = read_weights(cut_folder)
    assert notes == ["resumed from step 10"]
    for file in sorted(whole_folder.iterdir()):
        assert (cut_folder / file.name).read_bytes() == file.read_bytes(), file.name
    assert all(torch.equal(cut[name], tensor) for name, tensor in whole.items())
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")


def test_micro_batches_do_not_change_the_result(tmp_path: Path, tokens: Path) -> None:
    runs = {}
    for size in (8, 3, 1):
        train(recipe(tokens, micro_batch=size), tmp_path / str(size))
        runs[size] = losses(tmp_path / str(size))
    assert runs[3] == pytest.approx(runs[8], abs=1e-5)
    assert runs[1] == pytest.approx(runs[8], abs=1e-5)


def test_a_damaged_checkpoint_is_named_and_the_one_before_used(tmp_path: Path, tokens: Path) -> None:
    config = recipe(tokens)
    whole = read_weights(train(config, tmp_path / "run"))
    newest = step_folder(tmp_path / "run", 12)
    with open(next(newest.glob("*.distcp")), "r+b") as stream:
        stream.seek(100)
        stream.write(b"xxxx")
    notes = []

    class Notes(Callback):
        def on_start(self, run) -> None:
            notes.extend(run.notes)

    train(replace(config, train=replace(config.train, steps=13)), tmp_path / "run", callbacks=[Notes()])
    assert "step-00000012" in notes[0] and notes[1] == "resumed from step 10"
    assert whole.keys() == read_weights(step_folder(tmp_path / "run", 13)).keys()


def test_retention(tmp_path: Path, tokens: Path) -> None:
    train(recipe(tokens, checkpoint_every=2, keep=2, keep_every=6, keep_steps=(3,)), tmp_path / "run")
    assert [int(path.name[5:]) for path in checkpoints(tmp_path / "run")] == [3, 6, 10, 12]


def test_sft_learns_answers_only(tmp_path: Path) -> None:
    table = write_conversations(tmp_path / "sft", 200)
    base = recipe(tmp_path / "sft")
    config = replace(
        base, data=DataConfig(sft=str(tmp_path / "sft")), train=replace(base.train, objective="sft", steps=60)
    )
    train(config, tmp_path / "run", documents=table)
    values = losses(tmp_path / "run")
    assert values[-1] < values[0] - 0.8
    runs = {}
    for size in (1, 8):
        changed = replace(config, train=replace(config.train, micro_batch=size, steps=6))
        train(changed, tmp_path / f"run{size}", documents=table)
        runs[size] = losses(tmp_path / f"run{size}")
    assert runs[1] == pytest.approx(runs[8], abs=1e-5)


def test_dpo_starts_at_ln_2_and_learns_to_prefer(tmp_path: Path, tokens: Path) -> None:
    base = recipe(tokens)
    init = train(base, tmp_path / "base")
    table = write_conversations(tmp_path / "pairs", 100, pairs=True)
    runs = {}
    for size in (8, 3):
        config = replace(
            base,
            model=ModelRecipe(),
            data=DataConfig(pairs=str(tmp_path / "pairs")),
            dpo=DpoConfig(beta=0.5),
            train=replace(
                base.train, objective="dpo", init=str(init), batch_pairs=8, micro_batch_pairs=size, steps=30
            ),
        )
        train(config, tmp_path / f"dpo{size}", documents=table)
        runs[size] = losses(tmp_path / f"dpo{size}")
    assert runs[8][0] == pytest.approx(0.693147, abs=1e-4)
    assert runs[3] == pytest.approx(runs[8], abs=1e-4)
    records = [json.loads(line) for line in (tmp_path / "dpo8" / "metrics.jsonl").read_text().splitlines()]
    assert records[0]["reward_margin"] == pytest.approx(0, abs=1e-4)
    assert records[-1]["reward_accuracy"] > 0.8 and records[-1]["loss"] < 0.5


def test_what_does_not_fit_is_named(tmp_path: Path, tokens: Path) -> None:
    with pytest.raises(LoomError, match=r"train\.batch_tokens is 250.*use 256"):
        train(recipe(tokens, batch_tokens=250), tmp_path / "a")
    with pytest.raises(LoomError, match=r"data\.tokens is missing"):
        train(replace(recipe(tokens), data=DataConfig()), tmp_path / "b")
    with pytest.raises(LoomError, match=r"64 entries.*32 embedding rows"):
        train(replace(recipe(tokens), model=replace(SHAPE, vocab_size=32)), tmp_path / "c")
    train(recipe(tokens, steps=2), tmp_path / "d")
    with pytest.raises(LoomError, match="d_model is 32 there and 64"):
        train(replace(recipe(tokens), model=replace(SHAPE, d_model=64)), tmp_path / "d")
    with pytest.raises(LoomError, match="other data or another order"):
        train(replace(recipe(tokens), seed=1), tmp_path / "d")
