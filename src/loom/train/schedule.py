"""Learning rate and clipping as pure functions of the step (OLMo's trainer, optim.py)."""

from __future__ import annotations

import math

from loom.train.config import OptimizerConfig, ScheduleConfig


def learning_rate(now: float, end: float, peak: float, schedule: ScheduleConfig) -> float:
    """At `now`, 1-based steps or tokens seen including this batch, of a run that ends at `end`.

    The warm-up rises linearly from `warmup_from` of the peak; decay ends at `floor` of it. OLMo 7B:
    lr(1) = 3.0054e-5, lr(5000) = 3e-4, lr(5001) = 2.999994e-4.
    """
    warmup, floor = schedule.warmup, schedule.floor * peak
    end = schedule.length if schedule.length is not None else end
    if now < warmup:
        start = schedule.warmup_from * peak
        return start + (peak - start) * now / warmup
    if schedule.kind == "constant":
        return peak
    if now >= end:
        return floor
    match schedule.kind:
        case "linear":
            return peak - (peak - floor) * (now - warmup) / (end - warmup)
        case "cosine":
            return floor + (peak - floor) * (1 + math.cos(math.pi * (now - warmup) / (end - warmup))) / 2
        case "wsd":
            left = end - now
            return peak if left >= schedule.decay else floor + (peak - floor) * left / schedule.decay


def clip_limit(step: int, tokens: int, optimizer: OptimizerConfig) -> float | None:
    """Largest gradient norm at a 1-based step before which `tokens` were read.

    OLMo clips with the limit it set a step before: the first step at `clip`, then `clip_warmup_steps`
    steps, or those that come after up to `clip_warmup_tokens` tokens, at `clip` times the factor. (OLMo
    repeats the first after each resume; a resumed run here is the undisturbed one.)
    """
    if optimizer.clip is None:
        return None
    if optimizer.clip_warmup_tokens:
        raised = 0 < tokens <= optimizer.clip_warmup_tokens
    else:
        raised = 2 <= step <= optimizer.clip_warmup_steps + 1
    return optimizer.clip * (optimizer.clip_warmup_factor if raised else 1.0)
