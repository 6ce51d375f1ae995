"""The road ends with the same numbers however often it was stopped, and says clearly when it cannot go."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from loom.artifact import lineage
from loom.road.plan import PLAN
from tests.conftest import skip_by_name

PLANNED = {"minutes": 1.0, "tokens_per_second": 5000.0, "steps": {"pretrain": 48, "sft": 12, "dpo": 6}}
FLAGS = ("--limit-mb", "1")


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "loom", "quickstart", *FLAGS, *words]


def road(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command("--out", "road", "--json", *words), cwd=folder, capture_output=True, text=True, timeout=800
    )


def planned(folder: Path) -> Path:
    (folder / "road").mkdir(parents=True)
    (folder / "road" / PLAN).write_text(json.dumps(PLANNED))
    return folder


def last_line(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr[-3000:]
    value: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return value


def numbers(value: dict[str, Any]) -> dict[str, Any]:
    return {key: part for key, part in value.items() if key != "seconds"}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = planned(tmp_path_factory.mktemp("undisturbed"))
    return folder, last_line(road(folder))


@pytest.mark.slow
def test_the_closing_object_holds_what_is_promised(undisturbed: tuple[Path, dict[str, Any]]) -> None:
    folder, value = undisturbed
    assert value["documents_in"] > value["documents_out"] > 100
    assert value["tokens"] > 100_000
    assert value["train_loss_last"] < value["train_loss_first"]
    assert value["bigram_entropy"] < value["unigram_entropy"]
    assert value["validation_loss"] < value["train_loss_first"]
    assert [row["model"] for row in value["table"]] == ["base", "sft", "dpo"]
    for row in value["table"]:
        for key in ("rank_accuracy", "answer_bits_per_byte", "preference_accuracy"):
            assert row[key] > 0
            assert row[f"{key}_stderr"] > 0
    assert set(value["seconds"]) >= {"collect", "curate", "pretrain", "sft", "dpo", "evaluate", "export"}
    assert (folder / value["report"]).is_file()


@pytest.mark.slow
def test_a_finished_road_does_nothing_and_says_the_same(undisturbed: tuple[Path, dict[str, Any]]) -> None:
    folder, value = undisturbed
    before = {path: path.stat().st_mtime_ns for path in (folder / "road").rglob("*") if path.is_file()}
    again = road(folder)
    assert last_line(again) == value
    assert "nothing to do" in again.stderr
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.slow
def test_lineage_leads_from_the_release_to_raw_files(undisturbed: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = undisturbed
    kinds, files, stale = set(), 0, []
    seen, waiting = set(), [lineage(folder / "road" / "export")]
    while waiting:
        node = waiting.pop()
        kinds.add(node.kind)
        files += node.kind == "file"
        stale += [node.path] if node.stale else []
        for parent in node.parents:
            if id(parent) not in seen:
                seen.add(id(parent))
                waiting.append(parent)
    assert {"model", "checkpoint", "tokens", "documents", "questions", "file"} <= kinds
    assert files > 100
    assert stale == []


def files_in(stage: Path) -> int:
    return sum(len(files) for _, _, files in os.walk(stage))


def logged(stage: Path) -> int:
    metrics = stage / "metrics.jsonl"
    return metrics.read_bytes().count(b"\n") if metrics.exists() else 0


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1])
def test_killed_at_random_points_it_ends_with_the_same_numbers(
    undisturbed: tuple[Path, dict[str, Any]], tmp_path: Path, seed: int
) -> None:
    """kill -9 at a random point of curation, then of pretraining, then of DPO."""
    chance = random.Random(seed)
    folder = planned(tmp_path)
    out = folder / "road"
    reference = undisturbed[0] / "road"
    for stage, progress in (("curated", files_in), ("pretrain", logged), ("dpo", logged)):
        moment = chance.uniform(0.1, 0.6) * progress(reference / stage)
        running = subprocess.Popen(command("--out", "road"), cwd=folder, stdout=subprocess.DEVNULL)
        while progress(out / stage) < moment and running.poll() is None:
            time.sleep(0.005)
        running.send_signal(signal.SIGKILL)
        running.wait()
        assert not (out / stage / "manifest.json").exists(), f"the kill came after {stage} was finished"
    mine = last_line(road(folder))
    assert numbers(mine) == numbers(undisturbed[1])
    for name in ("raw", "questions", "curated", "tokens", "sft-data", "dpo-data", "index", "trace"):
        assert (out / name / "manifest.json").read_bytes() == (
            reference / name / "manifest.json"
        ).read_bytes()
    weights = [folder / "export" / "model.safetensors" for folder in (out, reference)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


@pytest.mark.slow
def test_an_edited_manifest_a_cut_shard_and_other_minutes_are_named(
    undisturbed: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(undisturbed[0], folder)
    out = folder / "road"
    other = road(folder, "--minutes", "3")
    assert other.returncode == 1
    assert "planned for --minutes 1" in other.stderr
    (out / "manifest.json").unlink()
    manifest = out / "curated" / "manifest.json"
    kept = manifest.read_bytes()
    manifest.write_bytes(kept.replace(b'"documents_out": ', b'"documents_out": 1'))
    edited = road(folder)
    assert edited.returncode == 1
    assert "curated/manifest.json was changed" in edited.stderr
    manifest.write_bytes(kept)
    shard = out / "tokens" / "shard-00000.npy"
    with open(shard, "r+b") as stream:
        stream.truncate(1000)
    cut = road(folder)
    assert cut.returncode == 1
    assert "shard-00000.npy" in cut.stderr
    assert "Traceback" not in cut.stderr
    assert (out / "pretrain" / "manifest.json").exists(), "what was finished is kept"


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (("--minutes", "0"), "--minutes 8"),
        (("--minutes", "-1"), "--minutes 8"),
        (("--limit-mb", "0"), "--limit-mb"),
    ],
)
def test_senseless_flags_are_refused_before_any_work(
    tmp_path: Path, words: tuple[str, ...], part: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "loom", "quickstart", "--out", "road", *words],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1
    assert part in done.stderr
    assert not (tmp_path / "road").exists()


def test_an_unwritable_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "road").write_text("a file where the folder should be")
    done = road(tmp_path)
    assert done.returncode == 1
    assert "road" in done.stderr
    assert "--out" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_python_without_docs_is_one_clear_error(tmp_path: Path) -> None:
    """A library of nothing but code: no docstrings, no packages, no system documentation."""
    from loom.corpus.sources import python as source

    assert source.SOURCES
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "silent.py").write_text("x = 1\n")
    program = (
        "import sys, sysconfig\n"
        "real = sysconfig.get_paths\n"
        f"sysconfig.get_paths = lambda *a, **k: {{key: {str(bare)!r} for key in real()}}\n"
        "from loom.cli import main\n"
        "main(sys.argv[1:])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "collect", "python", "--sources", "python-docs", "--out", "raw"],
        cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": ""},
    )  # fmt: skip
    assert done.returncode == 1
    assert "documentation" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_the_page_opens_in_a_browser_without_network(undisturbed: tuple[Path, dict[str, Any]]) -> None:
    folder, value = undisturbed
    page = folder / value["report"]
    text = page.read_text(encoding="utf-8")
    # What the page loads; an address may well stand in the training text that a trace shows.
    assert not re.findall(
        r"""(?:src|href|action)\s*=\s*["']?(?:https?:)?//|url\(\s*["']?(?:https?:)?//|@import""", text
    )
    chromium = shutil.which("chromium")
    if chromium is None:
        skip_by_name("chromium")
    from playwright.sync_api import sync_playwright

    errors: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium,
            args=["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        tab = browser.new_page()
        tab.on("pageerror", lambda error: errors.append(str(error)))
        tab.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        tab.on("request", lambda asked: errors.append(asked.url) if asked.url.startswith("http") else None)
        tab.goto(page.as_uri())
        shown = tab.inner_text("body")
        browser.close()
    assert errors == []
    for part in (
        "python-docs",
        "validation",
        "base",
        "sft",
        "dpo",
        "raw files",
        "Where an answer comes from",
    ):
        assert part in shown
    leads = set(re.findall(r'href="(trace/[^"#]*)', text))
    assert len(leads) >= 3
    assert all((page.parent / name).is_file() for name in leads)
