"""The documentation is true: the commands it shows are run, and the site builds without a warning."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from itertools import pairwise
from pathlib import Path

import pytest

from loom.cli.verbs import VERBS
from tests.serve.running import free_port

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
    # quickstart runs for minutes, classifier in another environment; the servers are run until they answer.
    assert {shlex.split(line)[1] for line in shown("text")} - {
        shlex.split(line)[1] for line in shown("sh")
    } == {"quickstart", "classifier", "serve", "explore"}


@pytest.mark.slow
def test_the_examples_run_as_they_stand(tmp_path: Path) -> None:
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
    for line in shown("text"):
        if shlex.split(line)[1] in ("serve", "explore"):
            answers_and_stops(line, tmp_path, environment)


def answers_and_stops(line: str, folder: Path, environment: dict[str, str]) -> None:
    """A server's example, at a port that is free: it gives its page, and ends when it is told to."""
    port = free_port()
    words = [str(port) if before == "--port" else word for before, word in pairwise(["", *shlex.split(line)])]
    command = [sys.executable, "-m", "loom", *words[1:]]
    process = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL)
    try:
        for _ in range(600):
            assert process.poll() is None, f"{line} ended with {process.returncode}"
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=60) as answer:
                    assert b"<html" in answer.read()
                break
            except urllib.error.URLError:
                time.sleep(0.2)
        else:
            raise AssertionError(f"{line} never answered")
        if words[1] == "serve":
            asked = urllib.request.Request(
                f"http://127.0.0.1:{port}/loom/trace",
                b'{"text": "the string with all leading whitespace removed"}',
                {"content-type": "application/json"},
            )
            with urllib.request.urlopen(asked, timeout=60) as answer:
                assert "spans" in json.loads(answer.read())
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) in (0, -signal.SIGTERM)
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "index.html").is_file()
