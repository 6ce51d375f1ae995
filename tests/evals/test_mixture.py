"""Another mixture from stored sums: what is one, and what its names may be."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from loom.errors import LoomError
from loom.evals.mixture import parse_mix, reweigh

ROWS = [("gab", "gab", 70.0), ("c4", "news", 50.0), ("c4", "sport", 10.0), ("c4", "sport", 30.0)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    lines = [
        {"id": str(i), "source": source, "domain": domain, "nll": nll, "end": 1.0, "tokens": 9, "bytes": 100}
        for i, (source, domain, nll) in enumerate(ROWS)
    ]
    (tmp_path / "text.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


@pytest.mark.parametrize(
    ("mix", "why"),
    [
        ("web=nan,wiki=1", "'web=nan' is no name with a share"),
        ("web=inf", "'web=inf'"),
        ("web=-1,wiki=2", "'web=-1'"),
        ("web", "'web'"),
        ("=1", "'=1'"),
        ("web=1,,wiki=1", "''"),
        ("web=0", "add up to 0"),
        ("web=1e308,wiki=1e308", "add up to inf"),
        ("web=1,wiki=1,web=3", "web is named twice"),
    ],
)
def test_what_is_no_mixture_is_refused(mix: str, why: str) -> None:
    with pytest.raises(LoomError, match=f"is no mixture.*{why}"):
        parse_mix(mix)


def test_a_source_is_the_documents_of_its_domains_together(folder: Path) -> None:
    found = reweigh(folder, "gab=1,c4=3")
    assert found.bits_per_byte == pytest.approx((0.25 * 70 / 100 + 0.75 * 90 / 300) / math.log(2))
    assert found.shares == {"gab": 0.25, "c4": 0.75}
    assert found.stderr is None and found.alone == "gab"
    assert reweigh(folder, "sport=1").stderr is not None


def test_no_document_counts_twice(folder: Path) -> None:
    for mix in ("c4=1,sport=1", "all=1,gab=1"):
        with pytest.raises(LoomError, match="share documents"):
            reweigh(folder, mix)


def test_an_unknown_name_is_answered_with_near_ones_not_with_all(tmp_path: Path) -> None:
    line = {"source": "reddit", "nll": 1.0, "end": 1.0, "tokens": 1, "bytes": 4}
    rows = [{**line, "id": str(i), "domain": f"sub{i:03d}"} for i in range(500)]
    (tmp_path / "text.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(LoomError, match="no domain 'redit'; it has reddit, sub000, .* and 493 more") as error:
        reweigh(tmp_path, "redit=1")
    assert len(str(error.value)) < 300


def test_a_domain_without_text_has_no_figure(tmp_path: Path) -> None:
    line = {"id": "1", "source": "a", "domain": "a", "nll": 0.0, "end": 1.0, "tokens": 0, "bytes": 0}
    (tmp_path / "text.jsonl").write_text(json.dumps(line))
    with pytest.raises(LoomError, match="of 0 bytes"):
        reweigh(tmp_path, "a=1")
