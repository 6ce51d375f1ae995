"""A run's folder -> `ReportData`: `report.json` where a stage left one, else what a training run wrote."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from loom.artifact import RUN, Artifact, lineage, read_run
from loom.artifact import load as load_artifact
from loom.errors import LoomError
from loom.report.ancestry import nodes
from loom.report.data import Energy, Points, ReportData, Stage, Training, load
from loom.report.energy import Given, Grid, grid_of, of_run, on
from loom.report.noise import sentences
from loom.report.sweep import Outcome, final_losses, groups, table

RECORDS = "report.json"
METRICS = "metrics.jsonl"
BESIDE = (
    "_stderr",
    "_stderr_clustered",
    "/n",
    "/bytes",
    "/tokens",
    "/seconds",
)  # say what is behind a figure
WHOLE = ("eval/loss", "eval/validation/loss")


def read_records(path: Path, grid: Given | None = None) -> ReportData:
    """What there is to show of the run at `path`; `grid` goes before what the records say of its power.

    Raises `LoomError` if it holds no records.
    """
    if (path / RECORDS).is_file():
        found = load(path / RECORDS)
        if grid is None or found.energy is None:
            return found
        was = found.energy
        return replace(found, energy=on(was, grid.over(Grid(was.pue, was.carbon_intensity, was.source))))
    if (path / METRICS).is_file():
        return training_run(path, grid)
    what = "is not there" if not path.exists() else f"holds neither {RECORDS} nor {METRICS}"
    raise LoomError(f"{path} {what}: name a quickstart's folder or a training run's.")


def compare_runs(paths: Sequence[Path]) -> ReportData:
    """One page over several training runs, the first being what the others are set against."""
    runs = []
    names = _names(paths)
    for path, name in zip(paths, names, strict=True):
        if not (path / METRICS).is_file():
            raise LoomError(f"{path} holds no {METRICS}; name training runs.")
        runs.append(curves(name, read_metrics(path / METRICS), _objective(_recipe(path))))
    keys, found = groups([outcome(path) for path in paths])
    columns, rows = table(keys, found)
    return ReportData(
        title=" and ".join(names) if len(names) < 4 else f"{len(names)} runs",
        subtitle="Runs side by side." + ("" if keys else " Their recipes are equal, but for seeds."),
        beside=tuple(runs),
        outcomes=(tuple(columns), *map(tuple, rows)),
        noise=tuple(sentences(keys, found)),
    )


def outcome(path: Path) -> Outcome:
    """A training run's recipe, the device it ran on, and its final losses."""
    device = read_run(path).get("device") if (path / RUN).is_file() else None
    settings = _flat(_recipe(path)) | ({"device": str(device)} if device else {})
    return Outcome(settings, final_losses(read_metrics(path / METRICS)))


def _names(paths: Sequence[Path]) -> list[str]:
    """Short names that tell the runs apart."""
    resolved = [path.resolve() for path in paths]
    names = [path.name for path in resolved]
    return names if len(set(names)) == len(names) else ["/".join(path.parts[-2:]) for path in resolved]


def _recipe(path: Path) -> Mapping[str, Any]:
    if not (path / "manifest.json").is_file():
        return {}
    recipe = load_artifact(path, "run").recipe
    return recipe if isinstance(recipe, Mapping) else {}


def _flat(value: Any, prefix: str = "") -> dict[str, str]:
    """A recipe by dotted keys, values as JSON."""
    if isinstance(value, Mapping):
        return {k: v for key, item in value.items() for k, v in _flat(item, f"{prefix}{key}.").items()}
    return {prefix.rstrip("."): json.dumps(value)}


def training_run(path: Path, grid: Given | None = None) -> ReportData:
    """A training run's page: its curves, lineage, time and recipe."""
    lines = read_metrics(path / METRICS)
    made = load_artifact(path, "run") if (path / "manifest.json").is_file() else None
    recipe: Mapping[str, Any] = made.recipe if made and isinstance(made.recipe, Mapping) else {}
    objective = _objective(recipe)
    seconds = _seconds(path, lines)
    notes = () if made else ("This run is not finished: its manifest is not written yet.",)
    return ReportData(
        title=path.resolve().name,
        subtitle=_subtitle(lines, objective),
        tokens=_last(lines, "tokens"),
        parameters=_parameters(made),
        training=(curves(path.resolve().name, lines, objective),),
        stages=(Stage("train", float(seconds)),) if seconds else (),
        lineage=nodes(lineage(path)) if made else (),
        energy=run_energy(path, grid),
        environment=environment(path, recipe),
        notes=notes,
    )


