"""The documents both sides of bench/corpus.py read, the memory they take, the machine they run on."""

from __future__ import annotations

import ctypes
import gzip
import os
import platform
import threading
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

Row = dict[str, Any]


class Largest(threading.Thread):
    """Watches the peak memory of a process and its children; `ru_maxrss` would count this process's as theirs."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.pid, self.kilobytes = pid, 0

    def run(self) -> None:
        while self._look(self.pid):
            time.sleep(0.05)

    def _look(self, pid: int) -> bool:
        try:
            status = Path(f"/proc/{pid}/status").read_text()
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        except OSError:
            return False
        peak = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")]
        self.kilobytes = max(self.kilobytes, *map(int, peak), 0)
        for child in children:
            self._look(int(child))
        return bool(peak)


def adopt_orphans() -> None:
    """Have processes whose parents have ended become children of this one, so that what they used is counted.

    A peer's fork server outlives the command that started it, and nobody else waits for it.
    """
    set_child_subreaper = 36
    ctypes.CDLL(None).prctl(set_child_subreaper, 1, 0, 0, 0)


def orphans_processor_seconds() -> float:
    """Wait for every adopted process; what they and their own children used."""
    total = 0.0
    while True:
        try:
            _, _, used = os.wait4(-1, 0)
        except ChildProcessError:
            return total
        total += used.ru_utime + used.ru_stime


def write_corpus(lines: list[bytes], folder: Path, megabytes: float, files: int) -> dict[str, Any]:
    """Lines up to a size into `files` gz files of like size, at level 6, linked into both sides' folders."""
    parts: list[list[bytes]] = [[] for _ in range(files)]
    sizes = [0] * files
    for line in lines:
        if sum(sizes) >= megabytes * 1e6:
            break
        least = sizes.index(min(sizes))
        parts[least].append(line + b"\n")
        sizes[least] += len(line) + 1
    for side in ("loom", "dolma"):
        (folder / side / "documents").mkdir(parents=True)
    for index, part in enumerate(parts):
        path = folder / "loom" / "documents" / f"part-{index}.jsonl.gz"
        with open(path, "wb") as raw, gzip.GzipFile("", "wb", 6, raw, mtime=0) as stream:
            stream.writelines(part)
        os.link(path, folder / "dolma" / "documents" / path.name)
    if sum(sizes) < megabytes * 0.9e6:
        print(
            f"only {sum(sizes) / 1e6:.0f} MB of documents for a row that asks for {megabytes:.0f}", flush=True
        )
    return {"bytes": sum(sizes), "documents": sum(map(len, parts)), "files": files}


def machine() -> Row:
    model = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "processor": model[0].partition(":")[2].strip() if model else platform.machine(),
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "python": platform.python_version(),
        "loom": version("loom-lm"),
        "peers": {"dolma": "1.2.1", "datatrove": "0.10.1"},
    }
