"""Loom's evaluation beside lm-evaluation-harness 0.4.13: same weights, same rows, float32, one run.

    python bench/evaluation.py [--rows rank,truthfulqa,mmlu,perplexity,inloop,rank-1b,mmlu-1b] [--limit N] [--threads N]

rank        piqa, arc_easy, sciq, boolq, openbookqa, whole, at d 512 with 8 layers and V = 50,304
truthfulqa  50 questions of both multiple-choice forms, drawn by a fixed seed, at d 512
rank-1b     the same tasks, 20 documents of each drawn by a fixed seed, at OLMo 1B's shape
mmlu        three subjects with 5 shots, whole, at d 512
mmlu-1b     abstract_algebra with 5 shots at OLMo 1B's shape; the harness, which shares nothing between
            documents, answers 12 of the 100, and its seconds are scaled to all (both counts are written)
perplexity  100 web pages against the harness's rolling log-likelihood
inloop      the callback of the training loop against plain forwards over as many tokens, and once more with
            compiled blocks, where a recompilation would be an error

Weights are random (speed does not depend on them), the tokenizer and rows are OLMo's. Each row prints the
ratio of seconds with the harness at its best batch size, beside the ratio that counting multiplications
allows, and compares every document: a prediction that differs (of documents whose two best are not within
1e-3 nats), or a log-likelihood that is further off than `TOLERANCE`, fails the row, and the command ends with
1. A finished row is written to bench/results/evaluation.json at once, with its date, settings, machine and the
run it is of, and the table of docs/evaluation.md with it; `--limit` makes every row small.

All rows take a little over an hour on two quiet cores: rank 25 minutes (715,000 tokens for Loom, 993,000 for the
harness), truthfulqa 10, mmlu 6, perplexity 4, inloop 4, rank-1b 9, mmlu-1b 15.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import json
import os
import platform
import random
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from tests.evals import harness  # noqa: E402

import summary  # noqa: E402  (bench/summary.py, beside this file)
from loom.evals import metrics  # noqa: E402
from loom.evals.encode import encode_items  # noqa: E402
from loom.evals.inloop import InLoop  # noqa: E402
from loom.evals.items import Layout, score_items  # noqa: E402
from loom.evals.perplexity import Document, document_rows, score_documents  # noqa: E402
from loom.model.config import ModelConfig  # noqa: E402
from loom.model.huggingface import config_to_huggingface, to_huggingface  # noqa: E402
from loom.model.product import hasten  # noqa: E402
from loom.model.transformer import Transformer  # noqa: E402
from loom.tasks import data, registry  # noqa: E402
from loom.tokens.tokenizer import Tokenizer  # noqa: E402

DATA = ROOT.parent / "shared" / "data"
RESULTS = ROOT / "bench" / "results" / "evaluation.json"
RANK = ("piqa", "arc_easy", "sciq", "boolq", "openbookqa")
TRUTH = ("truthfulqa_mc1", "truthfulqa_mc2")
# Float32 sums of hundreds of nats: 1e-3 nats, or three millionths of a log-likelihood where that is more.
TOLERANCE = {"nats": 1e-3, "relative": 3e-6}
WANTED = {"rank": 2.2, "rank-1b": 1.35, "mmlu": 10.0, "mmlu-1b": 6.0, "perplexity": 1.5, "truthfulqa": 1.0}
SHAPES = {"d512": (512, 8, 8, 1408, True), "1b": (2048, 16, 16, 8192, True)}
PRODUCTS = ("mkldnn::_linear_pointwise", "aten::mm", "aten::addmm")

Peer = Callable[[int], Any]
"""The harness's backend for a batch size."""
Seconds = tuple[float, float, Any]
"""Seconds by the clock, CPU seconds of all threads, and the result."""


@dataclass(frozen=True)
class Setup:
    """What a row is given: models of its shape, and how small to be."""

    model: Transformer
    tokenizer: Tokenizer
    peer: Peer
    limit: int | None
    batches: tuple[int, ...]


def make_model(shape: str) -> Transformer:
    width, layers, heads, mlp, tied = SHAPES[shape]
    config = ModelConfig(
        d_model=width,
        n_layers=layers,
        n_heads=heads,
        mlp_width=mlp,
        vocab_size=50304,
        context_length=2048,
        tied=tied,
    )
    model = Transformer(config)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.05, generator=generator)
    return model.eval()


