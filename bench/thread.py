"""The thread's speeds: survey, index, counts and traces, beside infini-gram's own engine, in one run.

    python bench/thread.py [--rows survey,memory,index,count,trace,builder,paper] [--work runs/bench-thread]
                           [--raw DIR] [--tokenizer FILE] [--docs DIR] [--megabytes 900] [--queries 200]

The text is this machine's own (`loom collect python`, or `--raw`, a folder that it wrote), tokenized with
a vocabulary of 4,096 or `--tokenizer`, so that it comes to over 100 million tokens where there is enough
of it. Wall seconds are what is reported; seconds of processor time stand beside them, because a machine
may have been busy (its load stands beside each row). Each row goes to bench/results/thread.json when it is
finished, with its own date; rows that were not asked for are kept.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
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


def prepare(options: argparse.Namespace) -> tuple[Path, Path]:
    """(corpus, tokens) of this machine's text, made once."""
    work: Path = options.work
    raw, tokens = options.raw or work / "raw", work / "tokens"
    if not (raw / "manifest.json").exists():
        size = ("--limit-mb", options.megabytes, "--total-mb", options.megabytes)
        docs = ("--docs", options.docs) if options.docs else ()
        loom("collect", "python", "--out", raw, *size, *docs)
    tokenizer: Path = options.tokenizer or work / "tokenizer" / "tokenizer.json"
    if not tokenizer.exists():
        loom("tokenizer", "train", "--documents", raw, "--vocab-size", VOCABULARY, "--out", tokenizer)
    if needs_tokens(options.rows) and not (tokens / "manifest.json").exists():
        loom("tokenize", "--documents", raw, "--tokenizer", tokenizer, "--out", tokens)
    return raw, tokens


def needs_tokens(rows: Sequence[str]) -> bool:
    return bool({"index", "count", "trace", "builder"} & set(rows))


def plain_copy(raw: Path, work: Path, share: float) -> tuple[Path, int]:
    """The corpus, or the first part of its files, as plain JSON lines; and its bytes of text."""
    from loom.corpus import documents

    folder = work / f"plain-{share:g}" / "documents"
    folder.mkdir(parents=True, exist_ok=True)
    files = documents.find_files([raw / "documents"])
    files = files[:: round(1 / share)]
    size = 0
    for number, path in enumerate(files):
        out = folder / f"{number:03d}.jsonl"
        if not out.exists():
            with documents.write_lines(out) as stream:
                stream.writelines(documents.read_lines(path))
        for batch in documents.read(out):
            size += int(np.diff(batch.utf8()[1]).sum())
    return folder, size


def survey(folders: Sequence[Path], work: Path) -> tuple[dict[str, float], dict[str, Any]]:
    """(seconds and peak of `loom survey`, what it told)."""
    target = work / "surveys" / str(time.time_ns())
    used = loom("survey", *folders, "--only", SURVEYED, "--ngrams", 3, "--out", target)
    return used, json.loads((target / "survey.json").read_bytes())


def warm_survey(work: Path) -> None:
    """Compile the loops, which are kept on disk."""
    from loom.corpus.documents import write_lines

    page = work / "warm" / "a.jsonl"
    page.parent.mkdir(parents=True, exist_ok=True)
    with write_lines(page) as stream:
        stream.writelines(b'{"id": "%d", "text": "a b c d"}\n' % n for n in range(20_000))
    survey([page], work)


def bench_survey(raw: Path, work: Path) -> dict[str, Any]:
    """Counts, domains, lengths, duplicates and 3-grams of the whole corpus together."""
    warm_survey(work)
    folder, size = plain_copy(raw, work, 1.0)
    used, told = survey([folder], work)
    assert told["counts"]["bytes"] == size, "the survey read other text than was written"
    return used | {
        "analyses": SURVEYED,
        "ngrams": 3,
        "bytes": size,
        "megabytes_per_second": size / 1e6 / used["seconds"],
        "megabytes_per_processor_second": size / 1e6 / used["processor_seconds"],
        "missed": told["ngrams"]["3"]["missed"],
    }


def bench_memory(raw: Path, work: Path) -> dict[str, Any]:
    """The same survey's peak memory over a quarter of the corpus and over all of it."""
    warm_survey(work)
    out: dict[str, Any] = {"analyses": SURVEYED, "ngrams": 3}
    for name, share in (("1x", 0.25), ("4x", 1.0)):
        folder, size = plain_copy(raw, work, share)
        used, _ = survey([folder], work)
        out[name] = {"bytes": size, "peak_bytes": used["peak_bytes"], "seconds": used["seconds"]}
    out["times_the_text"] = out["4x"]["bytes"] / out["1x"]["bytes"]
    out["times_the_memory"] = out["4x"]["peak_bytes"] / out["1x"]["peak_bytes"]
    return out


