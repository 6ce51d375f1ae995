"""Rows: which file is read, what is wrong with a row, what a sample is."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from loom.errors import LoomError
from loom.tasks import data, mmlu, registry
from tests.tasks import rows


def write(folder: Path, name: str, lines: list[dict[str, Any]]) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(line) + "\n" for line in lines).encode()
    (folder / name).write_bytes(gzip.compress(text, mtime=0) if name.endswith(".gz") else text)


def test_the_protocols_split_comes_first_then_validation(tmp_path: Path) -> None:
    write(tmp_path, "arc_easy.validation.jsonl.gz", rows.ARC)
    task = registry.task("arc_easy")
    assert data.load(task, tmp_path).found[0].split == "validation"
    write(tmp_path, "arc_easy.test.jsonl", rows.ARC[:1])
    assert data.load(task, tmp_path).found[0].split == "test"
    assert data.load(task, tmp_path, split="validation").rows == len(rows.ARC)


def test_a_split_that_was_named_must_be_there(tmp_path: Path) -> None:
    write(tmp_path, "piqa.validation.jsonl", rows.PIQA)
    write(tmp_path, "mmlu/world_religions.dev.jsonl", rows.MMLU)
    for name in ("piqa", "mmlu"):
        with pytest.raises(LoomError, match=r"There is no .*\.test\.jsonl"):
            data.load(registry.task(name), tmp_path, split="test")
    assert data.load(registry.task("mmlu"), tmp_path).found[0].split == "dev"


def test_the_hubs_own_files_are_read(tmp_path: Path) -> None:
    table = pa.Table.from_pylist(rows.PIQA)
    pq.write_table(table, tmp_path / "piqa.validation.parquet")
    first = data.load(registry.task("piqa"), tmp_path).items
    (tmp_path / "piqa.validation.parquet").unlink()
    with (
        pa.OSFile(str(tmp_path / "piqa.validation.arrow"), "wb") as sink,
        pa.ipc.new_stream(sink, table.schema) as out,
    ):
        out.write_table(table)
    assert data.load(registry.task("piqa"), tmp_path).items == first


def test_a_missing_file_names_itself_and_where_it_comes_from(tmp_path: Path) -> None:
    with pytest.raises(LoomError, match=r"piqa\.validation\.jsonl.*baber/piqa"):
        data.load(registry.task("piqa"), tmp_path)
    with pytest.raises(LoomError, match=r"abstract_algebra\.test\.jsonl.*cais/mmlu"):
        data.load(registry.task("mmlu"), tmp_path)


BAD = [
    ("piqa", {"goal": "g", "sol1": "a", "label": 0}, "no field 'sol2'"),
    ("piqa", {"goal": "g", "sol1": "a", "sol2": "b", "label": 2}, "number 2 of 2 choices"),
    ("piqa", {"goal": "g", "sol1": "a", "sol2": "b", "label": -1}, "number -1 of 2"),
    ("piqa", {"goal": "g", "sol1": "a", "sol2": "", "label": 0}, "choice 1 .* empty"),
    ("arc_easy", {**rows.ARC[0], "answerKey": "E"}, "answerKey 'E' is none"),
    ("arc_easy", {**rows.ARC[0], "choices": {"text": ["a"], "label": ["A", "B"]}}, "1 choices for 2 labels"),
    ("hellaswag", {**rows.HELLASWAG[0], "label": ""}, "label is '', not a number"),
    ("winogrande", {**rows.WINOGRANDE[0], "sentence": "No gap."}, "no blank"),
    ("winogrande", {**rows.WINOGRANDE[0], "answer": ""}, "answer is ''"),
    ("copa", {**rows.COPA[0], "question": "why"}, "not cause or effect"),
    ("hellaswag", {**rows.HELLASWAG[0], "endings": ["a", "b", "c"]}, "3 choices, not 4"),
    ("commonsense_qa", rows.labelled("q", ["a", "b", "c", "d"], "A"), "4 choices, not 5"),
    ("commonsense_qa", rows.labelled("q", ["a", "b", " ", "d", "e"], "A"), "choice 2 .* empty"),
    ("arc_easy:olmes-mcf:0shot", rows.labelled("q", ["a", ""], "A"), "choice 1 .* empty"),
    ("arc_easy", rows.labelled("q", ["a"], "A"), "1 choice, and at least 2"),
    ("arc_easy", {**rows.ARC[0], "question": None}, "its question is null"),
    ("arc_easy", {**rows.ARC[0], "question": " "}, "its question is empty"),
    ("arc_easy", rows.labelled("q", ["a", None], "A"), "choice 1 .* is missing"),  # type: ignore[list-item]
    ("arc_easy", {**rows.ARC[0], "choices": ["a", "b"]}, "its choices are"),
    ("openbookqa", {**rows.labelled("q", ["a", "b", "c"], "A", name="question_stem")}, "3 choices, not 4"),
    ("openbookqa:olmes:0shot", rows.labelled("q", ["a"] * 5, "A", name="question_stem"), "5 choices, not 4"),
    ("openbookqa:olmes-mcf:0shot", rows.labelled("q", ["a"] * 3, "A", name="question_stem"), "3 choices"),
    ("commonsense_qa:olmo-inloop", rows.labelled("q", ["a", "b", "c", "d"], "A"), "4 choices, not 5"),
    ("commonsense_qa:olmes-mcf:0shot", rows.labelled("q", ["a", "b", "c", "d"], "A"), "4 choices, not 5"),
    ("boolq", {"question": "q", "passage": "Untitled.", "answer": True}, "no title .* super_glue"),
    ("boolq:olmo-inloop", {"question": "q", "passage": "p", "answer": "no"}, "answer is 'no', not true"),
    ("boolq", {"question": "q", "passage": None, "label": 1}, "its passage is null"),
    ("winogrande", {**rows.WINOGRANDE[0], "option1": ""}, "options is empty"),
    ("hellaswag", {**rows.HELLASWAG[0], "endings": "abcd"}, "endings? .* not a list|choices are 'abcd'"),
    ("truthfulqa_mc1", {"question": "q", "mc1_targets": {"choices": ["a"], "labels": [1]}}, "1 choice, and"),
    ("truthfulqa_mc2", {"question": "q", "mc2_targets": {"choices": ["a"], "labels": [1]}}, "some must be"),
]


@pytest.mark.parametrize(("name", "row", "why"), BAD)
def test_a_bad_row_is_named_and_never_scored(
    tmp_path: Path, name: str, row: dict[str, Any], why: str
) -> None:
    file = name.split(":")[0]
    good = rows.ROWS[file]
    write(tmp_path, f"{file}.validation.jsonl", [*good, row])
    with pytest.raises(LoomError, match=f"jsonl:{len(good) + 1}.*{why}"):
        data.load(registry.task(name), tmp_path)
    loaded = data.load(registry.task(name), tmp_path, skip_bad=True)
    assert len(loaded.items) == len(good)
    assert list(loaded.bad) == [f"{file}.validation.jsonl:{len(good) + 1}"]


def test_a_bad_row_is_named_by_its_line_and_its_file_whatever_lies_before_it(tmp_path: Path) -> None:
    """Blank lines count as lines, a second file has lines of its own, and one of each subject is one of each."""
    good, bad = json.dumps(rows.PIQA[0]), json.dumps({**rows.PIQA[0], "sol2": ""})
    (tmp_path / "piqa.validation.jsonl").write_text(f"{good}\n\n\n{bad}\n")
    loaded = data.load(registry.task("piqa"), tmp_path, skip_bad=True)
    assert list(loaded.bad) == ["piqa.validation.jsonl:4"]

    for number, lines in enumerate(([good] * 3, [good, bad])):
        shard = tmp_path / "hub" / "piqa" / "validation" / f"{number:04}.jsonl"
        shard.parent.mkdir(parents=True, exist_ok=True)
        shard.write_text("".join(f"{line}\n" for line in lines))
    loaded = data.load(registry.task("piqa"), tmp_path / "hub", skip_bad=True)
    assert [Path(place).name for place in loaded.bad] == ["0001.jsonl:2"]

    for subject in ("anatomy", "virology"):
        write(tmp_path, f"mmlu/{subject}.test.jsonl", [*rows.MMLU, {**rows.MMLU[0], "answer": 4}])
    loaded = data.load(registry.task("mmlu"), tmp_path, skip_bad=True)
    assert list(loaded.bad) == ["mmlu/anatomy.test.jsonl:4", "mmlu/virology.test.jsonl:4"]
    with pytest.raises(LoomError, match=r"mmlu/anatomy\.test\.jsonl:4: .*and 1 more rows"):
        data.load(registry.task("mmlu"), tmp_path)


@pytest.mark.parametrize("field", ["answer", "choices"])
def test_a_worked_example_that_cannot_be_shown_is_named(tmp_path: Path, field: str) -> None:
    write(tmp_path, "mmlu/anatomy.test.jsonl", rows.MMLU)
    worked = [dict(row) for row in rows.MMLU_DEV]
    worked[3] |= {"answer": 9} if field == "answer" else {"choices": None}
    write(tmp_path, "mmlu/anatomy.dev.jsonl", worked)
    for skip_bad in (False, True):
        with pytest.raises(LoomError, match=r"anatomy\.dev\.jsonl:4: this worked example cannot be shown"):
            data.load(registry.task("mmlu:5shot"), tmp_path, skip_bad=skip_bad)


def test_a_subject_without_rows_is_named(tmp_path: Path) -> None:
    write(tmp_path, "mmlu/anatomy.test.jsonl", rows.MMLU)
    write(tmp_path, "mmlu/astronomy.test.jsonl", [])
    with pytest.raises(LoomError, match=r"astronomy\.test\.jsonl has no rows"):
        data.load(registry.task("mmlu"), tmp_path)


def test_a_label_may_be_a_number_that_a_column_with_gaps_made_of_it(tmp_path: Path) -> None:
    write(tmp_path, "piqa.validation.jsonl", [{**row, "label": float(row["label"])} for row in rows.PIQA])
    golds = [item.gold for item in data.load(registry.task("piqa"), tmp_path).items]
    assert golds == [row["label"] for row in rows.PIQA]


@pytest.mark.parametrize("name", [name for name in registry.TASKS if name.split(":")[0].startswith("mmlu")])
@pytest.mark.parametrize("choices", [["4", "5", "6"], ["4", "5", "6", ""], ["4", "5", "6", "7", "8"]])
def test_a_question_of_mmlu_has_four_choices(tmp_path: Path, name: str, choices: list[str]) -> None:
    """In every protocol's form, also where only letters are scored."""
    write(tmp_path, "mmlu/world_religions.test.jsonl", [*rows.MMLU, {**rows.MMLU[0], "choices": choices}])
    write(tmp_path, "mmlu/world_religions.dev.jsonl", rows.MMLU_DEV)
    with pytest.raises(LoomError, match=r"world_religions\.test\.jsonl:4: .*(not 4|choice 3 .* empty)"):
        data.load(registry.task(name), tmp_path, split="test")


