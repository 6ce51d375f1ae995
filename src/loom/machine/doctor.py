"""Is this machine fit to train on? Attention against arithmetic, speed over time, disk, communication.

An attention kernel whose backward is wrong lets a run look healthy for days and then diverge (flash
attention on MI250X did so to OLMo). So every backend is compared here with plain products in float64,
forward and backward, before hours are spent.
"""

from __future__ import annotations

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


BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}
Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]


def exact(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """softmax(q kᵀ / sqrt(d)) v in float64."""
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


def check_attention(
    run: Attend, device: torch.device, dtype: torch.dtype, masked: bool, heads: int = 4, length: int = 256
) -> float:
    """`distance` of an attention function from float64 on random inputs of `dtype`, of 64 a head."""
    generator = torch.Generator().manual_seed(5)
    q, k, v, slope = (
        torch.randn(2, heads, length, 64, generator=generator).to(device, dtype) for _ in range(4)
    )
    causal = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    mask = document_mask(torch.arange(length, device=device)[None].expand(2, -1) // 50) if masked else None
    whole = causal if mask is None else mask
    wide = [tensor.double() for tensor in (q, k, v)]
    expected = outputs(lambda a, b, c, _: exact(a, b, c, whole), wide, None, slope.double())
    return distance(outputs(run, [q, k, v], mask, slope), expected)


def attention_findings(device: torch.device) -> list[Finding]:
    """Every backend of torch's attention, and Loom's own on a CPU, in float32 and bf16, causal and by document."""
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
    findings = []
    for name, contender in contenders.items():
        for dtype, allowed in (
            (torch.float32, 2e-3 if device.type == "cuda" else 1e-5),
            (torch.bfloat16, 3e-2),
        ):
            for masked in (False, True):
                what = f"attention {name}, {str(dtype).removeprefix('torch.')}, {'documents' if masked else 'causal'}"
                try:
                    error = check_attention(contender, device, dtype, masked)
                except RuntimeError:  # how torch says that a backend does not do this here
                    findings.append(Finding(what, "absent", "not offered on this device"))
                    continue
                good = error <= allowed
                said = f"off by {error:.1e} of the largest value, forward and backward; {allowed:.0e} is rounding"
                findings.append(Finding(what, "good" if good else "bad", said, error))
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
    """Bytes a second to the disk and back, and its free room."""
    folder.mkdir(parents=True, exist_ok=True)
    block = os.urandom(MIB)
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".doctor-") as file:
        began = time.perf_counter()
        for _ in range(megabytes):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
        written = megabytes * MIB / (time.perf_counter() - began)
        file.seek(0)
        same = all(file.read(MIB) == block for _ in range(megabytes))
    free = shutil.disk_usage(folder).free
    said = f"{written / 1e6:,.0f} MB/s written through to {folder}" + (
        "" if same else ", but READ BACK CHANGED"
    )
    return [
        Finding("disk", "good" if same else "bad", said, written),
        Finding("free room", "note", f"{free / 1e9:,.0f} GB: a checkpoint takes 12 bytes a parameter", free),
    ]


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
    return [
        Finding("communication", "good" if right else "bad", said + ("" if right else "; WRONG SUM"), rate)
    ]


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
