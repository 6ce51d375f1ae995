"""Loom's corpus steps beside dolma 1.2.1 and datatrove 0.10.1: the same documents, two processes each, one run.

    python bench/corpus.py --docs /usr/share/doc            # collects its documents; all rows, one run
    python bench/corpus.py --documents 'raw/documents/**/*.zst' --rows tag,tokens-400

Peers: `make oracles` builds dolma's environment; datatrove's is
`python -m venv .peers/datatrove && .peers/datatrove/bin/pip install 'datatrove[processing,io]==0.10.1'`.

Each side runs as its own command, start-up included; Loom's second run counts (its kernels are compiled once
a machine), and the better of two of a peer that is quick. Every row checks what both sides made, and is not
written where that is not as it should be. The result goes to bench/results/corpus.json after every row; `--rows`
adds rows to what is there, each of which names the run it came from, all rows begin anew.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from bench.peers import checks  # noqa: E402
from bench.peers.measure import (  # noqa: E402
    Largest,
    adopt_orphans,
    machine,
    orphans_processor_seconds,
    write_corpus,
)
from tests.oracles.build import PEERS, interpreter, is_built  # noqa: E402

from loom.corpus import documents  # noqa: E402
from loom.corpus.batch import as_rows  # noqa: E402
from loom.corpus.sources.machine import SYSTEM_DOCS  # noqa: E402
from loom.corpus.sources.python import Collect, collect  # noqa: E402
from loom.corpus.taggers.language import model_path  # noqa: E402

THREE = ["gopher_v2", "c4_v2", "pii_regex_with_counts_fast_v2"]
LANGUAGE, TOXICITY = "ft_lang_id_en_doc_v2", "jigsaw_hatespeech_document_v2"
PROCESSES = 2
OLMO = ROOT.parent / "shared" / "data" / "tokenizers" / "olmo-v1.json"
LOOM = str(Path(sys.executable).with_name("loom"))
MODULE = ROOT / "bench" / "peers" / "dolma_models.py"
Row = dict[str, Any]


class Bench:
    """The folders and models that rows share."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.work: Path = options.work.resolve()
        self.options = options
        self.dolma = str(interpreter("dolma").with_name("dolma"))
        self.environment = {
            "BENCH_LANGUAGE_MODEL": str(model_path()),
            "BENCH_TOXICITY_MODEL": str(self.work / "toxicity.bin"),
            "TOKENIZERS_PARALLELISM": "false",
            "NO_COLOR": "1",
        }

    def corpus(self, size: str) -> Path:
        """The folder of a size: `loom/documents/*.jsonl.gz`, the same files below `dolma/`, what they hold."""
        whole = self.options.megabytes
        megabytes = {"big": whole, "slow": self.options.slow_megabytes, "quarter": whole / 4}
        folder = self.work / size
        wanted = {"megabytes": megabytes[size], "files": {"big": 8, "slow": 4, "quarter": 2}[size]}
        stamp = folder / "made.json"
        if not stamp.exists() or json.loads(stamp.read_text())["wanted"] != wanted:
            shutil.rmtree(folder, ignore_errors=True)
            made = write_corpus(self.rows(), folder, megabytes[size], wanted["files"])
            stamp.write_text(json.dumps({"wanted": wanted, **made}))
        return folder

    def rows(self) -> list[bytes]:
        """Every document as a JSON line, in an order that mixes sources."""
        patterns = self.options.documents
        if not patterns:
            total = self.options.megabytes * 1.1
            recipe = Collect(limit_mb=total, total_mb=total, docs=str(self.options.docs))
            collect(recipe, self.work / "raw")
            patterns = [str(self.work / "raw" / "documents")]
        lines = []
        for path in documents.find_files(patterns):
            for batch in documents.read(path):
                lines += [orjson.dumps(row) for row in as_rows(batch) if len(row["text"]) < 4_000_000]
        return sorted(lines, key=zlib.crc32)

    def run(self, command: Sequence[str], rounds: int, clear: Callable[[], None]) -> dict[str, float]:
        """The best of the last `rounds` runs: seconds, processor seconds, largest process in MB."""
        best: dict[str, float] = {}
        environment = {**os.environ, **self.environment}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)  # else every start compiles Python anew
        log = self.work / "command.log"
        for _ in range(rounds):
            clear()
            started = time.perf_counter()
            with open(log, "wb") as stream:
                process = subprocess.Popen(list(command), stdout=stream, stderr=stream, env=environment)
                largest = Largest(process.pid)
                largest.start()
                _, status, used = os.wait4(process.pid, 0)
            seconds = time.perf_counter() - started
            process.returncode = os.waitstatus_to_exitcode(status)
            if process.returncode:
                sys.exit(f"{' '.join(command)} failed:\n{log.read_text(errors='replace')[-3000:]}")
            processor = used.ru_utime + used.ru_stime + orphans_processor_seconds()
            if not best or seconds < best["seconds"]:
                best = {
                    "seconds": round(seconds, 3),
                    "processor_seconds": round(processor, 3),
                    "largest_process_mb": round(largest.kilobytes / 1024, 1),
                }
        return best

    def loom(self, words: Sequence[str], clear: Callable[[], None]) -> dict[str, float]:
        """A Loom command timed when its kernels are compiled: one run to warm up, then the better of two."""
        self.run([LOOM, *words], 1, clear)
        return self.run([LOOM, *words], 2, clear)

    def toxicity(self) -> Path:
        """A model of Jigsaw's shape, trained here by fasttext-wheel: not its data, so its verdicts mean nothing."""
        model = self.work / "toxicity.bin"
        if not model.exists():
            lines = checks.labelled_lines(self.corpus("slow") / "loom" / "documents", 20_000)
            (self.work / "labelled.txt").write_text("".join(lines))
            script = str(ROOT / "bench" / "peers" / "train_classifier.py")
            command = [str(interpreter("dolma")), script, str(self.work / "labelled.txt"), str(model)]
            subprocess.run(command, check=True)
        return model


