"""Loom's SFT and DPO beside TRL 1.16.0: same rows, same weights, float32, one process each, one run.

    python bench/adaptation.py [--shape d256|d512] [--conversations N] [--pairs N] [--threads N] [--length N]

SFT on the 605 training instructions of AlpacaEval's prompts: TRL in random order, TRL with group_by_length,
Loom packed. DPO on real preference pairs (hh-rlhf): TRL with precomputed reference log-probabilities, Loom.
Weights are random (speed does not depend on them), the tokenizer is OLMo's, V = 50,304. Each side runs in a
process of its own, one after the other, and reports wall and processor seconds of one pass over the same rows
(DPO: with its reference pass), the mean loss, and its peak memory. Model, data and trainer are made before the
clock starts. On a machine that does other work too, one thread and the processor's seconds are what to compare.
On a machine with a GPU the same passes run there. The result goes to bench/results/adaptation.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
DATA = ROOT.parent / "shared" / "data"
TOKENIZER = DATA / "tokenizers" / "olmo-v1.json"
SHAPES = {"d256": (256, 4, 4, 704), "d512": (512, 8, 8, 1408)}  # width, layers, heads, MLP
SIDES = {
    "sft": ("loom", "trl", "trl-grouped"),
    "dpo": ("loom", "trl"),
}
TARGETS = {"sft/trl": 2.5, "sft/trl-grouped": 1.3, "dpo/trl": 2.0}
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}


def shape(name: str, length: int) -> Any:
    from loom.model.config import ModelConfig

    width, layers, heads, mlp = SHAPES[name]
    return ModelConfig(
        d_model=width, n_layers=layers, n_heads=heads, mlp_width=mlp, vocab_size=50_304, context_length=length
    )


def prepare_data(folder: Path, conversations: int, pairs: int, length: int) -> None:
    """Loom's folders, and for TRL the rows that came of them, so that both sides train on the same tokens."""
    import pyarrow.parquet as pq

    from loom.chat.mixture import Share
    from loom.chat.prepare import Prepare, prepare
    from loom.tokens.shards import open_tokens

    names = {"sft": ("instructions.jsonl.gz", conversations), "dpo": ("hh-harmless.pairs.jsonl.gz", pairs)}
    for objective, (name, count) in names.items():
        share = Share(str(DATA / "chat" / name), count=count)
        over_long = "truncate"
        recipe = Prepare(objective, (share,), TOKENIZER, max_length=length, over_long=over_long)  # type: ignore[arg-type]
        prepare(recipe, folder / objective)
        opened = open_tokens(folder / objective)
        rows = pq.read_table(folder / objective / "shard-00000.docs.parquet").to_pylist()
        ids, weights = opened.arrays[0], opened.weights[0]
        found = []
        for row in rows:
            tokens = ids[row["start"] : row["end"]].tolist()
            labels = weights[row["start"] : row["end"]].tolist()
            found.append({"ids": tokens, "labels": labels, "prompt": row["prompt_end"] - row["start"]})
        (folder / f"{objective}.json").write_text(json.dumps(found))


