"""Where a run computes: devices, ranks, and the wraps around the model in the order they are applied.

The model file has never heard of any of this. recompute -> compile -> shard, block by block.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from loom.errors import LoomError
from loom.model.initialize import initialize_parameter
from loom.model.transformer import Transformer
from loom.train.config import ParallelConfig, TrainConfig
from loom.train.memory import modes_within, replicated

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """This process among its peers. One process alone needs no process group."""

    rank: int
    size: int
    device: torch.device
    owned: bool = False
    """The process group was started here and is to be ended here."""

    @property
    def first(self) -> bool:
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Over ranks, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()

    def gather(self, value: Any, group: dist.ProcessGroup | None = None) -> list[Any]:
        """Every rank's picklable value, on every rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=group)
        return values

    def once(self, find: Callable[[], T]) -> T:
        """What the first rank finds, or the `LoomError` it meets, on every rank: files are read and digested once."""
        found: T | None = None
        error: str | None = None
        if self.first:
            try:
                found = find()
            except LoomError as met:
                error = str(met)
        found, error = self.gather((found, error))[0]
        if error is not None:
            raise LoomError(error)
        return cast(T, found)

    def close(self) -> None:
        if self.owned:
            dist.destroy_process_group()


def start_world() -> World:
    """Join the ranks that torchrun started (RANK, WORLD_SIZE, LOCAL_RANK), or be alone."""
    local = int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if dist.is_initialized():
        return World(dist.get_rank(), dist.get_world_size(), device)
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return World(0, 1, device)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=timedelta(minutes=30))
    return World(dist.get_rank(), dist.get_world_size(), device, owned=True)


_SAVED_PRODUCTS = [
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
]


def _keep_products(_ctx: Any, op: Any, *_args: Any, **_kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if op in _SAVED_PRODUCTS else CheckpointPolicy.PREFER_RECOMPUTE


def recompute_blocks(model: Transformer, mode: str, share: float = 1.0) -> None:
    """`full`: keep a block's input only; `selective`: keep what matrix products and attention give;
    `budget`: of each as few as hold `share` of the activations."""
    layers = len(model.blocks)
    bf16 = model.compute_dtype == torch.bfloat16
    modes = modes_within(model.config, share, bf16) if mode == "budget" else [mode] * layers
    selective = partial(create_selective_checkpoint_contexts, _keep_products)
    for block, chosen in zip(model.blocks, modes, strict=True):
        if chosen == "none":
            continue
        extra: dict[str, Any] = {"context_fn": selective} if chosen == "selective" else {}
        block.forward = partial(checkpoint, block.forward, use_reentrant=False, **extra)


def can_compile(device: torch.device) -> bool:
    """A CPU needs a C++ compiler for it, a GPU Triton, which torch brings along on Linux."""
    if device.type == "cuda":
        return True
    return any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "g++", "clang++"))


def strategy(config: ParallelConfig, model: Transformer, world: World) -> str:
    """`ddp`, `fsdp` or `hsdp`: as asked, else ddp if two copies of weights, gradients and Adam fit a rank."""
    if config.strategy != "auto":
        return config.strategy
    if world.device.type == "cuda":
        memory = torch.cuda.get_device_properties(world.device).total_memory
    else:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // world.size
    return "ddp" if replicated(model.config, memory) else "fsdp"


def build_mesh(config: ParallelConfig, kind: str, world: World) -> DeviceMesh:
    if kind == "fsdp":
        return init_device_mesh(world.device.type, (world.size,), mesh_dim_names=("shard",))
    nodes = max(1, world.size // int(os.environ.get("LOCAL_WORLD_SIZE", world.size)))
    replicas = config.replicas or nodes
    if world.size % replicas:
        raise LoomError(
            f"parallel.replicas {replicas} does not divide the {world.size} ranks: choose a divisor."
        )
    return init_device_mesh(
        world.device.type, (replicas, world.size // replicas), mesh_dim_names=("replicate", "shard")
    )


def parallelize(
    model: Transformer, world: World, config: ParallelConfig, train: TrainConfig, compiled: bool
) -> nn.Module:
    """Wrap a model that lies on the meta device; afterwards it is on the world's, uninitialised."""
    recompute_blocks(model, train.recompute, train.activation_budget)
    if compiled:
        for block in model.blocks:
            block.compile()
    if world.size == 1:
        return model.to_empty(device=world.device)
    kind = strategy(config, model, world)
    if kind == "ddp":
        return model.to_empty(device=world.device)  # wrapped once there are weights, see `replicate`
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if train.precision == "bf16" else None,
        reduce_dtype=torch.float32,
        cast_forward_inputs=False,
    )
    mesh = build_mesh(config, kind, world)
    for block in model.blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    # The root keeps its weights gathered: the loss uses the output matrix at the end of forward.
    fully_shard(model, mesh=mesh, mp_policy=policy, reshard_after_forward=False)
    return model.to_empty(device=world.device)


def replicate(model: nn.Module, world: World) -> nn.Module:
    """DDP around a model that is neither sharded nor alone."""
    if world.size == 1 or isinstance(model, FSDPModule):
        return model
    ids = [world.device.index] if world.device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=ids, gradient_as_bucket_view=True)


def bare(model: nn.Module) -> Transformer:
    inner = model.module if isinstance(model, DistributedDataParallel) else model
    assert isinstance(inner, Transformer)
    return inner


@torch.no_grad()
def initialize_sharded(model: Transformer, seed: int) -> None:
    """First weights; a rank draws the rows that it holds."""
    for name, parameter in model.named_parameters():
        local, first = local_rows(parameter)
        initialize_parameter(local, name, model.config, seed, first)


@torch.no_grad()
def load_full(model: Transformer, weights: Mapping[str, Tensor]) -> None:
    """Copy whole tensors in; a rank takes the rows that it holds, so mapped files are read in part.

    Adapters are not among them (`loom.train.lora.start_adapters`).
    """
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            continue
        local, first = local_rows(parameter)
        local.copy_(weights[name][first : first + local.shape[0]])


def local_rows(parameter: Tensor) -> tuple[Tensor, int]:
    """What this rank holds of a tensor sharded by rows, and its first row."""
    if not isinstance(parameter, DTensor):
        return parameter, 0
    mesh = parameter.device_mesh
    shards, place = mesh.size(mesh.ndim - 1), mesh.get_local_rank(mesh.ndim - 1)
    local: Tensor = parameter.to_local()
    return local, min(place * -(-parameter.shape[0] // shards), parameter.shape[0])


def accumulate(model: nn.Module, last: bool) -> AbstractContextManager[None]:
    """Around forward and backward of a micro-batch: only the last one of a step exchanges gradients."""
    if isinstance(model, DistributedDataParallel) and not last:
        return model.no_sync()
    if isinstance(model, FSDPModule):
        # Sharded gradients are reduced each time, which keeps memory flat; only the replicas' sum waits.
        model.set_is_last_backward(last)
        model.set_requires_all_reduce(last)
    return nullcontext()