def facts(folder: Path) -> Row:
    made = json.loads((folder / "made.json").read_text())
    return {key: made[key] for key in ("bytes", "documents", "files")}


def config(path: Path, value: Any) -> str:
    path.write_text(json.dumps(value))
    return str(path)


def remover(*paths: Path) -> Callable[[], None]:
    def clear() -> None:
        for path in paths:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    return clear


def ratio(row: Row, ours: str = "loom", theirs: str = "peer") -> Row:
    row["times"] = round(row[theirs]["seconds"] / row[ours]["seconds"], 2)
    row["times_in_processor_time"] = round(
        row[theirs]["processor_seconds"] / row[ours]["processor_seconds"], 2
    )
    return row


def dolma_tag(bench: Bench, folder: Path, taggers: Sequence[str]) -> dict[str, float]:
    chosen = {
        "documents": [str(folder / "dolma" / "documents" / "*.gz")],
        "taggers": list(taggers),
        "tagger_modules": [str(MODULE)] if any(name.startswith("bench_") for name in taggers) else [],
        "processes": PROCESSES,
    }
    clear = remover(*(folder / "dolma" / "attributes" / name for name in taggers))
    return bench.run([bench.dolma, "-c", config(folder / "tag.json", chosen), "tag"], 1, clear)


def loom_tag(bench: Bench, folder: Path, taggers: Sequence[str], *more: str) -> dict[str, float]:
    words = ["tag", "--documents", str(folder / "loom" / "documents"), "--taggers", ",".join(taggers)]
    clear = remover(*(folder / "loom" / "attributes" / name for name in taggers))
    return bench.loom([*words, "--workers", str(PROCESSES), *more], clear)


def tag(bench: Bench) -> Row:
    folder = bench.corpus("slow")
    row: Row = {**facts(folder), "loom_parquet": loom_tag(bench, folder, THREE, "--format", "parquet")}
    row |= {"loom": loom_tag(bench, folder, THREE), "peer": dolma_tag(bench, folder, THREE)}
    row["check"] = checks.same_attributes(folder / "loom", folder / "dolma", THREE)
    return ratio(row) | {"limit": checks.reading_limit(folder, row["loom"]["seconds"])}


