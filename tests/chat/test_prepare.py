"""Prepared folders hold every conversation once, with its mask, and say what became of the rest."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.small import library_texts, write_lines
from tests.tokens.test_tokenize import contents

from loom.chat.format import FORMATS, Message, Renderer
from loom.chat.mixture import Share
from loom.chat.prepare import Prepare, prepare
from loom.cli import main
from loom.engine import LocalEngine
from loom.errors import LoomError
from loom.tokens.shards import open_tokens
from loom.tokens.tokenizer import Tokenizer


def stored(folder: Path) -> list[dict[str, Any]]:
    """The documents of a prepared folder: the table's rows with their ids and weights."""
    found = []
    opened = open_tokens(folder)
    for shard, ids, weights in zip(opened.shards, opened.arrays, opened.weights, strict=True):
        for row in pq.read_table(folder / shard.path.replace(".npy", ".docs.parquet")).to_pylist():
            span = slice(row["start"], row["end"])
            found.append({**row, "ids": ids[span].tolist(), "weights": weights[span].tolist()})
    return found


def questions(count: int = 60) -> list[dict[str, Any]]:
    texts = [text for text in library_texts() if text.strip()]
    return [
        {
            "id": f"q-{n}",
            "source": ("even", "odd")[n % 2],
            "messages": [
                {"role": "user", "content": f"Question {n}?"},
                {"role": "assistant", "content": texts[n % len(texts)][:400]},
            ],
        }
        for n in range(count)
    ]


def pairs(count: int = 60) -> list[dict[str, Any]]:
    return [
        {"prompt": f"Question {n // 2}?", "chosen": f"It is {n}.", "rejected": f"Who knows {n}?"}
        for n in range(count)
    ]


def test_every_conversation_is_there_with_its_mask(
    tokenizer: Tokenizer, tokenizer_path: Path, tmp_path: Path
) -> None:
    rows = questions()
    write_lines(tmp_path / "q.jsonl", rows)
    made = prepare(Prepare("sft", (Share(str(tmp_path / "q.jsonl")),), tokenizer_path), tmp_path / "out")
    renderer = Renderer(FORMATS["olmo-v1"], tokenizer)
    found = {row["id"]: row for row in stored(tmp_path / "out")}
    assert len(found) == len(rows)
    for number, row in enumerate(rows, start=1):
        messages = [Message(**message) for message in row["messages"]]
        expected = renderer.close(renderer.render(messages))
        mine = found[row["id"]]
        assert mine["ids"] == expected.ids.tolist()
        assert mine["weights"] == expected.trained.tolist()
        assert mine["prompt_end"] - mine["start"] == expected.prompt_end
        assert (mine["source"], mine["origin"]) == (row["source"], f"q.jsonl:{number}")
        assert (mine["pair"], mine["side"]) == (-1, "")
    assert sorted(row["conversation"] for row in found.values()) == list(range(len(rows)))
    trained = sum(sum(row["weights"]) for row in found.values())
    assert made.facts["chat"]["trained_tokens"] == trained
    assert sum(source["trained"] for source in made.facts["tokens"]["sources"].values()) == trained


def test_both_sides_of_a_pair_are_neighbours_on_one_prompt(tokenizer_path: Path, tmp_path: Path) -> None:
    write_lines(tmp_path / "p.jsonl", pairs())
    prepare(
        Prepare("dpo", (Share(str(tmp_path / "p.jsonl")),), tokenizer_path, shard_tokens=600),
        tmp_path / "out",
    )
    assert len(open_tokens(tmp_path / "out").shards) > 2
    found = stored(tmp_path / "out")
    for number, (chosen, rejected) in enumerate(zip(found[::2], found[1::2], strict=True)):
        assert (chosen["side"], rejected["side"]) == ("chosen", "rejected")
        assert chosen["pair"] == rejected["pair"] == chosen["conversation"] == number
        end = chosen["prompt_end"] - chosen["start"]
        assert end == rejected["prompt_end"] - rejected["start"]
        assert chosen["ids"][:end] == rejected["ids"][:end]
        assert sum(chosen["weights"][:end]) == 0
        assert chosen["ids"] != rejected["ids"]


@pytest.mark.parametrize("objective", ["sft", "dpo"])
def test_bytes_do_not_depend_on_workers(objective: Any, tokenizer_path: Path, tmp_path: Path) -> None:
    rows = questions() if objective == "sft" else pairs()
    for number in range(3):
        write_lines(tmp_path / "in" / f"{number}.jsonl", rows[number::3])
    recipe = Prepare(
        objective, (Share(str(tmp_path / "in")),), tokenizer_path, held_out=0.2, shard_tokens=900
    )
    for workers in (1, 3):
        prepare(recipe, tmp_path / f"w{workers}", LocalEngine(workers))
    assert contents(tmp_path / "w1") == contents(tmp_path / "w3")
    assert {"heldout/conversations.jsonl", "shard-00001.weights.u8"} <= contents(tmp_path / "w1").keys()


