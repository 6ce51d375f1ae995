"""The thread's speeds: survey, index, counts and traces, beside infini-gram's own engine, in one run.

    python bench/thread.py [--megabytes 420] [--work runs/bench-thread] [--queries 200]

The text is this machine's own (`loom collect python`), tokenized with a vocabulary of 4,096, so that it
comes to over 100 million tokens where there is enough of it. Wall seconds are what is reported; seconds
of processor time stand beside them, because a machine may have been busy (its load is in the result).
The result goes to bench/results/thread.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
from tests.oracles.build import interpreter, is_built  # noqa: E402

from loom.trace.query import Index, open_index  # noqa: E402
from loom.trace.trace import trace  # noqa: E402

LOOM = str(Path(sys.executable).with_name("loom"))
VOCABULARY = 4096
ANSWER = 450  # tokens of a traced text
PEER_ANSWERS = 20
SURVEYED = "counts,domains,lengths,duplicates,ngrams"
DOLMA = 3e12  # tokens
PEER = """
import json, sys, time
from infini_gram.engine import InfiniGramEngine
asked = json.load(sys.stdin)
engine = InfiniGramEngine(asked["index"], eos_token_id=0, vocab_size=65535, token_dtype="u16")
delimiters = asked["delimiters"]
counts, seconds = [], []
for ids in asked["queries"]:
    engine.count(input_ids=ids)
    start = time.perf_counter()
    counts.append(engine.count(input_ids=ids)["count"])
    seconds.append(time.perf_counter() - start)
traced = []
for ids in asked["answers"]:
    start = time.perf_counter()
    engine.attribute(input_ids=ids, delim_ids=delimiters, min_len=1, max_cnt=10, enforce_bow=False)
    traced.append(time.perf_counter() - start)
print(json.dumps({"counts": counts, "seconds": seconds, "traced": traced}))
"""
BUILD = """
import sys
from unittest.mock import MagicMock
sys.modules["transformers"] = MagicMock()
import infini_gram.indexing as indexing
sys.argv = ["indexing", *sys.argv[1:]]
indexing.main()
"""


def loom(*words: object, environment: dict[str, str] | None = None) -> dict[str, float]:
    """Run a verb; wall and processor seconds, and its peak memory in bytes."""
    start = time.perf_counter()
    process = subprocess.Popen(
        [LOOM, *map(str, words)], stdout=subprocess.DEVNULL, env={**os.environ, **(environment or {})}
    )
    peak = 0
    while True:  # a child's largest size as wait4 tells it counts this process's before the exec
        pid, status, used = os.wait4(process.pid, os.WNOHANG)
        if pid:
            break
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        peak = max([peak, *(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))])
        time.sleep(0.05)
    if status:
        sys.exit(f"loom {' '.join(map(str, words))} failed")
    return {
        "seconds": time.perf_counter() - start,
        "processor_seconds": used.ru_utime + used.ru_stime,
        "peak_bytes": peak,
    }


def prepare(work: Path, megabytes: float) -> tuple[Path, Path]:
    """(corpus, tokens) of this machine's text, made once."""
    raw, tokens = work / "raw", work / "tokens"
    if not (raw / "manifest.json").exists():
        loom("collect", "python", "--out", raw, "--limit-mb", megabytes, "--total-mb", megabytes)
    if not (work / "tokenizer" / "tokenizer.json").exists():
        tokenizer = work / "tokenizer" / "tokenizer.json"
        loom("tokenizer", "train", "--documents", raw, "--vocab-size", VOCABULARY, "--out", tokenizer)
    if not (tokens / "manifest.json").exists():
        loom("tokenize", "--documents", raw, "--tokenizer", work / "tokenizer", "--out", tokens)
    return raw, tokens


def plain_copy(raw: Path, work: Path, share: float) -> tuple[Path, int]:
    """The corpus, or the first part of its files, as plain JSON lines; and its bytes of text."""
    from loom.corpus import documents

    folder = work / f"plain-{share:g}" / "documents"
    folder.mkdir(parents=True, exist_ok=True)
    files = documents.find_files([raw / "documents"])
    files = files[: max(1, int(len(files) * share))]
    size = 0
    for number, path in enumerate(files):
        out = folder / f"{number:03d}.jsonl"
        if not out.exists():
            with documents.write_lines(out) as stream:
                stream.writelines(documents.read_lines(path))
        for batch in documents.read(out):
            size += int(np.diff(batch.utf8()[1]).sum())
    return folder, size