def language(bench: Bench) -> Row:
    folder = bench.corpus("big")
    row: Row = {**facts(folder), "loom": loom_tag(bench, folder, ["language_v1"])}
    row["peer"] = dolma_tag(bench, folder, ["bench_language"])
    row["check"] = checks.language_agreement(folder)
    return ratio(row) | {"limit": checks.reading_limit(folder, row["loom"]["seconds"])}


def tokens(bench: Bench, size: str) -> Row:
    folder = bench.corpus(size)
    return tokens_of(bench, folder, folder / "loom" / "documents", folder / "dolma" / "documents")


def tokens_of(bench: Bench, folder: Path, ours: Path, theirs: Path) -> Row:
    tokenizer = str(bench.options.tokenizer)
    out, peer = folder / "loom" / "tokens", folder / "dolma" / "tokens"
    words = ["tokenize", "--documents", str(ours), "--tokenizer", tokenizer, "--out", str(out)]
    command = [bench.dolma, "tokens", "--documents", str(theirs / "*.gz"), "--destination", str(peer)]
    command += ["--tokenizer.name_or_path", tokenizer, "--tokenizer.eos_token_id", "50279"]
    command += ["--tokenizer.pad_token_id", "1", "--dtype", "uint16", "--processes", str(PROCESSES)]
    row: Row = {**facts(folder), "loom": bench.loom([*words, "--workers", str(PROCESSES)], remover(out))}
    row["peer"] = bench.run(command, 1, remover(peer))
    row["check"] = checks.same_tokens(out, peer, (ours, theirs))
    return ratio(row) | {
        "limit": checks.encoding_limit(folder, bench.options.tokenizer, row["loom"]["seconds"])
    }


def deduper(folder: Path, side: str) -> str:
    root = folder / side
    value = {
        "documents": [str(root / "documents" / "*.gz")],
        "dedupe": {"name": "bff", "paragraphs": {"attribute_name": "bff"}, "skip_empty": True},
        "bloom_filter": {
            "file": str(root / "bff.bloom"),
            "read_only": False,
            "estimated_doc_count": 10_000_000,
            "desired_false_positive_rate": 1e-6,
        },
        "processes": PROCESSES,
        "work_dir": {"input": str(root / "in"), "output": str(root / "tmp")},
    }
    return config(root / "dedupe.json", value)


def mixer(folder: Path, side: str, attributes: Sequence[str], rules: Row, suffix: str = "*.gz") -> str:
    root = folder / side
    stream = {
        "name": "mixed",
        "documents": [str(root / "documents" / suffix)],
        "attributes": list(attributes),
        "output": {
            "path": str(root / "mixed"),
            "max_size_in_bytes": sum(p.stat().st_size for p in (root / "documents").iterdir()) // 4,
            "discard_fields": ["attributes"],
        },
        **rules,
    }
    work = {"input": str(root / "in"), "output": str(root / "tmp")}
    return config(root / "mix.json", {"streams": [stream], "processes": PROCESSES, "work_dir": work})


PARAGRAPHS = {"span": "$.attributes.bff", "min_score": 0.5, "replacement": ""}


def commands(bench: Bench, side: str, verb: str, path: str) -> dict[str, float]:
    root = Path(path).parent
    clear = {
        "dedupe": remover(root / "attributes" / "bff", root / "bff.bloom"),
        "mix": remover(root / "mixed"),
    }[verb]
    if side == "loom":
        return bench.loom([verb, "-c", path], clear)
    return bench.run([bench.dolma, "-c", path, verb], 2, clear)


def added(parts: Sequence[dict[str, float]]) -> dict[str, float]:
    total = {key: round(sum(part[key] for part in parts), 3) for key in ("seconds", "processor_seconds")}
    return {**total, "largest_process_mb": max(part["largest_process_mb"] for part in parts)}


