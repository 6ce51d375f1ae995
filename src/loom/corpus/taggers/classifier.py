"""fastText classifiers from a file that the user names: toxicity by Dolma's keys, quality, any other.

`loom classifier train` makes such a file; Dolma's own models (hate speech and NSFW by Jigsaw's labels)
load as well. Nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from loom.corpus import fasttext
from loom.corpus.attributes import Spans, from_lists, whole
from loom.corpus.taggers import Tagger, Texts, tagger
from loom.corpus.taggers.length import paragraphs
from loom.errors import LoomError

MODEL = "a fastText model (.bin or .ftz)"
LABEL = "__label__"
Units = Callable[[str], Iterable[tuple[int, int]]]
Predict = Callable[[str], Iterable[tuple[str, float]]]


@cache
def load(path: Path) -> Any:
    """A fastText model, loaded once a process. Raises `LoomError` if the file is none."""
    import fasttext as package

    try:
        return package.load_model(str(path))
    except (ValueError, RuntimeError) as error:
        raise LoomError(f"{path} is no fastText model ({error}).") from None


def document(text: str) -> list[tuple[int, int]]:
    """The whole text as one unit."""
    return [(0, len(text))]


def sentences(text: str) -> list[tuple[int, int]]:
    """Sentences as BlingFire finds them, which Dolma uses: (start, end) in code points."""
    try:
        from blingfire import text_to_sentences_and_offsets
    except ImportError:
        raise LoomError("Sentences need a package: pip install 'loom-lm[taggers]'.") from None
    return list(text_to_sentences_and_offsets(text)[1]) if text else []


def _by_unit(predict: Predict, units: Units) -> Tagger:
    """Every label of every unit as a span; a label that no unit has is a key all the same."""
    labels = [label for label, _ in predict("the")]

    def tag(texts: Texts) -> Mapping[str, Spans]:
        found: dict[str, list[list[tuple[int, int, float]] | None]] = {
            label: [None] * len(texts) for label in labels
        }
        for row, text in enumerate(texts.strings):
            for start, end in units(text):
                for label, score in predict(text[start:end]):
                    column = found.setdefault(label, [None] * len(texts))
                    spans = column[row]
                    if spans is None:
                        spans = column[row] = []
                    spans.append((start, end, score))
        return {label: from_lists(found[label]) for label in sorted(found)}

    return tag


def _pair(path: Path) -> Predict:
    """Both labels of a two-class model under their own names, as Dolma's Jigsaw taggers write them."""
    model = load(path)

    def predict(text: str) -> list[tuple[str, float]]:
        labels, scores = model.predict(text.replace("\n", " ").strip(), k=-1)
        return [(label, float(score)) for label, score in zip(labels, scores, strict=True)]

    return predict


def _documents(path: Path) -> Tagger:
    """Every label of the whole text, in batches."""
    model = fasttext.load(path)

    def tag(texts: Texts) -> Mapping[str, Spans]:
        scores = model.scores(*fasttext.utf8([text.strip() for text in texts.strings]))
        found = {label: whole(texts.lengths, scores[:, place]) for place, label in enumerate(model.labels)}
        return {label: found[label] for label in sorted(found)}

    return tag


@tagger("jigsaw_hatespeech_document_v2", spans="document", source="Dolma 1.2", needs=MODEL)
def jigsaw_hatespeech_document_v2(path: Path) -> Tagger:
    """`__label__toxic` and `__label__non_toxic` of the document."""
    return _documents(path)


@tagger("jigsaw_hatespeech_sentence_v2", spans="sentences", source="Dolma 1.2", needs=MODEL)
def jigsaw_hatespeech_sentence_v2(path: Path) -> Tagger:
    """`__label__toxic` and `__label__non_toxic` of each sentence."""
    return _by_unit(_pair(path), sentences)


@tagger("jigsaw_nsfw_document_v1", spans="document", source="Dolma 1.2", needs=MODEL)
def jigsaw_nsfw_document_v1(path: Path) -> Tagger:
    """`__label__nsfw` and `__label__non_nsfw` of the document, or what the model calls them."""
    return _documents(path)


@tagger("jigsaw_nsfw_sencence_v2", spans="sentences", source="Dolma 1.2", needs=MODEL)
def jigsaw_nsfw_sencence_v2(path: Path) -> Tagger:
    """The same of each sentence (the name is Dolma's, misspelt there)."""
    return _by_unit(_pair(path), sentences)


def _labels(path: Path, prepare: Callable[[str], str]) -> Predict:
    model = load(path)

    def predict(text: str) -> list[tuple[str, float]]:
        labels, scores = model.predict(prepare(text), k=-1)
        return [
            (label.removeprefix(LABEL), float(score)) for label, score in zip(labels, scores, strict=True)
        ]

    return predict


def one_line(text: str) -> str:
    """Words with single spaces between them: what a fastText model takes for one line."""
    return " ".join(text.split())


@tagger("fasttext_document_v1", spans="document", source="Loom", needs=MODEL)
def fasttext_document_v1(path: Path) -> Tagger:
    """Any classifier: every label's score for the document."""
    return _by_unit(_labels(path, one_line), document)


@tagger("fasttext_paragraph_v1", spans="paragraphs", source="Loom", needs=MODEL)
def fasttext_paragraph_v1(path: Path) -> Tagger:
    """Any classifier: every label's score for each paragraph."""
    return _by_unit(_labels(path, one_line), paragraphs)


@tagger("fasttext_sentence_v1", spans="sentences", source="Loom", needs=MODEL)
def fasttext_sentence_v1(path: Path) -> Tagger:
    """Any classifier: every label's score for each sentence."""
    return _by_unit(_labels(path, one_line), sentences)


@tagger("dolma17-quality", spans="document", source="Dolma 1.2", needs=MODEL)
def dolma17_quality(path: Path) -> Tagger:
    """Every label of Dolma 1.7's quality model, without its prefix."""
    predict = _labels(path, one_line)
    return _by_unit(lambda text: predict(text) if text.strip() else [], document)


@tagger("dclm-oh-eli5", spans="document", source="Dolma 1.2", needs=MODEL)
def dclm_oh_eli5(path: Path) -> Tagger:
    """`score`: the probability of `hq` by DCLM's classifier, one minus that of `cc`."""
    model = load(path)

    def predict(text: str) -> list[tuple[str, float]]:
        labels, scores = model.predict(" ".join(text.strip().splitlines()))
        label, score = labels[0], float(scores[0])
        name = label.removeprefix(LABEL).replace("cc", "score").replace("hq", "score")
        return [(name, 1 - score if label == f"{LABEL}cc" else score)]

    return _by_unit(predict, document)
