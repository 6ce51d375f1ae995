"""Loom's generation, server and export beside transformers, in one run: same weights, prompts, precision.

    python bench/serve.py [--rows single-30m,clients-30m] [--small] [--threads N] [--turns N]

Rows, and what each must reach: `exact` (greedy tokens equal on 200 prompts: transformers, batch of 16,
lookup, stream), `single-SHAPE` (float32, no speculation: 1.2 times transformers at 30M; 90 % of what
reading the weights once a token allows at 700M), `first-SHAPE` (first token of a 1,500-token prompt: no
slower), `bf16-SHAPE` and `lookup-SHAPE` (2 times), `clients-SHAPE` (16 clients of the server at once: 4
times one after another), `export-SHAPE` (as fast as copying the bytes twice; memory at most the largest
tensor and 1 GiB).

Weights are random; speed does not depend on them, except with lookup, which is timed on a model that repeats
itself: the most that lookup can give; the row says how many tokens a pass brought. Loom and its peer take
turns and the best turn of each counts, because other work on a machine only ever slows a turn down. The bound
is reading the weights once a token at the best rate seen in this run: by a matrix-vector product of torch, over memory
in huge pages or not, or by Loom's own, alone and for as long as the tokens take and in turn with them; or by Loom's
tokens themselves, so that no share is over 100 %. One command makes all rows; each goes to bench/results/serve.json
as soon as it is done, with its date and the machine's load; with --rows those not asked for stay as they are, so look at
the dates.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from tests.serve.running import served  # noqa: E402
from tests.small import make_tokenizer  # noqa: E402

from loom.model.config import ModelConfig  # noqa: E402
from loom.model.huggingface import config_to_huggingface, to_huggingface  # noqa: E402
from loom.model.sampling import Sampling  # noqa: E402
from loom.model.transformer import Transformer  # noqa: E402
from loom.serve.complete import Session, complete, session, stream  # noqa: E402
from loom.serve.decoder import Decoder  # noqa: E402
from loom.serve.engine import Engine, Event, Request  # noqa: E402
from loom.tokens.tokenizer import Tokenizer  # noqa: E402

SHAPES = {
    "tiny": ModelConfig(192, 4, 3, 512, 8192, 2048, tied=True),
    "30m": ModelConfig(512, 8, 8, 1408, 8192, 2048, tied=True),
    "700m": ModelConfig(1536, 16, 16, 6144, 50_304, 2048, tied=True),
}
GREEDY = Sampling(64, temperature=0.0)


def make_model(shape: str, scale: float = 0.02) -> Transformer:
    model = Transformer(SHAPES[shape])
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=scale, generator=generator)
    return model.eval()


def make_peer(model: Transformer, eos: int, pad: int) -> Any:
    """The same weights, shared and not copied, in transformers."""
    import transformers

    config = transformers.OlmoConfig(**config_to_huggingface(model.config, eos, pad))
    with torch.device("meta"):
        peer = transformers.OlmoForCausalLM(config)
    peer.load_state_dict(to_huggingface(model.state_dict(), model.config), strict=False, assign=True)
    peer.tie_weights()
    peer.model.rotary_emb = type(peer.model.rotary_emb)(config=config)
    return peer.eval()


def their_tokens(peer: Any, prompt: list[int], count: int, eos: int, pad: int) -> list[int]:
    ids = torch.tensor([prompt])
    with torch.inference_mode():
        out = peer.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=count,
            do_sample=False,
            eos_token_id=eos,
            pad_token_id=pad,
        )
    tokens: list[int] = out[0, len(prompt) :].tolist()
    return tokens[: tokens.index(eos)] if eos in tokens else tokens


def prompts(config: ModelConfig, count: int, length: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(count)
    return torch.randint(2, min(config.vocab_size, 1000), (count, length), generator=generator).tolist()


def best_of(turns: int, *works: Callable[[], Any]) -> list[float]:
    """The least seconds of each work over turns taken in alternation."""
    best = [float("inf")] * len(works)
    for _ in range(turns):
        for i, work in enumerate(works):
            begun = time.perf_counter()
            work()
            best[i] = min(best[i], time.perf_counter() - begun)
    return best


def reader(size: int) -> tuple[Callable[[], Any], int, float]:
    """What reads a matrix of about `size` bytes once, the fastest of three ways here; its bytes; bytes a second."""
    rows = max(1, size // 4 // 2048)
    vector = torch.randn(2048)
    plain = torch.randn(rows, 2048)
    huge = torch.from_numpy(np.empty((rows, 2048), np.float32))
    huge.copy_(plain)
    flat = Transformer(ModelConfig(2048, 1, 16, 16, rows, 16, n_kv_heads=1, tied=True)).eval()
    for parameter in flat.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    one = Decoder(flat)
    cache = one.cache()

    def own() -> None:
        cache.cut(0)
        one.step([(cache, [0])])

    ways = (
        (lambda: torch.mv(plain, vector), plain.nbytes),
        (lambda: torch.mv(huge, vector), huge.nbytes),
        (own, flat.config.matmul_parameters * 4),
    )
    own()
    seconds = best_of(5, *(way for way, _ in ways))
    rates = [held / spent for spent, (_, held) in zip(seconds, ways, strict=True)]
    best = rates.index(max(rates))
    return *ways[best], rates[best]


def exact(tokenizer: Tokenizer) -> dict[str, Any]:
    """Greedy tokens on 200 prompts: transformers, one by one, 16 at once, with lookup."""
    model = make_model("tiny", 0.08)
    peer = make_peer(model, tokenizer.eos_id, tokenizer.pad_id)
    on, sampling = session(model, tokenizer), replace(GREEDY, max_new_tokens=32)
    many = [p[: 1 + i % 40] for i, p in enumerate(prompts(model.config, 200, 40))]
    alone = [complete(on, p, sampling).tokens for p in many]
    peers = [their_tokens(peer, p, 32, tokenizer.eos_id, tokenizer.pad_id) for p in many]
    lookup = [complete(on, p, sampling, lookup=8).tokens for p in many]
    ends = replace(sampling, stop_ids=(tokenizer.eos_id,))
    batch = at_once(on, [Request(tuple(p), ends) for p in many], 16)
    streamed = ["".join(piece for piece, _ in stream(on, p, sampling)) for p in many]
    whole = [complete(on, p, sampling).text for p in many]
    equal = {
        "equal_to_transformers": sum(a == b for a, b in zip(alone, peers, strict=True)),
        "batch_of_16_equal": sum(a == b for a, b in zip(alone, batch, strict=True)),
        "lookup_equal": sum(a == b for a, b in zip(alone, lookup, strict=True)),
        "stream_equal": sum(a == b for a, b in zip(whole, streamed, strict=True)),
    }
    return {"prompts": len(many), **equal, "passed": all(n == len(many) for n in equal.values())}


def at_once(on: Session, requests: list[Request], places: int) -> list[list[int]]:
    """All requests through the engine; each one's tokens."""
    import threading

    got: list[list[int]] = [[] for _ in requests]
    done = threading.Semaphore(0)

    def deliver(number: int) -> Callable[[Event], None]:
        def take(event: Event) -> None:
            got[number] += [token.id for token in event.tokens]
            if event.finish:
                done.release()

        return take

    with Engine(on.decoder, on.tokenizer, places, len(requests)) as engine:
        for number, request in enumerate(requests):
            engine.submit(request, deliver(number))
        for _ in requests:
            done.acquire()
    return got


