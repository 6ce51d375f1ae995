"""The validation loss: held-out documents of a run's own token folders, measured in the loop.

Every token of these documents is predicted, and the end-of-text token after each; a document's first
token follows an end-of-text token. `loom.evals.ngram.baselines` measures the same tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from loom.evals.inloop import InLoop
from loom.evals.perplexity import Document
from loom.evals.text import token_documents
from loom.tokens.shards import open_tokens
from loom.tokens.tokenizer import Tokenizer
from loom.train.config import RunConfig

TOKENS = 60_000  # of held-out text that one evaluation in the loop reads by default
ROWS = 4096  # tokens in a forward

Evaluate = Callable[[torch.nn.Module, int], Mapping[str, float]]


def heldout_documents(tokens: Path, limit: int | None = TOKENS) -> list[Document]:
    """Documents of `tokens`/heldout, no more than `limit` tokens of them: the same ones every time.

    They are taken in the folder's order, a keyed hash of their ids; each source gives its documents in
    turn until its share of the limit is reached, so that none is crowded out.
    """
    documents = token_documents(tokens / "heldout")
    if limit is None:
        return documents
    sources = sorted({document.source for document in documents})
    left = dict.fromkeys(sources, limit // max(1, len(sources)))
    kept = []
    for document in documents:
        if left[document.source] > 0:
            left[document.source] -= len(document.tokens) + 1
            kept.append(document)
    return kept


def heldout_evaluation(config: RunConfig, limit: int | None = TOKENS) -> Evaluate | None:
    """What `loom.train.loop.train` calls as `evaluate`; None where nothing is held out."""
    if config.train.objective != "lm" or config.data.tokens is None:
        return None
    tokens = config.data.tokens
    folders = [Path(tokens)] if isinstance(tokens, str) else [Path(source.path) for source in tokens]
    folders = [folder for folder in folders if (folder / "heldout" / "manifest.json").is_file()]
    if not folders:
        return None
    return Lazy(folders, config.data.sequence_length, limit)


class Lazy:
    """Lays the evaluation out at its first call, when the ranks are there and the model is known."""

    def __init__(self, folders: list[Path], length: int | None, limit: int | None) -> None:
        self.folders, self.length, self.limit = folders, length, limit
        self.evaluation: InLoop | None = None

    def __call__(self, model: torch.nn.Module, step: int) -> Mapping[str, float]:
        if self.evaluation is None:
            documents = [item for folder in self.folders for item in heldout_documents(folder, self.limit)]
            length = self.length or int(model.config.context_length)  # type: ignore[union-attr, arg-type]
            self.evaluation = InLoop(
                Tokenizer.load(open_tokens(self.folders[0]).tokenizer),
                documents=documents,
                length=length,
                rows=max(1, ROWS // length),
            )
        return self.evaluation(model, step)
