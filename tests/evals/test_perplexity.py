"""Every token once, each from as much as the model can read; sums by domain."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loom.cli import main
from loom.evals import paloma
from loom.evals.perplexity import (
    Document,
    DocumentScore,
    bootstrap_ratio,
    reweighted,
    score_documents,
    summary,
    table,
    windows,
)
from loom.model.transformer import Transformer
from tests.evals.conftest import brute_force, rng

EOS = 260


@given(st.integers(0, 40), st.integers(1, 12))
def test_windows_predict_every_token_once(count: int, length: int) -> None:
    tokens = list(range(count))
    rows = windows(tokens, EOS, length, 0, 1)
    predicted = [int(t) for row in rows for t, key in zip(row.targets, row.keys, strict=True) if key == 0]
    assert predicted == tokens
    ends = [int(t) for row in rows for t, key in zip(row.targets, row.keys, strict=True) if key == 1]
    assert ends == [EOS]
    whole = [EOS, *tokens, EOS]
    for row in rows:
        assert 0 < len(row) <= length
        read = [*row.tokens, row.targets[-1]]
        assert any(list(read) == whole[i : i + len(read)] for i in range(len(whole)))


def test_the_last_window_reads_a_full_context() -> None:
    """The worked example of the harness: context 4, ten tokens."""
    rows = windows(range(10), EOS, 4)
    assert [list(row.tokens) for row in rows] == [[EOS, 0, 1, 2], [3, 4, 5, 6], [5, 6, 7, 8]]
    assert [list(row.targets) for row in rows] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_equal_to_brute_force(model: Transformer) -> None:
    tokens = rng().integers(0, 256, 21)
    document = Document("d", "s", "s", tokens, 30)
    (score,) = score_documents(model, [document], EOS, 8)
    ids = [EOS, *map(int, tokens)]
    text = [(0, 1, 9), (8, 9, 17), (13, 17, 22)]  # windows of 8: first token read, first and last predicted
    expected = -sum(brute_force(model, ids[first:start], ids[start:end]) for first, start, end in text)
    assert score.nll == pytest.approx(expected, abs=1e-4)
    assert score.end == pytest.approx(-brute_force(model, ids[-8:], [EOS]), abs=1e-4)


SCORES = [
    DocumentScore("1", "web", "web-a", 10.0, 1.0, 9, 20),
    DocumentScore("2", "web", "web-b", 30.0, 1.0, 19, 40),
    DocumentScore("3", "web", "web-b", 5.0, 1.0, 4, 10),
    DocumentScore("4", "books", "books", 50.0, 2.0, 30, 60),
]


def test_figures_are_ratios_of_sums() -> None:
    figures = table(SCORES)
    assert figures["web-b"]["bits_per_byte"] == pytest.approx(35 / (50 * math.log(2)))
    assert figures["web"]["bits_per_byte"] == pytest.approx(45 / (70 * math.log(2)))
    assert figures["web"]["macro_bits_per_byte"] == pytest.approx((10 / 20 + 35 / 50) / 2 / math.log(2))
    assert figures["all"]["bytes"] == 130
    assert figures["all"]["loss"] == pytest.approx((95 + 5) / (62 + 4))
    assert list(figures) == ["books", "web-a", "web-b", "web", "all"]


def test_domains_of_one_name_in_two_sources_stay_apart() -> None:
    """RedPajama's `c4` is not Dolma's `c4`."""
    scores = [
        DocumentScore("1", "redpajama", "c4", 10.0, 1.0, 9, 20),
        DocumentScore("2", "redpajama", "arxiv", 10.0, 1.0, 9, 10),
        DocumentScore("3", "dolma", "c4", 30.0, 1.0, 19, 40),
    ]
    figures = table(scores)
    assert set(figures) == {"redpajama/c4", "dolma/c4", "arxiv", "redpajama", "dolma", "all"}
    assert figures["redpajama/c4"]["bits_per_byte"] == pytest.approx(10 / (20 * math.log(2)))
    assert figures["all"]["domains"] == 3
    assert figures["all"]["macro_bits_per_byte"] == pytest.approx(
        (10 / 20 + 10 / 10 + 30 / 40) / 3 / math.log(2)
    )


def test_a_sources_own_row_is_not_lost_behind_a_domain_of_its_name() -> None:
    """Dolma's `c4` beside a source `c4` of two domains; and a source one of whose domains is called as it is."""
    scores = [
        DocumentScore("1", "dolma", "c4", 10.0, 1.0, 9, 20),
        DocumentScore("2", "dolma", "wiki", 10.0, 1.0, 9, 10),
        DocumentScore("3", "c4", "sport", 30.0, 1.0, 19, 40),
        DocumentScore("4", "c4", "news", 20.0, 1.0, 19, 40),
        DocumentScore("5", "gab", "gab", 20.0, 1.0, 19, 40),
        DocumentScore("6", "gab", "late", 40.0, 1.0, 19, 40),
        DocumentScore("7", "ptb", "ptb", 40.0, 1.0, 19, 40),
    ]
    figures = table(scores)
    assert set(figures) == {
        "dolma/c4",
        "wiki",
        "dolma",
        "sport",
        "news",
        "c4",
        "gab/gab",
        "late",
        "gab",
        "ptb",
        "all",
    }
    for source, bits, domains in (("c4", 50 / 80, 2), ("gab", 60 / 80, 2), ("dolma", 20 / 30, 2)):
        assert figures[source]["bits_per_byte"] == pytest.approx(bits / math.log(2))
        assert figures[source]["domains"] == domains
    assert "domains" not in figures["ptb"]
    assert reweighted(scores, {"dolma/c4": 1})[0] == pytest.approx(10 / 20 / math.log(2))


