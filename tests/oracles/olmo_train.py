"""Run by the oracle's own Python: AdamW steps as OLMo's trainer takes them, on given weights and batches.

    python olmo_train.py INPUT.npz OUTPUT.json

INPUT holds "config" (JSON), "batches" [steps, B, T] and the weights under OLMo's names. OUTPUT is one
object a step: loss, grad_norm, lr. Model, parameter groups, schedule, clipping and optimizer are
OLMo's; the order of calls is that of its Trainer.train_step.
"""

import json
import sys

import numpy as np
import torch
import torch.nn.functional as F
from olmo.config import ModelConfig, OptimizerConfig, SchedulerConfig, TrainConfig
from olmo.model import OLMo
from olmo.optim import build_optimizer, build_scheduler


def main() -> None:
    content = np.load(sys.argv[1])
    config = json.loads(str(content["config"]))
    torch.set_num_threads(1)
    model = OLMo(ModelConfig(**config["model"], init_device="cpu"), init_params=False)
    weights = {name: torch.from_numpy(content[name]) for name in content if name.startswith("transformer.")}
    model.load_state_dict(weights, strict=True)
    whole = TrainConfig(
        model=model.config,
        optimizer=OptimizerConfig(**config["optimizer"]),
        scheduler=SchedulerConfig(**config["scheduler"]),
        max_grad_norm=config["max_grad_norm"],
    )
    optimizer, scheduler = build_optimizer(whole, model), build_scheduler(whole)
    records = []
    for step, ids in enumerate(torch.from_numpy(content["batches"]), start=1):
        optimizer.zero_grad(set_to_none=True)
        logits = model(ids).logits[..., :-1, :].contiguous()
        loss = F.cross_entropy(logits.view(-1, logits.size(-1)), ids[..., 1:].reshape(-1), reduction="sum")
        loss = loss / ids.numel()
        loss.backward()
        metrics = optimizer.clip_grads_and_collect_metrics(step, collect_param_metrics=False)
        for group in optimizer.param_groups:
            group["lr"] = scheduler.get_lr(config["optimizer"]["learning_rate"], step, config["steps"])
            group["max_grad_norm"] = scheduler.get_max_grad_norm(
                config["max_grad_norm"], step, config["steps"]
            )
        optimizer.step()
        records.append(
            {
                "loss": loss.item(),
                "grad_norm": metrics["total_grad_norm"].item(),
                "lr": optimizer.param_groups[0]["lr"],
            }
        )
    with open(sys.argv[2], "w") as stream:
        json.dump(records, stream)


if __name__ == "__main__":
    main()