def test_pieces_of_a_split_conversation_stay_together(tokenizer_path: Path, tmp_path: Path) -> None:
    turns = [
        {"role": ("user", "assistant")[n % 2], "content": f"turn {n} " + "word " * 12} for n in range(12)
    ]
    rows = [{"id": f"long-{n}", "messages": turns} for n in range(5)] + questions(10)
    write_lines(tmp_path / "q.jsonl", rows)
    recipe = Prepare(
        "sft", (Share(str(tmp_path / "q.jsonl")),), tokenizer_path, max_length=200, shard_tokens=700
    )
    made = prepare(recipe, tmp_path / "out")
    found = stored(tmp_path / "out")
    numbers = [row["conversation"] for row in found]
    assert numbers == sorted(numbers)
    assert set(numbers) == set(range(max(numbers) + 1))
    counts = Counter(row["id"] for row in found if row["id"].startswith("long"))
    assert len(counts) == 5
    assert len(set(counts.values())) == 1
    assert counts["long-0"] > 1
    assert len({row["conversation"] for row in found if row["id"] == "long-3"}) == 1
    assert made.counters["over_long"]["split"] == 5
    assert max(len(row["ids"]) for row in found) <= 200


def test_a_prompt_is_never_on_both_sides_of_the_hold_out(tokenizer_path: Path, tmp_path: Path) -> None:
    write_lines(tmp_path / "p.jsonl", pairs())
    prepare(
        Prepare("dpo", (Share(str(tmp_path / "p.jsonl")),), tokenizer_path, held_out=0.3), tmp_path / "out"
    )
    sides = []
    for folder in (tmp_path / "out", tmp_path / "out" / "heldout"):
        sides.append({tuple(row["ids"][: row["prompt_end"] - row["start"]]) for row in stored(folder)})
    assert sides[0]
    assert sides[1]
    assert not sides[0] & sides[1]
    kept = [
        json.loads(line) for line in (tmp_path / "out/heldout/conversations.jsonl").read_text().splitlines()
    ]
    assert len(kept) == len(stored(tmp_path / "out" / "heldout")) / 2
    assert set(kept[0]) == {"id", "source", "prompt", "chosen", "rejected"}


def test_a_number_of_prompts_is_held_out_exactly(
    shared_data: Path, tokenizer_path: Path, tmp_path: Path
) -> None:
    recipe = Prepare(
        "sft",
        (Share(str(shared_data / "chat" / "instructions.jsonl.gz")),),
        tokenizer_path,
        max_length=100_000,
        held_out=200,
    )
    made = prepare(recipe, tmp_path / "out")
    assert made.facts["chat"]["conversations"] == 605
    assert len(stored(tmp_path / "out" / "heldout")) == 200


def test_parquet_as_the_hub_keeps_it(tokenizer_path: Path, tmp_path: Path) -> None:
    rows = questions(10)
    write_lines(tmp_path / "a" / "q.jsonl", rows)
    (tmp_path / "b").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "b" / "q.parquet")
    for name in ("a", "b"):
        prepare(Prepare("sft", (Share(str(tmp_path / name)),), tokenizer_path), tmp_path / f"out-{name}")
    plain = [
        sorted((row["id"], row["ids"], row["weights"]) for row in stored(tmp_path / f"out-{n}")) for n in "ab"
    ]
    assert plain[0] == plain[1]


def test_rows_that_are_no_conversations_are_set_aside_or_refused(
    tokenizer_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [json.dumps(row) for row in questions(38)]
    lines[7] = '{"messages": ['
    lines[20] = json.dumps({"messages": [{"role": "assistant", "content": "first"}]})
    (tmp_path / "q.jsonl").write_text("\n".join(lines))
    share = (Share(str(tmp_path / "q.jsonl")),)
    with pytest.raises(LoomError, match=r"q\.jsonl:8: broken JSON.*q\.jsonl:21: starts with the assistant"):
        prepare(Prepare("sft", share, tokenizer_path, max_bad=0.05), tmp_path / "out")
    made = prepare(Prepare("sft", share, tokenizer_path, max_bad=0.06), tmp_path / "out")
    assert made.counters["rejected"] == {"broken JSON": 1, "starts with the assistant": 1}
    assert made.counters["rows"] == 38
    assert len(stored(tmp_path / "out")) == 36
    aside = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()]
    assert [row["line"] for row in aside] == [8, 21]
    assert "q.jsonl:8" in capsys.readouterr().err


