"""fastText models read from their files and asked in batches, without the GIL and without a call a text.

The file is fastText's own, .bin or quantised .ftz (version 12). Scores agree with fastText's to rounding: it
sums in 32 bits, this in 64.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from loom.corpus import batch
from loom.errors import LoomError

MAGIC, VERSION = 793712314, 12
HIERARCHICAL, SOFTMAX = 1, 3
LABEL = b"__label__"
CENTROIDS = 256
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Model:
    """Labels in the file's order, input and output matrices, and what features need."""

    labels: tuple[str, ...]
    counts: npt.NDArray[np.int64]
    matrix: npt.NDArray[np.float32]
    output: npt.NDArray[np.float32]
    words: int
    word_ids: Any
    word_keys: Any
    end_row: int
    buckets: int
    shortest: int
    longest: int
    word_ngrams: int
    kept: npt.NDArray[np.uint64]
    loss: int

    def column(self, name: str) -> int:
        """The place of a label by its name, with or without the prefix."""
        return self.labels.index(name if name.startswith("__label__") else f"__label__{name}")

    def scores(self, data: Any, offsets: Any) -> Floats:
        """Every label's score of every text, float64[n, labels]; 0 where fastText would not name the label."""
        from loom.corpus.kernels import fasttext as kernels

        hidden = kernels.hidden(
            data, offsets, self.matrix, self.words, self.word_ids, self.word_keys, self.end_row, self.buckets,
            self.shortest, self.longest, self.word_ngrams, self.kept, np.frombuffer(LABEL, np.uint8),
            *self._words(),
        )  # fmt: skip
        outputs = hidden @ self.output.T.astype(np.float64)
        if self.loss == SOFTMAX:
            outputs = np.exp(outputs - outputs.max(axis=1, keepdims=True))
            shares: Floats = outputs / outputs.sum(axis=1, keepdims=True) + kernels.LEAST
            return shares
        size = len(self.labels)
        right = 1.0 / (1.0 + np.exp(-outputs.T))
        reached = np.ones((2 * size - 1, offsets.size - 1))  # every node of the tree, the root last
        for node in range(2 * size - 3, -1, -1):
            above, goes_right = self._tree[node]
            share = right[above - size] if goes_right else 1.0 - right[above - size]
            np.multiply(reached[above], share + kernels.LEAST, out=reached[node])
        found = reached[:size]
        found[found < kernels.LEAST] = 0.0
        return found.T

    def _words(self) -> tuple[Any, ...]:
        """This thread's cache of words."""
        from loom.corpus.kernels import fasttext as kernels

        held = _of_thread.__dict__
        key = f"words of {id(self.matrix)}"
        if key not in held:
            held[key] = (self.matrix, kernels.word_cache(self.matrix.shape[1]))
        found: tuple[Any, ...] = held[key][1]
        return found

    @cached_property
    def _tree(self) -> list[tuple[int, bool]]:
        """The Huffman tree: every node's parent, and whether it goes right there; labels come first."""
        size = len(self.labels)
        count = [*self.counts.tolist(), *[10**15] * (size - 1)]
        parent, right = [-1] * (2 * size - 1), [False] * (2 * size - 1)
        leaf, node = size - 1, size
        for inner in range(size, 2 * size - 1):
            pair = []
            for _ in range(2):
                if leaf >= 0 and count[leaf] < count[node]:
                    pair.append(leaf)
                    leaf -= 1
                else:
                    pair.append(node)
                    node += 1
            count[inner] = count[pair[0]] + count[pair[1]]
            parent[pair[0]] = parent[pair[1]] = inner
            right[pair[1]] = True
        return list(zip(parent, right, strict=True))


_of_thread = threading.local()


