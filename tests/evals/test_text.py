"""Which files a text to measure means."""

from __future__ import annotations

from pathlib import Path

import pytest

from loom.errors import LoomError
from loom.evals.text import read_texts, text_files
from tests.small import write_lines


def test_files_folders_and_globs(tmp_path: Path) -> None:
    for name in ("b", "a"):
        write_lines(tmp_path / "texts" / f"{name}.jsonl", [{"id": name, "text": f"text {name}"}])
    (tmp_path / "texts" / "notes.md").write_text("not a text to measure by a folder's rule")
    for path in (tmp_path / "texts", tmp_path / "texts" / "*.jsonl", tmp_path / "**" / "*.jsonl"):
        assert [text.domain for text in read_texts([path])] == ["a", "b"]
    assert [text.id for text in read_texts([tmp_path / "texts" / "b.jsonl"])] == ["b"]
    with pytest.raises(LoomError, match=r"no .*x\*\.jsonl to evaluate on"):
        text_files([tmp_path / "texts" / "x*.jsonl"])


def test_of_palomas_splits_one_is_read(tmp_path: Path) -> None:
    for split in ("val", "test"):
        write_lines(tmp_path / "c4" / split / "x.jsonl", [{"id": split, "text": "a", "subdomain": "s"}])
    assert [text.id for text in read_texts([tmp_path])] == ["test"]
    assert [text.id for text in read_texts([tmp_path], "val")] == ["val"]
    globbed = [tmp_path / "c4" / "*" / "*.jsonl"]
    assert [text.id for text in read_texts(globbed)] == ["test"]
    with pytest.raises(LoomError, match="with the split 'dev'"):
        text_files([tmp_path], "dev")


def test_files_of_one_name_in_two_folders_are_two_domains(tmp_path: Path) -> None:
    """Shards are numbered alike everywhere; folders of one name are told apart by more of their path."""
    for name in ("web/part-0", "web/part-1", "wiki/part-0", "books"):
        write_lines(tmp_path / "a" / f"{name}.jsonl", [{"id": name, "text": "x"}])
    found = [(text.source, text.domain, text.id) for text in read_texts([tmp_path / "a"])]
    assert found == [
        ("books", "books", "books"),
        ("web", "web", "web/part-0"),
        ("web", "web", "web/part-1"),
        ("wiki", "wiki", "wiki/part-0"),
    ]
    write_lines(tmp_path / "b" / "web" / "part-0.jsonl", [{"id": "other", "text": "x"}])
    both = [tmp_path / "a" / "web", tmp_path / "b" / "web" / "part-0.jsonl"]
    assert [text.domain for text in read_texts(both)] == ["a/web", "a/web", "b/web"]
    assert [text.domain for text in read_texts([tmp_path / "a" / "web"] * 2)] == ["part-0", "part-1"] * 2
