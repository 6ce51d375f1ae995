"""Loom's generation and export beside transformers, in one run: same weights, same prompts, same precision.

    python bench/serve.py [--sections exact,single,clients,export] [--shapes 30m,700m] [--threads N]

Weights are random; speed does not depend on them, except with lookup, whose prompts repeat themselves.
Loom and its peer take turns and the best turn of each counts, because other work on a machine only ever
slows a turn down. "bound" is the time that reading the weights once a token takes, at the rate at which
one matrix-vector product over a matrix of the model's size reads them in this run. The result goes to
bench/results/serve.json.
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
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from tests.small import make_tokenizer  # noqa: E402

from loom.model.config import ModelConfig  # noqa: E402
from loom.model.huggingface import config_to_huggingface, to_huggingface  # noqa: E402
from loom.model.sampling import Sampling  # noqa: E402
from loom.model.transformer import Transformer  # noqa: E402
from loom.serve.complete import Session, complete, session  # noqa: E402
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


def read_rate(size: int) -> float:
    """Bytes a second of a float32 matrix-vector product over a matrix of about `size` bytes."""
    rows = max(1, size // 4 // 2048)
    matrix, vector = torch.randn(rows, 2048), torch.randn(2048)
    with torch.inference_mode():
        (seconds,) = best_of(5, lambda: torch.mv(matrix, vector))
    return rows * 2048 * 4 / seconds


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
    batch = at_once(on, [Request(tuple(p), ends) for p in many], 16)[0]
    return {
        "prompts": len(many),
        "equal_to_transformers": sum(a == b for a, b in zip(alone, peers, strict=True)),
        "batch_of_16_equal": sum(a == b for a, b in zip(alone, batch, strict=True)),
        "lookup_equal": sum(a == b for a, b in zip(alone, lookup, strict=True)),
    }


def at_once(on: Session, requests: list[Request], places: int) -> tuple[list[list[int]], float]:
    """All requests through the engine; each one's tokens, and the seconds."""
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
        begun = time.perf_counter()
        for number, request in enumerate(requests):
            engine.submit(request, deliver(number))
        for _ in requests:
            done.acquire()
        return got, time.perf_counter() - begun


def single(shape: str, tokenizer: Tokenizer, turns: int) -> dict[str, Any]:
    """One stream: tokens a second after the first, and the first token of a 1,500-token prompt."""
    model = make_model(shape)
    config = model.config
    peer, on = make_peer(model, tokenizer.eos_id, tokenizer.pad_id), session(model, tokenizer)
    count = 64 if shape != "700m" else 16
    (prompt,), (long,) = prompts(config, 1, 16), prompts(config, 1, 1500)
    never = replace(GREEDY, max_new_tokens=count)
    one = replace(GREEDY, max_new_tokens=1)
    eos, pad = config.vocab_size - 1, tokenizer.pad_id  # a token random weights do not choose
    mine, theirs, mine_first, theirs_first = best_of(
        turns,
        lambda: complete(on, prompt, never),
        lambda: their_tokens(peer, prompt, count, eos, pad),
        lambda: complete(on, long, one),
        lambda: their_tokens(peer, long, 1, eos, pad),
    )
    size = config.matmul_parameters * 4
    bound = size / read_rate(min(size, 1 << 30))
    half = session(_half(model), tokenizer)
    cycle = [5, 6, 7, 8, 9, 10] * 6
    (narrow, plain, tried) = best_of(
        turns,
        lambda: complete(half, prompt, never),
        lambda: complete(on, cycle, never),
        lambda: complete(on, cycle, never, lookup=8),
    )
    return {
        "shape": shape,
        "parameters": config.parameters,
        "loom_tokens_per_second": count / mine,
        "transformers_tokens_per_second": count / theirs,
        "ratio": theirs / mine,
        "share_of_bound": bound * count / mine,
        "bf16_ratio": theirs / narrow,
        "lookup_ratio_to_plain": plain / tried,
        "first_token_1500_seconds": mine_first,
        "transformers_first_token_1500_seconds": theirs_first,
        "first_token_ratio": theirs_first / mine_first,
    }


def _half(model: Transformer) -> Transformer:
    made = Transformer(model.config)
    made.load_state_dict(model.state_dict())
    return made.to(torch.bfloat16).eval()


