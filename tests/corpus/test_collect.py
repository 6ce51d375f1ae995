"""This machine's Python as documents: what is read from source, how much is taken, and always the same."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loom.corpus import documents
from loom.corpus.batch import as_rows
from loom.corpus.sources.docstrings import document, first_sentence
from loom.corpus.sources.html import html_to_text
from loom.corpus.sources.machine import standard_library
from loom.corpus.sources.python import SOURCES, Collect, collect, share_out
from loom.engine import LocalEngine
from loom.errors import LoomError

SOURCE = '''
"""Tools for weaving."""

def weave(threads, *, tight=True):
    """Weave the given threads into one piece of cloth.

    More about it.
    """

def _hidden():
    """Nobody should be asked about this function."""

try:
    class Loom:
        """A frame that holds threads."""

        def run(self):
            """weave(threads) -> cloth"""

        def stop(self):
            """Stop the machine at once. Then wait."""
except ImportError:
    pass
'''


def test_pages_and_functions_of_a_module() -> None:
    found = document(SOURCE, "craft.weaving")
    assert [page.name for page in found.pages] == ["craft.weaving", "craft.weaving.Loom"]
    assert found.pages[0].text.startswith(
        "craft.weaving\n\nTools for weaving.\n\ncraft.weaving.weave(threads, *, "
    )
    assert [(item.qualname, item.summary, item.page) for item in found.functions] == [
        ("weave", "Weave the given threads into one piece of cloth.", "craft.weaving"),
        ("Loom.stop", "Stop the machine at once.", "craft.weaving.Loom"),
    ]
    assert document("def broken(:", "x").pages == ()


@pytest.mark.parametrize("text", ["Short.", "f(x) -> y, of some kind", "", ">>> a b c d e", "x " * 200])
def test_what_is_no_sentence(text: str) -> None:
    assert first_sentence(text) is None


def test_html_to_text() -> None:
    page = (
        "<html><head><title>t</title></head><body><h1>A&amp;B</h1><p>one\n two<br>three</p><script>x</script>"
    )
    assert html_to_text(page + "<pre>a\n  b</pre></body>") == "A&B\n\none two\nthree\n\na\n  b\n"


@given(sizes=st.dictionaries(st.sampled_from(SOURCES), st.floats(0, 1e8), max_size=4))
def test_shares_fit_and_only_the_largest_are_cut(sizes: dict[str, float]) -> None:
    kept = share_out(sizes, limit=15e6, total=40e6)
    assert sum(kept.values()) <= 40e6 * (1 + 1e-9)
    assert all(kept[name] <= min(size, 15e6) * (1 + 1e-9) for name, size in sizes.items())
    cut = [name for name, size in sizes.items() if kept[name] < min(size, 15e6) * (1 - 1e-9)]
    if cut:
        level = max(kept.values())
        assert all(kept[name] == pytest.approx(level) for name in cut)
        assert sum(kept.values()) == pytest.approx(40e6)


def test_a_python_without_source_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(LoomError, match="no source of its standard library"):
        standard_library()


def test_unknown_source() -> None:
    with pytest.raises(ValueError, match="python-docs"):
        Collect(sources=("docs",))


@pytest.mark.slow
def test_the_same_bytes_from_any_number_of_workers(tmp_path: Path) -> None:
    recipe = Collect(sources=("python-docs", "packages", "code"), limit_mb=1.0, total_mb=2.5, seed=3)
    first = collect(recipe, tmp_path / "one", LocalEngine(1))
    second = collect(recipe, tmp_path / "two", LocalEngine(2))
    assert first.digest == second.digest
    assert first.counters["bytes"] <= 2.5e6
    rows = [
        row
        for path in documents.find_files([tmp_path / "one" / "documents"])
        for batch in documents.read(path)
        for row in as_rows(batch)
    ]
    ids = [row["id"] for row in rows]
    assert len(set(ids)) == len(ids) == first.counters["documents"]
    assert {"path", "licence"} <= rows[0]["metadata"].keys()
    functions = [orjson.loads(line) for line in documents.read_lines(tmp_path / "one" / "functions.jsonl")]
    assert len({item["name"] for item in functions}) == len(functions) > 1000
    taken = {row["id"] for row in rows}
    assert all(item["package"] == "stdlib" or item["document"] in taken for item in functions)
