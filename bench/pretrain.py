"""Training speed of Loom beside transformers and ai2-olmo: same shapes, same precision, one run.

    python bench/pretrain.py [--device cpu|cuda] [--vocab 8192 50304] [--steps 4] [--out bench/results]

Each contender runs in a process of its own, in turn, round after round, so that all meet the same
weather on the machine; its best step counts. Beside them: what plain matrix products of the model's
own shapes allow. On CUDA only torch, numpy and this package are needed; contenders that are not
installed are named and left out.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SMALL = {"d_model": 512, "n_layers": 8, "n_heads": 8, "mlp_width": 1408, "context_length": 512}
CONTENDERS = ("loom", "loom-compiled", "transformers", "transformers-compiled", "ai2-olmo", "products")
Step = Callable[[], None]


def loom_step(shape: dict[str, Any], batch: int, device: str, compiled: bool) -> Step:
    import torch

    from loom.model.config import ModelConfig
    from loom.model.initialize import initialize
    from loom.model.transformer import Transformer
    from loom.train.config import OptimizerConfig
    from loom.train.data import Batch
    from loom.train.objective import LanguageModel
    from loom.train.optimizer import StepGuard, build_optimizer, clip_gradients

    config = ModelConfig(**shape)
    model = Transformer(config, torch.bfloat16)
    initialize(model, 1)
    model.to(device)
    if compiled:
        for block in model.blocks:
            block.compile()
    optimizer, objective = build_optimizer(model, OptimizerConfig()), LanguageModel()
    guard = StepGuard(None, torch.device(device))
    ids = torch.randint(0, config.vocab_size, (batch, config.context_length), device=device)
    parameters = list(model.parameters())

    def step() -> None:
        total, sums = objective(model, Batch(ids, 1.0))
        (total / ids.numel()).backward()
        norm = clip_gradients(parameters, 1.0)
        optimizer.found_inf = guard.check(sums["loss"], norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def plain_step(model: Any, loss_of: Callable[[Any], Any], ids: Any, device: str) -> Step:
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-4, betas=(0.9, 0.95), eps=1e-5, fused=True)

    def step() -> None:
        with torch.autocast(device, dtype=torch.bfloat16):
            loss = loss_of(ids)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def transformers_step(shape: dict[str, Any], batch: int, device: str, compiled: bool) -> Step:
    import torch
    from transformers import OlmoConfig, OlmoForCausalLM

    config = OlmoConfig(
        vocab_size=shape["vocab_size"],
        hidden_size=shape["d_model"],
        intermediate_size=shape["mlp_width"],
        num_hidden_layers=shape["n_layers"],
        num_attention_heads=shape["n_heads"],
        max_position_embeddings=shape["context_length"],
        tie_word_embeddings=shape["tied"],
        use_cache=False,
        attn_implementation="sdpa",
    )
    model = OlmoForCausalLM(config).to(device).train()
    ids = torch.randint(0, shape["vocab_size"], (batch, shape["context_length"]), device=device)
    forward = torch.compile(model) if compiled else model
    return plain_step(model, lambda x: forward(input_ids=x, labels=x).loss, ids, device)


def olmo_step(shape: dict[str, Any], batch: int, device: str) -> Step:
    from types import ModuleType

    stub = ModuleType("datasets")
    stub.Dataset = stub.DatasetDict = type(None)  # type: ignore[attr-defined]
    sys.modules.setdefault("datasets", stub)
    import torch
    import torch.nn.functional as F
    from olmo.config import ModelConfig
    from olmo.model import OLMo

    model = OLMo(
        ModelConfig(
            d_model=shape["d_model"], n_heads=shape["n_heads"], n_layers=shape["n_layers"],
            mlp_hidden_size=2 * shape["mlp_width"], vocab_size=shape["vocab_size"],
            embedding_size=shape["vocab_size"], max_sequence_length=shape["context_length"],
            weight_tying=shape["tied"], activation_type="swiglu", block_type="sequential", rope=True,
            alibi=False, include_bias=False, layer_norm_type="default", layer_norm_with_affine=False,
            attention_layer_norm_with_affine=False, attention_dropout=0.0, residual_dropout=0.0,
            embedding_dropout=0.0, init_device=device,
        )
    ).train()  # fmt: skip
    ids = torch.randint(0, shape["vocab_size"], (batch, shape["context_length"]), device=device)

    def loss_of(x: Any) -> Any:
        logits = model(x).logits[:, :-1]
        return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), x[:, 1:].reshape(-1))

    return plain_step(model, loss_of, ids, device)


def products_step(shape: dict[str, Any], batch: int, device: str) -> Step:
    """The model's matrix products alone, forward and backward, in bf16: an upper limit."""
    import torch

    tokens, d, w = batch * shape["context_length"], shape["d_model"], shape["mlp_width"]
    layer = [(d, d)] * 4 + [(d, w)] * 2 + [(w, d)]
    shapes = layer * shape["n_layers"] + [(d, shape["vocab_size"])]

    def tensor(rows: int, columns: int) -> torch.Tensor:
        return torch.randn(rows, columns, dtype=torch.bfloat16, device=device)

    pool = {(i, o): (tensor(tokens, i), tensor(o, i), tensor(tokens, o)) for i, o in set(shapes)}

    def step() -> None:
        for key in shapes:
            x, weight, slope = pool[key]
            _ = x @ weight.t(), slope @ weight, slope.t() @ x

    return step


