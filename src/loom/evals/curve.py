"""A run's checkpoints, each evaluated the same way: how a figure moved with training."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import orjson

from loom.artifact import atomic_write, write_json
from loom.errors import LoomError
from loom.evals.evaluate import EvalRecipe, evaluate
from loom.evals.plan import plan
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
    planned = plan(recipe)
    for folder in folders:
        there = out / folder.name
        evaluate(load_subject(folder, dtype, device), recipe, there, planned)
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
    values, errors, chance = {}, {}, {}
    for name, result in body["results"].items():
        if "refused" in result:
            continue
        metric = "bits_per_byte" if "bytes" in result else body["tasks"].get(name, {}).get("headline")
        if metric is not None and result.get(metric) is not None:
            values[f"{name}/{metric}"] = result[metric]
            errors[f"{name}/{metric}"] = result.get(f"{metric}_stderr")
            if metric.startswith("acc") and "chance" in result:
                chance[f"{name}/{metric}"] = result["chance"]
    return {"step": step, "metrics": values, "stderr": errors, "chance": chance}


def _plot(title: str, points: list[dict[str, Any]]) -> str:
    """One self-contained page: a panel a metric, with its error bars, its running mean, and what guessing
    gives where that is known."""
    import plotly.graph_objects as go
    from plotly.colors import qualitative
    from plotly.subplots import make_subplots

    names = list(dict.fromkeys(name for point in points for name in point["metrics"]))
    count = max(1, len(names))
    figure = make_subplots(
        rows=count, cols=1, subplot_titles=names, shared_xaxes=True, vertical_spacing=0.3 / count
    )
    for row, name in enumerate(names, 1):
        colour = qualitative.Plotly[(row - 1) % len(qualitative.Plotly)]
        kept = [point for point in points if name in point["metrics"]]
        steps = [point["step"] for point in kept]
        errors = [point["stderr"][name] or 0 for point in kept]
        shown = go.Scatter(
            x=steps,
            y=[point["metrics"][name] for point in kept],
            error_y={"type": "data", "array": errors},
            mode="lines+markers",
            line={"color": colour},
            name=name,
        )
        running = go.Scatter(
            x=steps,
            y=[point["running"][name] for point in kept],
            mode="lines",
            line={"dash": "dot", "color": colour},
            name=f"{name}, mean of {LAST}",
        )
        figure.add_trace(shown, row=row, col=1)
        figure.add_trace(running, row=row, col=1)
        if (guess := kept[0]["chance"].get(name)) is not None:
            figure.add_hline(
                guess, row=row, col=1, line={"dash": "dash", "color": "grey"}, annotation_text="guessing"
            )
    figure.update_xaxes(title_text="training step", row=count, col=1)
    how = f"bars: one standard error; dotted: mean of the last {LAST} checkpoints"
    figure.update_layout(
        height=120 + 240 * count,
        showlegend=False,
        title=f"{title}<br><sup>{how}</sup>",
        template="plotly_white",
    )
    return str(figure.to_html(include_plotlyjs=True, full_html=True))
