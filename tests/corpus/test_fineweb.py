"""FineWeb's and Gopher's rules: decisions equal to datatrove 0.10.1's filters at any threshold; the paper's by hand."""

from __future__ import annotations

import gzip
import statistics
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest

from loom.corpus import taggers
from loom.corpus.batch import make_batch
from loom.corpus.taggers import Texts, fineweb
from tests.corpus.test_dolma_taggers import nonsense

ORACLE = Path(__file__).resolve().parents[1] / "oracles" / "datatrove_filter.py"
OFF = {
    "GopherQualityFilter": dict.fromkeys(
        ("min_doc_words", "max_doc_words", "min_avg_word_length", "max_avg_word_length", "max_symbol_word_ratio",
         "max_bullet_lines_ratio", "max_ellipsis_lines_ratio", "max_non_alpha_words_ratio", "min_stop_words")
    ),
    "GopherRepetitionFilter": {
        **dict.fromkeys(("dup_line_frac", "dup_para_frac", "dup_line_char_frac", "dup_para_char_frac")),
        "top_n_grams": [], "dup_n_grams": [],
    },
    "FineWebQualityFilter": {
        "line_punct_thr": 0.0, "short_line_thr": 2.0, "char_duplicates_ratio": 1e9, "new_line_ratio": 1e9,
    },
}  # fmt: skip
Values = dict[str, float]
Check = Callable[[Values, float], bool]


def above(key: str) -> Check:
    return lambda values, threshold: values.get(key, 0.0) > threshold


def below(key: str) -> Check:
    return lambda values, threshold: values.get(key, float("inf")) < threshold


# filter, its setting, the value that is compared, what removes
SINGLE: list[tuple[str, str, str, Callable[[str], Check]]] = [
    ("GopherQualityFilter", "min_doc_words", "word_count", below),
    ("GopherQualityFilter", "max_doc_words", "word_count", above),
    ("GopherQualityFilter", "min_avg_word_length", "mean_word_length", below),
    ("GopherQualityFilter", "max_avg_word_length", "mean_word_length", above),
    ("GopherQualityFilter", "max_bullet_lines_ratio", "fraction_of_lines_starting_with_bullet_point", above),
    ("GopherQualityFilter", "max_ellipsis_lines_ratio", "fraction_of_lines_ending_with_ellipsis", above),
    ("GopherQualityFilter", "max_non_alpha_words_ratio", "fraction_of_words_with_alpha_character", below),
    ("GopherQualityFilter", "min_stop_words", "distinct_required_words", below),
    ("GopherRepetitionFilter", "dup_line_frac", "fraction_of_duplicate_lines", above),
    ("GopherRepetitionFilter", "dup_para_frac", "fraction_of_duplicate_paragraphs", above),
    ("GopherRepetitionFilter", "dup_line_char_frac", "fraction_of_characters_in_duplicate_lines", above),
    ("GopherRepetitionFilter", "dup_para_char_frac", "fraction_of_characters_in_duplicate_paragraphs", above),
    ("FineWebQualityFilter", "line_punct_thr", "lines_ending_a_sentence", below),
    ("FineWebQualityFilter", "short_line_thr", "short_lines", above),
    ("FineWebQualityFilter", "char_duplicates_ratio", "characters_in_duplicate_lines", above),
    ("FineWebQualityFilter", "new_line_ratio", "newlines_to_words", above),
]
RULES = {
    "GopherQualityFilter": fineweb.gopher_quality,
    "GopherRepetitionFilter": fineweb.gopher_repetition,
    "FineWebQualityFilter": fineweb.fineweb_quality,
}