def test_a_file_cut_short_is_named(tokenizer_path: Path, tmp_path: Path) -> None:
    data = gzip.compress("\n".join(json.dumps(row) for row in questions()).encode())
    (tmp_path / "q.jsonl.gz").write_bytes(data[: len(data) // 2])
    with pytest.raises(LoomError, match=r"q\.jsonl\.gz was cut short"):
        prepare(Prepare("sft", (Share(str(tmp_path / "q.jsonl.gz")),), tokenizer_path), tmp_path / "out")


def test_real_pairs_and_conversations(shared_data: Path, tmp_path: Path) -> None:
    """Six of the 1,200 pairs hold an empty turn or two answers in a row; the others all fit."""
    tokenizer_path = shared_data / "tokenizers" / "olmo-v1.json"
    share = (Share(str(shared_data / "chat" / "hh-harmless.pairs.jsonl.gz")),)
    made = prepare(Prepare("dpo", share, tokenizer_path), tmp_path / "out")
    assert made.counters["rejected"] == {"empty turn": 4, "turns do not alternate": 2}
    assert made.facts["chat"]["conversations"] == 1194
    weights = np.concatenate(open_tokens(tmp_path / "out").weights)
    ids = np.concatenate(open_tokens(tmp_path / "out").arrays)
    assert ((weights == 1) & (ids == 50279)).sum() == 2 * 1194


def test_the_command_shows_what_is_trained(
    tokenizer_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_lines(tmp_path / "q.jsonl", questions(3))
    words = ["prepare", "sft", "--input", str(tmp_path / "q.jsonl"), "--tokenizer", str(tokenizer_path)]
    with pytest.raises(SystemExit) as ended:
        main([*words, "--show", "1"])
    shown = capsys.readouterr().out
    assert ended.value.code == 0
    assert "Question 0?\n<|assistant|>\n⟦" in shown
    assert "<|endoftext|>⟧" in shown
    with pytest.raises(SystemExit) as ended:
        main([*words, "--out", str(tmp_path / "out"), "--json"])
    assert ended.value.code == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["rows"] == 3


def test_nothing_left_to_train_on_is_an_error(tokenizer_path: Path, tmp_path: Path) -> None:
    write_lines(tmp_path / "q.jsonl", [{"prompt": "word " * 500, "completion": "a"}])
    share = (Share(str(tmp_path / "q.jsonl")),)
    with pytest.raises(LoomError, match="every row was set aside"):
        prepare(Prepare("sft", share, tokenizer_path, max_length=64), tmp_path / "out")


def test_a_format_that_changed_under_its_name_is_prepared_anew(tokenizer_path: Path, tmp_path: Path) -> None:
    from loom.recipe import dump_yaml

    write_lines(tmp_path / "q.jsonl", questions(10))
    own = tmp_path / "own.yaml"
    own.write_text(dump_yaml(FORMATS["olmo-v1"]))
    recipe = Prepare("sft", (Share(str(tmp_path / "q.jsonl")),), tokenizer_path, format=str(own))
    first = prepare(recipe, tmp_path / "out")
    assert prepare(recipe, tmp_path / "out").digest == first.digest
    before = stored(tmp_path / "out")
    own.write_text(own.read_text().replace("<|user|>", "<|human|>"))
    prepare(recipe, tmp_path / "out")
    assert [row["ids"] for row in stored(tmp_path / "out")] != [row["ids"] for row in before]


def test_what_is_held_out_is_there_once_however_often_the_rest_is(
    tokenizer_path: Path, tmp_path: Path
) -> None:
    write_lines(tmp_path / "q.jsonl", questions(40))
    shares = (Share(str(tmp_path / "q.jsonl"), repeat=3),)
    made = prepare(Prepare("sft", shares, tokenizer_path, held_out=10), tmp_path / "out")
    held = Counter(row["id"] for row in stored(tmp_path / "out" / "heldout"))
    assert (len(held), set(held.values())) == (10, {1})
    kept = Counter(row["id"] for row in stored(tmp_path / "out"))
    assert (len(kept), set(kept.values())) == (30, {3})
    assert (made.counters["held_out"], made.facts["chat"]["conversations"]) == (10, 90)
    by_source = made.facts["chat"]["by_source"]
    assert sum(by_source.values()) == 90 and set(by_source) == {"even", "odd"}
