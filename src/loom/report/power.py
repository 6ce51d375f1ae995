"""Power while a stage runs, sampled where this machine lets it be read: processors (RAPL), NVIDIA devices.

Samples go to `power.jsonl` beside the stage's records: {"session", "seconds", "watts", "of"} a line. A stage
that is resumed begins a new session; nothing is counted between two. Of several nodes the first is sampled and
its power taken for every one's ("nodes"), as the OLMo paper does.
"""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

POWER = "power.jsonl"
RAPL = Path("/sys/class/powercap")
Watts = Callable[[], float | None]


def processors(root: Path = RAPL) -> Watts | None:
    """Watts of all processor packages since the last call, from their energy counters; None if unreadable."""
    packages = []
    for folder in sorted(root.glob("intel-rapl:*")):
        if folder.name.count(":") == 1:
            try:
                (folder / "energy_uj").read_text()
            except OSError:
                return None
            packages.append(folder)
    if not packages:
        return None
    before: dict[Path, tuple[float, int]] = {}

    def watts() -> float | None:
        total, known = 0.0, True
        for folder in packages:
            now, counter = time.monotonic(), int((folder / "energy_uj").read_text())
            if folder in before:
                then, earlier = before[folder]
                spent = counter - earlier
                if spent < 0:  # the counter began anew
                    spent += int((folder / "max_energy_range_uj").read_text())
                total += spent / 1e6 / (now - then)
            else:
                known = False
            before[folder] = now, counter
        return total if known else None

    return watts


def devices() -> Watts | None:
    """Watts of all NVIDIA devices, as nvidia-smi says; None where there is none."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    command = [program, "--query-gpu=power.draw", "--format=csv,noheader,nounits"]

    def watts() -> float | None:
        try:
            shown = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
            return sum(float(line) for line in shown.split())
        except (OSError, subprocess.SubprocessError, ValueError):
            return None

    return watts if watts() is not None else None


@contextmanager
def sampled(
    folder: Path, every: float = 1.0, sources: dict[str, Watts] | None = None, nodes: int = 1
) -> Iterator[bool]:
    """Sample power into `folder`/power.jsonl until the block ends; gives whether there is anything to read.

    Where a stage runs on several `nodes`, one of them is sampled and stands for all.
    """
    if sources is None:
        found = {"processors": processors(), "devices": devices()}
        sources = {name: watts for name, watts in found.items() if watts is not None}
    if not sources:
        yield False
        return
    folder.mkdir(parents=True, exist_ok=True)
    over, session, begun = threading.Event(), time.time_ns(), time.monotonic()
    given = dict(sources)

    def run() -> None:
        with open(folder / POWER, "a", encoding="utf-8", buffering=1) as file:
            while not over.wait(every):
                read = {name: value for name, watts in given.items() if (value := watts()) is not None}
                if read:
                    line = {
                        "session": session,
                        "seconds": round(time.monotonic() - begun, 3),
                        "watts": round(sum(read.values()), 2),
                        "of": sorted(read),
                    } | ({"nodes": nodes} if nodes > 1 else {})
                    file.write(json.dumps(line) + "\n")

    thread = threading.Thread(target=run, name="loom-power", daemon=True)
    thread.start()
    try:
        yield True
    finally:
        over.set()
        thread.join(5)


def integrate(samples: list[tuple[float, float]]) -> float:
    """kWh from (seconds, watts) samples by the trapezoid rule."""
    joules = sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in itertools.pairwise(samples))
    return joules / 3.6e6


def measured(folder: Path) -> tuple[float, str] | None:
    """kWh over all sessions in `folder`/power.jsonl and how it was had; None where nothing was sampled."""
    file = folder / POWER
    if not file.is_file():
        return None
    sessions: dict[int, list[tuple[float, float]]] = {}
    names: set[str] = set()
    nodes: dict[int, int] = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            value = json.loads(line)
            sessions.setdefault(value["session"], []).append((value["seconds"], value["watts"]))
            nodes[value["session"]] = int(value.get("nodes", 1))
            names.update(value["of"])
        except (ValueError, KeyError, TypeError):
            continue  # a line that a stopped run left half written
    samples = sum(map(len, sessions.values()))
    if samples < 2:
        return None
    kwh = sum(integrate(session) * nodes[number] for number, session in sessions.items())
    how = f"Measured: {samples:,} samples of the power of {' and '.join(sorted(names))}"
    if (most := max(nodes.values())) > 1:
        how += f" of one of {most} nodes, times its number of nodes"
    return kwh, how
