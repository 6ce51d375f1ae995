"""Drawing a mixture: so many tokens and no more, the same from any split and any number of workers."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loom.artifact import load
from loom.corpus import documents, ids
from loom.corpus.sample import EVERY, Sample, cut_below, sample
from loom.corpus.shuffle import place
from loom.engine import LocalEngine
from loom.errors import LoomError
from loom.recipe import build
from loom.tokens.tokenizer import Tokenizer
from tests.corpus.test_curate import prose, tree
from tests.corpus.test_curate import texts as by_id


def bytes_tokenizer(path: Path) -> Path:
    """A byte-level tokenizer without merges: a token a byte."""
    from tokenizers import Tokenizer as Reference
    from tokenizers import decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Reference(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<|endoftext|>", "<|padding|>"])
    made.save(str(path))
    return path


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bytes_tokenizer(tmp_path_factory.mktemp("tokenizer") / "tokenizer.json")


def rows(source: str, count: int, seed: int = 0) -> list[dict[str, Any]]:
    choose = random.Random(f"{source}{seed}")
    made = [
        {
            "id": f"{source}-{i}",
            "text": prose(choose.randrange(1 << 30), choose.randrange(5, 60)),
            "source": source,
        }
        for i in range(count)
    ]
    made[count // 2]["text"] = " \n"
    return made


def write(folder: Path, sources: dict[str, Sequence[dict[str, Any]]], parts: int) -> Path:
    for name, every in sources.items():
        size = -(-len(every) // parts)
        for part in range(parts):
            path = folder / "documents" / name / f"part-{part:02d}.jsonl.zst"
            documents.write(path, list(every[part * size : (part + 1) * size]))
    return folder


def recipe(raw: Path, tokenizer: Path, sources: dict[str, Any], **more: Any) -> Sample:
    values = {"documents": str(raw), "tokenizer": str(tokenizer), "sources": sources, **more}
    return build(values, Sample, "test")


def lengths(every: Sequence[dict[str, Any]]) -> dict[str, int]:
    """Tokens of each document by a tokenizer of bytes, end-of-text included."""
    return {row["id"]: len(row["text"].strip().encode()) + 1 for row in every if row["text"].strip()}


def in_order(out: Path) -> list[str]:
    return [
        json.loads(line)["id"]
        for path in documents.find_files([out / "documents"])
        for line in documents.read_lines(path)
    ]


def test_every_source_gets_its_tokens_and_no_more(tmp_path: Path, tokenizer: Path) -> None:
    sources = {"a": rows("a", 300), "b": rows("b", 200), "c": rows("c", 100), "d": rows("d", 40)}
    raw = write(tmp_path / "raw", sources, 3)
    there = {name: sum(lengths(every).values()) for name, every in sources.items()}
    total = 60_000
    chosen = {"a": {"tokens": 9_000}, "b": {"weight": 0.4}, "c": {"share": 0.5}, "d": {}}
    made = sample(recipe(raw, tokenizer, chosen, tokens=total, seed=3), tmp_path / "out", LocalEngine(2))
    counted = made.counters["sources"]
    wanted = {"a": 9_000, "b": 24_000, "c": there["c"] // 2}
    wanted["d"] = total - sum(wanted.values())
    longest = max(max(lengths(every).values()) for every in sources.values())
    for name, part in counted.items():
        assert (part["available_tokens"], part["wanted_tokens"]) == (there[name], wanted[name])
        assert wanted[name] - longest < part["tokens"] <= wanted[name]
        assert part["empty"] == 1
    assert counted["d"]["copies"] > 0
    written = by_id(tmp_path / "out")
    own = {name: lengths(every) for name, every in sources.items()}
    for name, part in counted.items():
        mine = [key for key, row in written.items() if row["source"] == name]
        assert len(mine) == part["documents"]
        assert sum(own[name][key.partition("#")[0]] for key in mine) == part["tokens"]
    times = Counter(key.partition("#")[0] for key in written if key.startswith("d-"))
    assert set(times) == own["d"].keys()  # wanted more than once: each is there, and none far oftener
    assert max(times.values()) - min(times.values()) == 1
    assert {key: row["text"] for key, row in written.items() if "#" not in key} == {
        row["id"]: row["text"] for every in sources.values() for row in every if row["id"] in written
    }


def test_what_remains_is_divided_in_proportion(tmp_path: Path, tokenizer: Path) -> None:
    """A mixture without shares is a uniform sample: OLMo 7B's two trillion of three."""
    sources = {"a": rows("a", 400), "b": rows("b", 100)}
    raw = write(tmp_path / "raw", sources, 2)
    there = {name: sum(lengths(every).values()) for name, every in sources.items()}
    made = sample(recipe(raw, tokenizer, {"a": {}, "b": {}}, tokens=50_000), tmp_path / "out", LocalEngine(1))
    parts = made.counters["sources"]
    assert sum(part["wanted_tokens"] for part in parts.values()) == 50_000
    for name, part in parts.items():
        assert abs(part["wanted_tokens"] - 50_000 * there[name] / sum(there.values())) < 1
    larger = sample(
        recipe(raw, tokenizer, {"a": {}, "b": {}}, tokens=70_000), tmp_path / "more", LocalEngine(1)
    )
    assert larger.counters["tokens"] > made.counters["tokens"]
    assert by_id(tmp_path / "out").keys() < by_id(tmp_path / "more").keys()  # a larger draw holds the smaller


