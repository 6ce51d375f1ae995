"""The figures of bench/results/*.json as one table, written into docs/benchmarks.md between two marks; those of
evaluation, with what counting allows, into docs/evaluation.md.

    python bench/summary.py           # after any bench/*.py
    python bench/summary.py --print

Nothing is measured here, and nothing is left out: a row that missed its goal says so.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
RESULTS, PAGE = ROOT / "bench" / "results", ROOT / "docs" / "benchmarks.md"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
Json = dict[str, Any]


class Line(NamedTuple):
    what: str
    loom: str
    peer: str
    found: str
    goal: str
    met: bool | None  # None: a row without a goal
    date: str


def corpus(body: Json) -> Iterator[Line]:
    goals = {
        "tag": 30,
        "tokens-110": 15,
        "tokens-400": 40,
        "dedupe-mix": 3,
        "minhash": 5,
        "chain": 9,
        "language": 15,
    }
    for name, goal in goals.items():
        if (row := body["rows"].get(name)) is None:
            continue
        against = "datatrove" if name == "minhash" else "dolma"
        yield Line(
            f"`corpus` {name}, {row['bytes'] / 1e6:.0f} MB",
            f"{row['loom']['seconds']:.2f} s",
            f"{against} {row['peer']['seconds']:.1f} s",
            f"{row['times']:.1f}×",
            f"≥ {goal}×",
            row["times"] >= goal,
            row["date"],
        )
    yield from _formats(body)
    if (row := body["rows"].get("scale")) is not None:
        small, large = (sum(step["seconds"] for step in _steps(row[size])) for size in ("quarter", "big"))
        times = row["times_the_seconds"]["all"]
        yield Line(
            f"`corpus` {row['times_the_bytes']:.0f} times the documents",
            f"{large:.1f} s",
            f"a quarter of them {small:.1f} s",
            f"{times:.2f}×",
            "≤ 4.4×",
            times <= 4.4,
            row["date"],
        )
        for name in row["times_the_memory"]:
            after, before = (row[size][name]["largest_process_mb"] for size in ("big", "quarter"))
            yield Line(
                f"`corpus` memory of {name}, {row['times_the_bytes']:.0f} times the documents",
                f"{after:.0f} MB",
                f"{before:.0f} MB",
                f"{after / before:.3f}×",
                "< 1.2×",
                after / before < 1.2,
                row["date"],
            )


def _formats(body: Json) -> Iterator[Line]:
    """zst and Parquet, which dolma does not write, beside dolma's gz of the same run."""
    row, gz = body["rows"].get("dedupe-formats"), body["rows"].get("dedupe-mix")
    if row is None or gz is None:
        return
    for form in ("zst", "parquet"):
        seconds = sum(row[f"loom_{step}_{form}"]["seconds"] for step in ("dedupe", "mix"))
        yield Line(
            f"`corpus` dedupe-mix to {form}, {row['bytes'] / 1e6:.0f} MB",
            f"{seconds:.2f} s",
            f"dolma, gz {gz['peer']['seconds']:.1f} s",
            f"{gz['peer']['seconds'] / seconds:.1f}×",
            "none",
            None,
            row["date"],
        )


def _steps(made: Json) -> list[Json]:
    return [value for value in made.values() if isinstance(value, dict) and "seconds" in value]


def pretrain(body: Json) -> Iterator[Line]:
    rows = body["rows"]
    for name in ("speed-8192", "speed-50304"):
        if (row := rows.get(name)) is None:
            continue
        rates = {side: found["tokens_per_second"] for side, found in row["results"].items()}
        loom = max(rate for side, rate in rates.items() if side.startswith("loom"))
        peer = max((s for s in rates if not s.startswith(("loom", "products"))), key=lambda s: rates[s])
        yield Line(
            f"`pretrain` V = {name[6:]}",
            f"{loom:,.0f} tokens/s",
            f"{peer} {rates[peer]:,.0f}; products alone {rates['products']:,.0f}",
            f"{row['ratio']:.2f}×",
            "≥ 1.1×",
            row["ratio"] >= 1.1,
            row["date"],
        )
        if name == "speed-50304":
            peaks = {side: found["peak_bytes"] for side, found in row["results"].items()}
            for mine, theirs, most in (
                ("loom", "transformers", 0.60),
                ("loom-compiled", "transformers-compiled", 0.90),
            ):
                share = peaks[mine] / peaks[theirs]
                yield Line(
                    "`pretrain` peak memory, V = 50304",
                    f"{peaks[mine] / 1e9:.2f} GB",
                    f"{theirs} {peaks[theirs] / 1e9:.2f} GB",
                    f"{share:.0%}",
                    f"≤ {most:.0%}",
                    share <= most,
                    row["date"],
                )
    if (row := rows.get("data")) is not None:
        for length, found in row["lengths"].items():
            rate, peer = (found[side]["tokens_per_second"] / 1e6 for side in ("loom", "ai2-olmo"))
            yield Line(
                f"`pretrain` data path, T = {length}",
                f"{rate:.0f} M tokens/s",
                f"ai2-olmo {peer:.0f}",
                f"{rate / peer:.0f}×",
                "≥ 200 M tokens/s",
                rate >= 200,
                row["date"],
            )
    if (row := rows.get("checkpoints")) is not None:
        for what, seconds, beside, share, most in (
            (
                f"checkpoints of {row['checkpoint_bytes'] / 1e6:.0f} MB every 50 steps",
                row["seconds_a_checkpoint"],
                f"50 steps {50 * row['step_seconds']:.0f} s",
                row["cost_every_50"],
                0.03,
            ),
            (
                "waiting for data",
                row["data_wait"] * row["step_seconds"],
                f"a step {row['step_seconds']:.2f} s",
                row["data_wait"],
                0.01,
            ),
        ):
            yield Line(
                f"`pretrain` {what}", f"{seconds:.4f} s", beside, f"{share:.2%}", f"< {most:.0%}", share < most,
                row["date"],
            )  # fmt: skip


