"""Large files in pieces: the same rows whatever the cut, none lost and none twice."""

from __future__ import annotations

import gzip
import itertools
import random
import tempfile
from pathlib import Path
from typing import Any

import orjson
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from loom.corpus import documents, pieces
from loom.corpus.batch import make_batch
from loom.corpus.curate import curate
from loom.corpus.tag import Tag, tag
from loom.engine import LocalEngine
from loom.errors import LoomError
from loom.tokens import documents as token_documents
from tests.corpus.test_curate import corpus, recipe, texts


def framed(path: Path, data: bytes, cuts: list[int], checksum: bool = False) -> Path:
    """`data` as one zstd frame between each two of `cuts`."""
    pack = zstandard.ZstdCompressor(write_checksum=checksum).compress
    edges = [0, *sorted(cuts), len(data)]
    path.write_bytes(b"".join(pack(data[a:b]) for a, b in itertools.pairwise(edges)))
    return path


def lines(path: Path) -> list[bytes]:
    return list(documents.read_lines(path))


@settings(max_examples=150, deadline=None)
@given(
    rows=st.lists(st.text(st.characters(codec="ascii", exclude_characters="\n"), max_size=12), max_size=12),
    cuts=st.lists(st.integers(0, 120), max_size=6),
    last=st.booleans(),
    checksum=st.booleans(),
    groups=st.integers(1, 60),
)
def test_pieces_of_zstd_are_the_file(
    rows: list[str], cuts: list[int], last: bool, checksum: bool, groups: int
) -> None:
    data = "\n".join(rows).encode() + (b"\n" if last else b"")
    with tempfile.TemporaryDirectory() as folder:
        path = framed(Path(folder, "a.jsonl.zst"), data, [cut for cut in cuts if cut <= len(data)], checksum)
        ends = list(pieces.frames(path))
        assert ends[-1] == path.stat().st_size
        parts = pieces.split(path, path.stat().st_size, groups)
        assert [line for part in parts for line in lines(part)] == lines(path)


def rows(count: int) -> list[dict[str, Any]]:
    choose = random.Random(5)
    return [{"id": f"d{i}", "text": f"row {i} " * choose.randint(1, 30), "source": "s"} for i in range(count)]


def big(folder: Path, suffix: str, found: list[dict[str, Any]]) -> Path:
    path = folder / f"big{suffix}"
    path.parent.mkdir(parents=True, exist_ok=True)
    if suffix == ".parquet":
        batch = make_batch(found, range(1, len(found) + 1))
        pq.write_table(batch.table, path, row_group_size=37)
        return path
    data = b"".join(orjson.dumps(row) + b"\n" for row in found)
    return framed(path, data, [random.Random(9).randrange(len(data)) for _ in range(12)])


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl.zst"])
def test_tag_does_not_depend_on_the_cut(tmp_path: Path, suffix: str) -> None:
    big(tmp_path / "documents", suffix, rows(400))
    made = []
    for name, largest, workers in (("whole", 1 << 30, 1), ("cut", 400, 1), ("finer", 100, 3)):
        recipe = Tag((str(tmp_path / "documents"),), ("gopher_v2", "char_length_v1"), largest=largest)
        made.append(tag(recipe, tmp_path / name, LocalEngine(workers)))
        assert not (tmp_path / name / "pieces").exists()
    whole, cut, finer = made
    for one, other, third in zip(whole, cut, finer, strict=True):
        assert one.outputs == other.outputs == third.outputs
        assert one.counters == other.counters == third.counters
    assert whole[0].counters["documents"] == 400


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl.zst"])
def test_curate_does_not_depend_on_the_cut(tmp_path: Path, suffix: str) -> None:
    big(tmp_path / "raw" / "documents" / "s", suffix, [*corpus(), *rows(100)])
    whole = curate(recipe(tmp_path / "raw"), tmp_path / "whole", LocalEngine(1))
    cut = curate(recipe(tmp_path / "raw", largest=300), tmp_path / "cut", LocalEngine(2))
    again = curate(recipe(tmp_path / "raw", largest=300), tmp_path / "again", LocalEngine(1))
    assert len([item for item in cut.outputs if item.path.startswith("documents/")]) > 1
    assert texts(tmp_path / "cut") == texts(tmp_path / "whole")
    assert cut.counters == whole.counters
    assert cut.outputs == again.outputs


def test_one_frame_is_one_worker_s_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    documents.write(tmp_path / "documents" / "a.jsonl.zst", rows(50))
    (made,) = tag(
        Tag((str(tmp_path / "documents"),), ("char_length_v1",), largest=100), tmp_path, LocalEngine(2)
    )
    assert made.counters["documents"] == 50
    said = capsys.readouterr()
    assert "one worker reads it" in said.out + said.err


@pytest.mark.parametrize("log", [27, 28, 31])
def test_the_windows_of_published_dumps_are_read(tmp_path: Path, log: int) -> None:
    """Reddit's dumps are packed with a window of 2^31, where the library takes up to 2^27 unasked."""
    packer = zstandard.ZstdCompressor().compressobj()
    held = b"".join(orjson.dumps(row) + b"\n" for row in rows(30))
    data = bytearray(packer.compress(held) + packer.flush())
    data[5] = (log - 10) << 3  # the window's byte, behind the magic and the descriptor (RFC 8878, 3.1.1.1.2)
    assert zstandard.get_frame_parameters(bytes(data)).window_size == 1 << log
    path = tmp_path / "documents" / "RC.jsonl.zst"
    path.parent.mkdir()
    path.write_bytes(bytes(data) * 2)
    assert [len(batch) for batch in documents.read(path)] == [60]
    cut = pieces.split(path, path.stat().st_size, 1)
    assert [len(batch) for part in cut for batch in documents.read(part)] == [31, 29]
    files, _ = token_documents.find((str(path),), tmp_path)
    assert [len(found.ids) for found in token_documents.read(files[0], [])] == [60]


def test_every_suffix_is_read_by_every_step(tmp_path: Path) -> None:
    """By curation and tokenization alike, packed as the name says; zstd by either name is cut."""
    held = rows(60)
    data = b"".join(orjson.dumps(row) + b"\n" for row in held)
    packed = {"": data, "gz": gzip.compress(data, mtime=0), "zst": zstandard.compress(data)}
    for suffix in documents.JSON_SUFFIXES:
        path = tmp_path / f"d{suffix}" / f"a{suffix}"
        path.parent.mkdir()
        path.write_bytes(packed[suffix.partition(".")[2].partition(".")[2].removesuffix("d")])
        (file,), _ = token_documents.find((str(path.parent),), tmp_path)
        (found,) = token_documents.read(file, [])
        assert found.ids == [row["id"] for row in held]
        (again,) = documents.find_files([path.parent])
        assert [identity for batch in documents.read(again) for identity in batch.ids] == found.ids
    for suffix in (".jsonl.zst", ".jsonl.zstd"):
        path = framed(tmp_path / f"a{suffix}", data, list(range(0, len(data), 200)))
        parts = pieces.split(path, path.stat().st_size, 500)
        assert len(parts) > 2
        assert b"".join(line for part in parts for line in lines(part)) == data


def test_a_file_cut_short_is_named(tmp_path: Path) -> None:
    path = big(tmp_path, ".jsonl.zst", rows(100))
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(LoomError, match="cut short"):
        pieces.split(path, path.stat().st_size, 100)
