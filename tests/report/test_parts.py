"""The parts of the page: numbers, curves, flow, lineage, energy."""

from __future__ import annotations

import itertools
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loom.artifact import Lineage
from loom.report import ancestry, energy, figures, flow
from loom.report.data import Amount, Flow, Node, Rule
from loom.report.html import Html, el, join
from tests.report import synthetic


@given(st.text())
def test_escaped_text_comes_back(text: str) -> None:
    from html import unescape

    markup = el("p", text, title=text)
    assert re.fullmatch(r"<p title=\"[^\"<>]*\">[^<>]*</p>", markup, re.DOTALL)
    assert unescape(markup[markup.index(">") + 1 : -4]) == text
    assert join(Html("<b>"), text) == "<b>" + el("i", text)[3:-4]


@given(st.floats(-1e6, 1e6), st.floats(1e-2, 1e9), st.integers(2, 10))
def test_ticks_are_round_few_and_inside(low: float, span: float, most: int) -> None:
    high = low + span
    found = figures.ticks(low, high, most)
    assert len(found) <= most + 1
    assert all(low - span * 1e-6 <= t <= high + span * 1e-6 for t in found)
    gaps = [b - a for a, b in itertools.pairwise(found)]
    assert all(math.isclose(gap, gaps[0], rel_tol=1e-3) for gap in gaps)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=3000))
def test_thinning_keeps_ends_and_extremes(values: list[float]) -> None:
    points = [(float(i), v) for i, v in enumerate(values)]
    kept = figures.thin(points, 200)
    assert len(kept) <= max(204, min(len(points), 200))
    assert set(kept) <= set(points)
    assert kept[0] == points[0]
    assert kept[-1] == points[-1]
    assert min(v for _, v in kept) == min(values)
    assert max(v for _, v in kept) == max(values)


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=60), st.integers(1, 15))
def test_moving_average_is_brute_force(values: list[float], width: int) -> None:
    for i, got in enumerate(figures.smooth(values, width)):
        reach = min(width // 2, i, len(values) - 1 - i)
        part = values[i - reach : i + reach + 1]
        assert math.isclose(got, math.fsum(part) / len(part), abs_tol=1e-9)


def test_threads_are_as_wide_as_the_amounts() -> None:
    """Widths in the picture are shares of the raw bytes: at the top, in each bar, at the bottom."""
    made = synthetic.flow()
    picture = flow.draw(made)
    part = picture[picture.index('class="threads bytes"') : picture.index('class="threads documents"')]
    ends = [
        (float(a), float(b), title)
        for title, a, b in re.findall(r"<title>([^<]*)</title></path>|M([\d.]+) [\d.]+H([\d.]+)V", part)
        if a
    ]
    widths = [b - a for a, b, _ in ends]
    raw = [amount.bytes for amount in made.raw.values()]
    unit = (flow.SPINE - flow.GAP * (len(raw) - 1)) / sum(raw)
    for width, amount in zip(widths[-8:-4], raw, strict=True):
        assert width == pytest.approx(amount * unit, abs=0.02)
    for width, kept in zip(widths[-4:], made.kept.values(), strict=True):
        assert width == pytest.approx(kept.bytes * unit, abs=0.02)


@given(
    st.lists(
        st.tuples(st.integers(0, 500), st.integers(0, 500), st.integers(0, 500)), min_size=1, max_size=5
    ),
    st.integers(0, 2000),
)
def test_balance_closes_every_flow(removed: list[tuple[int, int, int]], kept: int) -> None:
    rules = tuple(Rule(str(i), {"a": Amount(d, b), "b": Amount(0, c)}) for i, (d, b, c) in enumerate(removed))
    closed = flow.balance(
        Flow({"a": Amount(3000, 3000), "b": Amount(1, 4000)}, rules, {"a": Amount(kept, kept)})
    )
    for source in closed.raw:
        gone = flow.total({str(i): r.removed.get(source, Amount()) for i, r in enumerate(closed.rules)})
        assert closed.raw[source] - gone == closed.kept.get(source, Amount())


def test_every_box_is_below_what_it_was_made_from() -> None:
    graph = synthetic.lineage()
    depth = ancestry.depths(graph)
    for node in graph:
        assert all(depth[parent] < depth[node.id] for parent in node.parents)
    drawn = ancestry.draw(graph)
    assert drawn.count('class="node') == len(graph)
    assert drawn.count('class="edge"') == sum(len(node.parents) for node in graph)


def test_boxes_do_not_overlap() -> None:
    drawn = ancestry.draw(synthetic.lineage())
    boxes = [
        tuple(map(float, found))
        for found in re.findall(r"left:([\d.]+)%;width:([\d.]+)%;top:([\d.]+)px", drawn)
    ]
    for i, (left, width, top) in enumerate(boxes):
        assert left >= -0.1
        assert left + width <= 100.1
        for other_left, _, other_top in boxes[i + 1 :]:
            assert top != other_top or abs(left - other_left) >= width


def test_a_cycle_in_records_still_draws() -> None:
    graph = (Node("a", "run", "a", parents=("b",)), Node("b", "run", "b", parents=("a",)))
    assert ancestry.draw(graph).count('class="node') == 2


def test_raw_files_of_an_artifact_are_one_node(tmp_path: object) -> None:
    from pathlib import Path

    files = tuple(Lineage(Path(f"/data/{i}.txt"), "", "file", stale=False) for i in range(40))
    raw = Lineage(Path("/run/raw"), "d" * 32, "documents", stale=False, parents=files)
    run = Lineage(Path("/run/run"), "e" * 32, "run", stale=False, parents=(raw, raw))
    found = {node.name: node for node in ancestry.nodes(run)}
    assert set(found) == {"run", "raw", "40 raw files"}
    assert found["run"].parents == (found["raw"].id,)


def test_a_checkpoint_is_named_by_its_run_and_step() -> None:
    from pathlib import Path

    made = Lineage(Path("/r/pretrain/checkpoints/step-00001015"), "d" * 32, "checkpoint", stale=False)
    assert [node.name for node in ancestry.nodes(made)] == ["pretrain, step 1015"]


def test_axis_labels_tell_small_numbers_apart() -> None:
    labels = [figures.tick(value) for value in figures.ticks(0, 2e-4, 5)]
    assert len(set(labels)) == len(labels)


def test_carbon_reproduces_the_published_figure() -> None:
    """OLMo 7B on A100 (Groeneveld et al. 2024, appendix B): 104 MWh, PUE 1.1, 0.610 kg a kWh: 69.78 t."""
    assert round(energy.carbon(104_000, 1.1, 0.610) / 1000, 2) == 69.78


@given(st.floats(0, 1000), st.integers(2, 200), st.floats(0.01, 10))
def test_constant_power_is_power_times_time(watts: float, count: int, gap: float) -> None:
    samples = [(i * gap, watts) for i in range(count)]
    assert energy.integrate(samples) == pytest.approx(watts * gap * (count - 1) / 3.6e6)


def test_estimate_says_that_it_is_one() -> None:
    made = energy.estimate(3600, 2, energy.Grid(pue=1.5, carbon_intensity=0.5, source="a grid"))
    assert not made.measured
    assert made.kwh == pytest.approx(0.02)
    assert made.kg_co2 == pytest.approx(0.02 * 1.5 * 0.5)
    assert "Estimated" in made.how
