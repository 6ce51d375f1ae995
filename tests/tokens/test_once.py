"""The ranks of a node share one copy of a large reading order, and it is OLMo's."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loom.errors import LoomError
from loom.tokens.once import shared_array
from loom.tokens.permutation import Shuffled


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path / f"loom-{os.getuid()}"


def _take(log: str, ready: Any, answers: Any) -> None:
    def compute() -> np.ndarray:
        with open(log, "a") as stream:
            stream.write("computed\n")
        return np.arange(1000)[::-1]

    array = shared_array("numbers", compute)
    ready.wait()  # nobody lets go before all have it
    answers.put((isinstance(array, np.memmap), array.tolist() == list(range(999, -1, -1))))


def test_one_process_computes_and_all_map(tmp_path: Path, temporary: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    ready, answers, log = spawn.Barrier(3), spawn.Queue(), tmp_path / "log"
    ranks = [spawn.Process(target=_take, args=(str(log), ready, answers)) for _ in range(3)]
    for rank in ranks:
        rank.start()
    assert [answers.get(timeout=120) for _ in ranks] == [(True, True)] * 3
    for rank in ranks:
        rank.join()
    assert log.read_text() == "computed\n"
    assert not list(temporary.glob("*.npy"))  # gone with the process that wrote it


def test_a_shared_order_is_the_one_in_memory(monkeypatch: pytest.MonkeyPatch, temporary: Path) -> None:
    plain = Shuffled(5000, 6198)
    monkeypatch.setattr(Shuffled, "SHARED", 100)
    places = np.arange(5000)
    shared, other = Shuffled(5000, 6198), Shuffled(5000, 6198)
    assert [path.name for path in temporary.glob("*.npy")] == ["order-5000-6198.npy"]
    for order in (shared, other):
        assert np.array_equal(order.at(places), plain.at(places))
        assert np.array_equal(order.find(order.at(places)), places)
    del shared, order
    assert not list(temporary.glob("*.npy"))
    assert np.array_equal(other.at(places), plain.at(places))  # its map outlives the file


def test_beyond_32_bits_the_order_is_the_same_function(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Shuffled(3000, 7)
    monkeypatch.setattr(Shuffled, "WIDE", 1000)
    wide = Shuffled(3000, 7)
    assert (plain.order.dtype, wide.order.dtype) == (np.uint32, np.uint64)
    assert np.array_equal(wide.at(np.arange(3000)), plain.at(np.arange(3000)))
    assert wide.find(wide.at(np.arange(3000))).tolist() == list(range(3000))


def test_a_folder_open_to_others_is_not_trusted(temporary: Path) -> None:
    temporary.mkdir(mode=0o777)
    temporary.chmod(0o777)
    with pytest.raises(LoomError, match="TMPDIR"):
        shared_array("numbers", lambda: np.arange(3))
