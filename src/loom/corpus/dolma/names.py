"""The attribute names that filters read: are they ever written?"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

import orjson

from loom.artifact import MANIFEST
from loom.console import console
from loom.corpus import attributes as attribute_files
from loom.corpus import remote
from loom.corpus.batch import Batch, make_batch
from loom.corpus.documents import read_lines
from loom.errors import LoomError
from loom.recipe import nearest

MISSPELT = re.compile(r"(fraction_of_characters_in_most_common_[234]gram)(?!s)")
FIRST_ROWS = 500


def mend(text: str) -> str:
    """A published expression with its known misspellings put right: `2gram` is `2grams`."""
    return MISSPELT.sub(r"\1s", text)


def read_by(expression: str, syntax: str) -> list[str]:
    """The attribute names an expression reads; none where it names none in a way that can be told."""
    if syntax == "jq":
        return re.findall(r"\.attributes\??(?:\.|\.?\[['\"])([A-Za-z_]\w*)", expression)
    direct = re.findall(r"\$@?\.attributes\.([A-Za-z_]\w*)", expression)
    tested = re.search(r"\$@?\.attributes\[\?\((.*)\)\]", expression)
    quoted = re.findall(r"\$@?\.attributes\[['\"](\w+)['\"]\]", expression)
    if tested:
        direct += re.findall(r"@(?:\.|\[['\"])([A-Za-z_]\w*)", tested.group(1))
    return direct + quoted


@cache
def tagger_keys(tagger: str) -> tuple[str, ...]:
    """The keys a registered tagger can write, by running it on a text or as it says; none for one unknown here."""
    from loom.corpus import taggers

    taggers.load_families()
    if tagger not in taggers.REGISTRY:
        return ()
    entry = taggers.REGISTRY[tagger]
    return entry.keys if entry.needs else tuple(taggers.get(tagger)(taggers.Texts(sample())))


def sample() -> Batch:
    """One document, with enough in it for a tagger to show its keys."""
    text = "One line.\nanother two three four five six seven eight nine ten eleven twelve\n"
    return make_batch([{"id": "x", "text": text}], [1])


def check(wanted: Iterable[str], attributes: Sequence[Path], documents: Sequence[Path]) -> None:
    """Raise `LoomError` for a name that no attribute file holds and nothing that made them could have written.

    What marks only hits leaves no trace of its name in a clean corpus; its manifest tells what it looked for.
    """
    missing = [name for name in dict.fromkeys(wanted) if not _known_tagger_writes(name, attributes)]
    seen = _said_by_manifests(attributes) if missing else set()
    missing = [name for name in missing if name not in seen]
    for rows in (FIRST_ROWS, None):
        for path in (*attributes, *documents):
            if not missing:
                return
            seen |= _names_in(path, rows)
            missing = [name for name in missing if name not in seen]
    if missing:
        folders = {str(path).rpartition("/attributes/")[2].partition("/")[0] for path in attributes}
        seen |= {f"{name}__{name}__{key}" for name in folders for key in tagger_keys(name)}
        near = nearest(missing[0], sorted(seen))
        hint = f" Did you mean {near!r}?" if near else ""
        raise LoomError(
            f"The filter reads the attribute {missing[0]!r}, which nothing wrote, so it never matches.{hint} "
            f"Name one that is there, add its folder to `attributes`, or run with --compat dolma-1.2."
        )


def _known_tagger_writes(name: str, attributes: Sequence[Path]) -> bool:
    experiment, _, rest = name.partition("__")
    tagger, _, key = rest.partition("__")
    return key in tagger_keys(tagger) and any(
        f"/attributes/{experiment}/" in str(path) for path in attributes
    )


def _said_by_manifests(attributes: Sequence[Path]) -> set[str]:
    """The names that duplicates and evaluation text are marked with, by the manifests of the attribute folders."""
    found: set[str] = set()
    parts = (str(path).rpartition("/attributes/") for path in attributes)
    for folder in sorted({f"{head}/attributes/{tail.partition('/')[0]}" for head, cut, tail in parts if cut}):
        try:
            with remote.open_raw(Path(folder, MANIFEST)) as stream:
                recipe = orjson.loads(stream.read())["recipe"]
            rules = recipe.get("dedupe", {})
            marks = [
                recipe.get("name"),
                *(rules[kind]["attribute_name"] for kind in ("documents", "paragraphs") if rules.get(kind)),
            ]
        except (OSError, LoomError, orjson.JSONDecodeError, AttributeError, KeyError, TypeError):
            continue  # made elsewhere: its rows tell
        found |= {name + more for name in marks if isinstance(name, str) for more in ("", "_of")}
    return found


def _names_in(path: Path, rows: int | None) -> set[str]:
    names: set[str] = set()
    if path.name.endswith(".parquet"):
        if "/attributes/" in str(path):  # documents in Parquet have none
            for _, spans in attribute_files.read(path):
                names |= spans.keys()
                if rows is not None:
                    break
        return names
    for number, line in enumerate(read_lines(path)):
        if rows is not None and number >= rows:
            break
        try:
            found = orjson.loads(line)["attributes"]
        except (orjson.JSONDecodeError, KeyError, TypeError):
            continue  # set aside, or named, when the rows are read
        if isinstance(found, dict):
            names |= found.keys()
    return names


def warn_mended(before: str, after: str) -> None:
    console.warn(f"{before[:90]!r} was read as {after[:90]!r}: the published name is misspelt")
