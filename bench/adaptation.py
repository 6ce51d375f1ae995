"""Loom's SFT and DPO beside TRL 1.16.0: same rows, same weights, float32, one process each, one run.

    python bench/adaptation.py [--rows sft,dpo] [--shape d256|d512] [--conversations N] [--pairs N]

sft  605 of the instructions with answers, one epoch: TRL in random order, TRL with group_by_length, Loom packed
dpo  real preference pairs (hh-rlhf), one epoch with its reference pass: TRL with precomputed reference
     log-probabilities, Loom

Weights are random (speed does not depend on them) and the same on all sides, the tokenizer is OLMo's,
V = 50,304. Each side runs its own whole training loop in a process of its own, one after the other, and reports
wall and processor seconds, the loss of every step and its peak memory; model, data and trainer are made before the
clock starts, the reference pass counts, the checkpoint at the end does not. A step of Loom's takes as many packed
rows as hold TRL's 16 conversations on average, so that both take as many steps at the same learning rate. What both
sides made is compared: ids and answers of every row; the loss of the first conversations before any step; the
reference log-probabilities of every pair; the mean loss of the epoch. On a machine with a GPU the same passes run
there. A finished side is written to bench/results/adaptation.json at once, with its date and machine.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import resource
import shutil
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
WANTED = {"sft/trl": 2.5, "sft/trl-grouped": 1.3, "dpo/trl": 2.0}
WANTED_MEMORY = {"dpo/trl": 0.6}
EOS, PAD = 50_279, 1  # of OLMo's tokenizer
COMPARED = 8  # conversations whose loss before training both sides compute
TOLERANCE = {"first_loss": 1e-5, "reference": 1e-3, "epoch": 0.02}  # relative; nats an answer; relative
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}


def shape(name: str, length: int) -> Any:
    from loom.model.config import ModelConfig

    width, layers, heads, mlp = SHAPES[name]
    return ModelConfig(
        d_model=width, n_layers=layers, n_heads=heads, mlp_width=mlp, vocab_size=50_304, context_length=length
    )


def fresh(options: argparse.Namespace) -> Any:
    """Loom's model with the weights that all sides start from."""
    import torch

    from loom.model.transformer import Transformer

    model = Transformer(shape(options.shape, options.length))
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.02, generator=generator)
    return model


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


def write_start(options: argparse.Namespace, folder: Path) -> None:
    """The weights that all sides start from, as the folder that `train.init` names."""
    from safetensors.torch import save_file

    from loom.model.huggingface import config_to_huggingface, to_huggingface

    model = fresh(options)
    folder.mkdir()
    save_file(to_huggingface(model.state_dict(), model.config), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config_to_huggingface(model.config, EOS, PAD)))
    shutil.copy(TOKENIZER, folder / "tokenizer.json")


