"""A rank that dies is named by those that are left, and the last checkpoint is whole."""

from __future__ import annotations

import fcntl
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from loom.errors import LoomError
from loom.train.checkpoint import checkpoints, newest_good, step_of
from loom.train.loop import train
from loom.train.roll import MARK, Roll

from .test_killed import ROOT
from .test_loop import losses, recipe
from .tokens import learnable, write_tokens


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def rank_of(number: int, port: int, config: Path, out: Path) -> subprocess.Popen[str]:
    torchrun = {
        "RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "src"))),
    }  # fmt: skip
    command = [sys.executable, "-m", "tests.train.killed", str(config), str(out)]
    return subprocess.Popen(
        command, env={**os.environ, **torchrun}, cwd=ROOT, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_the_dead_rank_is_named_and_its_run_goes_on(victim: int, tmp_path: Path) -> None:
    write_tokens(tmp_path / "tokens", [learnable(20_000, 64, 1)])
    endless = recipe(tmp_path / "tokens", steps=100_000, checkpoint_every=4)
    (tmp_path / "config").write_bytes(pickle.dumps(endless))
    port, out = free_port(), tmp_path / "run"
    ranks = [rank_of(number, port, tmp_path / "config", out) for number in (0, 1)]
    while not checkpoints(out):
        assert all(rank.poll() is None for rank in ranks)
    ranks[victim].kill()
    said = ranks[1 - victim].communicate(timeout=300)[1]
    ranks[victim].communicate()
    assert ranks[1 - victim].returncode not in (0, None)
    error = said.strip().splitlines()[-1]
    assert f"LoomError: {MARK} rank {victim} of 2 (" in error
    assert f"process {ranks[victim].pid}; killed, without a word" in error
    assert "is whole" in error and "run the same command again" in error
    found, damaged = newest_good(out)
    # What was being written when the rank died is named, and passed over.
    assert found is not None and all("it was never finished" in folder for folder in damaged)
    done = int(found.name[5:])
    train(recipe(tmp_path / "tokens", steps=done + 2), out)  # alone
    assert len(losses(out)) == done + 2


@pytest.mark.slow
def test_sigterm_to_one_rank_stops_all_of_them_at_one_step(tmp_path: Path) -> None:
    write_tokens(tmp_path / "tokens", [learnable(20_000, 64, 1)])
    endless = recipe(tmp_path / "tokens", steps=100_000, checkpoint_every=100_000, rehearse=False)
    (tmp_path / "config").write_bytes(pickle.dumps(endless))
    port, out = free_port(), tmp_path / "run"
    ranks = [rank_of(number, port, tmp_path / "config", out) for number in (0, 1)]
    while not (out / "metrics.jsonl").exists() or len(losses(out)) < 3:
        assert all(rank.poll() is None for rank in ranks)
        time.sleep(0.01)
    ranks[1].send_signal(signal.SIGTERM)
    said = [rank.communicate(timeout=300)[1].strip().splitlines()[-1] for rank in ranks]
    assert all(rank.returncode not in (0, None) for rank in ranks)
    found, damaged = newest_good(out)
    assert found is not None and not damaged
    done = step_of(found)
    assert all(f"Stopped by a signal after step {done}, saved" in line for line in said)
    assert len(losses(out)) == done
    train(recipe(tmp_path / "tokens", steps=done + 2), out)  # alone
    assert len(losses(out)) == done + 2


def test_a_lock_that_was_let_go_while_another_waited_is_taken_once(tmp_path: Path) -> None:
    holder = Roll(tmp_path / "ranks", 0, 1)
    late = open(tmp_path / "ranks" / "rank-0", "a+", encoding="utf-8")  # noqa: SIM115
    holder.close()  # and the file is gone
    assert not (tmp_path / "ranks").exists()
    fcntl.flock(late, fcntl.LOCK_EX | fcntl.LOCK_NB)  # of a file without a name: it keeps nobody out
    taken = Roll(tmp_path / "ranks", 0, 1)
    with open(tmp_path / "ranks" / "rank-0", encoding="utf-8") as stream, pytest.raises(BlockingIOError):
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    taken.close()
    late.close()


def test_a_rank_that_stopped_by_itself_is_quoted(tmp_path: Path) -> None:
    here, other = Roll(tmp_path / "ranks", 0, 3), Roll(tmp_path / "ranks", 1, 3)
    third = Roll(tmp_path / "ranks", 2, 3)
    assert here.gone() == {}
    own = LoomError("shard-00001.npy is missing")
    assert other.blame(own, "") is own
    other.stream.close()  # as the end of its process does
    lost = third.blame(RuntimeError("Connection closed by peer"), "step-00000004 is whole.")
    assert "rank 1 of 3" in str(lost) and "shard-00001.npy is missing" in str(lost)
    assert "is whole" not in str(lost)  # the first rank says so
    third.stream.close()
    said = str(here.blame(RuntimeError("Connection closed by peer"), "step-00000004 is whole."))
    assert "rank 1 of 3" in said and "rank 2" not in said and "step-00000004 is whole." in said


def test_two_runs_in_one_folder_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loom.train.roll.PATIENCE", 0.0)
    holder = Roll(tmp_path / "ranks", 0, 2)
    with pytest.raises(LoomError, match=f"Another process trains into .*process {os.getpid()}"):
        Roll(tmp_path / "ranks", 0, 2)
    holder.close()
    assert not (tmp_path / "ranks").exists()
