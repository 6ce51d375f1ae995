"""The loop learns, resumes bitwise, and its result does not depend on how a batch is split."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from loom.errors import LoomError
from loom.model.presets import ModelRecipe
from loom.road.training import run_training
from loom.tokens.shards import open_tokens
from loom.train.callbacks import Callback
from loom.train.checkpoint import checkpoints, load_model, read_weights, step_folder
from loom.train.config import DataConfig, DpoConfig, OptimizerConfig, RunConfig, ScheduleConfig, TrainConfig
from loom.train.data import verify
from loom.train.loop import train
from loom.train.parallel import World
from loom.train.roll import Roll

from .tokens import learnable, write_conversations, write_tokens

SHAPE = ModelRecipe(d_model=32, n_layers=2, n_heads=2, mlp_width=64, context_length=32, tied=True)


def recipe(tokens: Path, **changes) -> RunConfig:
    values = {
        "steps": 12, "batch_tokens": 256, "micro_batch": 4, "precision": "float32", "compile": False,
        "checkpoint_every": 5, "eval_every": 6, "log_every": 1, "threads": 1, **changes,
    }  # fmt: skip
    return RunConfig(
        model=SHAPE,
        data=DataConfig(tokens=str(tokens)),
        train=TrainConfig(**values),
        optimizer=OptimizerConfig(learning_rate=3e-3),
        schedule=ScheduleConfig(warmup=4),
    )


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    return write_tokens(tmp_path / "tokens", [learnable(4000, 64, 1), learnable(3000, 64, 2)])


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


class Stop(Exception):
    pass


class StopAt(Callback):
    """Ends the process's run as a crash would, right after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, record) -> None:
        if record["step"] == self.step:
            raise Stop


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_learns(tmp_path: Path, tokens: Path, precision: str) -> None:
    seen = []
    config = recipe(tokens, steps=60, precision=precision)
    last = train(config, tmp_path / "run", evaluate=lambda model, step: seen.append(step) or {"x": 1.0})
    values = losses(tmp_path / "run")
    assert len(values) == 60 and seen == [*range(6, 61, 6)]
    assert values[0] == pytest.approx(5.3, abs=0.5) and values[-1] < values[0] - 1
    assert last == step_folder(tmp_path / "run", 60)
    model, card = load_model(last)
    assert card.eos.id == 0 and card.model.vocab_size == 128 and not model.training
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert train(config, tmp_path / "run") == last


@pytest.mark.parametrize("asynchronous", [True, False])
def test_resumed_run_is_bitwise_the_undisturbed_one(tmp_path: Path, tokens: Path, asynchronous: bool) -> None:
    config = recipe(tokens, asynchronous=asynchronous)
    whole_folder = train(config, tmp_path / "whole")
    whole = read_weights(whole_folder)
    for stop in (3, 8, 11):
        with pytest.raises(Stop):
            train(config, tmp_path / "cut", callbacks=[StopAt(stop)])
    notes = Notes()
    cut_folder = train(config, tmp_path / "cut", callbacks=[notes])
    cut = read_weights(cut_folder)
    assert notes.said == ["resumed from step 10"]
    for file in sorted(whole_folder.iterdir()):
        assert (cut_folder / file.name).read_bytes() == file.read_bytes(), file.name
    assert all(torch.equal(cut[name], tensor) for name, tensor in whole.items())
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")


def test_micro_batches_do_not_change_the_result(tmp_path: Path, tokens: Path) -> None:
    runs = {}
    for size in (8, 3, 1):
        train(recipe(tokens, micro_batch=size), tmp_path / str(size))
        runs[size] = losses(tmp_path / str(size))
    assert runs[3] == pytest.approx(runs[8], abs=1e-5)
    assert runs[1] == pytest.approx(runs[8], abs=1e-5)