def peak_bytes() -> int:
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def run_loom(objective: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    import numpy as np
    import torch

    from loom.model.transformer import Transformer
    from loom.road.training import read_document_table
    from loom.tokens.shards import open_tokens
    from loom.train.config import DpoConfig
    from loom.train.data import PackedRows, Pairs
    from loom.train.objective import LanguageModel, Preference, answer_logprobs

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokens = open_tokens(folder / objective)
    table = read_document_table(folder / objective)
    torch.manual_seed(0)
    model = Transformer(shape(options.shape, options.length)).train()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    model.to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    data: Any
    started, reference_spent = time.perf_counter(), -time.process_time()
    if objective == "sft":
        data = PackedRows(tokens, table, options.length, 1)
        chosen: Any = LanguageModel()
        size = max(1, round(options.batch * data.instances / (len(table) * options.micro))) * options.micro
        micro = max(1, round(options.micro * data.instances / len(table)))
    else:
        data = Pairs(tokens, table, options.length, 1)
        reference = torch.empty(data.instances, 2)
        with torch.no_grad():
            for first in range(0, data.instances, options.micro):
                numbers = np.arange(first, min(first + options.micro, data.instances))
                reference[numbers] = answer_logprobs(model, data.collate(numbers).to(device))[0].cpu()
        chosen = Preference(DpoConfig(beta=0.1), reference)
        size, micro = options.batch, options.micro
    prepared = time.perf_counter() - started
    reference_spent += time.process_time()
    loss = weight = 0.0
    begun, spent = time.perf_counter(), time.process_time()
    for at in range(0, data.instances, size):
        places = np.arange(at, min(at + size, data.instances))
        batches = [
            data.batch(places[first : first + micro]).to(device) for first in range(0, len(places), micro)
        ]
        denominator = sum(batch.denominator for batch in batches)
        for batch in batches:
            total, _ = chosen(model, batch)
            (total / denominator).backward()
            loss += float(total.detach())
        weight += denominator
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return {
        "seconds": time.perf_counter() - begun,
        "processor_seconds": time.process_time() - spent + (reference_spent if objective == "dpo" else 0.0),
        "reference_seconds": prepared if objective == "dpo" else 0.0,
        "loss": loss / weight,
        "peak_bytes": peak_bytes(),
    }


def run_trl(objective: str, side: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    import torch
    from datasets import Dataset
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    from loom.model.huggingface import config_to_huggingface

    config = config_to_huggingface(shape(options.shape, options.length), 50_279, 1)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(**config), dtype=torch.float32, attn_implementation="sdpa"
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(TOKENIZER), eos_token="<|endoftext|>", pad_token="<|padding|>"
    )
    rows = json.loads((folder / f"{objective}.json").read_text())
    common = {
        "output_dir": str(folder / "trl"), "report_to": "none", "use_cpu": not torch.cuda.is_available(),
        "bf16": False, "max_length": options.length, "num_train_epochs": 1, "learning_rate": 1e-5,
        "per_device_train_batch_size": options.micro, "lr_scheduler_type": "constant", "save_strategy": "no",
        "gradient_accumulation_steps": options.batch // options.micro, "gradient_checkpointing": False,
        "logging_steps": 1, "disable_tqdm": True, "dataloader_pin_memory": False, "weight_decay": 0.0,
    }  # fmt: skip
    trainer: Any
    if objective == "sft":
        from trl import SFTConfig, SFTTrainer

        made = Dataset.from_list(
            [{"input_ids": row["ids"], "completion_mask": row["labels"]} for row in rows]
        )
        grouped = {"train_sampling_strategy": "group_by_length"} if side == "trl-grouped" else {}
        arguments = SFTConfig(**common, **grouped, completion_only_loss=True, packing=False, loss_type="nll")
        trainer = SFTTrainer(model, arguments, train_dataset=made, processing_class=tokenizer)
    else:
        from trl import DPOConfig, DPOTrainer

        text = [
            {
                "prompt": tokenizer.decode(one["ids"][: one["prompt"]]),
                "chosen": tokenizer.decode(one["ids"][one["prompt"] :]),
                "rejected": tokenizer.decode(two["ids"][two["prompt"] :]),
            }
            for one, two in zip(rows[::2], rows[1::2], strict=True)
        ]
        dpo = DPOConfig(**common, beta=0.1, precompute_ref_log_probs=True)
        trainer = DPOTrainer(
            model, None, dpo, train_dataset=Dataset.from_list(text), processing_class=tokenizer
        )
    marks: dict[str, float] = {}
    started, spent = time.perf_counter(), time.process_time()
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            marks["begin"] = time.perf_counter()
            nonlocal spent
            if objective == "sft":
                spent = time.process_time()

        def on_train_end(self, *_: Any, **__: Any) -> None:
            marks["end"] = time.perf_counter()
            marks["spent"] = time.process_time() - spent

    trainer.add_callback(Clock())
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {
        "seconds": marks["end"] - marks["begin"],
        "processor_seconds": marks["spent"],
        "reference_seconds": marks["begin"] - started if objective == "dpo" else 0.0,
        "loss": sum(losses) / len(losses),
        "peak_bytes": peak_bytes(),
    }


def measure(objective: str, side: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """One side in a process of its own, so that peaks are its own."""
    words = [sys.executable, __file__, "--worker", objective, side, str(folder)]
    for name in ("shape", "length", "batch", "micro", "threads"):
        words += [f"--{name}", str(getattr(options, name))]
    done = subprocess.run(words, stdout=subprocess.PIPE, check=True, text=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--shape", choices=SHAPES, default="d256")
    parser.add_argument("--conversations", type=int, default=605)
    parser.add_argument("--pairs", type=int, default=400)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--micro", type=int, default=8)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--worker", nargs=3)
    options = parser.parse_args()
    import torch

    torch.set_num_threads(options.threads)
    if options.worker:
        objective, side, folder = options.worker
        run = run_loom if side == "loom" else run_trl
        arguments = (
            (objective, Path(folder), options) if side == "loom" else (objective, side, Path(folder), options)
        )
        print(json.dumps(run(*arguments)))  # type: ignore[arg-type]
        return
    result: dict[str, Any] = {
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "cores": options.threads,
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            "torch": torch.__version__,
            "load_before": os.getloadavg()[0],
        },
        "settings": {
            name: getattr(options, name)
            for name in ("shape", "conversations", "pairs", "length", "batch", "micro")
        },
        "sides": {},
        "ratios": {},
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare_data(folder, options.conversations, options.pairs, options.length)
        for objective, sides in SIDES.items():
            for side in sides:
                found = measure(objective, side, folder, options)
                result["sides"][f"{objective}/{side}"] = found
                print(
                    f"{objective}/{side}: {found['seconds']:.1f} s, reference {found['reference_seconds']:.1f} s, "
                    f"processor {found['processor_seconds']:.1f} s, "
                    f"loss {found['loss']:.4f}, peak {found['peak_bytes'] / 2**20:,.0f} MiB",
                    flush=True,
                )
    for key, target in TARGETS.items():
        mine, theirs = result["sides"][f"{key.split('/')[0]}/loom"], result["sides"][key]
        ratio = _whole(theirs) / _whole(mine)
        result["ratios"][key] = {
            "times_as_fast": ratio,
            "by_processor_time": theirs["processor_seconds"] / mine["processor_seconds"],
            "wanted": target,
            "memory": mine["peak_bytes"] / theirs["peak_bytes"],
        }
        print(
            f"{key}: {ratio:.2f} times as fast (wanted {target}), memory {mine['peak_bytes'] / theirs['peak_bytes']:.2f}"
        )
    result["machine"]["load_after"] = os.getloadavg()[0]
    out = ROOT / "bench" / "results" / "adaptation.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=2) + "\n")


def _whole(side: dict[str, Any]) -> float:
    return float(side["seconds"]) + float(side["reference_seconds"])


if __name__ == "__main__":
    main()
