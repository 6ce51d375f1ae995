"""The reading order: which instance training reads at which place, and back.

Pure arithmetic on (token folders, weights, sequence length, seed). Place p of the endless order lies in
epoch p // N; the whole state of a loader is the number of instances seen, so the same batches come on
any number of ranks and a run can go on at another batch size. The inverse tells at which steps an
instance was read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Literal

import numpy as np

from loom.errors import LoomError
from loom.tokens.digest import digest_json
from loom.tokens.permutation import Feistel, Indices, Permutation, Shuffled

OrderKind = Literal["olmo", "constant-memory"]


class EpochOrder:
    """Epoch after epoch over N instances, each epoch in an order of its own."""

    def __init__(self, size: int, seed: int, kind: OrderKind = "olmo") -> None:
        if size < 1:
            raise LoomError(
                "There is no whole instance to read: the data are shorter than data.sequence_length."
            )
        self.size, self.seed, self.kind = size, seed, kind
        self._epoch = lru_cache(maxsize=2)(self._permutation)

    def _permutation(self, epoch: int) -> Permutation:
        return (Shuffled if self.kind == "olmo" else Feistel)(self.size, self.seed + epoch)

    def at(self, places: Indices) -> Indices:
        """Instances [n] at places [n] of the endless order."""
        epochs, positions = np.divmod(places, self.size)
        result = np.empty_like(places)
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            result[chosen] = self._epoch(int(epoch)).at(positions[chosen])
        return result

    def place_of(self, instances: Indices, epoch: int = 0) -> Indices:
        """Places [n] at which instances [n] are read in an epoch."""
        return epoch * self.size + self._epoch(epoch).find(instances)


class Interleave:
    """Which source each place belongs to, at exact proportions and without knowing the length.

    Sources are parted one against the rest: of the first p places the one gets round(p w), the rest
    the others, and so on among the rest. So every prefix is within one instance of its share for each
    parting, and place and source can be computed from each other.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        if not weights or min(weights) <= 0:
            raise LoomError(f"Mixture weights must be positive, not {list(weights)}.")
        shares = [Fraction(str(weight)) for weight in weights]
        # Shares of one against the rest, in units of 2^-20 so that products stay within 64 bits.
        self.units = [round(share / sum(shares[i:]) * (1 << 20)) for i, share in enumerate(shares[:-1])]
        if any(not 0 < unit < 1 << 20 for unit in self.units):
            raise LoomError(
                f"A mixture weight among {list(weights)} is below a millionth of the whole: leave it out."
            )

    @staticmethod
    def _taken(places: Indices, unit: int) -> Indices:
        return (places * unit + (1 << 19)) >> 20

    def split(self, places: Indices) -> tuple[Indices, Indices]:
        """Places [n] -> source numbers [n], and how many places of that source came before [n]."""
        sources = np.full_like(places, len(self.units))
        ranks = places.copy()
        open_ = np.ones(len(places), dtype=bool)
        for source, unit in enumerate(self.units):
            before = self._taken(ranks, unit)
            mine = open_ & (self._taken(ranks + 1, unit) > before)
            sources[mine] = source
            ranks = np.where(mine, before, np.where(open_, ranks - before, ranks))
            open_ &= ~mine
        return sources, ranks

    def place_of(self, source: int, ranks: Indices) -> Indices:
        """The inverse of `split`: the place of the rank-th instance of a source."""
        places = ranks.copy()
        if source < len(self.units):
            # The smallest p with round(p u) = rank + 1, less one.
            unit = self.units[source]
            places = -((-((2 * places + 1) << 19)) // unit) - 1
        for unit in reversed(self.units[:source]):
            rest = (1 << 20) - unit
            places = ((2 * places + 1) << 19) // rest
        return places


@dataclass(frozen=True)
class Extent:
    """The instances of one source: how many of `sequence_length` tokens each shard holds."""

    digest: str
    """Of the source's manifest."""
    path: str
    shard_tokens: tuple[int, ...]
    weight: float = 1.0


class ReadingOrder:
    """Instances of several sources in one order.

    An instance is (source, index); the indices of a source count whole windows of `sequence_length`
    tokens through its shards; a shard's tail is dropped and no window spans two (as in OLMo).
    """

    def __init__(
        self, extents: Sequence[Extent], sequence_length: int, seed: int, kind: OrderKind = "olmo"
    ) -> None:
        self.sequence_length, self.seed, self.kind = sequence_length, seed, kind
        self.extents = tuple(extents)
        self.starts = [
            np.concatenate(([0], np.cumsum([tokens // sequence_length for tokens in extent.shard_tokens])))
            for extent in extents
        ]
        for extent, starts in zip(self.extents, self.starts, strict=True):
            if starts[-1] == 0:
                raise LoomError(
                    f"{extent.path} holds no whole instance of {sequence_length} tokens "
                    f"({sum(extent.shard_tokens):,} tokens in {len(extent.shard_tokens)} shards): shorten "
                    f"data.sequence_length or give more text."
                )
        # A lone source reads exactly OLMo's order; several have a seed each, so equal sizes are not equal orders.
        self.orders = [
            EpochOrder(int(starts[-1]), seed + (1_000_003 * source if source else 0), kind)
            for source, starts in enumerate(self.starts)
        ]
        self.interleave = Interleave([extent.weight for extent in extents])

    @property
    def instances(self) -> int:
        """Of all sources, each once."""
        return sum(order.size for order in self.orders)

    @property
    def fingerprint(self) -> str:
        """Equal for equal orders over equal data: manifests' digests, shard sizes, weights, length, seed, kind."""
        sources = [[e.digest, list(e.shard_tokens), repr(e.weight)] for e in self.extents]
        return digest_json([1, sources, self.sequence_length, self.seed, self.kind])

    def at(self, first: int, last: int) -> tuple[Indices, Indices]:
        """(sources [n], indices [n]) at places [first, last)."""
        sources, ranks = self.interleave.split(np.arange(first, last, dtype=np.int64))
        indices = np.empty_like(ranks)
        for source, order in enumerate(self.orders):
            mine = sources == source
            if mine.any():
                indices[mine] = order.at(ranks[mine])
        return sources, indices

    def place_of(self, source: int, index: int, epoch: int = 0) -> int:
        """The place at which an instance is read in the source's own epoch."""
        ranks = self.orders[source].place_of(np.array([index], dtype=np.int64), epoch)
        return int(self.interleave.place_of(source, ranks)[0])

    def locate(self, source: int, index: int) -> tuple[int, int]:
        """(shard, first token) of an instance."""
        starts = self.starts[source]
        shard = int(np.searchsorted(starts, index, side="right")) - 1
        return shard, int(index - starts[shard]) * self.sequence_length

    def instance_of(self, source: int, shard: int, token: int) -> int | None:
        """The instance that holds a token of a shard; None in a shard's dropped tail."""
        index = int(self.starts[source][shard]) + token // self.sequence_length
        return index if index < self.starts[source][shard + 1] else None


@dataclass(frozen=True)
class Stage:
    """From `step` on, a batch has `batch` instances; `instances_before` were read by earlier steps."""

    step: int
    instances_before: int
    batch: int


def places_of_step(stages: Sequence[Stage], step: int) -> tuple[int, int]:
    """Places [first, last) of the order that step N reads (steps count from 1)."""
    stage = max((s for s in stages if s.step <= step), key=lambda s: s.step)
    first = stage.instances_before + (step - stage.step) * stage.batch
    return first, first + stage.batch


def step_of_place(stages: Sequence[Stage], place: int) -> int:
    """The step that reads a place; the inverse of `places_of_step`."""
    stage = max(
        (s for s in stages if s.instances_before <= place), key=lambda s: (s.instances_before, s.step)
    )
    return stage.step + (place - stage.instances_before) // stage.batch