@pytest.mark.parametrize("name", ["parquet", "arrow", "jsonl.gz", "jsonl.zst"])
def test_a_damaged_file_is_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / f"piqa.validation.{name}"
    table = pa.Table.from_pylist(rows.PIQA * 50)
    text = "".join(json.dumps(row) + "\n" for row in rows.PIQA * 50).encode()
    match name:
        case "parquet":
            pq.write_table(table, path)
        case "arrow":
            with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as out:
                out.write_table(table)
        case "jsonl.gz":
            path.write_bytes(gzip.compress(text))
        case "jsonl.zst":
            path.write_bytes(zstandard.compress(text))
    assert data.load(registry.task("piqa"), tmp_path).rows == 150
    whole = path.read_bytes()
    half = len(whole) // 2
    path.write_bytes(whole[:half] + (bytes(8) + whole[half + 8 :] if name.startswith("jsonl") else b""))
    with pytest.raises(LoomError, match=r"piqa\.validation\..*Fetch or make the file again"):
        data.load(registry.task("piqa"), tmp_path)


def test_a_line_that_is_no_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "piqa.validation.jsonl").write_text('{"goal"\n')
    with pytest.raises(LoomError, match=r"piqa\.validation\.jsonl:1"):
        data.load(registry.task("piqa"), tmp_path)


