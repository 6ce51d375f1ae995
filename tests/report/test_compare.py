"""Two runs: the same, the same but for noise, different."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from loom.errors import LoomError
from loom.report.compare import block_means, difference, paired
from loom.report.page import render
from loom.report.records import compare_runs, read_metrics, read_records


def noisy(seed: int, shift: float = 0.0, steps: int = 400) -> tuple[tuple[float, float], ...]:
    chance = random.Random(seed)
    return tuple((float(s), 3 + 5 / s + shift + chance.gauss(0, 0.05)) for s in range(1, steps + 1))


def test_equal_runs_are_called_equal() -> None:
    found = difference(noisy(1), noisy(1))
    assert found is not None
    assert "Equal to the last bit at all 200" in found.sentence


def test_noise_is_no_difference_and_a_shift_is_one() -> None:
    """With the error right, about one pair in twenty is beyond two of them; a shift of 0.05 always is."""
    beyond = 0
    for seed in range(60):
        same, moved = (
            difference(noisy(seed), noisy(seed + 500)),
            difference(noisy(seed), noisy(seed + 500, 0.05)),
        )
        assert same is not None
        assert moved is not None
        beyond += abs(same.mean) > 2 * same.stderr
        assert abs(moved.mean) > 2 * moved.stderr
        assert "more than 2 standard errors" in moved.sentence
    assert beyond <= 10


def test_only_common_steps_are_paired() -> None:
    assert paired(((1, 1.0), (3, 2.0)), ((2, 9.0), (3, 2.5), (4, 9.0))) == [(3, 0.5)]
    assert difference(((1, 1.0),), ((1, 2.0),)) is None


def test_block_means_cover_all_values() -> None:
    values = [float(i) for i in range(37)]
    means = block_means(values, 5)
    assert len(means) == 5
    assert means == sorted(means)


def _run(folder: Path, seed: int) -> Path:
    folder.mkdir()
    rows = [{"step": int(s), "loss": v, "lr": 0.1, "tokens": int(s) * 10} for s, v in noisy(seed)]
    rows[-1]["eval/heldout/loss"] = 3.2
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_pages_of_runs(tmp_path: Path) -> None:
    first, other = _run(tmp_path / "a", 1), _run(tmp_path / "b", 2)
    page = render(compare_runs([first, other]))
    assert "b against a" in page
    assert "No significant difference" in page
    single = read_records(first)
    assert single.training[0].validation == ((400.0, 3.2),)
    assert single.tokens == 4000
    assert "not finished" in render(single)


def test_a_half_written_last_line_is_passed_over(tmp_path: Path) -> None:
    run = _run(tmp_path / "a", 1)
    with open(run / "metrics.jsonl", "a") as stream:
        stream.write('{"step": 40')
    assert len(read_metrics(run / "metrics.jsonl")) == 400
    text = (run / "metrics.jsonl").read_text().splitlines()
    text[5] = "{"
    (run / "metrics.jsonl").write_text("\n".join(text))
    with pytest.raises(LoomError, match=r"metrics\.jsonl:6"):
        read_metrics(run / "metrics.jsonl")
