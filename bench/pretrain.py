"""Training speed of Loom beside transformers and ai2-olmo: same shapes, same precision, one run.

    python bench/pretrain.py [--rows speed-8192,speed-50304,data,checkpoints] [--device cpu|cuda]

speed-V: a model of 29.9M parameters (at V = 8,192), T = 512, batch 8, bf16. Each contender runs in a
process of its own, in turn, round after round, so that all meet the same weather on the machine; its
best step counts. All start from the same weights and read the same batch, and their first losses must
agree. Beside them: what plain matrix products of the model's own shapes allow. Peak memory is that of
the whole process.
data: tokens a second out of Loom's loader and out of OLMo's, over the same shard, which must agree.
checkpoints: what saving every 50 steps costs, asynchronously, and the share of time spent waiting for data.
cuda-1b, cuda-7b-layers: only with --device cuda, with torch, numpy and this package alone.

The result, bench/results/pretrain-DEVICE.json, is written after every row. All rows together (no --rows) begin a
new file, so that its figures are those of one run; every row says which (`run`). With --rows the others stay.
Two rounds of all CPU rows take about half an hour on two idle cores.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SMALL = {"d_model": 512, "n_layers": 8, "n_heads": 8, "mlp_width": 1408, "context_length": 512}
CONTENDERS = (
    "loom", "loom-compiled", "transformers", "transformers-compiled", "ai2-olmo", "ai2-olmo-compiled", "products"
)  # fmt: skip
CPU_ROWS = ("speed-8192", "speed-50304", "data", "checkpoints")
CUDA_ROWS = ("cuda-1b", "cuda-7b-layers")
LOSSES = 3
AGREE = 5e-3
"""Relative difference of the first losses that bf16 explains."""
SHARD = 128 * 2**20
"""Tokens of the shard that the loaders read."""
Step = Callable[[], Any]


def first_weights(shape: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """(config, weights): the same in every process."""
    import torch

    from loom.model.config import ModelConfig
    from loom.model.initialize import initialize
    from loom.model.transformer import Transformer

    config = ModelConfig(**shape)
    model = Transformer(config, torch.bfloat16)
    initialize(model, 1)
    return config, model.state_dict()


def batch_ids(shape: dict[str, Any], batch: int, device: str) -> Any:
    import numpy as np
    import torch

    drawn = np.random.default_rng(7).integers(0, shape["vocab_size"], (batch, shape["context_length"]))
    return torch.from_numpy(drawn).to(device)


def loom_step(shape: dict[str, Any], batch: int, device: str, compiled: bool) -> Step:
    import torch

    from loom.model.transformer import Transformer
    from loom.train.config import OptimizerConfig
    from loom.train.data import Batch
    from loom.train.objective import LanguageModel
    from loom.train.optimizer import StepGuard, build_optimizer, clip_gradients

    config, weights = first_weights(shape)
    model = Transformer(config, torch.bfloat16)
    model.load_state_dict(weights, assign=True)
    model.to(device)
    if compiled:
        for block in model.blocks:
            block.compile()
    optimizer, objective = build_optimizer(model, OptimizerConfig()), LanguageModel()
    guard = StepGuard(None, torch.device(device))
    ids = batch_ids(shape, batch, device)
    labels = batch * (config.context_length - 1)
    parameters = list(model.parameters())

    def step() -> Any:
        total, sums = objective(model, Batch(ids, labels))
        (total / labels).backward()
        norm = clip_gradients(parameters, 1.0)
        optimizer.found_inf = guard.check(sums["loss"], norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return sums["loss"] / labels

    return step


def peer_step(model: Any, loss_of: Callable[[Any], Any], ids: Any, device: str) -> Step:
    """A peer's step, with the optimizer that Loom uses: matrices decay, the embedding does not."""
    import torch

    matrices = [p for name, p in model.named_parameters() if "embed" not in name and "wte" not in name]
    plain = [p for name, p in model.named_parameters() if "embed" in name or "wte" in name]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=4e-4, betas=(0.9, 0.95), eps=1e-5, fused=True)
    parameters = list(model.parameters())

    def step() -> Any:
        with torch.autocast(device, dtype=torch.bfloat16):
            loss = loss_of(ids)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step


