"""Dolma's tagger names mean Dolma's rules: equal to dolma 1.2.1 itself, key by key and span by span."""

from __future__ import annotations

import gzip
import random
import subprocess
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest

from loom.corpus import attributes, documents, taggers
from loom.corpus.batch import as_rows, make_batch
from loom.corpus.taggers import Texts, language

ORACLE = Path(__file__).resolve().parents[1] / "oracles" / "dolma_tag.py"
NAMES = (
    "gopher_v1", "gopher_v2", "c4_v2", "pii_regex_with_counts_fast_v2",
    "bytes_length_v1", "char_length_v1", "char_length_strip_ws_v1", "doc_count_v1",
    "char_length_with_paragraphs_v1", "whitespace_tokenizer_v1", "whitespace_tokenizer_with_paragraphs_v1",
)  # fmt: skip
BY_WORDS = (  # slow on Dolma's side: 0.1 MB a second
    "olmo_pretokenizer_v1", "olmo_pretokenizer_with_paragraphs_v1",
    "uniseg_length_v1", "uniseg_length_paragraphs_v1", "uniseg_length_paragraphs_with_empty_v1",
    "uniseg_length_paragraphs_with_doc_length_v1",
)  # fmt: skip
PIECES = (
    "the", "be", "to", "of", "and", "that", "have", "with", "The", "#", "#tag", "…", "and…", "...", "x",
    "word", " ", " ", " ", "\n", "\n", "\n\n", "\r\n", "\t", "\x0b", "\x1c", "\x85", "\xa0", "\u1680",
    "\u2003", "\u2028", "\u205f", "\u3000", "\u200b", "İ", "İstanbul", "ß", "K", "javascript",
    "JAVASCRİPT", "javaScript:", "Lorem Ipsum", "lorem", "ipsum", "{", "}", ".", "?", "!", '"',
    "* item", "- item", "日本語", "한국어", "العربية", "١٢٣", "😀",
    "\U0001f469\u200d\U0001f469\u200d\U0001f467", "é", "\ufeff", "a@b.org ", "(someone@example.com)",
    "x@y", "@", "me@site.co.uk,", "mail me@x.y", " 555-123-4567", " (206) 555 0199", "206.555.0199 ",
    " ١٢٣٤٥٦٧٨٩٠ ", "192.168.0.1", "256.1.1.1", "1.2.3.4.5", "10.0.0.256", "ISBN 978-0-306-40615-7",
    " 2065550199", "Ⓐ²Ⅷ", "नि", "a\u200db",
)  # fmt: skip


def run_dolma(
    python: Path, rows: Sequence[dict[str, Any]], names: Sequence[str], *more: str
) -> list[dict[str, Any]]:
    data = b"".join(orjson.dumps(row) + b"\n" for row in rows)
    command = [str(python), str(ORACLE), ",".join(names), *more]
    done = subprocess.run(command, input=data, capture_output=True, check=True, timeout=600)
    return [orjson.loads(line)["attributes"] for line in done.stdout.splitlines()]


def run_loom(rows: Sequence[dict[str, Any]], names: Sequence[str]) -> list[dict[str, Any]]:
    texts = Texts(make_batch(rows, range(1, len(rows) + 1)))
    found: list[dict[str, Any]] = [{name: {} for name in names} for _ in rows]
    for name in names:
        for key, spans in taggers.get(name)(texts).items():
            scores = attributes.rounded(spans.scores)
            spans = attributes.Spans(spans.offsets, spans.starts, spans.ends, scores, spans.present)
            for row in range(len(rows)):
                if (values := spans.of(row)) is not None:
                    found[row][name][key] = [list(value) for value in values]
    return found


def check_equal(python: Path, rows: Sequence[dict[str, Any]], names: Sequence[str] = NAMES) -> None:
    ours, theirs = run_loom(rows, names), run_dolma(python, rows, names)
    assert len(ours) == len(theirs) == len(rows)
    for row, mine, other in zip(rows, ours, theirs, strict=True):
        for name in names:
            assert mine[name] == other[name], (name, row["text"][:300])


def nonsense(count: int, seed: int) -> list[dict[str, Any]]:
    """Texts that mix every kind of character the rules look at; the same for a seed everywhere."""
    choose = random.Random(seed)
    rows = []
    for number in range(count):
        pieces = choose.sample(PIECES, choose.randint(1, len(PIECES)))
        text = "".join(
            choose.choice(pieces) + choose.choice(("", " ", "\n", " ")) for _ in range(choose.randint(0, 60))
        )
        rows.append({"id": f"{number}", "text": text, "source": "nonsense"})
    return rows


@pytest.fixture(scope="module")
def dolma(oracle: Any) -> Path:
    python: Path = oracle("dolma")
    return python


def test_equal_on_nonsense(dolma: Path) -> None:
    empty = [
        {"id": "empty", "text": ""},
        {"id": "blank", "text": " \n"},
        {"id": "newlines", "text": "\n\n\n"},
    ]
    check_equal(dolma, [*empty, *nonsense(1500, seed=7)])


def test_equal_on_web_pages(dolma: Path, shared_data: Path) -> None:
    rows = []
    for name in ("c4", "cc_en_head-0091", "wikitext2.valid"):
        with gzip.open(shared_data / "text" / f"{name}.jsonl.gz") as stream:
            rows += [orjson.loads(line) for line in stream]
    check_equal(dolma, rows)


def test_words_are_unicode_s(dolma: Path, shared_data: Path) -> None:
    with gzip.open(shared_data / "text" / "c4.jsonl.gz") as stream:
        rows = [orjson.loads(line) for _, line in zip(range(20), stream, strict=False)]
    rows += [{"id": "empty", "text": ""}, {"id": "blank", "text": " \n\t\n"}, *nonsense(250, seed=19)]
    check_equal(dolma, rows, BY_WORDS)


