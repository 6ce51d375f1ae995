"""Training depends on the documents alone, fills the vocabulary, and never learns a special token."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from tests.small import library_texts, write_documents, write_lines

from loom import artifact
from loom.cli import main
from loom.errors import LoomError
from loom.tokens.bpe import SMALLEST, SPECIALS, TrainTokenizer, byte_characters, train
from loom.tokens.tokenizer import Tokenizer


def vocabulary(path: Path) -> dict[str, int]:
    found: dict[str, int] = json.loads(path.read_text())["model"]["vocab"]
    return found


def test_ids_are_dense_and_stand_where_they_should(tokenizer_path: Path) -> None:
    vocab = vocabulary(tokenizer_path)
    assert sorted(vocab.values()) == list(range(1200))
    assert (vocab["<|endoftext|>"], vocab["<|padding|>"]) == (0, 1)
    assert [vocab[token] for token in SPECIALS[2:]] == [1197, 1198, 1199]
    assert [vocab[character] for character in byte_characters().values()] == list(range(2, 258))


def test_the_byte_table_is_the_one_the_field_uses() -> None:
    from tokenizers.pre_tokenizers import ByteLevel

    assert sorted(byte_characters().values()) == sorted(ByteLevel.alphabet())
    assert len(byte_characters()) == 256


def test_order_and_split_of_documents_do_not_matter(tmp_path: Path, tokenizer_path: Path) -> None:
    rows = [{"id": f"doc-{n}", "text": text} for n, text in enumerate(library_texts())]
    random.Random(7).shuffle(rows)
    half = len(rows) // 2
    write_lines(tmp_path / "b.jsonl", rows[:half])
    write_lines(tmp_path / "a.jsonl", rows[half:])
    made = train(TrainTokenizer((str(tmp_path / "*.jsonl"),), 1200), tmp_path / "made")
    assert made.file("tokenizer.json").read_bytes() == tokenizer_path.read_bytes()


def test_merges_equal_those_of_hugging_faces_trainer(tmp_path: Path) -> None:
    """Frequencies and ties alike; both count words by GPT-2's pattern."""
    import tokenizers
    from tokenizers import models, pre_tokenizers, trainers

    write_documents(tmp_path)
    made = train(TrainTokenizer((str(tmp_path),), 700), tmp_path / "made")
    other = tokenizers.Tokenizer(models.BPE())
    other.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    other.normalizer = tokenizers.normalizers.NFC()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    other.train_from_iterator(
        library_texts(),
        trainers.BpeTrainer(vocab_size=700 - len(SPECIALS), initial_alphabet=alphabet, show_progress=False),
    )
    theirs = json.loads(other.to_str())["model"]["merges"]
    mine = json.loads(made.file("tokenizer.json").read_text())["model"]["merges"]
    assert mine == [pair if isinstance(pair, str) else " ".join(pair) for pair in theirs]


def test_special_tokens_are_not_learned_from_text(tmp_path: Path) -> None:
    text = "mail |||EMAIL_ADDRESS||| or <|endoftext|> " * 200 + "plain words follow here"
    write_lines(tmp_path / "d.jsonl", [{"id": "1", "text": text}])
    made = train(TrainTokenizer((str(tmp_path / "d.jsonl"),), 300), tmp_path / "made")
    for token, index in vocabulary(made.file("tokenizer.json")).items():
        if token not in SPECIALS and index >= 258:
            assert not any(part in token for part in ("|", "EMAIL", "endof"))


def test_too_little_text_gives_a_smaller_vocabulary_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_lines(tmp_path / "d.jsonl", [{"id": "1", "text": "a few words only"}])
    made = train(TrainTokenizer((str(tmp_path / "d.jsonl"),), 5000), tmp_path / "made")
    size = Tokenizer.load(made.path).vocab_size
    assert SMALLEST <= size < 300
    assert made.counters["vocab_size"] == size
    assert f"{size:,}" in capsys.readouterr().err