def run_energy(path: Path, grid: Given | None = None) -> Energy | None:
    """A training run's energy on its recipe's grid, `grid` before it; None where its time or device is not known."""
    if not (path / METRICS).is_file():
        return None
    seconds = _seconds(path, read_metrics(path / METRICS))
    ran = read_run(path) if (path / RUN).is_file() else {}
    if not seconds:
        return None
    device, ranks, cores = str(ran.get("device") or "cpu"), int(ran.get("ranks") or 1), ran.get("cores")
    found = of_run(path, seconds, grid_of(_recipe(path), grid), device, ranks, cores)
    if found is None or found.measured or device != "cpu" or cores:
        return found
    return replace(found, how=f"{found.how}; its records do not say how many cores, these are this machine's")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The logged steps. A last line that a stopped run left half written is passed over."""
    found = []
    lines = path.read_bytes().splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            found.append(json.loads(line))
        except ValueError:
            if number < len(lines):
                raise LoomError(f"{path}:{number} is not JSON. Remove that line.") from None
    return found


def curves(name: str, lines: list[dict[str, Any]], objective: Literal["lm", "sft", "dpo"]) -> Training:
    """A run's curves from its logged steps."""

    def points(key: str) -> Points:
        return tuple(
            (float(line["step"]), float(line[key]))
            for line in lines
            if isinstance(line.get(key), (int, float))
        )

    held = sorted({key for line in lines for key in line if key.startswith("eval/")})
    held = [key for key in held if not key.endswith(BESIDE)]
    # All of the held-out text first, where it is told by source too.
    losses = sorted((key for key in held if key.endswith("loss")), key=lambda key: (key not in WHOLE, key))
    rewards = sorted({key for line in lines for key in line if key.startswith("reward")})
    more = {key: points(key) for key in [*(k for k in held if k not in losses[:1]), *rewards]}
    return Training(
        name,
        loss=points("loss"),
        validation=points(losses[0]) if losses else (),
        learning_rate=points("lr"),
        gradient_norm=points("grad_norm"),
        tokens_per_second=points("tokens_per_second"),
        more={key.removeprefix("eval/"): value for key, value in more.items()},
        objective=objective,
    )


def _objective(recipe: Mapping[str, Any]) -> Literal["lm", "sft", "dpo"]:
    train = recipe.get("train")
    match train.get("objective") if isinstance(train, Mapping) else None:
        case "sft":
            return "sft"
        case "dpo":
            return "dpo"
    return "lm"


def _subtitle(lines: list[dict[str, Any]], objective: str) -> str:
    what = {"lm": "Pretraining", "sft": "Supervised fine-tuning", "dpo": "Preference tuning (DPO)"}[objective]
    return f"{what}, {lines[-1]['step']:,} steps." if lines else f"{what}; no step was logged."


def _last(lines: list[dict[str, Any]], key: str) -> int | None:
    found = [line[key] for line in lines if isinstance(line.get(key), int)]
    return found[-1] if found else None


def _parameters(made: Artifact | None) -> int | None:
    value = made.counters.get("parameters") if made else None
    return value if isinstance(value, int) else None


def _seconds(path: Path, lines: list[dict[str, Any]]) -> float | None:
    recorded = read_run(path).get("seconds") if (path / RUN).is_file() else None
    if isinstance(recorded, (int, float)):
        return float(recorded)
    spent = [float(line["seconds"]) for line in lines if isinstance(line.get("seconds"), (int, float))]
    ends = [
        now for now, later in itertools.pairwise(spent) if later < now
    ]  # a resumed run counts from 0 again
    return sum(ends) + spent[-1] if spent else None


def environment(path: Path, recipe: Mapping[str, Any]) -> dict[str, str]:
    """What the run's own records say of the machine and the versions it had, and the recipe's seed."""
    ran = read_run(path) if (path / RUN).is_file() else {}
    said = ran.get("environment")
    found = {str(key): str(value) for key, value in said.items()} if isinstance(said, Mapping) else {}
    if "seed" in recipe:
        found["seed"] = str(recipe["seed"])
    if ran.get("device"):
        found["ran on"] = f"{ran.get('ranks') or 1} x {ran['device']}"
    return found