def dedupe_and_mix(bench: Bench) -> Row:
    folder = bench.corpus("big")
    row: Row = facts(folder)
    rules = {"span_replacement": [PARAGRAPHS]}
    for side, name in (("loom", "loom"), ("dolma", "peer")):
        row[f"{name}_dedupe"] = commands(bench, side, "dedupe", deduper(folder, side))
        row[f"{name}_mix"] = commands(bench, side, "mix", mixer(folder, side, ["bff"], rules))
        row[name] = added([row[f"{name}_dedupe"], row[f"{name}_mix"]])
    row["check"] = checks.same_documents(folder / "loom" / "mixed", folder / "dolma" / "mixed")
    for step in ("dedupe", "mix"):
        row[f"times_{step}"] = round(row[f"peer_{step}"]["seconds"] / row[f"loom_{step}"]["seconds"], 2)
    return ratio(row) | {"limit": checks.reading_limit(folder, row["loom"]["seconds"], passes=3)}


def dedupe_formats(bench: Bench) -> Row:
    """Loom alone: the same paragraphs and mixing from gz, zst and Parquet documents."""
    folder = bench.corpus("big")
    row: Row = facts(folder)
    kinds = {"gz": folder, "zst": folder.with_name("big-zst"), "parquet": folder.with_name("big-parquet")}
    for kind, other in kinds.items():
        if kind != "gz":
            checks.convert(folder / "loom" / "documents", other / "loom" / "documents", kind)
        path = Path(deduper(other, "loom"))
        value = json.loads(path.read_text()) | {"documents": [str(other / "loom" / "documents")]}
        row[f"loom_dedupe_{kind}"] = commands(bench, "loom", "dedupe", config(path, value))
        rules = {"span_replacement": [PARAGRAPHS]}
        mixing = mixer(other, "loom", ["bff"], rules, "*")
        row[f"loom_mix_{kind}"] = commands(bench, "loom", "mix", mixing)
    row["check"] = checks.same_texts([other / "loom" / "mixed" for other in kinds.values()])
    for kind in ("zst", "parquet"):
        shutil.rmtree(kinds[kind])
    return row


def minhash(bench: Bench) -> Row:
    if not (PEERS / "datatrove" / "bin" / "python").exists():
        sys.exit("The peer datatrove is not built; the head of this file says how.")
    source = bench.corpus("big")
    folder = bench.work / "words"
    made = folder / "made.json"
    if not made.exists() or made.read_text() != (source / "made.json").read_text():
        shutil.rmtree(folder, ignore_errors=True)
        checks.plain_words(source / "loom" / "documents", folder / "loom" / "documents")
        shutil.copy(source / "made.json", folder / "made.json")
    texts = folder / "loom" / "documents"
    out = folder / "datatrove"
    words = ["dedupe", "--documents", str(texts), "--by", "minhash", "--name", "near"]
    row: Row = facts(folder)
    marked = folder / "loom" / "attributes" / "near"
    row["loom"] = bench.loom([*words, "--workers", str(PROCESSES)], remover(marked))
    script = str(ROOT / "bench" / "peers" / "datatrove_minhash.py")
    command = [str(PEERS / "datatrove" / "bin" / "python"), script, str(texts), str(out), str(row["files"])]
    row["peer"] = bench.run(command, 1, remover(out))
    row["check"] = checks.near_duplicates(texts, marked, out / "clusters", bench.options.brute_force)
    return ratio(row) | {"limit": checks.reading_limit(folder, row["loom"]["seconds"])}


