"""Memory that training takes, by arithmetic: of one rank, in bytes.

Activations are what autograd keeps for backward in this model's
own code, counted tensor by tensor; a test counts them too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from loom.errors import LoomError
from loom.model.config import ModelConfig

Recompute = Literal["none", "selective", "full"]
RECOMPUTE: tuple[Recompute, ...] = ("none", "selective", "full")


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


def modes_within(config: ModelConfig, share: float, bf16: bool = True) -> list[Recompute]:
    """A mode a layer, so that activations are at most `share` of what recomputing nothing keeps.

    The least recomputing comes first: all but products in as many layers as it takes, then whole blocks;
    the first layers, whose activations live longest. Raises `LoomError` for less than whole blocks need.
    """
    sizes = {mode: activation_bytes(config, mode, bf16) for mode in RECOMPUTE}
    modes: list[Recompute] = ["none"] * config.n_layers
    allowed = share * config.n_layers * sizes["none"] * (1 + 1e-9)
    for mode in ("selective", "full"):
        for layer in range(config.n_layers):
            if sum(sizes[chosen] for chosen in modes) <= allowed:
                return modes
            modes[layer] = mode
    if sum(sizes[chosen] for chosen in modes) > allowed:
        raise LoomError(
            f"train.activation_budget is {share:g}; recomputing every block keeps {sizes['full'] / sizes['none']:.3f} of "
            f"the activations, so no less can be had: raise it, or lower train.micro_batch."
        )
    return modes


def chunk_tokens(vocabulary: int, tokens: int, device: str) -> int:
    """Tokens whose logits the loss holds at a time: 2^26 values on a CPU, which works through them in pieces.

    On a GPU 2^27, so that products stay large, and never all of a micro-batch: no [tokens, vocabulary]
    matrix is ever whole.
    """
    if device == "cpu":
        values, most = 1 << 26, tokens
    else:
        values, most = 1 << 27, -(-tokens // 2)
    return max(64, min(most, 1 << ((values // vocabulary).bit_length() - 1)))


def replicated(config: ModelConfig, capacity: float) -> bool:
    """Whether two copies of weights, gradients and Adam fit a rank: then `auto` is ddp, else fsdp."""
    return 2 * 16 * config.parameters < capacity


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
    recompute: Recompute | Sequence[Recompute] = "none",
    bf16: bool = True,
    device: Literal["cuda", "cpu"] = "cuda",
    buckets: bool = False,
    context: int = 1,
) -> Memory:
    """A rank's memory for a micro-batch of `tokens`, weights sharded `shards` ways (1: not at all).

    `recompute` may name a mode a layer. `buckets`: DDP's, which hold every gradient all the time.
    `context`: ranks that share the positions of a row; `tokens` are this rank's, keys and values those
    of the whole row.

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
    modes = [recompute] * config.n_layers if isinstance(recompute, str) else list(recompute)
    sizes = {mode: activation_bytes(config, mode, bf16) for mode in RECOMPUTE}
    # Keys and values of the other ranks' positions, where a row is shared.
    sizes["none"] += 2 * size * config.kv_width * (context - 1)
    if device == "cpu":
        # Training attention keeps its probabilities, blocks of 128 queries over the keys up to them.
        sizes["none"] += size * config.n_heads * (length + min(length, 128)) / 2
        sizes["selective"] -= size * d
    # Beside the layers: the final norm, hidden states and their gradient.
    kept = tokens * (sum(sizes[mode] for mode in modes) + d * (4 + 2 * size))
    # Computed again for one block: all of it, less what `selective` kept.
    again = {"none": 0.0, "selective": sizes["none"], "full": sizes["none"]}
    again["selective"] -= size * (d + 2 * config.kv_width + 2 * config.mlp_width)
    slopes = tokens * size * 2 * config.mlp_width  # of gate and up
    rows = chunk_tokens(config.vocab_size, tokens, device)
    logits = rows * config.vocab_size
    piece = min(logits, 1 << 20) if device == "cpu" else logits
    # Its softmax in float32, that of the piece before, and on a CPU the logits in float32.
    copies = (1 if piece == tokens * config.vocab_size else 2) + (1 if bf16 and device == "cpu" else 0)
    moments: dict[Literal["loss", "backward", "optimizer"], tuple[float, float, float]] = {
        "loss": (matrix, kept, size * logits + 4 * copies * piece),
        "backward": (matrix, kept + tokens * max(again[mode] for mode in modes) + slopes, 0.0),
        "optimizer": (4 * held, matrix, 0.0),  # the embedding's gradient as it is added
    }
    if buckets and shards == 1:
        moments = {name: (4 * held, parts[1], parts[2]) for name, parts in moments.items()}
    if shards > 1:
        moments = {name: (4 * held, parts[1], parts[2]) for name, parts in moments.items()}
        moments["loss"] = (4 * held, kept, moments["loss"][2] + matrix)
    moment = max(moments, key=lambda name: sum(moments[name]) - (gathered if name == "optimizer" else 0))
    gradients, activations, loss = moments[moment]
    if moment == "optimizer":
        gathered = 0.0
    return Memory(4 * held, 8 * held, gathered, gradients, activations, loss, moment)


def fits(memory: Memory, capacity: float) -> bool:
    return memory.total <= 0.92 * capacity  # the rest: kernels, buffers, fragmentation