def utf8(texts: Sequence[str]) -> tuple[Any, Any]:
    """Texts as (bytes, offsets)."""
    return batch.utf8(pa.chunked_array([pa.array(texts, pa.large_string())]))


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, form: str) -> tuple[Any, ...]:
        values = struct.unpack_from("<" + form, self.data, self.at)
        self.at += struct.calcsize("<" + form)
        return values

    def array(self, kind: str, count: int) -> Any:
        out = np.frombuffer(self.data, np.dtype(kind), count, self.at)
        self.at += out.nbytes
        return out

    def matrix(self, quantised: bool) -> npt.NDArray[np.float32]:
        if not quantised:
            rows, columns = self.take("qq")
            out: npt.NDArray[np.float32] = self.array("<f4", rows * columns).reshape(rows, columns)
            return out
        (normed,) = self.take("?")
        rows, columns = self.take("qq")
        (size,) = self.take("i")
        codes = self.array("u1", size)
        parts = self._quantiser()
        made = np.concatenate(
            [centroids[codes[index :: len(parts)]] for index, centroids in enumerate(parts)], axis=1
        )
        if normed:
            norms = self.array("u1", rows)
            made = made * self._quantiser()[0][norms]
        return np.ascontiguousarray(made, np.float32)

    def _quantiser(self) -> list[Any]:
        """The centroids of every part of a vector: float32[256, numbers of the part]."""
        dim, parts, width, last = self.take("iiii")
        held = self.array("<f4", dim * CENTROIDS)
        out = []
        for index in range(parts):
            start, own = index * CENTROIDS * width, last if index == parts - 1 else width
            out.append(held[start : start + CENTROIDS * own].reshape(CENTROIDS, own))
        return out


_LOADING = threading.Lock()


def load(path: Path) -> Model:
    """Read a model, once a process. Raises `LoomError` for a file that is none, or of a kind not read here."""
    with _LOADING:  # workers that start together wait for one of them
        return _loaded(path)


@cache
def _loaded(path: Path) -> Model:
    from loom.corpus.kernels import fasttext as kernels

    reader = _Reader(path.read_bytes())
    try:
        if reader.take("ii") != (MAGIC, VERSION):
            raise LoomError(f"{path} is no fastText model of version {VERSION}.")
        _, _, _, _, _, word_ngrams, loss, _, buckets, shortest, longest, _, _ = reader.take("12id")
        size, words, _, _, pruned = reader.take("iiiqq")
        names: list[bytes] = []
        counts: list[int] = []
        for _ in range(size):
            stop = reader.data.index(b"\0", reader.at)
            names.append(reader.data[reader.at : stop])
            reader.at = stop + 1
            counts.append(reader.take("qb")[0])
        pairs = reader.array("<i4", 2 * max(pruned, 0)).reshape(-1, 2)
        (quantised,) = reader.take("?")
        matrix = reader.matrix(quantised)
        (output_too,) = reader.take("?")
        output = reader.matrix(quantised and output_too)
    except (struct.error, ValueError) as error:
        raise LoomError(f"{path} is no fastText model, or was cut short ({error}).") from None
    if loss not in (HIERARCHICAL, SOFTMAX):
        raise LoomError(f"{path} was trained with a loss that is not read here; softmax and hs are.")
    held = b"".join(names[:words])
    ends = np.cumsum([0, *map(len, names[:words])])
    data = np.frombuffer(held or b"\0", np.uint8)
    word_ids, word_keys = kernels.table(kernels.word_keys(data, ends))
    kept = np.zeros((max(buckets, 1) // 64 + 1 if pruned >= 0 else 0, 2), np.uint64)
    if pruned >= 0:  # the rows of the buckets that were kept, in the order of the buckets
        order = np.argsort(pairs[:, 0])
        matrix = np.concatenate([matrix[:words], matrix[words:][pairs[order, 1]]])
        np.bitwise_or.at(kept[:, 0], pairs[:, 0] >> 6, np.uint64(1) << (pairs[:, 0] & 63).astype(np.uint64))
        per_word = np.bincount(pairs[:, 0] >> 6, minlength=kept.shape[0])
        kept[:, 1] = np.cumsum(per_word) - per_word
    return Model(
        tuple(name.decode() for name in names[words:]), np.array(counts[words:]), matrix, output, words,
        word_ids, word_keys, names.index(b"</s>") if b"</s>" in names[:words] else -1, max(buckets, 1), shortest,
        longest, word_ngrams, kept, loss,
    )  # fmt: skip