def filters(side: str) -> Row:
    """Dolma v1.5's web rules, and the two models' verdicts."""
    language = LANGUAGE if side == "loom" else "bench_language"
    toxicity = TOXICITY if side == "loom" else "bench_toxicity"
    gopher, pii = THREE[0], THREE[2]

    def rule(tagger: str, key: str, test: str) -> str:
        name = f"@.{tagger}__{tagger}__{key}"
        return f"$.attributes[?({name} && {name}[0] && {name}[0][2] {test})]"

    fraction = "fraction_of_"
    exclude = [
        rule(gopher, "word_count", "< 50"),
        rule(gopher, "word_count", "> 100000"),
        rule(gopher, "median_word_length", "< 3"),
        rule(gopher, "median_word_length", "> 10"),
        rule(gopher, "symbol_to_word_ratio", "> 0.1"),
        rule(gopher, "required_word_count", "< 2"),
        rule(gopher, f"{fraction}lines_starting_with_bullet_point", "> 0.9"),
        rule(gopher, f"{fraction}duplicate_lines", "> 0.3"),
        rule(gopher, f"{fraction}characters_in_most_common_2grams", "> 0.2"),
        rule(gopher, f"{fraction}characters_in_duplicate_5grams", "> 0.15"),
        rule(pii, "doc_count", "> 5"),
        rule(language, "en", "< 0.5"),
        rule(toxicity, "__label__toxic", "> 0.9"),
    ]
    masks = [
        {
            "span": f"$.attributes.{pii}__{pii}__{kind}",
            "min_score": 0.5,
            "replacement": f" |||{kind}||| ",
        }
        for kind in ("EMAIL_ADDRESS", "PHONE_NUMBER", "IP_ADDRESS")
    ]
    return {"filter": {"include": [], "exclude": exclude}, "span_replacement": [PARAGRAPHS, *masks]}


def chain(bench: Bench) -> Row:
    """All six steps; both sides' verbs one after the other."""
    folder = bench.corpus("slow")
    bench.toxicity()
    row: Row = facts(folder)
    taggers = [*THREE, LANGUAGE, TOXICITY]
    file = f"{TOXICITY}={bench.toxicity()}"
    row["loom_tag"] = loom_tag(bench, folder, taggers, "--file", file)
    row["peer_tag"] = dolma_tag(bench, folder, [*THREE, "bench_language", "bench_toxicity"])
    own = {"loom": taggers, "dolma": [*THREE, "bench_language", "bench_toxicity"]}
    for side, name in (("loom", "loom"), ("dolma", "peer")):
        row[f"{name}_dedupe"] = commands(bench, side, "dedupe", deduper(folder, side))
        path = mixer(folder, side, ["bff", *own[side]], filters(side))
        row[f"{name}_mix"] = commands(bench, side, "mix", path)
    encoded = tokens_of(bench, folder, folder / "loom" / "mixed", folder / "dolma" / "mixed")
    row |= {"loom_tokens": encoded["loom"], "peer_tokens": encoded["peer"]}
    for name in ("loom", "peer"):
        row[name] = added([row[f"{name}_{step}"] for step in ("tag", "dedupe", "mix", "tokens")])
    row["check"] = checks.same_documents(folder / "loom" / "mixed", folder / "dolma" / "mixed")
    row["check"] |= {"tokens": encoded["check"]}
    for step in ("tag", "dedupe", "mix", "tokens"):
        row[f"times_{step}"] = round(row[f"peer_{step}"]["seconds"] / row[f"loom_{step}"]["seconds"], 2)
    return ratio(row) | {"limit": checks.reading_limit(folder, row["loom"]["seconds"], passes=4)}


def scale(bench: Bench) -> Row:
    """Loom alone: a quarter of the documents and all of them, stage by stage."""
    row: Row = {}
    seconds: Row = {}
    for size in ("quarter", "big"):
        folder = bench.corpus(size)
        texts, out = folder / "loom" / "documents", folder / "loom" / "tokens"
        near = folder / "loom" / "attributes" / "near"
        rules = {"span_replacement": [PARAGRAPHS]}
        by = ["--documents", str(texts), "--workers", str(PROCESSES)]
        made = {
            "tag": loom_tag(bench, folder, THREE),
            "dedupe": commands(bench, "loom", "dedupe", deduper(folder, "loom")),
            "mix": commands(bench, "loom", "mix", mixer(folder, "loom", ["bff"], rules)),
            "minhash": bench.loom(["dedupe", *by, "--by", "minhash", "--name", "near"], remover(near)),
            "tokenize": bench.loom(
                ["tokenize", *by, "--tokenizer", str(bench.options.tokenizer), "--out", str(out)],
                remover(out),
            ),
        }
        row[size] = {**facts(folder), **made}
        seconds[size] = {k: v["seconds"] for k, v in {"all": added(list(made.values())), **made}.items()}
    row["times_the_bytes"] = round(row["big"]["bytes"] / row["quarter"]["bytes"], 2)
    quarter, whole = seconds["quarter"], seconds["big"]
    row["times_the_seconds"] = {k: round(whole[k] / quarter[k], 2) for k in whole}
    row["times_the_memory"] = {
        key: round(row["big"][key]["largest_process_mb"] / row["quarter"][key]["largest_process_mb"], 2)
        for key in ("tag", "dedupe", "mix", "minhash", "tokenize")
    }
    return row


