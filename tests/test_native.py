"""A kernel gives the same kept as machine code, run by Numba, and made anew; and it starts without Numba."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from loom import native
from loom.native import Kernel, digest, kernel

STEP = np.uint64(3)


@kernel
def inner(value, step):  # type: ignore[no-untyped-def]
    return value * step + STEP


@kernel
def several(numbers, flag, share):  # type: ignore[no-untyped-def]
    """Arrays that share memory, one of two dimensions, numbers and a flag."""
    out = np.empty(numbers.size, np.uint64)
    for k in range(numbers.size):
        out[k] = inner(np.uint64(numbers[k]), np.uint64(2))
    if flag:
        out.sort()
    square = np.full((2, 3), share)
    return out[1:], out[:1], square, numbers.size, share / 2, flag


@kernel
def divided(numbers, by):  # type: ignore[no-untyped-def]
    return numbers.sum() // by


PROGRAM = """
import json
import numpy as np
from tests.test_native import divided, several
numbers = np.array([5, 1, 4], np.int32)
first, second, square, *rest = several(numbers, True, 0.5)
try:
    divided(numbers, 0)
    error = ""
except ZeroDivisionError as found:
    error = str(found)
arrays = [first.tolist(), second.tolist(), square.tolist()]
print(json.dumps([arrays, rest, error]))
"""
EXPECTED = [[[11, 13], [5], [[0.5] * 3] * 2], [3, 0.25, True], "integer division by zero"]


def run(program: str, cache: Path, **environment: str) -> object:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("LOOM_", "NUMBA_"))}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**kept, "XDG_CACHE_HOME": str(cache), **environment},
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    out: object = json.loads(done.stdout)
    return out


LOADED = """
import json, sys
import numpy as np
from tests.test_native import several
several(np.array([5, 1, 4], np.int32), True, 0.5)
print(json.dumps("numba" in sys.modules))
"""


def test_kept_code_says_what_numba_says_and_needs_no_numba(tmp_path: Path) -> None:
    assert run(PROGRAM, tmp_path) == EXPECTED
    kept = sorted((tmp_path / "loom" / "kernels").iterdir())
    assert [path.name.split("-")[0] for path in kept] == ["divided", "several"]
    assert run(LOADED, tmp_path) is False
    kept[1].write_bytes(kept[1].read_bytes()[:-100])  # cut short: it is made anew
    assert run(LOADED, tmp_path) is True
    assert run(LOADED, tmp_path) is False
    damaged = bytearray(kept[1].read_bytes())
    damaged[len(damaged) // 2] ^= 1
    kept[1].write_bytes(damaged)
    assert run(LOADED, tmp_path) is True
    assert run(LOADED, tmp_path) is False


def test_without_a_linker_llvm_places_the_code(tmp_path: Path) -> None:
    nowhere = str(tmp_path / "nothing")
    assert run(PROGRAM, tmp_path, PATH=nowhere) == EXPECTED
    assert run(LOADED, tmp_path, PATH=nowhere) is False


def test_without_a_folder_numba_runs_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert run(PROGRAM, tmp_path / "file") == EXPECTED


def test_numba_on_demand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOOM_KERNELS", "numba")
    numbers = np.array([2, 9], np.int64)
    fresh = Kernel(divided.function, {})
    assert fresh(numbers, 2) == divided(numbers, 2) == 5
    assert not native.keeping()


def test_the_digest_sees_code_constants_callees_and_types(monkeypatch: pytest.MonkeyPatch) -> None:
    key = (("<i8", 1, "C", True), bool, float)
    known = digest(several, key)
    assert digest(several, key) == known
    assert digest(several, (("<i4", 1, "C", True), bool, float)) != known
    monkeypatch.setitem(globals(), "STEP", np.uint64(4))
    assert digest(several, key) != known
    monkeypatch.undo()

    def inner(value, step):  # type: ignore[no-untyped-def]
        return value * step - STEP

    monkeypatch.setitem(globals(), "inner", Kernel(inner, {}))
    assert digest(several, key) != known


def test_results_outlive_the_call_and_give_their_memory_back() -> None:
    numbers = np.arange(100_000, dtype=np.int64)
    first, second, *_ = several(numbers, False, 1.0)
    expected = numbers.astype(np.uint64) * 2 + 3
    for _ in range(20):
        several(numbers[::-1].copy(), False, 2.0)
    assert np.array_equal(first, expected[1:])
    del first
    assert second.tolist() == [3]


def test_strided_and_empty_arrays() -> None:
    numbers = np.arange(10, dtype=np.int64)
    assert divided(numbers[::2], 1) == 20
    assert several(np.zeros(1, np.int64), False, 1.0)[0].shape == (0,)
