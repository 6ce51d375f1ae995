"""Texts to tokens for the scorer, by the harness's rule.

A context's trailing spaces move to the continuation (a chat prompt's newline stays where it is);
context and continuation are encoded together and cut where the context's own encoding ends
(lm-evaluation-harness, `TemplateLM._encode_pair`). There is no token before the text, except before an
empty context and a chat prompt: the end-of-text token. Models of other families may read more (`Opening`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from loom.errors import LoomError
from loom.tasks.item import Item
from loom.tokens.tokenizer import Tokenizer


@dataclass(frozen=True)
class Pair:
    """Token ids of a context (at least one) and of its continuation."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]


@dataclass(frozen=True)
class Opening:
    """What a model of another family reads before a text, as lm-evaluation-harness has it: `always` before each (the
    BOS that its tokenizer adds by itself), `empty` before an empty context, a chat prompt and a document (its BOS, if
    it has one). Loom's own read nothing and the end-of-text token."""

    always: tuple[int, ...] = ()
    empty: int | None = None

    def note(self, tokenizer: Tokenizer) -> str:
        token = "end of text" if self.empty is None else tokenizer.decode([self.empty])
        if self.always:
            return f"{token} before every text"
        return f"{token} before an empty context, a chat prompt and a document; nothing otherwise"


PLAIN = Opening()


def encode_items(
    items: Sequence[Item], tokenizer: Tokenizer, opening: Opening = PLAIN
) -> tuple[list[list[Pair]], list[list[Pair]]]:
    """For each item its pairs, and the pairs of its unconditioned context (none without one)."""
    conditioned = [[(item.chat, *pair) for pair in item.pairs] for item in items]
    free = [
        []
        if item.unconditioned is None
        else [(False, item.unconditioned, continuation) for _, continuation in item.pairs]
        for item in items
    ]
    encoded = iter(encode_pairs([pair for group in conditioned + free for pair in group], tokenizer, opening))
    take = [[next(encoded) for _ in group] for group in conditioned + free]
    return take[: len(items)], take[len(items) :]


def encode_pairs(
    pairs: Sequence[tuple[bool, str, str]], tokenizer: Tokenizer, opening: Opening = PLAIN
) -> list[Pair]:
    """(a chat prompt, context, continuation) -> ids; every distinct text is encoded once."""
    moved = [
        (first, context, continuation) if first else (first, *_move_spaces(context, continuation))
        for first, context, continuation in pairs
    ]
    texts = dict.fromkeys(text for _, context, rest in moved for text in (context, context + rest) if text)
    ids = dict(zip(texts, encode_texts(list(texts), tokenizer), strict=True))
    empty = tokenizer.eos_id if opening.empty is None else opening.empty
    return [_cut(first, context, rest, ids, empty, opening.always) for first, context, rest in moved]


def encode_texts(texts: Sequence[str], tokenizer: Tokenizer) -> list[list[int]]:
    batch = tokenizer.encode_batch(texts, parallel=len(texts) > 100)
    return [batch[index].tolist() for index in range(len(texts))]


def _move_spaces(context: str, continuation: str) -> tuple[str, str]:
    kept = context.rstrip()
    return kept, context[len(kept) :] + continuation


def _cut(
    first: bool, context: str, rest: str, ids: dict[str, list[int]], empty: int, always: tuple[int, ...]
) -> Pair:
    before = ids[context] if context else []
    after = ids[context + rest][len(before) :]
    if not after:
        raise LoomError(
            f"The continuation {rest[:60]!r} has no tokens of its own after {context[-60:]!r} in this "
            f"tokenizer, so it cannot be scored. Mend the row, or take it out of the file."
        )
    opened = (empty,) if first or not before else always
    return Pair((*opened, *before), tuple(after))
