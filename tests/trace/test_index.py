"""The index equals brute force, does not depend on how it was built, and resumes."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loom.engine import LocalEngine
from loom.errors import LoomError
from loom.trace import suffixes
from loom.trace.build import IndexTokens, build_index
from loom.trace.layout import OFFSETS, TABLE, TOKENS, pointer_width
from loom.trace.query import Index, open_index
from tests.trace.folders import occurrences, write_tokens

EOS = 0
# Few ids make repeats; 255, 256 and 511 differ in one byte each, so that the byte order is put to the test.
TOKEN = st.sampled_from([2, 3, 255, 256, 258, 511, 512])
DOCUMENT = st.lists(TOKEN, min_size=1, max_size=12).map(lambda ids: [*ids, EOS])
SHARDS = st.lists(st.lists(DOCUMENT, min_size=1, max_size=8), min_size=1, max_size=3)


def build(folder: Path, documents: list[list[list[int]]], **options: object) -> Index:
    write_tokens(folder / "tokens", documents, vocab_size=600, dtype=str(options.pop("dtype", "uint16")))
    build_index(IndexTokens(folder / "tokens", **options), folder / "index", LocalEngine(1))  # type: ignore[arg-type]
    return open_index(folder / "index")


def true_order(text: np.ndarray) -> list[int]:
    """Every suffix sorted as bytes, by Python."""
    size = text.dtype.itemsize
    data = text.tobytes()
    return sorted(range(len(text)), key=lambda at: data[at * size :])


def entries(index: Index, shard: int) -> list[int]:
    part = index.shards[shard]
    from loom.trace import kernels

    ranks = np.arange(len(part.tokens))
    return kernels.places(part.table, part.width, part.dtype.itemsize, ranks).tolist()


@settings(max_examples=25, deadline=None)
@given(SHARDS, st.sampled_from(["uint16", "uint32"]), st.integers(1, 40), st.booleans())
def test_the_table_is_the_sorted_suffixes(shards, dtype, piece, one_shard) -> None:  # type: ignore[no-untyped-def]
    with tempfile.TemporaryDirectory() as name:
        count = 1 if one_shard else len(shards)
        index = build(Path(name), shards, dtype=dtype, piece_tokens=piece, shards=count)
        assert len(index.shards) == count
        for number, shard in enumerate(index.shards):
            assert entries(index, number) == true_order(np.array(shard.tokens))


@settings(max_examples=40, deadline=None)
@given(SHARDS, st.data(), st.integers(1, 30))
def test_counts_and_documents_equal_brute_force(shards, data, piece) -> None:  # type: ignore[no-untyped-def]
    documents = [document for shard in shards for document in shard]
    queries = data.draw(st.lists(st.lists(TOKEN, min_size=1, max_size=4), max_size=5))
    for document in documents[:4]:
        start = data.draw(st.integers(0, len(document) - 1))
        queries.append(document[start : start + data.draw(st.integers(1, 8))])
    with tempfile.TemporaryDirectory() as name:
        index = build(Path(name), shards, piece_tokens=piece, shards=data.draw(st.integers(1, len(shards))))
        assert (index.documents, index.tokens) == (len(documents), sum(map(len, documents)))
        for query in queries:
            expected = occurrences(documents, query)
            hits = index.find(query)
            assert hits.count == index.count(query) == len(expected)
            found = [(document.id, at) for document, at in index.occurrences(hits)]
            assert sorted(found) == sorted((f"doc-{number}", at) for number, at in expected)
            following = [
                documents[n][at + len(query)] for n, at in expected if at + len(query) < len(documents[n])
            ]
            distribution = index.next_tokens(query)
            assert distribution.counts == {token: following.count(token) for token in following}
            assert index.probability(query, 3).continued == following.count(3)
            length = index.longest_suffix(query)
            assert length == max(
                n for n in range(len(query) + 1) if n == 0 or occurrences(documents, query[-n:])
            )
            assert index.infinity_probability(query, 3) == index.probability(query[len(query) - length :], 3)
        prefixes = index.longest_prefixes(np.array(queries[-1]), np.array([0]), np.array([99]))
        assert prefixes[0] == len(queries[-1])


def test_a_document_knows_its_place_and_its_neighbours_do_not_leak(tmp_path: Path) -> None:
    index = build(tmp_path, [[[5, 6, EOS], [6, 5, EOS]], [[5, 6, 5, EOS]]], shards=2)
    assert index.count([EOS, 6]) == 0, "the end of one document and the start of the next are no phrase"
    (first, _), (second, at) = index.occurrences(index.find([6, 5]))
    assert (second.id, at, second.token_shard, second.token_start) == ("doc-2", 1, 1, 0)
    assert (first.id, first.source, first.origin) == ("doc-1", "source-1", "part/1.jsonl.gz:2")
    assert (first.token_shard, first.token_start) == (0, 3)
    assert index.read(first).tolist() == [6, 5, EOS]


def test_the_same_bytes_from_any_pieces_ranges_and_workers(tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    random = np.random.default_rng(1)
    shards = [[[*random.integers(2, 9, 400).tolist(), EOS] for _ in range(20)]]
    write_tokens(tmp_path / "tokens", shards)
    whole = build_index(IndexTokens(tmp_path / "tokens"), tmp_path / "whole", LocalEngine(1))
    monkeypatch.setattr(suffixes, "RANGE_TOKENS", 700)
    recipe = IndexTokens(tmp_path / "tokens", piece_tokens=1100)
    pieces = build_index(recipe, tmp_path / "pieces", LocalEngine(2))
    assert pieces.digest == whole.digest
    assert not (tmp_path / "pieces" / "work").exists()


def test_copies_longer_than_a_piece_are_merged_in_order(tmp_path: Path) -> None:
    random = np.random.default_rng(5)
    long = random.integers(2, 9, 900).tolist()
    shards = [
        [[*long, EOS], [7, *long, 3, EOS], [*([5] * 700), EOS], [*long[100:], EOS], [*([5] * 650), EOS]]
    ]
    index = build(tmp_path, shards, piece_tokens=400)
    assert entries(index, 0) == true_order(np.array(index.shards[0].tokens))


def test_a_build_that_was_stopped_goes_on(tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    random = np.random.default_rng(2)
    write_tokens(tmp_path / "tokens", [[[*random.integers(2, 9, 3000).tolist(), EOS]]])
    recipe = IndexTokens(tmp_path / "tokens", piece_tokens=500)
    sorted_pieces: list[int] = []
    plain = suffixes.sort_suffixes

    def stops(tokens, keep):  # type: ignore[no-untyped-def]
        if len(sorted_pieces) == 3:
            raise KeyboardInterrupt
        sorted_pieces.append(keep)
        return plain(tokens, keep)

    monkeypatch.setattr(suffixes, "sort_suffixes", stops)
    with pytest.raises(KeyboardInterrupt):
        build_index(recipe, tmp_path / "index", LocalEngine(1))
    with pytest.raises(LoomError, match="half-built index"):
        open_index(tmp_path / "index")
    again: list[int] = []
    monkeypatch.setattr(suffixes, "sort_suffixes", lambda t, k: (again.append(k), plain(t, k))[1])
    build_index(recipe, tmp_path / "index", LocalEngine(1))
    assert len(again) == 7 - 3, "pieces that were sorted are not sorted again"
    build_index(IndexTokens(tmp_path / "tokens"), tmp_path / "fresh", LocalEngine(1))
    fresh, resumed = (open_index(tmp_path / name) for name in ("fresh", "index"))
    assert entries(fresh, 0) == entries(resumed, 0)


@pytest.mark.parametrize(
    ("size", "width"), [(1, 1), (255, 1), (256, 1), (257, 2), (1 << 32, 4), ((1 << 32) + 2, 5)]
)
def test_pointers_are_as_wide_as_infini_gram_makes_them(size: int, width: int) -> None:
    assert pointer_width(size) == width


def test_bad_indexes_are_named(tmp_path: Path) -> None:
    build(tmp_path, [[[5, 6, EOS]]])
    folder = tmp_path / "index"
    with pytest.raises(LoomError, match="There is no index"):
        open_index(tmp_path / "nowhere")
    with pytest.raises(LoomError, match="holds no index"):
        (tmp_path / "empty").mkdir()
        open_index(tmp_path / "empty")
    with pytest.raises(LoomError, match="holds 'tokens' where 'index'"):
        open_index(tmp_path / "tokens")
    index = open_index(folder)
    with pytest.raises(LoomError, match="too long"):
        index.count([5] * 100_001)
    assert index.count([5] * 100_000) == 0
    with pytest.raises(LoomError, match="another tokenizer"):
        index.count([65_535])
    assert index.count([]) == 3
    table = folder / f"{TABLE}.0"
    table.write_bytes(table.read_bytes()[:-1])
    with pytest.raises(LoomError, match="cut short"):
        open_index(folder)


def test_tokens_that_changed_since_are_noticed_and_absent_ones_are_not_missed(tmp_path: Path) -> None:
    build(tmp_path, [[[5, 6, EOS]]])
    (tmp_path / "tokens").rename(tmp_path / "elsewhere")
    assert open_index(tmp_path / "index").count([5, 6]) == 1, "an index is complete without its tokens"
    write_tokens(tmp_path / "tokens", [[[5, 7, EOS]]])
    with pytest.raises(LoomError, match="changed since"):
        open_index(tmp_path / "index")


def test_a_vocabulary_that_fills_its_type_gets_a_wider_one(tmp_path: Path) -> None:
    write_tokens(tmp_path / "tokens", [[[65_535, 65_534, EOS]]], vocab_size=65_536)
    build_index(IndexTokens(tmp_path / "tokens"), tmp_path / "index", LocalEngine(1))
    index = open_index(tmp_path / "index")
    assert index.dtype == np.uint32
    assert index.count([65_535, 65_534]) == 1


def test_more_index_shards_than_token_shards_are_refused(tmp_path: Path) -> None:
    write_tokens(tmp_path / "tokens", [[[5, EOS]]])
    with pytest.raises(LoomError, match="too few for 2 shards"):
        build_index(IndexTokens(tmp_path / "tokens", shards=2), tmp_path / "index")


def test_the_files_are_infini_grams(tmp_path: Path) -> None:
    index = build(tmp_path, [[[5, 6, EOS], [7, EOS]]])
    text = np.fromfile(tmp_path / "index" / f"{TOKENS}.0", "<u2")
    assert text.tolist() == [65_535, 5, 6, EOS, 65_535, 7, EOS]
    assert np.fromfile(tmp_path / "index" / f"{OFFSETS}.0", "<u8").tolist() == [0, 8]
    assert index.shards[0].line(1) == {
        "path": "part/1.jsonl.gz",
        "linenum": 1,
        "metadata": {"id": "doc-1", "source": "source-1", "shard": 0, "start": 3},
    }
