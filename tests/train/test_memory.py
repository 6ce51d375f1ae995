"""The arithmetic of memory is what the code does."""

from __future__ import annotations

import json
from itertools import accumulate
from pathlib import Path

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from loom.errors import LoomError
from loom.model.config import ModelConfig
from loom.model.initialize import initialize
from loom.model.presets import preset
from loom.model.transformer import Transformer
from loom.train.config import OptimizerConfig
from loom.train.data import Batch
from loom.train.memory import activation_bytes, memory, modes_within
from loom.train.objective import LanguageModel
from loom.train.optimizer import build_optimizer, clip_gradients
from loom.train.parallel import recompute_blocks

SHAPES = {
    "narrow": ModelConfig(64, 3, 4, 256, 512, 128, tied=True),
    "wide": ModelConfig(256, 2, 4, 688, 512, 256),
    "grouped": ModelConfig(128, 4, 8, 512, 512, 64, n_kv_heads=2),
}


def kept_bytes(
    config: ModelConfig, batch: int, precision: torch.dtype | None, mode: str, share: float = 0.5
) -> int:
    """What autograd saves in a forward pass, each storage once, without the weights and their casts."""
    model = Transformer(config, precision)
    initialize(model, 1)
    model.eval()  # torch's fused attention, as on a GPU
    recompute_blocks(model, mode, share)
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    saved: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        activation = tensor.ndim > 2 or tensor.shape[:1] == (batch * config.context_length,)
        if storage.data_ptr() not in weights and activation:
            saved[storage.data_ptr()] = storage  # holding it keeps the address from being reused
        return tensor

    ids = torch.randint(0, config.vocab_size, (batch, config.context_length))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        total = model(ids, readout=lambda hidden, matrix: hidden.sum())
    total.backward()
    return sum(storage.nbytes() for storage in saved.values())


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("precision", [None, torch.bfloat16])
def test_activations_are_those_autograd_keeps(name: str, precision) -> None:
    config = SHAPES[name]
    few, many = (kept_bytes(config, batch, precision, "none") for batch in (3, 7))
    measured = (many - few) / (4 * config.context_length)
    expected = config.n_layers * activation_bytes(config, "none", precision is not None)
    assert expected + 8 * config.d_model == pytest.approx(measured, rel=0.1)


@pytest.mark.parametrize("share", [0.85, 0.6, 0.3])
def test_a_budget_is_kept_with_the_least_recomputing(share: float) -> None:
    config = SHAPES["grouped"]
    modes = modes_within(config, share, bf16=False)
    kept = {mode: [kept_bytes(config, batch, None, mode) for batch in (3, 7)] for mode in ("none", "budget")}
    kept["budget"] = [kept_bytes(config, batch, None, "budget", share) for batch in (3, 7)]
    none, budget = (many - few for few, many in kept.values())
    assert budget / none < share + 0.05
    # One step less of it would be too much.
    last, before = ("full", "selective") if "full" in modes else ("selective", "none")
    modes[max(layer for layer, mode in enumerate(modes) if mode == last)] = before
    sizes = [activation_bytes(config, mode, bf16=False) for mode in modes]
    assert sum(sizes) > share * len(modes) * activation_bytes(config, "none", bf16=False)
    with pytest.raises(LoomError, match="activation_budget"):
        modes_within(config, 0.001)


def test_weights_gradients_and_adam_take_sixteen_bytes() -> None:
    config = SHAPES["wide"]
    parts = memory(config, tokens=1)
    assert parts.weights + parts.gradients + parts.optimizer == 16 * config.parameters
    sharded = memory(config, tokens=1, shards=8)
    assert sharded.weights == pytest.approx(parts.weights / 8)


def test_recomputing_keeps_less() -> None:
    config = preset("olmo-7b")
    none, selective, full = (activation_bytes(config, mode) for mode in ("none", "selective", "full"))
    assert none > 1.2 * selective > 5 * full


STEP_SHAPES = {
    "long": (ModelConfig(128, 4, 4, 352, 2048, 256, tied=True), 4),
    "untied": (ModelConfig(192, 3, 3, 512, 512, 128), 8),
    "many entries": (ModelConfig(256, 2, 4, 688, 8192, 128, tied=True), 8),
}


def measured_peak(config: ModelConfig, batch: int, bf16: bool, mode: str, trace: Path) -> int:
    """Bytes of weights and Adam, and the most that a second step allocates at any moment."""
    model = Transformer(config, torch.bfloat16 if bf16 else None)
    initialize(model, 1)
    recompute_blocks(model, mode)
    optimizer = build_optimizer(model, OptimizerConfig())
    ids = torch.randint(0, config.vocab_size, (batch, config.context_length))

    def step() -> None:
        total, _ = LanguageModel()(model, Batch(ids, 1.0))
        (total / ids.numel()).backward()
        clip_gradients(list(model.parameters()), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    step()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    profiler.export_chrome_trace(str(trace))
    events = [e for e in json.loads(trace.read_text())["traceEvents"] if e.get("name") == "[memory]"]
    changes = [event["args"]["Bytes"] for event in sorted(events, key=lambda event: event["ts"])]
    assert len(changes) > 100
    return 12 * config.parameters + max(accumulate(changes))


@pytest.mark.parametrize("name", STEP_SHAPES)
@pytest.mark.parametrize("bf16", [True, False])
@pytest.mark.parametrize("mode", ["none", "selective", "full"])
def test_memory_of_a_step_is_the_planned_within_a_tenth(tmp_path: Path, name: str, bf16: bool, mode) -> None:
    config, batch = STEP_SHAPES[name]
    planned = memory(config, tokens=batch * config.context_length, recompute=mode, bf16=bf16, device="cpu")
    assert planned.total == pytest.approx(measured_peak(config, batch, bf16, mode, tmp_path / "t"), rel=0.1)
