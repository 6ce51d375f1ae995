"""What partial results are made of. Each merges with its like, is exact while memory allows, and then says
by how much it may be wrong.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from loom.survey import kernels
from loom.survey.kernels import COUNT, HLL_BITS, KEY

Table = npt.NDArray[np.uint64]
LOAD = 0.7  # a table is made larger, or purged, beyond this share of its slots
SMALLEST = 1 << 12
DOOR_BYTES = 1 << 21
SWEEPS = 64
SAMPLED = 1 << 14  # keys of the sample of distinct ones


def empty(slots: int) -> Table:
    """A table of free slots, none of which lies across two cache lines."""
    room = np.zeros(slots * 4 + 8, np.uint64)
    first = -room.ctypes.data % 64 // 8
    return room[first : first + slots * 4].reshape(slots, 4)


def by_place(rows: Table) -> Table:
    return rows[np.lexsort((rows[:, KEY], rows[:, kernels.AT], rows[:, kernels.WHERE]))]


def first_seen(rows: Table, k: int) -> Table:
    """The `k` rows of the first places."""
    where = rows[:, kernels.WHERE]
    if len(rows) > k:
        rows = rows[where <= np.partition(where, k - 1)[k - 1]]
    return by_place(rows)[:k]


@dataclass
class Counts:
    """Counts by 64-bit key with each key's first place.

    Exact while there are at most `most` keys. Then keys of the smallest counts are dropped, at least half
    of them; a count is never too high and at most `missed` too low, and a key that is not there was seen
    at most `missed` times. (The purge of Misra and Gries 1982, without its subtraction.) From the first
    purge on n-grams come through a door that lets a key in when it is seen again (Einziger and Friedman
    2014); whenever the door is cleared a key may have lost one occurrence more.
    """

    most: int = 1 << 20
    table: Table = field(default_factory=lambda: empty(SMALLEST))
    used: int = 0
    missed: int = 0
    door: npt.NDArray[np.uint8] = field(default_factory=lambda: np.zeros(0, np.uint8))
    met: int = 0  # bits of the door that are set

    @property
    def exact(self) -> bool:
        return self.missed == 0

    def room(self) -> int:
        """How many new keys fit before `make_room` is needed; at least one after it was called."""
        return min(int(len(self.table) * LOAD), self.most) - self.used

    def make_room(self) -> None:
        if self.used < self.most:
            self._grow(len(self.table) * 2)
            return
        threshold = int(kernels.median_count(self.table, self.used))
        if threshold == 0:
            counts = self.table[:, COUNT]
            threshold = int(np.partition(counts[counts > 0], self.used // 2)[self.used // 2])
        self.missed += threshold
        self.used = int(kernels.purge_here(self.table, np.uint64(threshold)))

    def door_room(self) -> int:
        """How many keys more the door may meet for the first time: beyond, too many would share a bit."""
        return len(self.door) * 2 - self.met if len(self.door) else 1

    def shut_out_single_ones(self) -> None:
        """Put up the door, or clear it."""
        self.door = np.zeros(DOOR_BYTES, np.uint8)
        self.met = 0
        self.missed += 1

    def _grow(self, slots: int) -> None:
        table = empty(slots)
        self.used = int(kernels.purge(self.table, np.uint64(0), table))
        self.table = table

    def add_rows(self, rows: Table) -> None:
        """Add rows [n, 4] of key, count, where and at."""
        first = 0
        while first < len(rows):
            if self.room() < 1:
                self.make_room()
            first, new = kernels.add_rows(self.table, rows, self.room(), first)
            self.used += new

    def add(self, keys: npt.NDArray[np.uint64], where: npt.NDArray[np.uint64]) -> None:
        """Count each key once, first seen at `where`."""
        rows = np.zeros((len(keys), 4), np.uint64)
        rows[:, KEY], rows[:, COUNT], rows[:, kernels.WHERE] = keys, 1, where
        self.add_rows(rows)

    def merge(self, other: Counts) -> None:
        if len(self.table) < len(other.table):  # keys in a table's order crowd together in a smaller one
            self._grow(len(other.table))
        rows = other.table[other.table[:, COUNT] > 0]
        # And in one of its size where there is room for some: so they come in several sweeps over all slots.
        self.add_rows(np.concatenate([rows[start::SWEEPS] for start in range(SWEEPS)]))
        self.missed += other.missed

    def rows(self) -> Table:
        """The keys there are, [n, 4], in order of their first place."""
        return by_place(self.table[self.table[:, COUNT] > 0])

    def largest(self, k: int, least: int = 1) -> Table:
        """The `k` keys of the highest counts; of equal ones the first seen."""
        return self._ranked(k, least, -1)

    def smallest(self, k: int) -> Table:
        """The `k` keys of the lowest counts; of equal ones the first seen. Meaningful while exact."""
        return self._ranked(k, 1, 1)

    def _ranked(self, k: int, least: int, sign: int) -> Table:
        counts = self.table[:, COUNT].astype(np.int64) * sign
        known = np.abs(counts) >= least
        if int(known.sum()) > k:
            bar = int(np.partition(counts[known], k - 1)[k - 1])
            better, ties = self.table[known & (counts < bar)], self.table[known & (counts == bar)]
            rows = np.concatenate((by_place(better), first_seen(ties, k - len(better))))
        else:
            rows = by_place(self.table[known])
        return rows[np.argsort(rows[:, COUNT].astype(np.int64) * sign, kind="stable")]

    def dump(self) -> dict[str, npt.NDArray[Any]]:
        return {"rows": self.table[self.table[:, COUNT] > 0], "numbers": np.array([self.most, self.missed])}

    @staticmethod
    def load(parts: dict[str, npt.NDArray[Any]]) -> Counts:
        rows, slots = parts["rows"], SMALLEST
        while slots * LOAD <= len(rows):
            slots *= 2
        counts = Counts(int(parts["numbers"][0]), empty(slots), missed=int(parts["numbers"][1]))
        counts.add_rows(rows)
        return counts


@dataclass
class Sample:
    """A uniform sample of distinct keys, with exact counts: those whose hash lies below a falling bar."""

    table: Table = field(default_factory=lambda: empty(SAMPLED * 2))
    low: int = 1 << 64  # keys below it are kept
    used: int = 0

    @property
    def bar(self) -> np.uint64:
        return np.uint64(min(self.low, (1 << 64) - 1))

    def room(self) -> int:
        return SAMPLED - self.used

    def make_room(self) -> None:
        self.keep_below(self.low // 2)

    def keep_below(self, low: int) -> None:
        if low >= self.low:
            return
        table = empty(len(self.table))
        self.low = low
        self.used = int(kernels.keep_low(self.table, self.bar, table))
        self.table = table

    def add_rows(self, rows: Table) -> None:
        rows = rows[rows[:, KEY] < self.bar] if self.low < 1 << 64 else rows
        first = 0
        while first < len(rows):
            if self.room() < 1:
                self.make_room()
                rows = rows[first:][rows[first:, KEY] < self.bar]
                first = 0
                continue
            first, new = kernels.add_rows(self.table, rows, self.room(), first)
            self.used += new

    def merge(self, other: Sample) -> None:
        self.keep_below(min(self.low, other.low))
        self.add_rows(other.rows())

    def rows(self) -> Table:
        return by_place(self.table[self.table[:, COUNT] > 0])

    @property
    def share(self) -> float:
        """The share of all distinct keys that the sample holds."""
        return self.low / (1 << 64)

    def dump(self) -> dict[str, npt.NDArray[Any]]:
        low = np.array([self.low >> 32, self.low & 0xFFFFFFFF], np.uint64)
        return {"rows": self.rows(), "low": low}

    @staticmethod
    def load(parts: dict[str, npt.NDArray[Any]]) -> Sample:
        high, rest = (int(value) for value in parts["low"])
        sample = Sample(low=(high << 32) | rest)
        sample.add_rows(parts["rows"])
        return sample


@dataclass
class Distinct:
    """HyperLogLog over 2^14 registers: a standard error of 1.04 / 2^7, 0.8 %. (Flajolet et al. 2007.)"""

    registers: npt.NDArray[np.uint8] = field(default_factory=lambda: np.zeros(1 << HLL_BITS, np.uint8))

    ERROR = 1.04 / math.sqrt(1 << HLL_BITS)

    def estimate(self) -> float:
        """With linear counting where few registers are set, as the paper does."""
        m = len(self.registers)
        raw = 0.7213 / (1 + 1.079 / m) * m * m / float(np.sum(2.0 ** -self.registers.astype(np.float64)))
        zeros = int((self.registers == 0).sum())
        return m * math.log(m / zeros) if raw <= 2.5 * m and zeros else raw

    def merge(self, other: Distinct) -> None:
        np.maximum(self.registers, other.registers, out=self.registers)

    def dump(self) -> dict[str, npt.NDArray[Any]]:
        return {"registers": self.registers}

    @staticmethod
    def load(parts: dict[str, npt.NDArray[Any]]) -> Distinct:
        return Distinct(parts["registers"].copy())


@dataclass
class Tally:
    """Rows of whole numbers by name, summed. Beyond `most` names those of the smallest first number go.

    `missed` bounds, as for `Counts`, what a name's first number may lack.
    """

    width: int = 1
    most: int = 1 << 18
    values: dict[str, list[int]] = field(default_factory=dict)
    missed: int = 0

    def add(self, name: str, *amounts: int) -> None:
        row = self.values.get(name)
        if row is None:
            self.values[name] = list(amounts)
            if len(self.values) > self.most:
                self._purge()
        else:
            for column, amount in enumerate(amounts):
                row[column] += amount

    def _purge(self) -> None:
        firsts = sorted(row[0] for row in self.values.values())
        threshold = firsts[len(firsts) // 2]
        self.missed += threshold
        self.values = {name: row for name, row in self.values.items() if row[0] > threshold}

    def merge(self, other: Tally) -> None:
        for name, row in other.values.items():
            self.add(name, *row)
        self.missed += other.missed

    def total(self, column: int = 0) -> int:
        return sum(row[column] for row in self.values.values())

    def ranked(self, k: int | None = None, column: int = 0) -> list[tuple[str, list[int]]]:
        """Names by a number, highest first, of equal ones in alphabetical order."""
        items = sorted(self.values.items(), key=lambda item: (-item[1][column], item[0]))
        return items if k is None else items[:k]

    def dump(self) -> dict[str, Any]:
        return {"width": self.width, "most": self.most, "missed": self.missed, "values": self.values}

    @staticmethod
    def load(parts: dict[str, Any]) -> Tally:
        return Tally(parts["width"], parts["most"], dict(parts["values"]), parts["missed"])


@dataclass
class Extremes:
    """The smallest and the largest of a number, with their documents' ids; of equal ones the first."""

    low: tuple[int, int, str] | None = None  # number, where, id
    high: tuple[int, int, str] | None = None

    def add(self, number: int, where: int, identity: str) -> None:
        entry = (number, where, identity)
        if self.low is None or (number, where) < self.low[:2]:
            self.low = entry
        if self.high is None or (-number, where) < (-self.high[0], self.high[1]):
            self.high = entry

    def merge(self, other: Extremes) -> None:
        for entry in (other.low, other.high):
            if entry is not None:
                self.add(*entry)

    def dump(self) -> dict[str, Any]:
        return {"low": self.low, "high": self.high}

    @staticmethod
    def load(parts: dict[str, Any]) -> Extremes:
        low, high = parts["low"], parts["high"]
        return Extremes(tuple(low) if low else None, tuple(high) if high else None)