def run_loom(objective: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """One epoch by `loom.train.loop.train`, as `loom train` runs it; the clock is that of its metrics.jsonl."""
    import numpy as np

    from loom.tokens.shards import open_tokens
    from loom.trace.reading import document_table
    from loom.train import start
    from loom.train.callbacks import Callback, Record, RunInfo
    from loom.train.config import (
        DataConfig,
        DpoConfig,
        OptimizerConfig,
        RunConfig,
        ScheduleConfig,
        TrainConfig,
    )
    from loom.train.data import PackedRows
    from loom.train.loop import train

    tokens = open_tokens(folder / objective)
    table = document_table(tokens)
    made: dict[str, Any] = {}
    name = "sft"
    size = micro = options.micro
    if objective == "sft":
        packed = PackedRows(tokens, table, options.length, 1)
        rows = packed.instances
        share = rows / len(table)  # packed rows a conversation: a step takes as many conversations as TRL's
        size = max(1, round(options.batch * share))
        micro = max(1, round(options.micro * share))
        steps = -(-rows // size)
        made["first_loss"] = _first_loss(fresh(options), packed, COMPARED)
        made["rows"], made["rows_a_step"] = rows, size
    else:
        name, steps = "pairs", -(-len(table) // 2 // options.batch)
    marks: dict[str, float] = {"reference": 0.0, "reference_spent": 0.0}
    inner = start.reference_logprobs

    def timed(*given: Any, **named: Any) -> Any:
        wall, cpu = time.perf_counter(), time.process_time()
        found = inner(*given, **named)
        marks["reference"] += time.perf_counter() - wall
        marks["reference_spent"] += time.process_time() - cpu
        made["reference"] = found.tolist()
        return found

    losses: list[float] = []

    class Clock(Callback):
        """After each step, so that what is saved at the end counts for neither side."""

        def on_start(self, run: RunInfo) -> None:
            marks["begun"] = time.process_time()

        def on_step(self, record: Record) -> None:
            losses.append(float(record["loss"]))
            marks["seconds"] = float(record["seconds"])
            marks["peak"], marks["spent"] = peak_bytes(), time.process_time() - marks["begun"]

    start.reference_logprobs = timed  # type: ignore[attr-defined]
    config = RunConfig(
        data=DataConfig(**{name: str(folder / objective)}, sequence_length=options.length),
        train=TrainConfig(
            objective=objective, init=str(folder / "start"), steps=steps, batch_tokens=size * options.length,
            micro_batch=micro, batch_pairs=options.batch, micro_batch_pairs=options.micro, precision="float32",
            compile=False, checkpoint_every=steps, log_every=1, rehearse=False,
        ),
        dpo=DpoConfig(beta=0.1),
        optimizer=OptimizerConfig(learning_rate=1e-5, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, clip=1.0),
        schedule=ScheduleConfig("constant"),
    )  # fmt: skip
    train(config, folder / f"{objective}-run", documents=table, callbacks=(Clock(),))
    return {
        "seconds": marks["seconds"],
        "reference_seconds": marks["reference"],
        "processor_seconds": marks["spent"] + marks["reference_spent"],
        "loss": float(np.mean(losses)),
        "losses": losses,
        "peak_bytes": int(marks["peak"]),
        "made": made,
    }


def _first_loss(model: Any, data: Any, count: int) -> float:
    """Nats a trained token of the first documents before any step."""
    import numpy as np
    import torch

    from loom.train.data import Batch, _shifted, _targets

    laid = data.documents.lay_out(np.arange(count), np.arange(count), np.zeros(count, np.int64), count)
    labels, weights = _shifted(laid)
    batch = Batch(
        torch.from_numpy(laid.ids), 1.0, labels, weights, torch.from_numpy(laid.positions),
        torch.from_numpy(laid.documents), targets=_targets(labels),
    )  # fmt: skip
    from loom.train.objective import LanguageModel

    device = next(model.parameters()).device
    with torch.no_grad():
        return float(LanguageModel()(model, batch.to(device))[0]) / float(weights.sum())


def run_trl(objective: str, side: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    import torch
    from datasets import Dataset
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast, TrainerCallback

    from loom.model.huggingface import config_to_huggingface, to_huggingface

    source = fresh(options)
    config = config_to_huggingface(source.config, EOS, PAD)
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(**config), dtype=torch.float32, attn_implementation="sdpa"
    )
    model.load_state_dict(to_huggingface(source.state_dict(), source.config), strict=False)
    model.tie_weights()
    del source
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
    made: dict[str, Any] = {}
    marks = {"reference": 0.0, "reference_spent": 0.0}
    if objective == "sft":
        from trl import SFTConfig, SFTTrainer

        made["first_loss"] = _first_loss_of(model, rows[:COMPARED])
        given = Dataset.from_list(
            [{"input_ids": row["ids"], "completion_mask": row["labels"]} for row in rows]
        )
        grouped = {"train_sampling_strategy": "group_by_length"} if side == "trl-grouped" else {}
        arguments = SFTConfig(**common, **grouped, completion_only_loss=True, packing=False)
        trainer = SFTTrainer(model, arguments, train_dataset=given, processing_class=tokenizer)
    else:
        from trl import DPOConfig, DPOTrainer

        class Timed(DPOTrainer):  # type: ignore[misc]
            """The reference pass runs while the trainer is made; its seconds are taken here."""

            def _precompute_ref_logps(self, *given: Any, **named: Any) -> Any:
                wall, cpu = time.perf_counter(), time.process_time()
                found = super()._precompute_ref_logps(*given, **named)
                marks["reference"] += time.perf_counter() - wall
                marks["reference_spent"] += time.process_time() - cpu
                return found

        text = [
            {
                "prompt": tokenizer.decode(one["ids"][: one["prompt"]]),
                "chosen": tokenizer.decode(one["ids"][one["prompt"] :]),
                "rejected": tokenizer.decode(two["ids"][two["prompt"] :]),
            }
            for one, two in zip(rows[::2], rows[1::2], strict=True)
        ]
        dpo = DPOConfig(**common, beta=0.1, precompute_ref_log_probs=True)
        trainer = Timed(model, None, dpo, train_dataset=Dataset.from_list(text), processing_class=tokenizer)
        seen = trainer.train_dataset
        made["reference"] = [[row["ref_chosen_logps"], row["ref_rejected_logps"]] for row in seen]
        made["same_ids"] = [
            row["prompt_ids"] + row["chosen_ids"] == one["ids"]
            and row["prompt_ids"] + row["rejected_ids"] == two["ids"]
            for row, one, two in zip(seen, rows[::2], rows[1::2], strict=True)
        ]

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            marks["begin"], marks["spent"] = time.perf_counter(), time.process_time()

        def on_train_end(self, *_: Any, **__: Any) -> None:
            marks["seconds"] = time.perf_counter() - marks["begin"]
            marks["spent"] = time.process_time() - marks["spent"]

    trainer.add_callback(Clock())
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {
        "seconds": marks["seconds"],
        "reference_seconds": marks["reference"],
        "processor_seconds": marks["spent"] + marks["reference_spent"],
        "loss": sum(losses) / len(losses),
        "losses": losses,
        "peak_bytes": peak_bytes(),
        "made": made,
    }


def _first_loss_of(model: Any, rows: list[dict[str, Any]]) -> float:
    """The same by transformers alone."""
    import torch

    total, count = 0.0, 0
    for row in rows:
        ids = torch.tensor([row["ids"]])
        labels = torch.tensor([row["labels"]], dtype=torch.bool)
        with torch.no_grad():
            scores = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
        kept = labels[0, 1:]
        total -= float(scores.gather(1, ids[0, 1:, None])[:, 0][kept].sum())
        count += int(kept.sum())
    return total / count


def measure(objective: str, side: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """One side in a process of its own, so that peaks are its own."""
    words = [sys.executable, __file__, "--worker", objective, side, str(folder)]
    for name in ("shape", "length", "batch", "micro", "threads"):
        words += [f"--{name}", str(getattr(options, name))]
    done = subprocess.run(words, stdout=subprocess.PIPE, check=True, text=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def compare(objective: str, mine: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    """Whether both sides trained on the same thing from the same weights."""
    import numpy as np

    if objective == "sft":
        values = mine["made"]["first_loss"], theirs["made"]["first_loss"]
        apart = abs(values[0] / values[1] - 1)
        result = {"first_loss_apart": apart, "equal": apart <= TOLERANCE["first_loss"]}
    else:
        one, two = np.array(mine["made"]["reference"]), np.array(theirs["made"]["reference"])
        same = np.array(theirs["made"]["same_ids"])
        apart = float(np.abs(one - two)[same].max())
        result = {
            "pairs": len(same),
            "pairs_of_equal_ids": int(same.sum()),
            "reference_apart_nats": apart,
            "equal": bool(same.all()) and apart <= TOLERANCE["reference"],
        }
    steps = len(mine["losses"]), len(theirs["losses"])
    epoch = mine["loss"] / theirs["loss"] - 1
    result["equal"] = bool(result["equal"]) and abs(epoch) <= TOLERANCE["epoch"]
    return {**result, "steps": steps, "loss_apart": epoch}


def write(path: Path, sides: dict[str, Any], ratios: dict[str, Any]) -> None:
    """Rows of earlier runs stay; each side and each ratio carries its own date."""
    body = json.loads(path.read_text()) if path.is_file() else {}
    for name, found in (("sides", sides), ("ratios", ratios)):
        body[name] = {**body.get(name, {}), **found}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(body, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", default="sft,dpo")
    parser.add_argument("--shape", choices=SHAPES, default="d256")
    parser.add_argument("--conversations", type=int, default=605)
    parser.add_argument("--pairs", type=int, default=400)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--micro", type=int, default=8)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results" / "adaptation.json")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    import torch

    torch.set_num_threads(options.threads)
    if options.worker:
        objective, side, folder = options.worker
        if side == "loom":
            print(json.dumps(run_loom(objective, Path(folder), options)))
        else:
            print(json.dumps(run_trl(objective, side, Path(folder), options)))
        return
    if not DATA.is_dir():
        print(f"skipped: the data is absent ({DATA.name})")
        return
    for objective in options.rows.split(","):
        if objective not in SIDES:
            parser.error(f"no such row: {objective}; there are {', '.join(SIDES)}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare_data(folder, options.conversations, options.pairs, options.length)
        write_start(options, folder / "start")
        for objective in options.rows.split(","):
            run_row(objective, folder, options)
    print(f"written to {options.out}")


def run_row(objective: str, folder: Path, options: argparse.Namespace) -> None:
    import torch

    sides: dict[str, Any] = {}
    for side in SIDES[objective]:
        setup = {
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "machine": {
                "processor": platform.processor() or platform.machine(),
                "cores": options.threads,
                "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
                "torch": torch.__version__,
                "load_before": round(os.getloadavg()[0], 1),
            },
            "settings": {
                key: getattr(options, key)
                for key in ("shape", "conversations", "pairs", "length", "batch", "micro")
            },
        }
        found = measure(objective, side, folder, options)
        key = f"{objective}/{side}"
        sides[key] = found
        kept = {name: value for name, value in found.items() if name != "made"}
        print(
            f"{key}: {found['seconds']:.1f} s, reference {found['reference_seconds']:.1f} s, "
            f"processor {found['processor_seconds']:.1f} s, loss {found['loss']:.4f} "
            f"(first {found['losses'][0]:.4f}, last {found['losses'][-1]:.4f}), "
            f"peak {found['peak_bytes'] / 2**20:,.0f} MiB",
            flush=True,
        )
        ratios = {}
        if key in WANTED:
            mine = sides[f"{objective}/loom"]
            ratios[key] = {
                "times_as_fast": _whole(found) / _whole(mine),
                "by_processor_time": found["processor_seconds"] / mine["processor_seconds"],
                "wanted": WANTED[key],
                "memory": mine["peak_bytes"] / found["peak_bytes"],
                "wanted_memory": WANTED_MEMORY.get(key),
                **compare(objective, mine, found),
                "date": setup["date"],
            }
            line = ratios[key]
            print(
                f"{key}: {line['times_as_fast']:.2f} times as fast, wanted {WANTED[key]} (processor time "
                f"{line['by_processor_time']:.2f}), memory {line['memory']:.2f} of TRL's"
                f"{', wanted at most 0.6' if key in WANTED_MEMORY else ''}; "
                f"{'the same work' if line['equal'] else 'NOT THE SAME WORK'}: "
                + ", ".join(f"{name} {value}" for name, value in compare(objective, mine, found).items()),
                flush=True,
            )
        write(options.out, {key: {**kept, **setup}}, ratios)


def _whole(side: dict[str, Any]) -> float:
    return float(side["seconds"]) + float(side["reference_seconds"])


if __name__ == "__main__":
    main()
