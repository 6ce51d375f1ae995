"""What docs/evaluation.md says of speed is what was measured, and a disagreement with the harness is seen."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]


def load(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    spec = importlib.util.spec_from_file_location(name, ROOT / "bench" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


def test_the_table_is_that_of_the_results(monkeypatch: pytest.MonkeyPatch) -> None:
    summary = load("summary", monkeypatch)
    page = summary.EVALUATION.read_text()
    assert page.split(summary.BEGIN)[1].split(summary.END)[0].strip() == summary.speed()


def test_what_is_too_far_apart_fails_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = load("evaluation", monkeypatch)
    assert bench.far([-10.0, -2000.0], [-10.0009, -2000.005]) == 0
    assert bench.far([-10.0, -2000.0], [-10.0011, -2000.007]) == 2
    assert bench.far([np.nan], [-1.0]) == 1
    line = {"documents": 3, "differ": 0, "close": 0, "largest_nats": 0.0, "over_tolerance": 0}
    assert bench.agrees({"a": line})["agrees"]
    for broken in ({"differ": 1}, {"over_tolerance": 1}):
        assert not bench.agrees({"a": line, "b": {**line, **broken}})["agrees"]