def run_datatrove(python: Path, rows: Sequence[dict[str, Any]], folder: Path, cases: Any) -> list[Any]:
    (folder / "cases.json").write_bytes(orjson.dumps(cases))
    data = b"".join(orjson.dumps(row) + b"\n" for row in rows)
    done = subprocess.run(
        [str(python), str(ORACLE), str(folder / "cases.json")], input=data, capture_output=True, timeout=600
    )
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    return [orjson.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def rows(shared_data: Path) -> list[dict[str, Any]]:
    found = []
    for name, count in (("c4", 70), ("cc_en_head-0091", 10), ("wikitext2.valid", 8)):
        with gzip.open(shared_data / "text" / f"{name}.jsonl.gz") as stream:
            found += [orjson.loads(line) for _, line in zip(range(count), stream, strict=False)]
    found += [row for row in nonsense(80, seed=4) if row["text"].strip()]
    lists = "- one\n• two\n\n- three...\nfour…\n\n- one\n• two\n\nPlain line here.\nPlain line here.\n"
    return [
        *found,
        {"id": "list", "text": lists * 3},
        {"id": "cited", "text": "As said [1].\nSee [citation needed] it.\n"},
    ]


@pytest.fixture(scope="module")
def datatrove(oracle: Any) -> Path:
    python: Path = oracle("datatrove")
    return python


def test_every_value_at_its_median_and_at_its_own_threshold(
    datatrove: Path, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    values = {name: [rule(row["text"]) for row in rows] for name, rule in RULES.items()}
    cases: list[Any] = []
    expected: list[list[bool]] = []
    for name, setting, key, direction in SINGLE:
        known = sorted(found[key] for found in values[name] if key in found)
        for threshold in {statistics.median(known), known[len(known) * 9 // 10], known[len(known) // 10]} - {
            0.0
        }:
            cases.append((name, {**OFF[name], setting: threshold}))
            expected.append([not direction(key)(found, threshold) for found in values[name]])
    for n in range(2, 11):
        kind = "most_common" if n < 5 else "duplicate"
        key = f"fraction_of_characters_in_{kind}_{n}grams"
        known = sorted(found[key] for found in values["GopherRepetitionFilter"] if key in found)
        for threshold in (known[len(known) // 2], known[len(known) * 9 // 10]):
            setting = "top_n_grams" if n < 5 else "dup_n_grams"
            cases.append(
                ("GopherRepetitionFilter", {**OFF["GopherRepetitionFilter"], setting: [[n, threshold]]})
            )
            expected.append([not above(key)(found, threshold) for found in values["GopherRepetitionFilter"]])
    decisions = run_datatrove(datatrove, rows, tmp_path, cases)
    for number, (case, wanted) in enumerate(zip(cases, expected, strict=True)):
        for row, answer, kept in zip(rows, decisions, wanted, strict=True):
            if answer[number][1] not in ("error", "empty"):
                assert answer[number][0] == kept, (case, row["text"][:300])


def test_c4_leaves_what_datatrove_s_filter_leaves(
    datatrove: Path, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    answers = run_datatrove(datatrove, rows, tmp_path, [("C4QualityFilter", {})])
    reasons = {"has_lorem_ipsum": "lorem_ipsum", "has_curly_brace": "curly_bracket"}
    kept = 0
    for row, (answer,) in zip(rows, answers, strict=True):
        removed, citations, why, sentences = fineweb.c4_lines(row["text"])
        reason = reasons.get(why) or ("too_few_sentences" if sentences < 5 else "")
        assert answer[1] == reason, row["text"][:300]
        if not reason:
            text = row["text"]
            for start, end, _ in sorted([*removed, *citations], reverse=True):
                text = text[:start] + text[end:]
            assert "\n".join(line.strip() for line in text.splitlines()).strip() == answer[2]
            kept += 1
    assert kept > 20


def test_the_paper_s_rules_by_hand() -> None:
    text = "the cat and the dog\nthe cat and the dog\n\n- of #1...\n"
    found = fineweb.gopher_paper(text)
    assert found["word_count"] == 13
    assert found["distinct_required_words"] == 3
    assert found["mean_word_length"] == pytest.approx((15 * 2 + 1 + 2 + 5) / 13)
    assert found["hash_to_word_ratio"] == found["ellipsis_to_word_ratio"] == pytest.approx(1 / 13)
    assert found["fraction_of_lines_starting_with_bullet_point"] == pytest.approx(1 / 3)
    assert found["fraction_of_duplicate_lines"] == pytest.approx(1 / 3)
    assert found["fraction_of_characters_in_duplicate_5grams"] == pytest.approx(
        30 / 38
    )  # overlaps count once
    assert found["fraction_of_characters_in_duplicate_6grams"] == 0
    assert found["fraction_of_characters_in_most_common_2grams"] == pytest.approx(6 * 2 / 38)


def test_taggers_write_the_values() -> None:
    batch = make_batch(
        [{"id": "a", "text": "One line here.\nAnd one more."}, {"id": "b", "text": ""}], [1, 2]
    )
    for name in ("gopher_paper_v1", "gopher_quality_datatrove_v1", "gopher_repetition_datatrove_v1",
                 "fineweb_quality_v1", "c4_datatrove_v1"):  # fmt: skip
        spans = taggers.get(name)(Texts(batch))
        assert spans
        assert all(len(value) == 2 for value in spans.values())
    assert spans["sentences"].of(0) == [(0, 28, 2.0)]
