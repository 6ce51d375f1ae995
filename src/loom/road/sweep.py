"""Combinations of a recipe's values: `key=a,b` words -> the runs they ask for."""

from __future__ import annotations

from itertools import product

from loom.errors import LoomError


def split(text: str) -> list[str]:
    """At commas outside brackets, braces and quotes: "1,[2,3]" is "1" and "[2,3]"."""
    parts, depth, quote, start = [], 0, "", 0
    for place, letter in enumerate(text):
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'":
            quote = letter
        elif letter in "[{":
            depth += 1
        elif letter in "]}":
            depth -= 1
        elif letter == "," and depth == 0:
            parts.append(text[start:place])
            start = place + 1
    return [*parts, text[start:]]


def combinations(words: list[str]) -> dict[str, list[str]]:
    """A run's name -> its overrides. Raises `LoomError` where nothing varies, or for what is not key=values.

    A name holds the last part of each key that varies and its value.
    """
    keys: dict[str, list[str]] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not key:
            raise LoomError(f"{word!r} is not key=value or key=a,b,c.")
        if key in keys:
            raise LoomError(f"{key} is given twice: write all its values after one =, parted by commas.")
        keys[key] = split(text)
        if "" in keys[key]:
            raise LoomError(f"{word!r} has an empty value between its commas.")
    varied = [key for key, values in keys.items() if len(values) > 1]
    if not varied:
        raise LoomError("Nothing varies: give a key several values, as in optimizer.learning_rate=1e-3,2e-3.")
    short = {key: key.rpartition(".")[2] for key in varied}
    if len(set(short.values())) < len(varied):
        short = {key: key for key in varied}
    runs = {}
    for values in product(*keys.values()):
        chosen = dict(zip(keys, values, strict=True))
        name = ",".join(f"{short[key]}={_plain(chosen[key])}" for key in varied)
        if name in runs:
            raise LoomError(f"The run {name} would be made twice: a value is listed twice.")
        runs[name] = [f"{key}={value}" for key, value in chosen.items()]
    return runs


def _plain(value: str) -> str:
    """A value as a part of a folder's name."""
    return "".join(letter if letter.isalnum() or letter in "._-+" else "_" for letter in value)
