"""What an evaluation left in its folder, read back: `results.json`, `text.jsonl`, `<task>.jsonl`.

A folder that is no evaluation, a file that was cut short and a row that lacks something are errors that name the
file and the line: a figure from what can be read of it would be another figure.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from loom.errors import LoomError
from loom.evals.perplexity import DocumentScore

Results = dict[str, Any]
Row = tuple[str, dict[str, Any]]
"""Where a row lies, as file:line, and the row."""
RESULTS, TEXT = "results.json", "text.jsonl"
_SCORE = {"id": str, "source": str, "domain": str, "nll": float, "end": float, "tokens": int, "bytes": int}
_FILES = ("files", "example_files", "prompts")  # of a task: lists of files with their digests


def read_results(folder: Path) -> Results:
    """`results.json`, whose `results` and `tasks` are objects of objects. Raises `LoomError` for anything else."""
    path = folder / RESULTS
    try:
        body = orjson.loads(path.read_bytes())
    except FileNotFoundError:
        raise _no_evaluation(folder, f"it holds no {RESULTS}") from None
    except OSError as error:
        raise _no_evaluation(folder, f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise _no_evaluation(folder, f"{path} is not JSON, perhaps cut short: {error}") from None
    if not isinstance(body, dict):
        raise _no_evaluation(folder, f"{path} holds no object")
    for key in ("results", "tasks"):
        found = body.get(key)
        if not isinstance(found, dict) or not all(isinstance(one, dict) for one in found.values()):
            raise _no_evaluation(folder, f"`{key}` in {path} is not an object of objects")
    for name, facts in body["tasks"].items():
        if not isinstance(facts.get("headline"), str):
            raise _no_evaluation(folder, f"{path} does not say which metric is {name}'s headline")
        for key in _FILES:
            _check_files(folder, f"`{key}` of {name} in {path}", facts.get(key, []))
    _check_files(folder, f"`text` in {path}", body.get("text", []))
    return body


def _check_files(folder: Path, what: str, found: Any) -> None:
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise _no_evaluation(folder, f"{what} is not a list of files")


def _no_evaluation(folder: Path, why: str) -> LoomError:
    return LoomError(f"{folder} is not an evaluation of Loom's ({why}); name the --out of `loom eval`.")


def has_text(results: Mapping[str, Any], folder: Path) -> bool:
    """Whether this evaluation measured text: a text.jsonl that a killed one left says nothing of this model."""
    return bool(results.get("text")) and (folder / TEXT).is_file()


def has_rows(results: Mapping[str, Any], folder: Path, task: str) -> bool:
    """Whether a task's figures stand on rows that can be paired. A refused task has none, and a written answer is
    no figure."""
    facts = results["tasks"].get(task, {})
    return ("files" in facts or "digest" in facts) and (folder / f"{task}.jsonl").is_file()


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a file of JSON lines, each with its place. Raises `LoomError` at the first that is no object."""
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise LoomError(f"{path} cannot be read ({error}): name the --out of `loom eval`.") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = orjson.loads(line)
        except ValueError as error:
            raise broken(f"{path}:{number}", f"not JSON, perhaps cut short: {error}") from None
        if not isinstance(row, dict):
            raise broken(f"{path}:{number}", "not an object")
        yield f"{path}:{number}", row


def read_scores(path: Path) -> list[DocumentScore]:
    """What an evaluation of text stored, from its text.jsonl."""
    return [_score(place, row) for place, row in read_rows(path)]


def _score(place: str, row: Mapping[str, Any]) -> DocumentScore:
    for name, kind in _SCORE.items():
        if name not in row:
            raise broken(place, f"it has no `{name}`")
        value = row[name]
        if not isinstance(value, (int, float) if kind is float else kind) or isinstance(value, bool):
            raise broken(place, f"`{name}` is {value!r}")
    return DocumentScore(**{name: row[name] for name in _SCORE})


def broken(place: str, why: str) -> LoomError:
    return LoomError(
        f"{place} is not a row that `loom eval` wrote ({why}): make it again, the same command with the same --out."
    )


def few(names: Sequence[str], most: int = 8) -> str:
    """Names for a sentence: the first of them, and how many more there are."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