@dataclass
class Flags:
    """A bit for each of a known list of things: whether it was seen."""

    seen: npt.NDArray[np.uint8]

    def merge(self, other: Flags) -> None:
        np.maximum(self.seen, other.seen, out=self.seen)

    def dump(self) -> dict[str, npt.NDArray[Any]]:
        return {"seen": self.seen}

    @staticmethod
    def load(parts: dict[str, npt.NDArray[Any]]) -> Flags:
        return Flags(parts["seen"].copy())


@dataclass
class First:
    """The first few entries by place: [where, anything that is JSON]."""

    most: int = 20
    entries: list[list[Any]] = field(default_factory=list)

    def add(self, where: int, value: Any) -> None:
        self.entries.append([where, value])
        if len(self.entries) > 4 * self.most:
            self._cut()

    def _cut(self) -> None:
        self.entries = sorted(self.entries, key=lambda entry: entry[0])[: self.most]

    def merge(self, other: First) -> None:
        self.entries += other.entries
        self._cut()

    def dump(self) -> dict[str, Any]:
        self._cut()
        return {"most": self.most, "entries": self.entries}

    @staticmethod
    def load(parts: dict[str, Any]) -> First:
        return First(parts["most"], parts["entries"])


Component = Counts | Sample | Distinct | Tally | Extremes | Flags | First
KINDS: dict[str, type[Any]] = {
    kind.__name__: kind for kind in (Counts, Sample, Distinct, Tally, Extremes, Flags, First)
}
Partial = dict[str, Component]
