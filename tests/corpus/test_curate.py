"""The six steps: known answers, the same bytes from any number of workers, from any split, after a kill."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest

from loom.corpus import documents
from loom.corpus.curate import Curate, curate
from loom.engine import LocalEngine
from loom.errors import LoomError
from loom.recipe import build

SENTENCE = (
    "the model reads every document once and writes what it has seen beside it so that a later step can look "
    "at both without asking again while nobody waits for an answer that is already on the disk"
)
WORDS = SENTENCE.split()
BLOCK = (
    "This paragraph stands in two documents, word for word, and only the first of them may keep it for good."
)
HELD = "Return the largest prime below a given bound"


def prose(seed: int, words: int = 60) -> str:
    choose = random.Random(seed)
    return " ".join(choose.choice(WORDS) + str(choose.randrange(50)) for _ in range(words)) + "."


def corpus() -> list[dict[str, Any]]:
    rows = [{"id": f"p{i}", "text": f"Page {i}\n\n{prose(i)}\n", "source": "s"} for i in range(40)]
    rows[3]["text"] += "Write to someone@example.org or to 10.1.2.3 today."
    rows[5]["text"] = f"First.\n\n{BLOCK}\n\n{prose(105)}"
    rows[9]["text"] = f"Second.\n\n{BLOCK}\n\n{prose(109)}"
    rows[12]["text"] = f"{prose(112)}\nTo {HELD.lower()}, sieve.\nA last line."
    rows[20] = {**rows[2], "id": "copy of p2"}
    rows[21] = {"id": "short", "text": "Too short.", "source": "s"}
    rows[22] = {"id": "blank", "text": " \n ", "source": "s"}
    return rows


def write(folder: Path, rows: Sequence[dict[str, Any]], parts: int) -> Path:
    size = -(-len(rows) // parts)
    for part in range(parts):
        name = folder / "documents" / "s" / f"part-{part:02d}.jsonl.gz"
        documents.write(name, list(rows[part * size : (part + 1) * size]))
    return folder


def recipe(raw: Path, held: Path | None = None, **more: Any) -> Curate:
    values: dict[str, Any] = {
        "documents": str(raw),
        "sources": {"s": {"rules": "r"}},
        "rules": {
            "r": {
                "taggers": ["gopher_v2", "pii_v1"],
                "remove": {"short": "gopher_v2.word_count < 5"},
                "replace": {
                    "pii_v1.EMAIL_ADDRESS": " |||EMAIL_ADDRESS||| ",
                    "pii_v1.IP_ADDRESS": " |||IP_ADDRESS||| ",
                },
            }
        },
    }
    if held is not None:
        values["decontaminate"] = {"path": str(held)}
    return build({**values, **more}, Curate, "test")


def texts(out: Path, folder: str = "documents") -> dict[str, dict[str, Any]]:
    return {
        row["id"]: row
        for path in documents.find_files([out / folder])
        for row in map(orjson.loads, documents.read_lines(path))
    }


def tree(out: Path) -> dict[str, bytes]:
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.name != "run.json"
    }


def files_in(out: Path) -> int:
    return sum(len(files) for _, _, files in os.walk(out))


@pytest.mark.parametrize("across", [True, False])
def test_duplicates_across_sources(tmp_path: Path, across: bool) -> None:
    """By option a text, or a paragraph, that another source has too is none; in its own it always is one."""
    for source in "ab":
        rows = [
            {"id": "1", "text": f"{prose(1 if source == 'a' else 2)}\n\n{BLOCK}"},
            {"id": "2", "text": f"{prose(3 if source == 'a' else 4)}\n\n{BLOCK}"},
            {"id": "3", "text": prose(5)},
            {"id": "4", "text": prose(5)},
        ]
        documents.write(tmp_path / "documents" / source / "part.jsonl.gz", rows)
    dedupe = {"across_sources": across}
    made = recipe(tmp_path, sources={"a": {"rules": "r"}, "b": {"rules": "r"}}, dedupe=dedupe)
    found = curate(made, tmp_path / "out", LocalEngine(1)).counters["sources"]
    counts = [
        (found[s]["removed"]["duplicate_document"], found[s]["cut"]["duplicate_paragraph"]) for s in "ab"
    ]
    assert counts == [(1, 1), (2, 2) if across else (1, 1)]
    with pytest.raises(LoomError, match="across_sources"):
        recipe(tmp_path, dedupe={"near": {}, "across_sources": False})


def test_known_answers(tmp_path: Path) -> None:
    raw = write(tmp_path / "raw", corpus(), 3)
    held = tmp_path / "held.txt"
    held.write_text(HELD + "\n")
    artifact = curate(recipe(raw, held), tmp_path / "out", LocalEngine(1))
    part = artifact.counters["sources"]["s"]
    assert part["removed"] == {"short": 2, "duplicate_document": 1}
    assert part["masked"] == {"EMAIL_ADDRESS": 1, "IP_ADDRESS": 1}
    assert part["cut"] == {"duplicate_paragraph": 1, "held_out": 1}
    assert (artifact.counters["documents_in"], artifact.counters["documents_out"]) == (40, 37)
    assert artifact.counters["held_out_hits"] == 1
    looked_at = [item.digest for item in artifact.inputs if item.path.endswith("held.txt")]
    assert artifact.facts["against"] == looked_at  # not trained on
    kept, removed = texts(tmp_path / "out"), texts(tmp_path / "out", "removed")
    assert kept["p3"]["text"].endswith("Write to  |||EMAIL_ADDRESS|||  or to  |||IP_ADDRESS|||  today.")
    assert BLOCK in kept["p5"]["text"]
    assert BLOCK not in kept["p9"]["text"]
    assert kept["p12"]["text"] == f"{prose(112)}\nA last line."
    assert removed["copy of p2"]["removed"] == {"rule": "duplicate_document", "survivor": "p2"}
    assert removed["short"]["removed"]["rule"] == "short"
    assert kept["p0"] == corpus()[0]
    assert kept.keys() | removed.keys() == {row["id"] for row in corpus()}


def test_workers_and_split_do_not_matter(tmp_path: Path) -> None:
    raw = write(tmp_path / "raw", corpus(), 4)
    one = curate(recipe(raw), tmp_path / "one", LocalEngine(1))
    curate(recipe(raw), tmp_path / "three", LocalEngine(3))
    assert tree(tmp_path / "one") == tree(tmp_path / "three")
    whole = curate(recipe(write(tmp_path / "whole", corpus(), 1)), tmp_path / "split", LocalEngine(2))
    assert texts(tmp_path / "one") == texts(tmp_path / "split")
    assert one.counters == whole.counters


def test_shares_draw_and_repeat_documents(tmp_path: Path) -> None:
    rows = [{"id": f"d{i}", "text": prose(i), "source": "s"} for i in range(400)]
    raw = write(tmp_path / "raw", rows, 2)
    half = curate(recipe(raw, sources={"s": {"rules": "r", "share": 0.5}}), tmp_path / "half", LocalEngine(1))
    more = curate(recipe(raw, sources={"s": {"rules": "r", "share": 1.5}}), tmp_path / "more", LocalEngine(1))
    assert half.counters["sources"]["s"]["removed"] == {"not_sampled": 400 - half.counters["documents_out"]}
    assert 150 < half.counters["documents_out"] < 250  # five standard deviations
    repeated = {name.removesuffix("#2") for name in texts(tmp_path / "more") if name.endswith("#2")}
    assert more.counters["documents_out"] == 400 + len(repeated)
    assert repeated == texts(tmp_path / "half").keys()  # the same keyed hash decides both


def test_rows_that_are_no_documents_are_set_aside_and_counted(tmp_path: Path) -> None:
    raw = write(tmp_path / "raw", corpus(), 1)
    with open(raw / "documents" / "s" / "part-01.jsonl", "wb") as stream:
        stream.write(b'{broken\n{"id": "x"}\n' + orjson.dumps({"id": "fine", "text": prose(900)}) + b"\n")
    artifact = curate(recipe(raw), tmp_path / "out", LocalEngine(1))
    assert artifact.counters["rejected"] == 2
    assert artifact.counters["documents_in"] == 41
    lines = (tmp_path / "out" / "rejected" / "s" / "part-01.jsonl").read_bytes().splitlines()
    assert [(row["line"], row["file"]) for row in map(orjson.loads, lines)] == [
        (1, "part-01.jsonl"),
        (2, "part-01.jsonl"),
    ]


def test_a_finished_run_is_left_alone_and_a_changed_recipe_is_not(tmp_path: Path) -> None:
    raw = write(tmp_path / "raw", corpus(), 2)
    curate(recipe(raw), tmp_path / "out", LocalEngine(1))
    before = (tmp_path / "out" / "run.json").stat().st_mtime_ns
    curate(recipe(raw), tmp_path / "out", LocalEngine(1))
    assert (tmp_path / "out" / "run.json").stat().st_mtime_ns == before
    changed = curate(recipe(raw, seed=1, dedupe={"documents": False}), tmp_path / "out", LocalEngine(1))
    assert "duplicate_document" not in changed.counters["sources"]["s"]["removed"]


def test_a_duplicate_of_a_removed_document_stays(tmp_path: Path) -> None:
    """The survivor is chosen among what the rules left."""
    rows = [{"id": "a", "text": "one two three four five"}, {"id": "b", "text": "one two three four five"}]
    values = {"share": 0.5, "rules": "r"}
    kept = set()
    for seed in range(8):
        out = tmp_path / str(seed)
        raw = write(tmp_path / f"raw{seed}", rows, 1)
        try:
            curate(recipe(raw, sources={"s": values}, seed=seed), out, LocalEngine(1))
        except LoomError:
            continue  # neither was drawn
        kept |= texts(out).keys()
    assert kept == {"a", "b"}


def test_mistakes_are_named(tmp_path: Path) -> None:
    raw = write(tmp_path / "raw", corpus(), 1)
    wrong = {"r": {"taggers": ["gopher_v2"], "remove": {"short": "gopher_v2.words < 5"}}}
    with pytest.raises(LoomError, match="writes no 'words'"):
        curate(recipe(raw, rules=wrong), tmp_path / "out", LocalEngine(1))
    wrong = {"r": {"taggers": ["gofer_v2"]}}
    with pytest.raises(LoomError, match="Did you mean 'gopher_v2'"):
        curate(recipe(raw, rules=wrong), tmp_path / "out2", LocalEngine(1))
    with pytest.raises(LoomError, match="removed every document"):
        rules = {"r": {"taggers": ["gopher_v2"], "remove": {"all": "gopher_v2.word_count >= 0"}}}
        curate(recipe(raw, rules=rules), tmp_path / "out3", LocalEngine(1))


EVERY = {"near": {"words": 3}}  # every kind of duplicate

RUN = """
import sys
from pathlib import Path
from tests.corpus.test_curate import EVERY, recipe
from loom.corpus.curate import curate
from loom.engine import LocalEngine
curate(recipe(Path(sys.argv[1]), dedupe=EVERY), Path(sys.argv[2]), LocalEngine(2))
"""


@pytest.mark.slow
def test_killed_at_any_moment_the_bytes_are_the_same(tmp_path: Path) -> None:
    rows = [
        {
            "id": f"d{i}",
            "text": "\n\n".join(prose(i // 2 * 31 + j % 5 + (i % 2) * (j > 17), 150) for j in range(20)),
            "source": "s",
        }
        for i in range(400)
    ]
    raw = write(tmp_path / "raw", rows, 8)
    undisturbed = curate(recipe(raw, dedupe=EVERY), tmp_path / "undisturbed", LocalEngine(2))
    assert undisturbed.counters["sources"]["s"]["removed"]["near_duplicate"] > 9
    out = tmp_path / "killed"
    command = [sys.executable, "-c", RUN, str(raw), str(out)]
    whole = files_in(tmp_path / "undisturbed")
    choose = random.Random(os.getpid())
    kills = 0
    for files in sorted(choose.sample(range(1, whole), 6)):
        process = subprocess.Popen(command)
        while process.poll() is None and files_in(out) < files:
            time.sleep(0.002)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait()
    assert kills
    subprocess.run(command, check=True)
    assert tree(out) == tree(tmp_path / "undisturbed")