def test_the_papers_sample_is_catwalks(tmp_path: Path) -> None:
    many = [{**rows.PIQA[i % 3], "goal": str(i)} for i in range(1500)]
    write(tmp_path, "piqa.validation.jsonl", many)
    items = data.load(registry.task("piqa:olmo-paper"), tmp_path).items
    assert [item.doc_id for item in items] == sorted(random.Random(1234).sample(range(1500), 1000))
    assert [item.doc_id for item in data.load(registry.task("piqa"), tmp_path, limit=5).items] == [
        0,
        1,
        2,
        3,
        4,
    ]


def test_a_sample_is_drawn_from_all_subjects_together(tmp_path: Path) -> None:
    """In the loop 200 rows of MMLU are 200, and not 200 of each of 57 subjects; each subject stays in its order."""
    sizes = {"anatomy": 30, "virology": 10}
    for subject, size in sizes.items():
        many = [{**rows.MMLU[i % 3], "question": f"{subject} {i}"} for i in range(size)]
        write(tmp_path, f"mmlu/{subject}.test.jsonl", many)
    task = registry.task("mmlu")
    every = [(subject, index) for subject, size in sizes.items() for index in range(size)]
    drawn = [every[place] for place in sorted(random.Random(1234).sample(range(40), 12))]
    for sample, kept in ((12, drawn), (40, every), (None, every)):
        loaded = data.load(task, tmp_path, sample=sample)
        assert [(item.group, item.doc_id) for item in loaded.items] == kept
        assert loaded.rows == 40
    assert len(data.load(task, tmp_path, limit=2).items) == 4


