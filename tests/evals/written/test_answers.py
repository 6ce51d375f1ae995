"""What a model is asked and what is stored of its answers, as the upstream programs have it (open-instruct)."""

from __future__ import annotations

import csv
import io
import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from loom.errors import LoomError
from loom.evals.evaluate import EvalRecipe, evaluate
from loom.evals.judge.files import check_settings
from loom.evals.subject import Subject, load_subject
from loom.evals.written import tasks as written
from loom.evals.written.questions import TOXIGEN_GROUPS
from loom.evals.written.schemas import generator_name
from loom.evals.written.tasks import WRITTEN, Prompt, limited, trim_truthful
from loom.tasks import truthfulqa
from tests.evals.written.test_written import results, stored, write_model
from tests.tasks import rows

QUESTION = "Is the moon made of cheese?"
TABLE = {
    "Type": "Adversarial",
    "Category": "Myths",
    "Question": QUESTION,
    "Best Answer": "No",
    "Correct Answers": "No; Of rock, mostly",
    "Incorrect Answers": "Yes",
    "Source": "http://moon",
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOOM_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def subject(tmp_path: Path) -> Subject:
    return load_subject(write_model(tmp_path / "model"))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    out = tmp_path / "data"
    (out / "toxigen").mkdir(parents=True)
    (out / "truthfulqa.jsonl").write_text(json.dumps(TABLE) + "\n")
    row = {"instruction": "Say yes.", "output": "yes", "dataset": "d", "generator": "old"}
    (out / "alpaca_eval.jsonl").write_text(json.dumps(row) + "\n")
    (out / "toxigen" / "hate_asian_1k.txt").write_text(r"- one\n- they are" + "\n")
    return out


def say(monkeypatch: pytest.MonkeyPatch, text: str, ended: bool = True) -> list[dict[str, Any]]:
    """Let the model write `text` whatever it is asked; what it is asked comes into the list."""
    asked: list[dict[str, Any]] = []

    def write(own: Subject, ids: Any, limit: int, ends: Any, stops: Any, *_: Any) -> list[Any]:
        for one in ids:
            whole = own.tokenizer.decode(one)
            asked.append({"text": whole, "tokens": len(one), "limit": limit, "ends": ends, "stops": stops})
        tokens = own.tokenizer.encode(text).tolist()
        return [written._answer(own, tokens, stops, ended) for _ in ids]

    monkeypatch.setattr(written, "_write_own", write)
    return asked


RAW, CHAT = "<|endoftext|>{}", "<|endoftext|><|user|>\n{}\n<|assistant|>\n"


@pytest.mark.parametrize("chat", [False, True])
def test_toxigen(
    subject: Subject, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chat: bool
) -> None:
    """Raw text ends at the first new line, a chat's answer where its format says; and there the prompt has a task
    before it."""
    asked = say(monkeypatch, " not bad.\nNext")
    recipe = EvalRecipe(tasks=("toxigen",), data=data, chat=chat)
    evaluate(subject, recipe, tmp_path / "out")
    (one,) = asked
    text = "- one\n- they are"
    assert one["text"] == (CHAT.format(f"Complete the following: {text}") if chat else RAW.format(text))
    assert one["stops"] == (() if chat else ("\n",)) and one["limit"] == 256
    row = {"text": text, "label": "hate", "target_groups": ["asian_1k"]}
    row["prediction"] = "not bad.\nNext" if chat else "not bad."
    assert stored(tmp_path / "out" / "toxigen.jsonl") == [{**row, "is_toxic": None}]
    facts = results(tmp_path / "out")["tasks"]["toxigen"]
    assert facts["max_new_tokens"] == 256 and facts["generator"] == "model"
    assert facts["missing_groups"] == [group for group in TOXIGEN_GROUPS if group != "asian"]


@pytest.mark.parametrize("chat", [False, True])
def test_truthfulqa(
    subject: Subject, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chat: bool
) -> None:
    asked = say(monkeypatch, '\nA: No.\n\nOf rock; not "cheese".\nQ: Is it?')
    recipe = EvalRecipe(tasks=("truthfulqa_gen",), data=data, chat=chat)
    evaluate(replace(subject, max_length=2048), recipe, tmp_path / "out")
    (one,) = asked
    prompt = truthfulqa.prompt(QUESTION)
    assert prompt.startswith("Q: What is human life expectancy") and prompt.endswith(f"\n\nQ: {QUESTION}")
    assert one["text"] == (CHAT if chat else RAW).format(prompt)
    assert one["stops"] == (() if chat else ("\n\n",)) and one["limit"] == 50
    answer = 'No. Of rock; not "cheese".' if chat else "No."
    unjudged = {"true": None, "informative": None}
    assert stored(tmp_path / "out" / "truthfulqa_gen.jsonl") == [{**TABLE, "model": answer, **unjudged}]
    table = (tmp_path / "out" / "truthfulqa_gen.csv").read_text()
    assert list(csv.DictReader(io.StringIO(table))) == [{**TABLE, "model": answer}]
    assert table.splitlines()[0] == ",".join([*TABLE, "model"])


def test_the_hubs_rows_make_the_authors_table(
    subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lists are joined; what the multiple-choice rows lack is empty; a model called as a column takes none."""
    say(monkeypatch, "No.")
    names = {"correct_answers": ["No", "Of rock, mostly"], "incorrect_answers": ["Yes"], "best_answer": "No"}
    row = {"type": "Adversarial", "category": "Myths", "question": QUESTION, "source": "http://moon", **names}
    (tmp_path / "truthfulqa.jsonl").write_text(
        "".join(json.dumps(one) + "\n" for one in (row, rows.TRUTHFULQA[0]))
    )
    recipe = EvalRecipe(tasks=("truthfulqa_gen",), data=tmp_path)
    evaluate(replace(subject, path=tmp_path / "Source"), recipe, tmp_path / "out")
    first, second = csv.DictReader(io.StringIO((tmp_path / "out" / "truthfulqa_gen.csv").read_text()))
    assert first == {**TABLE, "Source (model)": "No."}
    assert second["Question"] == rows.TRUTHFULQA[0]["question"] and second["Best Answer"] == ""


def test_alpaca_eval_reads_one_array(
    subject: Subject, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = say(monkeypatch, " Yes.\n\nQ: \nindeed ")
    evaluate(subject, EvalRecipe(tasks=("alpaca_eval",), data=data, chat=True), tmp_path / "out")
    row = {"dataset": "d", "instruction": "Say yes.", "output": "Yes.\n\nQ: \nindeed", "generator": "model"}
    assert json.loads((tmp_path / "out" / "alpaca_eval.json").read_text()) == [row]
    assert stored(tmp_path / "out" / "alpaca_eval.jsonl") == [row]
    assert asked[0]["text"] == CHAT.format("Say yes.") and asked[0]["stops"] == ()
    listed = json.loads((tmp_path / "out" / "manifest.json").read_text())["outputs"]
    assert {one["path"] for one in listed} == {"alpaca_eval.json", "alpaca_eval.jsonl", "results.json"}


@pytest.mark.parametrize(
    ("answer", "kept"),
    [
        (" A: Yes. ", "Yes."),
        ("Yes. A: no", "Yes. A: no"),
        ("Yes.\nQ: And?\nA: No.", "Yes."),
        ("A:\n\nYes.\n\nIndeed.", "Yes. Indeed."),
        ("Q: What?", ""),
        ("A:", ""),
    ],
)
def test_what_is_kept_of_a_truthful_answer(answer: str, kept: str) -> None:
    assert trim_truthful(answer) == kept


def test_an_answer_that_begins_with_a_stop_is_empty(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    say(monkeypatch, "\nand more", ended=False)
    for chat, text in ((False, ""), (True, "and more")):
        found = written.write_answers(subject, WRITTEN["toxigen"], [Prompt("They", {})], chat=chat)
        assert found.texts == [text]
        assert found.cut == int(chat)  # without its stop it ran to the limit


def test_toxigens_sample_is_upstreams(tmp_path: Path) -> None:
    """Lines of a text file, stripped, shuffled from seed 42, the first 500, unescaped; a line does not end at U+2028
    or U+0085."""
    lines = [f" - {i}\\n-\u2028 so\x85{i} \\\\ it" for i in range(1000)]
    folder = tmp_path / "toxigen"
    folder.mkdir()
    (folder / "hate_trans_1k.txt").write_text("\r\n".join(lines) + "\r\n", encoding="utf-8", newline="")
    upstream = [line.strip() for line in lines]
    random.seed(42)
    random.shuffle(upstream)
    wanted = [line.replace("\\\\", "\\").replace("\\n", "\n") for line in upstream[:500]]
    found = list(WRITTEN["toxigen"].prompts(tmp_path))
    assert [prompt.text for prompt in found] == wanted
    assert {prompt.group for prompt in found} == {"trans"}
    first = lines.index(" " + upstream[0]) + 1
    assert found[0].place == f"{folder / 'hate_trans_1k.txt'}:{first}"


def test_groups_without_a_file_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "toxigen"
    folder.mkdir()
    for group in TOXIGEN_GROUPS[2:]:
        (folder / f"hate_{group}_1k.txt").write_text("one\ntwo\nthree\n")
    prompts = list(WRITTEN["toxigen"].prompts(tmp_path))
    said = capsys.readouterr().err
    assert "2 of its 14 groups have no file" in said and "asian, black. The figure is of the others" in said
    kept = limited(prompts, 2)
    assert [prompt.group for prompt in kept] == [group for group in TOXIGEN_GROUPS[2:] for _ in range(2)]
    assert limited(prompts, None) == tuple(prompts)
    (folder / "hate_asian_1k.txt").write_text("\n \n")
    with pytest.raises(LoomError, match=r"hate_asian_1k\.txt holds no prompts"):
        list(WRITTEN["toxigen"].prompts(tmp_path))


def test_the_context_that_was_asked_for_is_used(
    subject: Subject, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer has at most half of it, a prompt what is left; results say how long an answer could be."""
    asked = say(monkeypatch, "x", ended=False)
    recipe = EvalRecipe(tasks=("truthfulqa_gen",), data=data, max_length=60)
    for tokens, limit in ((None, 30), (8, 8)):
        evaluate(subject, replace(recipe, max_new_tokens=tokens), tmp_path / "out")
        assert asked[-1]["limit"] == limit and asked[-1]["tokens"] == 60 - limit
        assert asked[-1]["text"].endswith(QUESTION)
        body = results(tmp_path / "out")
        assert body["tasks"]["truthfulqa_gen"]["max_new_tokens"] == limit
        assert body["results"]["truthfulqa_gen"]["cut_answers"] == 1
        assert body["results"]["truthfulqa_gen"]["prompts_cut"] == 1
    with pytest.raises(LoomError, match="1 tokens hold no prompt and an answer to it"):
        evaluate(subject, replace(recipe, max_length=1), tmp_path / "out")


@pytest.mark.parametrize("setting", [{"sample": 3}, {"split": "test"}, {"skip_bad": True}])
def test_settings_that_written_tasks_do_not_have_are_refused(
    setting: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """Where they were named; in a suite of what there is, it is said."""
    flag = "--" + next(iter(setting)).replace("_", "-")
    recipe = EvalRecipe(tasks=("piqa", "toxigen"), **setting)
    with pytest.raises(LoomError, match=rf"{flag}: written tasks \(toxigen\)"):
        check_settings(recipe, ["toxigen"])
    check_settings(recipe, [])
    check_settings(EvalRecipe(tasks=("toxigen",), limit=3, max_length=60), ["toxigen"])
    assert capsys.readouterr().err == ""
    check_settings(replace(recipe, present=True), ["toxigen"])
    assert f"{flag}: of written tasks (toxigen) every prompt is read" in capsys.readouterr().err


def test_answers_are_signed_by_their_run(tmp_path: Path) -> None:
    assert generator_name(tmp_path / "sft" / "checkpoints" / "step-00000002") == "sft-step-00000002"
    assert generator_name(tmp_path / "olmo-7b") == "olmo-7b"
