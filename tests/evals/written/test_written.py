"""Written answers: in the model's own format, judged each by a judge of its own, kept when one fails."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from loom.chat.format import FORMATS, Message
from loom.chat.prompts import conversation
from loom.chat.template import Template
from loom.cli import main
from loom.errors import LoomError
from loom.evals.evaluate import EvalRecipe, evaluate
from loom.evals.judge import files as judged
from loom.evals.judge.files import judges_for
from loom.evals.plan import plan
from loom.evals.subject import load_subject
from loom.evals.written import tasks as written
from loom.evals.written.tasks import WRITTEN, Answer, chat_of, fit_turns, write_answers
from loom.model.huggingface import config_to_huggingface, to_huggingface
from loom.tokens.tokenizer import Tokenizer
from tests.evals.conftest import byte_tokenizer, random_model
from tests.evals.judge.test_verdicts import write_classifier
from tests.tasks import rows


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOOM_CACHE", str(tmp_path / "cache"))


def chatml_tokenizer() -> dict[str, Any]:
    spec: dict[str, Any] = byte_tokenizer()
    for token in ("<|im_start|>", "<|im_end|>"):
        added = spec["added_tokens"]
        added.append({**added[0], "id": added[-1]["id"] + 1, "content": token})
    return spec


def write_model(folder: Path, template: str | None = None) -> Path:
    folder.mkdir()
    model = random_model(context=512)
    save_file(to_huggingface(model.state_dict(), model.config), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config_to_huggingface(model.config, 260, 261)))
    (folder / "tokenizer.json").write_text(json.dumps(chatml_tokenizer()))
    if template is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model")


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    out = tmp_path / "data"
    (out / "toxigen").mkdir(parents=True)
    files: dict[str, list[dict[str, Any]]] = {
        "alpaca_eval": [
            {"instruction": f"Say {word}.", "output": word, "generator": "old"} for word in ("yes", "no")
        ],
        "truthfulqa": rows.TRUTHFULQA,
    }
    for name, lines in files.items():
        (out / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for group in ("trans", "asian"):
        (out / "toxigen" / f"hate_{group}_1k.txt").write_text("They are\nAll of them\n")
    return out


def results(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "results.json").read_text())
    return found


def stored(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def test_each_task_has_a_judge_of_its_own(folder: Path, questions: Path, tmp_path: Path) -> None:
    """The whole adaptation suite in one command, and none of it a second time."""
    classifier = write_classifier(tmp_path / "classifier", 1.0)
    words = ["eval", str(folder), "--data", str(questions), "--max-new-tokens", "4"]
    words += ["--judge", f"alpaca_eval=model:{folder}", "--judge", f"truthfulqa_gen=model:{folder},{folder}"]
    words += ["--judge", f"classifier:{classifier}"]
    with pytest.raises(SystemExit) as ended:
        main([*words, "--suite", "adaptation", "--out", str(tmp_path / "one")])
    assert ended.value.code in (0, None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("loom.evals.judge.verdicts.classify", lambda *_: pytest.fail("judged again"))
        patch.setattr("loom.evals.cache.score_items", lambda *_, **__: pytest.fail("scored again"))
        patch.setattr(written, "Generator", lambda *_: pytest.fail("written again"))
        with pytest.raises(SystemExit) as ended:
            main([*words, "--tasks", "adaptation", "--out", str(tmp_path / "two")])
        assert ended.value.code in (0, None)
    body = results(tmp_path / "one")
    assert body["results"] == results(tmp_path / "two")["results"]
    found = body["results"]
    assert found["alpaca_eval"]["judged"] == 2 and "alpaca_win[local-model]" in found["alpaca_eval"]
    assert "info+true[local-model]" in found["truthfulqa_gen"]
    assert {"toxic[classifier]", "toxic[classifier]:asian"} <= found["toxigen"].keys()
    assert "truthfulqa_mc1" in found and "mmlu" in body["not_measured"]
    assert all(body["tasks"][name]["prompts"][0]["digest"] for name in WRITTEN)
    assert {"torch", "numpy"} <= body["versions"].keys()
    recorded = json.loads((tmp_path / "one" / "manifest.json").read_text())["recipe"]["judges"]
    assert recorded[1:] == ["truthfulqa_gen=model:../model,../model", "classifier:../classifier"]


def test_answers_are_kept_where_a_judge_fails(
    folder: Path, questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A classifier without weights: what was answered and what else was measured lie in the folder, the command
    fails, and the same command with a judge that works writes nothing again."""
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text('{"model_type": "gpt_neox"}')
    out = tmp_path / "out"
    words = ["eval", str(folder), "--tasks", "toxigen,alpaca_eval,truthfulqa_mc1", "--data", str(questions)]
    words += ["--max-new-tokens", "4", "--out", str(out)]
    with pytest.raises(SystemExit) as ended:
        main([*words, "--judge", f"classifier:{broken}"])
    assert ended.value.code == 1
    assert "toxigen could not be judged" in " ".join(capsys.readouterr().err.split())
    before = stored(out / "toxigen.jsonl")
    assert [row["is_toxic"] for row in before] == [None] * 4
    found = results(out)["results"]
    assert found["toxigen"].keys() == {"n", "empty_answers", "prompts_cut", "cut_answers", "judge_failed"}
    assert found["alpaca_eval"]["n"] == 2 and "acc" in found["truthfulqa_mc1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(written, "Generator", lambda *_: pytest.fail("written again"))
        with pytest.raises(SystemExit) as ended:
            main([*words, "--judge", f"classifier:{write_classifier(tmp_path / 'whole', 1.0)}"])
        assert ended.value.code in (0, None)
    after = stored(out / "toxigen.jsonl")
    assert [row | {"is_toxic": None} for row in after] == before
    toxic = results(out)["results"]["toxigen"]["toxic[classifier]"]
    assert toxic == 25 * sum(row["is_toxic"] for row in after)


@pytest.mark.parametrize("damage", ["cut", "classes"])
def test_no_answer_is_lost_to_what_a_judge_raises(
    folder: Path, questions: Path, tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """safetensors' own error of a file cut short, too: everything but the figure is in results.json."""
    classifier = write_classifier(tmp_path / "classifier", 1.0, 2 if damage == "cut" else 6)
    weights = classifier / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: 100 if damage == "cut" else None])
    words = ["--tasks", "toxigen", "--data", str(questions), "--max-new-tokens", "4"]
    with pytest.raises(SystemExit) as ended:
        main(
            ["eval", str(folder), *words, "--judge", f"classifier:{classifier}", "--out", str(tmp_path / "o")]
        )
    assert ended.value.code == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "toxigen could not be judged" in said and "a defect of Loom's" not in said
    assert results(tmp_path / "o")["results"]["toxigen"]["judge_failed"].startswith(
        f"classifier:{classifier}: "
    )
    assert results(tmp_path / "o")["tasks"]["toxigen"]["headline"] == "n"
    assert len(stored(tmp_path / "o" / "toxigen.jsonl")) == 4


