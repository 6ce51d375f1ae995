"""The tokenizer agrees with `tokenizers` and transformers, and text never becomes a control token."""

from __future__ import annotations

import gzip
import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.small import library_texts

from loom.errors import LoomError
from loom.tokens.tokenizer import PII_STRINGS, Tokenizer

SPECIALS = ("<|endoftext|>", "<|padding|>", *PII_STRINGS)
texts = st.lists(
    st.one_of(
        st.text(max_size=40),
        st.sampled_from(
            [*SPECIALS, "<|endof", "text|>", "|||", "||||EMAIL_ADDRESS|||", "  ", "\n", "\r\n", "e\u0301"]
        ),
    ),
    max_size=8,
).map("".join)


def oracle(path: Path) -> tokenizers.Tokenizer:
    """Hugging Face's tokenizer, told to leave control tokens in text alone."""
    loaded = tokenizers.Tokenizer.from_file(str(path))
    loaded.encode_special_tokens = True
    return loaded


@settings(max_examples=400, deadline=None)
@given(text=texts)
def test_any_text_encodes_as_hugging_face_does(tokenizer: Tokenizer, tokenizer_path: Path, text: str) -> None:
    expected = oracle(tokenizer_path).encode(text).ids
    assert tokenizer.encode(text).tolist() == expected
    assert tokenizer.encode_batch(["x", text, ""])[1].tolist() == expected
    assert tokenizer.eos_id not in expected