class Pair:
    """A model in Loom and, with shared weights, in transformers."""

    def __init__(self, shape: str, tokenizer: Tokenizer) -> None:
        self.shape, self.tokenizer = shape, tokenizer
        self.model = make_model(shape)
        self.config = self.model.config
        self.on = session(self.model, tokenizer)
        self.peer = make_peer(self.model, tokenizer.eos_id, tokenizer.pad_id)
        self.eos, self.pad = self.config.vocab_size - 1, tokenizer.pad_id  # random weights do not choose it
        self.count = 16 if shape == "700m" else 64

    def theirs(self, prompt: list[int], count: int, **more: Any) -> list[int]:
        return their_tokens(self.peer, prompt, count, self.eos, self.pad)


def single(pair: Pair, turns: int) -> dict[str, Any]:
    """One stream from a 16-token prompt in float32: tokens a second, the prompt included; share of the bound
    of the tokens after the first."""
    (prompt,) = prompts(pair.config, 1, 16)
    asked = replace(GREEDY, max_new_tokens=pair.count)
    same = complete(pair.on, prompt, asked).tokens == pair.theirs(prompt, pair.count)
    steps: list[float] = []  # seconds of a token after the first, which has the prompt in it

    def ours() -> None:
        done = complete(pair.on, prompt, asked)
        steps.append((done.seconds - done.first_token_seconds) / (len(done.tokens) - 1))

    size = pair.config.matmul_parameters * 4
    read, bytes_read, once = reader(min(size, 1 << 30))
    times = round(size * (pair.count - 1) / bytes_read)  # as much as the tokens after the first read
    mine, theirs, reading = best_of(
        turns, ours, lambda: pair.theirs(prompt, pair.count), lambda: [read() for _ in range(times)]
    )
    # Nothing reads faster than the bound, so it is the best rate that was seen, Loom's own tokens among them.
    rate = max(once, bytes_read * times / reading, size / min(steps))
    share = size / rate / min(steps)
    passed = share >= 0.9 if pair.shape == "700m" else theirs / mine >= 1.2
    return {
        "parameters": pair.config.parameters,
        "loom_tokens_per_second": pair.count / mine,
        "transformers_tokens_per_second": pair.count / theirs,
        "ratio": theirs / mine,
        "share_of_bound": share,
        "read_gb_per_second": rate / 1e9,
        "tokens_equal": same,
        "passed": passed and same,
    }