def test_a_figure_of_part_of_the_answers_says_so(
    folder: Path, questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """n in the table is of those that were judged."""
    classifier = write_classifier(tmp_path / "classifier", 1.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("loom.evals.judge.verdicts.classify", lambda *_: [True, None, False, None])
        words = ["--tasks", "toxigen", "--data", str(questions), "--max-new-tokens", "4"]
        with pytest.raises(SystemExit):
            main(
                [
                    "eval",
                    str(folder),
                    *words,
                    "--judge",
                    f"classifier:{classifier}",
                    "--out",
                    str(tmp_path / "o"),
                ]
            )
    said = " ".join(capsys.readouterr().out.split())
    assert "toxigen 2 toxic[classifier] 50 ± 50" in said
    assert "toxigen: 2 of 4 answers were not judged (longer than the judge's context: 2)" in said
    assert "toxigen: 12 groups have no file: black, chinese" in said
    assert "toxigen: 4 of 4 answers were cut at 4 tokens" in said
    assert [row["is_toxic"] for row in stored(tmp_path / "o" / "toxigen.jsonl")] == [1, None, 0, None]


def test_verdicts_that_were_stored_can_be_replayed(folder: Path, questions: Path, tmp_path: Path) -> None:
    """From the annotations alone, without the model and without the judge."""
    recipe = EvalRecipe(
        tasks=("alpaca_eval", "truthfulqa_gen"),
        data=questions,
        max_new_tokens=4,
        judges=(f"alpaca_eval=model:{folder}", f"truthfulqa_gen=model:{folder},{folder}"),
    )
    evaluate(load_subject(folder), recipe, tmp_path / "out")
    rows_ = stored(tmp_path / "out" / "alpaca_eval.annotations.jsonl")
    assert [row["output_1"] for row in rows_] == ["yes", "no"]
    assert {row["generator_2"] for row in rows_} == {"model"} and {row["generator_1"] for row in rows_} == {
        "old"
    }
    file = tmp_path / "out" / "alpaca_eval.annotations.jsonl"
    with pytest.raises(SystemExit) as ended:
        main(["eval", str(file), "--judge", f"replay:{file}", "--out", str(tmp_path / "again")])
    assert ended.value.code in (0, None)
    first, again = (results(tmp_path / name)["results"]["alpaca_eval"] for name in ("out", "again"))
    assert again["alpaca_win[replay]"] == pytest.approx(first["alpaca_win[local-model]"])
    assert first["orders_disagree"] in (0, 1, 2)
    truth = stored(tmp_path / "out" / "truthfulqa_gen.jsonl")
    figures = results(tmp_path / "out")["results"]["truthfulqa_gen"]
    assert 50 * sum(row["true"] for row in truth) == figures["true[local-model]"]
    both = [row["true"] * row["informative"] for row in truth]
    assert 50 * sum(both) == figures["info+true[local-model]"]


ALL = tuple(WRITTEN)
WRONG = [
    ("gpt4", ALL, "judges none of the tasks"),
    ("classifier:X", ("alpaca_eval",), "judges none of the tasks: alpaca_eval takes replay:FILE"),
    ("toxigen=model:X", ALL, "toxigen cannot be judged by 'model:X'"),
    ("toxigen=classifier:X", ("alpaca_eval",), "toxigen is not among the tasks"),
    ("classifier:nowhere", ALL, "no config.json in nowhere"),
    ("alpaca_eval=replay:nowhere.jsonl", ALL, "no file of annotations nowhere.jsonl"),
    ("alpaca_eval=endpoint:localhost#m", ALL, "localhost is no address"),
    ("alpaca_eval=model:a,b", ALL, "cannot be judged by 'model:a,b'"),
    ("model:nowhere", ALL, "nowhere"),
]


@pytest.mark.parametrize(("spec", "tasks", "why"), WRONG)
def test_a_judge_that_cannot_judge_is_said_before_a_model_is_loaded(
    questions: Path, spec: str, tasks: tuple[str, ...], why: str
) -> None:
    with pytest.raises(LoomError, match=why):
        plan(EvalRecipe(tasks=tasks, data=questions, judges=(spec,)))


@pytest.mark.parametrize("row", [{"instruction": "Go on."}, {"instruction": "Go on.", "output": None}])
def test_a_model_is_not_judged_against_an_answer_that_is_not_there(
    folder: Path, questions: Path, row: dict[str, Any]
) -> None:
    """It would win against nothing. What was judged before needs no reference."""
    file = questions / "alpaca_eval.jsonl"
    file.write_text(file.read_text() + json.dumps(row) + "\n")
    recipe = EvalRecipe(tasks=("alpaca_eval",), data=questions)
    for judge in (f"model:{folder}", "endpoint:http://127.0.0.1:1/v1#m"):
        with pytest.raises(LoomError, match=r"alpaca_eval\.jsonl:3: this row has no output"):
            plan(replace(recipe, judges=(judge,)))
    stored = questions / "annotations.jsonl"
    stored.write_text(json.dumps({"instruction": "Go on.", "output_2": "x", "preference": 2}) + "\n")
    for judges in ((), (f"replay:{stored}",)):
        assert len(plan(replace(recipe, judges=judges)).written[0][1]) == 3


def test_a_judge_by_itself_is_for_all_that_take_its_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judged, "_check", lambda *_: None)
    assert judges_for(["model:X"], ALL) == {"alpaca_eval": "model:X", "truthfulqa_gen": "model:X"}
    assert judges_for(["model:X,Y"], ALL) == {"truthfulqa_gen": "model:X,Y"}
    given = ["model:X", "alpaca_eval=replay:F", "classifier:C"]
    assert judges_for(given, ALL) == {
        "alpaca_eval": "replay:F",
        "truthfulqa_gen": "model:X",
        "toxigen": "classifier:C",
    }


@pytest.mark.parametrize(
    ("name", "line"), [("alpaca_eval", '{"output": "x"}'), ("truthfulqa", '{"question": ""}')]
)
def test_a_row_without_a_question_is_named(questions: Path, name: str, line: str) -> None:
    file = questions / f"{name}.jsonl"
    file.write_text(file.read_text() + line + "\n")
    task = "truthfulqa_gen" if name == "truthfulqa" else name
    with pytest.raises(LoomError, match=rf"{name}\.jsonl:3: this row has no"):
        plan(EvalRecipe(tasks=(task,), data=questions))


def test_a_model_is_asked_in_the_format_it_was_tuned_on(tmp_path: Path) -> None:
    """ChatML's frame around the prompt, its token at the end of an answer; and a format that only its template
    says."""
    own = "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}"
    for place, template, text in (
        ("chatml", FORMATS["chatml"].jinja(), "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"),
        ("own", own, "<|im_start|>Hi<|im_end|>"),
        ("none", None, "<|endoftext|><|user|>\nHi\n<|assistant|>\n"),
    ):
        subject = load_subject(write_model(tmp_path / place, template))
        form = chat_of(subject)
        assert subject.tokenizer.decode(form.prompt([Message("user", "Hi")])) == text
        ends = {subject.tokenizer.eos_id}
        if template is not None:
            ends.add(subject.tokenizer.token_id("<|im_end|>"))
        assert set(form.stop_ids) == ends
        with pytest.MonkeyPatch.context() as patch:
            asked: list[Any] = []

            def answer(subject: Any, ids: Any, limit: int, stops: Any, *_: Any, asked: Any = asked) -> Any:
                asked += [*ids, stops]
                return [Answer("x", (1,), "stop")] * len(ids)

            patch.setattr(written, "generate_answers", answer)
            prompt = written.Prompt("Hi", {})
            write_answers(subject, WRITTEN["alpaca_eval"], [prompt], chat=True, max_new_tokens=4)
        assert subject.tokenizer.decode(asked[0]) == text and set(asked[1]) == ends


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("room", [40, 60, 90])
def test_what_does_not_fit_loses_its_beginning_and_keeps_its_frame(name: str, room: int) -> None:
    tokenizer = Tokenizer(json.dumps(chatml_tokenizer()).encode(), "bytes")
    form = conversation(tokenizer, Template(FORMATS[name].jinja()))
    turns = [Message("user", "First."), Message("assistant", "Yes."), Message("user", "é" * 30 + "the end?")]
    ids, cut = fit_turns(form, turns, room)
    text = tokenizer.decode(ids)
    empty = tokenizer.decode(form.prompt([Message("user", "@")]))
    before, after = empty.split("@")
    assert len(ids) <= room and cut
    assert text.startswith(before) and text.endswith("the end?" + after)
    assert "\ufffd" not in text
    assert fit_turns(form, turns, 400) == (form.prompt(turns), False)
    with pytest.raises(LoomError, match="frame alone is longer"):
        fit_turns(form, turns, 5)


def test_evaluating_text_twice_needs_no_model(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text("It was a dark night. " * 60)
    subject = load_subject(folder)
    recipe = EvalRecipe(text=(tmp_path / "book.txt",))
    evaluate(subject, recipe, tmp_path / "one")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(subject.model), "forward", lambda *_, **__: pytest.fail("the model ran"))
        evaluate(subject, recipe, tmp_path / "two")
        with pytest.raises(pytest.fail.Exception):
            evaluate(subject, replace(recipe, use_cache=False), tmp_path / "three")
    assert results(tmp_path / "one") == results(tmp_path / "two")
    (text,) = results(tmp_path / "one")["text"]
    assert text["path"] == "../book.txt"
    (tmp_path / "book.txt").write_text("It was a dark night! " * 60)
    evaluate(subject, recipe, tmp_path / "two")
    assert results(tmp_path / "two")["text"][0]["digest"] != text["digest"]


def test_a_diverged_model_gets_no_figure(folder: Path, questions: Path, tmp_path: Path) -> None:
    """NaN everywhere: the first choice of every row would be the argmax."""
    subject = load_subject(folder)
    subject.model.embed.weight.data.fill_(float("nan"))
    subject = replace(subject, digest="diverged")
    (tmp_path / "book.txt").write_text("It was a dark night.")
    for recipe in (
        EvalRecipe(tasks=("truthfulqa_mc1",), data=questions),
        EvalRecipe(text=(tmp_path / "book.txt",)),
    ):
        with pytest.raises(LoomError, match="not numbers"):
            evaluate(subject, recipe, tmp_path / "out")


def test_a_text_called_as_a_task_is_does_not_take_its_place(
    folder: Path, questions: Path, tmp_path: Path
) -> None:
    (tmp_path / "truthfulqa_mc1.txt").write_text("Some text.")
    recipe = EvalRecipe(tasks=("truthfulqa_mc1",), data=questions, text=(tmp_path / "truthfulqa_mc1.txt",))
    evaluate(load_subject(folder), recipe, tmp_path / "out")
    found = results(tmp_path / "out")["results"]
    assert "acc" in found["truthfulqa_mc1"] and "bytes" in found["text:truthfulqa_mc1"]


@pytest.mark.parametrize("words", [["alpaca_eval=model:X", "alpaca_eval=model:Y"], ["model:X", "model:Y"]])
def test_a_task_has_one_judge(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loom.evals.judge.files._check", lambda *_: None)
    with pytest.raises(LoomError, match="alpaca_eval has a judge, model:X"):
        judges_for(words, ["alpaca_eval"])
