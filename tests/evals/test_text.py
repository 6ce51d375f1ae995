"""Which files a text to measure means, what they are called, and what is in them."""

from __future__ import annotations

from pathlib import Path

import pytest

from loom.errors import LoomError
from loom.evals.sources import find_sources, notes, read_sources
from loom.evals.text import Text, read_texts, text_files
from tests.small import write_lines


def texts_of(paths: list[Path], split: str | None = None) -> list[Text]:
    return [text for reading in read_texts(text_files(paths, split)) for text in reading.texts]


def test_files_folders_and_globs(tmp_path: Path) -> None:
    for name in ("b", "a"):
        write_lines(tmp_path / "texts" / f"{name}.jsonl", [{"id": name, "text": f"text {name}"}])
    (tmp_path / "texts" / "notes.md").write_text("not a text to measure by a folder's rule")
    for path in (tmp_path / "texts", tmp_path / "texts" / "*.jsonl", tmp_path / "**" / "*.jsonl"):
        assert [text.domain for text in texts_of([path])] == ["a", "b"]
    assert [text.id for text in texts_of([tmp_path / "texts" / "b.jsonl"])] == ["b"]
    with pytest.raises(LoomError, match=r"no .*x\*\.jsonl to evaluate on"):
        text_files([tmp_path / "texts" / "x*.jsonl"])


def test_of_palomas_splits_one_is_read(tmp_path: Path) -> None:
    for split in ("val", "test"):
        write_lines(tmp_path / "c4" / split / "x.jsonl", [{"id": split, "text": "a", "subdomain": "s"}])
    assert [text.id for text in texts_of([tmp_path])] == ["test"]
    assert [text.id for text in texts_of([tmp_path], "val")] == ["val"]
    globbed = [tmp_path / "c4" / "*" / "*.jsonl"]
    assert [text.id for text in texts_of(globbed)] == ["test"]
    with pytest.raises(LoomError, match="with the split 'dev'"):
        text_files([tmp_path], "dev")


def test_files_of_one_name_in_two_folders_are_two_domains(tmp_path: Path) -> None:
    """Shards are numbered alike everywhere; folders of one name are told apart by more of their path."""
    for name in ("web/part-0", "web/part-1", "wiki/part-0", "books"):
        write_lines(tmp_path / "a" / f"{name}.jsonl", [{"id": name, "text": "x"}])
    found = [(text.source, text.domain, text.id) for text in texts_of([tmp_path / "a"])]
    assert found == [
        ("books", "books", "books"),
        ("web", "web", "web/part-0"),
        ("web", "web", "web/part-1"),
        ("wiki", "wiki", "wiki/part-0"),
    ]
    write_lines(tmp_path / "b" / "web" / "part-0.jsonl", [{"id": "other", "text": "x"}])
    both = [tmp_path / "a" / "web", tmp_path / "b" / "web" / "part-0.jsonl"]
    assert [text.domain for text in texts_of(both)] == ["a/web", "a/web", "b/web"]