def transformers_step(shape: dict[str, Any], batch: int, device: str, compiled: bool) -> Step:
    import torch
    from transformers import OlmoConfig, OlmoForCausalLM

    from loom.model.huggingface import to_huggingface

    config = OlmoConfig(
        vocab_size=shape["vocab_size"],
        hidden_size=shape["d_model"],
        intermediate_size=shape["mlp_width"],
        num_hidden_layers=shape["n_layers"],
        num_attention_heads=shape["n_heads"],
        max_position_embeddings=shape["context_length"],
        tie_word_embeddings=shape["tied"],
        use_cache=False,
        eos_token_id=0,
        attn_implementation="sdpa",
    )
    model = OlmoForCausalLM(config)
    ours, weights = first_weights(shape)
    model.load_state_dict(to_huggingface(weights, ours), strict=not shape["tied"])
    model.to(device).train()
    forward = torch.compile(model) if compiled else model
    ids = batch_ids(shape, batch, device)
    return peer_step(model, lambda x: forward(input_ids=x, labels=x).loss, ids, device)


def olmo_step(shape: dict[str, Any], batch: int, device: str, compiled: bool) -> Step:
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
            embedding_dropout=0.0, bias_for_layer_norm=False, eos_token_id=0, pad_token_id=1,
            init_device="cpu",
        ),
        init_params=False,
    )  # fmt: skip
    _, ours = first_weights(shape)
    weights = {"transformer.wte.weight": ours["embed.weight"]}
    if not shape["tied"]:
        weights["transformer.ff_out.weight"] = ours["head.weight"]
    for i in range(shape["n_layers"]):
        block, to = f"blocks.{i}.", f"transformer.blocks.{i}."
        weights[to + "att_proj.weight"] = torch.cat([ours[f"{block}attention.{p}.weight"] for p in "qkv"])
        weights[to + "attn_out.weight"] = ours[block + "attention.out.weight"]
        weights[to + "ff_proj.weight"] = torch.cat([ours[f"{block}mlp.{p}.weight"] for p in ("up", "gate")])
        weights[to + "ff_out.weight"] = ours[block + "mlp.down.weight"]
    model.load_state_dict(weights, strict=True)
    model.to(device).train()
    forward = torch.compile(model) if compiled else model
    ids = batch_ids(shape, batch, device)

    def loss_of(x: Any) -> Any:
        logits = forward(x).logits[:, :-1]
        return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), x[:, 1:].reshape(-1))

    return peer_step(model, loss_of, ids, device)


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


def contend(name: str, shape: dict[str, Any], batch: int, device: str, steps: int) -> dict[str, Any]:
    """In this process: seconds of the best step and of the first, peak memory, the first losses."""
    import torch

    fast = name.endswith("-compiled")
    match name.removesuffix("-compiled"):
        case "loom":
            step = loom_step(shape, batch, device, fast)
        case "transformers":
            step = transformers_step(shape, batch, device, fast)
        case "ai2-olmo":
            step = olmo_step(shape, batch, device, fast)
        case _:
            step = products_step(shape, batch, device)
    synchronize = torch.cuda.synchronize if device == "cuda" else lambda: None
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    times, losses = [], []
    for number in range(steps + 2):
        began = time.perf_counter()
        loss = step()
        synchronize()
        times.append(time.perf_counter() - began)
        if loss is not None and number < LOSSES:
            losses.append(float(loss))
    peak = float(torch.cuda.max_memory_allocated()) if device == "cuda" else resident_peak()
    return {
        "seconds": min(times[2:]), "first": times[0], "peak_bytes": peak, "losses": losses,
        "torch": torch.__version__,
    }  # fmt: skip


