"""What is looked at inside a run: norms by layer, spikes of the loss, a window of the profiler.

Names of logged keys: norm/weight/..., norm/gradient/..., norm/exp_avg/..., norm/exp_avg_sq/... are L2 norms
of whole tensors, the gradient before clipping; norm/output/blocks.3 is the root mean square of that
block's output over the step's tokens.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.profiler import ProfilerActivity, profile

from loom.train.parallel import World, bare

SPIKE = 7.0  # standard deviations above the mean, as OLMo counts its spikes
WINDOW = 128  # logged losses that the mean is taken over


def whole_norm(tensor: Tensor) -> Tensor:
    norm = tensor.detach().float().norm()
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def gradient_norms(model: nn.Module) -> dict[str, Tensor]:
    return {
        f"norm/gradient/{name}": whole_norm(parameter.grad)
        for name, parameter in bare(model).named_parameters()
        if parameter.grad is not None
    }


def state_norms(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Of weights and of Adam's two moments."""
    found = {}
    for name, parameter in bare(model).named_parameters():
        found[f"norm/weight/{name}"] = whole_norm(parameter)
        state = optimizer.state.get(parameter, {})
        found |= {
            f"norm/{moment}/{name}": whole_norm(state[moment])
            for moment in ("exp_avg", "exp_avg_sq")
            if moment in state
        }
    return found


@contextmanager
def output_norms(model: nn.Module, world: World) -> Iterator[dict[str, Tensor]]:
    """Filled on leaving. Compiled blocks run uncompiled meanwhile: hooks are not part of their graphs."""
    found: dict[str, Tensor] = {}
    sums: dict[str, list[Tensor]] = {}
    handles = []

    def watch(name: str) -> None:
        def hook(_module: nn.Module, _inputs: object, output: Tensor) -> None:
            square = output.detach().float().square()
            sums.setdefault(name, []).append(
                torch.stack((square.sum(), torch.full_like(square.sum(), square.numel())))
            )

        handles.append(bare(model).blocks[int(name.rpartition(".")[2])].register_forward_hook(hook))

    for number in range(len(bare(model).blocks)):
        watch(f"blocks.{number}")
    try:
        with torch.compiler.set_stance("force_eager"):
            yield found
    finally:
        for handle in handles:
            handle.remove()
    for name, parts in sums.items():
        total, count = world.sum(torch.stack(parts).sum(0).double()).unbind()
        found[f"norm/output/{name}"] = (total / count).sqrt()


class SpikeScore:
    """The share of logged losses so far that lay over the mean of the 128 before by seven standard deviations."""

    def __init__(self) -> None:
        self.past: deque[float] = deque(maxlen=WINDOW)
        self.seen = self.spikes = 0

    def add(self, loss: float) -> float:
        if len(self.past) >= 16:
            mean = math.fsum(self.past) / len(self.past)
            variance = math.fsum((value - mean) ** 2 for value in self.past) / (len(self.past) - 1)
            self.seen += 1
            self.spikes += loss > mean + SPIKE * math.sqrt(variance)
        self.past.append(loss)
        return self.spikes / self.seen if self.seen else 0.0


class Profile:
    """torch's profiler over steps first to last of this rank, written as a trace for chrome://tracing."""

    def __init__(self, window: tuple[int, int] | None, out: Path, world: World) -> None:
        self.window, self.out, self.rank = window, out, world.rank
        activities = [ProfilerActivity.CPU]
        if world.device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        self.profiler = None if window is None else profile(activities=activities, record_shapes=True)
        self.started = False

    def before(self, step: int) -> None:
        if self.profiler is not None and self.window is not None and step == self.window[0]:
            self.profiler.start()
            self.started = True

    def after(self, step: int) -> Path | None:
        """The trace, once it is written."""
        if self.profiler is None or self.window is None or step != self.window[1] or not self.started:
            return None  # also where a run goes on past the window's first step
        self.profiler.stop()
        folder = self.out / "profile"
        folder.mkdir(exist_ok=True)
        path = folder / f"steps-{self.window[0]}-{self.window[1]}-rank-{self.rank}.json"
        self.profiler.export_chrome_trace(str(path))
        return path
