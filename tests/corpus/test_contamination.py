"""Decontamination: what is shared is found, brute force agrees, and a search that cannot match is an error."""

from __future__ import annotations

import random
import re
from pathlib import Path

import numpy as np
import orjson
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loom.corpus import decontaminate, documents
from loom.corpus.batch import utf8
from loom.corpus.contamination import Decontaminate, fill, paragraph_prints, run
from loom.engine import LocalEngine
from loom.errors import LoomError

LONG = "one two three four five six seven eight nine ten eleven twelve thirteen"


def buffers(texts: list[str]) -> tuple[object, object]:
    return utf8(pa.chunked_array([pa.array(texts, pa.large_string())]))


def test_ngrams_are_those_of_brute_force() -> None:
    choose = random.Random(2)
    words = ["alpha", "Beta", "γάμμα", "delta9", "x"]
    joins = [" ", "  ", ", ", "\n", "\n\n", "`-`"]

    def text(count: int) -> str:
        return "".join(choose.choice(words) + choose.choice(joins) for _ in range(count))

    held_texts = [text(choose.randint(1, 7)) for _ in range(25)]
    texts = [text(choose.randint(0, 60)) for _ in range(120)]
    held = decontaminate.hold(held_texts, 5, 4)
    found = decontaminate.find(held, *buffers(texts))

    def tokens(value: str) -> list[tuple[int, str]]:
        return [(m.start(), m.group().lower()) for m in re.finditer(r"[a-zA-Z0-9\u0080-\U0010ffff]+", value)]

    grams = set()
    for value in held_texts:
        parts = [word for _, word in tokens(value)]
        size = min(5, len(parts))
        if size >= 4:
            grams |= {tuple(parts[k : k + size]) for k in range(len(parts) - size + 1)}
    for row, value in enumerate(texts):
        parts = tokens(value)
        touched = set()
        for size in (4, 5):
            for k in range(len(parts) - size + 1):
                if tuple(word for _, word in parts[k : k + size]) in grams:
                    touched |= {at for at, _ in parts[k : k + size]}
        lines, start = set(), 0
        for line in value.splitlines(keepends=True):
            if any(start <= at < start + len(line) for at in touched):
                lines |= set(range(start, start + len(line)))
            start += len(line)
        marked = {at for a, b, _ in found.of(row) or [] for at in range(a, b)}
        assert marked == lines, value


def test_paloma_drops_only_long_paragraphs_that_are_equal(tmp_path: Path) -> None:
    corpus = [
        {"id": "hit", "text": f"Before.\n{LONG}\nAfter.", "source": "s"},
        {"id": "inside a longer line", "text": f"{LONG} fourteen", "source": "s"},
        {"id": "short", "text": "one two three", "source": "s"},
    ]
    documents.write(tmp_path / "documents" / "a.jsonl.gz", corpus)
    evaluation = tmp_path / "eval.jsonl"
    documents.write(evaluation, [{"id": "e", "text": f"one two three\n{LONG}\n" + "! " * 20}])
    recipe = Decontaminate((str(tmp_path / "documents"),), (str(evaluation),), most_removed=0.5)
    artifact = run(recipe, engine=LocalEngine(1))
    assert artifact.counters["searched_for"] == 1
    rows = [
        orjson.loads(line)
        for line in documents.read_lines(tmp_path / "attributes" / "decontamination" / "a.jsonl.gz")
    ]
    expected = {"decontamination": [[8, 8 + len(LONG) + 1, 1.0]]}
    assert {row["id"]: row["attributes"] for row in rows} == {
        "hit": expected,
        "inside a longer line": {},
        "short": {},
    }


def test_too_many_hits_stop_the_run(tmp_path: Path) -> None:
    rows = [{"id": "1", "text": LONG, "source": "s"}]
    documents.write(tmp_path / "documents" / "a.jsonl", rows)
    recipe = Decontaminate((str(tmp_path / "documents"),), (str(tmp_path / "documents"),))
    with pytest.raises(LoomError, match="hold evaluation text"):
        run(recipe, engine=LocalEngine(1))
    assert not (tmp_path / "attributes" / "decontamination" / "manifest.json").exists()


def test_a_search_for_nothing_is_an_error(tmp_path: Path) -> None:
    assert paragraph_prints(["too short", "! " * 40]).shape[0] == 0
    rows = [{"id": "1", "text": "a few words", "source": "s"}]
    documents.write(tmp_path / "documents" / "a.jsonl", rows)
    recipe = Decontaminate((str(tmp_path / "documents"),), (str(tmp_path / "documents"),))
    with pytest.raises(LoomError, match="nothing could"):
        run(recipe, engine=LocalEngine(1))


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 400), st.sampled_from([1e-2, 1e-6, 1e-15]), st.integers(0, 2**32))
def test_a_bloom_filter_forgets_nothing(entries: int, rate: float, seed: int) -> None:
    from loom.corpus.kernels.bloom import consume, expected_rate

    generator = np.random.default_rng(seed)
    prints = generator.integers(0, 2**64, (entries, 2), np.uint64)
    held = fill(prints, rate)
    assert consume(prints, held.bits, held.hashes, True, 0, 1).all()
    before = held.bits.copy()
    others = generator.integers(0, 2**64, (1000, 2), np.uint64)
    assert not consume(
        others, held.bits, held.hashes, True, 0, 1
    ).any()  # a filter has 1 MiB at least: hardly full
    assert (held.bits == before).all()
    assert expected_rate(held.bits.nbytes, entries) <= rate


def test_hashes_that_agree_modulo_the_filter_are_told_apart() -> None:
    """Two entries whose hashes are equal in all the bits that a small filter could look at."""
    from loom.corpus.kernels.bloom import consume

    prints = np.random.default_rng(0).integers(0, 2**64, (500, 2), np.uint64)
    held = fill(prints, 1e-15)
    alike = prints ^ np.uint64(1 << 60)
    assert not consume(alike, held.bits, held.hashes, True, 0, 1).any()


def test_a_full_bloom_filter_errs_at_its_rate() -> None:
    from loom.corpus.kernels.bloom import consume, expected_rate, hashes_for, size_for

    generator = np.random.default_rng(5)
    entries = 700_000
    size = size_for(entries, 0.005)
    assert expected_rate(size, entries) <= 0.005 < expected_rate(size // 2, entries)
    bits = np.zeros(size // 8, np.uint64)
    hashes = hashes_for(size, entries)
    consume(generator.integers(0, 2**64, (entries, 2), np.uint64), bits, hashes, False, 0, 1)
    found = consume(generator.integers(0, 2**64, (400_000, 2), np.uint64), bits, hashes, True, 0, 1)
    expected = expected_rate(size, entries)
    assert abs(found.mean() - expected) < 6 * (expected / 400_000) ** 0.5
