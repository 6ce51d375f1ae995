"""Loom's index read by the public infini-gram engine, and the public builder's index read by Loom."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from loom.engine import LocalEngine
from loom.trace.build import IndexTokens, build_index
from loom.trace.layout import OFFSETS, TABLE, TOKENS
from loom.trace.query import Index, open_index
from tests.trace.folders import write_tokens

EOS = 0
ENGINE = """
import json, sys
from infini_gram.engine import InfiniGramEngine
asked = json.load(sys.stdin)
engine = InfiniGramEngine(
    asked["index"], eos_token_id=0, vocab_size=600, token_dtype=asked["dtype"], max_support=10**9
)
out = []
for context, token in asked["queries"]:
    following = engine.ntd(prompt_ids=context)
    longest = engine.infgram_ntd(prompt_ids=context)
    docs = engine.search_docs(input_ids=context[-1:], maxnum=1, max_disp_len=8)["documents"]
    out.append({
        "count": engine.count(input_ids=context)["count"],
        "prob": engine.prob(prompt_ids=context, cont_id=token),
        "inf": engine.infgram_prob(prompt_ids=context, cont_id=token),
        "ntd": {k: v["cont_cnt"] for k, v in following["result_by_token_id"].items()},
        "inf_ntd": {k: v["cont_cnt"] for k, v in longest["result_by_token_id"].items()},
        "metadata": [json.loads(d["metadata"]) for d in docs],
    })
print(json.dumps(out))
"""
# Its builder loads transformers to silence it, also for plain bytes, which need none.
BUILD = """
import sys
from unittest.mock import MagicMock
sys.modules["transformers"] = MagicMock()
import infini_gram.indexing as indexing
sys.argv = ["indexing", *sys.argv[1:]]
indexing.main()
"""


def ask(python: Path, index: Path, dtype: str, queries: list[tuple[list[int], int]]) -> list[dict]:  # type: ignore[type-arg]
    asked = {"index": str(index), "dtype": dtype, "queries": queries}
    done = subprocess.run(
        [str(python), "-c", ENGINE], input=json.dumps(asked), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def run_builder(python: Path, data: Path, index: Path, dtype: str) -> None:
    arguments = ["--data_dir", data, "--save_dir", index, "--token_dtype", dtype]
    arguments += ["--mem", "1", "--cpus", "1", "--ulimit", "1024", "--add_metadata", "--add_unigram"]
    command = [str(python), "-c", BUILD, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]


def corpus(seed: int, documents: int, length: int) -> list[list[int]]:
    random = np.random.default_rng(seed)
    made = [[*random.integers(2, 40, random.integers(1, length)).tolist(), EOS] for _ in range(documents)]
    return [*made, made[0], [300, 300, 300, 300, EOS], [301, EOS]]


def queries_of(documents: list[list[int]], seed: int) -> list[tuple[list[int], int]]:
    random = np.random.default_rng(seed)
    queries: list[tuple[list[int], int]] = []
    for _ in range(60):
        document = documents[random.integers(len(documents))]
        start = int(random.integers(len(document)))
        context = document[start : start + int(random.integers(1, 6))]
        context = [token for token in context if token != EOS] or [300]
        if random.random() < 0.3:
            context = [*random.integers(2, 40, 2).tolist(), *context]
        queries.append((context, int(random.integers(2, 40))))
    return queries


def check(index: Index, answers: list[dict], queries: list[tuple[list[int], int]]) -> None:  # type: ignore[type-arg]
    for (context, token), answer in zip(queries, answers, strict=True):
        assert index.count(context) == answer["count"]
        plain = index.probability(context, token)
        assert (plain.context, plain.continued) == (answer["prob"]["prompt_cnt"], answer["prob"]["cont_cnt"])
        longest = index.infinity_probability(context, token)
        theirs = answer["inf"]
        assert (longest.suffix, longest.context, longest.continued) == (
            theirs["suffix_len"],
            theirs["prompt_cnt"],
            theirs["cont_cnt"],
        )
        assert longest.value == pytest.approx(theirs["prob"])
        assert index.next_tokens(context).counts == {int(k): v for k, v in answer["ntd"].items()}
        assert index.infinity_next_tokens(context).counts == {int(k): v for k, v in answer["inf_ntd"].items()}


@pytest.mark.parametrize(("dtype", "theirs"), [("uint16", "u16"), ("uint32", "u32")])
def test_the_public_engine_gives_the_same_answers(oracle, tmp_path: Path, dtype: str, theirs: str) -> None:  # type: ignore[no-untyped-def]
    python = oracle("infini-gram")
    shards = [corpus(1, 40, 60), corpus(2, 30, 90)]
    write_tokens(tmp_path / "tokens", shards, vocab_size=599, dtype=dtype)
    recipe = IndexTokens(tmp_path / "tokens", shards=2, piece_tokens=700)
    build_index(recipe, tmp_path / "index", LocalEngine(1))
    index = open_index(tmp_path / "index")
    queries = queries_of([document for shard in shards for document in shard], 3)
    answers = ask(python, tmp_path / "index", theirs, queries)
    check(index, answers, queries)
    lines = [shard.line(number) for shard in index.shards for number in range(shard.documents)]
    assert all(metadata in lines for answer in answers for metadata in answer["metadata"])
    assert any(answer["metadata"] for answer in answers)


def test_loom_reads_the_public_builders_index(oracle, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    python = oracle("infini-gram")
    (tmp_path / "data").mkdir()
    texts = ["the cat sat on the mat", "the dog sat on the cat", "a cat", "über die Brücke"]
    rows = [json.dumps({"id": f"t{n}", "source": "made", "text": text}) for n, text in enumerate(texts)]
    (tmp_path / "data" / "a.jsonl").write_text("\n".join(rows) + "\n")
    run_builder(python, tmp_path / "data", tmp_path / "index", "u8")
    index = open_index(tmp_path / "index", dtype="uint8")
    data = [text.encode() for text in texts]
    assert (index.documents, index.tokens) == (4, sum(map(len, data)))
    for query in (b"cat", b" sat on the ", "ü".encode(), b"t", b"zebra"):
        assert index.count(list(query)) == sum(text.count(query) for text in data)
    (document, at), *_ = index.occurrences(index.find(list(b"dog")))
    assert (document.id, document.source, document.origin, at) == ("t1", "made", "a.jsonl:2", 4)


def test_the_public_builder_makes_the_same_table(oracle, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    python = oracle("infini-gram")
    write_tokens(tmp_path / "tokens", [corpus(4, 60, 300)], vocab_size=599)
    build_index(IndexTokens(tmp_path / "tokens", piece_tokens=3000), tmp_path / "index", LocalEngine(1))
    (tmp_path / "theirs").mkdir()
    (tmp_path / "data").mkdir()
    for name in (f"{TOKENS}.0", f"{OFFSETS}.0"):  # these being there, its builder sorts and no more
        shutil.copy(tmp_path / "index" / name, tmp_path / "theirs" / name)
    run_builder(python, tmp_path / "data", tmp_path / "theirs", "u16")
    ours, theirs = ((tmp_path / name / f"{TABLE}.0").read_bytes() for name in ("index", "theirs"))
    assert ours == theirs
