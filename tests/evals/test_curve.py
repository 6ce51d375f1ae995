"""A real run of two checkpoints: a point each, and a page; what the page shows, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from loom import artifact
from loom.cli import main
from loom.errors import LoomError
from loom.evals import curve
from loom.evals.beside.compare import compare
from loom.evals.curve import MOST, evaluate_run, overview, page
from loom.evals.evaluate import EvalRecipe, evaluate
from loom.evals.subject import load_subject
from loom.road.evaluation import measure_text
from loom.tokens.tokenize import Tokenize, tokenize
from tests.evals.conftest import byte_tokenizer
from tests.tasks import rows

SHAPE = {"d_model": 32, "n_layers": 1, "n_heads": 2, "mlp_width": 64, "context_length": 64, "vocab_size": 384}


def figure(html: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The traces and the layout that a page gives to plotly."""
    start = html.rindex("Plotly.newPlot(")
    decoder, found = json.JSONDecoder(), []
    at = html.index("[", start)
    for _ in range(2):
        value, end = decoder.raw_decode(html, at)
        found.append(value)
        at = end + len(html[end:]) - len(html[end:].lstrip(", \n"))
    return found[0], found[1]


def panels(html: str) -> dict[str, list[dict[str, Any]]]:
    """The traces of each panel by its title, from the top."""
    traces, layout = figure(html)
    titles = [note["text"] for note in layout["annotations"] if note["text"] != "guessing"]
    axes = dict.fromkeys(trace["yaxis"] for trace in traces)
    heights = [layout["yaxis" + axis[1:]]["domain"][0] for axis in axes]
    assert heights == sorted(heights, reverse=True)
    return {
        title: [trace for trace in traces if trace["yaxis"] == axis]
        for title, axis in zip(titles, axes, strict=True)
    }


def same_as_points(traces: list[dict[str, Any]], name: str, points: list[dict[str, Any]]) -> None:
    values, running = traces
    kept = [point for point in points if name in point["metrics"]]
    assert values["x"] == running["x"] == [point["step"] for point in kept]
    assert values["y"] == pytest.approx([point["metrics"][name] for point in kept])
    assert values["error_y"]["array"] == pytest.approx([point["stderr"][name] or 0 for point in kept])
    assert running["y"] == pytest.approx([point["running"][name] for point in kept])


def test_a_page_shows_the_points() -> None:
    """Each metric in a panel of its own, with what guessing gives; a checkpoint may lack one, or its error."""
    points = [
        {
            "step": step,
            "metrics": {"piqa/acc": 0.5 + step / 100}
            | ({"book/bits_per_byte": 4 / step} if step > 1 else {}),
            "stderr": {"piqa/acc": 0.01 * step, "book/bits_per_byte": None},
            "running": {"piqa/acc": 0.5 + step / 200, "book/bits_per_byte": 5 / step},
            "chance": {"piqa/acc": 0.5},
            "whole": {"book/bits_per_byte": True},
        }
        for step in (1, 2, 4)
    ]
    html = page("run", points)
    shown = panels(html)
    assert list(shown) == ["piqa/acc", "book/bits_per_byte"]
    for name in shown:
        same_as_points(shown[name], name, points)
    (line,) = figure(html)[1]["shapes"]
    assert line["y0"] == line["y1"] == 0.5 and line["yref"].split()[0] == "y"
    assert all(axis["showticklabels"] for name, axis in figure(html)[1].items() if name.startswith("xaxis"))


def test_of_many_texts_sources_are_shown() -> None:
    """Paloma's 546 domains would be a page of 135,000 pixels."""

    def point(domains: int) -> dict[str, Any]:
        whole = {f"d{i}": False for i in range(domains)} | {"c4": True, "paloma-11": True, "all": True}
        named = {f"{name}/bits_per_byte": of for name, of in whole.items()}
        values = {"piqa/acc": 0.5, **dict.fromkeys(named, 1.0)}
        return {"step": 1, "metrics": values, "whole": named}

    few, many = point(MOST - 3), point(MOST - 2)
    assert overview([few]) == list(few["metrics"])
    assert overview([many]) == ["piqa/acc", *(f"{name}/bits_per_byte" for name in ("c4", "paloma-11", "all"))]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `tokens`, of which some documents are held out, and a `run` of two checkpoints."""
    home = tmp_path_factory.mktemp("trained")
    (home / "tokenizer.json").write_text(json.dumps(byte_tokenizer()))
    pages = [{"id": str(i), "source": "web", "text": f"Page {i} says {i * i}. " * 9} for i in range(40)]
    (home / "pages.jsonl").write_text("".join(json.dumps(page) + "\n" for page in pages))
    tokenize(Tokenize((str(home / "pages.jsonl"),), home / "tokenizer.json", held_out=0.3), home / "tokens")
    words = [f"model.{name}={value}" for name, value in SHAPE.items()]
    words += [f"data.tokens={home / 'tokens'}", "data.sequence_length=64", "train.batch_tokens=256"]
    words += ["train.steps=4", "train.checkpoint_every=2", "train.log_every=1", "train.compile=false"]
    command = [sys.executable, "-m", "loom", "train", "tiny", *words, "--out", str(home / "run")]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return home


def test_held_out_text_of_the_quickstart_stands_in_tables(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`measure_text` writes an evaluation like any other's, though it ranks nothing and keeps no rows."""
    for step in (2, 4):
        checkpoint = trained / "run" / "checkpoints" / f"step-{step:08d}"
        measure_text(checkpoint, trained / "tokens", tmp_path / str(step))
    with pytest.raises(SystemExit) as ended:
        main(["table", f"two={tmp_path / '2'}", f"four={tmp_path / '4'}", "--json"])
    assert ended.value.code in (0, None)
    lines = json.loads(capsys.readouterr().out.splitlines()[-1])["lines"]
    assert [line["name"] for line in lines] == ["all text: bits per byte", "web: bits per byte"]
    assert lines[0]["four"]["value"] < lines[0]["two"]["value"]
    with pytest.raises(LoomError, match="no task in common"):
        compare(tmp_path / "2", tmp_path / "4")


