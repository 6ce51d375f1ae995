"""Killed at any moment, a run goes on and ends with the weights of an undisturbed one, bit for bit."""

from __future__ import annotations

import os
import pickle
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from loom.train.checkpoint import checkpoints, newest_good, read_weights, step_of
from loom.train.loop import train
from tests.conftest import skip_by_name

from .test_loop import losses, recipe
from .tokens import learnable, write_tokens

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


def begin(config: Path, out: Path, *kill: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "src")))}
    return subprocess.Popen(
        [sys.executable, "-m", "tests.train.killed", config, out, *kill], env=environment, cwd=ROOT
    )


def wait_for_progress(run: subprocess.Popen[bytes], out: Path, lines: int) -> bool:
    """Until the run has logged more than `lines` lines; False if it ended before."""
    metrics = out / "metrics.jsonl"
    while run.poll() is None:
        if metrics.exists() and metrics.read_bytes().count(b"\n") > lines:
            return True
        time.sleep(0.005)
    return False


def test_kill_at_random_points(tmp_path: Path) -> None:
    write_tokens(tmp_path / "tokens", [learnable(20_000, 64, 1)])
    # Each time it gets at most 12 steps and 20 ms on, so the last kill still finds it under way; when it
    # gets on by 9, the checkpoint after 4 is whole, as the next save waits for it.
    config = recipe(tmp_path / "tokens", steps=200, checkpoint_every=4)
    whole = train(config, tmp_path / "whole")
    (tmp_path / "config").write_bytes(pickle.dumps(config))
    generator = random.Random(20)
    out = tmp_path / "killed"
    for kill in range(10):
        after = str(generator.randint(0, 12)), str(generator.uniform(0, 0.02))
        assert begin(tmp_path / "config", out, *after).wait() == -signal.SIGKILL, f"kill {kill}"
    assert checkpoints(out) and len(losses(out)) < 200
    assert begin(tmp_path / "config", out).wait() == 0
    expected, found = read_weights(whole), read_weights(checkpoints(out)[-1])
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert losses(out) == losses(tmp_path / "whole")


def test_sigterm_saves_and_ends(tmp_path: Path) -> None:
    write_tokens(tmp_path / "tokens", [learnable(20_000, 64, 1)])
    config = recipe(tmp_path / "tokens", steps=100_000, checkpoint_every=100_000)
    (tmp_path / "config").write_bytes(pickle.dumps(config))
    run = begin(tmp_path / "config", tmp_path / "run")
    assert wait_for_progress(run, tmp_path / "run", 5)
    run.send_signal(signal.SIGTERM)
    assert run.wait(timeout=600) != 0
    saved, damaged = newest_good(tmp_path / "run")
    assert saved is not None and not damaged and step_of(saved) >= 5
    assert not (tmp_path / "run" / ".rehearsal").exists()


def test_a_failed_save_leaves_the_last_good_checkpoint(tmp_path: Path, monkeypatch) -> None:
    from loom.errors import LoomError
    from loom.train import checkpoint, saving

    write_tokens(tmp_path / "tokens", [learnable(20_000, 64, 1)])
    config = recipe(tmp_path / "tokens", steps=12, checkpoint_every=5)
    whole = saving.finish

    def full(folder, *args):
        if checkpoint.step_of(folder) == 10:
            raise OSError(28, "No space left on device")
        return whole(folder, *args)

    monkeypatch.setattr(saving, "finish", full)
    with pytest.raises(LoomError, match="No space left"):
        train(config, tmp_path / "run")
    monkeypatch.undo()
    assert newest_good(tmp_path / "run")[0] == checkpoint.step_folder(tmp_path / "run", 5)
    train(replace(config), tmp_path / "run")


FILL = """
mount -t tmpfs -o size=$3 none $2 && python -m tests.train.killed $1 $2; echo "ended $?"
cp -r $2 $4-full
mount -o remount,size=1g none $2 && python -m tests.train.killed $1 $2; echo "ended $?"
cp -r $2 $4
"""


def test_a_full_disk(tmp_path: Path) -> None:
    """A file system with room for a checkpoint and a half: the second save fails, names the folder and keeps the
    first; with room again, the run ends as if nothing had been."""
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        skip_by_name("a file system of one's own (unshare -rm)")
    write_tokens(tmp_path / "tokens", [learnable(20_000, 64, 1)])
    config = recipe(tmp_path / "tokens", steps=12, checkpoint_every=5)
    whole = train(config, tmp_path / "whole")
    (tmp_path / "config").write_bytes(pickle.dumps(config))
    (tmp_path / "disk").mkdir()
    size = sum(path.stat().st_size for path in whole.rglob("*") if path.is_file()) * 3 // 2
    given = [str(tmp_path / name) for name in ("config", "disk")] + [str(size), str(tmp_path / "after")]
    run = subprocess.run(
        ["unshare", "-rm", "sh", "-c", FILL, "sh", *given],
        capture_output=True, text=True, cwd=ROOT,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "src"))),
            "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])),
        },
    )  # fmt: skip
    ends = [line for line in run.stdout.splitlines() if line.startswith("ended")]
    assert ends == ["ended 1", "ended 0"], run.stderr
    assert f"could not be written below {tmp_path / 'disk'} ([Errno 28] No space left" in run.stderr
    saved, _ = newest_good(tmp_path / "after-full")
    assert saved is not None and step_of(saved) == 5
    expected, found = read_weights(whole), read_weights(checkpoints(tmp_path / "after")[-1])
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert losses(tmp_path / "after") == losses(tmp_path / "whole")
