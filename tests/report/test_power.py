"""Energy: sampled where it can be, an estimate that says so where not; the published figure."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from loom.cli import app
from loom.errors import LoomError
from loom.report.data import save
from loom.report.energy import Given, Grid, carbon, estimate, grid_of, of_run, on
from loom.report.power import POWER, integrate, measured, processors, sampled
from loom.report.records import read_records
from loom.train.callbacks import MetricsFile, RunInfo
from loom.train.config import EnergyConfig
from tests.report import synthetic


def test_the_formula_gives_the_published_figure() -> None:
    """Groeneveld et al. 2024, appendix B: 104 MWh, PUE 1.1, 0.610 kg a kWh are 69.78 t."""
    assert carbon(104_000, 1.1, 0.610) / 1000 == pytest.approx(69.78, abs=0.005)
    assert carbon(135_000, 1.1, 0.0) == 0


def test_constant_power_is_power_times_time() -> None:
    assert integrate([(t, 250.0) for t in range(3601)]) == pytest.approx(0.25)


def test_samples_are_taken_and_sessions_do_not_join(tmp_path: Path) -> None:
    for _ in range(2):
        with sampled(tmp_path, 0.01, {"devices": lambda: 100.0, "processors": lambda: 50.0}) as running:
            assert running
            while (
                len((tmp_path / POWER).read_text().splitlines()) < 3 if (tmp_path / POWER).exists() else True
            ):
                time.sleep(0.01)
            time.sleep(0.05)
    rows = [json.loads(line) for line in (tmp_path / POWER).read_text().splitlines()]
    sessions = {row["session"] for row in rows}
    assert len(sessions) == 2
    assert {row["watts"] for row in rows} == {150.0}
    spans = [[r["seconds"] for r in rows if r["session"] == s] for s in sessions]
    found = measured(tmp_path)
    assert found is not None
    assert found[0] == pytest.approx(sum(max(s) - min(s) for s in spans) * 150 / 3.6e6)
    assert "devices and processors" in found[1]


def test_without_anything_to_read_nothing_is_written(tmp_path: Path) -> None:
    with sampled(tmp_path, sources={}) as running:
        assert not running
    assert not (tmp_path / POWER).exists()
    made = of_run(tmp_path, 3600, Grid(1.2, 0.1, "a grid"))
    assert not made.measured
    assert made.how.startswith("Estimated")
    assert made.kg_co2 == pytest.approx(made.kwh * 1.2 * 0.1)


def test_processor_counters_become_watts(tmp_path: Path) -> None:
    for name in ("intel-rapl:0", "intel-rapl:1", "intel-rapl:0:0"):  # the last is part of the first
        (tmp_path / name).mkdir()
        (tmp_path / name / "energy_uj").write_text("1000")
        (tmp_path / name / "max_energy_range_uj").write_text("2000")
    watts = processors(tmp_path)
    assert watts is not None
    assert watts() is None, "one reading is no difference"
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("500")  # began anew: 1,500 µJ
    begun = time.monotonic()
    value = watts()
    assert value is not None
    assert value > 0
    assert value * (time.monotonic() - begun + 10) > 1.5e-3
    assert processors(tmp_path / "none") is None


def test_another_grid_is_the_same_energy() -> None:
    first = estimate(100, 4, Grid())
    moved = on(first, Grid(1.5, 0.2, "there"))
    assert (moved.kwh, moved.how, moved.measured) == (first.kwh, first.how, first.measured)
    assert moved.kg_co2 == pytest.approx(first.kwh * 1.5 * 0.2)


def test_the_recipe_says_where_the_power_comes_from() -> None:
    said = {"energy": {"pue": 1.1, "carbon_intensity": 0.61, "source": "the operator"}}
    assert grid_of(said) == Grid(1.1, 0.61, "the operator")
    assert grid_of({"energy": {"pue": 1.2}}) == Grid(1.2)
    assert grid_of({}) == Grid()


@pytest.mark.parametrize("values", [{"pue": 0.9}, {"carbon_intensity": -1.0}])
def test_what_no_grid_can_be_is_refused(values: dict[str, float]) -> None:
    with pytest.raises(LoomError):
        Grid(**values)  # type: ignore[arg-type]
    with pytest.raises(LoomError, match=next(iter(values))):
        EnergyConfig(**values)  # type: ignore[arg-type]


def test_a_training_runs_page_has_its_energy(tmp_path: Path) -> None:
    rows = [{"step": i, "loss": 3.0, "lr": 0.1, "tokens": i, "seconds": 60.0 * i} for i in range(1, 4)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = read_records(tmp_path, Given(1.1, 0.61, "a site"))
    assert found.energy is not None
    assert not found.energy.measured
    assert found.energy.source == "a site"
    samples = [{"session": 1, "seconds": float(t), "watts": 3600.0, "of": ["devices"]} for t in range(11)]
    (tmp_path / POWER).write_text("".join(json.dumps(row) + "\n" for row in samples) + '{"session": 1, "sec')
    found = read_records(tmp_path, Given(1.1, 0.61, "a site"))
    assert found.energy is not None
    assert found.energy.measured
    assert found.energy.kwh == pytest.approx(0.01)


def test_one_node_stands_for_all(tmp_path: Path) -> None:
    rows = [{"session": 1, "seconds": s, "watts": 100.0, "of": ["devices"], "nodes": 4} for s in (0.0, 36.0)]
    rows += [{"session": 2, "seconds": s, "watts": 100.0, "of": ["devices"]} for s in (0.0, 36.0)]
    (tmp_path / POWER).write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = measured(tmp_path)
    assert found is not None
    assert found[0] == pytest.approx(0.005), "4 nodes at 1 Wh, then one"
    assert "one of 4 nodes" in found[1]


def test_the_number_of_nodes_is_written_down(tmp_path: Path) -> None:
    with sampled(tmp_path, 0.01, {"devices": lambda: 1.0}, nodes=3):
        while not (tmp_path / POWER).exists() or not (tmp_path / POWER).read_text().count("\n"):
            time.sleep(0.01)
    assert json.loads((tmp_path / POWER).read_text().splitlines()[0])["nodes"] == 3


def test_a_run_on_accelerators_is_estimated_by_their_boards(tmp_path: Path) -> None:
    """8 MI250X halves for an hour are 2.24 kWh; of a device that is not known nothing is said."""
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1, "loss": 2.0, "seconds": 3600.0}) + "\n")
    (tmp_path / "run.json").write_text(json.dumps({"device": "AMD Instinct MI250X", "ranks": 8}))
    found = read_records(tmp_path)
    assert found.energy is not None
    assert not found.energy.measured
    assert found.energy.kwh == pytest.approx(8 * 0.280)
    assert "8 x AMD Instinct MI250X at their most, 280 W each" in found.energy.how
    assert found.environment["ran on"] == "8 x AMD Instinct MI250X"
    (tmp_path / "run.json").write_text(json.dumps({"device": "Some Accelerator", "ranks": 8}))
    assert read_records(tmp_path).energy is None
    (tmp_path / "run.json").write_text(json.dumps({"device": "cpu", "ranks": 1}))
    cores = read_records(tmp_path).energy
    assert cores is not None
    assert "cores at 10 W" in cores.how


def test_what_is_given_goes_before_the_recipe_part_by_part() -> None:
    said = {"energy": {"pue": 1.1, "carbon_intensity": 0.61, "source": "the operator"}}
    assert grid_of(said, Given()) == grid_of(said)
    made = grid_of(said, Given(carbon_intensity=0.3))
    assert made == Grid(1.1, 0.3, "carbon intensity as given to loom report")
    made = grid_of(said, Given(pue=2.0, by="loom card"))
    assert made == Grid(2.0, 0.61, "the operator; PUE as given to loom card")
    assert grid_of(said, Given(2.0, 0.3, "a person")) == Grid(2.0, 0.3, "a person")
    assert grid_of({}, Given(2.0)).source.startswith(Grid().source)


@pytest.mark.parametrize("words", [["--pue", "0"], ["--pue", "0.9"], ["--carbon", "-1"]])
def test_a_grid_that_cannot_be_is_refused_on_the_command_line(tmp_path: Path, words: list[str]) -> None:
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1, "loss": 2.0, "seconds": 60.0}) + "\n")
    done = CliRunner().invoke(app, ["report", str(tmp_path), *words])
    assert isinstance(done.exception, LoomError)
    assert words[1] in str(done.exception)


def test_a_quickstarts_own_grid_holds_where_no_other_is_given(tmp_path: Path) -> None:
    data = replace(synthetic.report(), energy=estimate(100, 4, Grid(1.2, 0.5, "there")))
    save(tmp_path / "report.json", data)
    for given, grid in (
        (Given(), Grid(1.2, 0.5, "there")),
        (Given(pue=1.5, source="a person"), Grid(1.5, 0.5, "a person")),
    ):
        assert read_records(tmp_path, given).energy == estimate(100, 4, grid)


def test_a_resumed_runs_sessions_add_up(tmp_path: Path) -> None:
    """`seconds` begins anew with every process: 30 s, then 20 s, then 5 s."""
    spent = (10.0, 30.0, 8.0, 20.0, 5.0)
    rows = [{"step": i, "loss": 2.0, "seconds": s} for i, s in enumerate(spent, start=1)]
    rows.insert(2, {"step": 2, "eval/loss": 1.0})
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = read_records(tmp_path)
    assert [stage.seconds for stage in found.stages] == [55.0]
    assert found.energy is not None
    assert "for 55 s" in found.energy.how


def test_the_page_tells_of_the_runs_machine_not_of_the_one_that_draws_it(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1, "loss": 2.0, "seconds": 3600.0}) + "\n")
    ran = {"device": "cpu", "ranks": 1, "cores": 4000, "environment": {"torch": "0.1", "system": "Elsewhere"}}
    (tmp_path / "run.json").write_text(json.dumps(ran))
    found = read_records(tmp_path)
    assert found.environment == {"torch": "0.1", "system": "Elsewhere", "ran on": "1 x cpu"}
    assert found.energy is not None
    assert found.energy.kwh == pytest.approx(40)
    assert found.energy.how.startswith("Estimated: 4000 cores")
    (tmp_path / "run.json").write_text(json.dumps({"device": "cpu", "ranks": 1}))
    found = read_records(tmp_path)
    assert found.environment == {"ran on": "1 x cpu"}
    assert found.energy is not None
    assert "its records do not say how many cores" in found.energy.how


def test_a_training_run_writes_down_what_it_ran_on(tmp_path: Path) -> None:
    import torch

    info = RunInfo(tmp_path, None, None, 1, 1, 1, 1, 2, "cpu", ())  # type: ignore[arg-type]
    MetricsFile(tmp_path / "metrics.jsonl").on_start(info)
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1, "loss": 2.0, "seconds": 3600.0}) + "\n")
    found = read_records(tmp_path)
    assert found.environment["torch"] == torch.__version__
    assert found.environment["ran on"] == "2 x cpu"
    assert found.energy is not None
    assert found.energy.how.startswith(f"Estimated: {os.cpu_count()} cores at 10 W each")
    assert "its records do not say" not in found.energy.how
