"""Loom's evaluation beside lm-evaluation-harness 0.4.13: same weights, same rows, float32, one run.

    python bench/evaluation.py [--limit N] [--sections rank,mmlu,perplexity,inloop] [--threads N]

Weights are random (speed does not depend on them), the tokenizer and rows are OLMo's. Each section
prints the ratio of seconds, and the ratio that counting multiplications allows. Every prediction of the
ranking section is compared as well. The result goes to bench/results/evaluation.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from tests.evals import harness  # noqa: E402

from loom.evals import metrics  # noqa: E402
from loom.evals.encode import encode_items  # noqa: E402
from loom.evals.inloop import InLoop  # noqa: E402
from loom.evals.items import Layout, score_items  # noqa: E402
from loom.evals.perplexity import Document, score_documents  # noqa: E402
from loom.model.config import ModelConfig  # noqa: E402
from loom.model.huggingface import config_to_huggingface, to_huggingface  # noqa: E402
from loom.model.transformer import Transformer  # noqa: E402
from loom.tasks import data, registry  # noqa: E402
from loom.tokens.tokenizer import Tokenizer  # noqa: E402

DATA = ROOT.parent / "shared" / "data"
RANK = ("piqa", "arc_easy", "sciq", "boolq", "openbookqa")
BATCHES = [4, 16, 32]
SHAPES = {"d512": (512, 8, 8, 1408, True), "1b": (2048, 16, 16, 8192, True)}


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


def make_peer(model: Transformer, tokenizer_file: Path) -> Callable[[int], Any]:
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


def flops(model: Transformer, tokens: float, scored: float, attended: float) -> float:
    """Multiplications and additions of a forward: blocks on `tokens`, output matrix on `scored`
    positions, attention over `attended` (query, key) pairs."""
    config = model.config
    head = 2 * config.vocab_size * config.d_model
    blocks = 2 * (config.matmul_parameters - config.vocab_size * config.d_model)
    return blocks * tokens + head * scored + 4 * config.n_layers * config.d_model * attended


def bound(model: Transformer, layout: Layout, naive: Sequence[Sequence[int]]) -> dict[str, float]:
    """What counting allows: the harness reads each distinct context once a choice (one-token choices
    share it) and makes logits at every position; Loom reads each tree once."""
    rows = [*layout.rows, *(row for shared in layout.shared for row in shared.rows)]
    prefixes = [len(shared.tokens) for shared in layout.shared]
    past = sum(len(shared.tokens) * len(row) for shared in layout.shared for row in shared.rows)
    ours = flops(
        model,
        sum(map(len, rows)) + sum(prefixes),
        sum(len(np.unique(row.at)) for row in rows),
        sum(len(row) ** 2 / 2 for row in rows) + past + sum(n**2 / 2 for n in prefixes),
    )
    lengths = [length for group in naive for length in group]
    theirs = flops(model, sum(lengths), sum(lengths), sum(n**2 / 2 for n in lengths))
    return {
        "bound": theirs / ours,
        "tokens_loom": float(sum(map(len, rows)) + sum(prefixes)),
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


def timed(work: Callable[[], Any]) -> tuple[float, float, Any]:
    """Seconds by the clock, CPU seconds of all threads, and the result."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    return time.perf_counter() - wall, time.process_time() - cpu, result


def asked(work: Callable[[], Any]) -> tuple[float, float, Any]:
    """Seconds of the harness's requests alone, without its set-up of tasks."""
    result = work()
    return result["seconds"], result["cpu_seconds"], result


def best_batch(peer: Callable[[int], Any], work: Callable[[Any], Any]) -> int:
    """The harness's fastest batch size on a sample, of those in `BATCHES`, by CPU seconds."""
    sizes = BATCHES
    if len(sizes) == 1:
        return sizes[0]
    seconds = {size: timed(lambda size=size: work(peer(size)))[1] for size in sizes}
    print(
        "  harness, sample:", ", ".join(f"batch {size} {s:.1f} s" for size, s in seconds.items()), flush=True
    )
    return min(seconds, key=lambda size: seconds[size])


def report(name: str, loom: tuple[float, float], peer: tuple[float, float], **more: Any) -> dict[str, Any]:
    result = {
        "loom_seconds": round(loom[0], 3),
        "harness_seconds": round(peer[0], 3),
        "ratio": round(peer[0] / loom[0], 3),
        "loom_cpu_seconds": round(loom[1], 3),
        "harness_cpu_seconds": round(peer[1], 3),
        "cpu_ratio": round(peer[1] / loom[1], 3),
        **more,
    }
    limit = f", counting allows {more['bound']:.2f}" if "bound" in more else ""
    print(
        f"{name}: Loom {loom[0]:.1f} s, harness {peer[0]:.1f} s: {result['ratio']:.2f} times "
        f"(CPU seconds: {result['cpu_ratio']:.2f}){limit}",
        flush=True,
    )
    return result