def make_peer(model: Transformer, tokenizer_file: Path) -> Peer:
    """The same weights (shared, not copied) in transformers; gives the harness's backend for a batch size."""
    import transformers

    config = config_to_huggingface(model.config, 50279, 1)
    with torch.device("meta"):
        theirs = transformers.OlmoForCausalLM(transformers.OlmoConfig(**config))
    theirs.load_state_dict(to_huggingface(model.state_dict(), model.config), strict=False, assign=True)
    theirs.tie_weights()
    rotary = type(theirs.model.rotary_emb)(theirs.config)  # its buffers are no part of the weights
    theirs.model.rotary_emb = rotary
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(tokenizer_file),
        eos_token="<|endoftext|>",
        pad_token="<|padding|>",
        clean_up_tokenization_spaces=False,
    )
    return lambda batch: harness.language_model(theirs.eval(), fast, batch)


def flops(model: Transformer, tokens: float, scored: float, attended: float, late: float = 0.0) -> float:
    """Multiplications and additions of a forward: blocks on `tokens`, output matrix on `scored`
    positions, attention over `attended` (query, key) pairs. Of `late` tokens, the last block computes
    nothing but keys, values and attention."""
    config = model.config
    head = 2 * config.vocab_size * config.d_model
    blocks = 2 * (config.matmul_parameters - config.vocab_size * config.d_model)
    spared = 2 * (3 * config.d_model * config.mlp_width + config.d_model**2)
    return blocks * tokens + head * scored + 4 * config.n_layers * config.d_model * attended - spared * late


def bound(model: Transformer, layout: Layout, naive: Sequence[Sequence[int]]) -> dict[str, float]:
    """What counting allows: the harness reads each distinct context once a choice (one-token choices
    share it) and makes logits at every position; Loom reads each tree once. `bound_last_block` counts as
    well that Loom's last block computes only the positions that are read."""
    rows = [*layout.rows, *(row for shared in layout.shared for row in shared.rows)]
    prefixes = [len(shared.tokens) for shared in layout.shared]
    past = sum(len(shared.tokens) * len(row) for shared in layout.shared for row in shared.rows)
    tokens = float(sum(map(len, rows)) + sum(prefixes))
    scored = float(sum(len(np.unique(row.at)) for row in rows))
    attended = sum(len(row) ** 2 / 2 for row in rows) + past + sum(n**2 / 2 for n in prefixes)
    lengths = [length for group in naive for length in group]
    theirs = flops(model, sum(lengths), sum(lengths), sum(n**2 / 2 for n in lengths))
    return {
        "bound": theirs / flops(model, tokens, scored, attended),
        "bound_last_block": theirs / flops(model, tokens, scored, attended, tokens - scored),
        "tokens_loom": tokens,
        "tokens_harness": float(sum(lengths)),
    }


def distinct_inputs(items: Sequence[Any], tokenizer: Tokenizer, longest: int) -> list[list[int]]:
    """Lengths of the inputs the harness runs: those of equal context and continuation but the last token
    are one (its grouping of one-token continuations)."""
    pairs, _ = encode_items(items, tokenizer)
    result = []
    for group in pairs:
        inputs = {(*pair.context, *pair.continuation)[-(longest + 1) : -1] for pair in group}
        result.append([len(one) for one in inputs])
    return result


def timed(work: Callable[[], Any]) -> Seconds:
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    return time.perf_counter() - wall, time.process_time() - cpu, result


def asked(work: Callable[[], Any]) -> Seconds:
    """Seconds of the harness's requests alone, without its set-up of tasks."""
    result = work()
    return result["seconds"], result["cpu_seconds"], result


def best_batch(peer: Peer, work: Callable[[Any], Any], sizes: Sequence[int]) -> int:
    """The harness's fastest batch size on a sample, by CPU seconds."""
    if len(sizes) == 1:
        return sizes[0]
    seconds = {size: timed(lambda size=size: work(peer(size)))[1] for size in sizes}
    _say_sizes(seconds)
    return min(seconds, key=lambda size: seconds[size])


