"""An evaluation as a folder: what it holds, that it is the same twice, what it refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import save_file

from loom import artifact
from loom.cli.eval import show, show_reweighted
from loom.errors import LoomError
from loom.evals import cache
from loom.evals.beside.compare import compare
from loom.evals.beside.published import OLMES, PROTOCOLS, TABLE_3, tables
from loom.evals.contamination import History
from loom.evals.curve import evaluate_run
from loom.evals.evaluate import EvalRecipe, best_forms, evaluate
from loom.evals.judge.files import judge_outputs
from loom.evals.judge.judges import Replay
from loom.evals.plan import plan
from loom.evals.subject import load_subject
from loom.model.huggingface import config_to_huggingface, to_huggingface
from loom.tasks import data, registry
from tests.evals.conftest import byte_tokenizer, random_model
from tests.tasks import rows


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOOM_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model in Hugging Face's layout."""
    out = tmp_path / "model"
    out.mkdir()
    model = random_model(context=512)
    save_file(to_huggingface(model.state_dict(), model.config), out / "model.safetensors")
    (out / "config.json").write_text(json.dumps(config_to_huggingface(model.config, 260, 261)))
    (out / "tokenizer.json").write_text(json.dumps(byte_tokenizer()))
    return out


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    out = tmp_path / "data"
    (out / "mmlu").mkdir(parents=True)
    for name, lines in {**rows.ROWS, "mmlu/world_religions": rows.MMLU}.items():
        (out / f"{name}.test.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return out


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


TASKS = ("piqa", "winogrande", "truthfulqa_mc2", "mmlu", "hellaswag:olmo-paper")


def test_results_and_a_line_a_document(folder: Path, questions: Path, tmp_path: Path) -> None:
    evaluate(load_subject(folder), EvalRecipe(tasks=TASKS, data=questions), tmp_path / "out")
    body = json.loads((tmp_path / "out" / "results.json").read_text())
    assert set(body["results"]) == set(TASKS)
    for name in TASKS:
        lines = read(tmp_path / "out" / f"{name}.jsonl")
        result = body["results"][name]
        assert result["n"] == len(lines)
        assert [line["doc_id"] for line in lines] == list(range(len(lines)))
        for metric in ("acc", "acc_norm", "bpb", "soft"):
            if metric in lines[0]["values"]:
                values = [line["values"][metric] for line in lines]
                assert result[metric] == pytest.approx(np.mean(values))
                assert result[f"{metric}_stderr"] == pytest.approx(
                    np.std(values, ddof=1) / len(values) ** 0.5
                )
        for line in lines:
            assert line["predictions"]["acc"] == int(np.argmax(line["loglikelihoods"]))
    assert "acc_pmi" in body["results"]["hellaswag:olmo-paper"]
    assert body["tasks"]["piqa"]["files"][0]["split"] == "test"


def test_the_same_evaluation_twice_is_equal_and_needs_no_model(
    folder: Path, questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = EvalRecipe(tasks=("piqa", "arc_easy:olmo-paper"), data=questions)
    subject = load_subject(folder)
    evaluate(subject, recipe, tmp_path / "one")
    monkeypatch.setattr(type(subject.model), "forward", lambda *_, **__: pytest.fail("the model ran"))
    evaluate(subject, recipe, tmp_path / "two")
    for name in ("piqa.jsonl", "arc_easy:olmo-paper.jsonl", "results.json", "manifest.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_other_weights_rows_or_settings_are_scored_anew(folder: Path, questions: Path) -> None:
    items = data.load(registry.task("piqa"), questions).items
    subject = replace(load_subject(folder), cached=True)
    for of, asked, length in (
        (subject, items, 512),
        (replace(subject, digest="other"), items, 512),
        (replace(subject, dtype="bf16"), items, 512),
        (subject, items[:1], 512),
        (subject, items, 20),
        (replace(subject, cached=False), items, 512),
    ):
        assert not cache.items(of, asked, length)[1]
    assert cache.items(subject, items, 512)[1]


def test_a_tokenizer_that_is_not_the_models_is_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    for change, why in (({"eos_token_id": 7}, "ends text with id 7"), ({"vocab_size": 256}, "256")):
        (folder / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(LoomError, match=why):
            load_subject(folder)
    (folder / "config.json").write_text(json.dumps(config))
    spec = byte_tokenizer()
    for number in range(200):  # more entries than the model has rows
        spec["model"]["vocab"][f"more {number}"] = 262 + number  # type: ignore[index]
    (folder / "tokenizer.json").write_text(json.dumps(spec))
    with pytest.raises(LoomError, match="another model's tokenizer"):
        load_subject(folder)


def test_a_tokenizer_that_another_was_put_in_the_place_of_is_refused(folder: Path) -> None:
    """Of equal size and with the same end of text: the folder's own manifest tells."""
    artifact.commit(
        folder,
        "export",
        recipe={},
        inputs=[],
        outputs=artifact.describe(folder, ["tokenizer.json"]),
        counters={},
    )
    load_subject(folder)
    spec = byte_tokenizer()
    vocabulary: dict[str, int] = spec["model"]["vocab"]  # type: ignore[index]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (folder / "tokenizer.json").write_text(json.dumps(spec))
    with pytest.raises(LoomError, match=r"tokenizer\.json is not the one that this model was written with"):
        load_subject(folder)


def test_text_by_domain(folder: Path, tmp_path: Path) -> None:
    layout = tmp_path / "paloma" / "web" / "test"
    layout.mkdir(parents=True)
    lines = [{"text": f"Some text number {i}.", "subdomain": f"d{i % 2}"} for i in range(6)]
    (layout / "x.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "book.txt").write_text("It was a dark night. " * 60)
    recipe = EvalRecipe(text=(tmp_path / "paloma", tmp_path / "book.txt"))
    evaluate(load_subject(folder), recipe, tmp_path / "out")
    results = json.loads((tmp_path / "out" / "results.json").read_text())["results"]
    assert set(results) == {"d0", "d1", "web", "book", "all"}
    assert results["web"]["bytes"] == sum(len(line["text"]) for line in lines)
    assert results["web"]["n"] == 6
    assert results["book"]["bits_per_byte"] > 0
    (tmp_path / "empty").mkdir()
    with pytest.raises(LoomError, match="no text in"):
        evaluate(load_subject(folder), EvalRecipe(text=(tmp_path / "empty",)), tmp_path / "x")


def test_a_model_that_saw_the_rows_gets_no_figure(folder: Path, questions: Path, tmp_path: Path) -> None:
    """Tuned on a file that holds PIQA's rows: the file is among the inputs of its token folder."""
    rowfile = questions / "piqa.test.jsonl"
    tokens = tmp_path / "tokens"
    tokens.mkdir()
    made = artifact.commit(
        tokens,
        "tokens",
        recipe={},
        inputs=[artifact.Input(artifact.relative(rowfile, tokens), artifact.digest_file(rowfile))],
        outputs=[],
        counters={},
    )
    artifact.commit(
        folder, "model", recipe={}, inputs=[artifact.refer(made, folder)], outputs=[], counters={}
    )
    assert History(folder).saw([], [artifact.digest_file(rowfile)]) is not None
    recipe = EvalRecipe(tasks=("piqa", "sciq"), data=questions)
    evaluate(load_subject(folder), recipe, tmp_path / "out")
    results = json.loads((tmp_path / "out" / "results.json").read_text())["results"]
    assert results["piqa"]["n"] == 0
    assert "acc" not in results["piqa"]
    assert "acc" in results["sciq"]


def test_what_training_data_was_cleaned_against_was_not_trained_on(
    folder: Path, questions: Path, tmp_path: Path
) -> None:
    """An evaluation's file is an input of what was decontaminated against it; none of it is in there. The
    same file once more, as data, is another matter."""
    rowfile = questions / "piqa.test.jsonl"
    digest = artifact.digest_file(rowfile)
    attributes, tokens = tmp_path / "attributes", tmp_path / "tokens"
    given = [artifact.Input(f"../{rowfile.relative_to(tmp_path)}", digest)]
    for place in (attributes, tokens):
        place.mkdir()
    spans = artifact.commit(attributes, "attributes", recipe={}, inputs=given, outputs=[], counters={})
    for against, seen in (([digest], False), ([], True)):
        made = artifact.commit(
            tokens,
            "tokens",
            recipe={},
            inputs=[*given, artifact.refer(spans, tokens)],
            outputs=[],
            counters={},
            facts={"against": against},
        )
        artifact.commit(
            folder, "model", recipe={}, inputs=[artifact.refer(made, folder)], outputs=[], counters={}
        )
        assert (History(folder).saw([], [digest]) is not None) == seen


def test_worked_examples_are_named_and_others_are_not_compared(
    folder: Path, questions: Path, tmp_path: Path
) -> None:
    subject, dev = load_subject(folder), questions / "mmlu" / "world_religions.dev.jsonl"
    recipe = EvalRecipe(tasks=("mmlu:5shot", "mmlu"), data=questions)
    for name, lines in (("one", rows.MMLU_DEV), ("same", rows.MMLU_DEV), ("two", rows.MMLU_DEV[::-1])):
        dev.write_text("".join(json.dumps(line) + "\n" for line in lines))
        evaluate(subject, recipe, tmp_path / name)
        tasks = json.loads((tmp_path / name / "results.json").read_text())["tasks"]
        named = {
            "path": "mmlu/world_religions.dev.jsonl",
            "split": "dev",
            "digest": artifact.digest_file(dev),
        }
        assert tasks["mmlu:5shot"]["example_files"] == [named] and "example_files" not in tasks["mmlu"]
    assert [item.task for item in compare(tmp_path / "one", tmp_path / "same")] == ["mmlu:5shot", "mmlu"]
    with pytest.raises(LoomError, match="different worked examples"):
        compare(tmp_path / "one", tmp_path / "two")


def test_a_missing_file_is_said_before_anything_is_scored_or_lost(
    folder: Path, questions: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    evaluate(load_subject(folder), EvalRecipe(tasks=("piqa",), data=questions), out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    (questions / "sciq.test.jsonl").unlink()
    with pytest.raises(LoomError, match="sciq"):
        evaluate(load_subject(folder), EvalRecipe(tasks=("piqa", "sciq"), data=questions), out)
    with pytest.raises(LoomError, match="Did you mean 'piqa'"):
        plan(EvalRecipe(tasks=("piqq",), data=questions))
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_the_next_evaluation_in_a_folder_keeps_nothing_of_the_one_before(
    folder: Path, questions: Path, tmp_path: Path
) -> None:
    """Its text would be compared as that of the model that never read it; what is not an evaluation's stays."""
    (tmp_path / "book.txt").write_text("It was a dark night. " * 20)
    both = EvalRecipe(tasks=("piqa", "sciq"), data=questions, text=(tmp_path / "book.txt",))
    subject, out = load_subject(folder), tmp_path / "out"
    for place in (out, tmp_path / "both"):
        evaluate(subject, both, place)
    assert [item.task for item in compare(out, tmp_path / "both")] == ["piqa", "sciq", "book"]
    (out / "notes.jsonl").write_text("{}\n")
    evaluate(subject, EvalRecipe(tasks=("piqa",), data=questions), out)
    names = {"piqa.jsonl", "results.json", "manifest.json", "run.json", "notes.jsonl"}
    assert {path.name for path in out.iterdir()} == names
    (out / "text.jsonl").write_bytes((tmp_path / "both" / "text.jsonl").read_bytes())  # of a killed one
    assert [item.task for item in compare(out, tmp_path / "both")] == ["piqa"]
    with pytest.raises(LoomError, match="an evaluation without text"):
        show_reweighted(out, "book=1")
    assert show_reweighted(tmp_path / "both", "book=1")["bits_per_byte"] > 0


def test_the_table_has_errors_and_says_what_was_cut_left_out_or_read_elsewhere(
    folder: Path, questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (questions / "sciq.test.jsonl").rename(questions / "sciq.validation.jsonl")
    file = questions / "piqa.test.jsonl"
    broken = {**json.loads(file.read_text().splitlines()[0]), "label": 7}
    file.write_text(file.read_text() + json.dumps(broken) + "\n")
    (questions / "winogrande.dev.jsonl").write_text((questions / "winogrande.test.jsonl").read_text())
    tasks = ("piqa", "sciq", "mmlu", "winogrande:2shot")
    recipe = EvalRecipe(tasks=tasks, data=questions, skip_bad=True, max_length=12)
    evaluate(load_subject(folder), recipe, tmp_path / "out")
    show(json.loads((tmp_path / "out" / "results.json").read_text()))
    said = " ".join(capsys.readouterr().out.split())
    assert "±" in said
    assert "sciq: validation, the protocol's is test" in said
    assert "winogrande:2shot: examples are the first 2 rows of the dev (else train) file" in said
    assert "rows are left out as bad (piqa.test.jsonl:" in said
    assert "choices lost the left end of their context, longer than 12 tokens" in said
    assert "a choice alone fills the 12 tokens" in said


def test_written_answers_keep_the_upstream_schema_and_no_judge_means_no_number(
    folder: Path, questions: Path, tmp_path: Path
) -> None:
    reference = questions / "alpaca_eval.reference.jsonl"
    lines = [{"instruction": f"Say {word}.", "output": word, "dataset": "d"} for word in ("yes", "no")]
    reference.write_text("".join(json.dumps(line) + "\n" for line in lines))
    recipe = EvalRecipe(tasks=("alpaca_eval",), data=questions, chat=True, max_new_tokens=4)
    evaluate(load_subject(folder), recipe, tmp_path / "out")
    answers = read(tmp_path / "out" / "alpaca_eval.jsonl")
    assert [set(answer) for answer in answers] == [{"dataset", "instruction", "output", "generator"}] * 2
    result = json.loads((tmp_path / "out" / "results.json").read_text())["results"]["alpaca_eval"]
    assert set(result) == {"n", "empty_answers", "prompts_cut", "cut_answers"}


def test_answers_in_a_file_are_judged_under_the_judges_name(shared_data: Path, tmp_path: Path) -> None:
    judge = Replay(shared_data / "chat" / "alpaca_eval.annotations.jsonl.gz")
    answers = tmp_path / "answers.jsonl"
    rows_ = [
        {"instruction": c.instruction, "output": c.answer, "generator": "m"} for c in judge.comparisons()
    ]
    answers.write_text("".join(json.dumps(row) + "\n" for row in rows_))
    judge_outputs(answers, shared_data / "chat" / "alpaca_eval.reference.jsonl.gz", judge, tmp_path / "out")
    result = json.loads((tmp_path / "out" / "results.json").read_text())["results"]["alpaca_eval"]
    assert result["alpaca_win[replay]"] == pytest.approx(84.22360248447205)
    assert result["not_judged"] == 0


def test_published_tables_have_their_papers_averages() -> None:
    averages = {"OLMo-1B": 60.4, "OLMo-7B": 69.3, "Llama-2-7B": 70.5, "Pythia 1B": 54.5, "MPT-7B": 69.8}
    for model, average in averages.items():
        assert np.mean(TABLE_3[model]) == pytest.approx(average, abs=0.1)
    values = [value for value in OLMES.models["Pythia 1B"] if value is not None]
    assert np.mean(values) == pytest.approx(49.0, abs=0.05)
    for one in PROTOCOLS:
        assert {len(one.tasks), len(one.rows)} == {len(values) for values in one.models.values()}


def test_figures_stand_beside_others_of_their_protocol_only() -> None:
    def body(**found: tuple[str, float]) -> dict[str, Any]:
        names = {name.replace("__", ":"): value for name, value in found.items()}
        return {
            "results": {name: {metric: value, "n": 3} for name, (metric, value) in names.items()},
            "tasks": {name: {"headline": metric} for name, (metric, _) in names.items()},
        }

    (paper,) = tables({"mine": body(piqa=("acc", 0.5))})  # lm-eval's PIQA is not the paper's
    assert "table 3" in paper[0] and paper[2][-1] == ["mine", *[None] * 8]
    mine = body(piqa__olmes=("acc_char", 0.5), toxigen=("toxic[classifier]", 12.5), piqa=("acc", 0.9))
    olmes, adapted = tables({"mine": mine})
    assert olmes[2][-1][1 + olmes[1][1:].index("piqa")] == "50.0 (n 3, cloze form only)"
    assert adapted[2][-1][1:] == [None, None, "12.5 (n 3, toxic[classifier])", None]
    assert olmes[2][0][0] == "split and rows"


def test_olmes_averages_over_subjects(folder: Path, questions: Path, tmp_path: Path) -> None:
    """Macro, not over rows: one subject of three rows and one of one row weigh the same."""
    for subject, lines in (("world_religions", rows.MMLU), ("anatomy", rows.MMLU[:1])):
        for split, given in (("test", lines), ("dev", rows.MMLU_DEV)):
            path = questions / "mmlu" / f"{subject}.{split}.jsonl"
            path.write_text("".join(json.dumps(line) + "\n" for line in given))
    recipe = EvalRecipe(tasks=("mmlu:olmes", "mmlu:olmes-mcf", "mmlu:5shot"), data=questions)
    evaluate(load_subject(folder), recipe, tmp_path / "out")
    body = json.loads((tmp_path / "out" / "results.json").read_text())
    for name, metric in (("mmlu:olmes", "acc_char"), ("mmlu:olmes-mcf", "acc")):
        found = body["results"]
        of = [found[f"{name}_{subject}"][metric] for subject in ("world_religions", "anatomy")]
        assert found[name][f"macro_{metric}"] == pytest.approx(np.mean(of))
        assert found[name][metric] == pytest.approx((3 * of[0] + of[1]) / 4)
        assert body["tasks"][name]["headline"] == f"macro_{metric}"
    assert "macro_acc" not in body["results"]["mmlu:5shot"]
    best = body["results"]["mmlu:olmes-max"]
    assert best["acc"] == max(found["mmlu:olmes"]["macro_acc_char"], found["mmlu:olmes-mcf"]["macro_acc"])


def test_every_metric_follows_from_the_rows(folder: Path, questions: Path, tmp_path: Path) -> None:
    """PMI and the mean a token too, without the model."""
    evaluate(
        load_subject(folder), EvalRecipe(tasks=("arc_easy:olmo-paper",), data=questions), tmp_path / "out"
    )
    for line in read(tmp_path / "out" / "arc_easy:olmo-paper.jsonl"):
        logp = np.array(line["loglikelihoods"])
        assert line["predictions"]["acc_pmi"] == int(np.argmax(logp - np.array(line["unconditioned"])))
        assert line["predictions"]["acc_token"] == int(np.argmax(logp / np.array(line["tokens"])))


def test_a_share_of_the_training_tokens_stands_beside_its_source(folder: Path, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.mkdir()
    sources = {"book": {"tokens": 300}, "web": {"tokens": 100}}
    made = artifact.commit(
        tokens,
        "tokens",
        recipe={},
        inputs=[],
        outputs=[],
        counters={},
        facts={"tokens": {"sources": sources}},
    )
    artifact.commit(
        folder, "model", recipe={}, inputs=[artifact.refer(made, folder)], outputs=[], counters={}
    )
    (tmp_path / "book.txt").write_text("It was a dark night.")
    (tmp_path / "news.txt").write_text("It rained.")
    recipe = EvalRecipe(text=(tmp_path / "book.txt", tmp_path / "news.txt"))
    evaluate(load_subject(folder), recipe, tmp_path / "out")
    body = json.loads((tmp_path / "out" / "results.json").read_text())
    assert body["results"]["book"]["training_share"] == 0.75
    assert "training_share" not in body["results"]["news"]
    assert body["training_shares"] == {"book": 0.75, "web": 0.25}  # what no text was given for is there too


def test_nothing_to_do_and_no_checkpoints_are_errors(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(LoomError, match="Nothing to evaluate"):
        evaluate(load_subject(folder), EvalRecipe(), tmp_path / "out")
    with pytest.raises(LoomError, match="no checkpoints"):
        evaluate_run(folder, EvalRecipe(), tmp_path / "out")
    with pytest.raises(LoomError, match="--data"):
        evaluate(load_subject(folder), EvalRecipe(tasks=("piqa",)), tmp_path / "out")


def test_olmes_takes_the_better_form() -> None:
    def one(metric: str, value: float) -> dict[str, Any]:
        return {metric: value, f"{metric}_stderr": 0.01, "n": 100}

    results = {"piqa:olmes": one("acc_char", 0.6), "piqa:olmes-mcf": one("acc", 0.7), "sciq": one("acc", 0.9)}
    sources = {
        name: {"headline": next(iter(result)), "files": [{"split": "test"}]}
        for name, result in results.items()
    }
    found = best_forms(results, sources)
    assert list(found) == ["piqa:olmes-max"]
    assert found["piqa:olmes-max"]["acc"] == 0.7 and found["piqa:olmes-max"]["form"] == "piqa:olmes-mcf"
    refused = {**results, "piqa:olmes-mcf": {"n": 0, "refused": "seen"}}
    assert best_forms(refused, sources) == {}