def test_olmes_takes_up_to_1500_rows_whole_and_1000_of_more(tmp_path: Path) -> None:
    """ARC-Challenge's 1,172 test rows and WinoGrande's 1,267 are all read, HellaSwag's 10,042 are not."""
    example = rows.ROWS["winogrande"][0]
    for count, kept in ((1500, 1500), (1501, 1000)):
        lines = json.dumps(example) + "\n"
        (tmp_path / "winogrande.validation.jsonl").write_text(lines * count)
        (tmp_path / "winogrande.train.jsonl").write_text(lines * 5)
        assert len(data.load(registry.task("winogrande:olmes"), tmp_path).items) == kept


def test_examples_come_from_the_dev_file(tmp_path: Path) -> None:
    write(tmp_path, "mmlu/world_religions.test.jsonl", rows.MMLU)
    with pytest.raises(LoomError, match="shows 5 examples"):
        data.load(registry.task("mmlu:5shot"), tmp_path)
    write(tmp_path, "mmlu/world_religions.dev.jsonl", rows.MMLU_DEV)
    for item in data.load(registry.task("mmlu:5shot"), tmp_path).items:
        assert item.header.count("Answer:") == 5
        assert item.pairs[0][0].startswith(item.header)
        assert item.group == "world_religions"


def test_names() -> None:
    assert len(mmlu.SUBJECTS) == 57
    assert registry.task("piqa:lm-eval") is registry.task("piqa")
    assert registry.task("mmlu_astronomy").subjects == ("astronomy",)
    assert [task.name for task in registry.tasks(["quick", "piqa"])].count("piqa") == 1
    assert [task.name for task in registry.tasks(["piqa", "piqa:lm-eval", "piqa:lm-eval:2shot"])] == [
        "piqa",
        "piqa:2shot",
    ]
    with pytest.raises(LoomError, match="Did you mean 'hellaswag'"):
        registry.task("helaswag")
    with pytest.raises(LoomError, match="no suite 'all'"):
        registry.suite("all")
    for suite in registry.SUITES.values():
        assert registry.tasks(suite)


def test_protocols_differ_where_the_reference_says() -> None:
    row = {"question": "q", "passage": "Title -- Text.", "label": 1}
    ours, loop = (registry.task(name).render(0, row) for name in ("boolq", "boolq:olmo-inloop"))
    assert ours.pairs[0][0] == "Title -- Text.\nQuestion: q?\nAnswer:"
    assert loop.pairs[0][0] == "Text.\nQuestion: q?\nAnswer:"
    assert (ours.choices, ours.gold) == (("no", "yes"), 1)
    assert (loop.choices, loop.gold) == (("yes", "no"), 0)
    bare = rows.SCIQ[1]
    assert registry.task("sciq").render(0, bare).pairs[0][0].startswith("\nQuestion")
    assert registry.task("sciq:olmo-paper").render(0, bare).pairs[0][0].startswith("Question")
    mmlu_row = rows.MMLU[0]
    loop, lettered = (
        registry.task(name).render(0, mmlu_row) for name in ("mmlu:olmo-inloop", "mmlu:olmo-inloop-mc")
    )
    assert loop.pairs[1] == ("Question: What is 2 + 3?\nAnswer:", " 5")
    assert lettered.pairs[1] == ("What is 2 + 3?\nA. 4\nB. 5\nC. 6\nD. 7\nAnswer:", " B")
    describe = registry.task("mmlu:olmo-inloop-mc").description
    assert describe is not None and describe("high_school_biology").endswith("about high school biology:\n\n")
    hella = registry.task("hellaswag").render(0, rows.HELLASWAG[0])
    assert hella.pairs[2][1] == "  paints a wall."  # what stood in brackets leaves its space
    assert registry.task("piqa:olmes").render(0, rows.PIQA[1]).pairs[0][0] == "Goal: Dry wet shoes\nAnswer:"
    assert registry.task("arc_easy:olmo-paper").render(0, rows.ARC[0]).unconditioned == "Answer:"


def test_truthfulqa_from_the_authors_table() -> None:
    row = {
        "Question": "Q?",
        "Best Answer": "Nothing",
        "Correct Answers": "Nothing; It passes.",
        "Incorrect Answers": "You die; Nothing",
    }
    one, two = (registry.task(f"truthfulqa_mc{i}").render(0, row) for i in (1, 2))
    assert one.choices == ("Nothing.", "You die.")
    assert one.gold == 0
    assert two.choices == ("Nothing.", "It passes.", "You die.")
    assert two.gold == (0, 1)
