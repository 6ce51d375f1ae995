"""A sequence classifier of two classes, by `transformers`: class 1 is toxic."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from loom.errors import LoomError

TOXIC = re.compile(r"toxic|hat(?:e|red)|abus|offens|harm|insult|unsafe", re.IGNORECASE)
HARMLESS = re.compile(
    r"(?<![a-z])(?:non?|not)[\W_]*(?:toxic|hate|abus|offens|harm)|harmless|benign|neutral|(?<![a-z])(?:safe|clean)",
    re.IGNORECASE,
)


def classify(texts: Sequence[str], folder: Path, batch: int = 32) -> list[bool | None]:
    """Whether class 1 is the most likely; None for a text that is longer than the classifier reads. Raises
    `LoomError` without transformers, for weights that were not all loaded, for other classes than harmless and toxic,
    and for logits that are not numbers."""
    model, tokenizer = _load(folder)
    limit = min(tokenizer.model_max_length, positions(model))
    lengths = [len(ids) for ids in tokenizer(list(texts), verbose=False)["input_ids"]]
    whole = [index for index, length in enumerate(lengths) if length <= limit]
    verdicts: list[bool | None] = [None] * len(texts)
    with torch.inference_mode():
        for start in range(0, len(whole), batch):
            of = whole[start : start + batch]
            inputs = tokenizer([texts[index] for index in of], return_tensors="pt", padding=True)
            logits = model.eval()(**inputs).logits
            if not bool(torch.isfinite(logits).all()):
                raise LoomError(
                    f"The classifier {folder} gives logits that are not numbers, and the most likely of those would "
                    f"always be class 0: look at its weights."
                )
            for index, verdict in zip(of, (logits.argmax(-1) == 1).tolist(), strict=True):
                verdicts[index] = verdict
    return verdicts


def _load(folder: Path) -> tuple[Any, Any]:
    try:
        import transformers as library
    except ImportError:
        raise LoomError("A classifier as judge needs transformers: pip install transformers.") from None
    transformers: Any = library
    try:
        loaded = transformers.AutoModelForSequenceClassification.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, output_loading_info=True
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # safetensors, tokenizers and torch raise types of their own for damaged files
        raise LoomError(
            f"transformers cannot load the classifier {folder}: {type(error).__name__}: {error}"
        ) from None
    model, info = loaded
    if unloaded := sorted(map(str, [*info.get("missing_keys", ()), *info.get("mismatched_keys", ())])):
        raise LoomError(
            f"{folder} lacks the weight {unloaded[0]}, or has it in another shape: it is no classifier."
        )
    check_classes(model.config.num_labels, model.config.id2label or {}, str(folder))
    return model, tokenizer


def check_classes(count: int, names: Mapping[int, str], where: str) -> None:
    """Raise `LoomError` unless there are two classes of which the second may be the toxic one; LABEL_0 and LABEL_1 say
    nothing against it."""
    if count != 2:
        raise LoomError(
            f"The classifier {where} has {count} classes, and toxicity is judged by two: harmless (0) and toxic (1)."
        )
    first, second = (str(names.get(index, "")) for index in range(2))
    if (_toxic(first) and not _toxic(second)) or HARMLESS.search(second):
        raise LoomError(
            f"The classifier {where} calls its classes 0 {first!r} and 1 {second!r}, but class 1 has to be the toxic "
            f"one: use one of that order."
        )


def _toxic(name: str) -> bool:
    return TOXIC.search(name) is not None and HARMLESS.search(name) is None


def positions(model: Any) -> float:
    """How many tokens a classifier has positions for; where its tokenizer does not state a length either, as many
    as there are. RoBERTa's table begins with rows for padding."""
    count = getattr(model.config, "max_position_embeddings", None) or math.inf
    for name, part in model.named_modules():
        if name.endswith("position_embeddings") and getattr(part, "padding_idx", None) is not None:
            return float(part.num_embeddings - part.padding_idx - 1)
    return float(count)