def clients(shape: str, tokenizer: Tokenizer, turns: int) -> dict[str, Any]:
    """16 requests one after another and at once."""
    on = session(make_model(shape), tokenizer)
    sampling = replace(GREEDY, max_new_tokens=32)
    many = prompts(on.decoder.config, 16, 16)
    requests = [Request(tuple(p), sampling) for p in many]
    alone, together = best_of(
        turns,
        lambda: [at_once(on, [request], 1) for request in requests],
        lambda: at_once(on, requests, 16),
    )
    return {
        "shape": shape,
        "one_by_one_seconds": alone,
        "at_once_seconds": together,
        "ratio": alone / together,
    }


def export_speed(shape: str, tokenizer_file: Path, folder: Path) -> dict[str, Any]:
    """Export, its check apart, beside copying the weights' bytes twice; peak memory in a process of its own."""
    from loom.tokens.shards import SpecialToken
    from loom.train.checkpoint import ModelCard, save_model

    model, tokenizer = make_model(shape), Tokenizer.load(tokenizer_file)
    eos, pad = (
        SpecialToken(tokenizer.eos_id, tokenizer.eos_token),
        SpecialToken(tokenizer.pad_id, tokenizer.pad_token),
    )
    save_model(
        folder / "model", model, ModelCard(model.config, eos, pad, tokenizer.vocab_size), tokenizer_file
    )
    size, largest = model.config.parameters * 4, max(p.nbytes for p in model.parameters())
    del model
    data = next((folder / "model").glob("*.distcp"))
    begun = time.perf_counter()
    for name in ("one", "two"):
        with open(data, "rb") as source, open(folder / name, "wb") as target:
            shutil.copyfileobj(source, target, 1 << 24)
            target.flush()
            os.fsync(target.fileno())
    copies = time.perf_counter() - begun
    program = (
        "import json, resource, sys, time; from pathlib import Path; import loom.release.export as e; "
        "base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss; begun = time.perf_counter(); "
        "found = {}; real = e.check\n"
        "def check(*a):\n    found['check'] = real(*a); return found['check']\n"
        "e.check = check; e.export(Path(sys.argv[1]), Path(sys.argv[2]))\n"
        "print(json.dumps([time.perf_counter() - begun, found['check'].seconds, base, "
        "resource.getrusage(resource.RUSAGE_SELF).ru_maxrss]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder / "model"), str(folder / "export")],
        capture_output=True,
        text=True,
        check=True,
    )
    whole, check, base, peak = json.loads(done.stdout.splitlines()[-1])
    return {
        "shape": shape,
        "bytes": size,
        "export_seconds": whole - check,
        "check_seconds": check,
        "two_copies_seconds": copies,
        "ratio": copies / (whole - check),
        "largest_tensor_bytes": largest,
        "memory_over_start_bytes": (peak - base) * 1024,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sections", default="exact,single,clients,export")
    parser.add_argument("--shapes", default="30m")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results" / "serve.json")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    sections = options.sections.split(",")
    result: dict[str, Any] = {"machine": machine()}
    with tempfile.TemporaryDirectory() as name:
        file = make_tokenizer(Path(name) / "tokenizer")
        tokenizer = Tokenizer.load(file)
        shapes = options.shapes.split(",")
        if "exact" in sections:
            result["exact"] = show("exact", exact(tokenizer))
        if "single" in sections:
            result["single"] = [show("single", single(s, tokenizer, options.turns)) for s in shapes]
        if "clients" in sections:
            result["clients"] = [show("clients", clients(s, tokenizer, options.turns)) for s in shapes]
        if "export" in sections:
            rows = []
            for shape in shapes:
                folder = Path(name) / shape
                folder.mkdir()
                rows.append(show("export", export_speed(shape, file, folder)))
                shutil.rmtree(folder)
            result["export"] = rows
    result["machine"]["load_after"] = os.getloadavg()[0]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def show(section: str, values: dict[str, Any]) -> dict[str, Any]:
    shown = ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in values.items())
    print(f"{section}: {shown}", flush=True)
    return values


def machine() -> dict[str, Any]:
    import transformers

    return {
        "processor": platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "load_before": os.getloadavg()[0],
    }


if __name__ == "__main__":
    main()
