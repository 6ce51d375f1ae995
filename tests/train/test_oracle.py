"""Training agrees with OLMo's own code, run in its own environment."""

from __future__ import annotations

import gzip
import json
import subprocess
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

from loom.model.config import ModelConfig
from loom.model.initialize import initialize
from loom.model.presets import ModelRecipe
from loom.model.transformer import Transformer
from loom.tokens.order import Stage
from loom.tokens.shards import open_tokens
from loom.train.config import DataConfig, OptimizerConfig, RunConfig, ScheduleConfig, TrainConfig
from loom.train.data import Windows
from loom.train.loader import share
from loom.train.loop import train
from tests.conftest import skip_by_name
from tests.oracles.build import interpreter, is_built

from .tokens import learnable, write_tokens

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).parents[1] / "oracles" / "olmo_train.py"
RATE = 2e-3


def olmo_weights(model: Transformer) -> dict[str, np.ndarray]:
    """Our weights under OLMo's names, with its stacked matrices."""
    ours = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    weights = {"transformer.wte.weight": ours["embed.weight"]}
    if not model.config.tied:
        weights["transformer.ff_out.weight"] = ours["head.weight"]
    for i in range(model.config.n_layers):
        block, to = f"blocks.{i}.", f"transformer.blocks.{i}."
        weights[to + "att_proj.weight"] = np.concatenate(
            [ours[f"{block}attention.{p}.weight"] for p in "qkv"]
        )
        weights[to + "attn_out.weight"] = ours[block + "attention.out.weight"]
        weights[to + "ff_proj.weight"] = np.concatenate(
            [ours[f"{block}mlp.{p}.weight"] for p in ("up", "gate")]
        )
        weights[to + "ff_out.weight"] = ours[block + "mlp.down.weight"]
    return weights


def oracle(config: RunConfig, model: ModelConfig, folder: Path) -> list[dict]:
    """The same run by OLMo's code: losses, gradient norms and learning rates, a step each."""
    first = Transformer(model)
    initialize(first, config.seed)
    length, steps = model.context_length, config.train.steps
    batch = config.train.batch_tokens // length
    data = Windows(config.data, [open_tokens(Path(str(config.data.tokens)))], length, config.seed)
    stages = [Stage(1, 0, batch)]
    batches = np.stack([data.windows(share(stages, step, 0, 1)) for step in range(1, steps + 1)])
    settings = {
        "steps": steps,
        "max_grad_norm": config.optimizer.clip,
        "model": {
            "d_model": model.d_model, "n_heads": model.n_heads, "n_layers": model.n_layers,
            "mlp_hidden_size": 2 * model.mlp_width, "vocab_size": model.vocab_size,
            "embedding_size": model.vocab_size, "max_sequence_length": length, "weight_tying": model.tied,
            "activation_type": "swiglu", "block_type": "sequential", "rope": True, "alibi": False,
            "include_bias": False, "bias_for_layer_norm": False, "layer_norm_type": "default",
            "layer_norm_with_affine": False, "attention_layer_norm_with_affine": False,
            "attention_dropout": 0.0, "residual_dropout": 0.0, "embedding_dropout": 0.0,
            "eos_token_id": 0, "pad_token_id": 1,
        },
        "optimizer": {
            "name": "adamw", "learning_rate": config.optimizer.learning_rate, "weight_decay": 0.1, "eps": 1e-5,
            "betas": [0.9, 0.95], "decay_norm_and_bias": False, "decay_embeddings": False,
        },
        "scheduler": {
            "name": f"{config.schedule.kind}_with_warmup", "t_warmup": config.schedule.warmup, "alpha_f": 0.1,
            "grad_clip_warmup_steps": config.optimizer.clip_warmup_steps or None,
            "grad_clip_warmup_factor": config.optimizer.clip_warmup_factor,
        },
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "in.npz", config=json.dumps(settings), batches=batches, **olmo_weights(first))
    command = [str(interpreter("ai2-olmo")), str(SCRIPT), str(folder / "in.npz"), str(folder / "out.json")]
    subprocess.run(command, check=True, capture_output=True)
    return json.loads((folder / "out.json").read_text())