def test_a_sample_is_the_same_documents_every_time(tmp_path: Path) -> None:
    write_documents(tmp_path)
    whole = train(TrainTokenizer((str(tmp_path),), 400), tmp_path / "whole")
    parts = [train(TrainTokenizer((str(tmp_path),), 400, 0.3), tmp_path / name) for name in ("one", "two")]
    assert parts[0].digest == parts[1].digest
    assert 0 < parts[0].counters["documents"] < whole.counters["documents"] / 2


def test_a_finished_tokenizer_is_kept_and_a_changed_input_makes_it_anew(tmp_path: Path) -> None:
    rows = [{"id": "1", "text": "some words " * 50}]
    source = write_lines(tmp_path / "in" / "d.jsonl", rows)
    recipe = TrainTokenizer((str(source),), 280)
    first = train(recipe, tmp_path / "made")
    stamp = (tmp_path / "made" / "run.json").read_bytes()
    assert train(recipe, tmp_path / "made").digest == first.digest
    assert (tmp_path / "made" / "run.json").read_bytes() == stamp
    write_lines(source, [{"id": "1", "text": "other letters " * 50}])
    assert train(recipe, tmp_path / "made").digest != first.digest


def test_the_trainer_prints_nothing_of_its_own(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_documents(tmp_path)
    words = ["tokenizer", "train", "--documents", str(tmp_path), "--vocab-size", "300"]
    with pytest.raises(SystemExit) as ended:
        main([*words, "--out", str(tmp_path / "tok" / "mine.json"), "--json"])
    out = capfd.readouterr().out
    assert ended.value.code == 0
    assert json.loads(out) == json.loads(out.splitlines()[-1])
    assert json.loads(out)["vocab_size"] == 300
    assert Tokenizer.load(tmp_path / "tok" / "mine.json").vocab_size == 300
    assert artifact.load(tmp_path / "tok", "tokenizer").facts["tokenizer"]["path"] == "mine.json"


def test_bad_requests_are_named(tmp_path: Path) -> None:
    with pytest.raises(LoomError, match="No documents match"):
        train(TrainTokenizer((str(tmp_path / "*.jsonl"),), 300), tmp_path / "made")
    with pytest.raises(ValueError, match="261"):
        TrainTokenizer(("x",), 100)
    write_lines(tmp_path / "d.jsonl", [{"id": "1", "text": "   "}])
    with pytest.raises(LoomError, match="no text"):
        train(TrainTokenizer((str(tmp_path / "d.jsonl"),), 300), tmp_path / "made")


def test_a_row_that_is_no_document_is_set_aside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The tokenizer is that of the other rows; file, line and reason are written down and said."""
    rows = [json.dumps({"id": f"d{n}", "text": text}) for n, text in enumerate(library_texts())]
    (tmp_path / "whole.jsonl").write_text("\n".join(rows))
    (tmp_path / "broken.jsonl").write_text("\n".join([rows[0], "{", *rows[1:], '{"id": "x"}']))
    whole = train(TrainTokenizer((str(tmp_path / "whole.jsonl"),), 1200), tmp_path / "a")
    recipe = TrainTokenizer((str(tmp_path / "broken.jsonl"),), 1200)
    made = train(recipe, tmp_path / "b" / "tokenizer.json")
    assert "broken.jsonl:2: it is not a JSON object" in " ".join(capsys.readouterr().err.split())
    assert made.file("tokenizer.json").read_bytes() == whole.file("tokenizer.json").read_bytes()
    assert (made.counters["rejected"], whole.counters["rejected"]) == (2, 0)
    aside = [json.loads(line) for line in made.file("rejected.jsonl").read_text().splitlines()]
    assert [(row["file"], row["line"]) for row in aside] == [
        ("broken.jsonl", 2),
        ("broken.jsonl", len(rows) + 2),
    ]
    assert train(recipe, tmp_path / "b" / "tokenizer.json").digest == made.digest
