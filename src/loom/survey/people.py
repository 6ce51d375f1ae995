"""People in the corpus: personal data, toxic language, and what is said of groups of people."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

from loom.corpus import taggers
from loom.corpus.taggers.pii import KINDS
from loom.errors import LoomError
from loom.survey.analysis import WORD, Chunk, Places, shown
from loom.survey.lexicon import GROUPS, NEGATION, NEGATIVE, POSITIVE
from loom.survey.sketches import First, Partial, Tally

EXAMPLES = 5
SENTENCE = re.compile(r"[^.!?\n]+[.!?]*")


class Pii:
    """Mail addresses, telephone and IP numbers, by the tagger `pii_v1`."""

    name, title = "pii", "Personal data"

    def start(self) -> Partial:
        return {"kinds": Tally(2), "words": Tally(2)}

    def map(self, partial: Partial, chunk: Chunk) -> None:
        kinds, words = partial["kinds"], partial["words"]
        assert isinstance(kinds, Tally)
        assert isinstance(words, Tally)
        words.add("all", int(chunk.words.counts.sum()), len(chunk))
        found = taggers.get("pii_v1")(taggers.Texts(chunk.batch))
        for kind in KINDS:
            counts = np.diff(found[kind].offsets) if kind in found else np.zeros(len(chunk), np.int64)
            kinds.add(kind, int(counts.sum()), int((counts > 0).sum()))

    def wanted(self, partial: Partial) -> Sequence[int]:
        return []

    def finish(self, partial: Partial, places: Places) -> dict[str, Any]:
        kinds, words = partial["kinds"], partial["words"]
        assert isinstance(kinds, Tally)
        assert isinstance(words, Tally)
        total = words.values.get("all", [0, 0])[0]
        return {
            "kinds": [
                {
                    "kind": kind,
                    "spans": row[0],
                    "documents": row[1],
                    "per_million_words": row[0] / total * 1e6 if total else 0.0,
                }
                for kind, row in sorted(kinds.values.items())
            ]
        }


class Toxicity:
    """Documents with a word of the list C4 was filtered by, and, with a fastText model, toxic sentences.

    A model is any binary classifier of `loom classifier train`; its label's name must hold `toxic` or be 1.
    """

    name, title = "toxicity", "Toxic language"

    def __init__(self, model: str | None = None) -> None:
        self.model = model

    @cached_property
    def _classifier(self) -> Any:
        import fasttext

        try:
            return fasttext.load_model(self.model)
        except ValueError as error:
            raise LoomError(f"{self.model} cannot be read as a fastText model ({error}).") from None

    def start(self) -> Partial:
        return {"documents": Tally(1), "sentences": Tally(2), "first": First(EXAMPLES)}

    def map(self, partial: Partial, chunk: Chunk) -> None:
        documents, sentences, first = (partial[key] for key in ("documents", "sentences", "first"))
        assert isinstance(documents, Tally)
        assert isinstance(sentences, Tally)
        assert isinstance(first, First)
        spans = taggers.get("c4_v2")(taggers.Texts(chunk.batch))["has_naughty_word"]
        listed = np.flatnonzero(np.diff(spans.offsets))
        documents.add("with", len(listed))
        documents.add("all", len(chunk))
        for row in listed[:EXAMPLES].tolist():
            first.add(int(chunk.where[row]), None)
        if self.model is not None:
            for text in chunk.texts:
                found = [part for part in SENTENCE.findall(text) if part.strip()]
                toxic = sum(self._is_toxic(part) for part in found)
                sentences.add("all", len(found), 1)
                sentences.add("toxic", toxic, int(toxic > 0))

    def _is_toxic(self, sentence: str) -> bool:
        labels, scores = self._classifier.predict(sentence.replace("\n", " ").strip())
        label = str(labels[0]).removeprefix("__label__").lower()
        toxic = label == "1" or ("toxic" in label and not label.startswith(("non", "not")))
        return bool(toxic and scores[0] > 0.5)

    def wanted(self, partial: Partial) -> Sequence[int]:
        first = partial["first"]
        assert isinstance(first, First)
        return [entry[0] for entry in first.dump()["entries"]]

    def finish(self, partial: Partial, places: Places) -> dict[str, Any]:
        documents, sentences, first = (partial[key] for key in ("documents", "sentences", "first"))
        assert isinstance(documents, Tally)
        assert isinstance(sentences, Tally)
        assert isinstance(first, First)
        listed, total = (documents.values.get(key, [0])[0] for key in ("with", "all"))
        out: dict[str, Any] = {
            "documents_with_listed_words": listed,
            "share_of_documents": listed / total if total else 0.0,
            "classifier": None,
            "first": [shown(places, at) for at, _ in first.dump()["entries"]],
        }
        if self.model is not None:
            every, toxic = (sentences.values.get(key, [0, 0]) for key in ("all", "toxic"))
            out["classifier"] = {
                "sentences": every[0],
                "toxic_sentences": toxic[0],
                "documents": every[1],
                "toxic_documents": toxic[1],
            }
        return out


class Demographics:
    """Sentences that name a group of people, and how many of them sound positive or negative.

    A sentence's sentiment is the sign of its positive less its negative words, a word after a negation
    counting against itself. The lists are in `loom.survey.lexicon`.
    """

    name, title = "demographics", "What is said beside the names of groups"

    @cached_property
    def _terms(self) -> tuple[dict[str, str], Any]:
        terms = {term: group for group, names in GROUPS.items() for term in names}
        longest = sorted(terms, key=lambda term: (-len(term), term))
        return terms, re.compile(rf"\b(?:{'|'.join(map(re.escape, longest))})\b", re.IGNORECASE)

    def start(self) -> Partial:
        return {"terms": Tally(4)}

    def map(self, partial: Partial, chunk: Chunk) -> None:
        tally = partial["terms"]
        assert isinstance(tally, Tally)
        _, pattern = self._terms
        for text in chunk.texts:
            ends = 0
            for match in pattern.finditer(text):
                if match.start() < ends:
                    continue
                start = max(text.rfind(mark, 0, match.start()) for mark in ".!?\n") + 1
                found = SENTENCE.match(text, start)
                ends = found.end() if found else match.end()
                sentence = text[start:ends]
                mood = sentiment(sentence)
                for term in sorted({name.lower() for name in pattern.findall(sentence)}):
                    tally.add(term, 1, int(mood > 0), int(mood < 0), mood)

    def wanted(self, partial: Partial) -> Sequence[int]:
        return []

    def finish(self, partial: Partial, places: Places) -> dict[str, Any]:
        tally = partial["terms"]
        assert isinstance(tally, Tally)
        groups, _ = self._terms
        return {
            "terms": [
                {
                    "term": term,
                    "group": groups[term],
                    "sentences": row[0],
                    "positive": row[1],
                    "negative": row[2],
                    "mean_sentiment": row[3] / row[0],
                }
                for term, row in tally.ranked()
            ]
        }


def sentiment(sentence: str) -> int:
    """-1, 0 or 1: the sign of positive words less negative ones, turned round after a negation."""
    total = 0
    turn = 1
    for word in WORD.findall(sentence.lower()):
        if word in NEGATION:
            turn = -1
            continue
        if word in POSITIVE:
            total += turn
        elif word in NEGATIVE:
            total -= turn
        else:
            continue
        turn = 1
    return (total > 0) - (total < 0)


class Language:
    """The likeliest language of each document, by fastText's lid.176 on its first 1,000 characters."""

    name, title = "language", "Languages"

    def start(self) -> Partial:
        return {"languages": Tally(3), "doubtful": First(EXAMPLES)}

    def map(self, partial: Partial, chunk: Chunk) -> None:
        from loom.corpus.taggers.language import CAPPED, model

        tally, doubtful = partial["languages"], partial["doubtful"]
        assert isinstance(tally, Tally)
        assert isinstance(doubtful, First)
        words, sizes = chunk.words.counts.tolist(), chunk.sizes.tolist()
        for row, text in enumerate(chunk.texts):
            labels, scores = model().predict(text[:CAPPED].lower().replace("\n", " ").strip())
            name = str(labels[0]).removeprefix("__label__") if len(labels) else "none"
            tally.add(name, 1, words[row], sizes[row])
            if not len(scores) or scores[0] < 0.5:
                doubtful.add(int(chunk.where[row]), round(float(scores[0]), 3) if len(scores) else 0.0)

    def wanted(self, partial: Partial) -> Sequence[int]:
        doubtful = partial["doubtful"]
        assert isinstance(doubtful, First)
        return [entry[0] for entry in doubtful.dump()["entries"]]

    def finish(self, partial: Partial, places: Places) -> dict[str, Any]:
        tally, doubtful = partial["languages"], partial["doubtful"]
        assert isinstance(tally, Tally)
        assert isinstance(doubtful, First)
        return {
            "languages": [
                {"language": name, "documents": row[0], "words": row[1], "bytes": row[2]}
                for name, row in tally.ranked()
            ],
            "doubtful": [{"score": score} | shown(places, at) for at, score in doubtful.dump()["entries"]],
        }