def test_source_folders_of_one_name_are_two_sources(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        write_lines(tmp_path / folder / "c4" / "test" / "x.jsonl", [{"text": "x"}])
    write_lines(tmp_path / "three" / "gab" / "test" / "x.jsonl", [{"text": "x"}])
    assert [text.source for text in texts_of([tmp_path])] == ["one/c4", "gab", "two/c4"]
    write_lines(tmp_path / "c4.jsonl", [{"text": "x"}])
    assert {text.source for text in texts_of([tmp_path])} == {"c4", "one/c4", "gab", "two/c4"}


def test_a_text_named_twice_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By itself, by its folder, from another place and through a link."""
    write_lines(tmp_path / "p" / "c4" / "test" / "x.jsonl", [{"id": "1", "text": "x"}])
    write_lines(tmp_path / "p" / "ptb" / "test" / "x.jsonl", [{"id": "2", "text": "x"}])
    (tmp_path / "link").symlink_to(tmp_path / "p")
    monkeypatch.chdir(tmp_path)
    several = [Path("p"), Path("p/c4"), tmp_path / "p", tmp_path / "p" / ".." / "p", Path("link")]
    found = texts_of(several)
    assert [(text.source, text.id) for text in found] == [("c4", "1"), ("ptb", "2")]
    assert texts_of([tmp_path / "p"] * 2) == texts_of([tmp_path / "p"])


@pytest.mark.parametrize(
    ("place", "named"), [("web", "test"), ("web/test", "."), ("web/test", "../../web"), (".", "web")]
)
def test_names_do_not_depend_on_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, named: str
) -> None:
    write_lines(tmp_path / "web" / "test" / "x.jsonl", [{"text": "a", "subdomain": "d"}])
    write_lines(tmp_path / "web" / "val" / "x.jsonl", [{"text": "b", "subdomain": "d"}])
    monkeypatch.chdir(tmp_path / place)
    (text,) = texts_of([Path(named)])
    assert (text.source, text.domain, text.text) == ("web", "d", "a")


def test_an_id_that_is_null_is_none(tmp_path: Path) -> None:
    rows = [{"id": None, "text": "a"}, {"id": None, "text": "b"}, {"text": "c"}, {"id": 0, "text": "d"}]
    write_lines(tmp_path / "x.jsonl", rows)
    assert [text.id for text in texts_of([tmp_path / "x.jsonl"])] == [
        "x.jsonl:1",
        "x.jsonl:2",
        "x.jsonl:3",
        "0",
    ]


@pytest.mark.parametrize("rows", [[], [{"text": ""}, {"text": ""}]])
def test_what_holds_no_text_is_an_error_that_names_it(tmp_path: Path, rows: list[dict[str, str]]) -> None:
    write_lines(tmp_path / "none" / "empty.jsonl", rows)
    (tmp_path / "blank.txt").write_text(" \n")
    full = write_lines(tmp_path / "full.jsonl", [{"text": "a"}])
    for named in (tmp_path / "none", tmp_path / "none" / "empty.jsonl", tmp_path / "blank.txt"):
        with pytest.raises(LoomError, match=f"no text in {named}: none of its"):
            read_texts(text_files([full, named]))


def test_rows_without_text_are_counted_by_file(tmp_path: Path) -> None:
    write_lines(tmp_path / "t" / "some.jsonl", [{"text": ""}, {"text": "a"}, {"text": ""}])
    write_lines(tmp_path / "t" / "none.jsonl", [{"text": ""}])
    found = {one.file.source: (len(one.texts), one.empty) for one in read_texts(text_files([tmp_path / "t"]))}
    assert found == {"some": (1, 2), "none": (0, 1)}


def test_a_source_has_the_split_that_was_read(tmp_path: Path) -> None:
    for name in ("a/test", "b/val", "c/val", "c/test"):
        write_lines(tmp_path / name / "x.jsonl", [{"text": "x"}])
    write_lines(tmp_path / "plain.jsonl", [{"text": "x"}])
    assert read_sources(find_sources([tmp_path])).splits == {
        "a": "test",
        "b": "val",
        "c": "test",
        "plain": "",
    }
    both = read_sources(find_sources([tmp_path / "c" / "val", tmp_path / "c" / "test"]))
    assert both.splits == {"c": "val, test"}


def test_what_a_reader_must_know_stands_in_notes() -> None:
    row = {"documents": 3, "empty_rows": 0}
    assert notes([{**row, "path": "x", "source": "x"}]) == []
    told = notes(
        [
            {**row, "path": "a/1", "source": "a", "split": "test", "empty_rows": 2},
            {**row, "path": "a/2", "source": "a", "split": "test", "documents": 0, "empty_rows": 1},
            {**row, "path": "b/1", "source": "b", "split": "val"},
            {**row, "path": "c", "source": "c", "seen": {"where": "/corpus/c", "prompts": 0}},
            {**row, "path": "t/heldout", "source": "web", "held_out": True},
        ]
    )
    assert told == [
        "a/2 holds no text",
        "a: 3 rows have no text and are left out",
        "c: no figure, the model was trained on /corpus/c",
        "read from the split test: a",
        "read from the split val: b",
        "of a token folder, what it holds out was measured: t/heldout",
    ]


def test_of_a_curated_folder_the_documents_are_measured(tmp_path: Path) -> None:
    """What was dropped lies beside them."""
    for part in ("documents", "removed"):
        write_lines(tmp_path / "curated" / part / "web.jsonl", [{"id": part, "text": "a text"}])
    assert [(text.id, text.source) for text in texts_of([tmp_path / "curated"])] == [("documents", "web")]


def test_a_file_called_like_a_folder_keeps_its_own_name(tmp_path: Path) -> None:
    for name in ("a/part-0", "b/part-0", "c/a"):
        write_lines(tmp_path / f"{name}.jsonl", [{"id": name, "text": "a text"}])
    assert len({text.source for text in texts_of([tmp_path])}) == 3


def test_no_more_texts_are_kept_than_can_be_measured(tmp_path: Path) -> None:
    write_lines(tmp_path / "a.jsonl", [{"id": str(i), "text": "four"} for i in range(9)])
    write_lines(tmp_path / "b.jsonl", [{"id": str(i), "text": "seven b"} for i in range(2)])
    kept = read_sources(find_sources([tmp_path])).beginning(10)
    assert [len(one.texts) for one in kept.files] == [3, 2]  # 12 bytes of a; 14 of b
