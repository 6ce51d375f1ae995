"""What `loom train` measures while it trains: the recipe's `eval`, and nothing that it is trained on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from loom import artifact
from loom.chat.mixture import Share
from loom.chat.prepare import Prepare, prepare
from loom.errors import LoomError
from loom.recipe import build
from loom.road.evaluation import recipe_evaluation
from loom.road.training import run_training
from loom.tokens.tokenize import Tokenize, tokenize
from loom.train.config import RunConfig
from tests.corpus import conftest as stores
from tests.corpus.test_remote import BUCKET, upload
from tests.evals.conftest import byte_tokenizer, random_model
from tests.tasks import rows

s3_server, s3 = stores.s3_server, stores.s3  # fixtures

SHAPE = {"d_model": 32, "n_layers": 1, "n_heads": 2, "mlp_width": 64, "context_length": 64, "vocab_size": 384}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Tokens with something held out, PIQA's rows, and a page of text."""
    pages = [{"id": str(i), "source": "web", "text": f"Page {i} says {i * i}. " * 9} for i in range(24)]
    write(tmp_path / "pages.jsonl", pages)
    write(tmp_path / "data" / "piqa.validation.jsonl", rows.ROWS["piqa"])
    write(tmp_path / "news" / "test" / "a.jsonl", [{"text": "Something happened. " * 5}] * 3)
    (tmp_path / "tokenizer.json").write_text(json.dumps(byte_tokenizer()))
    recipe = Tokenize((str(tmp_path / "pages.jsonl"),), tmp_path / "tokenizer.json", held_out=0.3)
    tokenize(recipe, tmp_path / "tokens")
    return tmp_path


