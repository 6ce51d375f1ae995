"""Training a classifier: fastText reads the file as it was meant, and the same lines are the same bytes."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import orjson
import pytest

from loom.artifact import digest_file
from loom.cli import main
from loom.corpus import classifier, documents
from loom.corpus.classifier import Training, Vocabulary
from loom.errors import LoomError
from tests.corpus.test_dolma_more import labelled


def matrices(model: Path, recipe: Training, vocabulary: Vocabulary) -> tuple[np.ndarray, np.ndarray]:
    """The two matrices at the end of the file."""
    data = model.read_bytes()
    labels, rows = len(vocabulary.labels), len(vocabulary.words) + vocabulary.bucket
    out = np.frombuffer(data[-labels * recipe.dim * 4 :], "<f4").reshape(labels, recipe.dim)
    end = len(data) - labels * recipe.dim * 4 - 17
    return np.frombuffer(data[end - rows * recipe.dim * 4 : end], "<f4").reshape(rows, recipe.dim), out


@pytest.mark.parametrize("ngrams", [1, 2, 3])
def test_fasttext_computes_what_was_trained(tmp_path: Path, ngrams: int) -> None:
    """Words of any script, unknown words, word n-grams by fastText's own hash."""
    import fasttext

    lines = labelled(tmp_path / "lines.txt")
    recipe = Training((str(lines),), word_ngrams=ngrams, bucket=5000, dim=7)
    classifier.train(recipe, tmp_path / "m.bin")
    vocabulary = Vocabulary(classifier.read_examples([lines]), recipe)
    rows, out = matrices(tmp_path / "m.bin", recipe, vocabulary)
    model = fasttext.load_model(str(tmp_path / "m.bin"))
    choose = random.Random(8)
    known = [word.decode() for word, _ in vocabulary.words if word != classifier.END] + [
        "日本語",
        "unknown",
        "é",
    ]
    for _ in range(200):
        words = [choose.choice(known) for _ in range(choose.randint(0, 9))]
        hidden = rows[vocabulary.features([word.encode() for word in words])].mean(axis=0)
        scores = np.exp(out @ hidden - (out @ hidden).max())
        expected = dict(
            zip([label.decode() for label, _ in vocabulary.labels], scores / scores.sum(), strict=True)
        )
        labels, found = model.predict(" ".join(words), k=-1)
        assert dict(zip(labels, found, strict=True)) == pytest.approx(expected, abs=3e-5)


def test_the_same_lines_are_the_same_bytes(tmp_path: Path) -> None:
    lines = str(labelled(tmp_path / "lines.txt"))
    first = classifier.train(Training((lines,)), tmp_path / "a.bin")
    assert first.accuracy == 1.0
    assert first.labels == {"toxic": 300, "non_toxic": 300}
    classifier.train(Training((lines,)), tmp_path / "b.bin")
    classifier.train(Training((lines,), seed=1), tmp_path / "c.bin")
    assert (
        digest_file(tmp_path / "a.bin") == digest_file(tmp_path / "b.bin") != digest_file(tmp_path / "c.bin")
    )


def test_as_it_is_typed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines, model = labelled(tmp_path / "lines.txt"), tmp_path / "toxic.bin"
    with pytest.raises(SystemExit) as ended:
        main(["classifier", "train", "--input", str(lines), "--out", str(model), "--json"])
    assert ended.value.code == 0
    assert orjson.loads(capsys.readouterr().out.splitlines()[-1])["lines"] == 600
    rows = [{"id": "a", "text": "a vile ugly page"}, {"id": "b", "text": "a kind café"}]
    documents.write(tmp_path / "documents" / "a.jsonl", rows)
    with pytest.raises(SystemExit) as ended:
        main(
            f"tag --documents {tmp_path / 'documents'} --taggers fasttext_document_v1 --out {tmp_path} "
            f"--file fasttext_document_v1={model}".split()
        )
    assert ended.value.code == 0
    path = tmp_path / "attributes" / "fasttext_document_v1" / "a.jsonl.gz"
    found = [orjson.loads(line)["attributes"] for line in documents.read_lines(path)]
    key = "fasttext_document_v1__fasttext_document_v1__toxic"
    assert found[0][key][0][2] > 0.9 > 0.1 > found[1][key][0][2]


def test_mistakes_are_named(tmp_path: Path) -> None:
    (tmp_path / "none.txt").write_text("__label__a one\nno label here\n")
    with pytest.raises(LoomError, match=r"none\.txt, line 2, has no label"):
        classifier.train(Training((str(tmp_path / "none.txt"),)), tmp_path / "m.bin")
    (tmp_path / "one.txt").write_text("__label__a one\n__label__a two\n")
    with pytest.raises(LoomError, match="two labels"):
        classifier.train(Training((str(tmp_path / "one.txt"),)), tmp_path / "m.bin")
    with pytest.raises(LoomError, match="There is no file"):
        classifier.train(Training((str(tmp_path / "nothing.txt"),)), tmp_path / "m.bin")
    assert not (tmp_path / "m.bin").exists()
