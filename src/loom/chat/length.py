"""Conversations that are longer than a row: split at turns, cut, or dropped, and always counted.

A split conversation's pieces each begin as a conversation does, with its system message if it has one,
and hold whole exchanges. An exchange that is too long by itself is cut at its end; what was cut off
does not count as an answer that ends there, so the end-of-text id after it is not trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from loom.chat.format import Rendered, Renderer, join


@dataclass(frozen=True)
class Fitted:
    """The documents a conversation became (a pair's: chosen, rejected), or why it became none."""

    pieces: tuple[Rendered, ...] = ()
    changes: tuple[str, ...] = ()
    refused: str = ""


def fit_conversation(
    renderer: Renderer, roles: Sequence[str], turns: Sequence[Rendered], length: int, policy: str
) -> Fitted:
    """A conversation's turns as documents of at most `length` ids, each ended by end-of-text."""
    whole = renderer.close(join([renderer.start, *turns]))
    if len(whole) <= length:
        return Fitted((whole,))
    if policy == "drop":
        return Fitted(refused="too long", changes=("dropped",))
    if policy == "truncate":
        return _one(renderer, whole, length)
    head = [renderer.start, *(turns[:1] if roles[0] == "system" else [])]
    rest = turns[1:] if roles[0] == "system" else turns
    exchanges = [join(rest[at : at + 2]) for at in range(0, len(rest), 2)]
    groups: list[list[Rendered]] = []
    for exchange in exchanges:
        longer = [*groups[-1], exchange] if groups else []
        if longer and len(renderer.close(join([*head, *longer]))) <= length:
            groups[-1] = longer
        else:
            groups.append([exchange])
    pieces: list[Rendered] = []
    changes = ["split"] if len(groups) > 1 else []
    for group in groups:
        piece = renderer.close(join([*head, *group]))
        if len(piece) > length:
            cut = truncate(renderer, piece, length)
            changes.append("exchange truncated" if cut is not None else "exchange dropped")
            if cut is None:
                continue
            piece = cut
        pieces.append(piece)
    if not pieces:
        return Fitted(refused="no trained tokens within max_length", changes=tuple(changes))
    return Fitted(tuple(pieces), tuple(changes))


def _one(renderer: Renderer, whole: Rendered, length: int) -> Fitted:
    cut = truncate(renderer, whole, length)
    if cut is None:
        return Fitted(refused="no trained tokens within max_length", changes=("dropped",))
    return Fitted((cut,), ("truncated",))


def truncate(renderer: Renderer, piece: Rendered, length: int) -> Rendered | None:
    """The first `length - 1` ids and an untrained end-of-text; None if no trained id is among them."""
    kept = Rendered(piece.ids[: length - 1], piece.trained[: length - 1])
    return join([kept, renderer.end_of_text]) if kept.trained.any() else None


def fit_pair(renderer: Renderer, turns: Sequence[Rendered], length: int, policy: str) -> Fitted:
    """A pair's two documents: one prompt before both, and only the last answer trained.

    `turns` are the prompt's, the chosen answer's and the rejected one's. The prompt is never cut, so it
    stays the same on both sides.
    """
    *prompt, chosen, rejected = turns
    history = join([renderer.start, *prompt])
    history = Rendered(history.ids, np.zeros_like(history.trained))
    sides = [renderer.close(join([history, answer])) for answer in (chosen, rejected)]
    if max(map(len, sides)) <= length:
        return Fitted(tuple(sides))
    if policy == "drop":
        return Fitted(refused="too long", changes=("dropped",))
    cut = [side if len(side) <= length else truncate(renderer, side, length) for side in sides]
    if any(side is None for side in cut):
        return Fitted(refused="the prompt leaves no room for an answer", changes=("dropped",))
    kept = [side for side in cut if side is not None]
    if np.array_equal(kept[0].ids, kept[1].ids):
        return Fitted(refused="chosen equals rejected once truncated", changes=("dropped",))
    return Fitted(tuple(kept), ("truncated",))
