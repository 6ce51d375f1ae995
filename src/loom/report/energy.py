"""Energy and carbon: kWh x PUE x carbon intensity (Groeneveld et al. 2024, OLMo, appendix B).

A lower bound: hardware's making, development runs and idle machines are not in it.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from loom.errors import LoomError
from loom.report.data import Energy
from loom.report.power import integrate, measured


@dataclass(frozen=True)
class Grid:
    """Where the power comes from: the data centre's PUE, kg CO2eq a kWh, and who says so."""

    pue: float = 1.0
    carbon_intensity: float = 0.48
    source: str = "0.48 kg a kWh, a round world average; set energy.carbon_intensity in the recipe"

    def __post_init__(self) -> None:
        if self.pue < 1.0:
            raise LoomError(
                f"The PUE is {self.pue}; a data centre draws at least what its machines do (1.0)."
            )
        if self.carbon_intensity < 0:
            raise LoomError(
                f"The carbon intensity is {self.carbon_intensity}; it is kg CO2eq a kWh, at least 0."
            )


@dataclass(frozen=True)
class Given:
    """What a person says of the grid, each part in place of the records' own; None leaves theirs.

    `by` is what it was given to. Raises `LoomError` for what no grid can be.
    """

    pue: float | None = None
    carbon_intensity: float | None = None
    source: str | None = None
    by: str = "loom report"

    def __post_init__(self) -> None:
        self.over(Grid())

    def over(self, grid: Grid) -> Grid:
        """`grid` with what was given; its source says of each part who gave it."""
        parts = {"PUE": self.pue, "carbon intensity": self.carbon_intensity}
        named = " and ".join(name for name, value in parts.items() if value is not None)
        told = [f"{named} as given to {self.by}"] if named else []
        kept = [grid.source] if self.carbon_intensity is None else []
        return Grid(
            grid.pue if self.pue is None else self.pue,
            grid.carbon_intensity if self.carbon_intensity is None else self.carbon_intensity,
            "; ".join([*kept, *told]) if self.source is None else self.source,
        )


def grid_of(recipe: Mapping[str, Any], given: Given | None = None) -> Grid:
    """The grid a recipe's `energy` section names; what `given` says goes before it, what neither says is usual."""
    said = recipe.get("energy")
    said = said if isinstance(said, Mapping) else {}
    usual = Grid()
    pue, intensity = said.get("pue"), said.get("carbon_intensity")
    source = str(said.get("source") or "the run's recipe") if intensity is not None else usual.source
    grid = Grid(
        usual.pue if pue is None else float(pue),
        usual.carbon_intensity if intensity is None else float(intensity),
        source,
    )
    return grid if given is None else given.over(grid)


def carbon(kwh: float, pue: float, intensity: float) -> float:
    """kg CO2eq: 104 MWh, PUE 1.1 and 0.610 kg a kWh give 69,784 kg."""
    return kwh * pue * intensity


def from_samples(samples: list[tuple[float, float]], grid: Grid, how: str) -> Energy:
    """Energy of a run whose power was sampled; the samples' times must not run backwards."""
    if any(b[0] < a[0] for a, b in itertools.pairwise(samples)):
        raise LoomError("The power samples' times run backwards; the record is not one run's.")
    kwh = integrate(samples)
    return _energy(kwh, True, how, grid)


BOARD: Mapping[str, float] = MappingProxyType(
    {
        "MI250X": 280,
        "MI300X": 750,
        "V100": 300,
        "A100": 400,
        "H100": 700,
        "H200": 700,
        "B200": 1000,
        "L40S": 350,
    }
)
"""Watts of a device at most, by what its name holds (data sheets; of an MI250X the half that is one device)."""


def of_run(
    folder: Path, seconds: float, grid: Grid, device: str = "cpu", ranks: int = 1, cores: int | None = None
) -> Energy | None:
    """A stage's energy: what was sampled in its folder, else an estimate, which says that it is one.

    `device`, `ranks` and `cores` are what it ran on; without `cores` this machine's are counted. None for a device
    whose power is not known.
    """
    if (found := measured(folder)) is not None:
        return _energy(found[0], True, found[1], grid)
    if device == "cpu":
        return estimate(seconds, cores or os.cpu_count() or 1, grid)
    if (watts := next((value for name, value in BOARD.items() if name in device), None)) is None:
        return None
    how = (
        f"Estimated: {ranks:,} x {device} at their most, {watts:g} W each, for {seconds:,.0f} s; no power was "
        f"measured, and the rest of the machines is not in it"
    )
    return _energy(seconds * ranks * watts / 3.6e6, False, how, grid)


def estimate(seconds: float, cores: int, grid: Grid, watts_a_core: float = 10.0) -> Energy:
    """An estimate for processors whose power cannot be read: every core at `watts_a_core` throughout."""
    how = f"Estimated: {cores} cores at {watts_a_core:g} W each for {seconds:,.0f} s; no power was measured"
    return _energy(seconds * cores * watts_a_core / 3.6e6, False, how, grid)


def on(energy: Energy, grid: Grid) -> Energy:
    """The same energy from another grid."""
    return _energy(energy.kwh, energy.measured, energy.how, grid)


def _energy(kwh: float, sampled: bool, how: str, grid: Grid) -> Energy:
    return Energy(
        kwh,
        sampled,
        how,
        grid.pue,
        grid.carbon_intensity,
        grid.source,
        carbon(kwh, grid.pue, grid.carbon_intensity),
    )