def bench_index(tokens: Path, work: Path) -> dict[str, Any]:
    folder = work / "index"
    if folder.exists():
        shutil.rmtree(folder)
    used = loom("index", tokens, "--out", folder)
    index = open_index(folder)
    assert index.artifact is not None
    counters = index.artifact.counters
    assert counters["tokens"] == json.loads((tokens / "manifest.json").read_bytes())["counters"]["tokens"]
    return used | {
        "tokens": counters["tokens"],
        "documents": counters["documents"],
        "tokens_per_second": counters["tokens"] / used["seconds"],
        "tokens_per_processor_second": counters["tokens"] / used["processor_seconds"],
        "bytes_per_token": counters["bytes"] / counters["tokens"],
    }


def made_index(tokens: Path, work: Path) -> Path:
    """The folder of the last index row, or a new one."""
    folder = work / "index"
    if not (folder / "manifest.json").exists():
        loom("index", tokens, "--out", folder)
    return folder


def queries(index: Index, count: int) -> list[list[int]]:
    """N-grams of 1 to 10 tokens from random places, a third of them with a token changed."""
    random = np.random.default_rng(0)
    (shard,) = index.shards
    found: list[list[int]] = []
    while len(found) < count:
        at = int(random.integers(len(shard.tokens) - 12))
        ids = shard.tokens[at : at + int(random.integers(1, 11))].astype(int)
        if ids.max() >= index.tokenizer.vocab_size:
            continue  # runs over a separator
        if random.random() < 1 / 3:
            ids[int(random.integers(len(ids)))] = int(random.integers(10, index.tokenizer.vocab_size))
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
            ids += [token for token in part.tolist() if 5 < token < index.tokenizer.vocab_size]
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


def cold_and_warm(
    folder: Path, ask: Callable[[Index, Any], Any], questions: Sequence[Any], cold: int
) -> dict[str, Any]:
    """Latencies after the system was asked to forget the index, the first `cold` questions, and warm, all."""
    ask(open_index(folder), questions[0])  # compile
    forget(folder)
    index = open_index(folder)
    index.tokenizer.encode("a")
    out: dict[str, Any] = {"questions": len(questions)}
    out["cold"] = spread(timed(lambda question: ask(index, question), questions[:cold])) | {"questions": cold}
    timed(lambda question: ask(index, question), questions)
    out["warm"] = spread(timed(lambda question: ask(index, question), questions))
    return out


def bench_count(folder: Path, count: int) -> dict[str, Any]:
    """How often n-grams of 1 to 10 tokens occur; the public engine must give the same numbers."""
    index = open_index(folder)
    grams = queries(index, count)
    out = cold_and_warm(folder, lambda index, ids: index.count(ids), grams, count)
    told = peer(folder, index, {"queries": grams, "answers": []})
    if isinstance(told, str):
        return out | {"tokens": index.tokens, "peer": told}
    equal = [index.count(ids) for ids in grams] == told["counts"]
    assert equal, "the two engines count differently"
    theirs = spread(told["seconds"])
    times = theirs["median_ms"] / out["warm"]["median_ms"]
    return out | {
        "tokens": index.tokens,
        "peer": theirs | {"version": "2.6.0", "counts_equal": equal, "ratio": times},
    }


def bench_trace(folder: Path, count: int) -> dict[str, Any]:
    """Whole traces of answers of 450 tokens; the public engine's `attribute` finds spans only."""
    index = open_index(folder)
    texts = answers(index, count)
    out = cold_and_warm(folder, lambda index, text: trace(index, text), texts, min(PEER_ANSWERS, count))
    out |= {"tokens": index.tokens, "answer_tokens": ANSWER}
    encoded = [index.tokenizer.encode(text).tolist() for text in texts[:PEER_ANSWERS]]
    told = peer(folder, index, {"queries": [], "answers": encoded})
    if isinstance(told, str):
        return out | {"peer": told}
    theirs = spread(told["traced"]) | {"version": "2.6.0", "answers": len(encoded), "does": "spans only"}
    return out | {"peer": theirs | {"ratio": theirs["median_ms"] / out["warm"]["median_ms"]}}