def evaluation(body: Json) -> Iterator[Line]:
    for name, row in body.items():
        if name == "inloop":
            yield Line(
                "`evaluation` in the loop",
                f"{row['callback_seconds']:.1f} s",
                f"plain forwards {row['plain_forward_seconds']:.1f} s",
                f"{row['ratio']:.2f}×",
                "≤ 1.5×",
                row["ratio"] <= 1.5,
                row["date"],
            )
            continue
        bound = f" (counting allows {row['bound']:.2f})" if "bound" in row else ""
        yield Line(
            f"`evaluation` {name}",
            f"{row['loom_seconds']:.1f} s",
            f"lm-eval {row['harness_seconds']:.1f} s",
            f"{row['ratio']:.2f}×{bound}",
            f"≥ {row['wanted']}×",
            row["ratio"] >= row["wanted"],
            row["date"],
        )


def adaptation(body: Json) -> Iterator[Line]:
    sides = body["sides"]
    for name, row in body["ratios"].items():
        own = sides[f"{name.split('/')[0]}/loom"]
        seconds = [side["seconds"] + side["reference_seconds"] for side in (own, sides[name])]
        yield Line(
            f"`adaptation` {name}",
            f"{seconds[0]:.0f} s",
            f"TRL {seconds[1]:.0f} s",
            f"{row['times_as_fast']:.2f}×",
            f"≥ {row['wanted']}×",
            row["equal"] and row["times_as_fast"] >= row["wanted"],
            row["date"],
        )
        if (most := row["wanted_memory"]) is not None:
            yield Line(
                f"`adaptation` {name}, peak memory",
                f"{own['peak_bytes'] / 1e9:.2f} GB",
                f"TRL {sides[name]['peak_bytes'] / 1e9:.2f} GB",
                f"{row['memory']:.0%}",
                f"≤ {most:.0%}",
                row["memory"] <= most,
                row["date"],
            )


def thread(body: Json) -> Iterator[Line]:
    if row := body.get("survey"):
        rate = row["megabytes_per_second"]
        yield Line(
            f"`thread` survey, {row['bytes'] / 1e6:.0f} MB",
            f"{row['seconds']:.1f} s",
            "",
            f"{rate:.0f} MB/s",
            "≥ 60 MB/s",
            rate >= 60,
            row["date"],
        )
    if row := body.get("memory"):
        yield Line(
            "`thread` survey's memory, 4 times the text",
            f"{row['4x']['peak_bytes'] / 1e6:.0f} MB",
            f"{row['1x']['peak_bytes'] / 1e6:.0f} MB",
            f"{row['times_the_memory']:.2f}×",
            "independent",
            row["times_the_memory"] < 1.2,
            row["date"],
        )
    if row := body.get("index"):
        rate = row["tokens_per_second"] / 1e6
        yield Line(
            f"`thread` index, {row['tokens'] / 1e6:.0f} M tokens",
            f"{row['seconds']:.1f} s",
            "",
            f"{rate:.1f} M tokens/s",
            "≥ 3 M tokens/s",
            rate >= 3,
            row["date"],
        )
        size = row["bytes_per_token"]
        yield Line("`thread` index on disk", "", "", f"{size:.2f} B/token", "≤ 8", size <= 8, row["date"])
    for name, most in (("count", 1), ("trace", 250)):
        if row := body.get(name):
            median = row["warm"]["median_ms"]
            yield Line(
                f"`thread` {name}, warm",
                f"{median:.3g} ms (cold {row['cold']['median_ms']:.3g})",
                f"infini-gram {row['peer']['median_ms']:.3g} ms",
                f"{row['peer']['ratio']:.0f}×",
                f"≤ {most} ms",
                median <= most,
                row["date"],
            )


