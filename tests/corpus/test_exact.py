"""Work files of arrays, and exact duplicates by partition: what brute force finds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loom.corpus.dedupe import exact
from loom.errors import LoomError

ARRAYS = st.dictionaries(
    st.text("abcdefgh_0123456789", min_size=1, max_size=40),
    st.tuples(
        st.sampled_from(["uint64", "int64", "uint32", "int8", "bool", "float64"]),
        st.lists(st.integers(0, 5), min_size=1, max_size=4),
    ),
    max_size=6,
)


@settings(max_examples=60, deadline=None)
@given(ARRAYS)
def test_arrays_come_back(tmp_path_factory: pytest.TempPathFactory, kinds: dict[str, Any]) -> None:
    path = tmp_path_factory.mktemp("arrays") / "work"
    arrays = {
        name: np.arange(int(np.prod(shape))).reshape(shape).astype(kind)
        for name, (kind, shape) in kinds.items()
    }
    exact.save(path, **arrays)
    for found in (exact.load(path), exact.mapped(path)):
        assert found.keys() == arrays.keys()
        for name, array in arrays.items():
            assert found[name].dtype == array.dtype and found[name].shape == array.shape
            assert (found[name] == array).all()
    for name, array in arrays.items():
        one = exact.one(path, name)
        assert one is not None and one.shape == array.shape and (one == array).all()
    assert exact.one(path, "nobody") is None
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(LoomError, match="cut short"):
        exact.load(path)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 6), max_size=9), min_size=1, max_size=4), st.sampled_from([1, 2, 4, 8])
)
def test_duplicates_are_all_but_the_first_in_input_order(files: list[list[int]], partitions: int) -> None:
    values = np.random.default_rng(1).integers(0, 2**64, (7, 2), np.uint64)
    prints = [values[np.array(file, np.int64)].reshape(-1, 2) for file in files]
    first: dict[int, tuple[int, int]] = {}
    expected = set()
    for number, file in enumerate(files):
        for row, value in enumerate(file):
            if value in first:
                expected.add((number, row, *first[value]))
            first.setdefault(value, (number, row))
    found = set()
    for partition in range(partitions):
        parts = [exact.share(exact.spread("x", part), "x", partition, partitions) for part in prints]
        for part, rows in parts:
            assert (exact.partition_of(part, partitions) == partition).all()
            assert (np.diff(rows) > 0).all()
        for number, table in enumerate(exact.duplicates([part for part, _ in parts])):
            for row, other, place in table.tolist():
                found.add((number, int(parts[number][1][row]), other, int(parts[other][1][place])))
    assert found == expected


def test_what_grows_its_answer_is_kept_as_machine_code() -> None:
    """More paragraphs and more hits than room was made for; a kernel that needs Numba starts anew in every run."""
    from loom import native
    from loom.corpus.kernels import fingerprints, ngrams

    def column(texts: list[str]) -> tuple[Any, Any]:
        offsets = np.cumsum([0, *(len(text.encode()) for text in texts)]).astype(np.int64)
        return np.frombuffer("".join(texts).encode(), np.uint8), offsets

    blocks = "\n\n".join(f"paragraph number {i}" for i in range(9000))
    spans, prints = fingerprints.paragraphs(*column([blocks]), fingerprints.BLOCK, 1)
    assert [blocks[a:b].strip() for _, a, b in spans.tolist()] == blocks.split("\n\n")
    assert len(np.unique(prints, axis=0)) == 9000

    held = ngrams.collect(*column(["one two three"]), 3, 3)
    table = ngrams.make_table(held[:, 1].copy())
    starts = np.array([0, table.size], np.int64)
    hits = ngrams.find(*column(["one two three\nfour\n"] * 700), np.array([3], np.int64), starts, table)
    assert hits.tolist() == [[row, 0, 14, 1] for row in range(700)]
    if native.keeping():
        for kernel in (fingerprints.paragraphs, ngrams.find):
            assert kernel._ready
            assert kernel._dispatcher not in kernel._ready.values()
