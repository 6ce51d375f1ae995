"""What evaluation sets share with the corpus: n-grams of lower-cased words, cut line by line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa

from loom.corpus.attributes import Spans, gathered
from loom.corpus.batch import utf8
from loom.corpus.documents import read_lines
from loom.errors import LoomError
from loom.recipe import nearest


@dataclass(frozen=True)
class Questions:
    """Held-out texts: a .txt file with one a line, or JSON lines with one in `field`.

    Every occurrence of one of their `ngram`-grams is cut with the lines that hold it; a text of fewer words,
    but at least `shortest`, is looked for whole.
    """

    path: str
    field: str = "text"
    ngram: int = 8
    shortest: int = 5

    def __post_init__(self) -> None:
        if self.ngram < 1 or not 1 <= self.shortest <= self.ngram:
            raise ValueError("ngram must be at least 1 and shortest between 1 and ngram")


@dataclass(frozen=True)
class Held:
    """The n-grams to look for, as the kernel takes them."""

    sizes: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]
    tables: npt.NDArray[np.uint64]
    texts: int
    unusable: int  # texts too short to be looked for


def read_texts(questions: Questions) -> list[str]:
    """The held-out texts. A file without any, or without the field, is an error."""
    path = Path(questions.path)
    texts = []
    for number, line in enumerate(read_lines(path), 1):
        if not line.strip():
            continue
        if path.name.removesuffix(".gz").removesuffix(".zst").endswith(".txt"):
            texts.append(line.decode().strip())
            continue
        try:
            row = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            raise LoomError(f"{path}, row {number:,}, is not JSON ({error}).") from None
        if not isinstance(row, dict) or not isinstance(row.get(questions.field), str):
            near = nearest(questions.field, row) if isinstance(row, dict) else None
            hint = f" Did you mean {near!r}?" if near else ""
            raise LoomError(f"{path}, row {number:,}, has no text in the field {questions.field!r}.{hint}")
        texts.append(row[questions.field])
    if not texts:
        raise LoomError(f"{path} holds no held-out text, so nothing could ever be decontaminated.")
    return texts


def hold(texts: Sequence[str], ngram: int, shortest: int) -> Held:
    """The n-grams of held-out texts. None at all (every text too short) is an error."""
    from loom.corpus.kernels import ngrams

    column = pa.chunked_array([pa.array(texts, pa.large_string())])
    data, offsets = utf8(column)
    found = ngrams.collect(data, offsets, ngram, shortest)
    if found.shape[0] == 0:
        raise LoomError(
            f"None of the {len(texts):,} held-out texts has {shortest} words, so nothing could ever match."
        )
    usable = sum(
        ngrams.collect(data, offsets[k : k + 2], ngram, shortest).shape[0] > 0 for k in range(len(texts))
    )
    sizes = np.unique(found[:, 0]).astype(np.int64)
    tables = [ngrams.make_table(np.unique(found[found[:, 0] == size, 1])) for size in sizes.astype(np.uint64)]
    starts = np.concatenate([[0], np.cumsum([table.size for table in tables])]).astype(np.int64)
    return Held(sizes, starts, np.concatenate(tables), len(texts), len(texts) - usable)


def find(held: Held, data: Any, offsets: Any) -> Spans:
    """Lines of each document to cut; a span's score is the number of separate matches in it."""
    from loom.corpus.kernels import ngrams

    rows = ngrams.find(data, offsets, held.sizes, held.starts, held.tables)
    return gathered(offsets.size - 1, rows[:, 0], rows[:, 1], rows[:, 2], rows[:, 3].astype(np.float64))