def test_paragraphs_of_punctuation_are_dolma_s(dolma: Path) -> None:
    """Every character that this Python's Unicode knows, alone in a line and beside a mark; and nonsense."""
    known = [chr(code) for code in range(0x110000) if unicodedata.category(chr(code)) not in ("Cn", "Cs")]
    rows = [
        {"id": "each", "text": "\n".join(known)},
        {"id": "marks", "text": "\n".join(f"!{c}" for c in known)},
    ]
    rows += [{"id": "empty", "text": ""}, {"id": "blank", "text": " \n\t\n"}, *nonsense(300, seed=31)]
    check_equal(dolma, rows, ["not_alphanum_paragraph_v1"])


def test_a_random_number_is_the_ids(tmp_path: Path) -> None:
    rows = [{"id": str(number), "text": "text"} for number in range(2000)]
    first, again = (run_loom(some, ["random_number_v1"]) for some in (rows, rows[::-1]))
    assert first == again[::-1]
    numbers = sorted(row["random_number_v1"]["random"][0][2] for row in first)
    assert max(abs(value - place / 2000) for place, value in enumerate(numbers)) < 0.04
    assert len(set(numbers)) > 1950


TAG = """
import sys
from dolma.cli.__main__ import main

if __name__ == "__main__":
    main(["tag", "--documents", sys.argv[1], "--taggers", *sys.argv[2].split(","), "--processes", "1"])
"""
KEYS_AS_FOUND = (
    "c4_v2",
    "pii_regex_with_counts_fast_v2",
)  # Dolma writes their keys in the order of a text's spans


def test_attribute_files_are_dolma_s_byte_for_byte(dolma: Path, tmp_path: Path) -> None:
    """What `loom tag` writes beside the documents; two taggers' keys are in one order here, whatever the text."""
    from loom.corpus.tag import Tag, tag

    names = (*NAMES, "uniseg_length_paragraphs_with_doc_length_v1")
    rows = [{"id": "empty", "text": "", "source": "s"}, *nonsense(120, seed=23)]
    for side in ("ours", "theirs"):
        documents.write(tmp_path / side / "documents" / "s" / "a.jsonl.gz", rows)
    (tmp_path / "tag.py").write_text(TAG)
    pattern = str(tmp_path / "theirs" / "documents" / "s" / "*.gz")
    command = [str(dolma), str(tmp_path / "tag.py"), pattern, ",".join(names)]
    subprocess.run(command, capture_output=True, check=True, timeout=600)
    for made in tag(Tag((str(tmp_path / "ours" / "documents" / "*" / "*.gz"),), names)):
        name = made.path.name
        ours = list(documents.read_lines(made.path / "s" / "a.jsonl.gz"))
        theirs = list(documents.read_lines(tmp_path / "theirs" / "attributes" / name / "s" / "a.jsonl.gz"))
        assert list(map(orjson.loads, ours)) == list(map(orjson.loads, theirs)), name
        assert (ours == theirs) == (name not in KEYS_AS_FOUND), name


@pytest.mark.slow
def test_equal_on_this_machine(dolma: Path, tmp_path: Path) -> None:
    """Documentation, licences and code: real addresses, tables, long lines, several languages."""
    from loom.corpus.sources.python import Collect, collect
    from loom.engine import LocalEngine

    collect(Collect(limit_mb=2.0, total_mb=6.0, seed=11), tmp_path / "raw", LocalEngine(2))
    rows = [
        row
        for path in documents.find_files([tmp_path / "raw" / "documents"])
        for batch in documents.read(path)
        for row in as_rows(batch)
    ]
    assert len(rows) > 300
    check_equal(dolma, rows)


def test_language_is_dolma_s_with_the_same_model(dolma: Path, shared_data: Path) -> None:
    names = ("ft_lang_id_en_doc_v2", "ft_lang_id_1e2", "ft_lang_id_en_paragraph_with_doc_score_v2")
    names += (
        "ft_lang_id_en_only_v2",
        "ft_lang_id_en_paragraph_v2",
        "ft_lang_id_doc_v1",
        "ft_lang_id_paragraph_v1",
    )
    with gzip.open(shared_data / "text" / "c4.jsonl.gz") as stream:
        rows = [orjson.loads(line) for _, line in zip(range(60), stream, strict=False)]
    rows += [{"id": "de", "text": "Guten Tag.\n\nWie geht es dir heute?"}, {"id": "empty", "text": ""}]
    ours, theirs = run_loom(rows, names), run_dolma(dolma, rows, names, str(language.model_path()))
    for mine, other in zip(ours, theirs, strict=True):
        for name in names:
            assert mine[name].keys() == other[name].keys()
            for key, spans in mine[name].items():
                assert [span[:2] for span in spans] == [span[:2] for span in other[name][key]]
                assert [s[2] for s in spans] == pytest.approx([s[2] for s in other[name][key]], abs=2e-5)


def test_naughty_words_are_all_known(dolma: Path) -> None:
    """Every entry of Dolma's list is recognised by its fingerprint, alone and in a sentence."""
    code = (
        "import dolma.data, pathlib, sys;"
        "sys.stdout.write((pathlib.Path(list(dolma.data.__path__)[0]) / 'naughty_words_en.txt').read_text())"
    )
    done = subprocess.run([str(dolma), "-c", code], capture_output=True, check=True)
    words = done.stdout.decode().splitlines()
    assert len(words) == 403
    rows = [{"id": word, "text": f"Before {word.upper()} after."} for word in words]
    rows += [{"id": f"not {word}", "text": f"Before x{word}y after."} for word in words]
    check_equal(dolma, rows)
