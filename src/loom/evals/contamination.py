"""Whether a model was trained on what it is to be evaluated on, read from its lineage.

Two things are looked at, walking manifests back from the model: an evaluation's own file among the
inputs of any ancestor (by digest), and its questions in the user turns of the conversations that the
model was tuned on (by their words, whatever stands around them). A model that saw some gets no figure.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loom import artifact
from loom.chat.decontaminate import FEWEST, hash_words, word_grams
from loom.chat.format import DEFAULT, FORMATS, ChatFormat
from loom.console import console
from loom.errors import LoomError
from loom.recipe import build
from loom.tasks.ngrams import NGRAM, words
from loom.tokens.shards import open_tokens
from loom.tokens.tokenizer import Tokenizer


class Turns:
    """What users say in one folder of `loom prepare`, read when it is first asked for and kept as hashes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def _hashes(self) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
        """Of whole turns, and of every run of `NGRAM` words within one; distinct and sorted."""
        whole: list[NDArray[np.uint64]] = [np.zeros(0, np.uint64)]
        runs: list[NDArray[np.uint64]] = [np.zeros(0, np.uint64)]
        with console.progress("what the model was tuned on") as progress:
            for turns in _user_turns(self.folder):
                said = [words(turn) for turn in turns]
                whole.append(np.unique(np.fromiter(map(hash_words, said), np.uint64)))
                found = (gram for turn in said for gram in word_grams(turn, NGRAM))
                runs.append(np.unique(np.fromiter(found, np.uint64)))
                progress.advance()
        return np.unique(np.concatenate(whole)), np.unique(np.concatenate(runs))

    def hold(self, text: str) -> bool:
        """Whether a user says `text` word for word: within a turn where it has `NGRAM` words or more (all of
        its runs of them occur), as a whole turn where it has fewer. Under `FEWEST` words it is nobody's
        question."""
        found = words(text)
        if len(found) < FEWEST:
            return False
        whole, runs = self._hashes
        if len(found) < NGRAM:
            return _among(np.array([hash_words(found)], np.uint64), whole)
        return _among(np.fromiter(word_grams(found, NGRAM), np.uint64), runs)


def _among(wanted: NDArray[np.uint64], known: NDArray[np.uint64]) -> bool:
    """Whether all of `wanted` are in `known`, which is sorted."""
    if not len(known):
        return False
    at = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
    return bool((known[at] == wanted).all())


@dataclass(frozen=True)
class Seen:
    """`where` says in which training set; `prompts` how many of the evaluation's prompts (0: the file)."""

    where: str
    prompts: int