def test_the_eleven_are_combined_where_all_are_of_one_split() -> None:
    scores = [DocumentScore(str(i), name, f"d{i}", 1.0, 0.0, 1, 1) for i, name in enumerate(paloma.COMBINED)]
    splits = dict.fromkeys(paloma.COMBINED, "test")
    assert table(scores, splits=splits)[paloma.NAME]["n"] == 11
    assert paloma.why_not(splits) is None
    for other, why in (("val", "val of ptb"), ("", "no split of ptb")):
        assert paloma.NAME not in table(scores, splits=splits | {"ptb": other})
        assert why in str(paloma.why_not(splits | {"ptb": other}))
    assert paloma.NAME not in table(scores[1:], splits=splits)
    assert paloma.why_not(dict.fromkeys(paloma.COMBINED[1:], "test")) == ""
    assert paloma.NAME not in table(scores)  # of files that lie in no split


def test_another_mix_of_domains() -> None:
    bits = {
        name: float(summary([s for s in SCORES if s.domain == name])["bits_per_byte"])
        for name in ("web-a", "books")
    }
    value, error = reweighted(SCORES, {"web-a": 3, "books": 1})
    assert value == pytest.approx(0.75 * bits["web-a"] + 0.25 * bits["books"])
    assert error is None  # books is one document


def test_the_error_of_a_mixture_is_that_of_its_domains_drawn_apart() -> None:
    """Against drawing both domains' documents anew, many times."""
    random = rng()
    scores = [
        DocumentScore(str(i), name, name, float(bits) * math.log(2), 0.0, 1, 1)
        for name, centre in (("a", 1.0), ("b", 3.0))
        for i, bits in enumerate(random.normal(centre, 0.5, 60))
    ]
    value, error = reweighted(scores, {"a": 1, "b": 3})
    sides = [np.array([s.nll / math.log(2) for s in scores if s.domain == name]) for name in ("a", "b")]
    draws = [random.choice(side, (2000, 60)).mean(axis=1) for side in sides]
    assert value == pytest.approx(0.25 * sides[0].mean() + 0.75 * sides[1].mean())
    assert error == pytest.approx((0.25 * draws[0] + 0.75 * draws[1]).std(), rel=0.1)


def test_the_bootstrap_error_is_that_of_the_mean_where_documents_are_equally_long() -> None:
    values = rng().normal(1.0, 0.5, 400)
    error = bootstrap_ratio(values, np.ones(400))
    assert error == pytest.approx(values.std(ddof=1) / 20, rel=0.1)


def test_another_mixture_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Half of each of two domains lies half-way between them; an unknown domain is named."""
    rows = [("web", 70.0, 100), ("web", 50.0, 100), ("wiki", 30.0, 50)]
    lines = [
        {"id": str(i), "source": name, "domain": name, "nll": nll, "end": 1.0, "tokens": 10, "bytes": size}
        for i, (name, nll, size) in enumerate(rows)
    ]
    (tmp_path / "text.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(SystemExit) as ended:
        main(["eval", str(tmp_path), "--reweight", "web=1,wiki=1", "--json"])
    assert ended.value.code in (0, None)
    value = json.loads(capsys.readouterr().out.splitlines()[-1])["bits_per_byte"]
    assert value == pytest.approx((120 / 200 + 30 / 50) / 2 / math.log(2))
    with pytest.raises(SystemExit) as ended:
        main(["eval", str(tmp_path), "--reweight", "news=1"])
    assert ended.value.code == 1


def test_a_mixture_of_domains_of_one_name_takes_them_as_they_are_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """RedPajama's c4 is not pooled with another's."""
    rows = [("redpajama", "c4", 70.0), ("dolma", "c4", 30.0), ("redpajama", "arxiv", 50.0)]
    lines = [
        {"id": str(i), "source": source, "domain": domain, "nll": nll, "end": 1.0, "tokens": 10, "bytes": 100}
        for i, (source, domain, nll) in enumerate(rows)
    ]
    (tmp_path / "text.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for mix, bits in (("redpajama/c4=1", 0.7), ("dolma/c4=1", 0.3), ("dolma/c4=1,arxiv=1", 0.4)):
        with pytest.raises(SystemExit) as ended:
            main(["eval", str(tmp_path), "--reweight", mix, "--json"])
        assert ended.value.code in (0, None)
        value = json.loads(capsys.readouterr().out.splitlines()[-1])["bits_per_byte"]
        assert value == pytest.approx(bits / math.log(2))
    with pytest.raises(SystemExit) as ended:
        main(["eval", str(tmp_path), "--reweight", "c4=1"])
    assert ended.value.code == 1
    assert "no domain 'c4'; it has arxiv, dolma/c4, redpajama/c4" in " ".join(capsys.readouterr().err.split())
