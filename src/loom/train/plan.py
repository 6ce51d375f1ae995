"""What a run will need, before a machine is asked for: arithmetic only.

Memory is that of one rank in bytes. Activations are what autograd keeps for backward in this model's
own code, counted tensor by tensor; a test counts them too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from types import MappingProxyType
from typing import Literal

from loom.errors import LoomError
from loom.model.config import ModelConfig

Recompute = Literal["none", "selective", "full"]
GB = 1e9


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
class Memory:
    """Of one rank, by part."""

    weights: float
    gradients: float
    optimizer: float
    gathered: float
    """Whole bf16 weights in use, and a block's gradient on its way to its shards."""
    activations: float
    loss: float

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.optimizer + self.gathered + self.activations + self.loss


def activation_bytes(config: ModelConfig, recompute: Recompute, bf16: bool = True) -> float:
    """Kept for backward, a token and layer, with a fused attention kernel.

    none: norm inputs in float32 (one for RMSNorm's square besides), norm outputs, q, k, v, what
    attention and output projection take, gate, silu(gate), up and their product.
    """
    size = 2 if bf16 else 4
    d, w, kv = config.d_model, config.mlp_width, config.kv_width
    if recompute == "full":
        return size * d
    if recompute == "selective":
        # The block's input and what products and attention give: q, k, v, mixed, out, gate, up, down.
        return size * (d + d + 2 * kv + d + d + 2 * w + d) + 4 * config.n_heads
    # In float32 a norm's input is the residual itself, in bf16 its float32 copy.
    norms = 2 * (4 * d + size * d)
    if config.norm == "rmsnorm":
        norms += 2 * 4 * d
    attention = size * (d + 2 * kv) + size * d + 4 * config.n_heads
    if config.qk_norm:
        attention += (4 + 4) * (d + kv)
    return norms + attention + size * 4 * w


def memory(
    config: ModelConfig,
    *,
    tokens: int,
    shards: int = 1,
    recompute: Recompute = "none",
    bf16: bool = True,
    chunk: int = 1 << 29,
) -> Memory:
    """A rank's memory for a micro-batch of `tokens`, weights sharded `shards` ways (1: not at all).

    `chunk` is the number of logits the loss holds at a time (`loss.chunk_tokens`).
    """
    parameters = config.parameters
    block = config.d_model * (2 * config.d_model + 2 * config.kv_width + 3 * config.mlp_width)
    rest = config.vocab_size * config.d_model * (1 if config.tied else 2)
    size = 2 if bf16 else 4
    if shards > 1:
        # The root's matrices stay gathered; one block computes, the next is on its way, one is reduced.
        gathered = float(size * (rest + 2 * block)) + size * max(block, rest) + 4 * max(block, rest)
    else:
        # Without sharding products cast their weight; autograd keeps the casts until backward.
        gathered = float(size * (parameters if bf16 else 0))
    per_layer = activation_bytes(config, recompute, bf16) * tokens
    activations = config.n_layers * per_layer
    if recompute != "none":
        activations += activation_bytes(config, "none", bf16) * tokens
    # Beside the layers: the final norm, hidden states and their gradient.
    activations += tokens * config.d_model * (4 + 2 * size)
    logits = min(tokens * config.vocab_size, chunk)
    loss = logits * (size + 4 + 4) + 4 * config.vocab_size * config.d_model
    return Memory(
        4 * parameters / shards,
        4 * parameters / shards,
        8 * parameters / shards,
        gathered,
        activations,
        loss,
    )


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
        return self.memory.total <= 0.92 * self.capacity  # the rest: kernels, buffers, fragmentation


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

    tokens: of the whole run. Energy is device power times time times `pue`, the site's overhead. Raises
    `LoomError` when nothing fits, or when a batch has fewer instances than there are ranks.
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
    modes: tuple[Recompute, ...] = (recompute,) if recompute else ("none", "selective", "full")
    sizes = (
        (micro_batch,) if micro_batch else tuple(2**i for i in range(6, -1, -1) if 2**i <= instances // ranks)
    )
    candidates = [
        (mode, size, memory(config, tokens=size * length, shards=shards, recompute=mode))
        for mode in modes
        for size in sizes
    ]
    fitting = [c for c in candidates if c[2].total <= 0.92 * machine.memory]
    mode, size, needed = (fitting or candidates[-1:])[0]
    flops = config.flops_per_token(length)
    step_seconds = flops * batch_tokens / (ranks * machine.peak * mfu)
    steps = -(-int(tokens) // batch_tokens)
    micro_steps = -(-instances // (ranks * size))
    # bf16 weights gathered for forward and backward, float32 gradients reduced, each micro-batch.
    moved = micro_steps * (2 + 2 + 4) * config.parameters * (shards - 1) / shards
    moved += 2 * 4 * config.parameters / shards * (replicas - 1) / replicas
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
        machine.memory,
        batch_tokens,
        steps,
        step_seconds,
        moved,
        moved * machine.ranks / machine.network if nodes > 1 else 0.0,
        seconds / 86_400,
        hours,
        hours * machine.watts / 1000 * pue,
        None if price_per_device_hour is None else hours * price_per_device_hour,
    )
