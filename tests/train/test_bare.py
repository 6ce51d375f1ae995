"""`loom.model`, `loom.train` and the reading order need torch and numpy only, as a bare GPU machine has them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from .tokens import learnable, write_tokens

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_training_where_nothing_else_can_be_imported(tmp_path: Path) -> None:
    write_tokens(tmp_path / "tokens", [learnable(2000, 64, 1)])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "src")))}
    command = [sys.executable, "-m", "tests.train.bare", str(tmp_path / "tokens"), str(tmp_path / "run")]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "run" / "metrics.jsonl").read_text().count("\n") == 4
    assert "xxhash" in run.stdout  # it was asked for and was not there
