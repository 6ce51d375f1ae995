"""Near-duplicates: signatures estimate Jaccard similarity, marked pairs are those of brute force."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from loom.corpus import documents
from loom.corpus.batch import make_batch
from loom.corpus.dedupe.minhash import MinHash, hash_functions, minhash, probability
from loom.corpus.kernels.minhash import shingle_hashes, signatures
from loom.engine import LocalEngine

VOCABULARY = [f"word{letter}{other}" for letter in "abcdefghijklmnop" for other in "qrstuvwxyz"]


def texts() -> list[str]:
    """Sixty texts and, of each, copies with more and more words exchanged."""
    choose = random.Random(5)
    made = []
    for _ in range(60):
        words = [choose.choice(VOCABULARY) for _ in range(120)]
        made.append(" ".join(words))
        for exchanged in (1, 3, 8, 30):
            copy = list(words)
            for at in choose.sample(range(len(copy)), exchanged):
                copy[at] = choose.choice(VOCABULARY)
            made.append(" ".join(copy).upper() if exchanged == 3 else " ".join(copy))
    choose.shuffle(made)
    return made


def shingles(text: str, size: int = 5) -> set[tuple[str, ...]]:
    words = text.lower().split()
    return set(zip(*(words[k:] for k in range(size)), strict=False))


def test_signatures_estimate_jaccard() -> None:
    made = texts()[:80]
    batch = make_batch([{"id": str(n), "text": text} for n, text in enumerate(made)], range(80))
    found, counts = signatures(*batch.utf8(), 5, *hash_functions(3, 400))
    sets = [shingles(text) for text in made]
    assert counts.tolist() == [len(text.split()) - 4 for text in made]
    errors = [
        (found[i] == found[j]).mean() - len(sets[i] & sets[j]) / len(sets[i] | sets[j])
        for i in range(80)
        for j in range(i)
    ]
    assert max(map(abs, errors)) < 5 * 0.5 / np.sqrt(400)  # five standard errors of 400 coin flips
    assert abs(np.mean(errors)) < 0.005


def test_shingle_hashes_are_distinct_shingles() -> None:
    made = texts()[:40]
    batch = make_batch([{"id": str(n), "text": text} for n, text in enumerate(made)], range(40))
    hashes, starts = shingle_hashes(*batch.utf8(), 5)
    for row, text in enumerate(made):
        assert len(set(hashes[starts[row] : starts[row + 1]].tolist())) == len(shingles(text))


def attributes(folder: Path) -> dict[str, dict[str, Any]]:
    rows = [
        orjson.loads(line) for path in sorted(folder.rglob("*.gz")) for line in documents.read_lines(path)
    ]
    return {row["id"]: row["attributes"] for row in rows}


def run(root: Path, made: list[str], parts: int, workers: int) -> dict[str, dict[str, Any]]:
    size = -(-len(made) // parts)
    for part in range(parts):
        rows = [
            {"id": str(n), "text": made[n], "source": "s"}
            for n in range(part * size, min((part + 1) * size, len(made)))
        ]
        documents.write(root / "documents" / f"{part}.jsonl.gz", rows)
    recipe = MinHash(documents=(str(root / "documents"),), name="near")
    minhash(recipe, LocalEngine(workers))
    return attributes(root / "attributes" / "near")


def test_marked_documents_are_those_of_brute_force(tmp_path: Path) -> None:
    made = [*texts(), "", "  ", "!!!"]
    found = run(tmp_path, made, parts=3, workers=2)
    sets = [shingles(text) for text in made]

    def similarity(i: int, j: int) -> float:
        return len(sets[i] & sets[j]) / max(len(sets[i] | sets[j]), 1)

    for number in range(len(made)):
        before = [similarity(number, other) for other in range(number)]
        best = max(before, default=0.0)
        if best > 0.93:  # found with probability above 0.9999
            assert "near" in found[str(number)], best
        if max((similarity(number, other) for other in range(len(made)) if other != number), default=0) < 0.3:
            assert found[str(number)] == {}  # found with probability below 0.001
        if "near" in found[str(number)]:
            assert int(found[str(number)]["near_of"]) < number
            assert found[str(number)]["near"] == [[0, len(made[number]), 1.0]]
    assert sum("near" in value for value in found.values()) > 100


def test_split_and_workers_do_not_matter(tmp_path: Path) -> None:
    made = texts()[:100]
    assert run(tmp_path / "a", made, 1, 1) == run(tmp_path / "b", made, 4, 3)


@pytest.mark.parametrize(("similarity", "expected"), [(0.8, 0.924), (0.5, 0.053)])
def test_probability_is_the_published_curve(similarity: float, expected: float) -> None:
    assert probability(similarity, 14, 8) == pytest.approx(expected, abs=0.001)
