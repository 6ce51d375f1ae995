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
