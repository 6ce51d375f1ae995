"""What `import loom` offers beyond the stages: a model with its tokenizer."""

from __future__ import annotations

from pathlib import Path

import torch

from loom.errors import LoomError
from loom.model.transformer import Transformer
from loom.tokens.tokenizer import Tokenizer
from loom.train.opening import open_model


def load(path: str | Path, dtype: torch.dtype | None = None) -> tuple[Transformer, Tokenizer]:
    """A model and its tokenizer from a run folder, a checkpoint or a Hugging Face folder.

    Weights are on the CPU, in `dtype` or else as they are stored. Raises `LoomError` for a folder that is
    no model, for a damaged one, and for a tokenizer that is not the model's.
    """
    model, folder = open_model(Path(path), dtype)
    tokenizer = Tokenizer.load(folder.path)
    if tokenizer.vocab_size > model.config.vocab_size:
        raise LoomError(
            f"The tokenizer in {folder.path} has {tokenizer.vocab_size:,} entries but the model only "
            f"{model.config.vocab_size:,} rows: it is another model's tokenizer."
        )
    return model, tokenizer
