"""The mean of several checkpoints' weights, which often beats the last (Izmailov et al. 2018)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from loom.errors import LoomError
from loom.model.transformer import Transformer
from loom.train.checkpoint import check, read_card, read_weights, reference, save_model


def average(folders: Sequence[Path], out: Path) -> Path:
    """Write the mean of `folders` as a checkpoint at step 0; sums are float64, the result is float32.

    Raises `LoomError` when there are fewer than two, or when they hold unlike models.
    """
    if len(folders) < 2:
        raise LoomError(f"An average needs at least two checkpoints, not {len(folders)}.")
    card = read_card(folders[0])
    total: dict[str, torch.Tensor] = {}
    for folder in folders:
        check(folder)
        if read_card(folder) != card:
            raise LoomError(f"{folder} and {folders[0]} hold unlike models: average checkpoints of one run.")
        for name, tensor in read_weights(folder).items():
            total[name] = total[name] + tensor.double() if name in total else tensor.double()
    with torch.device("meta"):
        model = Transformer(card.model)
    model.load_state_dict({name: (t / len(folders)).float() for name, t in total.items()}, assign=True)
    return save_model(out, model, card, folders[0] / "tokenizer.json", [reference(f) for f in folders])
