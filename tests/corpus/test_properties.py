"""What holds for any text: spans lie in it, neighbours and splits do not matter, masks leave nothing behind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loom.corpus import documents, taggers
from loom.corpus.batch import as_rows, make_batch
from loom.corpus.curate import curate
from loom.corpus.mix import Edit, apply, merge
from loom.engine import LocalEngine
from loom.errors import LoomError
from tests.corpus.test_curate import BLOCK, prose, recipe
from tests.corpus.test_curate import texts as by_id

NAMES = ("gopher_v2", "c4_v2", "pii_v1", "pii_regex_with_counts_fast_v2", "repetition_v1")
PIECES = st.sampled_from(
    ["\r\n", "\n", "\n\n", "İ", "i̇", "😀", "👩‍👩‍👧", "\x00", "\u2028", "\ufeff", "𝒳",
     " ", "…", "#", "* ", "- ", ".", "a@b.co ",
     "10.0.0.1 ", " 206-555-0100 ", "lorem ipsum ", "{", "javascript", "the and of to ", "word ", BLOCK]
)  # fmt: skip
SURROGATES: Any = ("Cs",)
TEXT = st.lists(
    st.one_of(PIECES, st.text(st.characters(exclude_categories=SURROGATES), max_size=12)), max_size=25
).map("".join)


def spans(texts: list[str], name: str) -> list[dict[str, Any]]:
    """Each document's spans by key."""
    batch = make_batch([{"id": str(i), "text": t} for i, t in enumerate(texts)], list(range(len(texts))))
    found = taggers.get(name)(taggers.Texts(batch))
    return [{key: value.of(row) for key, value in found.items()} for row in range(len(texts))]


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=60, deadline=None)
@given(texts=st.lists(TEXT, min_size=1, max_size=5))
def test_spans_lie_in_their_text_and_neighbours_do_not_matter(name: str, texts: list[str]) -> None:
    together = spans(texts, name)
    for text, found in zip(texts, together, strict=True):
        size = len(text.lower()) if name == "c4_v2" else len(text)  # Dolma's places in the lower-cased text
        assert found == spans([text], name)[0]
        for key, value in found.items():
            for start, end, score in value or []:
                assert 0 <= start <= end <= size, key
                assert score == score  # a number


@settings(max_examples=100, deadline=None)
@given(text=TEXT, cuts=st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=6))
def test_masked_text_never_survives(text: str, cuts: list[tuple[int, int]]) -> None:
    edits = [Edit(min(a, b), min(max(a, b), len(text)), "|", "k") for a, b in cuts if min(a, b) < len(text)]
    gone = {at for edit in edits for at in range(edit.start, edit.end)}
    left = "".join(letter for at, letter in enumerate(text) if at not in gone)
    assert apply(text, merge(edits)).replace("|", "") == left.replace("|", "")
    assert apply(text, merge(edits)) == apply(text, merge(reversed(edits)))


@settings(max_examples=60, deadline=None)
@given(
    texts=st.lists(TEXT, max_size=6), kind=st.sampled_from([".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet"])
)
def test_files_give_back_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], kind: str
) -> None:
    path = tmp_path_factory.mktemp("file") / f"documents{kind}"
    rows = [
        {"id": f"é{i}", "text": text, "source": "s", "metadata": {"n": i}} for i, text in enumerate(texts)
    ]
    if kind == ".parquet":
        import pyarrow.parquet as pq

        pq.write_table(make_batch(rows, list(range(len(rows)))).table, path)
    else:
        documents.write(path, rows)
    assert [row for batch in documents.read(path) for row in as_rows(batch)] == rows


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(TEXT, min_size=2, max_size=12), parts=st.integers(2, 4), seed=st.integers(0, 9))
def test_curation_does_not_depend_on_workers_or_split(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], parts: int, seed: int
) -> None:
    root = tmp_path_factory.mktemp("curate")
    rows = [{"id": f"d{i}", "text": text, "source": "s"} for i, text in enumerate([*texts, prose(seed)])]
    made = []
    for name, count, workers in (("whole", 1, 1), ("parts", parts, 3)):
        size = -(-len(rows) // count)
        for part in range(count):
            file = root / name / "documents" / "s" / f"part-{part}.jsonl.zst"
            documents.write(file, rows[part * size : (part + 1) * size])
        artifact = curate(
            recipe(root / name, dedupe={"unit": "line", "fewest_words": 1}),
            root / f"{name}-out",
            LocalEngine(workers),
        )
        removed = root / f"{name}-out" / "removed"
        made.append((artifact.counters, by_id(artifact.path), _removed(removed)))
    assert made[0] == made[1]


def _removed(folder: Path) -> dict[str, Any]:
    try:
        return {
            row["id"]: row
            for path in documents.find_files([folder])
            for row in map(orjson.loads, documents.read_lines(path))
        }
    except LoomError:
        return {}  # nothing was removed


LARGE = """
import sys
from pathlib import Path
from loom.corpus.dolma import config
from loom.corpus.dolma.deduping import dedupe
from loom.corpus.tag import Tag, tag
from loom.engine import LocalEngine
root = Path(sys.argv[1])
tag(Tag((str(root / "documents"),), ("gopher_v2", "c4_v2", "pii_v1", "repetition_v1")), root, LocalEngine(1))
rules = config.Dedupe("bff", paragraphs=config.Paragraphs("bff"), skip_empty=True)
bloom = config.Bloom("", False, estimated_doc_count=10_000)
dedupe(config.Deduper((str(root / "documents"),), rules, bloom), "", LocalEngine(1))
# Of this program alone: `ru_maxrss` would begin with what the process that started it held.
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@pytest.mark.slow
def test_a_line_of_fifty_megabytes_takes_bounded_memory(tmp_path: Path) -> None:
    """One document without a line break: 50 MB. What the stages hold at once stays below 20 times that."""
    text = (prose(1, 2000) + " ") * 4500
    text = text[: 50 << 20]
    assert len(text) == 50 << 20
    # First one of 1 MB, so that what is measured compiles no kernel.
    for name, size in (("short", 1 << 20), ("long", 50 << 20)):
        rows = [
            {"id": "long", "text": text[:size], "source": "s"},
            {"id": "short", "text": "one two", "source": "s"},
        ]
        documents.write(tmp_path / name / "documents" / "a.jsonl.zst", rows)
        ran = subprocess.run(
            [sys.executable, "-c", LARGE, str(tmp_path / name)], check=True, capture_output=True, timeout=600
        )
    assert int(ran.stdout.split()[-1]) < 1_000_000  # kilobytes
    (row, _) = [
        orjson.loads(line)["attributes"]
        for line in documents.read_lines(tmp_path / "long" / "attributes" / "gopher_v2" / "a.jsonl.zst")
    ]
    assert row["gopher_v2__gopher_v2__word_count"] == [[0, 50 << 20, float(len(text.split()))]]