def first(pair: Pair, turns: int) -> dict[str, Any]:
    """The first token of a 1,500-token prompt."""
    (prompt,) = prompts(pair.config, 1, 1500)
    one = replace(GREEDY, max_new_tokens=1)
    same = complete(pair.on, prompt, one).tokens == pair.theirs(prompt, 1)
    mine, theirs = best_of(turns, lambda: complete(pair.on, prompt, one), lambda: pair.theirs(prompt, 1))
    return {
        "loom_seconds": mine,
        "transformers_seconds": theirs,
        "ratio": theirs / mine,
        "tokens_equal": same,
        "passed": theirs / mine >= 1 and same,
    }


def bf16(pair: Pair, turns: int) -> dict[str, Any]:
    """One stream with bfloat16 weights beside transformers in float32, and in bfloat16."""
    made = Transformer(pair.config)
    made.load_state_dict(pair.model.state_dict())
    narrow = session(made.to(torch.bfloat16).eval(), pair.tokenizer)
    (prompt,) = prompts(pair.config, 1, 16)
    asked = replace(GREEDY, max_new_tokens=pair.count)
    agree = sum(
        a == b
        for a, b in zip(
            complete(narrow, prompt, asked).tokens, complete(pair.on, prompt, asked).tokens, strict=False
        )
    )
    narrow_peer = make_peer(made, pair.eos, pair.pad)
    mine, theirs, half = best_of(
        turns,
        lambda: complete(narrow, prompt, asked),
        lambda: pair.theirs(prompt, pair.count),
        lambda: their_tokens(narrow_peer, prompt, pair.count, pair.eos, pair.pad),
    )
    return {
        "loom_tokens_per_second": pair.count / mine,
        "transformers_float32_tokens_per_second": pair.count / theirs,
        "transformers_bf16_tokens_per_second": pair.count / half,
        "ratio": theirs / mine,
        "ratio_to_transformers_bf16": half / mine,
        "tokens_equal_to_float32": agree,
        "passed": theirs / mine >= 2,
    }


