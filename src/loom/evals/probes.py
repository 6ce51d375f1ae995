"""Instructions whose following can be checked without a judge.

In the spirit of IFEval (Zhou et al. 2023), but few, short and of our own wording, for small models; the
figures are not IFEval's. A probe counts only if the answer also ended by itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Probe:
    kind: str
    prompt: str
    check: Callable[[str], bool]


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+(?:['’-][^\W_]+)*", text)


def _lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.strip()]


def _numbered(text: str, count: int) -> bool:
    starts = [match[1] for line in _lines(text) if (match := re.match(r"\s*(\d+)[.)]", line))]
    return starts == [str(number) for number in range(1, count + 1)]


def _bullets(text: str, count: int) -> bool:
    return sum(bool(re.match(r"\s*[-*•] ", line)) for line in _lines(text)) == count


def _is(said: str, *words: str) -> bool:
    return said.strip(' .!"').lower() in words


def _says(word: str, prompt: str, kind: str = "keyword") -> Probe:
    return Probe(kind, prompt, lambda text: re.search(rf"\b{word}\b", text, re.IGNORECASE) is not None)


PROBES: tuple[Probe, ...] = (
    Probe("one word", "What colour is the sky on a clear day? Answer with one word.", lambda t: len(_words(t)) == 1),
    Probe("one word", "What is the capital of France? Answer with one word.", lambda t: len(_words(t)) == 1),
    Probe("one word", "Is water wet? Answer only yes or no.", lambda t: _is(t, "yes", "no")),
    Probe("one word", "Is the sun cold? Answer only yes or no.", lambda t: _is(t, "yes", "no")),
    Probe("short", "Describe a cat in at most ten words.", lambda t: 0 < len(_words(t)) <= 10),
    Probe("short", "Say what a library is in at most twenty words.", lambda t: 0 < len(_words(t)) <= 20),
    Probe("short", "Tell me about the moon in fewer than thirty words.", lambda t: 0 < len(_words(t)) < 30),
    Probe("long", "Write at least fifty words about the sea.", lambda t: len(_words(t)) >= 50),
    Probe("long", "Explain how bread is made in at least forty words.", lambda t: len(_words(t)) >= 40),
    Probe("list", "List three fruits as a numbered list.", lambda t: _numbered(t, 3)),
    Probe("list", "Give me five ideas for a birthday present as a numbered list.", lambda t: _numbered(t, 5)),
    Probe("list", "Name four animals, each in a line that starts with a dash.", lambda t: _bullets(t, 4)),
    Probe("list", "List two reasons to exercise as bullet points.", lambda t: _bullets(t, 2)),
    Probe("case", "Write a sentence about winter in capital letters only.", lambda t: bool(_words(t)) and t == t.upper()),
    Probe("case", "Write a sentence about music in small letters only.", lambda t: bool(_words(t)) and t == t.lower()),
    _says("apple", "Write a sentence that has the word apple in it."),
    _says("river", "Tell a very short story in which the word river occurs."),
    _says("teacher", "Write two sentences about a school. Use the word teacher."),
    Probe("ending", "Say something about dogs and end with the word done.", lambda t: _words(t.lower())[-1:] == ["done"]),
    Probe("ending", "Write one question about history.", lambda t: t.endswith("?")),
    Probe("start", "Write a letter to a friend. Begin with the word Dear.", lambda t: t.startswith("Dear")),
    Probe("start", "Begin with the word Sure: can you help me?", lambda t: t.startswith("Sure")),
    Probe("quote", "Write only this sentence: The train is late.", lambda t: _is(t, "the train is late")),
    Probe("quote", "Write the word hello three times, nothing else.", lambda t: _words(t.lower()) == ["hello"] * 3),
)  # fmt: skip