def best_run(peer: Peer, work: Callable[[Any], Any], sizes: Sequence[int]) -> tuple[int, Seconds]:
    """The same where the sample is all there is: the fastest run itself."""
    found = {size: asked(lambda size=size: work(peer(size))) for size in sizes}
    _say_sizes({size: one[1] for size, one in found.items()})
    best = min(found, key=lambda size: found[size][0])
    return best, found[best]


def _say_sizes(seconds: Mapping[int, float]) -> None:
    sizes = ", ".join(f"batch {size} {spent:.1f} s" for size, spent in seconds.items())
    print("  harness, CPU seconds on a sample:", sizes, flush=True)


def report(name: str, loom: Seconds, peer: Seconds, **more: Any) -> dict[str, Any]:
    result = {
        "loom_seconds": round(loom[0], 3),
        "harness_seconds": round(peer[0], 3),
        "ratio": round(peer[0] / loom[0], 3),
        "wanted": WANTED[name],
        "loom_cpu_seconds": round(loom[1], 3),
        "harness_cpu_seconds": round(peer[1], 3),
        "cpu_ratio": round(peer[1] / loom[1], 3),
        **more,
    }
    limit = ""
    if "bound" in more:
        limit = (
            f"; counting allows {more['bound']:.2f}, {more['bound_last_block']:.2f} with a narrow last block"
        )
    print(
        f"{name}: Loom {loom[0]:.1f} s, harness {peer[0]:.1f} s: {result['ratio']:.2f} times, wanted "
        f"{WANTED[name]} (CPU seconds: {result['cpu_ratio']:.2f}){limit}",
        flush=True,
    )
    return result


def rows_of(task: str, kept: Sequence[int], items: Sequence[Any]) -> list[dict[str, Any]]:
    """The raw rows with these numbers: what the harness is given. `items` are the same rows'."""
    found = data.find(DATA / "eval", registry.task(task).files, registry.task(task).splits)
    lines = list(data.read_rows(*found.paths))
    if task in TRUTH:
        return [harness.hub_row(lines[n], item, task) for n, item in zip(kept, items, strict=True)]
    return [lines[number] for number in kept]


def far(ours: Any, theirs: Any) -> int:
    """How many log-likelihoods are further apart than `TOLERANCE`."""
    mine, other = np.asarray(ours, dtype=np.float64), np.asarray(theirs, dtype=np.float64)
    allowed = np.maximum(TOLERANCE["nats"], TOLERANCE["relative"] * np.abs(other))
    return int((~(np.abs(mine - other) <= allowed)).sum())


def agreement(items: Sequence[Any], scores: Any, samples: Mapping[int, Any]) -> dict[str, Any]:
    """Of the documents that the harness answered: those whose prediction differs, those too close to
    call, the largest difference in nats, and how many log-likelihoods are further apart than `TOLERANCE`.
    `samples` are by place in the list."""
    differ = close = compared = over = 0
    largest = 0.0
    outcomes = metrics.outcomes(items, scores)
    for place, (logp, outcome) in enumerate(zip(scores.logp, outcomes, strict=True)):
        if place not in samples:
            continue
        compared += 1
        theirs = samples[place]
        largest = max(largest, float(np.abs(logp - theirs["logp"]).max()))
        over += far(logp, theirs["logp"])
        if outcome is None or outcome.close:
            close += 1
            continue
        same = abs(outcome.values["acc"] - theirs["acc"]) < 1e-3  # MC2's is a share of probability
        if theirs["acc_norm"] is not None:
            same &= outcome.values["acc_norm"] == theirs["acc_norm"]
        differ += not same
    return {
        "documents": compared,
        "differ": differ,
        "close": close,
        "largest_nats": largest,
        "over_tolerance": over,
    }