def bench_survey(raw: Path, work: Path) -> dict[str, Any]:
    """Counts, domains, lengths, duplicates and 3-grams together: speed, and memory at half and whole size."""
    out: dict[str, Any] = {"analyses": SURVEYED, "ngrams": 3}
    warm = work / "survey-warm"
    for name, share in (("half", 0.5), ("whole", 1.0)):
        folder, size = plain_copy(raw, work, share)
        if name == "half":  # compile once; the loops are kept on disk
            (warm / "a.jsonl").parent.mkdir(parents=True, exist_ok=True)
            (warm / "a.jsonl").write_text('{"id": "1", "text": "a b c d"}\n' * 3)
            loom("survey", warm / "a.jsonl", "--only", SURVEYED, "--ngrams", 3, "--out", warm / "out")
        target = work / f"survey-{time.time_ns()}"
        used = loom("survey", folder, "--only", SURVEYED, "--ngrams", 3, "--out", target)
        told = json.loads((target / "survey.json").read_bytes())["ngrams"]["3"]
        out[name] = used | {
            "bytes": size,
            "megabytes_per_second": size / 1e6 / used["seconds"],
            "megabytes_per_processor_second": size / 1e6 / used["processor_seconds"],
            "missed": told["missed"],
        }
    return out


def bench_index(tokens: Path, work: Path) -> tuple[Path, dict[str, Any]]:
    folder = work / f"index-{time.time_ns()}"
    used = loom("index", tokens, "--out", folder)
    index = open_index(folder)
    assert index.artifact is not None
    counters = index.artifact.counters
    return folder, used | {
        "tokens": counters["tokens"],
        "documents": counters["documents"],
        "tokens_per_second": counters["tokens"] / used["seconds"],
        "tokens_per_processor_second": counters["tokens"] / used["processor_seconds"],
        "bytes_per_token": counters["bytes"] / counters["tokens"],
    }


def queries(index: Index, count: int) -> list[list[int]]:
    """N-grams of 1 to 10 tokens from random places, a third of them with a token changed."""
    random = np.random.default_rng(0)
    (shard,) = index.shards
    found = []
    while len(found) < count:
        at = int(random.integers(len(shard.tokens) - 12))
        ids = shard.tokens[at : at + int(random.integers(1, 11))].astype(int)
        if ids.max() >= VOCABULARY:
            continue  # runs over a separator
        if random.random() < 1 / 3:
            ids[int(random.integers(len(ids)))] = int(random.integers(10, VOCABULARY))
        found.append(ids.tolist())
    return found


def answers(index: Index, count: int) -> list[str]:
    """Texts of about `ANSWER` tokens pieced together from passages of 5 to 60 tokens, as answers echo."""
    random = np.random.default_rng(1)
    (shard,) = index.shards
    texts = []
    for _ in range(count):
        ids: list[int] = []
        while len(ids) < ANSWER:
            at = int(random.integers(len(shard.tokens) - 100))
            part = shard.tokens[at : at + int(random.integers(5, 60))].astype(int)
            ids += [token for token in part.tolist() if 5 < token < VOCABULARY]
        texts.append(index.tokenizer.decode(ids[:ANSWER]))
    return texts


def timed(function: Callable[[Any], Any], items: Sequence[Any]) -> list[float]:
    seconds = []
    for item in items:
        start = time.perf_counter()
        function(item)
        seconds.append(time.perf_counter() - start)
    return seconds


def forget(folder: Path) -> None:
    """Ask the system to drop the folder's files from the page cache."""
    for path in folder.iterdir():
        if path.is_file():
            handle = os.open(path, os.O_RDONLY)
            os.fsync(handle)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(handle)


