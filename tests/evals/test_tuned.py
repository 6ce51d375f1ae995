"""Held-out answers, pairs, prompts and probes; several models in one table."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loom.chat.mixture import Share
from loom.chat.prepare import Prepare, prepare
from loom.cli import main
from loom.errors import LoomError
from loom.evals import tuned
from loom.evals.beside import table as beside
from loom.evals.evaluate import evaluate
from loom.evals.plan import plan
from loom.evals.probes import PROBES
from loom.evals.settings import EvalRecipe
from loom.evals.subject import Subject
from loom.model.transformer import Transformer
from loom.tokens.tokenizer import Tokenizer
from tests.evals.conftest import brute_force, byte_tokenizer, random_model

SENTENCES = ["The train is late", "A river runs to the sea", "Nobody knows why the teacher left early."]


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    """`sft` and `dpo` folders with held-out rows, bytes for tokens."""
    (tmp_path / "tokenizer.json").write_text(json.dumps(byte_tokenizer()))
    chats = [
        {
            "messages": [
                {"role": "user", "content": f"Q{n}?"},
                {"role": "assistant", "content": SENTENCES[n % 3]},
            ]
        }
        for n in range(12)
    ]
    pairs = [{"prompt": f"Q{n}?", "chosen": f"Yes {n}.", "rejected": SENTENCES[n % 3]} for n in range(12)]
    for name, rows in (("sft", chats), ("dpo", pairs)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        recipe = Prepare(
            name,  # type: ignore[arg-type]
            (Share(str(tmp_path / f"{name}.jsonl")),),
            tmp_path / "tokenizer.json",
            max_length=128,
            held_out=5,
        )
        prepare(recipe, tmp_path / name)
    return tmp_path


@pytest.fixture
def subject(prepared: Path) -> Subject:
    model: Transformer = random_model(context=128)
    tokenizer = Tokenizer.load(prepared / "tokenizer.json")
    return Subject(model, tokenizer, 128, prepared, "none", "float32", "cpu")  # type: ignore[arg-type]


def test_answers_equal_brute_force(prepared: Path, subject: Subject) -> None:
    figures, lines = tuned.answers(subject, prepared / "sft")
    assert figures["n"] == len(lines) == 5
    total = bytes_ = 0.0
    for document in tuned.documents(prepared / "sft" / "heldout", subject):
        first = int(np.flatnonzero(document.weights)[0])
        ids = document.ids.tolist()
        total -= brute_force(subject.model, ids[:first], ids[first:])  # type: ignore[arg-type]
        bytes_ += len(subject.tokenizer.decode(ids[first:]).encode())
    assert figures["bits_per_byte"] == pytest.approx(total / bytes_ / math.log(2), rel=1e-5)


def test_preferences_equal_brute_force(prepared: Path, subject: Subject) -> None:
    figures, lines = tuned.preferences(subject, prepared / "dpo")
    sides: dict[int, dict[str, float]] = {}
    for document in tuned.documents(prepared / "dpo" / "heldout", subject):
        first = int(np.flatnonzero(document.weights)[0])
        ids = document.ids.tolist()
        logp = brute_force(subject.model, ids[:first], ids[first:])  # type: ignore[arg-type]
        sides.setdefault(document.pair, {})[document.side] = logp
    wins = [side["chosen"] > side["rejected"] for side in sides.values()]
    assert figures["n"] == 5 and figures["acc"] == pytest.approx(sum(wins) / 5)
    found = sorted(line["chosen"] for line in lines)
    assert found == pytest.approx(sorted(side["chosen"] for side in sides.values()), abs=1e-3)


def test_answers_end_where_the_stop_token_comes(
    prepared: Path, subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Greedy answers without a stop are what the model says; with one of their tokens as the stop, those that
    hold it end before it and the others go on."""
    form = tuned.chat_of(subject)
    answer, told = tuned.generate_answers, []

    def listen(*given: Any, **named: Any) -> Any:
        told.append(answer(*given, **named))
        return told[-1]

    monkeypatch.setattr(tuned, "generate_answers", listen)
    monkeypatch.setattr(tuned, "chat_of", lambda _: replace(form, stop_ids=()))
    _, whole = tuned.instructions(subject, prepared / "sft", max_new_tokens=12)
    assert {line["finish"] for line in whole} == {"length"}
    said = [one.tokens for one in told[0]]
    shared = Counter(token for ids in said for token in dict.fromkeys(ids[3:]))
    stop = min(shared, key=lambda token: abs(shared[token] - 2.5))  # in some and not in all
    monkeypatch.setattr(tuned, "chat_of", lambda _: replace(form, stop_ids=(stop,)))
    figures, lines = tuned.instructions(subject, prepared / "sft", max_new_tokens=12)
    ended = [line["finish"] == "stop" for line in lines]
    assert ended == [stop in ids for ids in said] and sum(ended) > 0
    assert figures["stop_rate"] == pytest.approx(sum(ended) / 5) and figures["n"] == 5
    for line, before in zip(lines, whole, strict=True):
        assert before["answer"].startswith(line["answer"])


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        ("list", "1. apple\n2. pear\n3. plum", "1. apple\n3. pear\n2. plum"),
        ("case", "COLD SNOW FALLS.", "Cold snow falls."),
        ("one word", "Blue.", "It is blue."),
        ("quote", "The train is late.", "The train is late. Sorry."),
    ],
)
def test_probes_tell_good_from_bad(kind: str, good: str, bad: str) -> None:
    probe = next(probe for probe in PROBES if probe.kind == kind)
    assert probe.check(good) and not probe.check(bad)
    assert not any(probe.check("") for probe in PROBES)


