"""Spans, counts and documents equal brute force; every document names its steps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loom.engine import LocalEngine
from loom.errors import LoomError
from loom.road.training import run_training
from loom.tokens.tokenize import Tokenize, tokenize
from loom.tokens.tokenizer import Tokenizer
from loom.trace.align import encode
from loom.trace.build import IndexTokens, build_index
from loom.trace.inspect import inspect_step
from loom.trace.query import Index, open_index
from loom.trace.relevance import bm25
from loom.trace.spans import Choice, find_spans
from loom.trace.trace import read_answer, trace
from tests.small import library_texts, make_tokenizer, write_lines
from tests.trace.folders import occurrences
from tests.trace.runs import lm, make_tokens


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def index_of(folder: Path, tokenizer: Path, texts: list[str]) -> Index:
    rows = [{"id": f"doc-{number}", "text": text, "source": "made"} for number, text in enumerate(texts)]
    write_lines(folder / "documents" / "a.jsonl", rows)
    tokenize(Tokenize((str(folder / "documents"),), tokenizer), folder / "tokens", LocalEngine(1))
    build_index(IndexTokens(folder / "tokens", piece_tokens=5000), folder / "index", LocalEngine(1))
    return open_index(folder / "index")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory, tokenizer: Path) -> Index:
    return index_of(tmp_path_factory.mktemp("library"), tokenizer, list(library_texts()))


PIECES = [
    "the cat",
    " sat on",
    " the mat",
    ". ",
    "\n",
    "Über",
    " straße",
    "e\u0301",
    " 日本",
    "🙂",
    "<|endoftext|>",
    "  ",
    "don't",
]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=5)), max_size=12).map("".join))
def test_ids_know_their_code_points(tokenizer: Path, text: str) -> None:
    loaded = Tokenizer.load(tokenizer)
    if "\ud800" <= max(text, default="a") <= "\udfff":
        return
    encoded = encode(loaded, text)
    assert encoded.ids.tolist() == loaded.encode(text).tolist()
    assert (encoded.starts <= encoded.ends).all()
    if len(encoded.ids):
        assert (int(encoded.starts[0]), int(encoded.ends[-1])) == (0, len(text))
    for start, end, number in zip(encoded.starts, encoded.ends, encoded.ids.tolist(), strict=True):
        piece = loaded.token_bytes(number)
        if text[start:end].isascii():
            assert text[start:end].encode() == piece
    assert (encoded.starts[1:] <= encoded.ends[:-1]).all(), "no code point is left out"


def brute_spans(index: Index, documents: list[list[int]], text: str, choice: Choice) -> set[tuple[int, int]]:
    """Maximal spans by trying every pair of ends. Of plain ASCII text that begins with a space."""
    encoded = encode(index.tokenizer, text)
    ids, starts, ends = encoded.ids.tolist(), encoded.starts.tolist(), encoded.ends.tolist()

    def inside(at: int) -> bool:
        return 0 < at < len(text) and text[at - 1].isalnum() and text[at].isalnum()

    found = set()
    for first in range(len(ids)):
        for last in range(first + 1, len(ids) + 1):
            body = text[starts[first] : ends[last - 1]]
            if inside(starts[first]) or inside(ends[last - 1]) or not body.strip():
                continue
            if any(mark in text[starts[n] : ends[n]] for n in range(first, last - 1) for mark in ".\n"):
                continue
            if last - first >= choice.min_tokens and occurrences(documents, ids[first:last]):
                left = starts[first] + len(body) - len(body.lstrip())
                found.add((left, left + len(body.strip())))
    return {
        span
        for span in found
        if not any(other != span and other[0] <= span[0] and span[1] <= other[1] for other in found)
    }


WORDS = st.sampled_from(
    [
        "the",
        "cat",
        "sat",
        "on",
        "a",
        "mat",
        "dog",
        "ran",
        "far",
        "away.",
        "no\n",
        "yes,",
        "(maybe)",
        "under_score",
        "x1",
        "1.5",
    ]
)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.lists(WORDS, min_size=1, max_size=8).map(" ".join), min_size=1, max_size=5),
    st.lists(WORDS, min_size=1, max_size=10).map(" ".join),
    st.integers(1, 3),
)
def test_spans_counts_and_documents_equal_brute_force(
    tokenizer, tmp_path_factory, texts, text, least
) -> None:  # type: ignore[no-untyped-def]
    index = index_of(tmp_path_factory.mktemp("brute"), tokenizer, texts)
    loaded = index.tokenizer
    documents = [[*loaded.encode(body.strip()).tolist(), loaded.eos_id] for body in texts]
    choice = Choice(min_tokens=least, keep=1000)
    text = " " + text
    told = trace(index, text, choice=choice, documents=100)
    spans = {(span["start"], span["end"]) for span in told["spans"]}
    assert spans == brute_spans(index, documents, text, choice)
    for span, raw in zip(told["spans"], find_spans(index, text, choice), strict=True):
        expected = occurrences(documents, raw.ids)
        assert span["count"] == len(expected)
        assert span["text"] == text[span["start"] : span["end"]]
        assert {document["id"] for document in span["documents"]} == {f"doc-{n}" for n, _ in expected}
        for document in span["documents"]:
            assert document["passage"]["match"].strip() == span["text"]


def test_a_copied_sentence_is_found_whole(library: Index) -> None:
    source = next(text for text in library_texts() if "Remove any common leading whitespace" in text)
    at = source.index("Remove any common leading whitespace")
    sentence = source[at : source.index("`text`", at)].strip()
    told = trace(library, f"Zyx qua {sentence} wholly unseen zyx", choice=Choice(keep=1, density=0))
    (span,) = told["spans"]
    assert sentence in span["text"]
    number = library_texts().index(source)
    assert span["documents"][0]["id"] == f"doc-{number}"
    assert told["documents"][0]["id"] == f"doc-{number}"
    alone = trace(library, sentence, choice=Choice(keep=1, density=0))
    assert alone["spans"][0]["text"] == sentence, (
        "its first word is found though a space is missing before it"
    )


def test_the_rarest_are_kept_as_many_as_the_length_allows(library: Index) -> None:
    text = " ".join(library_texts()[20].split())[:2000]
    every = find_spans(library, text, Choice(keep=10_000))
    tokens = len(library.tokenizer.encode(text))
    few = find_spans(library, text, Choice(keep=1, density=0.02))
    assert len(few) == -(-tokens // 50) < len(every)
    bar = min(span.surprise for span in few)
    assert {span.start for span in few} == {span.start for span in every if span.surprise >= bar}
    assert all(span.count <= 3 for span in find_spans(library, text, Choice(max_count=3)))


def test_every_document_names_the_steps_that_read_it(tmp_path: Path, tokenizer: Path) -> None:
    tokens = make_tokens(tmp_path, tokenizer=tokenizer)
    build_index(IndexTokens(tokens, shards=2), tmp_path / "index", LocalEngine(1))
    run_training(lm(tokens, steps=12, batch=16), tmp_path / "run")
    index = open_index(tmp_path / "index")
    read_at: dict[str, set[int]] = {}
    for step in range(1, 13):
        for instance in inspect_step(tmp_path / "run", step)["instances"]:
            for document in instance["documents"]:
                read_at.setdefault(document["id"], set()).add(step)
    told = trace(index, " ".join(library_texts()[30].split()[:60]), run=tmp_path / "run")
    documents = [document for span in told["spans"] for document in span["documents"]]
    assert any(document["steps"] for document in documents)
    for document in documents:
        assert document["steps"] == sorted(read_at.get(document["id"], set()))
        assert set(document["passage_steps"]) <= set(document["steps"])
    other = make_tokens(tmp_path / "other", shard_tokens=5_000, tokenizer=tokenizer)
    build_index(IndexTokens(other), tmp_path / "other" / "index", LocalEngine(1))
    with pytest.raises(LoomError, match="did not read the tokens of this index"):
        trace(open_index(tmp_path / "other" / "index"), "the text", run=tmp_path / "run")


def test_relevance_prefers_what_shares_rare_words() -> None:
    scores = bm25("the quick zebra", ["the cat", "a zebra", "the quick zebra", "", "the dog"])
    assert scores[2] == max(scores)
    assert scores[1] > scores[0] == scores[4] > scores[3] == 0


def test_odd_texts_are_handled(library: Index) -> None:
    for text in ("", " ", "\n\n", "\x00\x1b[31m", "🙂", "<|endoftext|>", "e\u0301", "a" * 3000):
        told = trace(library, text)
        assert all(told["text"][span["start"] : span["end"]] == span["text"] for span in told["spans"])
    with pytest.raises(LoomError, match="at most 100,000"):
        trace(library, "word " * 120_000)
    assert len(trace(library, "argument parser " * 10_000)["spans"]) > 0


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"text": "so", "prompt": "why"}, ("why", "so")),
        ([{"role": "user", "content": "why"}, {"role": "assistant", "content": "so"}], ("why", "so")),
        (
            {"messages": [{"role": "assistant", "content": "so"}, {"role": "user", "content": "?"}]},
            ("", "so"),
        ),
        ({"choices": [{"message": {"role": "assistant", "content": "so"}}]}, ("", "so")),
    ],
)
def test_saved_answers_are_read(tmp_path: Path, value: object, expected: tuple[str, str]) -> None:
    (tmp_path / "answer.json").write_text(json.dumps(value))
    assert read_answer(tmp_path / "answer.json") == expected


def test_what_is_no_answer_is_named(tmp_path: Path) -> None:
    (tmp_path / "answer.json").write_text('{"messages": [{"role": "user", "content": "why"}]}')
    with pytest.raises(LoomError, match="holds no answer"):
        read_answer(tmp_path / "answer.json")
    (tmp_path / "answer.json").write_text("{")
    with pytest.raises(LoomError, match="is not JSON"):
        read_answer(tmp_path / "answer.json")