def compare(config: RunConfig, shape: ModelRecipe, folder: Path) -> tuple[list[dict], list[dict]]:
    if not is_built("ai2-olmo"):
        skip_by_name("the oracle ai2-olmo")
    last = train(config, folder / "run")
    values = json.loads((last / "model.json").read_text())["model"]
    theirs = oracle(config, ModelConfig(**values), folder / "oracle")
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines], theirs


def run_config(tokens: Path, shape: ModelRecipe, steps: int, **changes) -> RunConfig:
    return RunConfig(
        model=shape,
        data=DataConfig(tokens=str(tokens)),
        train=TrainConfig(
            steps=steps, batch_tokens=8 * (shape.context_length or 1), micro_batch=4, precision="float32",
            compile=False, log_every=1, checkpoint_every=10_000, threads=1, label_weight="per_position",
        ),
        optimizer=OptimizerConfig(learning_rate=RATE),
        schedule=ScheduleConfig(warmup=5),
    )  # fmt: skip


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_twenty_steps_are_olmos(tmp_path: Path, tied: bool, kind) -> None:
    tokens = write_tokens(tmp_path / "tokens", [learnable(12_000, 120, 1)], vocabulary=120)
    shape = ModelRecipe(d_model=64, n_layers=2, n_heads=4, mlp_width=96, context_length=64, tied=tied)
    config = run_config(tokens, shape, 20)
    config = replace(
        config,
        schedule=replace(config.schedule, kind=kind),
        # Limits that bite, so that the step at which each applies is tested.
        optimizer=replace(config.optimizer, clip=0.2, clip_warmup_steps=6, clip_warmup_factor=4.0),
    )
    ours, theirs = compare(config, shape, tmp_path)
    for key, tolerance in (("loss", 2e-6), ("grad_norm", 2e-5), ("lr", 1e-12)):
        assert [r[key] for r in ours] == pytest.approx([r[key] for r in theirs], rel=tolerance)


def test_the_default_loss_is_olmos_over_its_documented_factor(tmp_path: Path) -> None:
    tokens = write_tokens(tmp_path / "tokens", [learnable(12_000, 120, 1)], vocabulary=120)
    shape = ModelRecipe(d_model=64, n_layers=2, n_heads=4, mlp_width=96, context_length=64, tied=True)
    config = run_config(tokens, shape, 1)
    config = replace(config, train=replace(config.train, label_weight="per_token"))
    ours, theirs = compare(config, shape, tmp_path)
    for key in ("loss", "grad_norm"):
        assert ours[0][key] * 63 / 64 == pytest.approx(theirs[0][key], rel=1e-5)


@pytest.mark.parametrize("name", ["wikitext2.valid", "c4"])
def test_two_hundred_steps_on_real_text(tmp_path: Path, shared_data: Path, name: str) -> None:
    with gzip.open(shared_data / "text" / f"{name}.jsonl.gz", "rt", encoding="utf-8") as stream:
        texts = [json.loads(line)["text"] for line, _ in zip(stream, range(2000), strict=False)]
    # Bytes are tokens enough to compare two trainers.
    ids = np.fromiter(chain.from_iterable((*(b + 2 for b in t.encode()), 0) for t in texts), np.uint16)
    tokens = write_tokens(tmp_path / "tokens", [ids[:400_000]], vocabulary=258)
    shape = ModelRecipe(d_model=128, n_layers=2, n_heads=4, mlp_width=256, context_length=128, tied=True)
    ours, theirs = compare(run_config(tokens, shape, 200), shape, tmp_path)
    difference = [abs(a["loss"] - b["loss"]) for a, b in zip(ours, theirs, strict=True)]
    assert sum(difference[-20:]) / 20 < 1e-3
    assert theirs[-1]["loss"] < theirs[0]["loss"] - 2
