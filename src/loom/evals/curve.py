"""A run's checkpoints, each evaluated the same way: how a figure moved with training."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from loom import artifact
from loom.artifact import atomic_write, write_json
from loom.errors import LoomError
from loom.evals import paloma
from loom.evals.beside.stored import TEXT, has_text, read_results, read_scores
from loom.evals.evaluate import EvalRecipe, evaluate
from loom.evals.plan import plan
from loom.evals.settings import clean
from loom.evals.subject import load_subject
from loom.train.checkpoint import checkpoints, step_of

KIND = "curve"
DATA, PAGE = "curve.json", "curve.html"
LAST = 5  # checkpoints whose mean stands beside each point
MOST = 20  # texts that are still told apart when each has a panel; of more, sources only


def evaluate_run(
    run: Path, recipe: EvalRecipe, out: Path, dtype: str = "float32", device: str | None = None
) -> list[dict[str, Any]]:
    """Evaluate every whole checkpoint of `run` into `out`/step-NNNNNNNN; write curve.json and curve.html and commit
    kind "curve".

    A point is {"step", "metrics": {"<task>/<headline>": value}, "stderr": {...}, "chance": {...}, "whole": {...},
    "running": {...}}; `whole` says of each text whether it is a source or more than one, not a domain of a source;
    `running` is the mean over the last `LAST` points, which decides between runs better than one point does.
    Raises `LoomError` for a run without checkpoints, and before anything in `out` is touched where that is
    something else. An earlier curve is gone before the first checkpoint is measured.
    """
    started = time.monotonic()
    folders = sorted(checkpoints(run), key=step_of)
    if not folders:
        raise LoomError(
            f"{run} has no checkpoints to draw a curve through; name a folder that `loom train` wrote."
        )
    planned = plan(recipe)
    _discard(out)
    points, made = [], []
    for folder in folders:
        there = out / folder.name
        made.append(evaluate(load_subject(folder, dtype, device), recipe, there, planned))
        points.append(_point(step_of(folder), read_results(there), there))
    for index, point in enumerate(points):
        recent = [other["metrics"] for other in points[max(0, index + 1 - LAST) : index + 1]]
        point["running"] = {
            name: statistics.fmean(one[name] for one in recent if name in one) for name in point["metrics"]
        }
    write_json(out / DATA, clean({"points": points}))
    with atomic_write(out / PAGE) as stream:
        stream.write(page(run.name, points).encode())
    artifact.commit(
        out,
        KIND,
        recipe={"mean_of_last": LAST},
        inputs=[artifact.refer(one, out) for one in made],
        outputs=artifact.describe(out, [DATA, PAGE]),
        counters={"checkpoints": len(points)},
        started=started,
    )
    return points


def _discard(out: Path) -> None:
    """Take an earlier curve away: beside the points of another run it would pass for theirs."""
    artifact.discard(out, KIND)
    for name in (DATA, PAGE):
        try:
            (out / name).unlink(missing_ok=True)
        except OSError as error:
            raise artifact.explain_os_error(error, out / name) from error


def _point(step: int, body: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    values, errors, chance, whole = {}, {}, {}, {}
    measured = read_scores(folder / TEXT) if has_text(body, folder) else []
    sources = {score.source for score in measured} | {paloma.NAME, "all"}
    for name, result in body["results"].items():
        if "refused" in result:
            continue
        text = "bytes" in result
        metric = "bits_per_byte" if text else body["tasks"].get(name, {}).get("headline")
        if metric not in (None, "n") and result.get(metric) is not None:
            key = f"{name}/{metric}"
            values[key], errors[key] = result[metric], result.get(f"{metric}_stderr")
            if text:
                whole[key] = name.removeprefix("text:") in sources
            if metric.removeprefix("macro_").startswith("acc") and "chance" in result:
                chance[key] = result["chance"]
    failed = {
        name: result["judge_failed"] for name, result in body["results"].items() if "judge_failed" in result
    }
    return {
        "step": step, "metrics": values, "stderr": errors, "chance": chance, "whole": whole, "judge_failed": failed,
    }  # fmt: skip


def overview(points: Sequence[Mapping[str, Any]]) -> list[str]:
    """The metrics to show: all, but of more than `MOST` texts (Paloma has 546 domains) sources and more only."""
    names = dict.fromkeys(name for point in points for name in point["metrics"])
    whole = {name: of for point in points for name, of in point["whole"].items()}
    return [name for name in names if len(whole) <= MOST or whole.get(name, True)]


def page(title: str, points: Sequence[Mapping[str, Any]]) -> str:
    """One self-contained page: a panel a metric, with its error bars, its running mean, and what guessing
    gives where that is known."""
    import plotly.graph_objects as go
    from plotly.colors import qualitative
    from plotly.subplots import make_subplots

    names = overview(points)
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
    figure.update_xaxes(showticklabels=True)  # the last panel's are far away
    figure.update_xaxes(title_text="training step", row=count, col=1)
    how = f"bars: one standard error; dotted: mean of the last {LAST} checkpoints"
    figure.update_layout(
        height=120 + 240 * count,
        showlegend=False,
        title=f"{title}<br><sup>{how}</sup>",
        template="plotly_white",
    )
    # A name of its own, where plotly would draw one anew: equal work is equal files.
    return str(figure.to_html(include_plotlyjs=True, full_html=True, div_id="curve"))
