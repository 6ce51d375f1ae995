"""A finished run: what may be asked of it again, and who says that it is finished."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from loom.cli import main
from loom.console import console
from loom.errors import LoomError
from loom.road.training import run_training
from loom.train.checkpoint import checkpoints, read_weights, step_folder
from loom.train.config import ParallelConfig, RunConfig, ScheduleConfig
from tests.train.test_loop import losses, recipe
from tests.train.tokens import learnable, write_tokens


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    return write_tokens(tmp_path / "tokens", [learnable(4000, 64, 1)])


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    found: list[str] = []
    monkeypatch.setattr(console, "say", lambda text="", style=None: found.append(text))
    return found


def changed(config: RunConfig, **values: Any) -> RunConfig:
    return replace(config, train=replace(config.train, **values))


def test_a_finished_run_says_so_whatever_way_the_work_would_be_done(
    tmp_path: Path, tokens: Path, said: list[str]
) -> None:
    config = recipe(tokens, steps=4)
    last = run_training(config, tmp_path / "run")
    assert not any("finished" in line for line in said)
    before = last.stat().st_mtime_ns
    for other in (
        config,
        changed(config, micro_batch=2, threads=None, recompute="full", asynchronous=False),
        replace(config, parallel=ParallelConfig("fsdp")),
    ):
        said.clear()
        assert run_training(other, tmp_path / "run") == last
        assert [line for line in said if "finished at step 4" in line] == said
    assert last.stat().st_mtime_ns == before
    for other in (changed(config, batch_tokens=512), changed(config, steps=3), replace(config, seed=1)):
        with pytest.raises(LoomError, match="finished run of another recipe"):
            run_training(other, tmp_path / "run")


@pytest.mark.parametrize(
    "schedule", [ScheduleConfig(kind="constant", warmup=2), ScheduleConfig(warmup=2, length=8)]
)
def test_a_finished_run_goes_on_to_more_steps(tmp_path: Path, tokens: Path, schedule: ScheduleConfig) -> None:
    config = replace(recipe(tokens, steps=8, checkpoint_every=4), schedule=schedule)
    whole = read_weights(run_training(config, tmp_path / "whole"))
    run_training(changed(config, steps=4), tmp_path / "run")
    longer = read_weights(run_training(config, tmp_path / "run"))
    assert all(longer[name].equal(tensor) for name, tensor in whole.items())
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["recipe"]["train"]["steps"] == 8


@pytest.mark.parametrize("kind", ["linear", "cosine", "wsd"])
def test_a_run_whose_rate_fell_to_its_end_is_not_made_longer(tmp_path: Path, tokens: Path, kind: Any) -> None:
    config = replace(recipe(tokens, steps=4), schedule=ScheduleConfig(kind=kind, warmup=1, decay=2))
    run_training(config, tmp_path / "run")
    with pytest.raises(LoomError, match=r"finished run, whose learning rate .*train\.init="):
        run_training(changed(config, steps=8), tmp_path / "run")
    assert (tmp_path / "run" / "manifest.json").is_file()
    assert checkpoints(tmp_path / "run") == [step_folder(tmp_path / "run", 4)]


def lines(capfd: pytest.CaptureFixture[str], call: Callable[[], None]) -> list[str]:
    with pytest.raises(SystemExit) as ended:
        call()
    assert ended.value.code == 0
    return capfd.readouterr().out.splitlines()


def test_one_rank_speaks_for_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def trained(config: RunConfig, out: Path, **_: Any) -> Path:
        out.mkdir(exist_ok=True)
        (out / "metrics.jsonl").write_text('{"step": 3, "loss": 1.5}\n')
        console.say("a line")
        return out / "checkpoints" / "step-00000003"

    monkeypatch.setattr("loom.road.training.run_training", trained)
    monkeypatch.setattr(console, "quiet", False)
    monkeypatch.setattr(console, "json_mode", False)
    words = ["train", "tiny", "--out", str(tmp_path / "run")]
    for rank, flags in (("0", []), ("0", ["--json"]), ("1", []), ("1", ["--json"])):
        monkeypatch.setenv("RANK", rank)
        found = lines(capfd, lambda flags=flags: main([*words, *flags]))
        if rank == "1":
            assert found == []
        elif flags:
            assert json.loads(found[-1])["loss"] == 1.5
        else:
            assert any(line.startswith("checkpoint:") for line in found)
    console.set_json(False)
