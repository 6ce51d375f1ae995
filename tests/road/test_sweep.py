"""A sweep runs every combination once and tells the runs apart by what differs."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from loom.errors import LoomError
from loom.report.sweep import Outcome, differing, groups, mean_and_error
from loom.road.sweep import combinations, split
from tests.train.tokens import learnable, write_tokens


def test_values_are_parted_outside_brackets() -> None:
    assert split("1,[2,3],{a: 1, b: 2},'x,y'") == ["1", "[2,3]", "{a: 1, b: 2}", "'x,y'"]


def test_every_combination_once() -> None:
    runs = combinations(["a.rate=1e-3,2e-3", "seed=1,2,3", "train.steps=5"])
    assert len(runs) == 6
    assert runs["rate=1e-3,seed=2"] == ["a.rate=1e-3", "seed=2", "train.steps=5"]
    assert set(combinations(["a.x=1,2", "b.x=1,2"])) == {f"a.x={i},b.x={j}" for i in (1, 2) for j in (1, 2)}
    for wrong in (["a=1"], ["a"], ["a=1,1"], ["a=1,,2"], ["a=1,2", "a=3"]):
        with pytest.raises(LoomError):
            combinations(wrong)


def test_runs_alike_but_for_seeds_share_a_row() -> None:
    runs = [
        Outcome({"rate": rate, "seed": str(seed), "kept": "1"}, {"training loss": base + seed / 10})
        for rate, base in (("1", 3.0), ("2", 2.0))
        for seed in (1, 2, 3)
    ]
    keys, found = groups(runs)
    assert keys == ["rate"] == differing([run.recipe for run in runs])
    assert [(group.settings["rate"], group.runs) for group in found] == [("2", 3), ("1", 3)]
    mean, error = found[0].losses["training loss"]
    assert mean == pytest.approx(2.2) and error == pytest.approx(0.1 / math.sqrt(3))
    assert mean_and_error([1.0]) == (1.0, None)


@pytest.mark.slow
def test_the_command_trains_compares_and_goes_on(tmp_path: Path) -> None:
    write_tokens(tmp_path / "tokens", [learnable(8000, 64, 1)])
    command = [
        sys.executable, "-m", "loom", "sweep", "tiny", f"data.tokens={tmp_path / 'tokens'}", "model.n_layers=1",
        "model.d_model=32", "model.mlp_width=64", "model.vocab_size=128", "train.steps=8", "train.batch_tokens=512",
        "train.compile=false", "optimizer.learning_rate=1e-4,1e-2", "seed=1,2",
        "--out", str(tmp_path / "sweep"), "--json",
    ]  # fmt: skip
    for _ in range(2):
        run = subprocess.run(command, capture_output=True, text=True, check=True)
        found = json.loads(run.stdout.splitlines()[-1])
        assert found["columns"] == ["optimizer.learning_rate", "training loss", "runs"]
        assert [row[0] for row in found["rows"]] == ["0.01", "0.0001"] and "±" in found["rows"][0][1]
    assert "optimizer.learning_rate" in (tmp_path / "sweep" / "report.html").read_text()