def resident_peak() -> float:
    """Bytes; of this process since it started (what `getrusage` says includes the parent's)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return float(line.split()[1]) * 1024
    raise AssertionError("no VmHWM in /proc/self/status")


def write_shard(folder: Path, tokens: int) -> Path:
    """A token folder with one shard of random ids."""
    import numpy as np

    sys.path.insert(0, str(ROOT))
    from tests.train.tokens import write_tokens

    ids = np.random.default_rng(3).integers(2, 50_280, tokens, dtype=np.uint16)
    return write_tokens(folder, [ids], vocabulary=50_280)


def loom_data(folder: str, length: int, batch: int, seconds: float) -> dict[str, Any]:
    """Tokens a second out of the loader, batches of int64 tensors ready for a model."""
    from loom.tokens.order import Stage
    from loom.tokens.shards import open_tokens
    from loom.train.config import DataConfig
    from loom.train.data import Windows
    from loom.train.loader import steps

    began = time.perf_counter()
    data = Windows(DataConfig(tokens=folder), [open_tokens(Path(folder))], length, 6198)
    digest, seen, opened = hashlib.sha256(), 0, 0.0
    for batches in steps(data, [Stage(1, 0, batch)], 1, 10**9, micro_batch=batch):
        if batches.step == 1:
            opened = time.perf_counter() - began
        if batches.step <= 2:
            digest.update(batches.batches[0].input_ids.numpy().tobytes())
            began = time.perf_counter()
        else:
            seen += batches.instances * length
        if time.perf_counter() - began > seconds and batches.step > 2:
            break
    rate = seen / (time.perf_counter() - began)
    return {"tokens_per_second": rate, "first": opened, "digest": digest.hexdigest()}


def olmo_data(folder: str, length: int, batch: int, seconds: float) -> dict[str, Any]:
    """OLMo's own data set, order and collator, with the two worker processes that a loader may have here."""
    import numpy as np
    from olmo.config import PaddingDirection
    from olmo.data.collator import DataCollator
    from olmo.data.iterable_dataset import IterableDataset
    from olmo.data.memmap_dataset import MemMapDataset
    from torch.utils.data import DataLoader

    began = time.perf_counter()
    shards = [str(path) for path in sorted(Path(folder).glob("shard-*.npy"))]
    instances = MemMapDataset(
        *shards, chunk_size=length, memmap_dtype=np.uint16, include_instance_metadata=False
    )
    order = IterableDataset(
        instances, batch, seed=6198, drop_last=True, world_size=1, rank=0, fs_local_rank=0
    )
    collate = DataCollator(PaddingDirection.right, 1)
    loader = DataLoader(order, batch_size=batch, collate_fn=collate, num_workers=2, prefetch_factor=4)
    digest, seen, opened = hashlib.sha256(), 0, 0.0
    for number, item in enumerate(loader, start=1):
        if number == 1:
            opened = time.perf_counter() - began
        if number <= 2:
            digest.update(item["input_ids"].numpy().astype(np.int64).tobytes())
            began = time.perf_counter()
        else:
            seen += item["input_ids"].numel()
        if time.perf_counter() - began > seconds and number > 2:
            break
    rate = seen / (time.perf_counter() - began)
    return {"tokens_per_second": rate, "first": opened, "digest": digest.hexdigest()}