def test_no_held_out_rows_are_named(prepared: Path, subject: Subject) -> None:
    recipe = Prepare(
        "sft", (Share(str(prepared / "sft.jsonl")),), prepared / "tokenizer.json", max_length=128
    )
    prepare(recipe, prepared / "none")
    pairs = Prepare("dpo", (Share(str(prepared / "dpo.jsonl")),), prepared / "tokenizer.json", max_length=128)
    prepare(pairs, prepared / "no-pairs")
    for measure, folder in (
        (tuned.instructions, "none"), (tuned.answers, "none"), (tuned.preferences, "no-pairs"),
    ):  # fmt: skip
        with pytest.raises(LoomError, match="--held-out"):
            measure(subject, prepared / folder)
    for measure, folder in (
        (tuned.instructions, "dpo"), (tuned.answers, "dpo"), (tuned.preferences, "sft"),
    ):  # fmt: skip
        with pytest.raises(LoomError, match=f"made by `loom prepare {folder}`"):
            measure(subject, prepared / folder)
    with pytest.raises(LoomError, match="what a model was trained on"):  # before anything is measured
        plan(EvalRecipe(pairs=prepared / "no-pairs"))


def test_probes_are_the_same_whatever_was_held_out(
    prepared: Path, subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two folders that hold out other answers: those are other rows, the probes are not."""
    monkeypatch.setenv("LOOM_CACHE", str(tmp_path / "cache"))
    recipe = Prepare(
        "sft", (Share(str(prepared / "sft.jsonl")),), prepared / "tokenizer.json", max_length=128, held_out=4
    )
    prepare(recipe, prepared / "other")
    for name, folder in (("a", "sft"), ("b", "other")):
        evaluate(subject, EvalRecipe(conversations=prepared / folder, max_new_tokens=2), tmp_path / name)
    places = {name: [tmp_path / name] for name in "ab"}
    bodies = {name: [beside.read(folder) for folder in of] for name, of in places.items()}
    digests = [[one["tasks"][task]["digest"] for task in ("answers", "probes")] for (one,) in bodies.values()]
    assert digests[0][0] != digests[1][0] and digests[0][1] == digests[1][1]
    lines = {line.name: line for line in beside.table(bodies, places)}
    assert beside.verdict(lines["instruction probes followed"], "a", "b") == "same"
    assert beside.verdict(lines["held-out answers: bits per byte"], "a", "b") == beside.OTHER


def body(**results: Any) -> dict[str, Any]:
    headlines = {
        name: {"headline": "n" if "refused" in result else "acc"} for name, result in results.items()
    }
    return {"results": results, "tasks": headlines}


def test_table_shows_losses_chance_and_what_was_seen(tmp_path: Path) -> None:
    def mmlu(acc: float) -> dict[str, float]:
        return {"acc": acc, "acc_stderr": 0.01, "chance": 0.25, "n": 371}

    before = body(mmlu=mmlu(0.26), preferences={"acc": 0.5, "acc_stderr": 0.02, "chance": 0.5, "n": 400})
    after = [
        body(
            mmlu=mmlu(acc),
            preferences={"acc": 0.7, "acc_stderr": 0.02, "chance": 0.5, "n": 400},
            alpaca_eval={"n": 0, "refused": "605 of its prompts are in the training data"},
        )
        for acc in (0.20, 0.21, 0.22)
    ]
    lines = {line.name: line for line in beside.table({"base": [before], "dpo": after})}
    first = lines["MMLU accuracy"]
    assert isinstance(first.cells["base"], beside.Cell) and first.cells["base"].chance
    cell = first.cells["dpo"]
    assert isinstance(cell, beside.Cell) and cell.runs == 3 and not cell.chance
    assert cell.value == pytest.approx(0.21) and cell.deviation == pytest.approx(0.01)
    assert beside.verdict(first, "base", "dpo") == "worse"
    assert beside.verdict(lines["held-out pairs: accuracy, summed"], "base", "dpo") == "better"
    assert lines["alpaca_eval"].cells == {"dpo": "no figure: seen in training"}
    for name, one in {"base": before, **{f"dpo{n}": one for n, one in enumerate(after)}}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(json.dumps(one))
    runs = ",".join(str(tmp_path / f"dpo{n}") for n in range(3))
    words = [
        "table",
        f"base={tmp_path / 'base'}",
        f"dpo={runs}",
        "--published",
        "--out",
        str(tmp_path / "t.md"),
    ]
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code in (0, None)
    text = (tmp_path / "t.md").read_text()
    assert "chance" in text and "worse" in text and "seen in training" in text
    assert "table 4" in text and "| OLMo-7B + SFT | 47.3 | 57.0 | 14.4 | 41.2 |" in text
    assert "| dpo 3 | 2" in text and "no chat template" in text


def test_table_shows_ranked_tasks_by_protocol(tmp_path: Path) -> None:
    def ranked(value: float) -> dict[str, Any]:
        found = {"acc_norm": value, "acc_norm_stderr": 0.01, "chance": 0.5, "n": 900}
        facts = {"headline": "acc_norm", "files": [{"split": "validation", "digest": "d"}]}
        names = ("piqa:olmo-paper", "piqa", "sciq:olmo-paper")
        return {"results": dict.fromkeys(names, found), "tasks": dict.fromkeys(names, facts)}

    lines = beside.table({"a": [ranked(0.6)], "b": [ranked(0.7)]})
    assert [line.name for line in lines] == [
        "piqa acc_norm (validation)",
        "piqa:olmo-paper acc_norm (validation)",
        "sciq:olmo-paper acc_norm (validation)",
    ]
    assert all(beside.verdict(line, "a", "b") == "better" and line.n == 900 for line in lines)
    for name, one in (("a", ranked(0.6)), ("b", ranked(0.7))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(json.dumps(one))
    words = ["table", f"a={tmp_path / 'a'}", f"b={tmp_path / 'b'}", "--published"]
    with pytest.raises(SystemExit) as ended:
        main([*words, "--out", str(tmp_path / "t.md")])
    assert ended.value.code in (0, None)
    text = (tmp_path / "t.md").read_text()
    assert "| OLMo-7B | 48.5 |" in text and "| validation 1,000 |" in text
    assert "| b | – | – | – | – | – | 70.0 ± 1.0 (n 900) | 70.0 ± 1.0 (n 900) | – |" in text


def test_another_tokenizers_folder_is_refused(prepared: Path, subject: Subject) -> None:
    words = byte_tokenizer()
    words["model"]["merges"] = words["model"]["merges"][:-1]  # type: ignore[index]
    other = Tokenizer(json.dumps(words).encode(), "other")
    with pytest.raises(LoomError, match="tokenizer"):
        tuned.answers(replace(subject, tokenizer=other), prepared / "sft")
