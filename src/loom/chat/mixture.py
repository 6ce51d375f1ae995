"""A mixture of conversations: how many of each source, decided by keyed hash.

A share takes all its rows, `count` of them, each row `repeat` times, or a `weight` beside the other
shares'. Which rows are taken when not all are, and which are taken once more when `repeat` is no whole
number, is a matter of the hash of their ids: the same rows on every machine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from loom.errors import LoomError


@dataclass(frozen=True)
class Share:
    """One source of a mixture. At most one of `weight`, `count` and `repeat` is given."""

    path: str
    source: str | None = None
    weight: float | None = None
    count: int | None = None
    repeat: float | None = None

    def __post_init__(self) -> None:
        given = [name for name in ("weight", "count", "repeat") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"{self.path} has both {' and '.join(given)}; give one of them")
        if given and getattr(self, given[0]) <= 0:
            raise ValueError(f"{given[0]} of {self.path} is {getattr(self, given[0])}; it must be above 0")

    def is_drawn(self) -> bool:
        """Whether a number of rows is asked for, and not simply all there are."""
        return self.weight is not None or self.count is not None


@dataclass(frozen=True)
class Mixed:
    """Each row is taken `copies` times, and once more if the hash of its id is below `threshold`."""

    copies: int
    threshold: int


@dataclass(frozen=True)
class Hashes:
    """Of the usable rows of a share: `order` decides what is drawn, `prompt` what is held out."""

    order: NDArray[np.uint64]
    prompt: NDArray[np.uint64]


def draw(
    shares: Sequence[Share], total: int | None, held_out: float, read: Callable[[int], Hashes]
) -> tuple[list[Mixed], int]:
    """What each share takes, and the bound below which a prompt's hash means that it is held out.

    With weights, `total` rows are taken over all weighted shares; without it, as many as there are
    without taking any row twice. `read(i)` gives the hashes of share i; it is asked only where they
    matter. `held_out` below 1 is a share of the prompts, else a number of them.
    """
    hashes: dict[int, Hashes] = {}

    def known(index: int) -> Hashes:
        if index not in hashes:
            hashes[index] = read(index)
            if not len(hashes[index].order):
                raise LoomError(f"{shares[index].path} holds no rows that could be taken.")
        return hashes[index]

    weighted = {index: share.weight for index, share in enumerate(shares) if share.weight is not None}
    counts: dict[int, int] = {}
    if weighted:
        whole = sum(weighted.values())
        if total is None:
            total = int(min(len(known(index).order) * whole / weight for index, weight in weighted.items()))
        counts = {index: round(total * weight / whole) for index, weight in weighted.items()}
    mixed = []
    for index, share in enumerate(shares):
        if share.repeat is not None:
            wanted = int(share.repeat) if share.repeat == int(share.repeat) else None
            if wanted is not None:
                mixed.append(Mixed(wanted, 0))
                continue
            counts[index] = round(share.repeat * len(known(index).order))
        if share.count is not None:
            counts[index] = share.count
        taken = _take(known(index).order, counts[index], share.path) if index in counts else Mixed(1, 0)
        mixed.append(taken)
    if held_out < 1:
        return mixed, int(held_out * 2**64)
    prompts = np.unique(np.concatenate([_taken(known(i), m) for i, m in enumerate(mixed)]))
    if held_out >= len(prompts):
        raise LoomError(
            f"{int(held_out):,} prompts are to be held out, and there are {len(prompts):,} in all: hold out "
            f"fewer."
        )
    return mixed, int(prompts[int(held_out)])


def _take(order: NDArray[np.uint64], count: int, path: str) -> Mixed:
    """Exactly `count` rows: every row `copies` times, and those of the smallest hashes once more."""
    copies, extra = divmod(count, len(order))
    if not extra:
        return Mixed(copies, 0)
    ordered = np.sort(order)
    if ordered[extra - 1] == ordered[extra]:
        raise LoomError(
            f"{path} has rows of one and the same id, so that no {count:,} of its {len(order):,} rows can be told "
            f"apart by their ids: give each row an id of its own, or leave the ids out."
        )
    return Mixed(copies, int(ordered[extra]))


def _taken(hashes: Hashes, mixed: Mixed) -> NDArray[np.uint64]:
    if mixed.copies:
        return hashes.prompt
    return hashes.prompt[hashes.order < np.uint64(mixed.threshold)]
