"""The mean of several checkpoints' weights, which often beats the last (Izmailov et al. 2018)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from loom.errors import LoomError
from loom.model.transformer import Transformer
from loom.train.checkpoint import check, checkpoints, read_card, read_weights, reference, save_model


def average(folders: Sequence[Path], out: Path) -> Path:
    """Write the mean of `folders` as a checkpoint at step 0; sums are float64, the result is float32.

    Raises `LoomError` when there are fewer than two, when they hold unlike models, or where `out` holds anything.
    """
    if len(folders) < 2:
        raise LoomError(f"An average needs at least two checkpoints, not {len(folders)}.")
    if out.exists() and any(out.iterdir()):
        raise LoomError(f"{out} is not empty: choose another --out, or remove it.")
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


def chosen(models: Sequence[Path], last: int | None) -> list[Path]:
    """The checkpoints that are meant: those named, and of each run named its `last` newest ones (None: all).

    Raises `LoomError` for a folder that is neither, or a run with fewer.
    """
    found: list[Path] = []
    for path in models:
        if (path / "model.json").is_file():
            found.append(path)
            continue
        own = checkpoints(path)
        if not own or (last is not None and len(own) < last):
            wanted = "holds no checkpoint" if not own else f"holds {len(own)} checkpoints, not {last}"
            raise LoomError(
                f"{path} {wanted}: name checkpoints, or runs (train.keep says how many they keep)."
            )
        found += own[-last:] if last is not None else own
    return found
