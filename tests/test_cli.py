"""The command line: quick help, several values after a flag, the right exit code, JSON last."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from loom.cli import app, spread
from loom.cli.verbs import VERBS


def loom(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "loom", *words], capture_output=True, text=True)


def test_help_names_every_verb_and_every_verb_is_there() -> None:
    shown = loom("--help")
    assert shown.returncode == 0
    for name, verb in VERBS.items():
        assert f"  {name} " in shown.stdout
        assert importlib.util.find_spec(verb.module) is not None, f"loom {name} has no module"


def test_help_imports_nothing_heavy() -> None:
    program = "import sys; from loom.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    program += "print([m for m in ('torch', 'numba', 'polars', 'pyarrow', 'numpy') if m in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert shown.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_every_verb_has_help_with_an_example(verb: str) -> None:
    shown = loom(verb, "--help")
    assert shown.returncode == 0, shown.stderr
    text = shown.stdout
    if "Commands" in text and "Example" not in text:  # a verb with nouns: each noun has its own
        command = typer.main.get_command(importlib.import_module(VERBS[verb].module).app)
        text = "".join(loom(verb, noun, "--help").stdout for noun in command.commands)
    assert f"loom {verb}" in text
    assert "Example" in text


@pytest.mark.parametrize(
    ("words", "code", "part"),
    [
        (["lineage", "/"], 1, "not something Loom made"),
        (["lineage"], 2, "Missing argument"),
        (["lineagee"], 2, "No such command"),
        (["lineage", "/", "--wrong"], 2, "No such option"),
    ],
)
def test_exit_codes_and_one_paragraph(words: list[str], code: int, part: str) -> None:
    shown = loom(*words)
    assert shown.returncode == code
    assert part in shown.stderr
    assert "Traceback" not in shown.stderr


def test_debug_shows_the_traceback() -> None:
    assert "Traceback" in loom("lineage", "/", "--debug").stderr


def test_several_values_after_one_flag() -> None:
    program = typer.Typer()

    @program.command()
    def run(  # pragma: no cover
        where: str, files: list[str] = typer.Option([], "--files", "-f"), workers: int = 1
    ) -> None: ...

    command = typer.main.get_command(program)

    class Root:
        params: list[object] = []

        def get_command(self, ctx: object, name: str) -> object:
            return command if name == "run" else None

    def spreads(*words: str) -> list[str]:
        return spread(Root(), words)

    assert spreads("run", "x", "--files", "a", "b", "--workers", "2") == [
        *("run", "x", "--files", "a", "--files", "b", "--workers", "2")
    ]
    assert spreads("run", "-f", "a", "b") == ["run", "-f", "a", "-f", "b"]
    assert spreads("run", "--files=a", "x") == ["run", "--files=a", "x"]
    assert spreads("run", "--files", "a", "--files", "b") == ["run", "--files", "a", "--files", "b"]
    assert spreads("run", "--workers", "2", "x") == ["run", "--workers", "2", "x"]


def test_json_is_the_last_line_and_the_rest_goes_to_standard_error(tmp_path: object) -> None:
    from pathlib import Path

    from loom.artifact import commit

    folder = Path(str(tmp_path)) / "one"
    folder.mkdir()
    commit(folder, "documents", recipe={}, inputs=[], outputs=[], counters={})
    shown = loom("lineage", str(folder), "--json")
    assert json.loads(shown.stdout)["kind"] == "documents"
    assert len(shown.stdout.splitlines()) == 1
    assert "documents" in shown.stderr


def test_the_root_lists_what_the_verbs_list() -> None:
    assert list(typer.main.get_command(app).list_commands(None)) == list(VERBS)


def test_shipped_recipes_are_listed_from_anywhere_by_the_name_every_verb_takes(tmp_path: Path) -> None:
    from loom.recipe import find, folder

    done = subprocess.run(
        [sys.executable, "-m", "loom", "list", "recipes", "--json"],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    listed = {row["name"]: row["what"] for row in json.loads(done.stdout.splitlines()[-1])["recipes"]}
    assert set(listed) == {path.stem for path in folder().glob("*.yaml")}
    assert all(find(name).is_file() for name in listed)
    assert all(what.endswith(".") for what in listed.values()), "a whole sentence each"
