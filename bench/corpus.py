"""Loom's corpus steps beside dolma 1.2.1: the same real documents, two processes each, one run.

    python bench/corpus.py [--megabytes 110] [--steps tag,dedupe,mix] [--rounds 1]

Documents are what `loom collect` finds on this machine, as gzipped JSON lines in eight files. Each side runs
as its own command, start-up included; both read gz JSON lines and write gz JSON lines. What is compared is
printed with its ratio and checked: the same attributes, the same duplicates, the same documents out. The
result goes to bench/results/corpus.json.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.oracles.build import interpreter, is_built  # noqa: E402

from loom.corpus import documents  # noqa: E402
from loom.corpus.sources.python import Collect, collect  # noqa: E402

TAGGERS = ["gopher_v2", "c4_v2", "pii_regex_with_counts_fast_v2"]
FILES = 8
PROCESSES = 2


def prepare(work: Path, megabytes: float) -> int:
    """Collect documents and write them as `documents/part-N.jsonl.gz`; returns bytes of text."""
    limit = megabytes / 2
    raw = collect(Collect(limit_mb=limit, total_mb=megabytes), work / "raw")
    rows = [
        row
        for path in documents.find_files([raw.path / "documents"])
        for batch in documents.read(path)
        for row in documents.as_rows(batch)
    ]
    size = sum(len(row["text"].encode()) for row in rows)
    share = -(-len(rows) // FILES)
    for part in range(FILES):
        rows_here = rows[part * share : (part + 1) * share]
        documents.write(work / "documents" / f"part-{part}.jsonl.gz", rows_here)
    return size


def timed(command: list[str], rounds: int, clear: Callable[[], None]) -> dict[str, float]:
    """The best of `rounds` runs: seconds, and seconds of processor time of the command and its children."""
    best: dict[str, float] = {}
    for _ in range(rounds):
        clear()
        before = os.times()
        started = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True)
        seconds = time.perf_counter() - started
        after = os.times()
        if done.returncode:
            sys.exit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
        cpu = after.children_user + after.children_system - before.children_user - before.children_system
        if not best or seconds < best["seconds"]:
            best = {"seconds": seconds, "processor_seconds": cpu}
    return best


def attributes(folder: Path) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.rglob("*.gz")):
        for line in gzip.decompress(path.read_bytes()).splitlines():
            row = json.loads(line)
            found.setdefault(row["id"], {}).update(row["attributes"])
    return found


def tag(work: Path, loom: str, dolma: str, rounds: int) -> dict[str, Any]:
    config = {
        "documents": [str(work / "documents" / "*.gz")],
        "taggers": TAGGERS,
        "processes": PROCESSES,
    }
    path = work / "tag.json"
    path.write_text(json.dumps(config))
    ours = [loom, "tag", "--documents", str(work / "documents"), "--taggers", ",".join(TAGGERS)]
    ours += ["--out", str(work / "loom-tags"), "--workers", str(PROCESSES)]
    theirs = [dolma, "-c", str(path), "tag"]

    def clear() -> None:
        for name in TAGGERS:
            shutil.rmtree(work / "attributes" / name, ignore_errors=True)

    result = {
        "loom": timed(ours, rounds + 1, lambda: shutil.rmtree(work / "loom-tags", ignore_errors=True)),
        "dolma": timed(theirs, rounds, clear),
    }
    mine, other = attributes(work / "loom-tags"), attributes(work / "attributes")
    differ = sum(mine[name] != other[name] for name in other)
    return {**result, "documents": len(other), "documents_that_differ": differ}


def mixing(work: Path, name: str, out: str) -> Path:
    config = {
        "streams": [
            {
                "name": "bench",
                "documents": [str(work / "documents" / "*.gz")],
                "attributes": [name],
                "output": {
                    "path": str(work / out),
                    "max_size_in_bytes": 1 << 30,
                    "discard_fields": ["attributes"],
                },
                "filter": {"include": [], "exclude": ["$.metadata[?(@.package == 'nobody')]"]},
                "span_replacement": [
                    {"span": "$.attributes.bff", "min_score": 0.5, "replacement": "", "syntax": "jsonpath"}
                ],
            }
        ],
        "processes": PROCESSES,
        "work_dir": {"input": str(work / "in"), "output": str(work / "tmp")},
    }
    path = work / f"{out}.json"
    path.write_text(json.dumps(config))
    return path


def dedupe_and_mix(work: Path, loom: str, dolma: str, rounds: int) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for side, command, verb in (("loom", loom, "bff-loom"), ("dolma", dolma, "bff-dolma")):
        config = {
            "documents": [str(work / "documents" / "*.gz")],
            "dedupe": {"name": verb, "paragraphs": {"attribute_name": "bff"}, "skip_empty": True},
            "bloom_filter": {
                "file": str(work / f"{verb}.bloom"),
                "read_only": False,
                "estimated_doc_count": 10_000_000,
                "desired_false_positive_rate": 1e-6,
            },
            "processes": PROCESSES,
            "work_dir": {"input": str(work / "in"), "output": str(work / "tmp")},
        }
        path = work / f"{verb}.json"
        path.write_text(json.dumps(config))

        def clear(name: str = verb) -> None:
            shutil.rmtree(work / "attributes" / name, ignore_errors=True)
            (work / f"{name}.bloom").unlink(missing_ok=True)

        words = (
            [command, "dedupe", "-c", str(path)] if side == "loom" else [command, "-c", str(path), "dedupe"]
        )
        result[f"dedupe, {side}"] = timed(words, rounds, clear)
        path = mixing(work, verb, f"mixed-{side}")
        words = [command, "mix", "-c", str(path)] if side == "loom" else [command, "-c", str(path), "mix"]
        result[f"mix, {side}"] = timed(
            words, rounds, lambda out=f"mixed-{side}": shutil.rmtree(work / out, ignore_errors=True)
        )
        result[f"bytes, {side}"] = sum(path.stat().st_size for path in (work / f"mixed-{side}").rglob("*.gz"))
    return result


def machine() -> dict[str, Any]:
    load = os.getloadavg()[0]
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "load_before": load,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--megabytes", type=float, default=110)
    parser.add_argument("--steps", default="tag,mix")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "bench-corpus")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results" / "corpus.json")
    options = parser.parse_args()
    if not is_built("dolma"):
        sys.exit("The peer dolma is not built: `make oracles` builds it.")
    loom = str(Path(sys.executable).with_name("loom"))
    dolma = str(interpreter("dolma").with_name("dolma"))
    found = {"machine": machine()}
    size = prepare(options.work, options.megabytes)
    found["bytes"] = size
    print(f"{size / 1e6:.1f} MB of text in {FILES} files, {PROCESSES} processes each")
    if "tag" in options.steps:
        found["tag"] = tag(options.work, loom, dolma, options.rounds)
        report("tag", found["tag"]["loom"], found["tag"]["dolma"])
        print(f"  {found['tag']['documents_that_differ']} documents differ")
    if "mix" in options.steps:
        part = dedupe_and_mix(options.work, loom, dolma, options.rounds)
        found["dedupe and mix"] = part
        for step in ("dedupe", "mix"):
            report(step, part[f"{step}, loom"], part[f"{step}, dolma"])
        print(f"  bytes out: {part['bytes, loom'] / part['bytes, dolma']:.2f} of dolma's")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(found, indent=2) + "\n")


def report(step: str, ours: dict[str, float], theirs: dict[str, float]) -> None:
    wall = theirs["seconds"] / ours["seconds"]
    cpu = theirs["processor_seconds"] / ours["processor_seconds"]
    print(
        f"{step:<8} loom {ours['seconds']:8.1f} s   dolma {theirs['seconds']:8.1f} s   {wall:6.1f} times",
        end="",
    )
    print(f"   ({cpu:.1f} times in processor time)")


if __name__ == "__main__":
    main()
