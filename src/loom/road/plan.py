"""How many steps fit the minutes: measured once, written to `plan.json`, never asked of a clock again."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from loom.artifact import write_json
from loom.console import console
from loom.errors import LoomError
from loom.recipe import build
from loom.road.training import run_training
from loom.train.callbacks import Callback, Record
from loom.train.config import RunConfig

PLAN = "plan.json"
WARM, TIMED = 8, 24  # steps of the calibration that are not counted, and that are
# Shares of the whole time. The rest goes to curation, evaluation and start-up.
PRETRAIN, SFT, DPO = 0.58, 0.14, 0.07
# A token of these costs this many of pretraining's: masks between documents; two passes of the reference.
SFT_COST, DPO_COST = 1.3, 2.0
FEWEST = {"pretrain": 20, "sft": 10, "dpo": 5}


@dataclass(frozen=True)
class Steps:
    pretrain: int
    sft: int
    dpo: int


@dataclass(frozen=True)
class Plan:
    """`tokens_per_second` is what the calibration saw; the steps follow from it and from `minutes`."""

    minutes: float
    tokens_per_second: float
    steps: Steps


def read_plan(folder: Path, minutes: float | None) -> Plan | None:
    """The plan in `folder`, if there is one. Raises `LoomError` if it was made for other minutes."""
    path = folder / PLAN
    if not path.exists():
        return None
    try:
        data = json.loads(path.read_bytes())
    except ValueError as error:
        raise LoomError(f"{path} is not JSON ({error}): remove it to calibrate anew.") from None
    plan = build(data, Plan, str(path))
    if minutes is not None and plan.minutes != minutes:
        raise LoomError(
            f"{folder} was planned for --minutes {plan.minutes:g}, not {minutes:g}; its steps are fixed in "
            f"{path}. Choose another --out, or leave --minutes out to go on."
        )
    return plan


def make_plan(
    folder: Path, minutes: float, pretrain: RunConfig, pair_tokens: float, batch_pairs: int
) -> Plan:
    """Measure pretraining steps of `pretrain` and write the plan.

    `pair_tokens` is the mean number of tokens of a preference pair, both answers together.
    """
    speed = calibrate(pretrain, folder / "calibration")
    seconds = 60 * minutes
    batch = pretrain.train.batch_tokens
    steps = Steps(
        pretrain=max(FEWEST["pretrain"], int(PRETRAIN * seconds * speed / batch)),
        sft=max(FEWEST["sft"], int(SFT * seconds * speed / (SFT_COST * batch))),
        dpo=max(FEWEST["dpo"], int(DPO * seconds * speed / (DPO_COST * batch_pairs * pair_tokens))),
    )
    plan = Plan(minutes, round(speed, 1), steps)
    write_json(folder / PLAN, asdict(plan))
    return plan


def calibrate(config: RunConfig, scratch: Path) -> float:
    """Tokens a second of the real loop on the real tokens, past its first steps. `scratch` is removed."""
    timed = replace(
        config,
        train=replace(config.train, steps=WARM + TIMED, log_every=1, checkpoint_every=WARM + TIMED),
    )
    clock = _Clock()
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        run_training(timed, scratch, callbacks=(clock,), name="calibration")
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    speed = TIMED * config.train.batch_tokens / (clock.seconds[-1] - clock.seconds[WARM - 1])
    console.say(f"calibration: {speed:,.0f} tokens/s")
    return speed


class _Clock(Callback):
    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step(self, record: Record) -> None:
        self.seconds.append(float(record["seconds"]))
