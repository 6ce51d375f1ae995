"""Options that must not change what is learnt, and guards that must."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from loom.errors import LoomError
from loom.model.config import ModelConfig
from loom.model.initialize import initialize
from loom.model.transformer import Transformer
from loom.tokens.shards import open_tokens
from loom.train.average import average
from loom.train.checkpoint import checkpoints, load_model, read_weights
from loom.train.config import BatchStage, DataConfig, OptimizerConfig, RunConfig, ScheduleConfig
from loom.train.data import Windows
from loom.train.loop import train
from loom.train.objective import LanguageModel
from loom.train.optimizer import WINDOW, StepGuard, build_optimizer
from loom.train.schedule import clip_limit, learning_rate

from .test_loop import losses, recipe
from .tokens import learnable, write_tokens


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    return write_tokens(tmp_path / "tokens", [learnable(9000, 64, 1)])


@pytest.mark.parametrize("mode", ["selective", "full", "budget"])
def test_recomputing_changes_nothing(tmp_path: Path, tokens: Path, mode) -> None:
    train(recipe(tokens), tmp_path / "plain")
    train(recipe(tokens, recompute=mode), tmp_path / mode)
    assert losses(tmp_path / mode) == pytest.approx(losses(tmp_path / "plain"), abs=1e-6)


def test_batch_stages_read_on_where_the_last_stopped(tmp_path: Path, tokens: Path) -> None:
    config = recipe(tokens, steps=10, batch_stages=(BatchStage(4, 512), BatchStage(8, 128)))
    train(config, tmp_path / "run")
    import json

    seen = [
        json.loads(line)["tokens"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    assert seen == [256, 512, 768, 1280, 1792, 2304, 2816, 2944, 3072, 3200]


def test_a_batch_changed_in_mid_run_goes_on_in_the_order(tmp_path: Path, tokens: Path) -> None:
    import json

    train(recipe(tokens, steps=5), tmp_path / "run")
    train(recipe(tokens, steps=8, batch_tokens=512), tmp_path / "run")
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["tokens"] for line in lines][4:] == [1280, 1792, 2304, 2816]


def test_published_learning_rates_of_the_7b() -> None:
    schedule = ScheduleConfig(kind="linear", warmup=5000)
    rates = [learning_rate(step, 476_838, 3e-4, schedule) for step in (1, 5000, 5001, 476_838, 500_000)]
    assert rates == pytest.approx([3.0054e-5, 3e-4, 2.999994e-4, 3e-5, 3e-5], rel=1e-6)
    assert learning_rate(900, 1000, 1.0, ScheduleConfig(kind="wsd", decay=200, floor=0.0)) == pytest.approx(
        0.5
    )
    assert learning_rate(800, 1000, 1.0, ScheduleConfig(kind="wsd", decay=200, floor=0.0)) == 1.0


def test_clipping_limits_of_the_7b() -> None:
    config = OptimizerConfig(clip=1.0, clip_warmup_steps=1000, clip_warmup_factor=10.0)
    assert [clip_limit(step, 0, config) for step in (1, 2, 1001, 1002)] == [1.0, 10.0, 10.0, 1.0]


def test_clipping_limits_of_the_65b_are_in_tokens() -> None:
    config = OptimizerConfig(clip=1.0, clip_warmup_tokens=2_097_152_000, clip_warmup_factor=5.0)
    batch = 2_097_152
    found = [clip_limit(step, (step - 1) * batch, config) for step in (1, 2, 1001, 1002)]
    assert found == [1.0, 5.0, 5.0, 1.0]
    # Twice the batch, half the steps; 2^21 tokens are the first step of either.
    assert [clip_limit(s, (s - 1) * 2 * batch, config) for s in (1, 2, 501, 502)] == [1.0, 5.0, 5.0, 1.0]
    with pytest.raises(LoomError, match="not both"):
        RunConfig(optimizer=replace(config, clip_warmup_steps=3))


def test_only_matrices_decay() -> None:
    model = Transformer(ModelConfig(32, 1, 2, 64, 128, 16, norm="rmsnorm", qk_norm=True, norm_after=True))
    decayed, plain = build_optimizer(model, OptimizerConfig()).param_groups
    names = {id(p): name for name, p in model.named_parameters()}
    assert {names[id(p)] for p in plain["params"]} == {
        n for n in names.values() if "norm" in n or n == "embed.weight"
    }
    assert "head.weight" in {names[id(p)] for p in decayed["params"]}
    tied = Transformer(ModelConfig(32, 1, 2, 64, 128, 16, tied=True))
    assert len(build_optimizer(tied, OptimizerConfig(decay_embeddings=True)).param_groups) == 1


def test_a_step_that_is_not_finite_leaves_the_weights_alone() -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([weight], lr=0.1, fused=True)
    guard = StepGuard(None, torch.device("cpu"))
    for norm, moved in ((1.0, True), (float("nan"), False), (2.0, True)):
        before = weight.detach().clone()
        weight.grad = torch.full((3,), norm)
        optimizer.found_inf = guard.check(torch.tensor(1.0), torch.tensor(norm))
        optimizer.step()
        assert bool((weight != before).all()) is moved
    assert int(guard.skipped) == int(guard.not_finite) == 1


def test_a_spike_is_skipped_once_there_is_a_window() -> None:
    guard = StepGuard(6.0, torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    for step in range(WINDOW + 20):
        value = 1 + 0.1 * torch.randn((), generator=generator)
        assert float(guard.check(value, value)) == 0, step
    assert float(guard.check(torch.tensor(5.0), torch.tensor(1.0))) == 1
    assert float(guard.check(torch.tensor(1.0), torch.tensor(1.0))) == 0
    assert int(guard.skipped) == 1 and int(guard.not_finite) == 0


def test_an_instance_that_repeats_itself_is_left_out_of_the_loss(tmp_path: Path) -> None:
    ids = learnable(64 * 40, 64, 5)
    ids[64 * 7 : 64 * 8] = 9  # an instance of one token 64 times
    folder = open_tokens(write_tokens(tmp_path / "tokens", [ids]))
    plain = DataConfig(tokens=str(folder.path))
    every = Windows(plain, [folder], 64, 1)
    skipping = Windows(replace(plain, skip_repetitions=True), [folder], 64, 1)
    places = np.arange(40, dtype=np.int64)
    (place,) = np.flatnonzero((every.windows(places) == 9).all(axis=1))
    batch = skipping.batch(places)
    assert batch.weights is not None and batch.denominator == 39 * 63 == every.batch(places).denominator - 63
    assert batch.weights.sum() == 39 * 63 and batch.weights[place].sum() == 0
    model = Transformer(ModelConfig(32, 1, 2, 64, 128, 64, tied=True))
    initialize(model, 1)
    rest = np.delete(places, place)
    with torch.no_grad():
        found, expected = (
            LanguageModel()(model, data.batch(at))[0] for data, at in ((skipping, places), (every, rest))
        )
    assert float(found) == pytest.approx(float(expected), rel=1e-6)


def test_the_command_averages_runs_and_checkpoints(tmp_path: Path, tokens: Path) -> None:
    from loom.cli.average import run as command

    train(recipe(tokens, checkpoint_every=4), tmp_path / "run")
    folders = checkpoints(tmp_path / "run")
    assert command([tmp_path / "run"], tmp_path / "last", 2)["checkpoints"] == [str(f) for f in folders[1:]]
    named = command(folders[1:], tmp_path / "named", None)
    assert len(named["checkpoints"]) == 2
    last, same = (read_weights(tmp_path / name) for name in ("last", "named"))
    assert all(torch.equal(same[name], tensor) for name, tensor in last.items())
    with pytest.raises(LoomError, match="holds 3 checkpoints, not 4"):
        command([tmp_path / "run"], tmp_path / "more", 4)
    with pytest.raises(LoomError, match="is not empty"):
        command([tmp_path / "run"], tmp_path, 2)
    assert checkpoints(tmp_path / "run") == folders


def test_average_is_the_mean(tmp_path: Path, tokens: Path) -> None:
    train(recipe(tokens, checkpoint_every=4), tmp_path / "run")
    folders = checkpoints(tmp_path / "run")
    out = average(folders, tmp_path / "mean")
    model, _ = load_model(out)
    parts = [read_weights(folder) for folder in folders]
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, sum(part[name] for part in parts) / len(parts))
    with pytest.raises(LoomError, match="at least two"):
        average(folders[:1], tmp_path / "one")


def test_a_divergent_run_stops_and_keeps_its_last_checkpoint(
    tmp_path: Path, tokens: Path, monkeypatch
) -> None:
    from loom.train import loop

    whole = loop.clip_gradients
    calls = iter(range(100))

    def poisoned(parameters, limit):
        if next(calls) == 6:
            parameters[0].grad[0] = torch.nan
        return whole(parameters, limit)

    monkeypatch.setattr(loop, "clip_gradients", poisoned)
    config = recipe(tokens)
    with pytest.raises(LoomError, match=r"NaN or infinite at or before step 7"):
        train(config, tmp_path / "run")
    assert len(losses(tmp_path / "run")) == 6  # also the last record before it
    monkeypatch.undo()
    plain = read_weights(train(config, tmp_path / "run"))
    whole_run = read_weights(train(replace(config), tmp_path / "whole"))
    assert all(torch.equal(plain[name], tensor) for name, tensor in whole_run.items())