def write(path: Path, lines: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def config(folder: Path, **watched: Any) -> RunConfig:
    values = {
        "model": SHAPE,
        "data": {"tokens": str(folder / "tokens"), "sequence_length": 64},
        "eval": {"data": str(folder / "data"), **watched},
    }
    return build(values, RunConfig, "test")


def test_tasks_texts_and_what_was_held_out(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    watch = recipe_evaluation(config(folder, tasks=["piqa"], text=[str(folder / "news")]))
    assert watch is not None
    logged = watch(random_model(), 1)
    assert {"piqa/acc", "piqa/acc_norm", "piqa/bpb", "piqa/soft", "piqa/n", "seconds"} <= logged.keys()
    assert logged["news/n"] == 3
    # The validation loss is of what was held out, whatever else is measured.
    alone = recipe_evaluation(config(folder))
    assert alone is not None
    assert logged["validation/loss"] == pytest.approx(alone(random_model(), 1)["validation/loss"])
    assert "was not decontaminated against" in capfd.readouterr().err


def test_no_text_is_mixed_with_another_or_takes_its_name(folder: Path) -> None:
    """Files of one name in two folders, one called as a held-out source, one as a task."""
    for name in ("a/part-0", "b/part-0", "web", "piqa", "validation"):
        write(folder / "texts" / f"{name}.jsonl", [{"text": f"Something of {name}. "}])
    named = [str(folder / "texts" / name) for name in ("a/part-0.jsonl", "b/part-0.jsonl", "*.jsonl")]
    watch, alone = (recipe_evaluation(config(folder, tasks=["piqa"], text=text)) for text in (named, []))
    assert watch is not None and alone is not None
    logged, before = watch(random_model(), 1), alone(random_model(), 1)
    for name in ("a", "b", "text:web", "text:piqa", "text:validation"):
        assert logged.pop(f"{name}/n") == 1
    left = {name: value for name, value in logged.items() if name in before and name != "seconds"}
    assert left == pytest.approx({name: value for name, value in before.items() if name != "seconds"})
    assert {"web/n", "piqa/n", "validation/n"} <= left.keys()


def test_what_holds_no_text_is_an_error(folder: Path) -> None:
    write(folder / "empty.jsonl", [{"text": ""}])
    with pytest.raises(LoomError, match="no text in .*empty.jsonl"):
        recipe_evaluation(config(folder, text=[str(folder / "news"), str(folder / "empty.jsonl")]))


def test_of_tokens_as_a_text_only_what_others_hold_out_is_measured(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The folder that is trained on adds nothing: what it holds out is the validation set already. One of all its
    documents is what is trained on."""
    tokenize(Tokenize((str(folder / "pages.jsonl"),), folder / "tokenizer.json"), folder / "whole")
    write(folder / "other.jsonl", [{"id": str(i), "source": "web", "text": f"Other {i}."} for i in range(20)])
    tokenize(
        Tokenize((str(folder / "other.jsonl"),), folder / "tokenizer.json", held_out=0.4), folder / "other"
    )
    text = [str(folder / name) for name in ("tokens", "whole", "other")]
    watch, alone = recipe_evaluation(config(folder, text=text)), recipe_evaluation(config(folder))
    assert watch is not None and alone is not None
    logged, before = watch(random_model(), 1), alone(random_model(), 1)
    held = artifact.load(folder / "other" / "heldout").counters["documents"]
    names = {name.rpartition("/")[0] for name in logged.keys() - before.keys()}
    assert names == {"other/web"} and logged["other/web/n"] == held
    said = capfd.readouterr().err
    assert "tokens/heldout is held out of what is trained on" in said
    assert "whole/web is not measured in the loop" in said


def test_what_is_trained_on_is_not_measured(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The pages themselves as a text, and tuning on questions of a task."""
    watch = recipe_evaluation(config(folder, text=[str(folder / "pages.jsonl")]))
    assert watch is not None
    assert "pages/n" not in watch(random_model(), 1)
    assert "pages.jsonl is not measured in the loop" in capfd.readouterr().err
    chats = [{"prompt": f"Question: {row['goal']}\nAnswer:", "completion": "x"} for row in rows.ROWS["piqa"]]
    write(folder / "chats.jsonl", chats)
    recipe = Prepare("sft", (Share(str(folder / "chats.jsonl")),), folder / "tokenizer.json", max_length=512)
    prepare(recipe, folder / "sft")
    tuned = build(
        {
            "model": SHAPE,
            "data": {"sft": str(folder / "sft"), "sequence_length": 64},
            "train": {"objective": "sft"},
            "eval": {"data": str(folder / "data"), "tasks": ["piqa"]},
        },
        RunConfig,
        "test",
    )
    assert recipe_evaluation(tuned) is None
    assert "piqa is not measured in the loop" in capfd.readouterr().err


def test_rows_are_as_long_as_those_of_the_model_that_is_gone_on_with(folder: Path) -> None:
    """As docs/training.md advises, the recipe has no model, and no data.sequence_length."""
    small = {"batch_tokens": 256, "steps": 2, "compile": False, "log_every": 1, "threads": 1}
    data, watched = {"tokens": str(folder / "tokens")}, {"data": str(folder / "data"), "tasks": ["piqa"]}
    schedule = {"kind": "constant"}
    base = build({"model": SHAPE, "data": data, "train": small, "schedule": schedule}, RunConfig, "test")
    run_training(base, folder / "base")
    for key in ("init", "anneal"):
        values = {"data": data, "train": {**small, "steps": 4, key: str(folder / "base")}, "eval": watched}
        begun = build(values, RunConfig, "test")
        run_training(begun, folder / key, evaluate=recipe_evaluation(begun))
        last = json.loads((folder / key / "metrics.jsonl").read_text().splitlines()[-1])
        assert last["step"] == 4 and {"eval/validation/loss", "eval/piqa/acc"} <= last.keys()


@pytest.mark.slow
def test_what_was_held_out_is_measured_of_tokens_in_a_store(
    folder: Path, s3: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    upload(s3, folder / "tokens", "tokens")
    here = config(folder, tasks=["piqa"])
    there = replace(here, data=replace(here.data, tokens=f"s3://{BUCKET}/tokens"))
    near, far = recipe_evaluation(here), recipe_evaluation(there)
    assert near is not None and far is not None
    figures = near(random_model(), 1)
    assert {k: v for k, v in far(random_model(), 1).items() if k != "seconds"} == {
        k: v for k, v in figures.items() if k != "seconds"
    }
    assert "validation/loss" in figures and "piqa/acc" in figures
    assert "s3://corpora/tokens was made from is not looked up" in capfd.readouterr().err


def test_mistakes_are_errors_before_the_first_step(folder: Path) -> None:
    with pytest.raises(LoomError, match="eval.data"):
        build({"eval": {"tasks": ["piqa"]}}, RunConfig, "test")
    with pytest.raises(LoomError, match="eval.sample is 0"):
        config(folder, sample=0)
    with pytest.raises(LoomError, match="sciq"):
        recipe_evaluation(config(folder, tasks=["sciq"]))
    with pytest.raises(LoomError, match="Did you mean 'piqa'"):
        recipe_evaluation(config(folder, tasks=["piqq"]))


def test_before_during_and_after_as_the_recipe_says(folder: Path) -> None:
    words = [f"model.{name}={value}" for name, value in SHAPE.items()]
    words += [f"data.tokens={folder / 'tokens'}", "data.sequence_length=64", "train.batch_tokens=256"]
    words += ["train.steps=5", "train.eval_every=2", "train.log_every=1", "train.compile=false"]
    words += [
        f"eval.data={folder / 'data'}",
        "eval.tasks=[piqa]",
        "eval.on_start=true",
        "eval.on_finish=false",
    ]
    command = [sys.executable, "-m", "loom", "train", "tiny", *words, "--out", str(folder / "run")]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1, 2, 3, 4, 5]
    assert [line["step"] for line in lines if "eval/piqa/acc" in line] == [0, 2, 4]
