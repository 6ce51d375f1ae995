"""The documentation is true: the commands it shows are run, and the site builds without a warning."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from loom.cli.verbs import VERBS

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = ROOT / "docs" / "commands.md"
RUNNER = """
import json, shlex, sys, traceback
import torch
torch.set_num_threads(1)
from loom.cli import main
for line in json.loads(sys.stdin.read()):
    print("$", line, flush=True)
    try:
        main(shlex.split(line)[1:])
    except SystemExit as end:
        if end.code:
            sys.exit(f"{line} ended with {end.code}")
"""


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```", COMMANDS.read_text(encoding="utf-8"), re.S | re.M)


def shown(kind: str) -> list[str]:
    return [line for block in blocks(kind) for line in block.splitlines() if line.startswith("loom ")]


def test_every_command_has_an_example() -> None:
    verbs = {shlex.split(line)[1] for kind in ("sh", "text") for line in shown(kind)}
    assert verbs == set(VERBS)
    # Those that are not run here run for minutes or until they are stopped, or need more; each has tests.
    assert {shlex.split(line)[1] for line in shown("text")} - {
        shlex.split(line)[1] for line in shown("sh")
    } == {"quickstart", "why", "classifier", "mix", "serve", "explore"}


@pytest.mark.slow
def test_the_examples_run_as_they_stand(tmp_path: Path) -> None:
    import json

    (preparation,) = blocks("python")
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", preparation], cwd=tmp_path, check=True, env=environment)
    done = subprocess.run(
        [sys.executable, "-c", RUNNER],
        input=json.dumps(shown("sh")),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-3000:]


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "index.html").is_file()
