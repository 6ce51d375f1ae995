"""What a run will need, before a machine is asked for: arithmetic only, nothing is measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from types import MappingProxyType

from loom.errors import LoomError
from loom.model.config import ModelConfig
from loom.train.memory import RECOMPUTE, Memory, Recompute, fits, memory


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


@dataclass(frozen=True)
class Plan:
    """A run on some nodes. Times follow from the stated model FLOPs utilisation; nothing is measured."""

    parameters: int
    flops_per_token: float
    ranks: int
    shards: int
    replicas: int
    micro_batch: int
    recompute: Recompute
    memory: Memory
    modes: Mapping[Recompute, Memory]
    """The same micro-batch under every checkpointing mode."""
    capacity: float
    batch_tokens: int
    steps: int
    step_seconds: float
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


def plan(
    config: ModelConfig,
    *,
    kind: str,
    nodes: int,
    tokens: float,
    batch_tokens: int,
    sequence_length: int | None = None,
    micro_batch: int | None = None,
    recompute: Recompute | None = None,
    replicas: int = 1,
    mfu: float = 0.4,
    price_per_device_hour: float | None = None,
    pue: float = 1.1,
) -> Plan:
    """Choose what is left open so that it fits: first the least recomputing, then the largest micro-batch.

    tokens: of the whole run. Energy is device power times time times `pue`, the site's overhead. Where
    nothing fits, `fits` is false of what needs least. Raises `LoomError` when a batch has fewer instances
    than there are ranks.
    """
    machine = node(kind)
    ranks = nodes * machine.ranks
    length = sequence_length or config.context_length
    instances = batch_tokens // length
    if instances < ranks:
        raise LoomError(
            f"A batch of {batch_tokens:,} tokens is {instances:,} instances of {length:,}, fewer than the {ranks:,} "
            f"ranks: use a batch of at least {ranks * length:,} tokens, or at most {max(1, instances // machine.ranks)} "
            f"nodes for that stage."
        )
    if ranks % replicas:
        raise LoomError(f"{replicas} replicas do not divide {ranks:,} ranks: choose a divisor.")
    shards = ranks // replicas
    modes = (recompute,) if recompute else RECOMPUTE
    sizes = (
        (micro_batch,) if micro_batch else tuple(2**i for i in range(6, -1, -1) if 2**i <= instances // ranks)
    )
    candidates = [
        (mode, size, memory(config, tokens=size * length, shards=shards, recompute=mode))
        for mode in modes
        for size in sizes
    ]
    fitting = [c for c in candidates if fits(c[2], machine.memory)]
    mode, size, needed = (fitting or candidates[-1:])[0]
    flops = config.flops_per_token(length)
    step_seconds = flops * batch_tokens / (ranks * machine.peak * mfu)
    steps = -(-int(tokens) // batch_tokens)
    micro_steps = -(-instances // (ranks * size))
    # bf16 weights gathered for forward and backward, float32 gradients reduced, each micro-batch.
    sharding = micro_steps * (2 + 2 + 4) * config.parameters * (shards - 1) / shards
    copies = 2 * 4 * config.parameters / shards * (replicas - 1) / replicas
    # A ring leaves a node once however many ranks it has; rings among copies are one a rank.
    leaving = (sharding if shards > machine.ranks else 0.0) + copies * machine.ranks
    seconds = steps * step_seconds
    hours = seconds / 3600 * ranks
    return Plan(
        config.parameters,
        flops,
        ranks,
        shards,
        replicas,
        size,
        mode,
        needed,
        {m: memory(config, tokens=size * length, shards=shards, recompute=m) for m in RECOMPUTE},
        machine.memory,
        batch_tokens,
        steps,
        step_seconds,
        sharding + copies,
        leaving / machine.network if nodes > 1 else 0.0,
        seconds / 86_400,
        hours,
        hours * machine.watts / 1000 * pue,
        None if price_per_device_hour is None else hours * price_per_device_hour,
    )
