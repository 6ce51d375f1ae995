"""User turns against evaluation questions.

A conversation is contaminated if one of its user turns shares a run of `n` words with a text of the
evaluation files, or, for a text shorter than that, says the same words as the whole turn. Every string in
the files' rows counts as a text, whatever its key: a question, a passage, a choice.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import xxhash

from loom.artifact import digest_json
from loom.chat.conversations import Malformed, rows
from loom.chat.format import Message
from loom.errors import LoomError
from loom.tasks.ngrams import words
from loom.tokens.documents import File

FEWEST = 4  # words of a text that is compared whole: "yes" is nobody's question


@dataclass(frozen=True)
class Questions:
    """Hashes of the evaluation texts' n-grams, and of the short texts as a whole."""

    n: int
    grams: frozenset[int]
    whole: frozenset[int]

    @classmethod
    def read(cls, files: Sequence[File], n: int) -> Questions:
        """Raises `LoomError` for a row that cannot be read, and if there is nothing to compare with."""
        grams: set[int] = set()
        whole: set[int] = set()
        for file in files:
            for row in rows(file):
                if isinstance(row.value, Malformed):
                    raise LoomError(f"{file.path}:{row.number}: {row.value}.")
                for text in _strings(row.value):
                    found = words(text)
                    if len(found) >= n:
                        grams.update(word_grams(found, n))
                    elif len(found) >= FEWEST:
                        whole.add(hash_words(found))
        if not grams and not whole:
            raise LoomError(
                f"{', '.join(str(file.path) for file in files)}: no text of {FEWEST} words or more to "
                f"decontaminate against. Name the files with the evaluation's questions."
            )
        return cls(n, frozenset(grams), frozenset(whole))

    @property
    def digest(self) -> str:
        return digest_json([self.n, sorted(self.grams), sorted(self.whole)])

    def overlap(self, messages: Sequence[Message]) -> bool:
        """Whether a user turn says what an evaluation text says."""
        for message in messages:
            if message.role == "user":
                found = words(message.content)
                if (
                    any(gram in self.grams for gram in word_grams(found, self.n))
                    or hash_words(found) in self.whole
                ):
                    return True
        return False


def word_grams(found: Sequence[str], n: int) -> Iterator[int]:
    """64-bit hashes of every run of `n` words."""
    return (hash_words(found[at : at + n]) for at in range(len(found) - n + 1))


def hash_words(found: Sequence[str]) -> int:
    """A 64-bit hash of a run of words."""
    return int(xxhash.xxh3_64_intdigest("\0".join(found).encode()))


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)