def serve(body: Json) -> Iterator[Line]:
    goals = {
        "single-30m": ("≥ 1.2×", "ratio"),
        "single-700m": ("≥ 90 % of the bound", "share_of_bound"),
        "first-30m": ("≥ 1×", "ratio"),
        "first-700m": ("≥ 1×", "ratio"),
        "bf16-30m": ("≥ 2×", "ratio"),
        "bf16-700m": ("≥ 2×", "ratio"),
        "lookup-30m": ("≥ 2×", "ratio"),
        "lookup-700m": ("≥ 2×", "ratio"),
        "clients-30m": ("≥ 4×", "ratio"),
        "clients-700m": ("≥ 4×", "ratio"),
        "export-30m": ("≥ 1×", "ratio"),
        "export-700m": ("≥ 1×", "ratio"),
    }
    against = {
        "clients": ("at_once_tokens_per_second", "one_by_one_tokens_per_second", "one by one"),
        "export": ("export_seconds", "two_copies_seconds", "two copies"),
        "first": ("loom_seconds", "transformers_seconds", "transformers"),
        "bf16": ("loom_tokens_per_second", "transformers_float32_tokens_per_second", "transformers float32"),
    }
    usual = ("loom_tokens_per_second", "transformers_tokens_per_second", "transformers")
    rows = body["rows"]
    if row := rows.get("exact"):
        equal = row["equal_to_transformers"]
        yield Line(
            "`serve` greedy tokens equal to transformers",
            "",
            "",
            f"{equal} of {row['prompts']} prompts",
            "all",
            row["passed"],
            row["date"],
        )
    for name, (goal, key) in goals.items():
        if (row := rows.get(name)) is None:
            continue
        mine, theirs, who = against.get(name.split("-")[0], usual)
        unit = "s" if mine.endswith("seconds") else "tokens/s"
        found = f"{row[key]:.2f}×" if key == "ratio" else f"{row[key]:.0%}; {row['ratio']:.2f}×"
        yield Line(
            f"`serve` {name}",
            f"{row[mine]:.3g} {unit}",
            f"{who} {row[theirs]:.3g}",
            found,
            goal,
            row["passed"],
            row["date"],
        )


READERS = {
    "corpus": corpus,
    "pretrain-cpu": pretrain,
    "evaluation": evaluation,
    "adaptation": adaptation,
    "thread": thread,
    "serve": serve,
}


def table() -> str:
    lines = ["| row | Loom | beside | found | goal | | day |", "| --- | --- | --- | --- | --- | --- | --- |"]
    for name, reader in READERS.items():
        file = RESULTS / f"{name}.json"
        if not file.is_file():
            continue
        for line in reader(json.loads(file.read_text())):
            met = {True: "met", False: "**missed**", None: ""}[line.met]
            lines.append(f"| {' | '.join((*line[:5], met, line.date[:10]))} |")
    return "\n".join(lines)


EVALUATION = ROOT / "docs" / "evaluation.md"
WORDS = {
    "rank": "five tasks, d 512, V = 50,304",
    "truthfulqa": "TruthfulQA MC1 and MC2, d 512 (no goal was set)",
    "rank-1b": "five tasks, 1B shapes",
    "mmlu": "MMLU, 5 shots, d 512",
    "mmlu-1b": "MMLU, 5 shots, 1B shapes",
    "perplexity": "web pages, d 512",
}


def speed() -> str:
    """Evaluation beside the harness: rows as they were run, ratios beside what counting allows."""
    body = json.loads((RESULTS / "evaluation.json").read_text())
    lines = ["| | documents | Loom | harness | ratio | counting allows | with a narrow last block | wanted |"]
    lines.append("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name, what in WORDS.items():
        if (row := body.get(name)) is None:
            continue
        harness = f"{row['harness_seconds']:.1f} s"
        if row.get("harness_scaled_by", 1.0) != 1.0:
            harness += f" (of {row['documents_of_harness']}, scaled)"
        bounds = [f"{row[key]:.2f}" if key in row else "–" for key in ("bound", "bound_last_block")]
        ratio = f"{row['ratio']:.2f}"
        cells = [what, f"{row['documents']:,}", f"{row['loom_seconds']:.1f} s", harness]
        lines.append(f"| {' | '.join([*cells, ratio, *bounds, str(row['wanted'])])} |")
    if (row := body.get("inloop")) is not None:
        seconds = f"{row['callback_seconds']:.1f} s | plain forwards {row['plain_forward_seconds']:.1f} s"
        lines.append(
            f"| in the loop | – | {seconds} | {row['ratio']:.2f} | – | – | at most {row['at_most']} |"
        )
    return "\n".join(lines)


def write(page: Path, made: str) -> None:
    """Put a table between a page's marks."""
    before, rest = page.read_text().split(BEGIN)
    page.write_text(f"{before}{BEGIN}\n{made}\n{END}{rest.split(END)[1]}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--print", action="store_true", help="to the terminal, not into docs/benchmarks.md")
    made = table()
    if parser.parse_args().print:
        print(made)
        return
    write(PAGE, made)
    write(EVALUATION, speed())


if __name__ == "__main__":
    main()
