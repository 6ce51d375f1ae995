"""What is logged besides losses is what a person would compute by hand, and changes no result."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

from loom.errors import LoomError
from loom.train import loop
from loom.train.checkpoint import read_weights
from loom.train.loop import train
from loom.train.watch import SpikeScore

from .test_killed import ROOT
from .test_loop import Stop, StopAt, losses, recipe
from .tokens import learnable, write_tokens


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    return write_tokens(tmp_path / "tokens", [learnable(4000, 64, 1)])


def lines(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_norms_are_those_of_the_tensors_and_leave_the_run_alone(tmp_path: Path, tokens: Path) -> None:
    plain = train(recipe(tokens), tmp_path / "plain")
    last = train(recipe(tokens, norms_every=4), tmp_path / "watched")
    assert losses(tmp_path / "plain") == losses(tmp_path / "watched")
    weights = read_weights(last)
    assert all(torch.equal(weights[name], tensor) for name, tensor in read_weights(plain).items())
    found = lines(tmp_path / "watched")
    assert [r["step"] for r in found if "norm/output/blocks.1" in r] == [4, 8, 12]
    for name, tensor in weights.items():
        assert found[-1][f"norm/weight/{name}"] == pytest.approx(float(tensor.norm()), rel=1e-5)
    gradients = [value for key, value in found[-1].items() if key.startswith("norm/gradient/")]
    assert sum(g * g for g in gradients) ** 0.5 == pytest.approx(found[-1]["grad_norm"], rel=1e-5)
    assert {key.split("/")[1] for key in found[-1] if key.startswith("norm/")} == {
        "weight", "gradient", "exp_avg", "exp_avg_sq", "output"
    }  # fmt: skip


def test_a_profile_is_written_for_its_steps(tmp_path: Path, tokens: Path) -> None:
    train(recipe(tokens, steps=4, profile=(2, 3)), tmp_path / "run")
    trace = json.loads((tmp_path / "run" / "profile" / "steps-2-3-rank-0.json").read_text())
    assert any("adam" in str(event.get("name")).lower() for event in trace["traceEvents"])
    with pytest.raises(LoomError, match="train.profile"):
        recipe(tokens, profile=(3, 2))


def test_utilisation_has_a_formula_and_is_not_guessed(tmp_path: Path, tokens: Path, monkeypatch) -> None:
    train(recipe(tokens, steps=2), tmp_path / "run")
    assert all("mfu" not in line and 0 <= line["data_wait"] <= 1 for line in lines(tmp_path / "run"))
    monkeypatch.setattr(loop, "peak_flops", lambda name: 1e12)
    train(recipe(tokens, steps=2), tmp_path / "known")
    line = lines(tmp_path / "known")[-1]
    d, width, rows, layers, length = 32, 64, 128, 2, 32
    matrices = layers * (4 * d * d + 3 * d * width) + rows * d
    flops = 6 * matrices + 12 * layers * d * length
    assert line["mfu"] == pytest.approx(line["tokens_per_second"] * flops / 1e12)


def test_spikes_are_counted() -> None:
    score = SpikeScore()
    generator = torch.Generator().manual_seed(1)
    values = (3 + 0.01 * torch.randn(100, generator=generator)).tolist()
    assert [score.add(value) for value in values][-1] == 0
    assert score.add(4.0) == pytest.approx(1 / 85)


def test_spikes_are_counted_on_when_a_run_goes_on(tmp_path: Path, tokens: Path, monkeypatch) -> None:
    monkeypatch.setattr("loom.train.watch.SPIKE", -10.0)  # every step is one, from the 17th on

    def scores(run: Path) -> list[float]:
        return [json.loads(line)["spike_score"] for line in (run / "metrics.jsonl").read_text().splitlines()]

    config = recipe(tokens, steps=30, checkpoint_every=20, asynchronous=False)
    train(config, tmp_path / "whole")
    with pytest.raises(Stop):
        train(config, tmp_path / "cut", callbacks=[StopAt(25)])
    train(config, tmp_path / "cut")
    assert scores(tmp_path / "cut") == scores(tmp_path / "whole")
    assert scores(tmp_path / "whole") == [0.0] * 16 + [1.0] * 14


def test_a_tracker_gets_what_is_logged(tmp_path: Path, tokens: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from loom.road.training import run_training

    config = recipe(tokens, steps=6)
    config = replace(config, train=replace(config.train, track=("tensorboard",)))
    run_training(config, tmp_path / "run", evaluate=lambda model, step: {"heldout/loss": 2.5})
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    assert [e.step for e in events.Scalars("loss")] == [1, 2, 3, 4, 5, 6]
    assert [e.value for e in events.Scalars("loss")] == pytest.approx(losses(tmp_path / "run"), rel=1e-6)
    assert [e.step for e in events.Scalars("eval/heldout/loss")] == [6]


def test_a_tracker_forgets_the_steps_that_a_resumed_run_takes_again(tmp_path: Path, tokens: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from loom.road.tracking import trackers

    config = recipe(tokens, steps=6, checkpoint_every=3)
    for stop in (2, 5, None):  # before a checkpoint, and after the one of step 3
        stops = [] if stop is None else [StopAt(stop)]
        with suppress(Stop):
            train(config, tmp_path / "run", callbacks=[*trackers(["tensorboard"]), *stops])
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    found = events.Scalars("loss")
    assert [e.step for e in found] == [1, 2, 3, 4, 5, 6]
    assert [e.value for e in found] == pytest.approx(losses(tmp_path / "run"), rel=1e-6)


def test_steps_are_an_axis_of_their_own_where_a_tracker_s_only_rise(tmp_path: Path, monkeypatch) -> None:
    from loom.road.tracking import Online

    calls: list[tuple[str, object, object]] = []
    module = ModuleType("wandb")

    def noted(called: str) -> Callable[..., None]:
        return lambda *given, **more: calls.append((called, given, more))

    for called in ("init", "define_metric", "log", "finish"):
        setattr(module, called, noted(called))
    monkeypatch.setitem(sys.modules, "wandb", module)
    tracker = Online("wandb")
    tracker.begin("run", tmp_path, {}, 4)
    tracker.log(4, {"loss": 2.0})
    assert ("define_metric", ("*",), {"step_metric": "step"}) in calls
    assert calls[-1] == ("log", ({"loss": 2.0, "step": 4},), {})


@pytest.mark.slow
@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_real_trackers_hold_what_is_logged(name: str, tmp_path: Path, tokens: Path, oracle) -> None:
    """Offline, in files of their own, which are read back."""
    packages = next(oracle("trackers").parents[1].glob("lib/*/site-packages"))
    command = [sys.executable, "-m", "tests.train.tracked", name, packages, tokens, tmp_path]
    run = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    found = json.loads(run.stdout.splitlines()[-1])
    trained = [(step, values["loss"]) for step, values in found if "loss" in values]
    assert trained == list(enumerate(losses(tmp_path / "run"), start=1))
    evaluated = [
        (step, values["eval/heldout/loss"]) for step, values in found if "eval/heldout/loss" in values
    ]
    assert evaluated == [(6, 8.5)]


def test_a_missing_tracker_is_named(monkeypatch) -> None:
    import sys

    from loom.road.tracking import trackers

    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(LoomError, match=r"loom-lm\[wandb\]"):
        trackers(["wandb"])
