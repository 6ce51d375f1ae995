"""Text of an evaluation: found before anything is lost, refused where it was trained on, each source by its name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from loom import artifact
from loom.cli.eval import show
from loom.errors import LoomError
from loom.evals.contamination import History
from loom.evals.curve import evaluate_run
from loom.evals.evaluate import EvalRecipe, evaluate
from loom.evals.plan import plan
from loom.evals.sources import find_sources, read_sources, trained_on
from loom.evals.subject import load_subject
from loom.model.huggingface import config_to_huggingface, to_huggingface
from loom.tokens.tokenize import Tokenize, tokenize
from tests.evals.conftest import byte_tokenizer, random_model
from tests.small import write_lines


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOOM_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def pages(tmp_path: Path) -> Path:
    rows = [{"id": str(i), "source": "web", "text": f"Page {i} says {i * i}. " * 3} for i in range(24)]
    return write_lines(tmp_path / "pages.jsonl", rows)


def tokens(documents: Path, out: Path, held_out: float = 0.0, spec: dict[str, Any] | None = None) -> Path:
    tokenizer = out.parent / f"{out.name}.json"
    tokenizer.write_text(json.dumps(spec or byte_tokenizer()))
    tokenize(Tokenize((str(documents),), tokenizer, held_out=held_out), out)
    return out


@pytest.fixture
def folder(tmp_path: Path, pages: Path) -> Path:
    """A model that was trained on tokens of `pages`, of which some are held out."""
    out = tmp_path / "model"
    out.mkdir()
    model = random_model()
    save_file(to_huggingface(model.state_dict(), model.config), out / "model.safetensors")
    (out / "config.json").write_text(json.dumps(config_to_huggingface(model.config, 260, 261)))
    (out / "tokenizer.json").write_text(json.dumps(byte_tokenizer()))
    made = artifact.load(tokens(pages, tmp_path / "tokens", held_out=0.3), "tokens")
    artifact.commit(out, "model", recipe={}, inputs=[artifact.refer(made, out)], outputs=[], counters={})
    return out


def body(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "results.json").read_text())
    return found


def test_a_text_that_cannot_be_used_is_said_before_anything_is_lost(folder: Path, tmp_path: Path) -> None:
    """Found without a model, and what an earlier evaluation left stays; of a token folder of another tokenizer too."""
    good = write_lines(tmp_path / "good.jsonl", [{"id": "g", "text": "Something happened."}])
    bad = write_lines(tmp_path / "bad.jsonl", [{"text": "x"}, {"txt": "x"}])
    empty = write_lines(tmp_path / "empty.jsonl", [{"text": ""}])
    out, subject = tmp_path / "out", load_subject(folder)
    evaluate(subject, EvalRecipe(text=(good,)), out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    for path, why in ((bad, "bad.jsonl:2"), (empty, "no text in"), (tmp_path / "gone.txt", "no .*gone.txt")):
        with pytest.raises(LoomError, match=why):
            plan(EvalRecipe(text=(good, path)))
        with pytest.raises(LoomError, match=why):
            evaluate(subject, EvalRecipe(text=(good, path)), out)
    spec = byte_tokenizer()
    spec["model"]["merges"] = []  # type: ignore[index]
    other = tokens(good, tmp_path / "other", spec=spec)
    with pytest.raises(LoomError, match="other"):
        evaluate(subject, EvalRecipe(text=(other,)), out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_a_curve_of_no_text_is_an_error_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the first checkpoint is loaded: there is none behind this name."""
    monkeypatch.setattr("loom.evals.curve.checkpoints", lambda run: [run / "step-00000001"])
    empty = write_lines(tmp_path / "empty.jsonl", [{"text": ""}])
    with pytest.raises(LoomError, match="no text in .*empty.jsonl"):
        evaluate_run(tmp_path / "run", EvalRecipe(text=(empty,)), tmp_path / "out")


def test_nothing_is_read_after_the_plan(folder: Path, tmp_path: Path) -> None:
    text = write_lines(tmp_path / "text.jsonl", [{"text": "Something happened."}])
    planned = plan(EvalRecipe(text=(text,)))
    text.unlink()
    evaluate(load_subject(folder), planned.recipe, tmp_path / "out", planned)
    assert body(tmp_path / "out")["results"]["text"]["n"] == 1


