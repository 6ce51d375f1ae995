"""The card says what the records say; a push sends what was listed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from loom import artifact
from loom.cli import app
from loom.errors import LoomError
from loom.release.card import Power, Records, _evaluation, make_card
from loom.release.export import export
from loom.release.push import check_repository, plan_push, push, revision_name
from tests.release.conftest import TIED, Make
from tests.small import write_lines


def test_card_holds_the_results_it_was_given(make_checkpoint: Make) -> None:
    source = make_checkpoint(TIED)
    text = make_card(
        source, [{"docs": {"accuracy": 0.4321, "accuracy_stderr": 0.02, "n": 400}}], "apache-2.0"
    )
    assert "| docs | accuracy | 0.4321 ± 0.02 | 400 |" in text
    assert 'license: "apache-2.0"' in text
    assert "## Energy\n\nNot measured." in text


def test_the_hub_reads_what_the_card_is_joined_to(make_checkpoint: Make, tmp_path: Path) -> None:
    from huggingface_hub import ModelCard

    made = str(make_checkpoint(TIED))
    words = ["card", made, "--base-model", "allenai/OLMo-1B-hf", "--dataset", "allenai/dolma"]
    words += ["--dataset", "c4", "--language", "en", "--out", str(tmp_path / "card.md")]
    assert CliRunner().invoke(app, words).exit_code == 0
    data = ModelCard.load(tmp_path / "card.md").data
    assert (data.base_model, data.datasets, data.language) == (
        ["allenai/OLMo-1B-hf"],
        ["allenai/dolma", "c4"],
        ["en"],
    )
    for wrong, said in (
        (["--dataset", "../secret"], "no name on the Hub"),
        (["--language", "English"], "ISO 639"),
    ):
        with pytest.raises(LoomError, match=said):
            CliRunner().invoke(app, ["card", made, *wrong], catch_exceptions=False)


def test_card_without_results_says_so(make_checkpoint: Make) -> None:
    text = make_card(make_checkpoint(TIED))
    assert "## Evaluation\n\nNot measured." in text
    assert "license:" not in text


def test_carbon_of_the_published_run(make_checkpoint: Make) -> None:
    text = make_card(make_checkpoint(TIED), power=[Power(104_000, 1.1, 0.610)])
    assert "69,784.00 kg" in text
    assert "not known" in make_card(make_checkpoint(TIED, name="b"), power=[Power(10)])


def test_the_card_adds_up_the_runs_own_power(make_checkpoint: Make, tmp_path: Path) -> None:
    """100 W over 36 s are 1 Wh, on the grid that the recipe names; a run without samples is an estimate."""
    made = make_checkpoint(TIED)
    run = tmp_path / "base"
    (run / "checkpoints").mkdir(parents=True)
    made.rename(run / "checkpoints" / "step-00000001")
    (run / "metrics.jsonl").write_text(json.dumps({"step": 1, "loss": 2.0, "seconds": 36.0}) + "\n")
    recipe = {"energy": {"pue": 1.1, "carbon_intensity": 0.61, "source": "the grid's operator"}}
    artifact.commit(run, "run", recipe=recipe, inputs=[], outputs=[], counters={})
    out = tmp_path / "card.md"
    words = ["card", str(run / "checkpoints" / "step-00000001"), "--out", str(out)]
    assert CliRunner().invoke(app, words).exit_code == 0
    assert "| base |" in out.read_text()
    assert "| estimated | 1.1 | 0.61 |" in out.read_text()
    rows = [{"session": 1, "seconds": s, "watts": 100.0, "of": ["devices"]} for s in (0.0, 36.0)]
    (run / "power.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert CliRunner().invoke(app, words).exit_code == 0
    text = out.read_text()
    assert "| base | 0.001 | measured | 1.1 | 0.61 | 0.000671 |" in text
    assert "- Measured: 2 samples of the power of devices." in text
    assert "- the grid's operator." in text
    assert CliRunner().invoke(app, [*words, "--carbon", "0"]).exit_code == 0
    assert "| base | 0.001 | measured | 1.1 | 0 | 0 |" in out.read_text(), "the recipe's PUE holds"
    assert "- carbon intensity as given to loom card." in out.read_text()
    for wrong in (["--pue", "0"], ["--kwh", "2", "--pue", "0.5"]):
        refused = CliRunner().invoke(app, [*words, *wrong])
        assert isinstance(refused.exception, LoomError)
        assert "The PUE is" in str(refused.exception)


def made_of(folder: Path, inputs: list[artifact.Input], **facts: Any) -> artifact.Artifact:
    """A folder of tokens made from `inputs`."""
    folder.mkdir(parents=True)
    tokens = {"sources": {"a": {"documents": 1, "tokens": 1, "bytes": 1}}, "tokenizer": {"digest": "t"}}
    facts = {"tokens": tokens, **facts}
    return artifact.commit(folder, "tokens", recipe={}, inputs=inputs, outputs=[], counters={}, facts=facts)


def corpus_of(
    folder: Path, licences: list[str | None], inputs: Sequence[artifact.Input] = ()
) -> artifact.Artifact:
    """A folder of documents, one for each licence."""
    rows = [
        {"id": str(i), "text": "t", "source": "a"} | ({"metadata": {"licence": named}} if named else {})
        for i, named in enumerate(licences)
    ]
    write_lines(folder / "documents" / "a" / "0.jsonl", rows)
    return artifact.commit(folder, "documents", recipe={}, inputs=inputs, outputs=[], counters={})


def trained_on(source: Path, *made: artifact.Artifact) -> Path:
    body = json.loads((source / "manifest.json").read_text())
    body["inputs"] = [asdict(artifact.refer(item, source)) for item in made]
    (source / "manifest.json").write_text(json.dumps(body))
    return source


def test_licences_are_counted_in_the_documents(make_checkpoint: Make, tmp_path: Path) -> None:
    """In those the tokens were made from: not in what those were made from, nearer as that may lie."""
    raw = corpus_of(tmp_path / "raw", ["GPL | 3"] * 7)
    at = tmp_path / "tokens"
    kept = corpus_of(
        tmp_path / "kept", ["MIT", "MIT", "MIT", "GPL | 3", None], [artifact.refer(raw, tmp_path / "kept")]
    )
    tokens = made_of(at, [artifact.refer(kept, at)])
    text = make_card(trained_on(make_checkpoint(TIED), raw, tokens))
    for line in ("| MIT | 3 |", "| GPL / 3 | 1 |", "| unknown | 1 |"):
        assert line in text
    assert "could be read" not in text


def test_licences_of_all_tokens_are_counted_and_what_is_gone_is_named(
    make_checkpoint: Make, tmp_path: Path
) -> None:
    """Two folders of documents, one of them read twice; a file of documents; conversations; a folder that is gone."""
    here, at = tmp_path / "code", tmp_path / "tokens"
    one, two = corpus_of(here, ["MIT"] * 2), corpus_of(tmp_path / "prose", ["CC0"] * 3)
    gone = corpus_of(tmp_path / "gone", ["X"])
    shutil.rmtree(tmp_path / "gone" / "documents")
    write_lines(tmp_path / "more.jsonl", [{"id": "1", "text": "t", "metadata": {"license": "MIT"}}])
    write_lines(tmp_path / "talks.jsonl", [{"messages": []}])
    first = made_of(at / "1", [artifact.refer(one, at / "1"), artifact.Input("../../tokenizer.json", "t")])
    second = made_of(
        at / "2",
        [artifact.refer(item, at / "2") for item in (one, two, gone)]
        + [artifact.Input("../../more.jsonl", "m")],
    )
    chat = made_of(
        at / "chat",
        [artifact.Input("../../talks.jsonl", "c"), artifact.Input("../../held-out.jsonl", "h")],
        chat={},
        against=["h"],
    )
    text = make_card(trained_on(make_checkpoint(TIED), first, second, chat))
    assert "| MIT | 3 |" in text
    assert "| CC0 | 3 |" in text
    assert "no documents could be read there: gone (of 2), talks.jsonl (of chat).\n" in text


def test_a_model_without_its_tokens_says_that_nothing_was_counted(make_checkpoint: Make) -> None:
    assert "Not counted: no documents are in the records." in make_card(make_checkpoint(TIED))


def test_an_export_leaves_another_artifact_alone(make_checkpoint: Make, tmp_path: Path) -> None:
    held = tmp_path / "tokens"
    held.mkdir()
    artifact.commit(held, "tokens", recipe={}, inputs=[], outputs=[], counters={})
    before = sorted(path.name for path in held.iterdir())
    with pytest.raises(LoomError, match="already holds something else, 'tokens'"):
        export(make_checkpoint(TIED), held)
    assert sorted(path.name for path in held.iterdir()) == before
    assert artifact.load(held).kind == "tokens"


def test_a_card_without_its_evaluation_says_so(make_checkpoint: Make, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["card", str(make_checkpoint(TIED)), "--eval", str(tmp_path)])
    assert isinstance(done.exception, LoomError)
    assert "holds no results.json" in str(done.exception)


def test_a_dry_run_lists_every_file_but_this_machines(make_checkpoint: Make, tmp_path: Path) -> None:
    made = export(make_checkpoint(TIED), tmp_path / "export")
    listed = {item.name for item in plan_push(made.path)}
    assert listed == {p.name for p in made.path.iterdir()} - {"run.json"}
    assert {item.revision for item in plan_push(made.path)} == {"main"}


def test_a_changed_export_is_not_sent(make_checkpoint: Make, tmp_path: Path) -> None:
    made = export(make_checkpoint(TIED), tmp_path / "export")
    card = made.path / "README.md"
    card.write_text(card.read_text().replace("safety", "SAFETY"))
    with pytest.raises(LoomError, match="changed"):
        plan_push(made.path)


def test_every_checkpoint_is_a_revision(make_checkpoint: Make, tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    for step in (1000, 2000):
        made = make_checkpoint(TIED, seed=step, name=f"step-{step:08d}")
        state = json.loads((made / "state.json").read_text()) | {
            "step": step,
            "tokens_seen": step * 4_194_304,
        }
        (made / "state.json").write_text(json.dumps(state))
        body = json.loads((made / "manifest.json").read_text())
        for output in body["outputs"]:
            if output["path"] == "state.json":
                data = (made / "state.json").read_bytes()
                output |= {"bytes": len(data), "digest": artifact.digest_bytes(data)}
        (made / "manifest.json").write_text(json.dumps(body))
        made.rename(run / "checkpoints" / made.name)
    (run / "metrics.jsonl").write_text("{}\n")
    uploads = plan_push(run, every_checkpoint=True)
    assert list(dict.fromkeys(item.revision for item in uploads)) == [
        "step1000-tokens4B",
        "step2000-tokens8B",
    ]
    first = {item.name for item in uploads if item.revision == "step1000-tokens4B"}
    assert {"model.safetensors", "metrics.jsonl", "reading-order.json", "README.md"} <= first


def test_names_are_olmos() -> None:
    assert revision_name(1000, 4_194_304_000) == "step1000-tokens4B"


@pytest.mark.parametrize("name", ["model", "a/b/c", "../x", "a b/c", ""])
def test_a_repository_has_an_owner(name: str) -> None:
    with pytest.raises(LoomError, match="OWNER/NAME"):
        check_repository(name)


def test_without_a_token_nothing_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with pytest.raises(LoomError, match="HF_TOKEN"):
        push("me/model", [])


def test_a_figure_that_was_refused_is_none_on_the_card() -> None:
    """What was counted on the way is no metric, and a refusal says why."""
    results = {
        "piqa": {"n": 0, "refused": "12 of its prompts are in the training data", "seen_prompts": 12},
        "sciq": {"acc": 0.5, "acc_stderr": 0.1, "acc_stderr_clustered": 0.2, "chance": 0.25, "n": 30},
    }
    shown = _evaluation(Records("m", {}, "float32", None, results=results))
    assert shown.splitlines()[2:] == [
        "| piqa | no figure: 12 of its prompts are in the training data | | |",
        "| sciq | acc | 0.5 ± 0.1 | 30 |",
    ]
