"""Annealing goes on with weights and Adam's moments of another run, on other data, down to a rate of zero."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from torch.distributed.checkpoint import state_dict_loader
from torch.distributed.checkpoint.filesystem import FileSystemReader

from loom.errors import LoomError
from loom.model.presets import ModelRecipe
from loom.trace.reading import ancestors
from loom.train.average import average
from loom.train.checkpoint import checkpoints, read_state, read_weights, step_folder
from loom.train.config import OptimizerConfig, RunConfig, ScheduleConfig
from loom.train.loop import train

from .ranks import launch
from .test_loop import Notes, Stop, StopAt, losses, recipe
from .tokens import learnable, write_tokens


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in mid-course: 12 steps at a rate that is still high."""
    folder = tmp_path_factory.mktemp("origin")
    write_tokens(folder / "tokens", [learnable(4000, 64, 1)])
    write_tokens(folder / "better", [learnable(4000, 64, 2)])
    config = recipe(folder / "tokens")
    train(replace(config, schedule=ScheduleConfig(kind="constant", warmup=4)), folder / "run")
    return folder


def anneal(origin: Path, **changes) -> RunConfig:
    """What is not to be read is set to what would show."""
    base = recipe(origin / "better", anneal=str(origin / "run"), steps=10, checkpoint_every=4, **changes)
    return replace(
        base,
        model=ModelRecipe(),
        optimizer=OptimizerConfig(learning_rate=77.0, clip_warmup_steps=5, clip_warmup_factor=50.0),
        schedule=ScheduleConfig(kind="cosine", warmup=6),
    )


def records(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def adam_steps(checkpoint: Path) -> float:
    found = {"optimizer": {"state": {"embed.weight": {"step": torch.zeros(())}}}}
    state_dict_loader.load(found, storage_reader=FileSystemReader(checkpoint), no_dist=True)
    return float(found["optimizer"]["state"]["embed.weight"]["step"])


def test_the_rate_falls_from_where_it_was_to_zero(tmp_path: Path, origin: Path) -> None:
    assert read_state(step_folder(origin / "run", 12)).learning_rate == 3e-3
    notes = Notes()
    last = train(anneal(origin), tmp_path / "run", callbacks=[notes])
    assert [r["lr"] for r in records(tmp_path / "run")] == pytest.approx(
        [3e-3 * (1 - step / 10) for step in range(1, 11)], abs=1e-12
    )
    assert "anneals" in notes.said[0] and "step-00000012" in notes.said[0]
    assert losses(tmp_path / "run")[0] < losses(origin / "run")[0] - 0.1  # it had learnt
    assert adam_steps(step_folder(origin / "run", 12)) == 12 and adam_steps(last) == 22
    # The last step moved nothing.
    before = read_weights(step_folder(tmp_path / "run", 8))
    assert any(not torch.equal(before[name], tensor) for name, tensor in read_weights(last).items())
    assert origin / "run" / "checkpoints" / "step-00000012" in [path.resolve() for path in ancestors(last)]


def test_a_run_and_its_annealing_are_one_run_that_decays_at_its_end(tmp_path: Path) -> None:
    """Every instance is the same here, so that batches are too, whatever order a run reads them in."""
    row = learnable(32, 64, 3)
    row[-1] = 0
    tokens = write_tokens(tmp_path / "tokens", [np.tile(row, 40)])
    base = recipe(tokens, steps=22, asynchronous=False)
    whole = replace(base, schedule=ScheduleConfig(kind="wsd", warmup=4, decay=10, floor=0.0))
    train(whole, tmp_path / "whole")
    train(recipe_of(base, "constant", steps=12), tmp_path / "first")
    last = train(recipe_of(base, "cosine", steps=10, anneal=str(tmp_path / "first")), tmp_path / "last")
    assert losses(tmp_path / "first") == losses(tmp_path / "whole")[:12]
    assert losses(tmp_path / "last") == pytest.approx(losses(tmp_path / "whole")[12:], abs=1e-6)
    expected = read_weights(step_folder(tmp_path / "whole", 22))
    for name, tensor in read_weights(last).items():
        torch.testing.assert_close(tensor, expected[name], atol=1e-6, rtol=1e-5)
    # Without Adam's moments it is another run.
    train(recipe_of(base, "constant", steps=10, init=str(tmp_path / "first")), tmp_path / "init")
    assert losses(tmp_path / "init")[2:] != pytest.approx(losses(tmp_path / "whole")[14:], abs=1e-3)


def recipe_of(base: RunConfig, kind: Literal["constant", "cosine"], **changes) -> RunConfig:
    return replace(base, schedule=ScheduleConfig(kind=kind, warmup=4), train=replace(base.train, **changes))


def test_resumed_it_is_bitwise_the_undisturbed_one(tmp_path: Path, origin: Path) -> None:
    whole = train(anneal(origin), tmp_path / "whole")
    with pytest.raises(Stop):
        train(anneal(origin), tmp_path / "cut", callbacks=[StopAt(6)])
    later = step_folder(origin / "run", 13)
    later.symlink_to(step_folder(origin / "run", 12))  # the origin goes on meanwhile
    try:
        cut = train(anneal(origin), tmp_path / "cut")
    finally:
        later.unlink()
    for file in sorted(whole.iterdir()):
        assert (cut / file.name).read_bytes() == file.read_bytes(), file.name
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")


@pytest.mark.slow
def test_on_two_ranks_sharded_it_is_the_same(tmp_path: Path, origin: Path) -> None:
    train(anneal(origin), tmp_path / "one")
    config = anneal(origin)
    launch(2, replace(config, parallel=replace(config.parallel, strategy="fsdp")), tmp_path / "two")
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-5)


def test_what_cannot_be_annealed_is_named(tmp_path: Path, origin: Path) -> None:
    mean = average(checkpoints(origin / "run")[-2:], tmp_path / "mean")
    with pytest.raises(LoomError, match=r"mean does not say the learning rate.*train\.init"):
        train(
            anneal(
                origin,
            )
            if False
            else replace_anneal(origin, mean),
            tmp_path / "a",
        )
    train(anneal(origin), tmp_path / "done")
    with pytest.raises(LoomError, match="or that was 0"):
        train(replace_anneal(origin, tmp_path / "done"), tmp_path / "b")
    with pytest.raises(LoomError, match=r"leave out train\.init"):
        anneal(origin, init=str(origin / "run"))
    with pytest.raises(LoomError, match=r"train\.anneal .*run has d_model 32, the recipe's model has 64"):
        train(replace(anneal(origin), model=replace(recipe(origin).model, d_model=64)), tmp_path / "c")


def replace_anneal(origin: Path, folder: Path) -> RunConfig:
    config = anneal(origin)
    return replace(config, train=replace(config.train, anneal=str(folder)))
