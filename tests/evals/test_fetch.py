"""Rows fetched through the Hub's own client, from a server on this machine that speaks the Hub's protocol."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.torch import save_file

from loom.errors import LoomError
from loom.evals.fetch import fetch_rows
from loom.evals.plan import plan
from loom.evals.settings import EvalRecipe
from loom.evals.written.tasks import WRITTEN
from loom.model.huggingface import config_to_huggingface, to_huggingface
from loom.tasks import registry
from tests.conftest import skip_by_name
from tests.evals.conftest import byte_tokenizer, random_model
from tests.hub import hub as hub_of
from tests.tasks import rows

if importlib.util.find_spec("huggingface_hub") is None:
    skip_by_name("the Hub's client")


def parquet(lines: list[dict[str, object]]) -> bytes:
    stream = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(lines), stream)
    return stream.getvalue()


FILES = {
    ("baber/piqa", "default/validation/0000.parquet"): parquet(rows.ROWS["piqa"]),
    ("baber/piqa", "default/train/0000.parquet"): parquet(rows.ROWS["piqa"] * 2),
    ("allenai/openbookqa", "main/test/0000.parquet"): parquet(rows.ROWS["openbookqa"][:1]),
    ("allenai/openbookqa", "main/test/0001.parquet"): parquet(rows.ROWS["openbookqa"][1:]),
    ("cais/mmlu", "world_religions/test/0000.parquet"): parquet(rows.MMLU),
    ("cais/mmlu", "world_religions/dev/0000.parquet"): parquet(rows.MMLU_DEV),
}


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    with hub_of(FILES, "refs/convert/parquet") as address:
        yield address


@pytest.fixture
def model(tmp_path: Path) -> Path:
    out = tmp_path / "model"
    out.mkdir()
    made = random_model(context=512)
    save_file(to_huggingface(made.state_dict(), made.config), out / "model.safetensors")
    (out / "config.json").write_text(json.dumps(config_to_huggingface(made.config, 260, 261)))
    (out / "tokenizer.json").write_text(json.dumps(byte_tokenizer()))
    return out


def evaluate(model: Path, hub: str, tasks: str) -> subprocess.CompletedProcess[str]:
    home = model.parent
    command = [
        sys.executable,
        "-m",
        "loom",
        "eval",
        str(model),
        "--tasks",
        tasks,
        "--data",
        str(home / "data"),
    ]
    command += ["--fetch", "--no-cache", "--out", str(home / "out"), "--json"]
    kept = {key: value for key, value in os.environ.items() if "PROXY" not in key.upper()}
    kept |= {"HF_ENDPOINT": hub, "HF_HOME": str(home / "hf"), "HF_HUB_OFFLINE": "0", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=kept)


def test_what_is_missing_is_fetched_once_and_scored(model: Path, hub: str) -> None:
    """Worked examples too, from `train` where there is no `dev`; and a split in several files."""
    asked = "piqa,mmlu_world_religions:5shot,piqa:olmes,openbookqa"
    done = evaluate(model, hub, asked)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout.splitlines()[-1])["results"]
    assert results["piqa"]["n"] == len(rows.ROWS["piqa"])
    assert results["mmlu_world_religions:5shot"]["n"] == len(rows.MMLU)
    assert results["piqa:olmes"]["n"] == len(rows.ROWS["piqa"])
    assert results["openbookqa"]["n"] == len(rows.ROWS["openbookqa"])
    again = evaluate(model, "http://127.0.0.1:1", asked)  # nothing is asked for twice
    assert again.returncode == 0, again.stderr


def test_what_the_hub_does_not_have_is_one_paragraph(model: Path, hub: str) -> None:
    done = evaluate(model, hub, "sciq")
    assert done.returncode == 1
    said = " ".join(done.stderr.split())
    assert "allenai/sciq could not be fetched from the Hugging Face Hub" in said
    assert "sciq.test.parquet yourself" in said
    assert "Traceback" not in said


def test_what_cannot_be_fetched_is_said_and_the_rest_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """So that --fetch is of use to the adaptation suite; and no message sends a user back to it."""
    (tmp_path / "truthfulqa.validation.jsonl").write_text(json.dumps({"question": "Is it?"}) + "\n")
    fetch_rows(registry.WRITTEN, tmp_path)
    said = " ".join(capsys.readouterr().err.split())
    assert "alpaca_eval is not fetched." in said and "toxigen is not fetched." in said
    assert "--fetch gets it" not in said
    with pytest.raises(LoomError, match="--fetch does not get it"):
        plan(EvalRecipe(tasks=("alpaca_eval",), data=tmp_path))


def test_the_list_names_what_can_be_written() -> None:
    assert set(registry.WRITTEN) == set(WRITTEN)
