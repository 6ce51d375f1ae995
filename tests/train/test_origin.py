"""What a run began from may go on, or be gone, once the run has a checkpoint of its own."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from loom.errors import LoomError
from loom.model.presets import ModelRecipe
from loom.train.callbacks import Callback
from loom.train.checkpoint import step_folder
from loom.train.config import DataConfig, DpoConfig, LoraConfig, RunConfig
from loom.train.loop import train

from .test_loop import Stop, StopAt, losses, recipe
from .tokens import learnable, write_conversations, write_tokens

Train = Callable[..., Path]


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    return write_tokens(tmp_path / "tokens", [learnable(4000, 64, 1)])


def begun(tmp_path: Path, tokens: Path, kind: str) -> tuple[RunConfig, Train]:
    """A recipe that begins from the run `base`, which has three steps, and how it is trained."""
    train(recipe(tokens, steps=3), tmp_path / "base")
    changes = {"steps": 6, "checkpoint_every": 3, "init": str(tmp_path / "base")}
    if kind == "lora":
        changes["lora"] = LoraConfig(4)
    config = replace(recipe(tokens, **changes), model=ModelRecipe())
    if kind not in ("dpo", "reference"):
        return config, train
    table = write_conversations(tmp_path / "pairs", 24, pairs=True)
    tuned = replace(config.train, objective="dpo", batch_pairs=4, micro_batch_pairs=4)
    reference = str(tmp_path / "base") if kind == "reference" else None
    config = replace(
        config,
        data=DataConfig(pairs=str(tmp_path / "pairs")),
        train=tuned,
        dpo=DpoConfig(reference=reference),
    )
    return config, lambda config, out, callbacks=(): train(config, out, documents=table, callbacks=callbacks)


def cut(run: Train, config: RunConfig, out: Path) -> None:
    callbacks: list[Callback] = [StopAt(5)]
    with pytest.raises(Stop):
        run(config, out, callbacks=callbacks)


def same(one: Path, other: Path) -> None:
    """Checkpoints byte by byte, manifests and so inputs too, and every loss."""
    for file in sorted(step_folder(one, 6).iterdir()):
        assert (step_folder(other, 6) / file.name).read_bytes() == file.read_bytes(), file.name
    assert losses(one) == losses(other)


@pytest.mark.parametrize("kind", ["lm", "lora", "dpo", "reference"])
def test_a_run_goes_on_from_its_own_checkpoint(tmp_path: Path, tokens: Path, kind: str) -> None:
    config, run = begun(tmp_path, tokens, kind)
    run(config, tmp_path / "whole")
    cut(run, config, tmp_path / "later")
    cut(run, config, tmp_path / "alone")
    train(recipe(tokens, steps=5), tmp_path / "base")  # trains on meanwhile
    run(config, tmp_path / "later")
    same(tmp_path / "whole", tmp_path / "later")
    shutil.rmtree(tmp_path / "base")
    run(config, tmp_path / "alone")
    same(tmp_path / "whole", tmp_path / "alone")
    with pytest.raises(LoomError, match=r"base is no run, no checkpoint"):
        run(config, tmp_path / "new")


def test_a_reference_that_was_not_kept_is_that_of_the_model_it_began_from(
    tmp_path: Path, tokens: Path
) -> None:
    config, run = begun(tmp_path, tokens, "dpo")
    run(config, tmp_path / "whole")
    cut(run, config, tmp_path / "later")
    shutil.copytree(tmp_path / "later", tmp_path / "changed")
    for name in ("later", "changed"):
        shutil.rmtree(tmp_path / name / "reference")
    train(recipe(tokens, steps=5), tmp_path / "base")
    run(config, tmp_path / "later")
    same(tmp_path / "whole", tmp_path / "later")
    shutil.rmtree(step_folder(tmp_path / "base", 3))
    shutil.copytree(step_folder(tmp_path / "base", 5), step_folder(tmp_path / "base", 3))
    with pytest.raises(LoomError, match=r"step-00000003 is no longer the model that .*changed began from"):
        run(config, tmp_path / "changed")


def test_what_it_began_from_stays_known_without_the_key(tmp_path: Path, tokens: Path) -> None:
    config, run = begun(tmp_path, tokens, "lm")
    run(config, tmp_path / "whole")
    cut(run, config, tmp_path / "later")
    without = replace(config, model=recipe(tokens).model, train=replace(config.train, init=None))
    last = run(without, tmp_path / "later")
    assert '"../../../base/checkpoints/step-00000003"' in (last / "manifest.json").read_text()
