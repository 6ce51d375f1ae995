"""Choosing documents by a keyed hash of their id: no random state, the same choice everywhere."""

from __future__ import annotations

import xxhash


def keyed_hash(identity: str, seed: int) -> int:
    """A 64-bit hash of an id under a seed (xxh3)."""
    value: int = xxhash.xxh3_64_intdigest(identity.encode("utf-8", "surrogatepass"), seed=seed)
    return value


def fraction(identity: str, seed: int) -> float:
    """The keyed hash as a number in [0, 1): uniform over ids, independent between seeds."""
    return (keyed_hash(identity, seed) >> 11) / float(1 << 53)