def lookup(pair: Pair, turns: int) -> dict[str, Any]:
    """One stream with n-gram lookup, by a model that repeats itself, beside both without.

    Long rows of embedding and output make the token just read the likeliest next one; afterwards they are as
    they were.
    """
    rows = [pair.model.embed.weight] + ([] if pair.config.tied else [pair.model.head.weight])
    kept = [row.detach().clone() for row in rows]
    with torch.no_grad():
        for row in rows:
            row.copy_(kept[0] * 64)
    try:
        return repeated(pair, turns)
    finally:
        with torch.no_grad():
            for row, before in zip(rows, kept, strict=True):
                row.copy_(before)


def repeated(pair: Pair, turns: int) -> dict[str, Any]:
    said, count = [5] * 30, 64
    asked = replace(GREEDY, max_new_tokens=count)
    plain, found = complete(pair.on, said, asked), complete(pair.on, said, asked, lookup=8)
    same = plain.tokens == found.tokens == pair.theirs(said, count)
    a_pass = len(found.tokens) / found.passes
    tried, without, theirs = best_of(
        turns,
        lambda: complete(pair.on, said, asked, lookup=8),
        lambda: complete(pair.on, said, asked),
        lambda: pair.theirs(said, count),
    )
    return {
        "loom_tokens_per_second": count / tried,
        "loom_plain_tokens_per_second": count / without,
        "transformers_tokens_per_second": count / theirs,
        "ratio": theirs / tried,
        "ratio_to_plain": without / tried,
        "tokens_a_pass": a_pass,
        "tokens_equal": same,
        "passed": theirs / tried >= 2 and same and a_pass >= 2,
    }


def saved(shape: str, tokenizer_file: Path, folder: Path) -> Path:
    """A checkpoint of the shape."""
    from loom.tokens.shards import SpecialToken
    from loom.train.checkpoint import ModelCard, save_model

    model, tokenizer = make_model(shape), Tokenizer.load(tokenizer_file)
    eos, pad = (
        SpecialToken(tokenizer.eos_id, tokenizer.eos_token),
        SpecialToken(tokenizer.pad_id, tokenizer.pad_token),
    )
    card = ModelCard(model.config, eos, pad, tokenizer.vocab_size)
    save_model(folder / "model", model, card, tokenizer_file)
    return folder / "model"


def clients(shape: str, tokenizer_file: Path, folder: Path, turns: int, threads: int) -> dict[str, Any]:
    """16 requests to `loom serve`, one after another and at once: 16-token prompts, 64 tokens each."""
    model = saved(shape, tokenizer_file, folder)
    count = 64
    many = prompts(SHAPES[shape], 16, 16)
    with served(model, ["--places", "16"], {"OMP_NUM_THREADS": str(threads)}) as server:

        def ask(prompt: list[int]) -> tuple[str, int]:
            body = {"prompt": prompt, "max_tokens": count, "temperature": 0}
            status, answer = server.post("/v1/completions", body)
            assert status == 200, answer
            return answer["choices"][0]["text"], answer["usage"]["completion_tokens"]

        with ThreadPoolExecutor(16) as pool:
            one_by_one = [ask(prompt) for prompt in many]
            together = list(pool.map(ask, many))
            tokens = sum(made for _, made in together)
            alone, at_once = best_of(
                turns, lambda: [ask(prompt) for prompt in many], lambda: list(pool.map(ask, many))
            )
    return {
        "one_by_one_tokens_per_second": tokens / alone,
        "at_once_tokens_per_second": tokens / at_once,
        "ratio": alone / at_once,
        "answers_equal": one_by_one == together,
        "passed": alone / at_once >= 4 and one_by_one == together,
    }


