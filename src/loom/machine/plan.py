"""What a run will need, before a machine is asked for: arithmetic only, nothing is measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from types import MappingProxyType
from typing import Literal

from loom.errors import LoomError
from loom.model.config import ModelConfig
from loom.train.memory import RECOMPUTE, Memory, fits, memory, modes_within, replicated


@dataclass(frozen=True)
class Node:
    """A kind of node. Peaks are dense bf16 of the data sheets; a rank is what torch sees as one device."""

    ranks: int
    memory: float
    """Bytes a rank."""
    peak: float
    """Operations a second and rank."""
    watts: float
    """A rank's share of the accelerators' board power."""
    network: float
    """Bytes a second out of a node, one way."""


NODES: Mapping[str, Node] = MappingProxyType(
    {
        "lumi-g": Node(8, 64 * 2**30, 191.5e12, 280, 100e9),
        "a100-40gb-x8": Node(8, 40 * 2**30, 312e12, 400, 200e9),
        "a100-80gb-x8": Node(8, 80 * 2**30, 312e12, 400, 200e9),
        "h100-80gb-x8": Node(8, 80 * 2**30, 989e12, 700, 400e9),
        "h100-80gb-x1": Node(1, 80 * 2**30, 989e12, 700, 50e9),
        "mi300x-x8": Node(8, 192 * 2**30, 1300e12, 750, 400e9),
    }
)


def node(name: str) -> Node:
    if name not in NODES:
        near = get_close_matches(name, NODES, 1)
        raise LoomError(
            f"--node {name!r} is not known; there are {', '.join(NODES)}."
            + (f" Did you mean {near[0]!r}?" if near else "")
        )
    return NODES[name]


Strategy = Literal["auto", "ddp", "fsdp", "hsdp"]
Mode = Literal["none", "selective", "full", "budget"]


@dataclass(frozen=True)
class Plan:
    """A run on some nodes. Times follow from the stated model FLOPs utilisation; nothing is measured."""

    parameters: int
    flops_per_token: float
    ranks: int
    strategy: Strategy
    shards: int
    replicas: int
    context: int
    micro_batch: int
    recompute: Mode
    memory: Memory
    modes: Mapping[Mode, Memory]
    """The same micro-batch under every checkpointing mode."""
    capacity: float
    batch_tokens: int
    """Of the first step."""
    steps: int
    """Over all batch sizes."""
    step_seconds: float
    """Of the first step."""
    communication_bytes: float
    """Sent by a rank in a step."""
    communication_seconds: float
    """At the node's full network rate, were nothing overlapped."""
    days: float
    device_hours: float
    energy_kwh: float
    cost: float | None

    @property
    def fits(self) -> bool:
        return fits(self.memory, self.capacity)


def copies(strategy: Strategy, config: ModelConfig, machine: Node, nodes: int, replicas: int | None) -> int:
    """How many whole copies of the weights there are, as `loom.train.parallel` chooses."""
    ranks = nodes * machine.ranks
    match strategy:
        case "auto":
            return ranks if replicated(config, machine.memory) else 1
        case "ddp":
            return ranks
        case "fsdp":
            return 1
        case "hsdp":
            return replicas or nodes