@settings(max_examples=200, deadline=None)
@given(text=texts)
def test_decoding_gives_the_normalised_text_back(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    normal = unicodedata.normalize("NFC", text)
    assert tokenizer.decode_bytes(ids) == normal.encode()
    stream = tokenizer.stream()
    pieces = [stream.push(int(index)) for index in ids]
    assert "".join(pieces) + stream.finish() == normal
    assert not any("\ufffd" in piece for piece in pieces if "\ufffd" not in normal)


def test_real_texts_encode_as_hugging_face_does(tokenizer: Tokenizer, tokenizer_path: Path) -> None:
    other = oracle(tokenizer_path)
    for parallel in (False, True):
        batch = tokenizer.encode_batch(library_texts(), parallel=parallel)
        assert len(batch) == len(library_texts())
        for number, text in enumerate(library_texts()):
            assert batch[number].tolist() == other.encode(text).ids


def test_transformers_reads_the_file_alike(tokenizer: Tokenizer, tokenizer_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    other = PreTrainedTokenizerFast(
        tokenizer_file=str(tokenizer_path), eos_token=tokenizer.eos_token, pad_token=tokenizer.pad_token
    )
    assert (other.eos_token_id, other.pad_token_id) == (tokenizer.eos_id, tokenizer.pad_id)
    for text in library_texts():
        assert other(text, add_special_tokens=False)["input_ids"] == tokenizer.encode(text).tolist()


def test_a_character_cut_short_ends_the_stream_as_one_mark(tokenizer: Tokenizer) -> None:
    stream = tokenizer.stream()
    first_byte = tokenizer.encode("\U0001f642").tolist()[:1]
    assert [stream.push(index) for index in first_byte] == [""]
    assert stream.finish() == "\ufffd"


def test_ids_past_the_vocabulary_are_no_text(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode([tokenizer.vocab_size + 5, *tokenizer.encode("ok").tolist()]) == "ok"


def test_the_masks_of_personal_data_are_one_token_each(tokenizer: Tokenizer) -> None:
    for token in PII_STRINGS:
        ids = tokenizer.encode(f"write to {token} now").tolist()
        assert ids.count(tokenizer.token_id(token)) == 1


@pytest.mark.parametrize("name", ["olmo-v1", "olmo-v1-wrong-eos"])
def test_olmo_tokenizers_on_real_web_text(shared_data: Path, name: str) -> None:
    path = shared_data / "tokenizers" / f"{name}.json"
    mine, other = Tokenizer.load(path), oracle(path)
    rows = gzip.decompress((shared_data / "text" / "c4.jsonl.gz").read_bytes()).splitlines()[:300]
    found = [json.loads(row)["text"] + " <|endoftext|> |||IP_ADDRESS||| <|padding|>" for row in rows]
    batch = mine.encode_batch(found)
    assert [batch[number].tolist() for number in range(len(found))] == [other.encode(t).ids for t in found]
    assert mine.eos_id not in batch.ids
    assert mine.token_id("|||IP_ADDRESS|||") in batch.ids


def test_the_two_olmo_tokenizers_are_never_mixed_up(shared_data: Path) -> None:
    right = Tokenizer.load(shared_data / "tokenizers" / "olmo-v1.json")
    wrong = Tokenizer.load(shared_data / "tokenizers" / "olmo-v1-wrong-eos.json")
    assert (right.eos_id, right.pad_id, right.vocab_size) == (50279, 1, 50280)
    assert (wrong.eos_id, wrong.decode([50279])) == (0, "|||IP_ADDRESS|||")
    facts = {**right.facts(), "tokenizer": {"path": "tokenizer.json", "digest": right.digest}}
    right.check(facts, "tokens")
    with pytest.raises(LoomError, match=r"50279.*IP_ADDRESS"):
        wrong.check(facts, "tokens")


def test_another_file_with_the_same_eos_is_refused(tokenizer: Tokenizer) -> None:
    facts = {**tokenizer.facts(), "tokenizer": {"path": "tokenizer.json", "digest": "0" * 32}}
    with pytest.raises(LoomError, match="another tokenizer"):
        tokenizer.check(facts, "tokens")


def edited(path: Path, to: Path, **changes: object) -> Path:
    spec = json.loads(path.read_text())
    spec |= changes
    to.write_text(json.dumps(spec))
    return to


def test_what_is_no_usable_tokenizer_is_named(tokenizer_path: Path, tmp_path: Path) -> None:
    spec = json.loads(tokenizer_path.read_text())
    vocab = {token: index for token, index in spec["model"]["vocab"].items() if token != "<|endoftext|>"}
    no_eos = edited(
        tokenizer_path,
        tmp_path / "no-eos.json",
        model=spec["model"] | {"vocab": vocab},
        added_tokens=[token for token in spec["added_tokens"] if token["content"] != "<|endoftext|>"],
    )
    with pytest.raises(LoomError, match="end-of-text"):
        Tokenizer.load(no_eos)
    with pytest.raises(LoomError, match="BPE"):
        Tokenizer.load(edited(tokenizer_path, tmp_path / "wp.json", model={"type": "WordPiece", "vocab": {}}))
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(LoomError, match=r"broken\.json"):
        Tokenizer.load(tmp_path / "broken.json")
    with pytest.raises(LoomError, match="no tokenizer at"):
        Tokenizer.load(tmp_path / "absent.json")
    with pytest.raises(LoomError, match="<stop>"):
        Tokenizer.load(tokenizer_path, eos="<stop>")


def test_padding_falls_back_to_end_of_text(tokenizer_path: Path, tmp_path: Path) -> None:
    spec = json.loads(tokenizer_path.read_text())
    vocab = dict(spec["model"]["vocab"])
    vocab["<|filler|>"] = vocab.pop("<|padding|>")
    path = edited(
        tokenizer_path,
        tmp_path / "no-pad.json",
        model=spec["model"] | {"vocab": vocab},
        added_tokens=[token for token in spec["added_tokens"] if token["content"] != "<|padding|>"],
    )
    loaded = Tokenizer.load(path)
    assert (loaded.pad_id, loaded.pad_token) == (loaded.eos_id, loaded.eos_token)


def test_batches_of_nothing(tokenizer: Tokenizer) -> None:
    assert len(tokenizer.encode_batch([])) == 0
    assert tokenizer.encode_batch(["", ""]).offsets.tolist() == [0, 0, 0]
    assert tokenizer.encode("").dtype == np.uint32