def test_text_that_was_trained_on_gets_no_figure(
    folder: Path, pages: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither by itself nor pooled with others; a copy of the file is the file."""
    news = write_lines(tmp_path / "news.jsonl", [{"text": "Something happened."}] * 2)
    copy = tmp_path / "elsewhere" / "copy.jsonl"
    copy.parent.mkdir()
    copy.write_bytes(pages.read_bytes())
    more = write_lines(tmp_path / "more.jsonl", [{"text": "And again."}])
    evaluate(load_subject(folder), EvalRecipe(text=(news, copy, more)), tmp_path / "out")
    assert "copy: no figure" in capsys.readouterr().err
    found = body(tmp_path / "out")
    assert found["results"]["copy"]["refused"] and "bits_per_byte" not in found["results"]["copy"]
    assert found["results"]["news"]["n"] == 2 and found["results"]["all"]["n"] == 3
    assert {row["source"] for row in found["text"] if "seen" in row} == {"copy"}
    assert "copy" not in (tmp_path / "out" / "text.jsonl").read_text()
    show(found)
    told = " ".join(capsys.readouterr().out.split())
    assert "copy │ no figure" in told or "copy no figure" in told
    assert f"copy: no figure, the model was trained on {pages}" in told


def test_nothing_but_what_was_trained_on_is_no_figure_either(
    folder: Path, pages: Path, tmp_path: Path
) -> None:
    evaluate(load_subject(folder), EvalRecipe(text=(pages,)), tmp_path / "out")
    assert set(body(tmp_path / "out")["results"]) == {"pages"}


def test_of_a_token_folder_what_it_holds_out_is_measured(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    held = artifact.load(tmp_path / "tokens" / "heldout", "tokens")
    for number, named in enumerate(("tokens", "tokens/heldout")):
        out = tmp_path / str(number)
        evaluate(load_subject(folder), EvalRecipe(text=(tmp_path / named, tmp_path / "tokens")), out)
        found = body(out)
        assert found["results"]["web"]["n"] == held.counters["documents"]
        assert [row["path"] for row in found["text"]] == ["../tokens/heldout"]
        show(found)
        assert "what it holds out was measured" in capsys.readouterr().out


def test_tokens_that_were_trained_on_get_no_figure(folder: Path, pages: Path, tmp_path: Path) -> None:
    """The folder itself, and one of the same documents; not one of others, nor what a folder holds out."""
    history = History(folder)
    whole = tokens(pages, tmp_path / "whole")
    trained = History(whole)  # as in the loop: tokens that a model is about to be trained on
    other = tokens(write_lines(tmp_path / "new.jsonl", [{"id": "n", "text": "New."}]), tmp_path / "new")
    for asked, known, seen in (
        (whole, trained, True),
        (whole, history, True),
        (other, history, False),
        (other, trained, False),
        (tmp_path / "tokens", history, False),
    ):
        found = find_sources([asked])
        assert set(trained_on(found, [known])) == (
            {name for one in found.folders for name in one.names.values()} if seen else set()
        )


def test_a_folder_of_documents_that_was_trained_on_gets_no_figure(tmp_path: Path) -> None:
    """Its files are nobody's inputs: the folder is. What was removed from it was not trained on."""
    corpus = tmp_path / "corpus"
    kept = write_lines(corpus / "documents" / "web" / "part-0.jsonl", [{"id": "1", "text": "Kept."}])
    write_lines(corpus / "removed" / "web" / "part-0.jsonl", [{"id": "2", "text": "Removed."}])
    outputs = artifact.describe(corpus, [str(kept.relative_to(corpus))])
    made = artifact.commit(corpus, "documents", recipe={}, inputs=[], outputs=outputs, counters={})
    trained = tmp_path / "trained"
    trained.mkdir()
    artifact.commit(
        trained, "model", recipe={}, inputs=[artifact.refer(made, trained)], outputs=[], counters={}
    )
    for name, count in (("documents", 1), ("removed", 0)):
        assert len(trained_on(find_sources([corpus / name]), [History(trained)])) == count


def test_sources_of_tokens_and_files_of_one_name_stay_apart(
    folder: Path, pages: Path, tmp_path: Path
) -> None:
    news = write_lines(tmp_path / "web.jsonl", [{"text": "Something happened."}])
    new = write_lines(tmp_path / "new.jsonl", [{"id": "n", "source": "web", "text": "New."}])
    other = tokens(new, tmp_path / "other")
    read = read_sources(find_sources([news, tmp_path / "tokens", other]))
    documents = read.documents(load_subject(folder).tokenizer)
    counted = {
        name: sum(one.source == name for one in documents) for name in {one.source for one in documents}
    }
    held = artifact.load(tmp_path / "tokens" / "heldout").counters["documents"]
    assert counted == {"web": 1, "tokens/web": held, "other/web": 1}
    assert [
        one.source for one in read_sources(find_sources([other])).documents(load_subject(folder).tokenizer)
    ] == ["web"]


def test_split_and_empty_rows_of_a_source_are_kept_and_said(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("c4/test", "c4/val", "ptb/val"):
        rows = [{"text": "Some text.", "subdomain": f"d{i % 2}"} for i in range(4)]
        write_lines(tmp_path / "paloma" / name / "x.jsonl", [*rows, {"text": ""}])
    evaluate(load_subject(folder), EvalRecipe(text=(tmp_path / "paloma",)), tmp_path / "out")
    found = body(tmp_path / "out")
    assert {name: found["results"][name]["split"] for name in ("c4", "ptb")} == {"c4": "test", "ptb": "val"}
    assert [(row["source"], row["split"], row["documents"], row["empty_rows"]) for row in found["text"]] == [
        ("c4", "test", 4, 1),
        ("ptb", "val", 4, 1),
    ]
    show(found)
    told = " ".join(capsys.readouterr().out.split())
    assert "read from the split test: c4" in told and "read from the split val: ptb" in told
    assert "c4: 1 rows have no text and are left out" in told