class Notes(Callback):
    """What a run says when it starts."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def on_start(self, run) -> None:
        self.said += run.notes


def damage(checkpoint: Path) -> None:
    with open(next(checkpoint.glob("*.distcp")), "r+b") as stream:
        stream.seek(100)
        stream.write(b"xxxx")


def test_a_damaged_last_checkpoint_of_a_finished_run_is_made_again(tmp_path: Path, tokens: Path) -> None:
    config = recipe(tokens)
    last = train(config, tmp_path / "run")
    files = {file: file.read_bytes() for file in (*last.iterdir(), tmp_path / "run" / "manifest.json")}
    damage(last)
    notes = Notes()
    assert train(config, tmp_path / "run", callbacks=[notes]) == last
    assert "step-00000012" in notes.said[0] and "damaged" in notes.said[0]
    assert notes.said[1] == "resumed from step 10"
    assert {file: file.read_bytes() for file in files} == files
    notes = Notes()
    train(config, tmp_path / "run", callbacks=[notes])
    assert notes.said == []  # it is finished, and nothing is trained
    manifest = last / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"step": 12', '"step": 13'))
    with pytest.raises(LoomError, match="is not the checkpoint that this run ended with"):
        train(config, tmp_path / "run")


def test_a_run_killed_before_its_manifest_gets_one(tmp_path: Path, tokens: Path) -> None:
    train(recipe(tokens), tmp_path / "run")
    manifest, metrics = tmp_path / "run" / "manifest.json", losses(tmp_path / "run")
    expected = manifest.read_bytes()
    manifest.unlink()
    train(recipe(tokens), tmp_path / "run")
    assert manifest.read_bytes() == expected and losses(tmp_path / "run") == metrics


def test_a_half_written_checkpoint_is_named_and_the_one_before_used(tmp_path: Path, tokens: Path) -> None:
    config = recipe(tokens)
    whole = read_weights(train(config, tmp_path / "run"))
    for name in ("run/manifest.json", "run/checkpoints/step-00000012/manifest.json"):
        (tmp_path / name).unlink()
    notes = Notes()
    last = train(config, tmp_path / "run", callbacks=[notes])
    assert "step-00000012 has no manifest.json: it was never finished" in notes.said[0]
    assert notes.said[1] == "resumed from step 10"
    assert all(torch.equal(read_weights(last)[name], tensor) for name, tensor in whole.items())
    for folder in checkpoints(tmp_path / "run"):
        (folder / "manifest.json").unlink()
    (tmp_path / "run" / "manifest.json").unlink()
    notes = Notes()
    train(config, tmp_path / "run", callbacks=[notes])  # nothing whole is left, nor damaged: from the start
    assert len(notes.said) == 3 and len(losses(tmp_path / "run")) == 12


def test_a_second_run_in_a_folder_is_refused_and_changes_nothing(
    tmp_path: Path, tokens: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loom.train.roll.PATIENCE", 0.0)
    out = tmp_path / "run"
    with pytest.raises(Stop):
        train(recipe(tokens), out, callbacks=[StopAt(7)])
    (out / "recipe.yaml").write_text("the first run's")
    other = Roll(out / ".ranks", 0, 1)  # as another process holds it
    with pytest.raises(
        LoomError, match=r"Another process trains into .*run: .*process \d+.*choose another --out"
    ):
        run_training(recipe(tokens, steps=13), out)
    assert (out / "recipe.yaml").read_text() == "the first run's" and len(losses(out)) == 7
    other.stream.close()  # as the end of its process does, killed or not; the file stays
    assert (out / ".ranks" / "rank-0").exists()
    run_training(recipe(tokens), out)
    assert len(losses(out)) == 12 and not (out / ".ranks").exists()


def test_a_damaged_checkpoint_is_named_and_the_one_before_used(tmp_path: Path, tokens: Path) -> None:
    config = recipe(tokens)
    whole = read_weights(train(config, tmp_path / "run"))
    damage(step_folder(tmp_path / "run", 12))
    notes = Notes()
    train(replace(config, train=replace(config.train, steps=13)), tmp_path / "run", callbacks=[notes])
    assert "step-00000012" in notes.said[0] and notes.said[1] == "resumed from step 10"
    assert whole.keys() == read_weights(step_folder(tmp_path / "run", 13)).keys()


def test_retention(tmp_path: Path, tokens: Path) -> None:
    train(recipe(tokens, checkpoint_every=2, keep=2, keep_every=6, keep_steps=(3,)), tmp_path / "run")
    assert [int(path.name[5:]) for path in checkpoints(tmp_path / "run")] == [3, 6, 10, 12]


def test_a_damaged_checkpoint_does_not_crowd_out_a_newer_good_one(tmp_path: Path, tokens: Path) -> None:
    config = recipe(tokens, steps=10, checkpoint_every=2, keep=1, keep_every=4)
    train(config, tmp_path / "run")
    for step in (8, 10):
        damage(step_folder(tmp_path / "run", step))
    with pytest.raises(Stop):
        train(config, tmp_path / "run", callbacks=[StopAt(7)])
    notes = Notes()
    train(config, tmp_path / "run", callbacks=[notes])
    assert notes.said[-1] == "resumed from step 6"
    assert [int(path.name[5:]) for path in checkpoints(tmp_path / "run")] == [4, 8, 10]


def test_sft_learns_answers_only(tmp_path: Path) -> None:
    table = write_conversations(tmp_path / "sft", 200)
    base = recipe(tmp_path / "sft")
    config = replace(
        base, data=DataConfig(sft=str(tmp_path / "sft")), train=replace(base.train, objective="sft", steps=60)
    )
    train(config, tmp_path / "run", documents=table)
    values = losses(tmp_path / "run")
    assert values[-1] < values[0] - 0.8
    runs = {}
    for size in (1, 8):
        changed = replace(config, train=replace(config.train, micro_batch=size, steps=6))
        train(changed, tmp_path / f"run{size}", documents=table)
        runs[size] = losses(tmp_path / f"run{size}")
    assert runs[1] == pytest.approx(runs[8], abs=1e-5)


def test_dpo_starts_at_ln_2_and_learns_to_prefer(tmp_path: Path, tokens: Path) -> None:
    base = recipe(tokens)
    init = train(base, tmp_path / "base")
    table = write_conversations(tmp_path / "pairs", 100, pairs=True)
    runs = {}
    for size in (8, 3):
        config = replace(
            base,
            model=ModelRecipe(),
            data=DataConfig(pairs=str(tmp_path / "pairs")),
            dpo=DpoConfig(beta=0.5),
            train=replace(
                base.train, objective="dpo", init=str(init), batch_pairs=8, micro_batch_pairs=size, steps=30
            ),
        )
        train(config, tmp_path / f"dpo{size}", documents=table)
        runs[size] = losses(tmp_path / f"dpo{size}")
    assert runs[8][0] == pytest.approx(0.693147, abs=1e-4)
    assert runs[3] == pytest.approx(runs[8], abs=1e-4)
    records = [json.loads(line) for line in (tmp_path / "dpo8" / "metrics.jsonl").read_text().splitlines()]
    assert records[0]["reward_margin"] == pytest.approx(0, abs=1e-4)
    assert records[-1]["reward_accuracy"] > 0.8 and records[-1]["loss"] < 0.5


def test_what_does_not_fit_is_named(tmp_path: Path, tokens: Path) -> None:
    with pytest.raises(LoomError, match=r"train\.batch_tokens is 250.*use 256"):
        train(recipe(tokens, batch_tokens=250), tmp_path / "a")
    with pytest.raises(LoomError, match=r"data\.tokens is missing"):
        train(replace(recipe(tokens), data=DataConfig()), tmp_path / "b")
    with pytest.raises(LoomError, match=r"64 entries.*32 embedding rows"):
        train(replace(recipe(tokens), model=replace(SHAPE, vocab_size=32)), tmp_path / "c")
    train(recipe(tokens, steps=2), tmp_path / "d")
    with pytest.raises(LoomError, match="d_model is 32 there and 64"):
        train(replace(recipe(tokens), model=replace(SHAPE, d_model=64)), tmp_path / "d")
    with pytest.raises(LoomError, match="other data or another order"):
        train(replace(recipe(tokens), seed=1), tmp_path / "d")


def change_token(folder: Path, shard: str, place: int, to: int) -> None:
    ids = np.fromfile(folder / shard, "<u2")
    ids[place] = to
    ids.tofile(folder / shard)


def test_an_id_that_the_tokenizer_has_not_is_named_with_its_shard(tmp_path: Path, tokens: Path) -> None:
    change_token(tokens, "shard-00001.npy", 100, 64)
    with pytest.raises(LoomError, match=r"shard-00001\.npy holds the id 64, beyond the 64 entries"):
        train(recipe(tokens, steps=40), tmp_path / "run")
    table = write_conversations(tmp_path / "sft", 50)
    change_token(tmp_path / "sft", "shard-00000.npy", 20, 4000)
    base = recipe(tmp_path / "sft", objective="sft", steps=40)
    config = replace(base, data=DataConfig(sft=str(tmp_path / "sft")))
    with pytest.raises(LoomError, match=r"shard-00000\.npy holds the id 4,000"):
        train(config, tmp_path / "other", documents=table)


def test_verified_data_are_compared_with_their_digests(tmp_path: Path, tokens: Path) -> None:
    config = recipe(tokens, steps=2)
    verified = replace(config, data=replace(config.data, verify=True))
    train(verified, tmp_path / "a")
    change_token(tokens, "shard-00001.npy", 100, 5)
    with pytest.raises(LoomError, match=r"shard-00001\.npy changed since it was written"):
        train(verified, tmp_path / "b")
    assert not checkpoints(tmp_path / "b")


class Pair(World):
    """One of two ranks, and what the other gathers."""

    other: object = None

    def gather(self, value: object, group: object = None) -> list[object]:
        return [value, self.other]


def test_ranks_share_the_shards_to_verify(tmp_path: Path, tokens: Path) -> None:
    change_token(tokens, "shard-00001.npy", 100, 5)
    folders = [open_tokens(tokens)]
    first, second = (Pair(rank, 2, torch.device("cpu")) for rank in (0, 1))
    verify(folders, first)  # reads shard 0
    with pytest.raises(LoomError, match=r"shard-00001\.npy changed"):
        verify(folders, second)
    object.__setattr__(first, "other", "shard-00001.npy changed")
    with pytest.raises(LoomError, match=r"shard-00001\.npy changed"):
        verify(folders, first)