def steps_for(tokens: int, batches: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """(steps until `tokens` are read, tokens read by then) of batches (from step, tokens a step)."""
    steps = read = 0
    for number, (_, size) in enumerate(batches):
        following = batches[number + 1][0] - 1 if number + 1 < len(batches) else None
        here = -(-(tokens - read) // size)
        if following is None or steps + here <= following:
            return steps + here, read + here * size
        read += (following - steps) * size
        steps = following
    return steps, read


def plan(
    config: ModelConfig,
    *,
    kind: str,
    nodes: int,
    tokens: float,
    batch_tokens: int,
    ramp: Sequence[tuple[int, int]] = (),
    sequence_length: int | None = None,
    micro_batch: int | None = None,
    recompute: Mode | None = None,
    activation_budget: float = 0.5,
    bf16: bool = True,
    strategy: Strategy = "auto",
    replicas: int | None = None,
    context: int = 1,
    mfu: float = 0.4,
    price_per_device_hour: float | None = None,
    pue: float = 1.1,
) -> Plan:
    """Choose what is left open so that it fits: first the least recomputing, then the largest micro-batch.

    tokens: of the whole run. `ramp`: (from step, tokens a step) of later batches. `strategy`, `replicas`
    and `context` mean what the recipe's `parallel` does. Energy is device power times time times `pue`,
    the site's overhead. Where nothing fits, `fits` is false of what needs least. Raises `LoomError` when
    a batch has fewer instances than there are ranks that read.
    """
    machine = node(kind)
    ranks = nodes * machine.ranks
    length = sequence_length or config.context_length
    if ranks % context or length % context:
        raise LoomError(
            f"parallel.context {context} divides not both the {ranks:,} ranks and the {length:,} positions of a row."
        )
    readers = ranks // context
    instances = batch_tokens // length
    if instances < readers:
        shared = f" that read ({context} share a row)" if context > 1 else ""
        raise LoomError(
            f"A batch of {batch_tokens:,} tokens is {instances:,} instances of {length:,}, fewer than the {readers:,} "
            f"ranks{shared}: use a batch of at least {readers * length:,} tokens, or at most "
            f"{max(1, instances * context // machine.ranks)} nodes for that stage."
        )
    whole = copies(strategy, config, machine, nodes, replicas)
    if ranks % whole:
        raise LoomError(f"{whole} replicas do not divide {ranks:,} ranks: choose a divisor.")
    shards = ranks // whole

    def needed(mode: Mode, size: int) -> Memory:
        modes = modes_within(config, activation_budget, bf16) if mode == "budget" else mode
        return memory(
            config, tokens=size * length // context, shards=shards, recompute=modes, bf16=bf16,
            buckets=whole > 1, context=context,
        )  # fmt: skip

    most = instances // readers
    sizes = (
        (min(micro_batch, most),) if micro_batch else tuple(2**i for i in range(6, -1, -1) if 2**i <= most)
    )
    candidates = [(mode, size, needed(mode, size)) for mode in _modes(recompute) for size in sizes]
    fitting = [c for c in candidates if fits(c[2], machine.memory)]
    mode, size, chosen = (fitting or candidates[-1:])[0]
    flops = config.flops_per_token(length)
    rate = ranks * machine.peak * mfu / flops  # tokens a second
    steps, read = steps_for(int(tokens), [(1, batch_tokens), *ramp])
    micro_steps = -(-instances // (readers * size))
    # bf16 weights gathered for forward and backward, float32 gradients reduced, each micro-batch.
    sharding = micro_steps * (2 + 2 + 4) * config.parameters * (shards - 1) / shards
    among = 2 * 4 * config.parameters / shards * (whole - 1) / whole
    # A ring leaves a node once however many ranks it has; rings among copies are one a shard.
    leaving = (sharding if shards > machine.ranks else 0.0) + among * min(shards, machine.ranks)
    seconds = read / rate
    hours = seconds / 3600 * ranks
    return Plan(
        config.parameters,
        flops,
        ranks,
        "fsdp" if whole == 1 else "ddp" if shards == 1 else "hsdp",
        shards,
        whole,
        context,
        size,
        mode,
        chosen,
        {m: needed(m, size) for m in dict.fromkeys((*RECOMPUTE, mode))},
        machine.memory,
        batch_tokens,
        steps,
        batch_tokens / rate,
        sharding + among,
        leaving / machine.network if nodes > 1 else 0.0,
        seconds / 86_400,
        hours,
        hours * machine.watts / 1000 * pue,
        None if price_per_device_hour is None else hours * price_per_device_hour,
    )


def _modes(recompute: Mode | None) -> tuple[Mode, ...]:
    return (recompute,) if recompute else RECOMPUTE
