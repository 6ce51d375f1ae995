"""Whether a model was trained on what it is to be evaluated on, read from its lineage.

Two things are looked at, walking manifests back from the model: an evaluation's own file among the
inputs of any ancestor (by digest), and its prompts among the user turns of the conversations that the
model was tuned on (by their words). A model that saw some gets no figure.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from loom import artifact
from loom.errors import LoomError
from loom.tasks.ngrams import words
from loom.tokens.shards import open_tokens
from loom.tokens.tokenizer import Tokenizer

_USER = re.compile(r"<\|user\|>\n(.*?)\n<\|assistant\|>", re.DOTALL)


@dataclass(frozen=True)
class Seen:
    """`where` says in which training set; `prompts` how many of the evaluation's prompts (0: the file)."""

    where: str
    prompts: int


class History:
    """What a model was trained on, as far as its manifests and their folders are still there.

    `model` is a model, or a folder of tokens that one is about to be trained on. `against` are the digests of
    what the training data were decontaminated against.
    """

    def __init__(self, model: Path) -> None:
        self.files: dict[str, str] = {}
        self.missing: list[str] = []
        self.turns: dict[str, set[str]] = {}
        self.tokens: dict[str, int] = {}
        self.against: set[str] = set()
        try:
            root = artifact.lineage(model)
        except LoomError:
            return  # a model from elsewhere has no lineage
        for node in _walk(root):
            if node.kind == "missing":
                self.missing.append(str(node.path))
            self.against |= _against(node)
            if node.kind in ("file", "missing", "folder"):
                self.files[node.digest] = str(node.path)
            elif node.kind == "tokens":
                facts = artifact.load(node.path).facts
                if "chat" in facts:
                    self.turns[str(node.path)] = set(_user_turns(node.path))
                else:
                    for source, counts in facts.get("tokens", {}).get("sources", {}).items():
                        self.tokens[source] = self.tokens.get(source, 0) + counts["tokens"]

    @property
    def shares(self) -> dict[str, float]:
        """Each source's share of the tokens of the model's pretraining folders."""
        total = sum(self.tokens.values())
        return {source: count / total for source, count in self.tokens.items()} if total else {}

    def saw(self, prompts: Sequence[str], digests: Sequence[str]) -> Seen | None:
        """Where the model saw these prompts or one of these files, None if nowhere."""
        for digest in digests:
            if digest in self.files:
                return Seen(self.files[digest], 0)
        wanted = {_key(prompt) for prompt in prompts}
        for where, turns in self.turns.items():
            if found := len(wanted & turns):
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


def _user_turns(folder: Path) -> Iterator[str]:
    """What users say in a folder of `loom prepare`, from its tokens."""
    opened = open_tokens(folder)
    tokenizer = Tokenizer.load(opened.tokenizer)
    for ids in opened.arrays:
        for turn in _USER.findall(tokenizer.decode(ids.tolist())):
            yield _key(turn)


def _key(text: str) -> str:
    return " ".join(words(text))
