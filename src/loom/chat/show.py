"""Conversations as the model will see them, with what is trained coloured."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np

from loom.chat.conversations import Conversation, Malformed, Pair
from loom.chat.format import Rendered, Renderer, find_format
from loom.chat.prepare import Prepare, fit, parse
from loom.console import console
from loom.tokens.documents import find
from loom.tokens.tokenizer import Tokenizer

TRAINED = "black on green"
OPEN, CLOSE = "⟦", "⟧"  # around what is trained, where there are no colours


def show_conversations(recipe: Prepare, count: int) -> None:
    """Print the first `count` conversations or pairs of the recipe's input."""
    tokenizer = Tokenizer.load(recipe.tokenizer)
    renderer = Renderer(find_format(recipe.format), tokenizer)
    settings = {"max_length": recipe.max_length, "over_long": recipe.policy}
    items = list(islice(_items(recipe), count))
    for item, fitted in zip(items, fit(renderer, items, settings), strict=True):
        names = ("chosen", "rejected") if isinstance(item, Pair) else ("",) * len(fitted.pieces)
        if fitted.refused:
            console.say(f"{item.id}: {fitted.refused}", style="bold")
        for name, piece in zip(names, fitted.pieces, strict=False):
            trained = int(piece.trained.sum())
            console.say()
            console.say(f"{item.id} {name} ({len(piece):,} tokens, {trained:,} trained)", style="bold")
            print_rendered(tokenizer, piece)


def _items(recipe: Prepare) -> Iterator[Conversation | Pair]:
    for share in recipe.input:
        files, _ = find([share.path], Path())
        for file in files:
            for _, item in parse(file, recipe.objective):
                if not isinstance(item, Malformed):
                    yield item


def print_rendered(tokenizer: Tokenizer, piece: Rendered) -> None:
    """One document; what is trained is coloured on a terminal and in brackets elsewhere."""
    from rich.text import Text

    text = Text()
    colours = console.rich.is_terminal
    for ids, trained in stretches(piece):
        part = tokenizer.decode(ids)
        if trained and not colours:
            part = f"{OPEN}{part}{CLOSE}"
        text.append(part, style=TRAINED if trained else "")
    if not console.quiet:
        console.rich.print(text)


def stretches(piece: Rendered) -> Iterator[tuple[list[int], bool]]:
    """Runs of ids that are all trained, or all not."""
    edges = np.flatnonzero(np.diff(piece.trained)) + 1
    for ids, trained in zip(np.split(piece.ids, edges), np.split(piece.trained, edges), strict=True):
        if len(ids):
            yield ids.tolist(), bool(trained[0])
