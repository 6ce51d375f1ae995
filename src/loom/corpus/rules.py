"""A curation recipe: which sources, which rules for each, what is deduplicated and decontaminated."""

from __future__ import annotations

import keyword
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from loom.artifact import MANIFEST, load
from loom.corpus import pieces, remote, tag
from loom.corpus.decontaminate import Questions
from loom.corpus.dedupe.minhash import Near
from loom.corpus.expression import AGGREGATES, written_out
from loom.corpus.tag import File
from loom.errors import LoomError
from loom.recipe import nearest


@dataclass(frozen=True)
class Rules:
    """What is asked of a source's documents.

    Spans with a score of at least 0.5 are replaced; `tagger.key >= 0.4` asks for another.
    """

    taggers: tuple[str, ...]
    remove: Mapping[str, str] = field(default_factory=dict)
    replace: Mapping[str, str] = field(default_factory=dict)
    paragraphs: bool = True  # look for duplicate paragraphs
    near: bool = True  # look for near-duplicates, where the recipe's `dedupe.near` says how
    unique: str = ""  # a field that no two documents may share: metadata.url


LEAST_SCORE = 0.5  # of a span that is replaced


def replaced(name: str) -> tuple[str, str, float]:
    """(tagger, key, lowest score) of a key of `replace`."""
    span, least, score = name.partition(">=")
    tagger, _, key = span.strip().partition(".")
    try:
        return tagger, key, float(score) if least else LEAST_SCORE
    except ValueError:
        raise LoomError(f"replace: {name!r} should read `tagger.key` or `tagger.key >= 0.4`.") from None


@dataclass(frozen=True)
class Source:
    """A source: its files (below the recipe's `documents` by default), its rules, the share of it to keep.

    A share above 1 repeats documents: 2.5 keeps two copies of each and a third of half of them, chosen by a
    keyed hash of the id; copies are called `id#2`, `id#3`.
    """

    rules: str
    documents: tuple[str, ...] = ()
    share: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.share <= 100:
            raise ValueError("share must be above 0 and at most 100")


@dataclass(frozen=True)
class Dedupe:
    """Duplicates: whole documents, documents nearly alike (MinHash), paragraphs (lines, or blocks between empty ones).

    Without `across_sources` a document or a paragraph is compared with those of its own source only.
    """

    documents: bool = True
    near: Near | None = None
    paragraphs: bool = True
    unit: Literal["line", "block"] = "block"
    fewest_words: int = 12
    across_sources: bool = True

    def __post_init__(self) -> None:
        if self.near is not None and not self.across_sources:
            raise ValueError(
                "across_sources is false, but near-duplicates are looked for in all sources together"
            )


@dataclass(frozen=True)
class Curate:
    """A curation recipe."""

    sources: Mapping[str, Source]
    rules: Mapping[str, Rules]
    documents: str = ""
    dedupe: Dedupe = Dedupe()
    decontaminate: Questions | None = None
    most_removed: Mapping[str, float] = field(
        default_factory=dict
    )  # rule -> the share of a source's documents above which the run stops
    fewest_characters: int = 1  # of what is left once spans are cut
    keep_removed: bool = True
    names: Mapping[str, str] = field(
        default_factory=dict
    )  # short names for `remove` and `replace`: tagger.key
    modules: tuple[str, ...] = ()  # of taggers of one's own
    files: Mapping[str, str | tuple[str, ...]] = field(
        default_factory=dict
    )  # that taggers read: models, lists
    largest: int = pieces.LARGE  # bytes of a file on disk above which it is read in pieces
    seed: int = 0

    def __post_init__(self) -> None:
        for name, meaning in self.names.items():
            taken = name in AGGREGATES or name == "document" or keyword.iskeyword(name)
            if taken or not name.isidentifier() or not re.fullmatch(r"[A-Za-z_]\w*\.[A-Za-z_]\w*", meaning):
                raise ValueError(
                    f"names.{name} is {meaning!r}; a short name is a word that is not taken, and stands for a "
                    f"`tagger.key`"
                )
        known = dict.fromkeys(rule for rules in self.rules.values() for rule in rules.remove)
        for rule, most in self.most_removed.items():
            if rule not in known:
                near = nearest(rule, known)
                hint = f"; did you mean {near!r}?" if near else ""
                raise ValueError(f"most_removed names {rule!r}, which no set of rules has{hint}")
            if not 0 <= most <= 1:
                raise ValueError(f"most_removed.{rule} is {most}; it is a share, from 0 to 1")
        for name, source in self.sources.items():
            if source.rules not in self.rules:
                near = nearest(source.rules, self.rules)
                raise ValueError(
                    f"sources.{name}.rules is {source.rules!r}; "
                    + (f"did you mean {near!r}?" if near else f"there are {', '.join(self.rules)}")
                )


def resolved(recipe: Curate) -> Curate:
    """The recipe with its short names written out wherever its rules use them."""
    if not recipe.names:
        return recipe

    def span(name: str) -> str:
        short, least, score = name.partition(">=")
        long = recipe.names.get(short.strip(), short.strip())
        return f"{long} {least}{score}" if least else long

    rules = {
        name: replace(
            each,
            remove={
                rule: written_out(text, recipe.names, f"rules.{name}.remove.{rule}")
                for rule, text in each.remove.items()
            },
            replace={span(key): value for key, value in each.replace.items()},
        )
        for name, each in recipe.rules.items()
    }
    return replace(recipe, rules=rules, names={})


def source_files(recipe: Curate, at: Path | None = None) -> dict[str, list[File]]:
    """Each source's document files in order, named `<source>/<file>`.

    Paths are relative to the working directory; with `at`, the curated folder, the recorded input is tried
    where that folder's manifest says it lies, so that a moved tree still finds it.
    """
    root = Path(recipe.documents)
    if at is not None and not root.exists() and remote.address(root) is None:
        beside = [at / item.path for item in load(at).inputs if (at / item.path / MANIFEST).exists()]
        moved = [path for path in beside if load(path).kind == "documents"]
        root = Path(os.path.normpath(moved[0])) if moved else root
    known = tag.listed(root if recipe.documents else "")
    files = {}
    for name, source in recipe.sources.items():
        patterns = list(source.documents) or [str(root / "documents" / name)]
        if not source.documents and not recipe.documents:
            raise LoomError(f"The recipe names no documents for the source {name!r}: set `documents`.")
        found = tag.of_source(name, tag.find(patterns), known)
        files[name] = [piece for file in found for piece in tag.in_pieces(file, recipe.largest)]
    return files
