"""The plan's arithmetic is what the code does."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from loom.errors import LoomError
from loom.machine.plan import plan, steps_for
from loom.model.huggingface import config_to_huggingface
from loom.model.presets import preset
from loom.train.config import BatchStage, RunConfig, TrainConfig, batch_stages
from loom.train.memory import chunk_tokens, held_parameters, memory


def test_the_published_machines() -> None:
    seven = plan(
        preset("olmo-7b"), kind="a100-40gb-x8", nodes=27, tokens=2e12, batch_tokens=216 * 10 * 2048, mfu=0.347
    )
    assert seven.ranks == 216 and seven.fits
    # OLMo's 7B ran at about 2,500 tokens a second and device on these (34.7 % utilisation).
    assert seven.batch_tokens / seven.step_seconds / 216 == pytest.approx(2500, rel=0.01)
    large = plan(preset("olmo-65b"), kind="lumi-g", nodes=256, tokens=2e12, batch_tokens=2048 * 2048)
    assert large.ranks == 2048 and large.parameters == 65_584_234_496
    assert large.memory.weights * 2048 == pytest.approx(4 * 65_584_234_496, rel=0.02)


def test_fewer_instances_than_ranks_is_refused() -> None:
    with pytest.raises(LoomError, match=r"1,024 instances.*2,048 ranks.*at least 4,194,304"):
        plan(preset("olmo-65b"), kind="lumi-g", nodes=256, tokens=2e12, batch_tokens=1024 * 2048)
    with pytest.raises(LoomError, match="lumi-g"):
        plan(preset("olmo-65b"), kind="lumig", nodes=1, tokens=1, batch_tokens=2048 * 2048)


def test_a_stage_that_is_over_asks_nothing_of_the_ranks_of_now() -> None:
    stages = (BatchStage(11, 8 * 2048), BatchStage(21, 64 * 2048))
    config = RunConfig(train=TrainConfig(batch_tokens=4 * 2048, batch_stages=stages))
    for done in (0, 9, 10, 19):  # step 20 is the last with 8 instances
        with pytest.raises(LoomError, match="fewer than the 16 ranks"):
            batch_stages(config, 2048, 16, done)
    found = batch_stages(config, 2048, 16, 20)
    assert [(s.step, s.instances_before, s.batch) for s in found] == [(1, 0, 4), (11, 40, 8), (21, 120, 64)]
    with pytest.raises(LoomError, match="cannot share equally"):
        batch_stages(config, 2048, 48, 25)


def test_steps_are_counted_over_the_ramp() -> None:
    ramp = [(1, 10), (4, 20), (6, 100)]  # 3 steps of 10, 2 of 20, the rest of 100
    assert [steps_for(n, ramp) for n in (1, 30, 31, 70, 71, 170, 171)] == [
        (1, 10), (3, 30), (4, 50), (5, 70), (6, 170), (6, 170), (7, 270)
    ]  # fmt: skip
    counted = plan(
        preset("olmo-20m"), kind="h100-80gb-x1", nodes=1, tokens=171 * 2048, batch_tokens=10 * 2048,
        ramp=[(step, size * 2048) for step, size in ramp[1:]],
    )  # fmt: skip
    assert counted.steps == 7 and counted.step_seconds * 27 == pytest.approx(counted.days * 86_400)


def test_weights_are_shared_as_the_recipe_says() -> None:
    shape, where = preset("olmo-1b"), {"kind": "lumi-g", "nodes": 2, "tokens": 1e9, "batch_tokens": 64 * 2048}
    ddp, fsdp, hsdp = (plan(shape, strategy=s, micro_batch=1, **where) for s in ("ddp", "fsdp", "hsdp"))
    assert [(p.shards, p.replicas) for p in (ddp, fsdp, hsdp)] == [(1, 16), (16, 1), (8, 2)]
    assert plan(shape, strategy="hsdp", replicas=4, **where).shards == 4
    # auto: two copies of 16 bytes a parameter fit 64 GB for the 1B, not for the 7B.
    assert plan(shape, **where).strategy == "ddp" and plan(preset("olmo-7b"), **where).strategy == "fsdp"
    # DDP's buckets hold every gradient at every moment; its ring leaves a node once, HSDP's eight times an eighth.
    assert ddp.memory.gradients == 4 * shape.parameters
    assert ddp.communication_seconds == pytest.approx(8 * shape.parameters * 15 / 16 / 100e9)
    assert hsdp.communication_seconds == pytest.approx(8 * shape.parameters / 2 / 100e9)


def test_ranks_that_share_a_row_need_fewer_instances_and_less_memory() -> None:
    where = {"kind": "lumi-g", "nodes": 2, "tokens": 1e9, "strategy": "fsdp", "recompute": "none"}
    with pytest.raises(LoomError, match="4 instances.*fewer than the 16 ranks"):
        plan(preset("olmo-1b"), batch_tokens=4 * 2048, **where)
    shared = plan(preset("olmo-1b"), batch_tokens=4 * 2048, context=4, **where)
    alone = plan(preset("olmo-1b"), batch_tokens=16 * 2048, micro_batch=1, **where)
    assert alone.memory.activations / 4 < shared.memory.activations < alone.memory.activations / 2


def test_a_budget_lies_between_its_neighbours() -> None:
    where = {"kind": "h100-80gb-x1", "nodes": 1, "tokens": 1e9, "batch_tokens": 8 * 2048, "micro_batch": 8}
    modes = {
        mode: plan(preset("olmo-1b"), recompute=mode, activation_budget=0.4, **where)
        for mode in ("none", "selective", "budget", "full")
    }
    totals = [found.memory.activations for found in modes.values()]
    assert (
        totals == sorted(totals, reverse=True) and modes["budget"].modes["budget"] == modes["budget"].memory
    )


def test_a_gpu_never_holds_the_logits_of_a_whole_micro_batch() -> None:
    for tokens in (2048, 4096, 32_768):
        assert chunk_tokens(50_304, tokens, "cuda") * 2 <= tokens
        assert chunk_tokens(50_304, tokens, "cuda") * 50_304 <= 1 << 27


FAKE = """
import torch, torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore
dist.init_process_group("fake", rank=0, world_size=2048, store=FakeStore())
from loom.model.presets import preset
from loom.model.transformer import Transformer
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
with torch.device("meta"):
    model = Transformer(preset("olmo-65b"))
