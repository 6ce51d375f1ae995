"""Neither an export nor an import writes over what it did not make, and neither overlooks a changed input."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import loom
from loom import artifact
from loom.chat.template import chat_template
from loom.errors import LoomError
from loom.model.transformer import Transformer
from loom.release import export as exporting
from loom.release.export import Export, export
from loom.release.importing import import_model
from tests.release.conftest import TIED, UNTIED, Make


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def bare(folder: Path) -> Path:
    """A model as it comes from elsewhere, without Loom's manifest."""
    for name in ("manifest.json", "run.json"):
        (folder / name).unlink()
    return folder


def test_a_model_is_not_exported_over_itself(make_checkpoint: Make, tmp_path: Path) -> None:
    theirs = bare(export(make_checkpoint(TIED), tmp_path / "theirs").path)
    before = contents(theirs)
    for out in (theirs, theirs / ".." / "theirs"):
        with pytest.raises(LoomError, match="is the model that is to be exported"):
            export(theirs, out, Export(dtype="bfloat16"))
    (tmp_path / "link").symlink_to(theirs)
    with pytest.raises(LoomError, match="is the model that is to be exported"):
        export(tmp_path / "link", theirs, Export(dtype="bfloat16"))
    assert contents(theirs) == before


def test_somebodys_model_is_not_exported_over(make_checkpoint: Make, tmp_path: Path) -> None:
    source = make_checkpoint(TIED)
    theirs = bare(export(source, tmp_path / "theirs").path)
    for kept in ("config.json", "model.safetensors"):
        folder = tmp_path / kept.replace(".", "-")
        folder.mkdir()
        shutil.copy(theirs / kept, folder / kept)
        with pytest.raises(LoomError, match=f"holds {kept}, which no export of Loom's wrote"):
            export(source, folder)
        assert [p.name for p in folder.iterdir()] == [kept]


def test_an_export_that_was_killed_goes_on(
    make_checkpoint: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it began is its own: the same command finishes it, in a new folder and over an older export."""
    source, other = make_checkpoint(TIED), make_checkpoint(TIED, seed=1, name="other")
    whole = contents(export(source, tmp_path / "whole").path)
    out = tmp_path / "out"

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    for first in (None, other):
        if first is not None:
            shutil.rmtree(out)
            export(first, out)
        with monkeypatch.context() as patched:
            patched.setattr(exporting, "check", killed)
            with pytest.raises(KeyboardInterrupt):
                export(source, out)
        assert not (out / "manifest.json").exists()
        export(source, out)
        now = contents(out)
        assert {k: v for k, v in now.items() if k != "run.json"} == {
            k: v for k, v in whole.items() if k != "run.json"
        }


def test_weights_of_another_model_leave_the_export_as_it_was(make_checkpoint: Make, tmp_path: Path) -> None:
    """Where it is refused it has not begun."""
    source = make_checkpoint(UNTIED)
    made = export(source, tmp_path / "export", Export(shard_bytes=20_000))
    before = contents(made.path)
    with pytest.raises(LoomError, match="not part of this export"):
        export(source, made.path)
    assert contents(made.path) == before


def test_an_import_deletes_no_training_checkpoint(make_checkpoint: Make, tmp_path: Path) -> None:
    theirs = bare(export(make_checkpoint(TIED), tmp_path / "theirs").path)
    run = tmp_path / "run" / "checkpoints"
    run.mkdir(parents=True)
    step = make_checkpoint(TIED, seed=1).rename(run / "step-00001000")
    before = contents(step)
    with pytest.raises(LoomError, match="something else than an import"):
        import_model(theirs, step)
    (step / "manifest.json").unlink()
    with pytest.raises(LoomError, match="something else than an import"):
        import_model(theirs, step)
    assert contents(step) == {name: data for name, data in before.items() if name != "manifest.json"}


def test_what_lies_beside_an_import_is_not_deleted(make_checkpoint: Make, tmp_path: Path) -> None:
    first = export(make_checkpoint(TIED), tmp_path / "first").path
    second = export(make_checkpoint(TIED, seed=1, name="other"), tmp_path / "second").path
    out = tmp_path / "olmo"
    import_model(first, out)
    (out / "eval").mkdir()
    (out / "eval" / "results.json").write_text("{}")
    with pytest.raises(LoomError, match="holds eval beside"):
        import_model(second, out)
    assert (out / "eval" / "results.json").read_text() == "{}"
    shutil.rmtree(out / "eval")
    import_model(second, out)
    assert artifact.lineage(out).parents[0].path.resolve() == second.resolve()
    assert not artifact.lineage(out).parents[0].stale


def test_the_imports_own_tokenizer_may_be_given(
    make_checkpoint: Make, tmp_path: Path, tokenizer_path: Path
) -> None:
    first = export(make_checkpoint(TIED), tmp_path / "first").path
    second = bare(export(make_checkpoint(TIED, seed=1, name="other"), tmp_path / "second").path)
    (second / "tokenizer.json").unlink()
    import_model(first, tmp_path / "olmo")
    import_model(second, tmp_path / "olmo", tmp_path / "olmo" / "tokenizer.json")
    assert (tmp_path / "olmo" / "tokenizer.json").read_bytes() == tokenizer_path.read_bytes()
    assert {p.name for p in tmp_path.iterdir() if p.name.startswith(".")} == set()


def test_an_import_that_fails_leaves_the_older_one(
    make_checkpoint: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = export(make_checkpoint(TIED), tmp_path / "first").path
    second = export(make_checkpoint(TIED, seed=1, name="other"), tmp_path / "second").path
    import_model(first, tmp_path / "olmo")
    before = contents(tmp_path / "olmo")

    def full(*_: Any, **__: Any) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patched:
        patched.setattr(Transformer, "state_dict", full)
        with pytest.raises(OSError, match="no space left"):
            import_model(second, tmp_path / "olmo")
    assert contents(tmp_path / "olmo") == before
    import_model(second, tmp_path / "olmo")
    assert contents(tmp_path / "olmo") != before


def test_another_tokenizer_is_another_import(
    make_checkpoint: Make, tmp_path: Path, tokenizer_path: Path
) -> None:
    """With the same one there is nothing to do; a changed one is taken."""
    theirs = bare(export(make_checkpoint(TIED), tmp_path / "theirs").path)
    (theirs / "tokenizer.json").unlink()
    given = tmp_path / "given.json"
    shutil.copy(tokenizer_path, given)
    import_model(theirs, tmp_path / "olmo", given)
    stamp = (tmp_path / "olmo" / "manifest.json").stat().st_mtime_ns
    import_model(theirs, tmp_path / "olmo", given)
    assert (tmp_path / "olmo" / "manifest.json").stat().st_mtime_ns == stamp
    values = json.loads(given.read_bytes())
    given.write_text(json.dumps(values, indent=1))
    import_model(theirs, tmp_path / "olmo", given)
    assert (tmp_path / "olmo" / "tokenizer.json").read_bytes() == given.read_bytes()


def test_a_changed_template_is_another_input(make_checkpoint: Make, tmp_path: Path) -> None:
    theirs = bare(export(make_checkpoint(TIED), tmp_path / "theirs").path)
    file = theirs / "chat_template.jinja"
    for text in ("one", "two"):
        file.write_text(text)
        import_model(theirs, tmp_path / "olmo")
        export(theirs, tmp_path / "out")
        for made in ("olmo", "out"):
            found = chat_template(tmp_path / made)
            assert found is not None
            assert found.text == text
    assert loom.load(tmp_path / "olmo")[1].eos_token == loom.load(tmp_path / "out")[1].eos_token