def saving(folder: str, every: int, saves: int, batch: int) -> dict[str, Any]:
    """What asynchronous checkpoints cost: the time of the steps after a save beyond the usual."""
    from loom.model.presets import ModelRecipe
    from loom.train.callbacks import Callback
    from loom.train.config import DataConfig, RunConfig, TrainConfig
    from loom.train.loop import train

    at: dict[int, float] = {}

    class Clock(Callback):
        def on_step(self, record: dict[str, Any]) -> None:
            at[record["step"]] = time.perf_counter()

    steps = every * saves + every - 1
    config = RunConfig(
        model=ModelRecipe(**SMALL, vocab_size=8192, tied=True),
        data=DataConfig(tokens=folder),
        train=TrainConfig(
            steps=steps, batch_tokens=batch * SMALL["context_length"], micro_batch=batch, compile=False,
            checkpoint_every=every, log_every=1, keep=1,
        ),
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as out:
        train(config, Path(out) / "run", callbacks=[Clock()])
        lines = [json.loads(line) for line in (Path(out) / "run" / "metrics.jsonl").read_text().splitlines()]
        size = sum(p.stat().st_size for p in Path(out).glob("run/checkpoints/*/*"))
    # The save after step s is staged and written during the steps that follow.
    spent = {step: at[step] - at[step - 1] for step in range(3, steps + 1)}
    saved = {step for step in spent if (step - 1) // every and (step - 1) % every < every // 2}
    usual = statistics.median(seconds for step, seconds in spent.items() if step not in saved)
    extra = sum(spent[step] - usual for step in saved) / saves
    waits = [line["data_wait"] for line in lines[2:]]
    return {
        "step_seconds": usual, "seconds_a_checkpoint": extra, "checkpoint_bytes": size,
        "cost_every_50": extra / (50 * usual + extra), "data_wait": statistics.mean(waits),
    }  # fmt: skip


KINDS: dict[str, Callable[..., dict[str, Any]]] = {
    "loom-data": loom_data,
    "ai2-olmo-data": olmo_data,
    "saving": saving,
}


def launch(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """A contender in a process of its own; {"missing": why} where it cannot run."""
    python = sys.executable
    if name.startswith("ai2-olmo"):
        peer = ROOT / ".peers" / "ai2-olmo" / "bin" / "python"
        if not peer.exists():
            return {"missing": "its environment is not built (python tests/oracles/build.py ai2-olmo)"}
        python = str(peer)
    run = subprocess.run(
        [python, __file__, "--contend", name, "--arguments", json.dumps(arguments)],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
    )  # fmt: skip
    if run.returncode:
        return {"missing": (run.stderr.strip().splitlines() or ["failed"])[-1][:200]}
    result: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return result


def speed(shape: dict[str, Any], options: argparse.Namespace, batch: int) -> dict[str, Any]:
    arguments = {"shape": shape, "batch": batch, "device": options.device, "steps": options.steps}
    contenders, left_out, results = list(options.contenders), {}, {}
    for _ in range(options.rounds):
        for name in list(contenders):
            found = launch(name, arguments)
            if "missing" in found:
                print(f"  {name} is left out: {found['missing']}", flush=True)
                left_out[name] = found["missing"]
                contenders.remove(name)
            elif name not in results or found["seconds"] < results[name]["seconds"]:
                results[name] = found
    for found in results.values():
        found["tokens_per_second"] = batch * shape["context_length"] / found["seconds"]
    row: dict[str, Any] = {**arguments, "rounds": options.rounds, "results": results, "left_out": left_out}
    rates = {name: found["tokens_per_second"] for name, found in results.items()}
    peaks = {name: found["peak_bytes"] for name, found in results.items()}
    for name, found in sorted(results.items(), key=lambda item: -rates[item[0]]):
        note = " (bound: matrix products alone)" if name == "products" else ""
        print(
            f"  {name:22} {rates[name]:10,.0f} tokens/s   peak {peaks[name] / 1e9:6.2f} GB   "
            f"first step {found['first']:6.1f} s{note}"
        )
    loom = max((n for n in rates if n.startswith("loom")), key=rates.__getitem__, default=None)
    peer = max((n for n in rates if n.startswith(("tra", "ai2"))), key=rates.__getitem__, default=None)
    if loom and peer:
        row["ratio"] = rates[loom] / rates[peer]
        row["faster_peer"] = peer
        print(f"  {loom} over the faster peer, {peer}: {row['ratio']:.2f} times")
    if loom and "products" in rates:
        row["share_of_products"] = rates[loom] / rates["products"]
        print(f"  {loom} over matrix products alone: {row['share_of_products']:.2f}")
    for mine, other in (("loom", "transformers"), ("loom-compiled", "transformers-compiled")):
        if mine in peaks and other in peaks:
            row[f"memory_over_{other}"] = peaks[mine] / peaks[other]
            print(f"  peak memory of {mine} over {other}: {peaks[mine] / peaks[other]:.2f}")
    row["agree"] = agree([found["losses"] for name, found in results.items() if name != "products"])
    return row


def agree(losses: list[list[float]]) -> bool:
    same = all(abs(a - b) <= AGREE * abs(b) for run in losses for a, b in zip(run, losses[0], strict=True))
    print(f"  first losses {'agree' if same else 'DIFFER'}: {losses}")
    return same


def data(options: argparse.Namespace) -> dict[str, Any]:
    """The loaders over one shard that the page cache holds."""
    rows: dict[str, Any] = {"shard_tokens": SHARD, "lengths": {}, "agree": True}
    with tempfile.TemporaryDirectory() as work:
        folder = write_shard(Path(work) / "tokens", SHARD)
        for length, batch in ((2048, 64), (512, 256)):
            arguments = {"folder": str(folder), "length": length, "batch": batch, "seconds": 3.0}
            found = {name: launch(f"{name}-data", arguments) for name in ("loom", "ai2-olmo")}
            rows["lengths"][str(length)] = found
            for name, result in found.items():
                rate = (
                    f"{result['tokens_per_second'] / 1e6:8.1f} M tokens/s" if "digest" in result else result
                )
                print(f"  {name:10} T = {length:5}, batch {batch}: {rate}")
            rows["agree"] &= len({r["digest"] for r in found.values() if "digest" in r}) == 1
    print(f"  the first batches {'agree' if rows['agree'] else 'DIFFER'}")
    return rows


def checkpoints(options: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as work:
        folder = write_shard(Path(work) / "tokens", 2**20)
        facts = json.loads((folder / "manifest.json").read_text())
        facts["tokens"]["vocab_size"] = 8192
        (folder / "manifest.json").write_text(json.dumps(facts))
        import numpy as np

        ids = np.memmap(next(folder.glob("*.npy")), np.uint16, mode="r+")
        ids[:-1] = 2 + ids[:-1] % 8000
        ids.flush()
        arguments = {"folder": str(folder), "every": options.every, "saves": 3, "batch": 8}
        rounds = [launch("saving", arguments) for _ in range(options.rounds)]
    for row in rounds:
        if "missing" in row:
            raise SystemExit(f"checkpoints: {row['missing']}")
        print(
            f"  a checkpoint of {row['checkpoint_bytes'] / 1e6:,.0f} MB costs {row['seconds_a_checkpoint']:.2f} s "
            f"beside steps of {row['step_seconds']:.2f} s: {row['cost_every_50']:.2%} at every 50 steps; "
            f"{row['data_wait']:.3%} of the time waits for data"
        )
    # The round that saving cost most; waiting may have been longer in another.
    worst = max(rounds, key=lambda row: row["cost_every_50"])
    worst |= {"data_wait": max(row["data_wait"] for row in rounds)}
    return {**arguments, "folder": "random ids", **worst, "rounds": options.rounds, "agree": True}


def seven_layers(options: argparse.Namespace) -> dict[str, Any]:
    """The 7B's tokens a second from its layers: (time of 4 - time of 2) / 2 a layer, and the rest; beside it those of
    transformers, compiled, where it is installed."""
    from loom.model.presets import preset

    whole = preset("olmo-7b").to_dict()
    tokens = 4 * whole["context_length"]
    row: dict[str, Any] = {"results": {}, "left_out": {}, "agree": True}
    for name in ("loom-compiled", "transformers-compiled"):
        found: dict[str, Any] = {}
        for layers in (2, 4):
            shape = {**whole, "n_layers": layers}
            found[str(layers)] = launch(
                name, {"shape": shape, "batch": 4, "device": "cuda", "steps": options.steps}
            )
        if missing := [part["missing"] for part in found.values() if "missing" in part]:
            if name.startswith("loom"):
                raise SystemExit(f"cuda-7b-layers: {missing[0]}")
            print(f"  {name} is left out: {missing[0]}")
            row["left_out"][name] = missing[0]
            continue
        layer = (found["4"]["seconds"] - found["2"]["seconds"]) / 2
        found["layer_seconds"] = layer
        found["tokens_per_second"] = tokens / (found["2"]["seconds"] + (whole["n_layers"] - 2) * layer)
        row["results"][name] = found
        print(
            f"  {name}: {found['tokens_per_second']:,.0f} tokens/s for all {whole['n_layers']} layers; a layer takes "
            f"{layer * 1000:.2f} ms"
        )
    loom, *peers = row["results"].values()
    row |= {key: loom[key] for key in ("layer_seconds", "tokens_per_second")}
    for peer in peers:
        row["ratio"] = loom["tokens_per_second"] / peer["tokens_per_second"]
        row["agree"] = all(agree([part[n]["losses"] for part in (loom, peer)]) for n in ("2", "4"))
        print(f"  loom-compiled over transformers-compiled: {row['ratio']:.2f} times")
    return row


def one_b(options: argparse.Namespace) -> dict[str, Any]:
    from loom.model.presets import preset

    config = preset("olmo-1b")
    row = speed(config.to_dict(), options, batch=8)
    for name, found in row["results"].items():
        if name != "products":
            found["flops_per_second"] = found["tokens_per_second"] * config.flops_per_token(2048)
    return row


def run_row(name: str, options: argparse.Namespace) -> dict[str, Any]:
    match name.split("-"):
        case ["speed", rows]:
            return speed({**SMALL, "vocab_size": int(rows), "tied": True}, options, batch=8)
        case ["data"]:
            return data(options)
        case ["checkpoints"]:
            return checkpoints(options)
        case ["cuda", "1b"]:
            return one_b(options)
        case ["cuda", "7b", "layers"]:
            return seven_layers(options)
    raise SystemExit(f"There is no row {name!r}; there are {', '.join(CPU_ROWS + CUDA_ROWS)}.")


def machine(device: str) -> dict[str, Any]:
    import torch

    models = [
        line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")
    ]
    return {
        "platform": platform.platform(), "cpus": os.cpu_count(), "torch": torch.__version__,
        "threads": torch.get_num_threads(), "load": os.getloadavg(),
        "processor": models[0].split(":", 1)[1].strip() if models else platform.processor(),
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--rows", help="comma-separated; default: all of the device")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--every", type=int, default=16, help="steps between the saves of `checkpoints`")
    parser.add_argument("--contenders", nargs="+", default=list(CONTENDERS))
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results")
    parser.add_argument("--contend", help=argparse.SUPPRESS)
    parser.add_argument("--arguments", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contend:
        work = KINDS.get(options.contend)
        arguments = options.arguments if work else {"name": options.contend, **options.arguments}
        print(json.dumps((work or contend)(**arguments)))
        return
    import torch

    if options.device == "cuda" and not torch.cuda.is_available():
        print("no GPU here: the CUDA rows are skipped")
        return
    rows = options.rows.split(",") if options.rows else CUDA_ROWS if options.device == "cuda" else CPU_ROWS
    path = options.out / f"pretrain-{options.device}.json"
    options.out.mkdir(parents=True, exist_ok=True)
    report = json.loads(path.read_text()) if options.rows and path.is_file() else {"rows": {}}
    differ, began = [], f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
    for name in rows:
        print(name, flush=True)
        here = machine(options.device)
        row = run_row(name, options)
        report["rows"][name] = {"date": began[:10], "run": began, "machine": here, **row}
        path.write_text(json.dumps(report, indent=2) + "\n")
        if not row["agree"]:
            differ.append(name)
    if options.device == "cpu":
        print("cuda-1b and cuda-7b-layers are skipped: they need --device cuda and a GPU")
    print(path)
    if differ:
        raise SystemExit(f"Contenders did not compute the same in {', '.join(differ)}.")


if __name__ == "__main__":
    main()