mesh = init_device_mesh("cpu", (2048,))
for block in model.blocks:
    fully_shard(block, mesh=mesh)
fully_shard(model, mesh=mesh)
print(sum(p.to_local().numel() for p in model.parameters()))
"""


@pytest.mark.slow
def test_65b_over_2048_ranks_holds_its_planned_share() -> None:
    run = subprocess.run([sys.executable, "-c", FAKE], capture_output=True, text=True, check=True)
    held = int(run.stdout.split()[-1])
    planned = memory(preset("olmo-65b"), tokens=2048, shards=2048).weights / 4
    assert held == planned == held_parameters(preset("olmo-65b"), 2048)


def loom(*words: str) -> dict:
    run = subprocess.run([sys.executable, "-m", "loom", *words, "--json"], capture_output=True, text=True)
    if run.returncode:
        raise LoomError(run.stderr)
    return json.loads(run.stdout.splitlines()[-1])


def test_the_command_plans_presets_and_recipes() -> None:
    large = loom("plan", "--preset", "olmo-65b", "--nodes", "256", "--node", "lumi-g")
    assert (large["ranks"], large["parameters"], large["batch_tokens"]) == (2048, 65_584_234_496, 4_194_304)
    assert large["fits"] and large["modes"]["full"]["total"] < large["modes"]["none"]["total"]
    seven = loom("plan", "--preset", "olmo-7b", "--nodes", "27", "--node", "a100-40gb-x8", "--price", "2")
    assert seven["ranks"] == 216 and seven["batch_tokens"] % (216 * 2048) == 0
    assert seven["cost"] == pytest.approx(2 * seven["device_hours"])
    ramp = loom("plan", "olmo-65b", "--nodes", "128", "--node", "lumi-g")
    assert [stage["instances_a_rank"] for stage in ramp["stages"]] == [1, 2, 4, 8]
    # Taken from the recipe: its ramp's number of steps, its recomputing, its sharding over all ranks.
    assert (ramp["steps"], ramp["recompute"], ramp["micro_batch"]) == (184_775, "full", 1)
    assert (ramp["strategy"], ramp["shards"]) == ("fsdp", 1024)
    later = loom("plan", "olmo-65b", "--nodes", "256", "--node", "lumi-g", "--from-step", "47685")
    assert (later["ranks"], later["batch_tokens"], later["steps"]) == (2048, 4_194_304, 184_775 - 47_684)
    a_node = loom("plan", "olmo-65b", "parallel.strategy=hsdp", "--nodes", "16", "--node", "lumi-g")
    assert (a_node["shards"], a_node["replicas"], a_node["fits"]) == (8, 16, False)


def test_every_row_of_its_tables_is_a_name_and_a_value(monkeypatch: pytest.MonkeyPatch) -> None:
    from loom.cli.plan import console, run

    tables = []
    monkeypatch.setattr(console, "table", lambda title, columns, rows, **_: tables.append((columns, rows)))
    run(recipe="olmo-65b", overrides=["parallel.context=2"], nodes=256, node="lumi-g")
    assert len(tables) == 3 and all(len(row) == len(columns) for columns, rows in tables for row in rows)
    assert ["fsdp: weights sharded over, whole copies", "2,048 ranks, 1"] in tables[0][1]
    assert ["ranks that share a row", 2] in tables[0][1]
    assert not any(isinstance(value, list) for _, rows in tables for row in rows for value in row)


def test_a_ramp_with_fewer_instances_than_ranks_is_refused_with_its_fix() -> None:
    with pytest.raises(LoomError, match=r"1024 instances, fewer than the 2048 ranks.*at least 4,194,304"):
        loom("plan", "olmo-65b", "--nodes", "256", "--node", "lumi-g")


def test_a_recipe_without_a_model_is_planned_for_what_it_begins_from(tmp_path: Path) -> None:
    from loom.cli.plan import run

    shape = preset("olmo-60m")
    (tmp_path / "config.json").write_text(json.dumps(config_to_huggingface(shape, 0, 1)))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("train: {steps: 10, batch_tokens: 65536}\n")
    for key in ("init", "anneal"):
        planned = run(recipe=str(recipe), overrides=[f"train.{key}={tmp_path}"], node="h100-80gb-x1")
        assert planned["parameters"] == shape.parameters