def rows_of(task: str, limit: int | None) -> list[dict[str, Any]]:
    found = data.find(DATA / "eval", registry.task(task).files, registry.task(task).splits)
    return list(data.read_rows(found.path))[:limit]


def agreement(items: Sequence[Any], scores: Any, samples: Mapping[int, Any]) -> dict[str, Any]:
    """Documents whose prediction differs, those too close to call, the largest difference in nats."""
    differ = close = 0
    largest = 0.0
    for item, logp, outcome in zip(items, scores.logp, metrics.outcomes(items, scores), strict=True):
        theirs = samples[item.doc_id]
        largest = max(largest, float(np.abs(logp - theirs["logp"]).max()))
        if outcome is None or outcome.close:
            close += 1
            continue
        same = outcome.values["acc"] == theirs["acc"]
        if theirs["acc_norm"] is not None:
            same &= outcome.values["acc_norm"] == theirs["acc_norm"]
        differ += not same
    return {"documents": len(items), "differ": differ, "close": close, "largest_nats": largest}


def rank(
    model: Transformer, tokenizer: Tokenizer, peer: Callable[[int], Any], limit: int | None
) -> dict[str, Any]:
    items = {name: data.load(registry.task(name), DATA / "eval", limit=limit).items for name in RANK}
    rows = {name: rows_of(name, limit) for name in RANK}
    few = {name: lines[: max(4, len(lines) // 20)] for name, lines in rows.items()}
    batch = best_batch(peer, lambda lm: harness.run(lm, few))
    everything = [item for name in RANK for item in items[name]]
    loom = timed(lambda: {name: score_items(model, items[name], tokenizer, 2048) for name in RANK})
    lm = peer(batch)
    theirs = asked(lambda: harness.run(lm, rows))
    layout = Layout.of(*encode_items(everything, tokenizer), 2048)
    counted = bound(model, layout, distinct_inputs(everything, tokenizer, 2048))
    found = {name: agreement(items[name], loom[2][name], theirs[2]["samples"][name]) for name in RANK}
    for name, line in found.items():
        print(f"  {name}: {line}", flush=True)
    return report(
        "ranking", loom[:2], theirs[:2], **counted, batch=batch, agreement=found, documents=len(everything)
    )


def mmlu(
    model: Transformer, tokenizer: Tokenizer, peer: Callable[[int], Any], limit: int | None
) -> dict[str, Any]:
    subjects = sorted({path.name.split(".")[0] for path in (DATA / "eval" / "mmlu").glob("*.test.jsonl.gz")})
    names = [f"mmlu_{subject}" for subject in subjects]
    items = {
        name: data.load(registry.task(f"{name}:5shot"), DATA / "eval", limit=limit).items for name in names
    }
    folder = DATA / "eval" / "mmlu"
    rows = {f"mmlu_{s}": list(data.read_rows(folder / f"{s}.test.jsonl.gz"))[:limit] for s in subjects}
    examples = {f"mmlu_{s}": list(data.read_rows(folder / f"{s}.dev.jsonl.gz")) for s in subjects}
    few = {name: lines[:4] for name, lines in rows.items()}
    batch = best_batch(peer, lambda lm: harness.run(lm, few, 5, examples))
    everything = [item for name in names for item in items[name]]
    loom = timed(lambda: {name: score_items(model, items[name], tokenizer, 2048) for name in names})
    lm = peer(batch)
    theirs = asked(lambda: harness.run(lm, rows, 5, examples))
    headers = [item.header for item in everything]
    layout = Layout.of(*encode_items(everything, tokenizer), 2048, headers=headers)
    counted = bound(model, layout, distinct_inputs(everything, tokenizer, 2048))
    found = {name: agreement(items[name], loom[2][name], theirs[2]["samples"][name]) for name in names}
    for name, line in found.items():
        print(f"  {name}: {line}", flush=True)
    return report(
        "MMLU, 5 shots",
        loom[:2],
        theirs[:2],
        **counted,
        batch=batch,
        agreement=found,
        documents=len(everything),
    )


def perplexity(
    model: Transformer, tokenizer: Tokenizer, peer: Callable[[int], Any], limit: int | None
) -> dict[str, Any]:
    texts = [row["text"] for row in data.read_rows(DATA / "text" / "c4.jsonl.gz")][
        : 2 * limit if limit else None
    ]

    def work() -> list[float]:
        documents = [
            Document(str(i), "c4", "c4", tokenizer.encode(text), len(text.encode()))
            for i, text in enumerate(texts)
        ]
        return [score.nll for score in score_documents(model, documents, tokenizer.eos_id, 2048)]

    few = texts[: max(4, len(texts) // 10)]
    batch = best_batch(peer, lambda lm: harness.rolling(lm, few))
    loom = timed(work)
    lm = peer(batch)
    theirs = timed(lambda: harness.rolling(lm, texts))
    largest = float(np.abs(np.array(loom[2]) + np.array(theirs[2])).max())
    return report("perplexity", loom[:2], theirs[:2], batch=batch, documents=len(texts), largest_nats=largest)


def inloop(
    model: Transformer, tokenizer: Tokenizer, _: Callable[[int], Any], limit: int | None
) -> dict[str, Any]:
    """The callback against plain forwards over as many tokens of the same shape, and
    its share of a 1B run: one evaluation a 1,000 steps of 0.5 M tokens, each step three forwards' work."""
    count = limit or 200
    items = {
        name: data.load(registry.task(name), DATA / "eval", sample=count).items
        for name in ("piqa", "arc_easy")
    }
    callback = InLoop(tokenizer, items, length=512, rows=8)
    plain = torch.randint(0, 50000, (8, 512))
    forwards = callback.tokens // plain.numel()
    at = torch.arange(plain.numel())
    skip: Callable[[Any, Any], Any] = lambda hidden, matrix: hidden  # noqa: E731

    def run(readout: Any) -> None:
        with torch.no_grad():
            for _ in range(forwards):
                model(plain, at=at, readout=readout)

    callback(model, 0)
    first = timed(lambda: callback(model, 1))
    second, body = timed(lambda: run(None)), timed(lambda: run(skip))
    per_token = 2 * (1.18e9)
    default = sum(len(item.pairs) for group in items.values() for item in group)
    whole = 60_000 + 8 * 200 * 150  # held-out tokens and 200 questions of each of eight tasks
    training = 1000 * 500_000 * 3 * per_token
    share = whole * per_token / training
    result = {
        "callback_seconds": round(first[0], 3),
        "plain_forward_seconds": round(second[0], 3),
        "ratio": round(first[0] / second[0], 3),
        "cpu_ratio": round(first[1] / second[1], 3),
        "cpu_ratio_without_logits": round(first[1] / body[1], 3),
        "tokens": callback.tokens,
        "choices": default,
        "share_of_1b_run_computed": share,
    }
    print(
        f"in the loop: {first[0]:.1f} s against {second[0]:.1f} s of plain forwards (with their logits): "
        f"{result['ratio']:.2f} times (CPU seconds: {result['cpu_ratio']:.2f}); "
        f"computed share of a 1B run: {100 * share:.3f} %",
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


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--limit", type=int, help="rows of each task; default: all")
    parser.add_argument("--sections", default="rank,mmlu,perplexity,inloop")
    parser.add_argument("--shape", default="d512", choices=list(SHAPES))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results" / "evaluation.json")
    parser.add_argument("--batches", default="4,16,32", help="batch sizes to try for the harness")
    options = parser.parse_args()
    BATCHES[:] = map(int, options.batches.split(","))
    if not DATA.is_dir():
        print(f"skipped: the evaluation data is absent ({DATA.name})")
        return
    torch.set_num_threads(options.threads)
    model = make_model(options.shape)
    tokenizer_file = DATA / "tokenizers" / "olmo-v1.json"
    tokenizer = Tokenizer.load(tokenizer_file)
    peer = make_peer(model, tokenizer_file)
    sections: dict[str, Callable[..., dict[str, Any]]] = {
        "rank": rank,
        "mmlu": mmlu,
        "perplexity": perplexity,
        "inloop": inloop,
    }
    body: dict[str, Any] = {}
    if options.out.is_file():
        body = json.loads(options.out.read_text())
    found = {
        name: sections[name](model, tokenizer, peer, options.limit) for name in options.sections.split(",")
    }
    setup = {"limit": options.limit, "dtype": "float32", "machine": machine(options.threads)}
    body[options.shape] = {
        **body.get(options.shape, {}),
        **{name: {**line, **setup} for name, line in found.items()},
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(body, indent=2) + "\n")
    print(f"written to {options.out}")


if __name__ == "__main__":
    main()
