"""Permutations of 0..N-1 in which training reads its instances, each with its inverse."""

from __future__ import annotations

import hashlib
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from loom.tokens.once import shared_array

Indices = npt.NDArray[np.int64]


class Permutation(Protocol):
    """`at` gives the instances at positions, `find` the positions of instances; arrays of int64."""

    def at(self, positions: Indices) -> Indices: ...

    def find(self, instances: Indices) -> Indices: ...


class Shuffled:
    """OLMo's order: NumPy's Fisher-Yates under PCG64 seeded with seed + epoch (OLMo, iterable_dataset.py).

    Takes 4 bytes an instance, 8 beyond 2^32: in memory while that is little, else in a file that the
    processes of a node share.
    """

    WIDE = 1 << 32
    SHARED = 1 << 20  # instances from which a node's ranks share one copy

    def __init__(self, size: int, seed: int) -> None:
        self.size, self.seed = size, seed
        name = f"order-{size}-{seed}"
        self.order = self._shuffle() if size < self.SHARED else shared_array(name, self._shuffle)
        self._inverse: npt.NDArray[Any] | None = None

    def _shuffle(self) -> npt.NDArray[Any]:
        order = np.arange(self.size, dtype=np.uint32 if self.size <= self.WIDE else np.uint64)
        np.random.Generator(np.random.PCG64(seed=self.seed)).shuffle(order)
        return order

    def at(self, positions: Indices) -> Indices:
        return np.asarray(self.order[positions], dtype=np.int64)

    def find(self, instances: Indices) -> Indices:
        if self._inverse is None:
            inverse = np.empty_like(self.order)
            inverse[self.order] = np.arange(len(self.order), dtype=self.order.dtype)
            self._inverse = inverse
        found: Indices = self._inverse[instances].astype(np.int64)
        return found


class Feistel:
    """A keyed permutation in constant memory: four Feistel rounds on the next even power of two, walked
    until the value falls below N (Black and Rogaway 2002, cycle walking; under four walks on average)."""

    ROUNDS = 4

    def __init__(self, size: int, seed: int) -> None:
        self.size = size
        self.half = np.uint64(max(1, -(-max(1, (size - 1).bit_length()) // 2)))
        self.low = np.uint64((1 << int(self.half)) - 1)
        key = hashlib.sha256(f"feistel:{seed}".encode()).digest()
        self.keys = np.frombuffer(key, dtype="<u8")[: self.ROUNDS]

    def _mix(self, values: npt.NDArray[np.uint64], key: np.uint64) -> npt.NDArray[np.uint64]:
        # SplitMix64's finaliser (Steele et al. 2014).
        mixed = (values + key) * np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return (mixed ^ (mixed >> np.uint64(31))) & self.low

    def _forward(self, values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        left, right = values >> self.half, values & self.low
        for key in self.keys:
            left, right = right, left ^ self._mix(right, key)
        return (left << self.half) | right

    def _backward(self, values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        left, right = values >> self.half, values & self.low
        for key in self.keys[::-1]:
            left, right = right ^ self._mix(left, key), left
        return (left << self.half) | right

    def at(self, positions: Indices) -> Indices:
        return self._walk(positions, self._forward)

    def find(self, instances: Indices) -> Indices:
        return self._walk(instances, self._backward)

    def _walk(self, values: Indices, step) -> Indices:  # type: ignore[no-untyped-def]
        with np.errstate(over="ignore"):
            result = step(values.astype(np.uint64))
            while (outside := result >= self.size).any():
                result[outside] = step(result[outside])
        return np.asarray(result, dtype=np.int64)
