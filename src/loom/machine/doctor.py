"""Is this machine fit to train on? Attention against arithmetic, speed over time, disk, communication.

An attention kernel whose backward is wrong lets a run look healthy for days and then diverge (flash
attention on MI250X did so to OLMo). So every backend is compared here with plain products in float64,
forward and backward, before hours are spent.
"""

from __future__ import annotations

import mmap
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from loom.model.attention import attend, document_mask
from loom.train.devices import device_name, peak_flops
from loom.train.parallel import World

Verdict = Literal["good", "bad", "absent", "note"]
MIB = 2**20


@dataclass(frozen=True)
class Finding:
    """One thing tried."""

    what: str
    verdict: Verdict
    said: str
    value: float | None = None
    """In the unit that `said` names."""
    mend: str = ""
    """Of what is bad: what to do about it."""


ATTENTION = (
    "update torch and the driver, or forbid that backend (torch.backends.cuda.enable_flash_sdp(False) and "
    "its like)"
)
BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}
Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]


def exact(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """softmax(q kᵀ / sqrt(d)) v in float64; neighbouring query heads share a head of k and v where those are fewer."""
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    scores = (q @ k.transpose(-1, -2)) / q.shape[-1] ** 0.5
    result: Tensor = scores.masked_fill(~mask, -torch.inf).softmax(-1) @ v
    return result


def outputs(run: Attend, tensors: list[Tensor], mask: Tensor | None, slope: Tensor) -> list[Tensor]:
    """What attention gives and its gradients by q, k and v."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    result = run(leaves[0], leaves[1], leaves[2], mask)
    result.backward(slope.to(result.dtype))  # type: ignore[no-untyped-call]
    return [result.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


def distance(found: list[Tensor], expected: list[Tensor]) -> float:
    """Largest difference over the largest value, of the worst of output and gradients; NaN counts as infinite."""
    worst = 0.0
    for a, b in zip(found, expected, strict=True):
        error = float((a.double() - b).abs().max() / b.abs().max())
        worst = max(worst, error if error == error else float("inf"))
    return worst


@dataclass(frozen=True)
class Case:
    """Random inputs of attention and what it is to give: outputs and gradients in float64."""

    tensors: list[Tensor]
    mask: Tensor | None
    slope: Tensor
    expected: list[Tensor]

    def distance(self, run: Attend) -> float:
        """`distance` of an attention function from float64, forward and backward."""
        return distance(outputs(run, self.tensors, self.mask, self.slope), self.expected)


def attention_case(
    device: torch.device, dtype: torch.dtype, masked: bool, *, groups: int = 1, length: int = 256
) -> Case:
    """Two rows of four heads of 128, OLMo's width at every size; `groups` heads share one of keys and values."""
    generator = torch.Generator().manual_seed(5)
    q, k, v, slope = (
        torch.randn(2, heads, length, 128, generator=generator).to(device, dtype)
        for heads in (4, 4 // groups, 4 // groups, 4)
    )
    causal = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    documents = torch.arange(length, device=device)[None].expand(2, -1) // (length // 5)
    mask = document_mask(documents) if masked else None
    whole = causal if mask is None else mask
    wide = [tensor.double() for tensor in (q, k, v)]
    expected = outputs(lambda a, b, c, _: exact(a, b, c, whole), wide, None, slope.double())
    return Case([q, k, v], mask, slope, expected)


KINDS = {"causal": (False, 1), "documents": (True, 1), "grouped": (False, 2)}
"""(by document, query heads that share a head of keys and values)."""


def attention_findings(device: torch.device) -> list[Finding]:
    """Every backend of torch's attention, and Loom's own on a CPU, in float32 and bf16: causal, by document, grouped.

    Rows are OLMo's 2,048 positions on a GPU, 256 on a CPU.
    """
    length = 2048 if device.type == "cuda" else 256
    contenders: dict[str, Attend] = {}
    for name, backend in BACKENDS.items():

        def run(
            q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, backend: SDPBackend = backend
        ) -> Tensor:
            with sdpa_kernel(backend):
                return attend(q, k, v, mask)

        contenders[name] = run
    if device.type == "cpu":
        contenders["loom, for training"] = lambda q, k, v, mask: attend(q, k, v, mask, training=True)
    rounding = {torch.float32: 2e-3 if device.type == "cuda" else 1e-5, torch.bfloat16: 3e-2}
    findings = []
    for dtype, allowed in rounding.items():
        for kind, (masked, groups) in KINDS.items():
            case = attention_case(device, dtype, masked, groups=groups, length=length)
            for name, contender in contenders.items():
                what = f"attention {name}, {str(dtype).removeprefix('torch.')}, {kind}"
                try:
                    error = case.distance(contender)
                except RuntimeError:  # how torch says that a backend does not do this here
                    findings.append(Finding(what, "absent", "not offered on this device"))
                    continue
                good = error <= allowed
                said = f"off by {error:.1e} of the largest value, forward and backward; {allowed:.0e} is rounding"
                findings.append(
                    Finding(what, "good" if good else "bad", said, error, "" if good else ATTENTION)
                )
    return findings


def clock_findings(device: torch.device, seconds: float = 3.0) -> list[Finding]:
    """Products a second of bf16 matrices over some seconds: falling clocks show as a slow end."""
    size = 4096 if device.type == "cuda" else 1024
    x = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    rates: list[float] = []
    began = time.perf_counter()
    while time.perf_counter() - began < seconds or len(rates) < 4:
        start, count = time.perf_counter(), 0
        while time.perf_counter() - start < seconds / 8:
            x @ x
            count += 1
            if device.type == "cuda":
                torch.cuda.synchronize(device)
        rates.append(count * 2 * size**3 / (time.perf_counter() - start))
    best, end = max(rates), sum(rates[-2:]) / 2
    peak = peak_flops(device_name(device))
    share = (
        f"{best / peak:.0%} of its data sheet's peak" if peak else "the device's peak is not known: n/a of it"
    )
    held = end / best
    return [
        Finding("matrix products, bf16", "note", f"{best / 1e12:.3g} TFLOP/s, {share}", best),
        Finding(
            "clocks", "good" if held > 0.9 else "note",
            f"the last products ran at {held:.0%} of the fastest" + ("" if held > 0.9 else
            ": something else computes here, or the device slows down as it warms"), held,
        ),
    ]  # fmt: skip


def disk_findings(folder: Path, megabytes: int = 256) -> list[Finding]:
    """Bytes a second to the disk and back past the page cache, whether they are the same, and the free room."""
    folder.mkdir(parents=True, exist_ok=True)
    block = os.urandom(MIB - 8)
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".doctor-") as file:
        began = time.perf_counter()
        for number in range(megabytes):
            file.write(number.to_bytes(8) + block)  # each its own, so that a misplaced one shows
        file.flush()
        os.fsync(file.fileno())
        written = megabytes * MIB / (time.perf_counter() - began)
        began = time.perf_counter()
        try:
            same, direct = _same(Path(file.name), block, megabytes, os.O_DIRECT), True
        except (OSError, AttributeError):  # a file system or system without direct reads
            same, direct = _same(Path(file.name), block, megabytes, 0), False
        read = megabytes * MIB / (time.perf_counter() - began)
    free = shutil.disk_usage(folder).free
    said = f"{written / 1e6:,.0f} MB/s written through to {folder}, {read / 1e6:,.0f} MB/s back " + (
        "past the page cache" if direct else "(perhaps from memory: this file system has no direct reads)"
    )
    mend = f"do not keep checkpoints in {folder}: check that disk and its cables or mount, or choose another --out"
    return [
        Finding("disk", "good", said, written)
        if same
        else Finding("disk", "bad", said + ", but READ BACK CHANGED", written, mend),
        Finding("free room", "note", f"{free / 1e9:,.0f} GB: a checkpoint takes 12 bytes a parameter", free),
    ]


def _same(path: Path, block: bytes, megabytes: int, flags: int) -> bool:
    """Whether the file holds the numbered blocks that were written. Direct reads need aligned memory: a map's."""
    descriptor = os.open(path, os.O_RDONLY | flags)
    try:
        if not flags and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        with mmap.mmap(-1, MIB) as buffer:
            for number in range(megabytes):
                if os.preadv(descriptor, [buffer], number * MIB) != MIB:
                    return False
                if buffer[:] != number.to_bytes(8) + block:
                    return False
        return True
    finally:
        os.close(descriptor)


def communication_findings(world: World, megabytes: int = 64, rounds: int = 5) -> list[Finding]:
    """The bus bandwidth of all-reduce over all ranks, 2 (n - 1) / n of the bytes over the time, and its sum."""
    if world.size == 1:
        return [Finding("communication", "note", "one rank alone: run it under torchrun to try the network")]
    count = megabytes * MIB // 4
    times = []
    right = True
    for number in range(rounds + 1):
        values = torch.full((count,), float(world.rank + 1), device=world.device)
        dist.barrier()
        began = time.perf_counter()
        dist.all_reduce(values)
        right &= bool((values == world.size * (world.size + 1) / 2).all())  # waits for the device
        if number:
            times.append(time.perf_counter() - began)
    rate = 2 * (world.size - 1) / world.size * 4 * count / min(times)
    said = f"{rate / 1e9:.3g} GB/s of bus bandwidth, all-reduce of {megabytes} MiB over {world.size} ranks"
    if right:
        return [Finding("communication", "good", said, rate)]
    mend = "update NCCL or RCCL and the network's driver, or leave out the node that adds wrongly"
    return [Finding("communication", "bad", said + "; WRONG SUM", rate, mend)]


def device_findings(device: torch.device) -> list[Finding]:
    """What Loom will compute on, in words; Apple's MPS is not among what it can train on."""
    name = device_name(device)
    known = peak_flops(name)
    said = f"{name}; " + (
        f"{known / 1e12:,.0f} TFLOP/s of dense bf16" if known else "its peak is not known, so MFU is n/a"
    )
    findings = [Finding("device", "note", said)]
    if torch.backends.mps.is_available():
        findings.append(
            Finding(
                "MPS", "note",
                "an Apple GPU is here, and training does not use it: torch's sharding, distributed checkpoints and "
                "fused AdamW are not tested there, so a run takes the CPU. Train small models so, larger ones on "
                "CUDA or ROCm.",
            )
        )  # fmt: skip
    return findings


def examine(world: World, folder: Path, *, seconds: float = 3.0, megabytes: int = 256) -> list[Finding]:
    """All of it on this rank."""
    return [
        *device_findings(world.device),
        *attention_findings(world.device),
        *clock_findings(world.device, seconds),
        *disk_findings(folder, megabytes),
        *communication_findings(world),
    ]
