"""A model that says one text and nothing else: what it answers is known before it is asked."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch

from loom.model.config import ModelConfig
from loom.model.transformer import Transformer
from loom.tokens.shards import SpecialToken
from loom.tokens.tokenizer import Tokenizer
from loom.train.checkpoint import ModelCard, save_model

WIDTH = 64


def phrase(tokenizer: Tokenizer, text: str, after: str, most: int = 40) -> list[int]:
    """The longest stretch of `text`'s ids, at most `most`, with no id twice and none of `after`'s last."""
    ids = [int(i) for i in tokenizer.encode(text)]
    closed = int(tokenizer.encode(after)[-1])
    best: list[int] = []
    for start in range(len(ids)):
        seen: list[int] = []
        for token in ids[start : start + most]:
            if token in seen or token == closed or "\n" in tokenizer.decode([token]):
                break
            seen.append(token)
        best = max(best, seen, key=len)
    return best


def parrot(
    folder: Path,
    tokenizer: Tokenizer,
    says: Sequence[int],
    after: str,
    context: int = 256,
    endless: bool = False,
) -> Path:
    """A checkpoint that says `says`, then ends, after a prompt that ends with `after`; `endless`: over and over.

    Attention and MLP add nothing; the head names the token that follows the one just read.
    """
    first = int(tokenizer.encode(after)[-1])
    chain = [first, *says]
    assert len({*chain, tokenizer.eos_id}) == len(chain) + 1 <= WIDTH
    chain.append(says[0] if endless else tokenizer.eos_id)
    config = ModelConfig(WIDTH, 1, 2, 32, 128 * -(-tokenizer.vocab_size // 128), context)
    model = Transformer(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        for place, (token, following) in enumerate(pairwise(chain)):
            model.embed.weight[token, place] = 1.0
            model.head.weight[following, place] = 9.0
    card = ModelCard(
        config,
        SpecialToken(tokenizer.eos_id, tokenizer.eos_token),
        SpecialToken(tokenizer.pad_id, tokenizer.pad_token),
        tokenizer.vocab_size,
    )
    return save_model(folder, model, card, Path(tokenizer.name))