def export_speed(shape: str, tokenizer_file: Path, folder: Path) -> dict[str, Any]:
    """Export, its check apart, beside copying the weights' bytes twice; peak memory in a process of its own."""
    config = SHAPES[shape]
    size = config.parameters * 4
    largest = max(config.vocab_size, config.mlp_width, config.d_model) * config.d_model * 4
    saved(shape, tokenizer_file, folder)
    data = next((folder / "model").glob("*.distcp"))
    begun = time.perf_counter()
    for name in ("one", "two"):
        with open(data, "rb") as source, open(folder / name, "wb") as target:
            shutil.copyfileobj(source, target, 1 << 24)
            target.flush()
            os.fsync(target.fileno())
    copies = time.perf_counter() - begun
    program = (
        "import json, sys, time; from pathlib import Path; import loom.release.export as e\n"
        "def peak():\n    lines = open('/proc/self/status').read().splitlines()\n"
        "    return int(next(l for l in lines if l.startswith('VmHWM')).split()[1])\n"
        "base = peak(); begun = time.perf_counter(); "
        "found = {}; real = e.check\n"
        "def check(*a):\n    found['check'] = real(*a); return found['check']\n"
        "e.check = check; e.export(Path(sys.argv[1]), Path(sys.argv[2]))\n"
        "print(json.dumps([time.perf_counter() - begun, found['check'].seconds, base, "
        "peak()]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder / "model"), str(folder / "export")],
        capture_output=True,
        text=True,
        check=True,
    )
    whole, check, base, peak = json.loads(done.stdout.splitlines()[-1])
    memory = (peak - base) * 1024
    return {
        "bytes": size,
        "export_seconds": whole - check,
        "check_seconds": check,
        "two_copies_seconds": copies,
        "ratio": copies / (whole - check),
        "largest_tensor_bytes": largest,
        "memory_over_start_bytes": memory,
        "passed": copies >= whole - check and memory <= largest + (1 << 30),
    }


KINDS = ("single", "first", "bf16", "lookup", "clients", "export")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", help="only these, by name")
    parser.add_argument("--small", action="store_true", help="the shape 'tiny' alone: does it run?")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results" / "serve.json")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    shapes = ["tiny"] if options.small else ["30m", "700m"]
    names = ["exact", *(f"{kind}-{shape}" for shape in shapes for kind in KINDS)]
    wanted = options.rows.split(",") if options.rows else names
    if unknown := set(wanted) - set(names):
        parser.error(f"no rows {sorted(unknown)}; there are {', '.join(names)}")
    with tempfile.TemporaryDirectory() as name:
        file = make_tokenizer(Path(name) / "tokenizer")
        tokenizer, pair = Tokenizer.load(file), None
        for row in wanted:
            kind, _, shape = row.partition("-")
            folder = Path(name) / row
            folder.mkdir()
            if kind in ("single", "first", "bf16", "lookup"):
                pair = pair if pair is not None and pair.shape == shape else Pair(shape, tokenizer)
            else:
                pair = None
            match kind:
                case "exact":
                    values = exact(tokenizer)
                case "clients":
                    values = clients(shape, file, folder, options.turns, torch.get_num_threads())
                case "export":
                    values = export_speed(shape, file, folder)
                case _:
                    work = {"single": single, "first": first, "bf16": bf16, "lookup": lookup}[kind]
                    assert pair is not None
                    values = work(pair, options.turns)
            shutil.rmtree(folder)
            keep(options.out, row, values)


def keep(file: Path, row: str, values: dict[str, Any]) -> None:
    """Show a row and put it into the results at once, so that a run that is cut keeps what it has."""
    shown = ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in values.items())
    print(f"{row}: {shown}", flush=True)
    result = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    rows = result.get("rows", {})
    rows[row] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "load": round(os.getloadavg()[0], 2),
        **values,
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    body = {"machine": machine(), "rows": dict(sorted(rows.items()))}
    part = file.with_suffix(".part")
    part.write_text(json.dumps(body, indent=2) + "\n", encoding="utf-8")
    part.replace(file)


def machine() -> dict[str, Any]:
    import transformers

    return {
        "processor": platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


if __name__ == "__main__":
    main()
