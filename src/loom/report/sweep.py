"""Several runs as a table: the keys in which they differ, their final losses, errors from seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

SEED = "seed"
TAIL = 10  # a final training loss is the mean over the last tenth of the logged steps


@dataclass(frozen=True)
class Outcome:
    """One run: its recipe by dotted keys, and its losses in nats by name."""

    recipe: Mapping[str, str]
    losses: Mapping[str, float]


@dataclass(frozen=True)
class Group:
    """Runs alike but for their seed, and their losses by name."""

    settings: Mapping[str, str]
    runs: int
    values: Mapping[str, tuple[float, ...]]

    @property
    def losses(self) -> dict[str, tuple[float, float | None]]:
        """(mean, standard error of the mean over seeds or None) by name."""
        return {name: mean_and_error(values) for name, values in self.values.items()}


def differing(recipes: Sequence[Mapping[str, str]]) -> list[str]:
    """Dotted keys that are not the same in all recipes, the seed aside."""
    keys = sorted({key for recipe in recipes for key in recipe} - {SEED})
    return [key for key in keys if len({recipe.get(key, "absent") for recipe in recipes}) > 1]


def groups(runs: Sequence[Outcome]) -> tuple[list[str], list[Group]]:
    """(keys that differ, runs grouped by their values there), best first by the last of the losses."""
    keys = differing([run.recipe for run in runs])
    by_settings: dict[tuple[str, ...], list[Outcome]] = {}
    for run in runs:
        by_settings.setdefault(tuple(run.recipe.get(key, "absent") for key in keys), []).append(run)
    found = [
        Group(dict(zip(keys, values, strict=True)), len(members), _values(members))
        for values, members in by_settings.items()
    ]

    def last(group: Group) -> float:
        return list(group.losses.values())[-1][0] if group.losses else math.inf

    return keys, sorted(found, key=last)


def _values(members: Sequence[Outcome]) -> dict[str, tuple[float, ...]]:
    names = [name for name in members[0].losses if all(name in run.losses for run in members)]
    return {name: tuple(run.losses[name] for run in members) for name in names}


def mean_and_error(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean and its standard error from the spread of the values; None for one value."""
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return mean, None
    variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return mean, math.sqrt(variance / len(values))


def table(keys: Sequence[str], found: Sequence[Group]) -> tuple[list[str], list[list[str]]]:
    """(column titles, rows) as text."""
    losses = list(dict.fromkeys(name for group in found for name in group.losses))
    rows = []
    for group in found:
        cells = [group.settings[key] for key in keys]
        for name in losses:
            mean, error = group.losses.get(name, (math.nan, None))
            cells.append(f"{mean:.4f}" + ("" if error is None else f" ± {error:.4f}"))
        rows.append([*cells, str(group.runs)])
    return [*keys, *losses, "runs"], rows


def final_losses(lines: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Final losses of a run's logged steps: the training loss over its last tenth, held-out ones as last seen."""
    trained = [float(line["loss"]) for line in lines if "loss" in line]
    found = {}
    if trained:
        tail = trained[-max(1, len(trained) // TAIL) :]
        found["training loss"] = math.fsum(tail) / len(tail)
    for line in lines:
        for key, value in line.items():
            if key.startswith("eval/") and key.endswith("loss"):
                found[key.removeprefix("eval/")] = float(value)
    return found
