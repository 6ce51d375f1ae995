"""The plan's arithmetic is what the code does."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from loom.errors import LoomError
from loom.machine.plan import plan
from loom.model.presets import preset
from loom.train.memory import held_parameters, memory


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


def test_a_ramp_with_fewer_instances_than_ranks_is_refused_with_its_fix() -> None:
    with pytest.raises(LoomError, match=r"1024 instances, fewer than the 2048 ranks.*at least 4,194,304"):
        loom("plan", "olmo-65b", "--nodes", "256", "--node", "lumi-g")