def spread(seconds: Sequence[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    return {
        "median_ms": 1e3 * statistics.median(ordered),
        "p95_ms": 1e3 * ordered[int(0.95 * (len(ordered) - 1))],
    }


def bench_queries(folder: Path, count: int) -> dict[str, Any]:
    index = open_index(folder)
    grams, texts = queries(index, count), answers(index, count)
    follow = lambda text: trace(index, text)  # noqa: E731
    index.count(grams[0]), follow(texts[0])  # compile
    del index
    forget(folder)
    index = open_index(folder)
    cold = {"count": spread(timed(index.count, grams)), "trace": spread(timed(follow, texts[:20]))}
    timed(index.count, grams)
    warm = {"count": spread(timed(index.count, grams)), "trace": spread(timed(follow, texts))}
    out: dict[str, Any] = {"queries": count, "answer_tokens": ANSWER, "cold": cold, "warm": warm}
    out["peer"] = peer_queries(folder, index, grams, texts)
    return out


def peer_queries(folder: Path, index: Index, grams: list[list[int]], texts: list[str]) -> Any:
    """The public engine on the same files and the same questions; its counts must be ours."""
    if not is_built("infini-gram"):
        return "the infini-gram environment is not built (make oracles)"
    delimiters = [n for n in range(VOCABULARY) if index.tokenizer.token_bytes(n) in (b".", b"\n")]
    asked = {
        "index": str(folder),
        "queries": grams,
        "answers": [index.tokenizer.encode(text).tolist() for text in texts[:PEER_ANSWERS]],
        "delimiters": delimiters,
    }
    done = subprocess.run(
        [str(interpreter("infini-gram")), "-c", PEER],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
    )
    if done.returncode:
        return f"failed: {done.stderr[-300:]}"
    told = json.loads(done.stdout.splitlines()[-1])
    ours = [index.count(ids) for ids in grams]
    return {
        "version": "2.6.0",
        "counts_equal": ours == told["counts"],
        "count": spread(told["seconds"]),
        "attribute": spread(told["traced"]),
    }


def peer_index(folder: Path, work: Path) -> Any:
    """The public builder's sorting of the same text, on both cores."""
    if not is_built("infini-gram"):
        return "the infini-gram environment is not built (make oracles)"
    target, empty = work / f"peer-{time.time_ns()}", work / "empty"
    target.mkdir()
    empty.mkdir(exist_ok=True)
    for name in ("tokenized.0", "offset.0"):
        os.link(folder / name, target / name)
    words = ["--data_dir", empty.resolve(), "--save_dir", target.resolve(), "--token_dtype", "u16"]
    words += ["--mem", 4, "--cpus", 2, "--ulimit", 1024]
    start = time.perf_counter()
    done = subprocess.run(
        [str(interpreter("infini-gram")), "-c", BUILD, *map(str, words)], capture_output=True, text=True
    )
    seconds = time.perf_counter() - start
    if done.returncode:
        return f"failed: {done.stderr[-300:]}"
    tokens = (folder / "tokenized.0").stat().st_size // 2
    return {"seconds": seconds, "tokens_per_second": tokens / seconds, "sorts_only": True}


def on_paper(found: dict[str, Any]) -> dict[str, Any]:
    """Dolma's 3 trillion tokens from the constants measured here: what is measured is said, the rest assumed."""
    pointer = 5  # bytes, up to a terabyte a shard
    documents = found["index"]["documents"] / found["index"]["tokens"]
    lines = (
        found["index"]["bytes_per_token"] - 2 - 4
    ) / documents  # everything but ids and pointers, a document
    dolma_documents = 3.4e9
    disk = DOLMA * (2 + pointer) + dolma_documents * lines
    shards = 32
    per_node_day = found["index"]["tokens_per_processor_second"] * 64 * 86_400
    steps = np.log2(DOLMA / shards) / np.log2(found["index"]["tokens"])
    return {
        "tokens": DOLMA,
        "bytes_per_token": disk / DOLMA,
        "disk_terabytes": disk / 1e12,
        "temporary_terabytes": DOLMA * (4 + pointer) / 1e12,
        "shards": shards,
        "sorting_node_days_of_64_cores": DOLMA / per_node_day,
        "count_warm_ms_a_shard": found["queries"]["warm"]["count"]["median_ms"] * steps,
        "count_on_nvme_ms": 2 * np.log2(DOLMA / shards) * 0.1,
        "assumed": "32 shards asked at once; sorting scales with cores and merging costs as much again at most; "
        "0.1 ms a random read on NVMe, two searches of log2(n) reads",
    }


def machine() -> dict[str, Any]:
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "load_average": [round(value, 1) for value in os.getloadavg()],
        "python": platform.python_version(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--megabytes", type=float, default=900)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "bench-thread")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results" / "thread.json")
    parser.add_argument("--only-survey", action="store_true", help="Measure the survey anew, keep the rest.")
    options = parser.parse_args()
    raw, tokens = prepare(options.work, options.megabytes)
    if options.only_survey:
        kept = json.loads(options.out.read_bytes())
        kept["survey"] = bench_survey(raw, options.work) | {"machine": machine()}
        print(json.dumps(kept["survey"], indent=1))
        options.out.write_text(json.dumps(kept, indent=2) + "\n")
        return
    found: dict[str, Any] = {"machine": machine()}
    folder, found["index"] = bench_index(tokens, options.work)
    report(
        found, "index", "tokens_per_second", "tokens_per_processor_second", "bytes_per_token", "peak_bytes"
    )
    found["queries"] = bench_queries(folder, options.queries)
    print(json.dumps(found["queries"], indent=1))
    found["index"]["peer"] = peer_index(folder, options.work)
    print(f"index, peer: {found['index']['peer']}")
    found["survey"] = bench_survey(raw, options.work)
    print(json.dumps(found["survey"], indent=1))
    found["on_paper"] = on_paper(found)
    found["machine"]["load_average_after"] = [round(value, 1) for value in os.getloadavg()]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(found, indent=2) + "\n")
    print(f"written to {options.out}")


def report(found: dict[str, Any], part: str, *keys: str) -> None:
    print(part + ": " + ", ".join(f"{key} {found[part][key]:,.2f}" for key in keys))


if __name__ == "__main__":
    main()
