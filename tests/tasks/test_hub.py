"""The Hub's own layouts: repositories, its Parquet conversion, and the caches of its clients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from loom.errors import LoomError
from loom.tasks import data, registry
from tests.tasks import rows


def put(path: Path, lines: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(lines)
    if path.suffix == ".parquet":
        pq.write_table(table, path)
        return
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as out:
        out.write_table(table)


PLACES = [
    ("arc_easy", "ARC-Easy/test-00000-of-00001.parquet", "test"),
    ("arc_easy", "ai2_arc/ARC-Easy/test-00000-of-00001.parquet", "test"),
    ("arc_easy", "ai2_arc/ARC-Easy/test/0000.parquet", "test"),
    ("arc_easy", "datasets--allenai--ai2_arc/snapshots/0a1b/ARC-Easy/test-00000-of-00001.parquet", "test"),
    ("hellaswag", "hellaswag/data/validation-00000-of-00001.parquet", "validation"),
    ("hellaswag", "hellaswag/default/validation/0000.parquet", "validation"),
    ("hellaswag", "Rowan___hellaswag/default/0.0.0/0f9e/hellaswag-validation.arrow", "validation"),
    ("boolq", "super_glue/boolq/validation-00000-of-00001.parquet", "validation"),
    ("boolq", "super_glue/boolq/0.0.0/0f9e/super_glue-validation.arrow", "validation"),
    ("piqa", "piqa/validation/data-00000-of-00001.arrow", "validation"),
    ("winogrande", "winogrande_xl/validation-00000-of-00001.parquet", "validation"),
    ("openbookqa", "openbookqa/main/test-00000-of-00001.parquet", "test"),
    ("openbookqa", "openbookqa/test/0000.parquet", "test"),
    ("truthfulqa_mc1", "truthful_qa/multiple_choice/validation-00000-of-00001.parquet", "validation"),
]


@pytest.mark.parametrize(("task", "place", "split"), PLACES)
def test_rows_are_found_where_the_hub_has_them(tmp_path: Path, task: str, place: str, split: str) -> None:
    put(tmp_path / place, rows.ROWS[task])
    loaded = data.load(registry.task(task), tmp_path)
    assert loaded.found[0].split == split
    assert [item.doc_id for item in loaded.items] == list(range(len(rows.ROWS[task])))


SUBJECTS = [
    "mmlu/world_religions/{}-00000-of-00001.parquet",
    "world_religions/{}-00000-of-00001.parquet",
    "datasets--cais--mmlu/snapshots/0a1b/world_religions/{}-00000-of-00001.parquet",
    "cais___mmlu/world_religions/0.0.0/0f9e/mmlu-{}.arrow",
]


@pytest.mark.parametrize("place", SUBJECTS)
def test_a_repository_of_many_subjects_with_its_examples(tmp_path: Path, place: str) -> None:
    for split, lines in (("test", rows.MMLU), ("dev", rows.MMLU_DEV)):
        put(tmp_path / place.format(split), lines)
    loaded = data.load(registry.task("mmlu:5shot"), tmp_path)
    assert loaded.found[0].split == "test"
    assert loaded.items[0].header.count("Answer:") == 5
    assert [found.path for found in loaded.examples] == [tmp_path / place.format("dev")]


def test_subjects_of_the_cache_stand_beside_those_of_the_folder(tmp_path: Path) -> None:
    """A split of one in its folder, its examples in the cache, another wholly there."""
    cache = "datasets--cais--mmlu/snapshots/0a1b/{}/{}-00000-of-00001.parquet"
    put(tmp_path / "mmlu" / "world_religions.test.parquet", rows.MMLU)
    put(tmp_path / cache.format("world_religions", "dev"), rows.MMLU_DEV)
    for split, lines in (("test", rows.MMLU[:1]), ("dev", rows.MMLU_DEV)):
        put(tmp_path / cache.format("anatomy", split), lines)
    loaded = data.load(registry.task("mmlu:5shot"), tmp_path)
    assert [item.group for item in loaded.items] == ["anatomy", *["world_religions"] * len(rows.MMLU)]
    assert [found.split for found in (*loaded.found, *loaded.examples)] == ["test", "test", "dev", "dev"]


def test_another_configuration_of_the_repository_is_not_taken(tmp_path: Path) -> None:
    put(tmp_path / "super_glue" / "copa" / "validation-00000-of-00001.parquet", rows.COPA)
    put(tmp_path / "super_glue" / "copa" / "0.0.0" / "0f" / "super_glue-validation.arrow", rows.COPA)
    with pytest.raises(LoomError, match="boolq"):
        data.load(registry.task("boolq"), tmp_path)


def test_shards_are_read_in_order_and_none_may_be_missing(tmp_path: Path) -> None:
    for number, row in enumerate(rows.PIQA):
        put(tmp_path / "piqa" / "data" / f"validation-{number:05d}-of-00003.parquet", [row])
    loaded = data.load(registry.task("piqa"), tmp_path)
    assert [item.question[0] for item in loaded.items] == [row["goal"] for row in rows.PIQA]
    assert len(loaded.found[0].paths) == 3
    (tmp_path / "piqa" / "data" / "validation-00001-of-00003.parquet").unlink()
    with pytest.raises(LoomError, match="2 of the 3 files of this split; number 1 is missing"):
        data.load(registry.task("piqa"), tmp_path)


def test_parts_of_the_conversion_are_read_in_order(tmp_path: Path) -> None:
    for number, row in enumerate(rows.PIQA):
        put(tmp_path / "piqa" / "default" / "validation" / f"{number:04d}.parquet", [row])
    loaded = data.load(registry.task("piqa"), tmp_path)
    assert [item.question[0] for item in loaded.items] == [row["goal"] for row in rows.PIQA]