def contend(name: str, shape: dict[str, Any], batch: int, device: str, steps: int) -> dict[str, float]:
    """In this process: seconds of the best step, seconds of the first, peak memory in bytes."""
    import torch

    kind = name.removesuffix("-compiled")
    fast = name.endswith("-compiled")
    match kind:
        case "loom":
            step = loom_step(shape, batch, device, fast)
        case "transformers":
            step = transformers_step(shape, batch, device, fast)
        case "ai2-olmo":
            step = olmo_step(shape, batch, device)
        case _:
            step = products_step(shape, batch, device)
    synchronize = torch.cuda.synchronize if device == "cuda" else lambda: None
    times = []
    for _ in range(steps + 2):
        began = time.perf_counter()
        step()
        synchronize()
        times.append(time.perf_counter() - began)
    if device == "cuda":
        peak = float(torch.cuda.max_memory_allocated())
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0
    return {"seconds": min(times[2:]), "first": times[0], "peak_bytes": peak}


def launch(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    python = sys.executable
    if name == "ai2-olmo":
        peer = ROOT / ".peers" / "ai2-olmo" / "bin" / "python"
        if not peer.exists():
            return {"missing": "its environment is not built"}
        python = str(peer)
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    run = subprocess.run(
        [python, __file__, "--contend", name, "--arguments", json.dumps(arguments)],
        capture_output=True, text=True, env=environment,
    )  # fmt: skip
    if run.returncode:
        return {"missing": (run.stderr.strip().splitlines() or ["failed"])[-1][:200]}
    result: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return result


def measure(arguments: dict[str, Any], contenders: list[str], rounds: int) -> dict[str, Any]:
    results: dict[str, Any] = {}
    for _ in range(rounds):
        for name in contenders:
            found = launch(name, arguments)
            if "missing" in found:
                print(f"{name} is left out: {found['missing']}", flush=True)
                contenders = [other for other in contenders if other != name]
            elif name not in results or found["seconds"] < results[name]["seconds"]:
                results[name] = found
    tokens = arguments["batch"] * arguments["shape"]["context_length"]
    for found in results.values():
        found["tokens_per_second"] = tokens / found["seconds"]
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--preset", help="a preset's shape instead of the 30M model's")
    parser.add_argument("--vocab", type=int, nargs="+", default=[8192, 50304])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--contenders", nargs="+", default=list(CONTENDERS))
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results")
    parser.add_argument("--contend", help=argparse.SUPPRESS)
    parser.add_argument("--arguments", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contend:
        print(json.dumps(contend(options.contend, **options.arguments)))
        return
    import torch

    if options.device == "cuda" and not torch.cuda.is_available():
        print("no GPU here: the CUDA benchmark is skipped")
        return
    shapes = [{**SMALL, "vocab_size": rows, "tied": True} for rows in options.vocab]
    if options.preset:
        from loom.model.presets import preset

        shapes = [preset(options.preset).to_dict()]
    report: dict[str, Any] = {
        "machine": {
            "platform": platform.platform(), "cpus": os.cpu_count(), "torch": torch.__version__,
            "threads": torch.get_num_threads(), "load": os.getloadavg(),
            "device": torch.cuda.get_device_name() if options.device == "cuda" else platform.processor(),
        },
        "runs": [],
    }  # fmt: skip
    for shape in shapes:
        arguments = {"shape": shape, "batch": options.batch, "device": options.device, "steps": options.steps}
        results = measure(arguments, list(options.contenders), options.rounds)
        report["runs"].append({**arguments, "results": results})
        print(
            f"V = {shape['vocab_size']}, d = {shape['d_model']}, T = {shape['context_length']}, batch {options.batch}"
        )
        for name, found in results.items():
            print(
                f"  {name:22} {found['tokens_per_second']:10,.0f} tokens/s   peak {found['peak_bytes'] / 1e9:6.2f} GB"
                f"   first step {found['first']:6.1f} s"
            )
        ours = [v["tokens_per_second"] for n, v in results.items() if n.startswith("loom")]
        peers = [v["tokens_per_second"] for n, v in results.items() if n.startswith(("transformers", "ai2"))]
        if ours and peers:
            print(f"  ratio to the fastest peer: {max(ours) / max(peers):.2f}")
    options.out.mkdir(parents=True, exist_ok=True)
    name = options.preset or "30m"
    path = options.out / f"pretrain-{options.device}-{name}.json"
    path.write_text(json.dumps(report, indent=2) + "\n")
    print(path)


if __name__ == "__main__":
    main()