def test_workers_and_split_do_not_matter_and_the_order_is_that_of_the_hash(
    tmp_path: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from loom.corpus import shuffle

    monkeypatch.setattr(shuffle, "HELD", 5_000)  # many frames of each partition
    big = [{"id": f"big{i}", "text": prose(i, 4000), "source": "a"} for i in range(120)]
    sources = {"a": rows("a", 300) + big, "b": rows("b", 80)}
    raw = write(tmp_path / "raw", sources, 4)
    chosen = {"a": {"share": 0.9}, "b": {"share": 2.5}}
    made = sample(recipe(raw, tokenizer, chosen, file_mb=1, seed=7), tmp_path / "one", LocalEngine(1))
    sample(recipe(raw, tokenizer, chosen, file_mb=1, seed=7), tmp_path / "three", LocalEngine(3))
    assert tree(tmp_path / "one") == tree(tmp_path / "three")
    whole = write(tmp_path / "whole", sources, 1)
    sample(recipe(whole, tokenizer, chosen, file_mb=1, seed=7), tmp_path / "split", LocalEngine(2))
    parts = {name: data for name, data in tree(tmp_path / "one").items() if name.startswith("documents/")}
    assert len(parts) > 1
    assert parts == {n: data for n, data in tree(tmp_path / "split").items() if n.startswith("documents/")}
    order = in_order(tmp_path / "one")
    assert order == sorted(order, key=lambda name: place(name, 7))
    assert len(order) == made.counters["documents"] == len(set(order))
    other = sample(recipe(raw, tokenizer, chosen, file_mb=1, seed=8), tmp_path / "other", LocalEngine(1))
    assert in_order(other.path) != order
    plain = sample(recipe(raw, tokenizer, chosen, shuffle=False, seed=7), tmp_path / "plain", LocalEngine(1))
    assert sorted(in_order(plain.path)) == sorted(order)


def test_the_tokens_are_those_that_tokenize_writes(tmp_path: Path, tokenizer: Path) -> None:
    from loom.tokens.tokenize import Tokenize, tokenize

    raw = write(tmp_path / "raw", {"a": rows("a", 80)}, 2)
    made = sample(recipe(raw, tokenizer, {"a": {"tokens": 5_000}}), tmp_path / "out", LocalEngine(1))
    shards = tokenize(Tokenize((str(tmp_path / "out"),), tokenizer), tmp_path / "tokens", LocalEngine(1))
    assert shards.counters["tokens"] == made.counters["tokens"]
    assert Tokenizer.load(tokenizer).encode("é").size == 2


def test_every_document_is_found_through_the_index(tmp_path: Path, tokenizer: Path) -> None:
    sources = {"a": rows("a", 90), "b": rows("b", 40)}
    raw = write(tmp_path / "raw", sources, 2)
    sample(recipe(raw, tokenizer, {"a": {}, "b": {}}), tmp_path / "out", LocalEngine(2))
    made = load(tmp_path / "out")
    for first, name in ((0, "a"), (2, "b")):
        for row, document in enumerate(sources[name]):
            part, within = divmod(row, -(-len(sources[name]) // 2))
            assert (first + part, within) in list(ids.places(document["id"], made))
    assert list(ids.places("nobody", made)) == []


@given(
    st.lists(st.lists(st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 50)), max_size=20), max_size=4),
    st.integers(0, 1500),
)
def test_the_cut_is_the_largest_that_fits(files: list[list[tuple[int, int]]], tokens: int) -> None:
    tables = []
    for file in files:
        file.sort()
        sizes = np.cumsum([0, *(size for _, size in file)]).astype(np.int64)
        tables.append({"hashes": np.array([h for h, _ in file], np.uint64), "cumulative": sizes})
    below = cut_below(tables, tokens)
    every = [item for file in files for item in file]
    assert sum(size for hashed, size in every if hashed < below) <= tokens
    if below < EVERY:
        assert sum(size for hashed, size in every if hashed <= below) > tokens


def test_mistakes_are_named(tmp_path: Path, tokenizer: Path) -> None:
    raw = write(tmp_path / "raw", {"a": rows("a", 40)}, 1)
    with pytest.raises(LoomError, match="more than most_copies"):
        sample(recipe(raw, tokenizer, {"a": {"tokens": 10**9}}), tmp_path / "out", LocalEngine(1))
    with pytest.raises(LoomError, match="leave one source without a number"):
        sample(recipe(raw, tokenizer, {"a": {"tokens": 50}}, tokens=5_000), tmp_path / "out", LocalEngine(1))
    with pytest.raises(LoomError, match="set tokens"):
        recipe(raw, tokenizer, {"a": {"weight": 0.5}})
    with pytest.raises(LoomError, match="holds no document"):
        sample(recipe(raw, tokenizer, {"a": {"tokens": 1}}), tmp_path / "out", LocalEngine(1))


def test_the_command_prints_what_was_taken(tmp_path: Path, tokenizer: Path, capsys: Any) -> None:
    from loom.cli import main

    raw = write(tmp_path / "raw", {"web": rows("web", 60), "wiki": rows("wiki", 20)}, 1)
    file = tmp_path / "mixture.yaml"
    file.write_text(f"tokenizer: {tokenizer}\ntokens: 9000\nsources: {{web: {{}}, wiki: {{weight: 0.25}}}}\n")
    with pytest.raises(SystemExit) as ended:
        main(
            ["mix", str(file), f"documents={raw}", "--out", str(tmp_path / "out"), "--workers", "1", "--json"]
        )
    assert ended.value.code in (0, None)
    found = orjson.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["sources"]["wiki"]["wanted_tokens"] == 2250
    assert found["sources"]["web"]["wanted_tokens"] == 6750
