"""A run's checkpoints, each evaluated the same way: how a figure moved with training."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import orjson

from loom.artifact import atomic_write, write_json
from loom.errors import LoomError
from loom.evals.evaluate import EvalRecipe, evaluate
from loom.evals.settings import clean
from loom.evals.subject import load_subject
from loom.train.checkpoint import checkpoints, step_of

LAST = 5  # checkpoints whose mean stands beside each point


def evaluate_run(
    run: Path, recipe: EvalRecipe, out: Path, dtype: str = "float32", device: str | None = None
) -> list[dict[str, Any]]:
    """Evaluate every whole checkpoint of `run` into `out`/step-NNNNNNNN; write curve.json and curve.html.

    A point is {"step", "metrics": {"<task>/<headline>": value}, "stderr": {...}, "running": {...}}; `running`
    is the mean over the last `LAST` points, which decides between runs better than one point does.
    """
    folders = sorted(checkpoints(run), key=step_of)
    if not folders:
        raise LoomError(
            f"{run} has no checkpoints to draw a curve through; name a folder that `loom train` wrote."
        )
    points = []
    for folder in folders:
        there = out / folder.name
        evaluate(load_subject(folder, dtype, device), recipe, there)
        points.append(_point(step_of(folder), orjson.loads((there / "results.json").read_bytes())))
    for index, point in enumerate(points):
        recent = [other["metrics"] for other in points[max(0, index + 1 - LAST) : index + 1]]
        point["running"] = {
            name: statistics.fmean(one[name] for one in recent if name in one) for name in point["metrics"]
        }
    write_json(out / "curve.json", clean({"points": points}))
    with atomic_write(out / "curve.html") as stream:
        stream.write(_plot(run.name, points).encode())
    return points


def _point(step: int, body: dict[str, Any]) -> dict[str, Any]:
    values, errors = {}, {}
    for name, result in body["results"].items():
        if "refused" in result:
            continue
        metric = "bits_per_byte" if "bytes" in result else body["tasks"].get(name, {}).get("headline")
        if metric is not None and result.get(metric) is not None:
            values[f"{name}/{metric}"] = result[metric]
            errors[f"{name}/{metric}"] = result.get(f"{metric}_stderr")
    return {"step": step, "metrics": values, "stderr": errors}


def _plot(title: str, points: list[dict[str, Any]]) -> str:
    """One self-contained page: a panel a metric, with its error bars."""
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    names = list(dict.fromkeys(name for point in points for name in point["metrics"]))
    figure = make_subplots(rows=max(1, len(names)), cols=1, subplot_titles=names, shared_xaxes=True)
    for row, name in enumerate(names, 1):
        kept = [point for point in points if name in point["metrics"]]
        figure.add_trace(
            go.Scatter(
                x=[point["step"] for point in kept],
                y=[point["metrics"][name] for point in kept],
                error_y={"type": "data", "array": [point["stderr"][name] or 0 for point in kept]},
                mode="lines+markers",
                name=name,
            ),
            row=row,
            col=1,
        )
        running = [point["running"][name] for point in kept]
        steps = [point["step"] for point in kept]
        line = go.Scatter(
            x=steps, y=running, mode="lines", line={"dash": "dot"}, name=f"{name}, mean of {LAST}"
        )
        figure.add_trace(line, row=row, col=1)
    figure.update_layout(height=260 * max(1, len(names)), showlegend=False, title=title)
    return str(figure.to_html(include_plotlyjs=True, full_html=True))
