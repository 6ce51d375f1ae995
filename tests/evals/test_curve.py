"""A real run of two checkpoints: a point each, and a page."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from loom.errors import LoomError
from loom.evals.curve import evaluate_run
from loom.evals.evaluate import EvalRecipe, evaluate
from loom.evals.subject import load_subject
from loom.tokens.tokenize import Tokenize, tokenize
from tests.evals.conftest import byte_tokenizer
from tests.tasks import rows

SHAPE = {"d_model": 32, "n_layers": 1, "n_heads": 2, "mlp_width": 64, "context_length": 64, "vocab_size": 384}


def test_a_curve_has_a_point_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOOM_CACHE", str(tmp_path / "cache"))
    (tmp_path / "tokenizer.json").write_text(json.dumps(byte_tokenizer()))
    pages = [{"id": str(i), "source": "web", "text": f"Page {i} says {i * i}. " * 9} for i in range(24)]
    (tmp_path / "pages.jsonl").write_text("".join(json.dumps(page) + "\n" for page in pages))
    tokenize(Tokenize((str(tmp_path / "pages.jsonl"),), tmp_path / "tokenizer.json"), tmp_path / "tokens")
    words = [f"model.{name}={value}" for name, value in SHAPE.items()]
    words += [f"data.tokens={tmp_path / 'tokens'}", "data.sequence_length=64", "train.batch_tokens=256"]
    words += ["train.steps=4", "train.checkpoint_every=2", "train.log_every=1", "train.compile=false"]
    command = [sys.executable, "-m", "loom", "train", "tiny", *words, "--out", str(tmp_path / "run")]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})

    (tmp_path / "piqa.validation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows.PIQA))
    (tmp_path / "book.txt").write_text("Page 7 says 49. " * 20)
    recipe = EvalRecipe(tasks=("piqa",), data=tmp_path, text=(tmp_path / "book.txt",))
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
    page = (tmp_path / "out" / "curve.html").read_text()
    assert "bits_per_byte" in page and "piqa" in page
    file = tmp_path / "run" / "checkpoints" / "step-00000004" / "tokenizer.json"
    file.write_text(file.read_text().replace('"version": "1.0"', '"version": "1.1"'))  # as many bytes
    with pytest.raises(LoomError, match="tokenizer.json has changed since it was saved"):
        load_subject(file.parent)
