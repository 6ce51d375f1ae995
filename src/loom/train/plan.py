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
RECOMPUTE: tuple[Recompute, ...] = ("none", "selective", "full")


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
    """Of one rank, by part, at the moment of a step when most is held."""

    weights: float
    optimizer: float
    gathered: float
    """bf16 copies of the weights in use, whole; with shards also a block's gradient on its way to them."""
    gradients: float
    activations: float
    loss: float
    """Logits of a chunk and their softmax."""
    moment: Literal["loss", "backward", "optimizer"]

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


def held_parameters(config: ModelConfig, shards: int) -> int:
    """Numbers of the fullest of `shards` ranks: FSDP parts every tensor by rows, so the first get more."""
    d, kv, w = config.d_model, config.kv_width, config.mlp_width
    block = [(d, d), (kv, d), (kv, d), (d, d), (w, d), (w, d), (d, w)]
    if config.norm == "rmsnorm":
        block += [(d, 1), (d, 1)]
    if config.qk_norm:
        block += [(d, 1), (kv, 1)]
    rest = [(config.vocab_size, d)] * (1 if config.tied else 2)
    if config.norm == "rmsnorm":
        rest.append((d, 1))
    return sum(-(-rows // shards) * columns for rows, columns in block * config.n_layers + rest)


def memory(
    config: ModelConfig,
    *,
    tokens: int,
    shards: int = 1,
    recompute: Recompute = "none",
    bf16: bool = True,
    device: Literal["cuda", "cpu"] = "cuda",
) -> Memory:
    """A rank's memory for a micro-batch of `tokens`, weights sharded `shards` ways (1: not at all).

    Three moments compete: the loss (all activations, a chunk's logits), the first block's backward (all
    activations, the block's own again if it is recomputed, its slopes) and the end (all gradients).
    """
    size = 2 if bf16 else 4
    d, length = config.d_model, config.context_length
    matrix = 4 * config.vocab_size * d  # the output matrix's gradient, there from the loss on
    block = d * (2 * d + 2 * config.kv_width + 3 * config.mlp_width)
    rest = config.vocab_size * d * (1 if config.tied else 2)
    held = held_parameters(config, shards)
    if shards > 1:
        # The root's matrices stay gathered; one block computes, the next is on its way, one is reduced.
        gathered = float(size * (rest + 2 * block)) + size * max(block, rest) + 4 * max(block, rest)
    else:
        # Without sharding products cast their weight; autograd keeps the casts until backward.
        gathered = float(size * (config.parameters if bf16 else 0))
    whole = activation_bytes(config, "none", bf16)
    layer = activation_bytes(config, recompute, bf16)
    if device == "cpu":
        # Training attention keeps its probabilities, blocks of 128 queries over the keys up to them.
        probabilities = size * config.n_heads * (length + min(length, 128)) / 2
        whole += probabilities
        layer += probabilities if recompute == "none" else -size * d if recompute == "selective" else 0
    # Beside the layers: the final norm, hidden states and their gradient.
    kept = tokens * (config.n_layers * layer + d * (4 + 2 * size))
    again = 0 if recompute == "none" else tokens * whole
    if recompute == "selective":
        again -= tokens * size * (d + 2 * config.kv_width + 2 * config.mlp_width)  # these were kept
    slopes = tokens * size * 2 * config.mlp_width  # of gate and up
    values = 1 << (29 if device == "cuda" else 26)
    rows = max(64, min(tokens, 1 << ((values // config.vocab_size).bit_length() - 1)))
    logits = rows * config.vocab_size
    piece = min(logits, 1 << 20) if device == "cpu" else logits
    # Its softmax in float32, that of the piece before, and on a CPU the logits in float32.
    copies = (1 if piece == tokens * config.vocab_size else 2) + (1 if bf16 and device == "cpu" else 0)
    moments: dict[Literal["loss", "backward", "optimizer"], tuple[float, float, float]] = {
        "loss": (matrix, kept, size * logits + 4 * copies * piece),
        "backward": (matrix, kept + again + slopes, 0.0),
        "optimizer": (4 * held, matrix, 0.0),  # the embedding's gradient as it is added
    }
    if shards > 1:
        moments = {name: (4 * held, parts[1], parts[2]) for name, parts in moments.items()}
        moments["loss"] = (4 * held, kept, moments["loss"][2] + matrix)
    moment = max(moments, key=lambda name: sum(moments[name]) - (gathered if name == "optimizer" else 0))
    gradients, activations, loss = moments[moment]
    if moment == "optimizer":
        gathered = 0.0
    return Memory(4 * held, 8 * held, gathered, gradients, activations, loss, moment)


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


def fits(memory: Memory, capacity: float) -> bool:
    return memory.total <= 0.92 * capacity  # the rest: kernels, buffers, fragmentation


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
