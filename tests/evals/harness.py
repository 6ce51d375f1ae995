"""lm-evaluation-harness on given rows, without a network: the oracle of the scorer."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

for _name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE", "TQDM_DISABLE"):
    os.environ[_name] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

YAML = {
    "arc_easy": "arc/arc_easy.yaml",
    "arc_challenge": "arc/arc_challenge.yaml",
    "boolq": "super_glue/boolq/default.yaml",
    "hellaswag": "hellaswag/hellaswag.yaml",
    "openbookqa": "openbookqa/openbookqa.yaml",
    "piqa": "piqa/piqa.yaml",
    "sciq": "sciq/sciq.yaml",
    "winogrande": "winogrande/default.yaml",
    "copa": "super_glue/copa/default.yaml",
    "commonsense_qa": "commonsense_qa/default.yaml",
    "social_iqa": "siqa/siqa.yaml",
    "truthfulqa_mc1": "truthfulqa/truthfulqa_mc1.yaml",
    "truthfulqa_mc2": "truthfulqa/truthfulqa_mc2.yaml",
}

Rows = Sequence[Mapping[str, Any]]


def language_model(model: str | Any, tokenizer: Any = None, batch_size: int = 8, **options: Any) -> Any:
    """The harness's `hf` backend in float32; `model` is a folder or a transformers model."""
    from lm_eval.models.huggingface import HFLM

    return HFLM(
        pretrained=model,
        tokenizer=tokenizer,
        batch_size=batch_size,
        device="cpu",
        dtype="float32",
        softmax_dtype="float32",
        **options,
    )


def run(
    lm: Any, tasks: Mapping[str, Rows], shots: int = 0, examples: Mapping[str, Rows] | None = None
) -> dict[str, Any]:
    """By task: `samples` (doc_id -> prompts, log-likelihoods, metrics by document) and `results`; `seconds`
    of the requests. MMLU tasks are named `mmlu_<subject>` and `mmlu_<subject>_continuation`."""
    import lm_eval

    configs = [_config(name, rows, (examples or {}).get(name, ())) for name, rows in tasks.items()]
    clock = _Clock(lm)
    found = lm_eval.simple_evaluate(
        lm, tasks=configs, num_fewshot=shots, log_samples=True, bootstrap_iters=0, verbosity="ERROR"
    )
    clock.stop()
    return {
        "seconds": clock.seconds,
        "cpu_seconds": clock.cpu_seconds,
        "results": found["results"],
        "samples": {name: {s["doc_id"]: _sample(s) for s in found["samples"][name]} for name in tasks},
    }


class _Clock:
    """Times the model's requests, tokenization included, without the harness's own set-up."""

    def __init__(self, lm: Any) -> None:
        self.lm, self.inner = lm, lm.loglikelihood
        self.seconds = self.cpu_seconds = 0.0
        lm.loglikelihood = self

    def __call__(self, requests: Any, **options: Any) -> Any:
        wall, cpu = time.perf_counter(), time.process_time()
        answer = self.inner(requests, **options)
        self.seconds += time.perf_counter() - wall
        self.cpu_seconds += time.process_time() - cpu
        return answer

    def stop(self) -> None:
        self.lm.loglikelihood = self.inner


def hub_row(row: Mapping[str, Any], item: Any, name: str) -> dict[str, Any]:
    """A row of TruthfulQA's own table as the Hub spells it: what the harness reads."""
    if f"{name.removeprefix('truthfulqa_')}_targets" in row:
        return dict(row)
    labels = [int(index in item.golds) for index in range(len(item.choices))]
    targets = {"choices": list(item.choices), "labels": labels}
    return {"question": row["Question"], f"{name.removeprefix('truthfulqa_')}_targets": targets}


def rolling(lm: Any, texts: Sequence[str]) -> list[float]:
    """Log-likelihood of whole texts, in windows."""
    from lm_eval.api.instance import Instance

    requests = [
        Instance("loglikelihood_rolling", doc={}, arguments=(text,), idx=i) for i, text in enumerate(texts)
    ]
    return [float(value) for value in lm.loglikelihood_rolling(requests, disable_tqdm=True)]


def loglikelihoods(lm: Any, pairs: Sequence[tuple[str, str]]) -> list[float]:
    """Of continuations behind contexts."""
    from lm_eval.api.instance import Instance

    requests = [Instance("loglikelihood", doc={}, arguments=pair, idx=i) for i, pair in enumerate(pairs)]
    return [float(value) for value, _ in lm.loglikelihood(requests, disable_tqdm=True)]


def _config(name: str, rows: Rows, examples: Rows) -> dict[str, Any]:
    import datasets
    import lm_eval.tasks
    from lm_eval.tasks._yaml_loader import load_yaml

    folder = Path(lm_eval.tasks.__file__).parent
    if name.startswith("mmlu_"):
        subject = name.removeprefix("mmlu_").removesuffix("_continuation")
        kind = "continuation" if name.endswith("_continuation") else "default"
        config = load_yaml(folder / "mmlu" / kind / f"mmlu_{subject}.yaml")
    else:
        config = load_yaml(folder / YAML[name])
    for key in ("training_split", "validation_split", "dataset_path", "dataset_name", "tag", "task_alias"):
        config.pop(key, None)
    splits = {"test": datasets.Dataset.from_list([dict(row) for row in rows])}
    if examples:
        splits["dev"] = datasets.Dataset.from_list([dict(row) for row in examples])
    else:
        config.pop("fewshot_split", None)
    return {**config, "task": name, "test_split": "test", "custom_dataset": lambda **_: splits}


def _sample(sample: Mapping[str, Any]) -> dict[str, Any]:
    arguments = sample["arguments"]
    pairs = (
        [tuple(arguments[key].values()) for key in arguments] if isinstance(arguments, dict) else arguments
    )
    return {
        "pairs": [tuple(pair[:2]) for pair in pairs],
        "logp": [float(response[0][0]) for response in sample["resps"]],
        "acc": sample.get("acc"),
        "acc_norm": sample.get("acc_norm"),
    }