def agrees(found: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Whether a row's documents agree, printed and for its record."""
    for name, line in found.items():
        print(f"  {name}: {line}", flush=True)
    good = all(line["differ"] == 0 and line["over_tolerance"] == 0 for line in found.values())
    return {"agreement": found, "tolerance": TOLERANCE, "agrees": good}


def drawn(count: int, limit: int | None) -> list[int]:
    """Row numbers of a sample, in order; all of them without a limit."""
    if limit is None or limit >= count:
        return list(range(count))
    return sorted(random.Random(1234).sample(range(count), limit))


def rank(given: Setup, row: str, names: Sequence[str] = RANK) -> dict[str, Any]:
    whole = {name: data.load(registry.task(name), DATA / "eval").items for name in names}
    kept = {name: drawn(len(whole[name]), given.limit) for name in names}
    items = {name: [whole[name][number] for number in kept[name]] for name in names}
    rows = {name: rows_of(name, kept[name], items[name]) for name in names}
    few = {name: lines[:: max(1, len(lines) // max(4, len(lines) // 20))] for name, lines in rows.items()}
    batch = best_batch(given.peer, lambda lm: harness.run(lm, few), given.batches)
    loom = timed(
        lambda: {name: score_items(given.model, items[name], given.tokenizer, 2048) for name in names}
    )
    theirs = asked(lambda: harness.run(given.peer(batch), rows))
    everything = [item for name in names for item in items[name]]
    layout = Layout.of(
        *encode_items(everything, given.tokenizer), 2048, headers=[item.header for item in everything]
    )
    counted = bound(given.model, layout, distinct_inputs(everything, given.tokenizer, 2048))
    found = {name: agreement(items[name], loom[2][name], theirs[2]["samples"][name]) for name in names}
    return report(row, loom, theirs, **counted, **agrees(found), batch=batch, documents=len(everything))


def mmlu(given: Setup, subjects: Sequence[str], answered: int | None) -> dict[str, Any]:
    """`answered`: how many documents of each subject the harness answers; its seconds are scaled."""
    folder = DATA / "eval" / "mmlu"
    names = [f"mmlu_{subject}" for subject in subjects]
    items = {
        name: data.load(registry.task(f"{name}:5shot"), DATA / "eval", limit=given.limit).items
        for name in names
    }
    rows = {f"mmlu_{s}": list(data.read_rows(folder / f"{s}.test.jsonl.gz"))[: given.limit] for s in subjects}
    examples = {f"mmlu_{s}": list(data.read_rows(folder / f"{s}.dev.jsonl.gz")) for s in subjects}
    loom = timed(
        lambda: {name: score_items(given.model, items[name], given.tokenizer, 2048) for name in names}
    )
    if answered is None:
        few = {name: lines[:4] for name, lines in rows.items()}
        batch = best_batch(given.peer, lambda lm: harness.run(lm, few, 5, examples), given.batches)
        theirs = asked(lambda: harness.run(given.peer(batch), rows, 5, examples))
        scale = 1.0
    else:
        few = {name: lines[:answered] for name, lines in rows.items()}
        batch, theirs = best_run(given.peer, lambda lm: harness.run(lm, few, 5, examples), given.batches)
        longest = 2048
        sizes = {
            name: [
                sum(group)
                for group in distinct_inputs(items[name][: len(few[name])], given.tokenizer, longest)
            ]
            for name in names
        }
        all_sizes = [
            sum(group) for name in names for group in distinct_inputs(items[name], given.tokenizer, longest)
        ]
        scale = sum(all_sizes) / sum(sum(group) for group in sizes.values())
        theirs = (theirs[0] * scale, theirs[1] * scale, theirs[2])
    everything = [item for name in names for item in items[name]]
    layout = Layout.of(
        *encode_items(everything, given.tokenizer), 2048, headers=[item.header for item in everything]
    )
    counted = bound(given.model, layout, distinct_inputs(everything, given.tokenizer, 2048))
    found = {name: agreement(items[name], loom[2][name], theirs[2]["samples"][name]) for name in names}
    return report(
        "mmlu" if answered is None else "mmlu-1b",
        loom,
        theirs,
        **counted,
        **agrees(found),
        batch=batch,
        documents=len(everything),
        documents_of_harness=sum(line["documents"] for line in found.values()),
        harness_scaled_by=round(scale, 3),
    )


def perplexity(given: Setup) -> dict[str, Any]:
    texts = [row["text"] for row in data.read_rows(DATA / "text" / "c4.jsonl.gz")][: given.limit or 100]

    def work() -> list[float]:
        documents = web_pages(texts, given.tokenizer)
        scores = score_documents(given.model, documents, given.tokenizer.eos_id, 2048)
        return [score.nll for score in scores]

    few = texts[:: max(1, len(texts) // max(4, len(texts) // 10))]
    batch = best_batch(given.peer, lambda lm: harness.rolling(lm, few), given.batches)
    loom = timed(work)
    theirs = timed(lambda: harness.rolling(given.peer(batch), texts))
    rows = document_rows(web_pages(texts, given.tokenizer), given.tokenizer.eos_id, 2048)
    lengths = [len(row) for row in rows]
    attended = sum(length**2 / 2 for length in lengths)
    scored = float(sum(len(np.unique(row.at)) for row in rows))
    tokens = float(sum(lengths))
    # The same windows on both sides; logits at every position there, at those that are predicted here.
    counted = flops(given.model, tokens, tokens, attended)
    bounds = {
        "bound": counted / flops(given.model, tokens, scored, attended),
        "bound_last_block": counted / flops(given.model, tokens, scored, attended, tokens - scored),
        "tokens_loom": tokens,
        "tokens_harness": tokens,
    }
    # What no rearrangement saves: the products themselves, taken from one more run of each side.
    products = {
        "loom_products": products_share(work),
        "harness_products": products_share(lambda: harness.rolling(given.peer(batch), texts)),
    }
    seconds = loom[0] * products["loom_products"]
    rate = flops(given.model, tokens, tokens, 0) / seconds / 1e9
    shares = [f"{100 * share:.0f} %" for share in products.values()]
    print(
        f"  matrix products are {shares[0]} of Loom's seconds ({rate:.0f} GFLOP/s) and {shares[1]} of the harness's; "
        f"were all else free here, the ratio would be {theirs[0] / seconds:.2f}",
        flush=True,
    )
    bounds |= products | {"ratio_of_products_alone": theirs[0] / seconds}
    ours = [-value for value in loom[2]]
    largest = float(np.abs(np.array(ours) - np.array(theirs[2])).max())
    line = {
        "documents": len(texts),
        "differ": 0,  # there is nothing to predict
        "largest_nats": largest,
        "over_tolerance": far(ours, theirs[2]),
    }
    return report(
        "perplexity", loom, theirs, **bounds, **agrees({"c4": line}), batch=batch, documents=len(texts)
    )


def products_share(work: Callable[[], Any]) -> float:
    """The part of a run's operator time that is multiplication by weight matrices."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU]) as found:
        work()
    spent = {line.key: line.self_cpu_time_total for line in found.key_averages()}
    return sum(spent.get(name, 0.0) for name in PRODUCTS) / sum(spent.values())


def web_pages(texts: Sequence[str], tokenizer: Tokenizer) -> list[Document]:
    return [
        Document(str(i), "c4", "c4", tokenizer.encode(text), len(text.encode()))
        for i, text in enumerate(texts)
    ]


def inloop(given: Setup) -> dict[str, Any]:
    """The callback (questions and web pages) against plain forwards over as many tokens of the same shape,
    and its share of a 1B run that evaluates every 1,000 steps of 0.5 M tokens: 60,000 held-out tokens and
    200 questions of 150 tokens of each of eight tasks, at the ratio measured here; a step is three forwards."""
    count = given.limit or 200
    items = {
        name: data.load(registry.task(name), DATA / "eval", sample=count).items
        for name in ("piqa", "arc_easy")
    }
    texts = [row["text"] for row in data.read_rows(DATA / "text" / "c4.jsonl.gz")][: max(4, count // 10)]
    callback = InLoop(given.tokenizer, items, documents=web_pages(texts, given.tokenizer), length=512, rows=8)
    plain = torch.randint(0, 50000, (8, 512))
    forwards = callback.tokens // plain.numel()

    def run() -> None:
        with torch.no_grad():
            for _ in range(forwards):
                given.model(plain)

    before = callback(given.model, 0)
    first, second = timed(lambda: callback(given.model, 1)), timed(run)
    ratio = first[0] / second[0]
    share = ratio * (60_000 + 8 * 200 * 150) / (3 * 1000 * 500_000)
    for block in given.model.blocks:
        block.compile()
    compiled = callback(given.model, 2)
    with torch.compiler.set_stance("fail_on_recompile"):
        again = callback(given.model, 3)
    same = {
        name for name in before if name.endswith(("/acc", "/acc_norm", "/n")) and before[name] == again[name]
    }
    result = {
        "callback_seconds": round(first[0], 3),
        "plain_forward_seconds": round(second[0], 3),
        "ratio": round(ratio, 3),
        "at_most": 1.5,
        "cpu_ratio": round(first[1] / second[1], 3),
        "tokens": callback.tokens,
        "choices": sum(len(item.pairs) for group in items.values() for item in group),
        "recompilations": 0,  # one would have been raised above
        "compiled_first_seconds": round(compiled["seconds"], 3),
        "compiled_seconds": round(again["seconds"], 3),
        "figures_equal_when_compiled": sorted(same),
        "share_of_1b_run_computed": share,
    }
    print(
        f"inloop: {first[0]:.1f} s against {second[0]:.1f} s of plain forwards with their logits: "
        f"{ratio:.2f} times, wanted at most 1.5 (CPU seconds: {result['cpu_ratio']:.2f}); compiled "
        f"{compiled['seconds']:.1f} s, then {again['seconds']:.1f} s without recompiling; computed share "
        f"of a 1B run: {100 * share:.3f} %, wanted under 1 %",
        flush=True,
    )
    return result


def machine(threads: int) -> dict[str, Any]:
    import lm_eval
    import transformers

    return {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": threads,
        "load_average": [round(value, 1) for value in os.getloadavg()],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "lm_eval": lm_eval.__version__,
    }


MMLU = tuple(sorted({path.name.split(".")[0] for path in (DATA / "eval" / "mmlu").glob("*.test.jsonl.gz")}))
ROWS: dict[str, tuple[str, Callable[[Setup], dict[str, Any]], int | None, tuple[int, ...]]] = {
    # name: shape, work, documents of each task (None: all), batch sizes to try for the harness
    "rank": ("d512", lambda given: rank(given, "rank"), None, (4, 16, 32)),
    "truthfulqa": ("d512", lambda given: rank(given, "truthfulqa", TRUTH), 50, (4, 16)),
    "mmlu": ("d512", lambda given: mmlu(given, MMLU, None), None, (4, 16, 32)),
    "perplexity": ("d512", perplexity, None, (1, 4, 16)),
    "inloop": ("d512", inloop, None, (16,)),
    "rank-1b": ("1b", lambda given: rank(given, "rank-1b"), 20, (4, 16)),
    "mmlu-1b": ("1b", lambda given: mmlu(given, MMLU[:1], 12), None, (1, 4)),
}


def write(path: Path, name: str, found: dict[str, Any]) -> None:
    body = json.loads(path.read_text()) if path.is_file() else {}
    body[name] = found
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(body, indent=2) + "\n")
    if path == RESULTS:
        summary.write(summary.EVALUATION, summary.speed())


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", default=",".join(ROWS), help="rows to run, by comma; default: all")
    parser.add_argument("--limit", type=int, help="documents of each task; default: the row's own")
    parser.add_argument("--batches", help="batch sizes to try for the harness; default: the row's own")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    names = options.rows.split(",")
    if unknown := set(names) - set(ROWS):
        parser.error(f"no such row: {', '.join(sorted(unknown))}; there are {', '.join(ROWS)}")
    if not DATA.is_dir():
        print(f"skipped: the evaluation data is absent ({DATA.name})")
        return 0
    torch.set_num_threads(options.threads)
    tokenizer_file = DATA / "tokenizers" / "olmo-v1.json"
    tokenizer = Tokenizer.load(tokenizer_file)
    began = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    apart = []
    for name in names:
        shape, work, limit, sizes = ROWS[name]
        batches = tuple(map(int, options.batches.split(","))) if options.batches else sizes
        model = make_model(shape)
        if name != "inloop":  # a model that is trained is not hastened; one that is loaded is
            hasten(model)
        given = Setup(model, tokenizer, make_peer(model, tokenizer_file), options.limit or limit, batches)
        setup = {
            "run": began,
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "shape": shape,
            "limit": given.limit,
            "dtype": "float32",
            "machine": machine(options.threads),
        }
        found = {**work(given), **setup}
        write(options.out, name, found)
        if not found.get("agrees", True):
            apart.append(name)
        del model, given
        gc.collect()
    print(f"written to {options.out}")
    if apart:
        print(f"Loom and the harness do not agree in {', '.join(apart)}", file=sys.stderr)
    return int(bool(apart))


if __name__ == "__main__":
    sys.exit(main())