class History:
    """What a model was trained on, as far as its manifests and their folders are still there.

    `model` is a model, or a folder of tokens that one is about to be trained on. `against` are the digests of
    what the training data were decontaminated against, `artifacts` (paths by digest) the folders of documents and
    tokens on the way.
    """

    def __init__(self, model: Path) -> None:
        self.files: dict[str, str] = {}
        self.missing: list[str] = []
        self.turns: dict[str, Turns] = {}
        self.tokens: dict[str, int] = {}
        self.against: set[str] = set()
        self.artifacts: dict[str, str] = {}
        try:
            root = artifact.lineage(model)
        except LoomError:
            return  # a model from elsewhere has no lineage
        for node in _walk(root):
            if node.kind == "missing":
                self.missing.append(str(node.path))
            self.against |= _against(node)
            if node.kind in ("documents", "tokens"):
                self.artifacts[node.digest] = str(node.path)
            if node.kind in ("file", "missing", "folder"):
                self.files[node.digest] = str(node.path)
            elif node.kind == "tokens":
                facts = artifact.load(node.path).facts
                if "chat" in facts:
                    self.turns[str(node.path)] = Turns(node.path)
                else:
                    for source, counts in facts.get("tokens", {}).get("sources", {}).items():
                        self.tokens[source] = self.tokens.get(source, 0) + counts["tokens"]

    @property
    def shares(self) -> dict[str, float]:
        """Each source's share of the tokens of the model's pretraining folders."""
        total = sum(self.tokens.values())
        return {source: count / total for source, count in self.tokens.items()} if total else {}

    def saw(self, prompts: Iterable[Sequence[str]], digests: Sequence[str]) -> Seen | None:
        """Where the model saw these prompts or one of these files, None if nowhere. Each prompt is given by its
        spellings (`loom.tasks.item.asked`), of which one suffices."""
        for digest in digests:
            if digest in self.files:
                return Seen(self.files[digest], 0)
        wanted = list(prompts)
        for where, turns in self.turns.items():
            if found := sum(any(map(turns.hold, spellings)) for spellings in wanted):
                return Seen(where, found)
        return None

    def saw_turns(self, conversations: Iterable[Sequence[str]], held_out_of: Path) -> Seen | None:
        """Where the model was tuned on what users say in held-out conversations: those count of which every turn of
        `FEWEST` words or more was said there. The folder that they were held out of is not asked: it holds out
        whole prompts, and has turns in common with them by its nature."""
        told = [[turn for turn in turns if len(words(turn)) >= FEWEST] for turns in conversations]
        wanted = [turns for turns in told if turns]
        for where, known in self.turns.items():
            if known.folder.resolve() == held_out_of.resolve():
                continue
            if found := sum(all(map(known.hold, turns)) for turns in wanted):
                return Seen(where, found)
        return None


def _walk(node: artifact.Lineage) -> Iterator[artifact.Lineage]:
    """Every node once whose text can have reached the model: attributes bring none with them, nor does what
    documents or conversations were decontaminated against."""
    seen = set()
    waiting = [node]
    while waiting:
        here = waiting.pop()
        if (here.path, here.digest) not in seen:
            seen.add((here.path, here.digest))
            waiting += _parents(here)
            yield here


def _parents(node: artifact.Lineage) -> list[artifact.Lineage]:
    if node.kind == "attributes":
        return []
    against = _against(node)
    return [parent for parent in node.parents if parent.digest not in against]


def _against(node: artifact.Lineage) -> set[str]:
    """Digests of what was only looked for: said by the manifest, or all that attributes read."""
    if not (node.path / artifact.MANIFEST).is_file():
        return set()
    here = artifact.load(node.path)
    found = set(here.facts.get("against", ()))
    if node.kind == "attributes" and isinstance(here.recipe, dict) and "against" in here.recipe:
        found |= {item.digest for item in here.inputs}
    return found


def _user_turns(folder: Path, piece: int = 1 << 22) -> Iterator[list[str]]:
    """What users say in a folder of `loom prepare`, from its tokens, in the format of its manifest; some
    documents at a time."""
    opened = open_tokens(folder)
    tokenizer = Tokenizer.load(opened.tokenizer)
    chat = artifact.load(folder, "tokens").facts["chat"]
    before, after = _frame(chat, tokenizer.eos_token)
    turn = re.compile(re.escape(before) + r"(.*?)" + re.escape(after), re.DOTALL)
    for ids in opened.arrays:
        ends = np.flatnonzero(np.asarray(ids) == tokenizer.eos_id) + 1
        start = 0
        while start < len(ids):
            last = int(np.searchsorted(ends, start + piece))
            end = int(ends[last]) if last < len(ends) else len(ids)
            yield turn.findall(tokenizer.decode(ids[start:end].tolist()))
            start = end


def _frame(chat: dict[str, Any], eos: str) -> tuple[str, str]:
    """What stands before and behind a user's turn that is answered."""
    shape = chat.get("shape")
    form = build(dict(shape), ChatFormat, "the format of the conversations") if shape else None
    form = form or FORMATS.get(str(chat.get("format"))) or FORMATS[DEFAULT]
    return form.user.before.replace("{eos}", eos), (form.user.after + form.assistant.before).replace(
        "{eos}", eos
    )
