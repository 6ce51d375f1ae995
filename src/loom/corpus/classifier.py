"""Training a fastText classifier: labelled lines in, a `.bin` out that fastText itself loads.

The model is fastText's supervised one (Joulin et al. 2016, arXiv:1607.01759): the mean of the vectors of
words and hashed word n-grams, then a softmax over labels. It is trained here rather than by the fastText
package, whose wheel takes the place of the one that predicts, and whose threads give another model each
time: with one thread and a seed, equal work is equal bytes. The file is fastText's version 12.
"""

from __future__ import annotations

import re
import struct
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from loom.artifact import atomic_write
from loom.console import console
from loom.corpus.documents import read_lines
from loom.errors import LoomError

MAGIC, VERSION = 793712314, 12
SOFTMAX, SUPERVISED = 3, 3
END = b"</s>"
LABEL = b"__label__"
SPACES = re.compile(rb"[ \t\n\v\f\r\0]+")
NGRAM_PRIME = 116049371


@dataclass(frozen=True)
class Training:
    """fastText's settings under its names; `bucket` counts the rows that word n-grams share by hash."""

    input: tuple[str, ...]
    dim: int = 16
    epoch: int = 5
    lr: float = 0.5
    word_ngrams: int = 2
    min_count: int = 1
    bucket: int = 1 << 18
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("dim", "epoch", "word_ngrams", "min_count"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1")
        if self.word_ngrams > 1 and self.bucket < 1:
            raise ValueError("bucket must be at least 1 where word_ngrams is above 1")


@dataclass(frozen=True)
class Example:
    """A line: its label and its words."""

    label: bytes
    words: list[bytes]


def read_examples(paths: Iterable[Path]) -> list[Example]:
    """Lines `__label__NAME words ...`; the first label counts. Raises `LoomError` for a line without one."""
    examples = []
    for path in paths:
        for number, line in enumerate(read_lines(path), 1):
            tokens = [token for token in SPACES.split(line) if token]
            if not tokens:
                continue
            labels = [token for token in tokens if token.startswith(LABEL)]
            if not labels:
                raise LoomError(
                    f"{path}, line {number:,}, has no label. Lines look like: __label__toxic the words of the text"
                )
            examples.append(Example(labels[0], [token for token in tokens if not token.startswith(LABEL)]))
    return examples


def fnv(token: bytes) -> int:
    """fastText's hash of a word, 32 bits: FNV-1a over signed bytes."""
    value = 2166136261
    for byte in token:
        value = ((value ^ (byte | 0xFFFFFF00 if byte > 127 else byte)) * 16777619) & 0xFFFFFFFF
    return value


class Vocabulary:
    """Words and labels by falling count, as fastText numbers them."""

    def __init__(self, examples: Sequence[Example], recipe: Training) -> None:
        words: Counter[bytes] = Counter()
        labels: Counter[bytes] = Counter()
        for example in examples:
            words.update(example.words)
            words[END] += 1
            labels[example.label] += 1
        self.tokens = words.total() + labels.total()
        self.words = [(word, n) for word, n in words.most_common() if n >= recipe.min_count]
        self.labels = labels.most_common()
        self.number = {word: index for index, (word, _) in enumerate(self.words)}
        self.label_number = {label: index for index, (label, _) in enumerate(self.labels)}
        self.bucket = recipe.bucket if recipe.word_ngrams > 1 else 0
        self.ngrams = recipe.word_ngrams
        self.hashes: dict[bytes, int] = {}

    def features(self, words: Sequence[bytes]) -> list[int]:
        """A line's rows: its known words, the line's end, and its word n-grams by hash."""
        line = [*words, END]
        found = [self.number[word] for word in line if word in self.number]
        if self.ngrams > 1:
            signed = [self._signed(word) for word in line]
            for start in range(len(signed)):
                value = signed[start] & 0xFFFFFFFFFFFFFFFF
                for after in signed[start + 1 : start + self.ngrams]:
                    value = (value * NGRAM_PRIME + after) & 0xFFFFFFFFFFFFFFFF
                    found.append(len(self.words) + value % self.bucket)
        return found

    def _signed(self, word: bytes) -> int:
        if word not in self.hashes:
            value = fnv(word)
            self.hashes[word] = value - (1 << 32) if value >= 1 << 31 else value
        return self.hashes[word]


@dataclass(frozen=True)
class Trained:
    """What training ended with: the mean loss of the last epoch and the share of lines it labels rightly."""

    lines: int
    labels: dict[str, int]
    words: int
    loss: float
    accuracy: float


def train(recipe: Training, out: Path) -> Trained:
    """Train on the labelled lines of `recipe.input` and write fastText's `.bin` to `out`.

    Raises `LoomError` for a line without label, and unless there are two labels.
    """
    from loom.corpus.kernels.classifier import epoch

    for name in recipe.input:
        if not Path(name).is_file():
            raise LoomError(f"There is no file {name}.")
    examples = read_examples(map(Path, recipe.input))
    vocabulary = Vocabulary(examples, recipe)
    if len(vocabulary.labels) < 2:
        raise LoomError(f"{', '.join(recipe.input)}: a classifier needs two labels or more.")
    lists = [vocabulary.features(example.words) for example in examples]
    offsets = np.concatenate([[0], np.cumsum([len(found) for found in lists])]).astype(np.int64)
    features = np.fromiter((row for found in lists for row in found), np.int64, int(offsets[-1]))
    targets = np.array([vocabulary.label_number[example.label] for example in examples], np.int64)
    random = np.random.Generator(np.random.PCG64(recipe.seed))
    shape = (len(vocabulary.words) + vocabulary.bucket, recipe.dim)
    rows = random.uniform(-1 / recipe.dim, 1 / recipe.dim, shape).astype(np.float32)
    weights = np.zeros((len(vocabulary.labels), recipe.dim), np.float32)
    seen, total, loss = 0, float(recipe.epoch * features.size), 0.0
    with console.progress("train", total=recipe.epoch) as progress:
        for _ in range(recipe.epoch):
            order = random.permutation(len(examples))
            loss, seen = epoch(features, offsets, targets, order, rows, weights, recipe.lr, seen, total)
            progress.advance()
    with atomic_write(out) as stream:
        _write(stream, recipe, vocabulary, rows, weights)
    right = _predicted(features, offsets, rows, weights) == targets
    return Trained(
        len(examples),
        {label.removeprefix(LABEL).decode(errors="replace"): count for label, count in vocabulary.labels},
        len(vocabulary.words),
        loss / len(examples),
        float(right.mean()),
    )


def _predicted(features: Any, offsets: Any, rows: Any, weights: Any) -> npt.NDArray[np.int64]:
    out = np.empty(offsets.size - 1, np.int64)
    for example in range(out.size):
        hidden = rows[features[offsets[example] : offsets[example + 1]]].mean(axis=0)
        out[example] = int(np.argmax(weights @ hidden))
    return out


def _write(stream: IO[bytes], recipe: Training, vocabulary: Vocabulary, rows: Any, weights: Any) -> None:
    """fastText's model file: signature, settings, dictionary, input matrix, output matrix; little endian."""
    stream.write(struct.pack("<ii", MAGIC, VERSION))
    settings = (
        recipe.dim, 5, recipe.epoch, recipe.min_count, 5, recipe.word_ngrams, SOFTMAX, SUPERVISED,
        vocabulary.bucket, 0, 0, 100,
    )  # fmt: skip
    stream.write(struct.pack("<12id", *settings, 1e-4))
    words, labels = vocabulary.words, vocabulary.labels
    stream.write(
        struct.pack("<iiiqq", len(words) + len(labels), len(words), len(labels), vocabulary.tokens, -1)
    )
    for kind, entries in enumerate((words, labels)):
        for entry, count in entries:
            stream.write(entry + b"\0" + struct.pack("<qb", count, kind))
    for matrix in (rows, weights):
        stream.write(struct.pack("<?qq", False, *matrix.shape))
        stream.write(np.ascontiguousarray(matrix, "<f4").tobytes())
