"""One recipe on unlike devices and in unlike precision ends alike: within what seeds make runs differ."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from loom.cli import main
from loom.report.noise import STUDENT, difference
from loom.report.records import outcome
from loom.train.config import RunConfig
from loom.train.loop import train

from .test_killed import ROOT
from .test_loop import recipe
from .tokens import learnable, write_tokens

SEEDS = (1, 2, 3)


def run_on_the_cpu(config: RunConfig, out: Path) -> None:
    """Where there is a GPU, `train` takes it: another process hides it."""
    if not torch.cuda.is_available():
        train(config, out)
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    pickled = out.parent / f"{out.name}.pickle"
    pickled.write_bytes(pickle.dumps(config))
    hidden = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'src'}"}
    command = [sys.executable, "-m", "tests.train.killed", str(pickled), str(out)]
    subprocess.run(command, env=hidden, cwd=ROOT, check=True)


@pytest.mark.slow
def test_precision_and_device_against_seed_noise(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tokens(tmp_path / "tokens", [learnable(20_000, 64, 1)])
    base = recipe(tmp_path / "tokens", steps=60, checkpoint_every=60, rehearse=False, asynchronous=False)
    values: dict[str, list[float]] = {}
    runs = []
    for seed in SEEDS:
        for precision in ("float32", "bf16"):
            config = replace(base, seed=seed, train=replace(base.train, precision=precision))
            runs.append(tmp_path / f"cpu-{precision}-{seed}")
            run_on_the_cpu(config, runs[-1])
            values.setdefault(precision, []).append(outcome(runs[-1]).losses["training loss"])
        if torch.cuda.is_available():
            runs.append(tmp_path / f"cuda-{seed}")
            train(replace(base, seed=seed, train=replace(base.train, precision="bf16")), runs[-1])
            values.setdefault("cuda", []).append(outcome(runs[-1]).losses["training loss"])
    assert max(values["float32"]) < 3.5  # of ln 64 = 4.16: something was learnt
    assert values["float32"] != values["bf16"]
    for name in values.keys() - {"float32"}:
        found = difference(values[name], values["float32"])
        assert found is not None and not found.beyond, (name, values)
    with pytest.raises(SystemExit) as ended:
        main(["report", *map(str, runs), "--out", str(tmp_path / "page.html"), "--json"])
    assert ended.value.code == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1])["noise"]
    assert len(said) == len(values) - 1
    assert all("no more than seeds give" in sentence for sentence in said)
    assert any("train.precision" in sentence for sentence in said)
    assert said[0] in (tmp_path / "page.html").read_text().replace("&#34;", '"').replace("&quot;", '"')


def test_a_real_difference_is_beyond_seeds() -> None:
    found = difference([2.01, 2.03, 2.02], [2.31, 2.30, 2.33])
    assert found is not None and found.beyond
    assert found.mean == pytest.approx(-0.29333333) and 2 <= found.degrees <= 4
    assert difference([1.0], [2.0, 3.0]) is None


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 10, 30])
def test_the_points_are_students(degrees: int) -> None:
    """Nineteen twentieths of the density lie within the point, by Simpson's rule over the angle atan(t / sqrt(n))."""
    end = np.arctan(STUDENT[degrees] / degrees**0.5)

    def mass(limit: float) -> float:
        angle = np.linspace(0, limit, 20001)
        weights = np.ones(20001)
        weights[1:-1:2], weights[2:-1:2] = 4, 2
        return float((weights * np.cos(angle) ** (degrees - 1)).sum() * limit / 60000)

    assert mass(end) / mass(np.pi / 2) == pytest.approx(0.95, abs=2e-4)
