"""The command line. One small file a verb; each parses, calls and prints, nothing else.

A verb's module defines `app`, a `typer.Typer`; its functions return a plain value that `--json` prints
as the last line. Modules are imported only when their verb is used, so that `loom --help` is quick.

Every verb takes `--json` and `--debug`. An option that may be given several times also takes several
values after one flag: `--documents a.jsonl b.jsonl`.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import Any

import typer
from typer.core import TyperGroup

from loom.cli.verbs import VERBS
from loom.console import console
from loom.errors import LoomError
from loom.version import VERSION

EPILOG = "Also: --json prints one JSON object as the last line; --debug shows a traceback on an error."


class Verbs(TyperGroup):
    """Loads a verb's module when it is named; the list of verbs costs no import."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in VERBS:
            return None
        module = importlib.import_module(VERBS[cmd_name].module)
        command = typer.main.get_command(module.app)
        command.name = cmd_name
        command.epilog = command.epilog or EPILOG
        return command

    def format_help(self, ctx: Any, formatter: Any) -> None:
        print(f"loom {VERSION}: from raw documents to a model's answer, and back.\n")
        print("Usage: loom VERB [OPTIONS] ...      loom VERB --help shows a verb's options and an example\n")
        width = max(map(len, VERBS))
        group = ""
        for name, verb in VERBS.items():
            if verb.group != group:
                group = verb.group
                print(f"{group}:")
            print(f"  {name:<{width}}  {verb.summary}")
        print(f"\n{EPILOG}")


app = typer.Typer(cls=Verbs, add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)


@app.callback()
def _root() -> None:
    """From raw documents to a model's answer, and back."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; ends the process with 0, 1 (an error) or 2 (bad usage)."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words == ["--version"]:
        print(f"loom {VERSION}")
        sys.exit(0)
    options, rest = _split_at_dashes(words)
    as_json, debug = "--json" in options, "--debug" in options
    options = [word for word in options if word not in ("--json", "--debug")]
    console.set_json(as_json)
    root = typer.main.get_command(app)
    try:
        result = root.main(spread(root, options) + rest, prog_name="loom", standalone_mode=False)
    except LoomError as error:
        if debug:
            raise
        _fail(str(error), 1)
    except KeyboardInterrupt:
        _fail("Stopped. The same command goes on from the last finished task or checkpoint.", 130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
    except MemoryError:
        if debug:
            raise
        _fail("Out of memory. Give fewer --workers, or smaller batches.", 1)
    except Exception as error:
        if hasattr(error, "format_message") and hasattr(error, "exit_code"):  # a usage error of click's
            _usage(error)
        if debug:
            raise
        _fail(f"{type(error).__name__}: {error}. This is a defect of Loom's: --debug shows where.", 1)
    if isinstance(result, int) and not as_json:
        sys.exit(result)
    if as_json:
        console.result(result if result is not None else {})
    sys.exit(0)


def _split_at_dashes(words: list[str]) -> tuple[list[str], list[str]]:
    at = words.index("--") if "--" in words else len(words)
    return words[:at], words[at:]


def spread(root: Any, words: Sequence[str]) -> list[str]:
    """Write `--documents a b` as `--documents a --documents b`, for options that may be repeated."""
    repeated: set[str] = set()
    out: list[str] = []
    command = root
    current: str | None = None
    fresh = False
    for word in words:
        if word.startswith("-") and word != "-":
            name = word.split("=", 1)[0]
            current, fresh = (word, True) if word in repeated else (None, False)
            if name in repeated and "=" in word:
                current = None
            out.append(word)
        elif current is not None:
            out += [word] if fresh else [current, word]
            fresh = False
        else:
            if (sub := _subcommand(command, word)) is not None:
                command = sub
                repeated = {
                    option
                    for item in command.params
                    if getattr(item, "multiple", False)
                    for option in item.opts
                }
            out.append(word)
    return out


def _subcommand(command: Any, word: str) -> Any:
    lookup = getattr(command, "get_command", None)
    return lookup(None, word) if lookup is not None else None


def _usage(error: Any) -> None:
    where = getattr(getattr(error, "ctx", None), "command_path", "loom")
    sys.stderr.write(f"{error.format_message()}\nTry '{where} --help'.\n")
    sys.exit(error.exit_code)


def _fail(message: str, code: int) -> None:
    sys.stdout.flush()
    sys.stderr.write(f"error: {message}\n")
    sys.exit(code)