def test_a_curve_has_a_point_a_checkpoint(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOOM_CACHE", str(tmp_path / "cache"))
    shutil.copytree(trained / "run", tmp_path / "run")
    (tmp_path / "piqa.validation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows.PIQA))
    (tmp_path / "book.txt").write_text("Page 7 says 49. " * 20)
    layout = tmp_path / "paloma" / "news" / "test"
    layout.mkdir(parents=True)
    rows_ = [{"text": f"Page {i} says nothing new.", "subdomain": f"d{i % 2}"} for i in range(4)]
    (layout / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows_))
    recipe = EvalRecipe(tasks=("piqa",), data=tmp_path, text=(tmp_path / "book.txt", tmp_path / "paloma"))
    points = evaluate_run(tmp_path / "run", recipe, tmp_path / "out")
    assert [point["step"] for point in points] == [2, 4]
    for point in points:
        checkpoint = tmp_path / "run" / "checkpoints" / f"step-{point['step']:08d}"
        evaluate(load_subject(checkpoint), recipe, tmp_path / "alone")
        found = json.loads((tmp_path / "alone" / "results.json").read_text())["results"]
        assert point["metrics"]["piqa/acc"] == found["piqa"]["acc"]
        assert point["metrics"]["book/bits_per_byte"] == found["book"]["bits_per_byte"]
    bits = [point["metrics"]["book/bits_per_byte"] for point in points]
    assert bits[1] < bits[0]  # it learns
    assert points[1]["running"]["book/bits_per_byte"] == pytest.approx(sum(bits) / 2)
    assert json.loads((tmp_path / "out" / "curve.json").read_text())["points"][1]["step"] == 4
    out = tmp_path / "out"
    shown = panels((out / "curve.html").read_text())
    texts = {"book": True, "d0": False, "d1": False, "news": True, "all": True}
    assert points[0]["whole"] == {f"{name}/bits_per_byte": of for name, of in texts.items()}
    assert list(shown) == ["piqa/acc", *points[0]["whole"]]
    for name in shown:
        same_as_points(shown[name], name, points)
    made = artifact.load(out, "curve")
    made.verify(data=True)
    assert [item.path for item in made.inputs] == ["step-00000002", "step-00000004"]
    for place in (tmp_path / "run", tmp_path / "alone"):  # where something else lies
        before = sorted(place.rglob("*"))
        with pytest.raises(LoomError, match="already holds something else"):
            evaluate_run(tmp_path / "run", recipe, place)
        assert sorted(place.rglob("*")) == before
    digest = made.digest
    evaluate_run(tmp_path / "run", recipe, out)
    assert artifact.load(out, "curve").digest == digest  # equal work, the page too
    with monkeypatch.context() as broken:
        broken.setattr(curve, "load_subject", lambda *_: (_ for _ in ()).throw(LoomError("no model")))
        with pytest.raises(LoomError, match="no model"):
            evaluate_run(tmp_path / "run", recipe, out)
    assert sorted(path.name for path in out.iterdir()) == ["step-00000002", "step-00000004"]
    with pytest.raises(SystemExit) as ended:
        words = [
            "eval",
            str(tmp_path / "run"),
            "--curve",
            "--published",
            "--text",
            str(tmp_path / "book.txt"),
        ]
        main([*words, "--out", str(tmp_path / "other")])
    assert ended.value.code == 1 and not (tmp_path / "other").exists()
    file = tmp_path / "run" / "checkpoints" / "step-00000004" / "tokenizer.json"
    file.write_text(file.read_text().replace('"version": "1.0"', '"version": "1.1"'))  # as many bytes
    with pytest.raises(LoomError, match="tokenizer.json has changed since it was saved"):
        load_subject(file.parent)