def peer(folder: Path, index: Index, asked: dict[str, Any]) -> Any:
    """What the public engine says on the same files, or why it was not asked."""
    if not is_built("infini-gram"):
        return "the infini-gram environment is not built (make oracles)"
    words = range(index.tokenizer.vocab_size)
    delimiters = [n for n in words if index.tokenizer.token_bytes(n) in (b".", b"\n")]
    done = subprocess.run(
        [str(interpreter("infini-gram")), "-c", PEER],
        input=json.dumps({"index": str(folder), "delimiters": delimiters, **asked}),
        capture_output=True,
        text=True,
    )
    return f"failed: {done.stderr[-300:]}" if done.returncode else json.loads(done.stdout.splitlines()[-1])


def bench_builder(folder: Path, work: Path, limit: float) -> dict[str, Any]:
    """The public builder's sorting of the same text on the same cores, stopped after `limit` seconds."""
    if not is_built("infini-gram"):
        return {"peer": "the infini-gram environment is not built (make oracles)"}
    target, empty = work / "peer", work / "empty"
    if target.exists():
        shutil.rmtree(target)
    target.mkdir()
    empty.mkdir(exist_ok=True)
    for name in ("tokenized.0", "offset.0"):
        os.link(folder / name, target / name)
    words = ["--data_dir", empty.resolve(), "--save_dir", target.resolve(), "--token_dtype", "u16"]
    words += ["--mem", 4, "--cpus", 2, "--ulimit", 1024]
    tokens = (folder / "tokenized.0").stat().st_size // 2
    start = time.perf_counter()
    process = subprocess.Popen(
        [str(interpreter("infini-gram")), "-c", BUILD, *map(str, words)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        _, said = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return {"tokens": tokens, "stopped_after_seconds": limit, "tokens_per_second_below": tokens / limit}
    seconds = time.perf_counter() - start
    if process.returncode:
        return {"peer": f"failed: {said[-300:]}"}
    same = (target / "table.0").read_bytes() == (folder / "table.0").read_bytes()
    return {
        "tokens": tokens,
        "seconds": seconds,
        "tokens_per_second": tokens / seconds,
        "does": "sorts only",
        "table_equal": same,
    }


def on_paper(found: dict[str, Any]) -> dict[str, Any]:
    """Dolma's 3 trillion tokens from the constants measured here: what is measured is said, the rest assumed."""
    pointer = 5  # bytes, up to a terabyte a shard
    documents = found["index"]["documents"] / found["index"]["tokens"]
    width = int(np.ceil(np.log2(2 * found["index"]["tokens"]) / 8))  # bytes of a pointer here
    # What is neither ids nor pointers: a line and two offsets a document.
    lines = (found["index"]["bytes_per_token"] - 2 - width) / documents
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
        "count_warm_ms_a_shard": found["count"]["warm"]["median_ms"] * steps,
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


ROWS = ("survey", "memory", "index", "count", "trace", "builder", "paper")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=lambda text: text.split(","), default=list(ROWS))
    parser.add_argument("--raw", type=Path, help="a folder of `loom collect` instead of a new one")
    parser.add_argument("--docs", type=Path, help="a folder of text and HTML for `loom collect`")
    parser.add_argument("--tokenizer", type=Path, help="a tokenizer.json instead of a new one")
    parser.add_argument("--megabytes", type=float, default=900)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--builder-seconds", type=float, default=300)
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "bench-thread")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results" / "thread.json")
    options = parser.parse_args()
    if unknown := set(options.rows) - set(ROWS):
        parser.error(f"there are no rows {', '.join(sorted(unknown))}; there are {', '.join(ROWS)}")
    options.work.mkdir(parents=True, exist_ok=True)
    raw, tokens = prepare(options)
    kept = json.loads(options.out.read_bytes()) if options.out.exists() else {}
    found: dict[str, Any] = {name: kept[name] for name in ROWS if name in kept}
    work, count = options.work, options.queries
    makers: dict[str, Callable[[], dict[str, Any]]] = {
        "survey": lambda: bench_survey(raw, work),
        "memory": lambda: bench_memory(raw, work),
        "index": lambda: bench_index(tokens, work),
        "count": lambda: bench_count(made_index(tokens, work), count),
        "trace": lambda: bench_trace(made_index(tokens, work), count),
        "builder": lambda: bench_builder(made_index(tokens, work), work, options.builder_seconds),
        "paper": lambda: on_paper(found),
    }
    for name in ROWS:
        if name not in options.rows:
            continue
        before = machine()
        found[name] = makers[name]() | {
            "machine": before,
            "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        }
        print(name, json.dumps(found[name], indent=1))
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps({key: found[key] for key in ROWS if key in found}, indent=2) + "\n")
    print(f"written to {options.out}")


if __name__ == "__main__":
    main()