ROWS: dict[str, tuple[Callable[[Bench], Row], str]] = {
    "dedupe-mix": (dedupe_and_mix, "at least 3 times dolma; files at most 1.2 times as large"),
    "dedupe-formats": (dedupe_formats, "zst and Parquet beside gz"),
    "tokens-110": (lambda bench: tokens(bench, "slow"), "at least 15 times dolma"),
    "minhash": (minhash, "at least 5 times datatrove, recall and precision no worse"),
    "scale": (scale, "four times the documents: at most 4.4 times the time, memory under 1.2 times"),
    "tag": (tag, "at least 30 times dolma"),
    "language": (language, "at least 15 times dolma"),
    "chain": (chain, "at least 9 times dolma"),
    "tokens-400": (lambda bench: tokens(bench, "big"), "at least 40 times dolma"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", default=",".join(ROWS), help=f"of {', '.join(ROWS)}")
    parser.add_argument(
        "--documents", nargs="+", help="document files; else `loom collect python` finds some"
    )
    parser.add_argument("--docs", type=Path, default=SYSTEM_DOCS, help="a folder of text and HTML")
    parser.add_argument("--megabytes", type=float, default=400, help="where both sides are quick")
    parser.add_argument("--slow-megabytes", type=float, default=110, help="where the peer is slow")
    parser.add_argument("--brute-force", type=int, default=3000, help="documents compared pair by pair")
    parser.add_argument("--tokenizer", type=Path, default=OLMO)
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "bench-corpus")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results" / "corpus.json")
    options = parser.parse_args()
    if not is_built("dolma"):
        sys.exit("The peer dolma is not built: `make oracles` builds it.")
    names = [name for name in options.rows.split(",") if name]
    if unknown := [name for name in names if name not in ROWS]:
        sys.exit(f"There is no row {unknown[0]!r}; there are {', '.join(ROWS)}.")
    options.work.mkdir(parents=True, exist_ok=True)
    every = set(names) == set(ROWS)
    found: Row = json.loads(options.out.read_text()) if options.out.exists() and not every else {}
    adopt_orphans()
    started = _now("seconds")
    for name in names:
        run, target = ROWS[name]
        load = os.getloadavg()[0]
        try:
            row = run(Bench(options))
        except checks.Wrong as error:
            sys.exit(f"{name}: {error}")
        about = {"date": _now("minutes"), "run": started, "target": target, "load_before": load}
        found.setdefault("rows", {})[name] = about | row
        found["machine"] = machine()
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(found, indent=2) + "\n")
        report(name, target, row)


def _now(precision: str) -> str:
    return datetime.now(UTC).isoformat(timespec=precision)


def report(name: str, target: str, row: Row) -> None:
    if "times" in row:
        ours, theirs = row["loom"]["seconds"], row["peer"]["seconds"]
        by = row["times_in_processor_time"]
        print(
            f"{name:<15} loom {ours:8.2f} s   peer {theirs:8.2f} s   {row['times']:6.1f} times ({by} by processor)"
        )
    else:
        print(f"{name:<15} {json.dumps({k: v for k, v in row.items() if k.startswith('times')} or row)}")
    print(f"  target: {target}; check: {json.dumps(row.get('check', {}))}", flush=True)


if __name__ == "__main__":
    main()
